"""What is around every page: its name and description, the way on and back, the link to report a problem."""

from __future__ import annotations

import posixpath
import re
import tomllib
from collections.abc import Iterator, Mapping
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

import scalelab

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"
LONGEST_ADDRESS = 2000  # longer ones are refused by some servers and browsers


def reading_order() -> list[str]:
    """The pages of _toc.yml from first to last."""

    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, Mapping):
            yield from (f"{node[key]}.html" for key in ("root", "file") if key in node)
            node = list(node.values())
        if isinstance(node, list):
            for child in node:
                yield from walk(child)

    return list(walk(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))))


class _Head(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.language = ""
        self.title = ""
        self.meta: dict[str, str] = {}
        self.rel: dict[str, str] = {}
        self.steps: dict[str, str] = {}
        self.reports: list[str] = []
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        classes = values.get("class", "").split()
        if tag == "html":
            self.language = values.get("lang", "")
        elif tag == "meta":
            self.meta[values.get("name") or values.get("property", "")] = values.get("content", "")
        elif tag == "link":
            self.rel[values.get("rel", "")] = values.get("href", "")
        elif tag == "a" and "report-a-problem" in classes:
            self.reports.append(values.get("href", ""))
        elif tag == "a" and (step := {"left-prev", "right-next"} & set(classes)):
            self.steps[step.pop()] = values.get("href", "")
        # A drawing inside the page has a title of its own.
        self._in_title = tag == "title" and not self.title

    def handle_endtag(self, tag: str) -> None:
        self._in_title = False

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data


@pytest.fixture(scope="module")
def heads(pages) -> dict[str, _Head]:
    found = {}
    for path in pages:
        found[path] = _Head()
        found[path].feed((SITE / path).read_text(encoding="utf-8"))
    return found


def step(heads: Mapping[str, _Head], path: str, name: str) -> str | None:
    """Where a page's button leads; None where it has none."""
    href = heads[path].steps.get(name)
    return None if href is None else posixpath.normpath(posixpath.join(posixpath.dirname(path), href))


def followed(heads: Mapping[str, _Head], start: str, name: str) -> list[str]:
    way = [start]
    while (following := step(heads, way[-1], name)) is not None:
        assert following not in way, f"{way[-1]} leads back to {following}"
        way.append(following)
    return way


def test_following_next_reads_the_book_in_the_order_of_the_table_of_contents(heads):
    assert followed(heads, "index.html", "right-next") == reading_order()


def test_following_previous_reads_it_backwards(heads):
    order = reading_order()
    assert followed(heads, order[-1], "left-prev") == order[::-1]


def test_every_page_has_a_title_of_its_own_that_names_the_book(heads):
    titles = [head.title for head in heads.values()]
    assert len(set(titles)) == len(titles), sorted(titles)
    assert all("How language models scale" in title for title in titles)


def test_every_page_of_the_book_has_a_description_of_its_own(heads):
    descriptions = {path: heads[path].meta.get("description", "") for path in reading_order()}
    assert all(40 <= len(text) <= 165 for text in descriptions.values()), descriptions
    assert len(set(descriptions.values())) == len(descriptions)


def test_every_page_says_its_language_and_has_an_icon(heads):
    for path, head in heads.items():
        assert head.language == "en", path
        icon = posixpath.normpath(posixpath.join(posixpath.dirname(path), head.rel["icon"]))
        assert (SITE / icon).is_file(), path


def test_every_page_can_be_reported_with_its_path_and_version(heads):
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    repository = settings["project"]["urls"]["Homepage"]
    for path, head in heads.items():
        assert len(head.reports) == 1, f"{path} has {len(head.reports)} such links"
        link = urlsplit(head.reports[0])
        assert f"{link.scheme}://{link.netloc}{link.path}" == f"{repository}/issues/new", path
        assert len(head.reports[0]) <= LONGEST_ADDRESS, path
        query = parse_qs(link.query, strict_parsing=True)
        assert set(query) == {"title", "body"}
        (title,), (body,) = query["title"], query["body"]
        assert title == f"{path.removesuffix('.html')}: "
        lines = body.splitlines()
        page = re.fullmatch(r"Page: (\S+) \((.+)\)", lines[0])
        assert page, lines[0]
        assert page[1] == path
        assert page[2] in unescape(head.title), lines[0]
        assert lines[1] == f"Version: {scalelab.__version__}"
        assert {"What I expected:", "What I saw:"} <= set(lines)


def test_a_lab_is_reported_by_its_name(heads):
    labs = [path for path in heads if path.startswith("labs/")]
    assert labs
    for path, head in heads.items():
        (body,) = parse_qs(urlsplit(head.reports[0]).query)["body"]
        named = [line for line in body.splitlines() if line.startswith("Lab: ")]
        assert named == ([f"Lab: {path.removeprefix('labs/').removesuffix('.html')}"] if path in labs else [])
