"""A page as a real browser shows it, and what is wrong with it: the checks that the browser tests make.

Every check gives a list of sentences, empty when all is well, so that it can be tried on pages made wrong on
purpose (test_browser_checks.py) as well as held against the site (test_in_a_browser.py).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WIDTHS = (1280, 390)  # a laptop's window and a telephone's, px
SCHEMES = ("light", "dark")
RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")
CONTRAST = "color-contrast"
COLOURS = ("link-in-text-block",)  # other rules that depend on the colour scheme
REST = """async () => {
  await Promise.all([window.MathJax?.startup?.promise, document.fonts.ready]);
  const rest = () => new Promise((done) => setTimeout(done, 300));
  for (let before = -1; before !== window.scrollY; await rest()) before = window.scrollY;
}"""
OTHER_SCHEMES = ("data:", "blob:", "about:")

AXE = """async ([options, within]) => (await axe.run(within ?? document, options)).violations"""


@dataclass
class Record:
    """What a page did while it was open.

    Attributes:
        errors: what it wrote to the console as an error, and exceptions nobody caught.
        asked: addresses it requested.
        weights: address → bytes of the body, as sent.
    """

    errors: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    weights: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """One page, open at one width, in one colour scheme, everything folded on it unfolded.

    Attributes:
        tab: Playwright's page.
        home: address of the site that it belongs to.
        record: what happened since it was opened.
    """

    tab: Any
    home: str
    record: Record

    def errors(self) -> list[str]:
        """Console errors and exceptions."""
        return list(self.record.errors)

    def strangers(self) -> list[str]:
        """Requests to any other host."""
        return [url for url in self.record.asked if not url.startswith((self.home, *OTHER_SCHEMES))]

    def formulas(self) -> list[str]:
        """Formulas that are not drawn, or not as meant."""
        return _ask(self.tab, "formulas")

    def overflow(self) -> list[str]:
        """Whatever makes the page scroll sideways, or is cut off at its right edge."""
        return _ask(self.tab, "overflow")

    def pictures(self) -> list[str]:
        """Pictures that say nothing to who cannot see them; a word or a file's name is nothing."""
        return _ask(self.tab, "pictures")

    def headings(self) -> list[str]:
        """A page without a main heading, or with two."""
        return _ask(self.tab, "headings")

    def stops(self) -> list[str]:
        """Stops of the Tab key that do not show that they have the focus."""
        return _ask(self.tab, "stops")

    def barriers(self, *, only_colours: bool = False) -> list[str]:
        """What axe-core finds by the rules of WCAG 2.2 A and AA, and by its own best practices.

        Args:
            only_colours: ask for what another colour scheme can change, and nothing else.
        """
        common = {"resultTypes": ["violations"], "preload": False}  # axe need not fetch style sheets again
        self.tab.evaluate(_axe())
        # Contrast takes axe six times as long as all else, nearly all of it on code, whose hundreds of words
        # come in a dozen colours: it is asked about one element of each kind.
        _ask(self.tab, "sampleColours")
        which = {"type": "rule", "values": COLOURS} if only_colours else {"type": "tag", "values": RULES}
        off = {} if only_colours else {"rules": {CONTRAST: {"enabled": False}}}
        violations = [
            *self.tab.evaluate(AXE, [{**common, **off, "runOnly": which}, None]),
            *self.tab.evaluate(
                AXE,
                [
                    {**common, "runOnly": {"type": "rule", "values": [CONTRAST]}},
                    {"include": [["[data-sample]"]]},
                ],
            ),
        ]
        return [
            ": ".join([violation["id"], str(node["target"]), " ".join(node["failureSummary"].split())])
            for violation in violations
            for node in violation["nodes"]
        ]

    def top_of(self, section: str) -> float:
        """Pixels from the window's top to the section, once the page rests."""
        self.tab.wait_for_load_state("networkidle")
        self.tab.evaluate(REST)
        return float(self.tab.evaluate(f"document.getElementById({section!r}).getBoundingClientRect().top"))

    def weight(self) -> int:
        """Bytes of everything the browser loaded for this page, as sent."""
        return sum(self.record.weights.values())


def _ask(tab: Any, question: str) -> list[str]:
    return tab.evaluate(f"{_questions()}.{question}()") or []


@functools.cache
def _questions() -> str:
    return (Path(__file__).parent / "checks.js").read_text(encoding="utf-8").rstrip()


@functools.cache
def _axe() -> str:
    import axe_playwright_python

    return (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


@contextmanager
def visit(
    browser: Any, home: str, path: str, *, width: int = 1280, scheme: str = "light", folded: bool = False
) -> Iterator[View]:
    """Open home + path with an empty cache, and wait until fonts are there, formulas drawn and folds open.

    Args:
        folded: leave it as it loads: no waiting, and folds as they are.
    """
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    try:
        tab = context.new_page()
        record = Record()
        tab.on("request", lambda request: record.asked.append(request.url))
        tab.on("requestfinished", lambda request: _weigh(record, request))
        tab.on("pageerror", lambda error: record.errors.append(f"exception: {error}"))
        tab.on("console", lambda message: _listen(record, message))
        tab.goto(home + path, wait_until="load")
        view = View(tab=tab, home=home, record=record)
        if not folded:
            settle(view)
        yield view
    finally:
        context.close()


def settle(view: View) -> None:
    """Wait until the page as it now is has come to rest."""
    _ask(view.tab, "settle")
    view.tab.wait_for_load_state("networkidle")


def set_scheme(view: View, scheme: str) -> str:
    """Change the reader's colour scheme; the theme that the page then shows."""
    view.tab.emulate_media(color_scheme=scheme)
    settle(view)
    return str(view.tab.evaluate("document.documentElement.dataset.theme"))


def _listen(record: Record, message: Any) -> None:
    if message.type == "error":
        where = message.location.get("url", "")
        record.errors.append(f"console: {message.text} ({where})")


def _weigh(record: Record, request: Any) -> None:
    response = request.response()
    if response is not None:
        record.weights[request.url] = max(0, request.sizes()["responseBodySize"])
