"""The printed book: `make pdf` lays out the single page, numbers its contents, and says what it lacks."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import chromium
import pdf
import pytest
import yaml
from local_site import served

ROOT = Path(__file__).resolve().parents[2]
TOC = {
    "root": "index",
    "parts": [
        {
            "caption": "Beginnings",
            "chapters": [
                {"file": "book/a/first", "sections": [{"file": "labs/a/first"}]},
                {"file": "book/a/second"},
            ],
        }
    ],
}
CONFIG = {"title": "A small book", "author": "Nobody in particular"}
# What Sphinx's single page looks like: chapters one level down, labs two, all anchors on one page.
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>A small book</title></head>
<body><header>Chrome of the site</header><main><article class="bd-article">
<section id="root"><h1>A small book<a class="headerlink" href="#root">#</a></h1>
<p>Welcome. See <a href="#two">two</a>, <a href="_images/plot.png">the plot</a> and
<a href="https://example.org/paper">a paper</a>.</p>
<div class="toctree-wrapper"><span id="document-book/a/first"></span>
<section id="one"><h2>First<a class="headerlink" href="#one">#</a></h2>
<p>Opening words.</p><details class="sd-dropdown"><summary>Answer</summary><p>Forty-two.</p></details>
<details class="hide below-input"><summary><p class="collapsed">Show the source</p>
<p class="expanded">Hide the source</p></summary><p>### BEGIN SOLUTION here</p></details>
<div class="cell tag_hide-input"><details class="hide"><summary>x</summary><p>drawing_code()</p></details>
</div>
<div class="highlight"><pre>{code}</pre></div><div style="height: 1500px"></div>
<section id="sources"><h3>Sources</h3><p>First's own. <a href="#sources">Here</a></p></section>
<div class="toctree-wrapper"><span id="document-labs/a/first"></span>
<section id="lab-one"><h3>Lab: first</h3><p>Do it.</p></section></div></section></div>
<div class="toctree-wrapper"><span id="document-book/a/second"></span>
<section id="two"><h2>Second</h2><p>More.</p><div style="height: 1500px"></div>
<section id="sources"><h3>Sources</h3><p>Second's own. <a href="#sources">There</a></p></section>
</section></div>
</section></article></main></body></html>"""

needs_browser = pytest.mark.browser


@pytest.fixture(scope="module")
def printed(browser, tmp_path_factory):
    """The small book, printed: pypdf's reader of it, and the entries of its contents."""
    from pypdf import PdfReader

    folder = tmp_path_factory.mktemp("book")
    (folder / "index.html").write_text(PAGE.format(code="x" * 400), encoding="utf-8")
    book = {**pdf.cover(CONFIG, "https://example.org/o/r", "1.2.3"), "parts": pdf.parts(TOC)}
    target = folder / "book.pdf"
    tab = browser.new_page(**pdf.WINDOW)
    with served(folder) as address:
        entries = pdf.print_page(tab, address, book, target)
    tab.close()
    pdf.sign(target, book, "https://example.org/o/r", "1.2.3")
    return PdfReader(io.BytesIO(target.read_bytes())), entries


def lines(reader, page: int) -> list[str]:
    return [line.strip() for line in reader.pages[page].extract_text().splitlines() if line.strip()]


def test_parts_list_every_page_of_the_table_of_contents_in_order():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    named = [line.split()[-1] for line in (ROOT / "_toc.yml").read_text().splitlines() if "file:" in line]
    parts = pdf.parts(toc)
    assert [page["name"] for part in parts for page in part["pages"]] == named
    assert all(page["lab"] == page["name"].startswith("labs/") for part in parts for page in part["pages"])


@needs_browser
def test_the_first_page_names_title_author_version_and_licence(printed):
    reader, _ = printed
    text = " ".join(lines(reader, 0))
    for words in ("A small book", "Nobody in particular", "Version 1.2.3", "CC BY 4.0", "example.org/o/r"):
        assert words in text
    assert reader.metadata.title == "A small book"
    assert reader.metadata.author == "Nobody in particular"


