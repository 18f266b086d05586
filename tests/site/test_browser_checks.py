"""The browser's checks notice what they are for: each is tried on pages made wrong on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import SCHEMES, View, set_scheme, visit
from local_site import served

pytestmark = pytest.mark.browser

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>A page</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">{head}</head>
<body><main><h1>A page</h1><p>Words that can be read by everybody.</p>{body}</main></body></html>"""
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PNG = f"data:image/png;base64,{PIXEL}"
# name → (what stands in the page, the check that must notice it, a word of its finding, the window's width)
WRONG = {
    "a logged error": ("<script>console.error('lost')</script>", "errors", "lost", 1280),
    "an exception": ("<script>undefined_name()</script>", "errors", "undefined_name", 1280),
    "a missing file": ("<script src='no-such.js'></script>", "errors", "no-such.js", 1280),
    "a foreign script": (
        "<script src='http://stranger.invalid/spy.js'></script>",
        "strangers",
        "stranger.invalid",
        1280,
    ),
    "an image fetched late": (
        "<script>onload = () => { new Image().src = 'http://stranger.invalid/x.png' }</script>",
        "strangers",
        "stranger.invalid",
        1280,
    ),
    "a formula never drawn": ("<span class='math'>\\(x^2\\)</span>", "formulas", "x^2", 1280),
    "a broken formula": (
        "<mjx-container><mjx-merror data-mjx-error='Missing }'>x</mjx-merror></mjx-container>",
        "formulas",
        "Missing }",
        1280,
    ),
    "an unknown macro": (
        "<mjx-container><math><mtext mathcolor='red'>\\nosuch</mtext></math></mjx-container>",
        "formulas",
        "nosuch",
        1280,
    ),
    "a wide table": (
        "<table><tr>" + "<td>a_long_column_name</td>" * 12 + "</tr></table>",
        "overflow",
        "sideways",
        390,
    ),
    "a wide table in a fold": (
        "<details><summary>More</summary><table><tr>"
        + "<td>a_long_column_name</td>" * 12
        + "</tr></table></details>",
        "overflow",
        "sideways",
        390,
    ),
    "long code cut off": (
        f"<div style='overflow: hidden'><pre>{'x' * 200}</pre></div>",
        "overflow",
        "<pre>",
        390,
    ),
    "a picture without words": (f"<img src='{PNG}'>", "pictures", "<img", 1280),
    "a picture called by its file": (
        f"<img src='{PNG}' alt='figure-one.png'>",
        "pictures",
        "figure-one",
        1280,
    ),
    "an image axe cannot name": (f"<img src='{PNG}'>", "barriers", "image-alt", 1280),
    "grey on white": ("<p style='color: #aaa'>Faint</p>", "barriers", "color-contrast", 1280),
    "grey on white in a fold": (
        "<details><summary>More</summary><p style='color: #aaa'>Faint</p></details>",
        "barriers",
        "color-contrast",
        1280,
    ),
    "a word of faint code among many": (
        "<pre>"
        + "<span style='color: #000'>x = 1; </span>" * 50
        + "<span style='color: #bbb'># why</span></pre>",
        "barriers",
        "color-contrast",
        1280,
    ),
    "a second main heading": ("<h1>Another</h1>", "headings", "2 main headings", 1280),
    "a button that hides its focus": (
        "<style>button:focus { outline: none }</style><button>Go on</button>",
        "stops",
        "Go on",
        1280,
    ),
    "a level left out": ("<h4>Deep</h4>", "barriers", "heading-order", 1280),
    "a field without a name": ("<input>", "barriers", "label", 1280),
    "text outside all landmarks": ("</main><p>Lost</p><main>", "barriers", "region", 1280),
}


def write(folder: Path, body: str, head: str = "") -> None:
    (folder / "page.html").write_text(PAGE.format(head=head, body=body), encoding="utf-8")


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with served(tmp_path) as home:
        yield home


def faults(view: View) -> dict[str, list[str]]:
    names = ("errors", "strangers", "formulas", "overflow", "pictures", "headings", "stops", "barriers")
    return {name: getattr(view, name)() for name in names}


@pytest.mark.parametrize("name", WRONG)
def test_a_fault_is_noticed_and_named(browser, address, tmp_path, name):
    body, check, word, width = WRONG[name]
    write(tmp_path, body)
    with visit(browser, address, "page.html", width=width) as view:
        findings = getattr(view, check)()
        assert any(word in finding for finding in findings), f"{name}: {check} found {findings}"


@pytest.mark.parametrize("width", [390, 1280])
def test_a_good_page_passes_every_check(browser, address, tmp_path, width):
    scrolling = "<table><tr>" + "<td>a_long_column_name</td>" * 12 + "</tr></table>"
    write(
        tmp_path,
        f"<div style='overflow-x: auto' tabindex='0'>{scrolling}</div>"
        f"<img src='{PNG}' alt='A black square, one pixel wide'>"
        "<span class='math'><mjx-container><math><mi>x</mi></math></mjx-container></span>"
        "<details><summary>More</summary><p>An answer.</p></details>"
        "<p><a href='#more'>A link</a> and <button>a button</button></p>",
    )
    with visit(browser, address, "page.html", width=width) as view:
        assert not any(faults(view).values()), faults(view)


def test_a_colour_that_is_faint_in_the_dark_only_is_noticed(browser, address, tmp_path):
    head = """<style>p { color: #444 }
    [data-theme=dark] body { background: #111 } [data-theme=dark] h1 { color: #fff }</style>
    <script>const dark = matchMedia("(prefers-color-scheme: dark)");
    const follow = () => { document.documentElement.dataset.theme = dark.matches ? "dark" : "light" };
    dark.onchange = follow; follow();</script>"""
    write(tmp_path, "", head)
    with visit(browser, address, "page.html") as view:
        found = {scheme: (set_scheme(view, scheme), view.barriers()) for scheme in SCHEMES}
    assert found["light"] == ("light", [])
    theme, barriers = found["dark"]
    assert theme == "dark"
    assert any("color-contrast" in barrier for barrier in barriers)


def test_weight_is_the_sum_of_all_that_was_sent(browser, address, tmp_path):
    (tmp_path / "large.js").write_text("//" + "x" * 100_000, encoding="utf-8")
    (tmp_path / "late.json").write_text('"' + "y" * 50_000 + '"', encoding="utf-8")
    write(tmp_path, "<script src='large.js'></script><script>fetch('late.json')</script>")
    sent = sum(file.stat().st_size for file in tmp_path.iterdir())
    with visit(browser, address, "page.html") as view:
        assert view.weight() == sent
