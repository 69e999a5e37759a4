"""The rehearsal: a small one to its end, its verdict as a table, its settings, its pictures."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from conftest import ran

from asyncchatd.cli.commands import main
from asyncchatd.config.loading import load
from asyncchatd.config.sources.problems import ConfigError
from asyncchatd.rehearsing.bottleneck import (
    Bottleneck,
    Bounds,
    Measured,
    Sample,
    Second,
    Verdict,
    judge,
    measure,
)
from asyncchatd.rehearsing.plot import Line, Mark, Picture, svg, terminal
from asyncchatd.rehearsing.tuning import Tuned, tuned

SVG = "{http://www.w3.org/2000/svg}"


# End to end.


@pytest.mark.slow
def test_a_small_rehearsal_with_an_operators_settings(tmp_path: Path) -> None:
    """300 sessions of a server at 60 requests/s: five seconds, for which the loss is noticed at once."""
    config = tmp_path / "asyncchatd.toml"
    config.write_text(
        '[receiver]\nsecrets_file = "credential:only-the-daemon-has-it"\n[gms]\nnodes = ["http://gms:8080"]\n'
        '[watcher]\ninterval = "400ms"\ntimeout = "1s"\n[restoration]\nmax_rate = 60\n'
    )
    picture = tmp_path / "load.svg"
    command = [sys.executable, "-m", "asyncchatd", "rehearse", "--sessions", "600", "--servers", "2"]
    command += ["--lost-answers", "0.02", "--redeploy", "2"]
    command += ["--config", str(config), "--messages-per-second", "2", "--svg", str(picture), "--json"]
    done = ran(*command)
    assert done.returncode == 0, done.stderr + done.stdout
    outcome = json.loads(done.stdout)
    assert outcome["well"] is True
    assert outcome["settings"]["restoration"]["max_rate"] == 60
    assert outcome["measured"]["concerned"] == outcome["report"]["restored"] == 300
    assert outcome["report"]["wrong_key_requests"] == 0
    assert outcome["report"]["answers_lost"] > 0
    assert outcome["report"]["requests_faulted"] > 0, "a node was redeployed"
    assert outcome["report"]["acknowledged"] > 0
    assert 0 < outcome["measured"]["noticed"] < outcome["measured"]["last"]
    assert outcome["verdict"]["bottleneck"] == "rate"
    assert outcome["verdict"]["setting"] == "restoration.max_rate"
    assert outcome["verdict"]["value"] == "120"
    restored = sum(each["restored"] for each in outcome["seconds"])
    assert restored == 300
    assert all(each["restored"] == 0 for each in outcome["seconds"] if each["at"] < -1)
    assert sum(each["answers"] for each in outcome["samples"]) >= 300
    assert outcome["directory"] is None
    assert "max_rate 60" in "".join(ElementTree.parse(picture).getroot().itertext())


# The verdict.

BOUNDS = Bounds(
    max_rate=200, max_in_flight=100, slow=1.0, interval=5, fast_interval=1.25, fall=3, window=300,
    capacity=1000, restore_cost=1,
)  # fmt: skip
RATE_BOUND = Measured(
    BOUNDS, concerned=5000, lost=0, noticed=7, last=32, rate=196, at_max_rate=0.96, gms_busy=0.2,
    at_max_in_flight=0, answer_seconds=0.02,
)  # fmt: skip
GMS_BOUND = replace(
    RATE_BOUND, last=60, rate=90, at_max_rate=0.0, gms_busy=0.98, limit_cut_to=60, answer_seconds=0.9
)


@pytest.mark.parametrize(
    ("measured", "bottleneck", "setting", "value"),
    [
        (RATE_BOUND, Bottleneck.RATE, "restoration.max_rate", "400"),
        # No more than GMS bears, even where more would be faster.
        (replace(RATE_BOUND, gms_busy=0.75), Bottleneck.RATE, "restoration.max_rate", "346"),
        (replace(RATE_BOUND, gms_busy=0.89), Bottleneck.BALANCED, None, None),
        # As much as it takes for everybody.
        (
            replace(RATE_BOUND, lost=4000, bounds=replace(BOUNDS, capacity=None)),
            Bottleneck.RATE, "restoration.max_rate", "1100",
        ),
        (replace(RATE_BOUND, lost=4000, gms_busy=0.95), Bottleneck.WINDOW, None, None),
        (GMS_BOUND, Bottleneck.GMS, None, None),
        (replace(GMS_BOUND, gms_busy=0.6), Bottleneck.GMS, None, None),
        # With little to do, or without limit: its answers take long by themselves.
        (replace(GMS_BOUND, gms_busy=0.3, answer_seconds=1.2), Bottleneck.LATENCY, "gms.timeout", "18s"),
        (
            replace(GMS_BOUND, gms_busy=0.0, lost=700, bounds=replace(BOUNDS, capacity=None)),
            Bottleneck.LATENCY, "gms.timeout", "15s",
        ),
        (
            replace(GMS_BOUND, gms_busy=0.0, at_max_in_flight=0.9, bounds=replace(BOUNDS, capacity=None)),
            Bottleneck.IN_FLIGHT, "restoration.max_in_flight", "200",
        ),
        (replace(GMS_BOUND, gms_busy=0.3, answer_seconds=0.1, shed=12), Bottleneck.GMS, None, None),
        (replace(GMS_BOUND, lost=700), Bottleneck.WINDOW, None, None),
        (replace(RATE_BOUND, noticed=20), Bottleneck.DETECTION, "watcher.interval", "2.5s"),
        (replace(RATE_BOUND, noticed=None, last=None), Bottleneck.DETECTION, "watcher.interval", "2.5s"),
        (
            replace(RATE_BOUND, noticed=50, last=60, bounds=replace(BOUNDS, fall=20, fast_interval=3)),
            Bottleneck.DETECTION, "watcher.fall", "19",
        ),
        (
            replace(
                RATE_BOUND, at_max_rate=0.0, rate=100, at_max_in_flight=0.9, answer_seconds=0.5, gms_busy=0.1
            ),
            Bottleneck.IN_FLIGHT, "restoration.max_in_flight", "200",
        ),
        (replace(RATE_BOUND, at_max_rate=0.1, rate=120), Bottleneck.MACHINE, None, None),
        (
            replace(RATE_BOUND, at_max_rate=0.1, rate=120, at_limit=0.9, limit_cut_to=12),
            Bottleneck.FAILURES, None, None,
        ),
        (replace(RATE_BOUND, concerned=0), Bottleneck.NOTHING, None, None),
    ],
)  # fmt: skip
def test_the_bottleneck_and_the_one_setting_to_change(
    measured: Measured, bottleneck: Bottleneck, setting: str | None, value: str | None
) -> None:
    verdict = judge(measured)
    assert (verdict.bottleneck, verdict.setting, verdict.value) == (bottleneck, setting, value)
    assert verdict.why.endswith(".")
    assert verdict.advice.endswith(".")


def test_a_rate_bound_restoration_is_told_what_another_rate_would_bring() -> None:
    verdict = judge(RATE_BOUND)
    assert "for 96 % of the restoration" in verdict.why
    assert "about 12 s instead of 25 s" in verdict.advice


def test_an_advice_says_whether_it_saves_those_that_were_lost() -> None:
    unlimited = replace(BOUNDS, capacity=None)
    some = replace(RATE_BOUND, lost=4000, last=300, bounds=unlimited)
    assert "within the window of 300 s" in judge(some).advice
    assert "--gms-capacity" in judge(some).advice
    hopeless = replace(GMS_BOUND, lost=4000, last=300)
    assert "about 1472 s" in judge(hopeless).advice


def test_what_gms_bears_at_best_is_told() -> None:
    assert "5,000 restorations take 5 s at best" in judge(GMS_BOUND).advice


def seconds(*pairs: tuple[int, int], begin: float = -2.0) -> list[Second]:
    return [Second(begin + n, requests, restored) for n, (requests, restored) in enumerate(pairs)]


def measured(load: Sequence[Second], samples: Sequence[Sample] = (), **changed: float) -> Measured:
    known = {"noticed": 2.0, "last": 6.0, **changed}
    bounds = Bounds(
        max_rate=100, max_in_flight=10, slow=1, interval=1, fast_interval=0.25, fall=3, window=60,
        capacity=200, restore_cost=2,
    )  # fmt: skip
    return measure(
        bounds,
        concerned=380,
        lost=0,
        noticed=known["noticed"],
        last=known["last"],
        seconds=load,
        samples=samples,
    )


def test_only_the_time_in_which_sessions_were_restored_is_measured() -> None:
    quiet, full = (10, 0), (98, 95)
    found = measured(seconds(quiet, quiet, quiet, quiet, full, full, full, (60, 50), (98, 0)))
    assert found.rate == pytest.approx((3 * 98 + 60) / 4)
    assert found.at_max_rate == 0.75
    assert found.gms_busy == pytest.approx((3 * (98 + 95) + 60 + 50) / 800)
    assert found.restoring == 4


def test_a_restoration_of_less_than_a_second_is_measured_by_the_busiest_it_touched() -> None:
    found = measured(seconds((10, 0), (10, 0), (90, 80), (10, 0), begin=0.0), noticed=2.2, last=2.9)
    assert found.rate == 90


def test_samples_tell_of_the_requests_in_flight() -> None:
    samples = [
        Sample(1.0, 1, 10, 5, 9.0),  # before the notice
        Sample(3.0, 10, 10, 90, 0.1),
        Sample(4.0, 9, 10, 10, 0.2),
        Sample(5.0, 4, 8, 0, None),
        Sample(6.5, 0, 8, 100, 0.1),  # tells of the last second
        Sample(9.0, 0, 3, 100, 5.0),  # after the end
    ]
    found = measured(seconds(*[(50, 40)] * 10), samples)
    assert found.at_max_in_flight == pytest.approx(2 / 3)
    assert found.at_limit == pytest.approx(2 / 3)
    assert found.limit_cut_to == 8
    assert found.answer_seconds == pytest.approx((90 * 0.1 + 10 * 0.2 + 100 * 0.1) / 200)


def test_an_in_flight_limit_that_grows_from_its_beginning_is_not_cut() -> None:
    samples = [Sample(3.0, 8, 8, 90, 0.1), Sample(4.0, 9, 9, 10, 0.1), Sample(5.0, 9, 10, 10, 0.1)]
    assert measured(seconds(*[(50, 40)] * 10), samples).limit_cut_to is None


def test_without_a_single_second_nothing_is_measured_and_the_verdict_is_given_all_the_same() -> None:
    found = measured([], noticed=2.0, last=2.0)
    assert (found.rate, found.at_max_rate, found.gms_busy) == (0, 0, 0)
    assert isinstance(judge(found), Verdict)


# The settings to be tried.


def test_options_take_the_place_of_what_the_configuration_says(tmp_path: Path) -> None:
    config = tmp_path / "asyncchatd.toml"
    config.write_text(
        '[gms]\nnodes = []\ntimeout = "4s"\n[watcher]\nfall = 5\n[restoration]\nmax_rate = 50\nmax_in_flight = 7\n'
    )
    found = tuned(config, {"restoration": {"max_rate": 80.0}, "ping": {"interval": "90s"}})
    assert (found.restoration.max_rate, found.restoration.max_in_flight) == (80.0, 7)
    assert found.watcher.fall == 5
    assert found.ping.interval == timedelta(seconds=90)
    assert found.gms.timeout == timedelta(seconds=4)


def test_without_a_configuration_the_daemons_defaults_are_tried() -> None:
    assert tuned(None, {}) == Tuned()


def test_what_is_tried_is_what_the_daemon_reads(tmp_path: Path) -> None:
    config = tmp_path / "asyncchatd.toml"
    tried = tuned(
        None, {"restoration": {"max_rate": 0.5, "backoff": "1500ms"}, "watcher": {"interval": "1s"}}
    )
    lines = ['[receiver]\nsecrets = ["s"]']
    for name, keys in tried.sections().items():
        lines.append(f"[{name}]")
        if name == "gms":
            lines.append('nodes = ["http://127.0.0.1:8080"]')
        lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    config.write_text("\n".join(lines))
    read = load(config)
    assert (read.ping, read.restoration, read.watcher, read.gms.timeout) == (
        tried.ping, tried.restoration, tried.watcher, tried.gms.timeout,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[restoration]\nmax_rate = 0", "restoration.max_rate"),
        ('[watcher]\ninterval = "5"', "watcher.interval: expected a duration"),
        ("[ping]\nintervall = 3", "ping.intervall"),
        ("[ping", "not valid TOML"),
        (None, "cannot be read"),
    ],
)
def test_settings_that_cannot_be_tried_are_told(tmp_path: Path, text: str | None, expected: str) -> None:
    config = tmp_path / "asyncchatd.toml"
    if text is not None:
        config.write_text(text)
    with pytest.raises(ConfigError) as error:
        tuned(config, {})
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("options", "status", "expected"),
    [
        (["--servers", "3", "--kill", "3"], 2, "fewer than --servers"),
        (["--ping-interval", "soon"], 1, "ping.interval: expected a duration"),
        (["--config", "/nowhere.toml"], 1, "/nowhere.toml: cannot be read"),
    ],
)
def test_a_wrong_option_is_one_line(options: list[str], status: int, expected: str) -> None:
    done = CliRunner().invoke(main, ["rehearse", *options])
    assert done.exit_code == status
    assert expected in done.output


# The pictures.

PICTURE = Picture(
    "Requests per second: <a & b>",
    seconds((10, 0), (12, 0), (11, 0), (100, 80), (100, 90), (50, 20), (10, 0)),
    [Line(100, "max_rate 100"), Line(90, "GMS capacity 90"), Line(5000, "far above")],
    [Mark(0, "kill"), Mark(1.2, "noticed"), Mark(3.5, "last restored")],
)


def test_the_svg_is_well_formed_and_shows_bounds_and_marks() -> None:
    root = ElementTree.fromstring(svg(PICTURE))
    assert root.tag == f"{SVG}svg"
    assert root.findtext(f"{SVG}title") == PICTURE.title
    words = [text.text for text in root.iter(f"{SVG}text")]
    for name in ("max_rate 100", "GMS capacity 90", "kill", "noticed", "last restored"):
        assert name in words
    assert any("far above is above the picture" in (word or "") for word in words)
    assert "prefers-color-scheme: dark" in (root.findtext(f"{SVG}style") or "")


def test_texts_and_lines_of_the_svg_stay_on_the_paper_and_apart() -> None:
    root = ElementTree.fromstring(svg(PICTURE))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for text in root.iter(f"{SVG}text"):
        assert 0 <= float(text.attrib["x"]) <= width
        assert 0 <= float(text.attrib["y"]) <= height
    names = sorted(
        float(text.attrib["y"]) for text in root.iter(f"{SVG}text") if text.get("class") == "bound-name"
    )
    assert all(lower - upper >= 16 for upper, lower in itertools.pairwise(names))


def test_the_terminal_shows_bars_bounds_and_marks() -> None:
    lines = terminal(PICTURE, width=70, height=10).plain.split("\n")
    bars = [line for line in lines if "█" in line]
    assert len(bars) == 8  # a row is 12 requests/s here, and 4 more make an eighth or three
    assert "▃" in lines[lines.index(bars[0]) - 1]
    assert any("max_rate 100" in line for line in lines)
    assert any("GMS capacity 90" in line for line in lines)
    kill = next(line for line in lines if "▲ kill" in line)
    assert kill.index("▲") == 10 + 2 * 10
    assert any(line.endswith("last restored ▲") and len(line) <= 80 for line in lines)
    assert lines[-1].strip() == "far above is above the picture"


def test_bounds_that_share_a_row_are_both_named() -> None:
    close = replace(PICTURE, lines=[Line(100, "max_rate 100"), Line(101, "GMS capacity 101")])
    assert "max_rate 100, GMS capacity 101" in terminal(close).plain


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1, 7, 70, 71, 139, 140, 1000])
def test_any_length_of_time_fits_and_nothing_of_it_is_left_out(count: int) -> None:
    load = seconds(*[(0, 0)] * (count - 1), *[(80, 40)] * min(1, count))
    picture = Picture("load", load)
    lines = terminal(picture, width=70, height=8).plain.split("\n")
    assert max(map(len, lines)) <= 10 + 70 + 1
    assert any(set(line) & set("▁▂▃▄▅▆▇█") for line in lines) == (count > 0)
    ElementTree.fromstring(svg(picture))