@needs_browser
def test_the_contents_give_the_page_on_which_each_entry_stands(printed):
    reader, entries = printed
    titles = [entry["title"] for entry in entries]
    assert titles == [
        "About this course", "Beginnings", "First", "Sources", "Lab: first", "Second", "Sources",
    ]  # fmt: skip
    text = reader.pages[1].extract_text().split()
    numbers = [int(word) for word in text if word.isdigit()]
    numbers.remove(2)  # the contents' own page
    assert numbers == sorted(numbers), text
    for title, number in zip(titles, numbers, strict=True):
        assert any(title in line for line in lines(reader, number - 1)), f"{title} is not on page {number}"
    assert "First's own." in reader.pages[numbers[3] - 1].extract_text()
    assert "Second's own." in reader.pages[numbers[6] - 1].extract_text()


@needs_browser
def test_an_entry_that_names_the_wrong_page_is_noticed(printed):
    reader, entries = printed
    assert pdf.misplaced(reader, entries) == []
    wrong = [{"id": entries[0]["id"], "title": "Second"}, {"id": "nowhere", "title": "First"}]
    assert len(pdf.misplaced(reader, wrong)) == 2


@needs_browser
def test_links_to_anchors_of_the_same_name_stay_within_their_chapter(printed):
    reader, _ = printed
    ends = {}
    for page in reader.pages:
        for note in page.get("/Annots", ()):
            link = note.get_object()
            name = link.get("/Dest")
            if name:
                ends.setdefault(str(name).removeprefix("/"), set()).add(page.page_number)
    own = {name: pages for name, pages in ends.items() if name.endswith("sources")}
    assert len(own) == 2, ends.keys()
    places = pdf.page_numbers_of(reader)
    for name, pages in own.items():
        assert places[name] - 1 in pages, f"{name}: linked from {pages}, stands on {places[name] - 1}"


@needs_browser
def test_links_lead_into_the_book_or_to_the_web_and_not_to_the_machine_that_printed_it(printed):
    reader, _ = printed
    notes = [note.get_object() for page in reader.pages for note in page.get("/Annots", ())]
    web = {str(note["/A"]["/URI"]) for note in notes if "/A" in note}
    assert web == {"https://example.org/paper", "https://example.org/o/r"}
    assert "the plot" in "".join(page.extract_text() for page in reader.pages)


@needs_browser
def test_folds_are_printed_open_and_the_site_around_them_is_not(printed):
    reader, _ = printed
    text = "\n".join(page.extract_text() for page in reader.pages)
    assert "Forty-two." in text
    assert "BEGIN SOLUTION here" in text
    assert "Show the source" not in text
    assert "drawing_code()" not in text
    assert "Chrome of the site" not in text
    assert "#\n" not in text


@needs_browser
def test_long_code_is_wrapped_and_not_cut_off(printed):
    reader, _ = printed
    assert "".join(page.extract_text() for page in reader.pages).count("x") >= 400


@needs_browser
def test_the_reader_can_jump_by_an_outline_of_parts_chapters_and_labs(printed):
    reader, _ = printed

    def titles(outline):
        for entry in outline:
            yield from titles(entry) if isinstance(entry, list) else [entry.title]

    assert list(titles(reader.outline)) == [
        "About this course", "Beginnings", "First", "Sources", "Lab: first", "Second", "Sources",
    ]  # fmt: skip


@needs_browser
def test_a_formula_that_is_not_drawn_stops_the_print(browser, tmp_path):
    page = PAGE.format(code="x").replace("Opening words.", "<span class='math'>\\(x^2\\)</span>")
    (tmp_path / "index.html").write_text(page, encoding="utf-8")
    book = {**pdf.cover(CONFIG, "https://example.org/o/r", "1"), "parts": pdf.parts(TOC)}
    tab = browser.new_page(**pdf.WINDOW)
    with served(tmp_path) as address, pytest.raises(pdf.PdfError, match="1 formula"):
        pdf.print_page(tab, address, book, tmp_path / "book.pdf")
    tab.close()


def test_without_chromium_the_tool_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(chromium, "NAMES", ("no-such-browser",))
    assert pdf.main(["--out", str(tmp_path / "book.pdf")]) == 1
    assert "apt install chromium" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_tool_names_its_option():
    said = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "pdf.py"), "--help"], capture_output=True, text=True, check=True
    )
    assert "--out" in said.stdout
