"""A link to a section ends at that section, although formulas and figures grow while the page loads."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.browser

SECTIONS = (
    "[...document.querySelectorAll('main section[id] > h2')].map((heading) => heading.parentElement.id)"
)
REST = """async () => {
  await Promise.all([window.MathJax?.startup?.promise, document.fonts.ready]);
  const rest = () => new Promise((done) => setTimeout(done, 300));
  for (let before = -1; before !== window.scrollY; await rest()) before = window.scrollY;
}"""


def where(tab, section: str) -> float:
    """Pixels from the window's top to the section, once the page rests."""
    tab.wait_for_load_state("networkidle")
    tab.evaluate(REST)
    return tab.evaluate(f"document.getElementById({section!r}).getBoundingClientRect().top")


@pytest.mark.parametrize("width", [390, 1280])
def test_a_link_into_a_page_ends_at_its_section(browser, home, pages, width):
    context = browser.new_context(viewport={"width": width, "height": 900})
    tab = context.new_page()
    for path in pages:
        tab.goto(home + path, wait_until="load")
        sections = tab.evaluate(SECTIONS)
        if len(sections) < 3:
            continue  # short pages do not scroll far enough for it to matter
        section = sections[len(sections) // 2]
        tab.goto("about:blank")
        tab.goto(f"{home}{path}#{section}", wait_until="load")
        top = where(tab, section)
        assert 40 <= top <= 200, f"{path}#{section} stands {top:.0f} px below the top, {width} px wide"
    context.close()


def test_a_reader_who_has_begun_to_move_is_left_alone(browser, home):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    tab.add_init_script("addEventListener('DOMContentLoaded', () => dispatchEvent(new Event('wheel')))")
    tab.add_init_script("addEventListener('load', () => scrollTo({top: 0, behavior: 'instant'}))")
    tab.goto(f"{home}index.html#the-map", wait_until="load")
    assert where(tab, "the-map") > 900
    context.close()
