"""The landing page's map: every chapter of the plan once, linked exactly when it is written."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
PLAN = {
    "Transformers": "Basics, Tokens, Attention, The block, Training, Architectures, Inference",
    "Scaling laws": "Power laws, Compute-optimal training, Planning a run, Capability, µP, Unit scaling",
    "Parallelism": "Data parallelism, Sharding, Tensor parallelism, Pipelines, Long contexts, Experts, "
    "Planning a cluster",
    "Adaptation": "Fine-tuning, Tagging, Vision, Parameter-efficient tuning, Compression, "
    "Adaptive computation",
    "In practice": "Case studies, Capstone",
}
PLANNED_ITEM = r"\*\*(?P<planned>[^*]+)\*\*: .+ \*planned\*"
WRITTEN_ITEM = (
    r"\[\*\*(?P<written>[^*]+)\*\*\]\((?P<chapter>book/\S+)\.md\): .+ \(\[lab\]\((?P<lab>labs/\S+)\.ipynb\)\)"
)
ITEM = re.compile(f"- (?:{PLANNED_ITEM}|{WRITTEN_ITEM})")


def sections() -> dict[str, list[str]]:
    """Part → the map's list items."""
    text = (ROOT / "index.md").read_text(encoding="utf-8").partition("## The map")[2]
    parts = re.split(r"^### Part [IV]+ · (.+)$", text, flags=re.MULTILINE)[1:]
    return {
        name: [line for line in body.splitlines() if line.startswith("- ")]
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    }


def test_the_map_lists_every_chapter_of_every_part_once_and_in_order():
    named = {}
    for part, items in sections().items():
        matches = [ITEM.fullmatch(item) for item in items]
        assert all(matches), (
            f"not of the map's form: {[i for i, m in zip(items, matches, strict=True) if not m]}"
        )
        named[part] = [match["planned"] or match["written"] for match in matches if match]
    assert named == {part: names.split(", ") for part, names in PLAN.items()}


def test_the_map_links_exactly_the_chapters_and_labs_that_are_written():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    written = {
        (part["caption"], chapter["file"], chapter["sections"][0]["file"])
        for part in toc["parts"]
        for chapter in part["chapters"]
        if not chapter["file"].startswith("book/about/")
    }
    linked = {
        (part, match["chapter"], match["lab"])
        for part, items in sections().items()
        for item in items
        if (match := ITEM.fullmatch(item)) and match["written"]
    }
    assert linked == written


def test_each_part_is_given_one_question():
    text = (ROOT / "index.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| [IV]+\. ([^|]+?) \| ([^|]+?) \|$", text, flags=re.MULTILINE))
    assert list(table) == list(PLAN)
    assert all(question.endswith("?") and question.count("?") == 1 for question in table.values())
