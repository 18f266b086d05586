"""The site's own search, used as a reader does: it finds every chapter and lab, and asks no other host."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import visit

SITE = Path(__file__).resolve().parents[2] / "_build" / "html"
WORD = re.compile(r"[a-z]{6,14}")

pytestmark = pytest.mark.browser


class _Prose(HTMLParser):
    """The words of a page's paragraphs."""

    def __init__(self) -> None:
        super().__init__()
        self.words: Counter[str] = Counter()
        self._inside = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._inside = tag == "p" or (self._inside and tag not in {"div", "pre", "span"})

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "p"

    def handle_data(self, data: str) -> None:
        if self._inside:
            # Of hyphenated words the index holds the parts, and of names with dots who knows.
            self.words.update(word for word in data.lower().split() if WORD.fullmatch(word))


def stem(word: str) -> str:
    """Short enough to be the same for all forms of a word: the index makes one entry of them."""
    return word[:5]


def words_of_their_own(files: Mapping[str, Path]) -> dict[str, str]:
    """Page → a word that stands in its prose, and on no other page in any form; the one it uses most."""
    prose, anywhere = {}, {}
    for path, file in files.items():
        text = file.read_text(encoding="utf-8")
        reader = _Prose()
        reader.feed(text.partition("<article")[2].partition("</article>")[0])
        prose[path] = reader.words
        anywhere[path] = {stem(word) for word in re.findall(r"[a-z]+", text.lower())}
    found = {}
    for path, words in prose.items():
        others = set().union(*(stems for other, stems in anywhere.items() if other != path))
        found[path] = next((word for word, _ in words.most_common() if stem(word) not in others), "")
    return found


def queries_of_their_own(files: dict[str, Path]) -> dict[str, str]:
    """What to search for, for each page: its own word, or else two words that no other page has both of."""
    found = words_of_their_own(files)
    stems = {
        path: {stem(word) for word in re.findall(r"[a-z]+", file.read_text(encoding="utf-8").lower())}
        for path, file in files.items()
    }
    for path in (path for path, word in found.items() if not word):
        reader = _Prose()
        reader.feed(
            files[path].read_text(encoding="utf-8").partition("<article")[2].partition("</article>")[0]
        )
        others = [there for other, there in stems.items() if other != path]
        words = sorted(reader.words, key=lambda word: sum(stem(word) in there for there in others))[:60]
        pairs = itertools.combinations(words, 2)
        found[path] = next(
            (f"{a}+{b}" for a, b in pairs if not any({stem(a), stem(b)} <= there for there in others)), ""
        )
    return found


def test_a_word_of_its_own_is_on_one_page_only(tmp_path):
    pages = {
        "one.html": "training sharding sharding",
        "two.html": "training pruned",
        "three.html": "prune it",
    }
    for name, text in pages.items():
        (tmp_path / name).write_text(f"<article><p>{text}</p></article>", encoding="utf-8")
    own = words_of_their_own({name: tmp_path / name for name in pages})
    assert own == {"one.html": "sharding", "two.html": "", "three.html": ""}


def test_search_finds_every_chapter_and_lab_by_a_word_of_its_own(browser, home, pages):
    files = {path: SITE / path for path in pages if path.startswith(("book/", "labs/"))}
    assert files
    missed = []
    with visit(browser, home, "search.html") as view:
        for path, word in queries_of_their_own(files).items():
            assert word, f"{path} has no two words that no other page has"
            view.tab.goto(f"{home}search.html?q={word}", wait_until="load")
            results = view.tab.locator("#search-results ul.search li > a")
            view.tab.locator("#search-results .search-summary", has_text="finished").wait_for(timeout=10_000)
            found = [
                href.split("?")[0].split("#")[0] for href in results.evaluate_all("a => a.map(x => x.href)")
            ]
            if home + path not in found:
                missed.append(f"{path} by {word!r}: found {found}")
        missed += view.errors() + view.strangers()
    assert not missed, "\n".join(missed)


def test_search_says_when_it_finds_nothing(browser, home):
    with visit(browser, home, "search.html?q=xyzzyplugh") as view:
        status = view.tab.locator("#search-results .search-summary")
        status.filter(has_text="did not match any documents").wait_for(timeout=10_000)


@pytest.mark.parametrize("way", ["Control+k", "button"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_search_box_opens_by_key_and_by_button_and_leads_to_results(browser, home, way, width):
    with visit(browser, home, "index.html", width=width) as view:
        tab = view.tab
        field = tab.locator("#pst-search-dialog input[name=q]")
        assert not field.is_visible()
        if way == "button":
            tab.locator("button.search-button__button:visible").first.click()
        else:
            tab.keyboard.press(way)
        field.wait_for(state="visible", timeout=5_000)
        assert field.evaluate("field => field === document.activeElement")
        tab.keyboard.type("training")
        tab.keyboard.press("Enter")
        tab.wait_for_url("**/search.html?q=training**")
        tab.locator("#search-results ul.search li > a").first.wait_for(timeout=10_000)
        assert not view.errors()
