"""Claims about every page as Chromium shows it: wide and narrow, light and dark, with everything unfolded.

A page is loaded once for each width; all claims are checked on it, and each test then reads what was found.
The checks themselves are tried on pages made wrong on purpose in test_browser_checks.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from browser import SCHEMES, WIDTHS, set_scheme, visit

SITE = Path(__file__).resolve().parents[2] / "_build" / "html"
PAGES = sorted(
    file.relative_to(SITE).as_posix() for file in SITE.rglob("*.html") if "_static" not in file.parts
)
HEAVIEST_BYTES = 3_000_000

pytestmark = pytest.mark.browser


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was wrong with one page at one width; `weight` in bytes."""

    errors: list[str]
    strangers: list[str]
    formulas: list[str]
    overflow: list[str]
    pictures: list[str]
    headings: list[str]
    stops: dict[str, list[str]]
    barriers: dict[str, list[str]]
    themes: list[str]
    weight: int


@pytest.fixture(scope="module", params=[(page, width) for page in PAGES for width in WIDTHS], ids=str)
def found(request: pytest.FixtureRequest, browser, home) -> Iterator[Findings]:
    path, width = request.param
    stops: dict[str, list[str]] = {}
    barriers: dict[str, list[str]] = {}
    themes = []
    with visit(browser, home, path, width=width) as view:
        first = {name: getattr(view, name)() for name in ("formulas", "overflow", "pictures", "headings")}
        weight = view.weight()
        for scheme in SCHEMES:
            themes.append(set_scheme(view, scheme))
            stops[scheme] = view.stops()
            barriers[scheme] = view.barriers()
        yield Findings(
            **first,
            errors=view.errors(),
            strangers=view.strangers(),
            stops=stops,
            barriers=barriers,
            themes=themes,
            weight=weight,
        )


def listed(faults: list[str]) -> str:
    return f"{len(faults)} found:\n" + "\n".join(faults[:20])


def test_the_page_logs_no_error(found):
    assert not found.errors, listed(found.errors)


def test_the_page_asks_no_other_host(found):
    assert not found.strangers, listed(found.strangers)


def test_every_formula_is_drawn(found):
    assert not found.formulas, listed(found.formulas)


def test_nothing_is_wider_than_the_window(found):
    assert not found.overflow, listed(found.overflow)


def test_every_picture_is_described(found):
    assert not found.pictures, listed(found.pictures)


def test_the_page_has_one_main_heading(found):
    assert not found.headings, listed(found.headings)


def test_the_theme_follows_the_reader_s_colour_scheme(found):
    assert found.themes == list(SCHEMES)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_whatever_has_the_focus_shows_it(found, scheme):
    assert not found.stops[scheme], listed(found.stops[scheme])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_bars_a_reader_with_a_disability(found, scheme):
    """No rule of WCAG 2.2 A and AA is broken, and none of axe-core's best practices."""
    assert not found.barriers[scheme], listed(found.barriers[scheme])


def test_the_page_loads_less_than_three_megabytes(found):
    assert 0 < found.weight < HEAVIEST_BYTES, f"{found.weight:,} bytes"


def test_the_pages_that_are_looked_at_are_all_there_are(pages):
    assert set(PAGES) == set(pages), "the site was built while tests were collected: run them again"
