"""Claims about the built HTML: links lead somewhere, pictures are described, no other host is asked."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

import scalelab

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"
GENERATED = {"genindex.html", "search.html"}
OTHER_HOST = re.compile(r"^(https?:)?//")


def toc_files() -> list[str]:
    """Every file that _toc.yml names, in order."""

    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, Mapping):
            yield from (node[key] for key in ("root", "file") if key in node)
            node = list(node.values())
        if isinstance(node, list):
            for child in node:
                yield from walk(child)

    return list(walk(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))))


def test_every_file_of_the_table_of_contents_exists_and_is_a_page(pages):
    for name in toc_files():
        assert any((ROOT / f"{name}{suffix}").is_file() for suffix in (".md", ".ipynb")), name
        assert f"{name}.html" in pages


def test_every_chapter_and_lab_is_in_the_table_of_contents():
    written = {
        file.relative_to(ROOT).with_suffix("").as_posix()
        for file in (*ROOT.glob("book/*/*.md"), *ROOT.glob("labs/*/*.ipynb"))
    }
    assert written == {name for name in toc_files() if name != "index"}


def test_every_chapter_has_a_lab_of_the_same_name_right_after_it():
    files = toc_files()
    for name in files:
        if name.startswith("book/") and not name.startswith("book/about/"):
            lab = name.replace("book/", "labs/", 1)
            assert files[files.index(name) + 1] == lab


def test_the_site_holds_no_page_that_the_table_of_contents_lacks(pages):
    stale = set(pages) - {f"{name}.html" for name in toc_files()} - GENERATED
    assert not stale, f"run `make clean`: {stale} are left from an earlier build"


def test_internal_links_and_their_anchors_resolve(pages):
    broken = []
    for page in pages.values():
        for link in page.links:
            if urlsplit(link).scheme or OTHER_HOST.match(link):
                continue
            path, fragment = unquote(urlsplit(link).path), unquote(urlsplit(link).fragment)
            target = (
                posixpath.normpath(posixpath.join(posixpath.dirname(page.path), path)) if path else page.path
            )
            if not (SITE / target).is_file():
                broken.append(f"{page.path} → {link}: no such file")
            elif fragment and target in pages and fragment not in pages[target].ids:
                broken.append(f"{page.path} → {link}: no such anchor")
    assert not broken, "\n".join(broken)


def test_a_broken_anchor_would_be_noticed(pages):
    assert "no-such-anchor" not in pages["index.html"].ids
    assert "the-map" in pages["index.html"].ids


def test_every_image_says_in_words_what_it_shows(pages):
    for page in pages.values():
        for image in page.images:
            alt = image.get("alt", "").strip()
            # Sphinx falls back to the file's name.
            is_file_name = re.fullmatch(r"\S+\.(png|svg|jpe?g|gif|webp)", alt)
            assert alt, f"{page.path}: {image.get('src', '')[:60]} has no alt text"
            assert not is_file_name, f"{page.path}: {alt} is a file's name, no description"


def test_every_page_says_which_version_it_belongs_to(pages):
    for page in pages.values():
        assert f"Version {scalelab.__version__}" in page.text, page.path


def test_no_page_fetches_anything_from_another_host(pages):
    for page in pages.values():
        asked = [resource for resource in page.resources if OTHER_HOST.match(resource)]
        assert not asked, f"{page.path} asks {asked}"


def test_no_style_sheet_fetches_anything_from_another_host(pages):
    for file in SITE.rglob("*.css"):
        fetched = re.findall(
            r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")]+)", file.read_text(encoding="utf-8")
        )
        assert not fetched, f"{file.name} asks {fetched}"


def test_formulas_are_drawn_by_files_of_the_site(pages):
    scripts = [r for page in pages.values() for r in page.resources if "mathjax" in r.lower()]
    for script in scripts:
        assert not OTHER_HOST.match(script)
    assert (SITE / "_static" / "mathjax" / "tex-chtml.js").is_file()


def test_no_button_opens_the_edition_with_solutions(pages):
    """The theme's launch and download buttons would; the labs' own badges open the student edition."""
    for page in pages.values():
        for link in page.links:
            if "colab.research.google.com" in link:
                assert "/blob/student/" in link or "/blob/main/labs/" in link, f"{page.path}: {link}"
            assert not link.startswith("_sources"), f"{page.path}: {link}"
