"""Each page's citations lead to its own list of sources, though two pages cite the same paper."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from own_sources import with_own_keys  # noqa: E402

CITATION = r'class="bibtex-citation"[^>]*>\[<a class="reference ([^"]*)" href="([^"]*)"'


def test_keys_of_citations_and_lists_get_the_pages_name() -> None:
    text = "As {cite}`kingma2014adam, su2021rope` and {cite:t}`he2015` say.\n\n"
    text += "```{bibliography}\n:filter: x\n```\n"
    assert with_own_keys("book/transformers/a_b", text) == (
        "As {cite}`book-transformers-a-b-kingma2014adam,book-transformers-a-b-su2021rope` and "
        "{cite:t}`book-transformers-a-b-he2015` say.\n\n"
        "```{bibliography}\n:keyprefix: book-transformers-a-b-\n:labelprefix: book-transformers-a-b-\n"
        ":filter: x\n```\n"
    )


@pytest.mark.parametrize("text", ["no sources here", "`{cite}` alone", "```{bibliography-like}\n```"])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert with_own_keys("page", text) == text


def test_every_citation_of_a_built_page_leads_to_an_entry_on_that_page(pages) -> None:
    cited = 0
    for name in pages:
        content = (SITE / name).read_text(encoding="utf-8")
        for kind, target in re.findall(CITATION, content):
            cited += 1
            assert kind.startswith("internal"), name
            assert target.startswith("#"), f"{name}: {target}"
            assert f'id="{target[1:]}"' in content, f"{name}: {target}"
    assert cited > 10
