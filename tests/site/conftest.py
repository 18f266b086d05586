"""The built site, as `make test` leaves it in _build/html before these tests run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"


@dataclass
class Page:
    """What the tests ask of one HTML file.

    Attributes:
        path: relative to the site's root.
        ids: every anchor in it.
        links: targets of `<a>`.
        resources: whatever the browser fetches by itself: scripts, styles, images, frames.
        images: attributes of each `<img>`.
        text: all text between tags.
    """

    path: str
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    resources: list[str] = field(default_factory=list)
    images: list[dict[str, str]] = field(default_factory=list)
    text: str = ""


class _Reader(HTMLParser):
    def __init__(self, page: Page) -> None:
        super().__init__()
        self.page = page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if "id" in values:
            self.page.ids.add(values["id"])
        if tag == "a" and "name" in values:
            self.page.ids.add(values["name"])
        if tag == "a" and "href" in values:
            self.page.links.append(values["href"])
        if tag == "img":
            self.page.images.append(values)
        fetched_link = tag == "link" and values.get("rel", "") in {
            "stylesheet",
            "preload",
            "icon",
            "shortcut icon",
        }
        if fetched_link:
            self.page.resources.append(values.get("href", ""))
        elif tag != "a" and "src" in values:
            self.page.resources.append(values["src"])

    def handle_data(self, data: str) -> None:
        self.page.text += data


@pytest.fixture(scope="session")
def pages() -> Mapping[str, Page]:
    """Every page of the table of contents, and the generated ones, by path."""
    if not (SITE / "index.html").is_file():
        pytest.skip("the site is not built: run `make book` first")
    found = {}
    for file in sorted(SITE.rglob("*.html")):
        if "_static" in file.parts:
            continue
        page = Page(path=file.relative_to(SITE).as_posix())
        _Reader(page).feed(file.read_text(encoding="utf-8"))
        found[page.path] = page
    return found
