"""Print the book: Sphinx puts it on a single page, Chromium prints that, contents get their page numbers.

`make pdf` runs it in .venv/site; the result is _build/course.pdf. The page is printed twice: the first
time tells on which page each entry of the contents stands.
"""

from __future__ import annotations

import argparse
import io
import logging
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import chromium
from local_site import served

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build" / "pdf"
PDF = ROOT / "_build" / "course.pdf"
LAYOUT = Path(__file__).with_suffix(".js")
# A4's 210 mm less two margins of 18 mm, at 96 px to the inch: formulas and tables are fitted to it.
WINDOW: dict[str, Any] = {"viewport": {"width": 658, "height": 1000}, "reduced_motion": "reduce"}
LOAD_MS = 120_000
NUMBER = """(pages) => document.querySelectorAll(".book-contents .number").forEach(
  (number) => { number.textContent = pages[number.dataset.target] ?? ""; })"""


class PdfError(RuntimeError):
    """The book could not be printed; the text says why, and what to do."""


def parts(toc: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts of _toc.yml with their pages in reading order, and whether each is a lab."""

    def pages(nodes: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        for node in nodes:
            yield {"name": node["file"], "lab": node["file"].startswith("labs/")}
            yield from pages(node.get("sections", ()))

    return [{"caption": part["caption"], "pages": list(pages(part["chapters"]))} for part in toc["parts"]]


def cover(config: Mapping[str, Any], repository: str, version: str) -> dict[str, Any]:
    """What stands on the first page."""
    return {
        "title": config["title"],
        "subtitle": "A course in which every claim can be run, every number is computed or cited, "
        "and every answer is checked where it is written.",
        "facts": [
            config["author"],
            f"Version {version}",
            "Text and figures under Creative Commons Attribution 4.0 (CC BY 4.0), code under Apache 2.0",
            f'<a href="{repository}">{repository.removeprefix("https://")}</a>',
        ],
    }


def build_page(folder: Path) -> Path:
    """The folder of the book on a single page, built by the environment that runs this.

    Raises:
        PdfError: Sphinx failed; what it said was shown.
    """
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(ROOT), "--path-output"]
    command += [str(folder), "--builder", "singlehtml", "--quiet", "-W", "-n", "--keep-going"]
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode != 0:
        # A page that has not changed would not warn again.
        shutil.rmtree(folder / "_build" / ".doctrees", ignore_errors=True)
        raise PdfError("Sphinx could not put the book on a single page; the lines above say why")
    return folder / "_build" / "singlehtml"


@contextmanager
def browser_tab() -> Iterator[Any]:
    """A page of Chromium, as wide as the paper's column.

    Raises:
        PdfError: there is no Chromium.
    """
    from playwright.sync_api import sync_playwright

    program = chromium.find()
    if program is None:
        raise PdfError(f"the book is printed by Chromium, and there is none: {chromium.WAY_OUT}")
    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=program, args=list(chromium.FLAGS))
        try:
            yield browser.new_page(**WINDOW)
        finally:
            browser.close()


def print_page(tab: Any, address: str, book: Mapping[str, Any], target: Path) -> list[dict[str, str]]:
    """Lay out the page at this address and print it twice; gives the contents' entries.

    Raises:
        PdfError: a formula is not drawn.
    """
    tab.goto(address, wait_until="load", timeout=LOAD_MS)
    tab.emulate_media(media="print", color_scheme="light")
    tab.add_style_tag(path=str(ROOT / "book" / "_static" / "print.css"))
    entries = tab.evaluate(LAYOUT.read_text(encoding="utf-8"), dict(book))
    if undrawn := tab.locator("mjx-merror, .math:not(:has(mjx-container))").count():
        raise PdfError(f"{undrawn} formula(s) not drawn; the tests of the site name them")
    settings = {"print_background": True, "prefer_css_page_size": True, "outline": True, "tagged": True}
    first = tab.pdf(**settings)
    tab.evaluate(NUMBER, page_numbers(first))
    target.write_bytes(tab.pdf(**settings))
    return list(entries)


def page_numbers(pdf: bytes) -> dict[str, int]:
    """Anchor → page, counted from 1, of every link's target in a printed PDF."""
    from pypdf import PdfReader

    return page_numbers_of(PdfReader(io.BytesIO(pdf)))


def page_numbers_of(reader: Any) -> dict[str, int]:
    """The same of a PDF that is open already."""
    return {
        name.removeprefix("/"): number + 1
        for name, place in reader.named_destinations.items()
        if (number := reader.get_destination_page_number(place)) is not None
    }


def misplaced(reader: Any, entries: Sequence[Mapping[str, str]]) -> list[str]:
    """Entries of the contents whose title does not stand on the page that the contents name."""
    pages = page_numbers_of(reader)
    lost = []
    for entry in entries:
        number = pages.get(entry["id"])
        text = reader.pages[number - 1].extract_text() if number else ""
        # Words only: lines break anywhere, and the letters of formulas are drawn from fonts of their own.
        if not set(re.findall(r"[A-Za-z]{3,}", entry["title"])) <= set(re.findall(r"[A-Za-z]{3,}", text)):
            lost.append(f"{entry['title']} (page {number})")
    return lost


def sign(target: Path, book: Mapping[str, Any], repository: str, version: str) -> int:
    """Write title, author and version into the PDF's properties; gives its number of pages."""
    from pypdf import PdfWriter

    writer = PdfWriter(clone_from=target)
    writer.add_metadata(
        {
            "/Title": book["title"],
            "/Author": book["facts"][0],
            "/Subject": f"Version {version}, CC BY 4.0, {repository}",
        }
    )
    writer.page_layout = "/OneColumn"
    writer.page_mode = "/UseOutlines"
    writer.write(target)
    return len(writer.pages)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build and print; 0 when the PDF is there."""
    parser = argparse.ArgumentParser(description="Print the book into _build/course.pdf.")
    parser.add_argument(
        "--out", type=Path, default=PDF, help="where the PDF goes (default: _build/course.pdf)"
    )
    options = parser.parse_args(arguments)
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of a count that Chromium writes too low
    try:
        if chromium.find() is None:
            raise PdfError(f"the book is printed by Chromium, and there is none: {chromium.WAY_OUT}")
        pages = make(options.out)
    except PdfError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"The book is in {options.out}: {pages} pages, {options.out.stat().st_size / 1e6:.1f} MB")
    return 0


def make(target: Path) -> int:
    """Build the single page, print it to the target, sign it; gives its number of pages.

    Raises:
        PdfError: it could not be built or printed, or its contents lead to the wrong pages.
    """
    import yaml
    from pypdf import PdfReader

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    repository = str(project["urls"]["Homepage"])
    source = (ROOT / "src" / "scalelab" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "(.+)"$', source, flags=re.MULTILINE)
    assert match, "src/scalelab/__init__.py names no version"
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    book = {**cover(config, repository, match[1]), "parts": parts(toc)}
    target.parent.mkdir(parents=True, exist_ok=True)
    with served(build_page(BUILD)) as address, browser_tab() as tab:
        entries = print_page(tab, address, book, target)
    if lost := misplaced(PdfReader(target), entries):
        raise PdfError(f"the contents of {target.name} are wrong for: {', '.join(lost)}")
    return sign(target, book, repository, match[1])


if __name__ == "__main__":
    sys.exit(main())
