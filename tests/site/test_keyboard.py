"""The site without a mouse: the first stop of the Tab key leads past the navigation.

That each stop shows when it has the focus is held on every page in test_in_a_browser.py.
"""

from __future__ import annotations

import pytest
from browser import View, visit

pytestmark = pytest.mark.browser

FOCUSED = """() => {
  document.getAnimations().forEach((motion) => { try { motion.finish(); } catch { motion.cancel(); } });
  const node = document.activeElement;
  const box = node.getBoundingClientRect();
  return {
    name: node.textContent.trim(),
    inMain: Boolean(node.closest("main")),
    shown: box.width > 0 && box.height > 0 && box.bottom > 0 && box.top < window.innerHeight,
  };
}"""


def next_stop(view: View) -> dict[str, object]:
    view.tab.keyboard.press("Tab")
    return view.tab.evaluate(FOCUSED)


@pytest.mark.parametrize("width", [390, 1280])
def test_the_first_stop_skips_the_navigation(browser, home, width):
    with visit(browser, home, "index.html", width=width) as view:
        first = next_stop(view)
        assert first["name"] == "Skip to main content"
        assert first["shown"], "the skip link stays out of sight"
        view.tab.keyboard.press("Enter")
        second = next_stop(view)
        assert second["inMain"], f"after the skip link comes {second['name']!r}"


def test_without_the_skip_link_the_navigation_comes_first(browser, home):
    """So the test above is about the link, and not about the order of the page."""
    with visit(browser, home, "index.html") as view:
        view.tab.evaluate("document.getElementById('pst-skip-link').remove()")
        stops = [next_stop(view) for _ in range(3)]
        assert not any(stop["inMain"] for stop in stops)


def test_every_page_begins_with_the_skip_link(pages):
    for page in pages.values():
        assert next(link for link in page.links) == "#main-content", page.path
        assert "main-content" in page.ids, page.path
