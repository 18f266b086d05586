"""The built site, as `make test` leaves it in _build/html before these tests run, and a browser."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"
sys.path[:0] = [str(ROOT / "tools"), str(Path(__file__).parent)]

import chromium  # noqa: E402  (a tool)
from local_site import served  # noqa: E402  (another)


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


def skip_without_browser(reason: str) -> NoReturn:
    """Skip the test, or fail it where a browser is required, as in continuous integration."""
    if os.environ.get("SCALELAB_REQUIRE_BROWSER") == "1":
        pytest.fail(f"{reason}; SCALELAB_REQUIRE_BROWSER=1 asks for it")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for a file's tests: with it runs an event loop, which tests elsewhere cannot share."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        skip_without_browser("needs playwright: pip install playwright axe-playwright-python")
    program = chromium.find()
    if program is None:
        skip_without_browser(f"needs Chromium: {chromium.WAY_OUT}")
    with sync_playwright() as engine:
        instance = engine.chromium.launch(executable_path=program, args=list(chromium.FLAGS))
        yield instance
        instance.close()


@pytest.fixture(scope="session")
def home(pages: Mapping[str, Page]) -> Iterator[str]:
    """The built site's address on a local server."""
    with served(SITE) as address:
        yield address
