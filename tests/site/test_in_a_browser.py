"""Claims about every page as Chromium shows it: wide and narrow, light and dark, with everything unfolded.

A page is loaded once for each width; all claims are checked on it, and each test then reads what was found.
The checks themselves are tried on pages made wrong on purpose in test_browser_checks.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from browser import SCHEMES, WIDTHS, set_scheme, settle, visit

SITE = Path(__file__).resolve().parents[2] / "_build" / "html"
PAGES = sorted(
    file.relative_to(SITE).as_posix() for file in SITE.rglob("*.html") if "_static" not in file.parts
)
HEAVIEST_BYTES = 3_000_000
SECTION = re.compile(r'<section\b[^>]* id="([^"]+)">\s*(?:<span\b[^>]*></span>\s*)*<h2')

pytestmark = pytest.mark.browser


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was wrong with one page at one width.

    Attributes:
        weight: bytes. top: pixels above the section that its address ended in; None for short pages.
    """

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
    top: float | None


def middle_section(page: Path) -> str | None:
    """The section that a link into the page shall end at; None where the page is too short to scroll far."""
    sections = SECTION.findall(page.read_text(encoding="utf-8"))
    return sections[len(sections) // 2] if len(sections) > 2 else None


@pytest.fixture(scope="module", params=[(page, width) for page in PAGES for width in WIDTHS], ids=str)
def found(request: pytest.FixtureRequest, browser, home) -> Iterator[Findings]:
    path, width = request.param
    stops: dict[str, list[str]] = {}
    barriers: dict[str, list[str]] = {}
    themes = []
    section = middle_section(SITE / path)
    with visit(browser, home, f"{path}#{section or ''}", width=width, folded=True) as view:
        top = view.top_of(section) if section else None
        view.tab.evaluate("scrollTo(0, 0)")
        settle(view)
        first = {name: getattr(view, name)() for name in ("formulas", "overflow", "pictures", "headings")}
        weight = view.weight()
        for scheme in SCHEMES:
            themes.append(set_scheme(view, scheme))
            stops[scheme] = view.stops()
            barriers[scheme] = view.barriers(only_colours=scheme != SCHEMES[0])
        yield Findings(
            **first,
            errors=view.errors(),
            strangers=view.strangers(),
            stops=stops,
            barriers=barriers,
            themes=themes,
            weight=weight,
            top=top,
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


def test_a_link_into_the_page_ends_at_its_section(found):
    """Although formulas and figures grow while it loads."""
    assert found.top is None or 40 <= found.top <= 200, f"it stands {found.top:.0f} px below the top"


def test_long_pages_have_sections_to_link_to(browser, home):
    path = next(page for page in PAGES if page.startswith("book/transformers/"))
    with visit(browser, home, path) as view:
        sections = view.tab.evaluate("[...document.querySelectorAll('main section[id] > h2')].length")
    assert len(SECTION.findall((SITE / path).read_text(encoding="utf-8"))) == sections > 2


def test_the_pages_that_are_looked_at_are_all_there_are(pages):
    assert set(PAGES) == set(pages), "the site was built while tests were collected: run them again"
