"""The verdict of the demo: what both plants suffered, side by side, and which promises were kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from rich.table import Table
from rich.text import Text

from asyncchatd.control import shapes
from asyncchatd.model import durations
from asyncchatd.rehearsing.chat_app import Delivery
from asyncchatd.rehearsing.customers import Account
from asyncchatd.rehearsing.demo_plan import DemoPlan
from asyncchatd.rehearsing.trial import most_requests, rules
from asyncchatd.standin import ALL_FORMS, Report

RESTORING = 3
"""Refreshes that a chat may need besides, as its Chat Server is lost."""


@dataclass(frozen=True, slots=True)
class Promise:
    """One thing asyncchatd promises, and what was measured."""

    text: str
    kept: bool
    measured: str


@dataclass(frozen=True, slots=True)
class Failure:
    """What happened after the kill, by the clock that both processes share."""

    server: str
    chats: int
    """Those it served in the guarded plant."""
    noticed_seconds: float | None
    """From the kill to the beginning of the restoration; `None` when it was not noticed."""
    restoration: shapes.Restoration | None


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What both plants suffered, and the verdict."""

    plan: DemoPlan
    failure: Failure
    guarded: Report
    unguarded: Report
    delivery: Delivery
    customers: Account
    """Those who came through the gateway."""
    others: Account
    """Those of the other plant, straight at GMS."""
    exit_status: int
    seconds: float

    @property
    def push_forms(self) -> int:
        """How many of the forms a push may have were sent; the plant uses them in turn."""
        return min(len(ALL_FORMS), self.guarded.pushes_sent)

    @property
    def refreshes_allowed(self) -> int:
        """Of the chats of the gateway's customers: one for each message of either side, as an agent's is fetched and
        what became of a customer's may have to be looked for; those that restore a chat; and the keepalives."""
        keepalives = math.ceil(self.seconds / self.plan.interval)
        messages = self.customers.agents_said + self.customers.customers_said
        return messages + self.customers.pages * (RESTORING + keepalives)

    @property
    def kept(self) -> bool:
        """Whether every promise was."""
        return all(promise.kept for promise in self.promises)

    @property
    def promises(self) -> list[Promise]:
        """Each judged by the plant's report and by what pages show; the daemon's word counts for its own clock and
        exit only."""
        with_, plan, failure, delivery = self.guarded, self.plan, self.failure, self.delivery
        customers = self.customers
        restoration = failure.restoration
        finished = restoration is not None and restoration.finished_at is not None
        load = most_requests(with_, plan.rate)
        broken = {name.removesuffix("_requests"): count for name, count in rules(with_).items() if count}
        return [
            Promise("no session is lost", with_.sessions_lost == 0, f"{with_.sessions_lost} lost"),
            Promise(
                "every session has a Chat Server again",
                finished and with_.sessions_without_server == 0,
                f"{with_.sessions_without_server} without, restoration {'finished' if finished else 'unfinished'}",
            ),
            Promise(
                "no request carries a wrong key, but for those that only a lost answer told",
                with_.wrong_key_requests == 0,
                f"{with_.wrong_key_requests} of {with_.requests}",
            ),
            Promise(
                "no other rule of the Chat API is broken",
                not broken,
                ", ".join(f"{count} {name}" for name, count in broken.items()) or "0 requests",
            ),
            Promise(
                "a closed chat is refreshed once at most",
                with_.refreshes_of_closed_chats_max <= 1,
                f"{with_.refreshes_of_closed_chats_max} at most",
            ),
            Promise(
                "the rate is never passed, in no second",
                load.kept,
                str(load),
            ),
            Promise(
                "every push is taken and acknowledged",
                with_.pushes_failed == 0 and with_.pushes_unacknowledged == 0 and with_.acknowledged > 0,
                f"{with_.pushes_failed} failed, {with_.pushes_unacknowledged} unacknowledged",
            ),
            Promise(
                "every message of an agent was delivered, in order",
                delivery.kept,
                f"{delivery.delivered} of {delivery.written}, {delivery.disordered} chats out of order,"
                f" {delivery.unsigned} not signed",
            ),
            Promise(
                "a chat page that keeps its first key for ever is not thrown out",
                customers.rode_through,
                f"{customers.thrown_out} of {customers.pages} thrown out; {customers.moved} chats with another Chat"
                f" Server, {customers.rekeyed} with another key",
            ),
            Promise(
                "every message of a page's chat comes to the other side once, and in order",
                customers.complete,
                f"{customers.lost} of {customers.agents_said + customers.customers_said} lost, {customers.twice} twice,"
                f" {customers.disordered} pages out of order",
            ),
            Promise(
                "polls of pages do not reach GMS",
                customers.refreshes <= self.refreshes_allowed,
                f"{customers.refreshes} Refreshes of {self.refreshes_allowed} allowed, {customers.polls} polls",
            ),
            Promise("it stops cleanly", self.exit_status == 0, f"exit status {self.exit_status}"),
        ]

    def shown(self) -> dict[str, object]:
        """For programs."""
        restoration = self.failure.restoration
        return {
            "kept": self.kept,
            "promises": [asdict(promise) for promise in self.promises],
            "plan": asdict(self.plan),
            "restoration_window_seconds": self.plan.window,
            "server_killed": self.failure.server,
            "chats_on_it": self.failure.chats,
            "noticed_seconds": self.failure.noticed_seconds,
            "restoration": None if restoration is None else shapes.fields_of(restoration),
            "push_forms": self.push_forms,
            "with_asyncchatd": asdict(self.guarded),
            "without_asyncchatd": asdict(self.unguarded),
            "delivery": asdict(self.delivery),
            "pages_through_the_gateway": asdict(self.customers),
            "pages_straight_at_gms": asdict(self.others),
            "seconds": round(self.seconds, 1),
        }


