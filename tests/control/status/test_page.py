"""The status page: that it can be nothing but what is in the file, and what it is made of."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from conftest import FakeClock, PromptStore

from asyncchatd.control.described import openapi
from asyncchatd.control.status import page
from asyncchatd.model.data import Reason, ServerState
from control.test_api import serving

pytestmark = pytest.mark.usefixtures("events")


class Elements(HTMLParser):
    """Every element with its attributes, and the text of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.feed(page.HTML)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and (name := self.elements[-1][0]) in ("script", "style"):
            self.text[name] = self.text.get(name, "") + data


PARSED = Elements()
SCRIPT = PARSED.text["script"].rpartition("stay();")[0]


async def test_it_is_served_with_headers_that_let_nothing_else_in(
    store: PromptStore, clock: FakeClock
) -> None:
    async with serving(store, clock) as api:
        response = await api.raw("GET", "/")
        assert (response.status, response.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert await response.text() == page.HTML
    policy = dict(
        rule.partition(" ")[::2] for rule in response.headers["Content-Security-Policy"].split("; ")
    )
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in response.headers["Content-Security-Policy"]
    for name, value in {
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
        "Cross-Origin-Resource-Policy": "same-origin",
    }.items():
        assert response.headers[name] == value


@pytest.mark.parametrize("element", ["script", "style"])
def test_the_hash_is_that_of_the_only_one_in_the_file(element: str) -> None:
    assert [name for name, _ in PARSED.elements].count(element) == 1
    [content] = re.findall(rf"<{element}>(.*)</{element}>", page.HTML, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    assert f"{element}-src 'sha256-{digest}'" in page.HEADERS["Content-Security-Policy"]


def test_nothing_in_it_needs_what_the_policy_forbids() -> None:
    for name, attributes in PARSED.elements:
        assert name not in ("iframe", "object", "embed", "form", "base", "img")
        assert not [each for each in attributes if each == "style" or each.startswith("on")], name
        for link in (attributes.get("src"), attributes.get("href")):
            assert link is None or not re.match(r"[a-z]+:|/", link) or link.startswith("data:image/svg+xml,")
    assert "//" not in re.sub(r'//[^\n"]*$|"http://www.w3.org/2000/svg"', "", SCRIPT, flags=re.MULTILINE)
    assert not re.search(r"@import|url\(", PARSED.text["style"])


def test_names_are_only_ever_set_as_text() -> None:
    for dangerous in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "Function(",
        "DOMParser",
        "srcdoc",
        "createContextualFragment",
    ):
        assert dangerous not in SCRIPT


def test_every_element_the_script_looks_for_is_there() -> None:
    there = {attributes["id"] for _, attributes in PARSED.elements if "id" in attributes}
    wanted = set(re.findall(r'(?:byId|fill)\("([\w-]+)"', SCRIPT))
    assert len(wanted) > 20
    assert wanted <= there


def test_it_knows_every_reason_and_state() -> None:
    assert f"REASONS = {[reason.word for reason in Reason]}".replace("'", '"') in SCRIPT
    table = re.search(r"const STATE = \{(.*?)\n\};", SCRIPT, re.DOTALL)
    assert table is not None
    assert set(re.findall(r"(\w+): \[", table[1])) == {state.value for state in ServerState}


def test_a_store_that_cannot_be_written_is_not_told_as_a_start_or_stop() -> None:
    trouble, starting = SCRIPT.index("if (picture.store_trouble)"), SCRIPT.index("else if (!picture.ready)")
    assert trouble < SCRIPT.index("The store cannot be written") < starting


def test_it_shows_nothing_that_a_picture_has_not() -> None:
    components = openapi.document()["components"]
    assert isinstance(components, dict)
    picture = components["schemas"]["Picture"]["properties"]
    assert set(re.findall(r"\bpicture\.(\w+)", SCRIPT)) <= set(picture)


def test_it_listens_where_the_api_tells() -> None:
    assert (
        re.findall(r'fetch\(HERE \+ "([^"]*)"', SCRIPT)
        == re.findall(r'fetch\(.*"(v1/live)"', SCRIPT)
        == ["v1/live"]
    )
    paths = openapi.document()["paths"]
    assert isinstance(paths, dict)
    assert "/v1/live" in paths
    for name in ("history", "moments", "picture", "trouble", "stopping"):
        assert re.search(rf"^  {name}\(", SCRIPT, re.MULTILINE)


def test_what_changes_is_said_to_those_who_cannot_see_it() -> None:
    spoken = [attributes for _, attributes in PARSED.elements if attributes.get("role") == "status"]
    assert [each.get("id") for each in spoken] == ["connection", "spoken"]
    assert {each.get("aria-live") for each in spoken} == {"polite"}
    for name, attributes in PARSED.elements:
        if name in ("table", "section"):
            assert attributes.get("aria-labelledby") or attributes.get("aria-label")


COLOURS = re.findall(r"--([\w-]+): (#[0-9a-f]{6});", PARSED.text["style"])


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(
    ("text", "ground", "least"),
    [
        ("text", "ground", 4.5),
        ("text", "sheet", 4.5),
        ("quiet", "sheet", 4.5),
        ("quiet", "ground", 4.5),
        ("link", "ground", 4.5),
        ("good", "sheet", 4.5),
        ("doubt", "sheet", 4.5),
        ("doubt", "doubt-ground", 4.5),
        ("doubt", "bad-ground", 4.5),
        ("bad", "sheet", 4.5),
        ("bad", "ground", 4.5),
        ("bad", "bad-ground", 4.5),
        ("acknowledge", "sheet", 3),
        ("restore", "sheet", 3),
        ("request", "sheet", 3),
        ("keepalive", "sheet", 3),
        ("call", "sheet", 3),
    ],
)
def test_contrasts_are_those_of_wcag_aa(theme: str, text: str, ground: str, least: float) -> None:
    half = len(COLOURS) // 2
    colours = dict(COLOURS[:half] if theme == "light" else COLOURS[half:])
    assert contrast(colours[text], colours[ground]) >= least


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    def linear(channel: int) -> float:
        share = channel / 255
        return share / 12.92 if share <= 0.04045 else float(((share + 0.055) / 1.055) ** 2.4)

    red, green, blue = (linear(int(colour[start : start + 2], 16)) for start in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
