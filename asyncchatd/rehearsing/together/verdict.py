"""The verdict of the demo of several nodes: what customers noticed, and which promises were kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.table import Table

from asyncchatd.model import durations
from asyncchatd.rehearsing.customers import Account
from asyncchatd.rehearsing.together.plan import NodesPlan
from asyncchatd.rehearsing.trial import most_requests, rules
from asyncchatd.rehearsing.verdict import Promise
from asyncchatd.standin import ALL_FORMS, Report


@dataclass(frozen=True, slots=True)
class Failures:
    """A Chat Server was killed, a node too, and another one stopped."""

    server: str
    """The Chat Server that was killed."""
    chats: int
    """Those it served."""
    restored_before: int
    """Of these, when a node was killed and another one stopped."""
    noticed_seconds: float | None
    """From the kill of the Chat Server to the first chat that the plant saw restored; `None` where none was."""
    restored_seconds: float | None
    """From there to the last one; `None` where some were not."""
    doubtful: int
    """Chats whose newest key nobody but the node that was killed may have been told."""
    gone_seconds: float | None
    """From the kill of the node to the moment at which the one that is left said so."""


@dataclass(frozen=True, slots=True)
class NodesResult:
    """What the plant suffered, and the verdict."""

    plan: NodesPlan
    failures: Failures
    plant: Report
    customers: Account
    refused_pushes: int
    """Pushes that the balancer got no answer for."""
    refused_pages: int
    """Requests of pages of which the same is true."""
    exit_statuses: Sequence[int | None]
    seconds: float

    @property
    def kept(self) -> bool:
        """Whether every promise was."""
        return all(promise.kept for promise in self.promises)

    @property
    def promises(self) -> list[Promise]:
        """Each judged by the plant's report and by what pages show."""
        suffered, customers = self.plant, self.customers
        load = most_requests(suffered, self.plan.rate)
        broken = {name.removesuffix("_requests"): count for name, count in rules(suffered).items() if count}
        return [
            Promise("no session is lost", suffered.sessions_lost == 0, f"{suffered.sessions_lost} lost"),
            Promise(
                "every session has a Chat Server again",
                suffered.sessions_without_server == 0 and suffered.restored >= self.failures.chats,
                f"{suffered.sessions_without_server} without, {suffered.restored} restored",
            ),
            Promise(
                "no request carries a wrong key, but for those that the killed node alone was told",
                suffered.wrong_key_requests == 0,
                f"{suffered.wrong_key_requests} of {suffered.requests}",
            ),
            Promise(
                "no other rule of the Chat API is broken: no two nodes ask for a session at once",
                not broken,
                ", ".join(f"{count} {name}" for name, count in broken.items()) or "0 requests",
            ),
            Promise("the rate is never passed, by all nodes together, in no second", load.kept, str(load)),
            Promise(
                "every push is acknowledged",
                suffered.pushes_unacknowledged == 0 and suffered.acknowledged > 0,
                f"{suffered.pushes_unacknowledged} unacknowledged",
            ),
            Promise(
                "no customer is thrown out",
                customers.rode_through,
                f"{customers.thrown_out} of {customers.pages}; {customers.moved} chats with another Chat Server",
            ),
            Promise(
                "every message of a page's chat comes to the other side, in order",
                not customers.lost and not customers.disordered and customers.agents_said > 0,
                f"{customers.lost} of {customers.agents_said + customers.customers_said} lost,"
                f" {customers.disordered} pages out of order",
            ),
            Promise(
                "all nodes stop cleanly",
                not any(self.exit_statuses),
                "exit statuses " + ", ".join(map(str, self.exit_statuses)),
            ),
        ]

    def shown(self) -> dict[str, object]:
        """For programs."""
        return {
            "kept": self.kept,
            "promises": [asdict(promise) for promise in self.promises],
            "plan": asdict(self.plan),
            "restoration_window_seconds": self.plan.window,
            "failures": asdict(self.failures),
            "plant": asdict(self.plant),
            "pages": asdict(self.customers),
            "pushes_without_an_answer": self.refused_pushes,
            "pages_without_an_answer": self.refused_pages,
            "exit_statuses": list(self.exit_statuses),
            "seconds": round(self.seconds, 1),
        }


def closing_table(result: NodesResult) -> Table:
    plant, customers, failures = result.plant, result.customers, result.failures
    acknowledged, without = plant.acknowledgement_seconds, plant.without_server_seconds
    table = Table(
        title=f"What customers noticed: {failures.server} and one of {result.plan.nodes} nodes killed, one stopped",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("")
    table.add_column("", justify="right")
    said = customers.agents_said + customers.customers_said
    there = customers.agents_seen + customers.customers_heard
    rows: Sequence[tuple[str, str]] = (
        ("customers thrown out", f"{customers.thrown_out:,} of {customers.pages:,}"),
        ("messages between customers and agents that came", f"{there:,} of {said:,}"),
        ("of these, twice", f"{customers.twice:,}"),
        ("requests of pages without an answer", f"{result.refused_pages:,} of {customers.polls + said:,}"),
        ("sessions lost", f"{plant.sessions_lost:,}"),
        (
            "time without a Chat Server (p50, p95, longest)",
            ", ".join(durations.measured(each, "never") for each in (without.p50, without.p95, without.max)),
        ),
    )
    for row in rows:
        table.add_row(*row)
    table.add_section()
    further: Sequence[tuple[str, str]] = (
        ("sessions restored", f"{plant.restored:,}"),
        ("from the kill to the first one", durations.measured(failures.noticed_seconds, "never")),
        ("from there to the last one", durations.measured(failures.restored_seconds, "never")),
        ("from a node's kill to its notice", durations.measured(failures.gone_seconds, "never")),
        ("chats whose newest key the killed node alone may know", f"{failures.doubtful:,}"),
        ("requests with a key that was replaced so", f"{plant.forgiven_key_requests:,}"),
        ("wrong-key requests", f"{plant.wrong_key_requests:,}"),
        ("requests that break another rule", f"{sum(rules(plant).values()):,}"),
        ("most requests in any second", str(most_requests(plant, result.plan.rate))),
        (
            "pushes acknowledged",
            f"{plant.acknowledged:,} of {plant.acknowledged + plant.pushes_unacknowledged:,}",
        ),
        (
            "pushes without an answer, which Chat Server repeated",
            f"{plant.pushes_failed:,} of {plant.pushes_sent:,}",
        ),
        ("forms these pushes had", f"{min(len(ALL_FORMS), plant.pushes_sent)} of {len(ALL_FORMS)}"),
        (
            "their acknowledgement took (p50, p95, longest)",
            ", ".join(map(durations.measured, (acknowledged.p50, acknowledged.p95, acknowledged.max))),
        ),
    )
    for row in further:
        table.add_row(*row)
    return table