def closing_table(result: DemoResult) -> Table:
    failure, with_, without = result.failure, result.guarded, result.unguarded
    restoration, plan, delivery = failure.restoration, result.plan, result.delivery
    acknowledged = with_.acknowledgement_seconds
    thrown_out = ", all thrown out" if without.lost_by_cause.get("wrong_key") == without.restored > 0 else ""
    table = Table(
        title=f"What the plants suffered: {failure.server} killed", title_justify="left", title_style="bold"
    )
    table.add_column("")
    table.add_column("with asyncchatd", justify="right")
    table.add_column("without", justify="right")
    rows: Sequence[tuple[str, str, str]] = (
        ("sessions lost", f"{with_.sessions_lost:,}", f"{without.sessions_lost:,}"),
        ("sessions restored", f"{with_.restored:,}", f"{without.restored:,}{thrown_out}"),
        (
            "longest time without a Chat Server",
            durations.measured(with_.without_server_seconds.max, "never"),
            f"for ever: lost after {plan.window:.0f} s",
        ),
        ("from the kill to its notice", durations.measured(failure.noticed_seconds, "never"), "-"),
        (
            "from its notice to the last chat restored",
            durations.measured(restoration.took_seconds if restoration else None, "never"),
            "-",
        ),
        ("answers of GMS nodes that hung up after the work", f"{with_.answers_lost:,}", "-"),
        ("of these, told a new key that nobody can know", f"{with_.forgiven_key_requests:,}", "-"),
        ("404s of a GMS node that was redeployed", f"{with_.requests_faulted:,}", "-"),
        ("wrong-key requests", f"{with_.wrong_key_requests:,}", f"{without.wrong_key_requests:,}"),
        ("requests that break another rule", f"{sum(rules(with_).values()):,}", "-"),
        (
            "refreshes of closed chats",
            f"{with_.refreshes_of_closed_chats:,}, at most {with_.refreshes_of_closed_chats_max} of one",
            "-",
        ),
        ("most requests in any second", str(most_requests(with_, plan.rate)), "-"),
        (
            "pushes acknowledged",
            f"{with_.acknowledged:,} of {with_.acknowledged + with_.pushes_unacknowledged:,}",
            "-",
        ),
        ("pushes that the redeployed node did not send", f"{with_.pushes_swallowed:,}", "-"),
        ("forms these pushes had", f"{result.push_forms} of {len(ALL_FORMS)}", "-"),
        (
            "their acknowledgement took (p50, p95, longest)",
            ", ".join(map(durations.measured, (acknowledged.p50, acknowledged.p95, acknowledged.max))),
            "-",
        ),
        (
            "agents' messages delivered to the chat app",
            f"{delivery.delivered:,} of {delivery.written:,}",
            "-",
        ),
        (
            "from an agent's hand to there (median, longest)",
            f"{durations.measured(delivery.p50)}, {durations.measured(delivery.longest)}",
            "-",
        ),
        ("events that came twice", f"{delivery.twice:,}", "-"),
    )
    for what, there, here in rows:
        table.add_row(what, there, here)
    table.add_section()
    for row in zip(_PAGES, _of_pages(result.customers), _of_pages(result.others), strict=True):
        table.add_row(*row)
    return table


_PAGES = (
    "customers' chats that lost their Chat Server",
    "pages of theirs that were thrown out",
    "polls of these pages",
    "Refreshes of these chats at GMS",
    "agents' messages on the pages",
    "customers' messages that reached the agent",
    "of all these, twice or out of order",
)


def _of_pages(account: Account) -> Sequence[str]:
    return (
        f"{account.moved:,} of {account.pages:,}",
        f"{account.thrown_out:,} of {account.pages:,}",
        f"{account.polls:,}",
        f"{account.refreshes:,}",
        f"{account.agents_seen:,} of {account.agents_said:,}",
        f"{account.customers_heard:,} of {account.customers_said:,}",
        f"{account.twice + account.disordered:,}",
    )


class Judged(Protocol):
    """What came of a story, with its promises."""

    @property
    def promises(self) -> Sequence[Promise]: ...

    @property
    def seconds(self) -> float: ...


def verdict(result: Judged, doubt: str | None = None) -> Text:
    """Whether all promises were kept, and which were not. `doubt`: why that may not be asyncchatd's fault."""
    broken = [promise for promise in result.promises if not promise.kept]
    if not broken:
        return Text(
            f"All {len(result.promises)} promises kept, in {result.seconds:.0f} s.", style="bold green"
        )
    verdict = Text("Broken promises:", style="bold red")
    for promise in broken:
        verdict.append(f"\n  {promise.text}: {promise.measured}")
    if doubt is not None:
        verdict.append(f"\n{doubt}", style="not bold default")
    return verdict
