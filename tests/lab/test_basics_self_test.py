"""Claims about the self-test: marked at the end, usual slips known, and each miss has a place to read."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scalelab.core.errors import LabError
from scalelab.lab.checks.basics.questions import QUESTIONS
from scalelab.lab.self_test import Question, SelfTest, Slip, mark, read_answer

ROOT = Path(__file__).resolve().parents[2]
RIGHT = {question.name: question.right for question in QUESTIONS}
CHAPTER = (ROOT / "book" / "transformers" / "basics.md").read_text(encoding="utf-8")


def sitting(answers: dict[str, Any]) -> SelfTest:
    test = SelfTest(QUESTIONS, chapter="https://example.org/basics.html", onward="Go on.")
    for name, answer in answers.items():
        test.answer(name, answer)
    return test


def test_all_right_sends_the_reader_on_and_nowhere_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert sitting(RIGHT).result() == len(QUESTIONS) == 10
    printed = capsys.readouterr().out
    assert "10 of 10 right. Go on." in printed
    assert "To read" not in printed


def test_an_untouched_test_marks_nothing_wrong_and_lists_every_section_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert sitting({question.name: ... for question in QUESTIONS}).result() == 0
    printed = capsys.readouterr().out
    assert "✗" not in printed
    assert "0 of 10 right" in printed
    for section in {question.place.section for question in QUESTIONS}:
        assert printed.count(f'"{section}"') == 1


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
def test_each_missed_topic_leads_to_its_section_and_to_an_outside_reading(
    question: Question, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sitting({name: right for name, right in RIGHT.items() if name != question.name}).result() == 9
    printed = capsys.readouterr().out
    assert f"https://example.org/basics.html#{question.place.anchor}" in printed
    assert question.place.reading in printed
    assert "https://" in question.place.reading
    assert "Go on." in printed


@pytest.mark.parametrize(
    ("question", "slip"), [(q, s) for q in QUESTIONS for s in q.slips], ids=lambda value: str(value)[:25]
)
def test_each_slip_is_wrong_and_gets_its_own_remark(question: Question, slip: Slip) -> None:
    (one,) = mark([question], {question.name: slip.answer})
    assert one.outcome == "wrong"
    assert one.remark == slip.remark


def test_no_slip_hides_another_and_every_question_knows_two() -> None:
    for question in QUESTIONS:
        assert len(question.slips) >= 2
        remarks = [mark([question], {question.name: slip.answer})[0].remark for slip in question.slips]
        assert len(set(remarks)) == len(question.slips)


def test_nothing_is_given_away_before_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    sitting({"price": math.log(50), "bits": 12.0, "shape": (1, 2, 3), "rate": None})
    printed = capsys.readouterr().out
    assert "✓" not in printed
    assert "✗" not in printed
    assert printed.splitlines() == [
        "price: you say 3.91.", "bits: you say 12.", "shape: you say (1, 2, 3).", "rate: not answered yet.",
    ]  # fmt: skip


def test_a_rounded_answer_counts_and_a_wrong_one_does_not() -> None:
    price = next(question for question in QUESTIONS if question.name == "price")
    for answer, outcome in ((3.91, "right"), (3.9, "right"), (4.0, "wrong"), (0.0, "wrong")):
        assert mark([price], {"price": answer})[0].outcome == outcome


def test_the_last_answer_counts_and_can_be_taken_back() -> None:
    test = sitting({"price": 1.0})
    test.answer("price", math.log(50))
    assert test.result() == 1
    test.answer("price", ...)
    assert test.result() == 0


def test_numbers_and_shapes_of_every_kind_are_read() -> None:
    shape, price = QUESTIONS[0], QUESTIONS[2]
    for answer in ([8, 128, 384], torch.Size([8, 128, 384]), np.array([8, 128, 384])):
        assert read_answer(shape, answer) == (8, 128, 384)
    for number in (3.5, np.float32(3.5), torch.tensor(3.5), "3.5"):
        assert read_answer(price, number) == 3.5


@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [
        ("shape", 5, "asks for a shape"),
        ("shape", "wide", "asks for a shape"),
        ("shape", "234", "asks for a shape"),
        ("shape", {2: 1, 3: 1}, "asks for a shape"),
        ("shape", (-2, 3), "asks for a shape"),
        ("shape", (), "asks for a shape"),
        ("shape", np.array([2.5, 3]), "asks for a shape"),
        ("price", np.array([2, 3]), "finite number"),
        ("price", torch.tensor([2, 3]), "finite number"),
        ("price", 10**400, "finite number"),
        ("shape", (1.5, 2, 3), "asks for a shape"),
        ("price", "cheap", "finite number"),
        ("price", math.nan, "finite number"),
        ("price", True, "finite number"),
        ("price", (1, 2), "finite number"),
        ("prise", 1, "no question is called 'prise'"),
    ],
)
def test_an_answer_that_cannot_be_read_is_said_at_once(name: str, answer: Any, message: str) -> None:
    with pytest.raises(LabError, match=message):
        sitting({name: answer})


def test_right_answers_are_what_torch_computes() -> None:
    x, w = torch.empty(8, 128, 96, device="meta"), torch.empty(96, 384, device="meta")
    assert tuple((x @ w).shape) == RIGHT["shape"]
    with FlopCounterMode(display=False) as counter:
        x @ w
    assert counter.get_total_flops() == RIGHT["operations"]

    logits = torch.zeros(4, requires_grad=True)
    torch.nn.functional.cross_entropy(logits[None], torch.tensor([2])).backward()
    assert float(logits.grad[2]) == pytest.approx(RIGHT["gradient"])

    weight = torch.tensor(2.0, requires_grad=True)
    ((weight * 3 - 5) ** 2).backward()
    assert float(weight.grad) == RIGHT["chain"]

    coin, model = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    kl = torch.nn.functional.kl_div(model.log(), coin, reduction="sum")
    assert float(kl) == pytest.approx(RIGHT["excess"], rel=1e-6)

    draws = torch.randn(20_000, 400).mul_(torch.randn(20_000, 400)).sum(1)
    assert float(draws.std()) == pytest.approx(RIGHT["spread"], rel=0.03)


def test_the_rate_is_where_descent_stops_converging() -> None:
    def last(rate: float) -> float:
        w = np.array([1.0, 1.0])
        for _ in range(5000):
            w = w - rate * np.array([1.0, 100.0]) * w
        return float(np.abs(w).max())

    assert last(RIGHT["rate"] * 0.99) < 1e-6
    assert last(RIGHT["rate"] * 1.01) > 1e6


def test_every_section_named_is_in_the_chapter_under_its_anchor() -> None:
    for question in QUESTIONS:
        assert f"({question.place.anchor})=\n## {question.place.section}\n" in CHAPTER


def test_the_labs_own_answers_are_all_right_and_every_question_is_asked() -> None:
    notebook = (ROOT / "labs" / "transformers" / "basics.ipynb").read_text(encoding="utf-8")
    import nbformat

    cells = nbformat.reads(notebook, as_version=4).cells
    answers: dict[str, Any] = {}
    for cell in cells:
        called = re.search(r'test\.answer\("([^"]+)", answer\)', cell.source)
        if cell.cell_type == "code" and called:
            assigned = next(node for node in ast.parse(cell.source).body if isinstance(node, ast.Assign))
            answers[called[1]] = eval(ast.unparse(assigned.value), {"math": math})
    assert list(answers) == [question.name for question in QUESTIONS]
    assert all(one.outcome == "right" for one in mark(QUESTIONS, answers))
