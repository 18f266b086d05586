"""A link to a section moves the page while it loads, unless its reader has begun to move.

That it ends at its section is tested for every page in test_in_a_browser.py.
"""

from __future__ import annotations

import pytest
from browser import Record, View

pytestmark = pytest.mark.browser


def test_a_reader_who_has_begun_to_move_is_left_alone(browser, home):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    tab.add_init_script("addEventListener('DOMContentLoaded', () => dispatchEvent(new Event('wheel')))")
    tab.add_init_script("addEventListener('load', () => scrollTo({top: 0, behavior: 'instant'}))")
    tab.goto(f"{home}index.html#the-map", wait_until="load")
    assert View(tab=tab, home=home, record=Record()).top_of("the-map") > 900
    context.close()
