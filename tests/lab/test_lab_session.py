"""A lab always goes on, tells the truth about what was tried, and keeps it on the reader's machine."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import scalelab.lab
from scalelab.core.errors import LabError
from scalelab.lab.checks import exercises, lab_names
from scalelab.lab.predictions import Prediction, compare, make_prediction, show

NAME = "transformers/training"
EXERCISES = exercises(NAME)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("SCALELAB_STRICT", "SCALELAB_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("SCALELAB_TIER", "cpu")
    monkeypatch.setenv("SCALELAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def lab(capsys: pytest.CaptureFixture[str]) -> scalelab.lab.Lab:
    lab = scalelab.lab.start(NAME, seed=1)
    capsys.readouterr()
    return lab


def wrong(name: str, number: int = 0) -> Any:
    return EXERCISES[name].build(**EXERCISES[name].mistakes[number].faults)


def test_start_says_in_two_lines_what_it_chose(capsys: pytest.CaptureFixture[str]) -> None:
    lab = scalelab.lab.start(NAME, seed=5)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert f"{NAME}: cpu tier" in lines[0]
    assert "seed 5" in lines[0]
    assert f"torch {torch.__version__}" in lines[1]
    assert (lab.tier, lab.device.type, lab.seed) == ("cpu", "cpu", 5)


def test_start_seeds_every_generator() -> None:
    draws = []
    for _ in range(2):
        scalelab.lab.start(NAME, seed=9)
        draws.append((random.random(), float(np.random.rand()), float(torch.rand(1))))
    assert draws[0] == draws[1]


@pytest.mark.parametrize("tier", ["tpu", "gpus", "1"])
def test_an_unknown_tier_is_refused(monkeypatch: pytest.MonkeyPatch, tier: str) -> None:
    monkeypatch.setenv("SCALELAB_TIER", tier)
    with pytest.raises(LabError, match=f"cpu or gpu, got '{tier}'"):
        scalelab.lab.start(NAME)


def test_the_gpu_tier_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALELAB_TIER", "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LabError, match="no CUDA device"):
        scalelab.lab.start(NAME)


def test_the_tier_follows_the_machine_and_chooses_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    from scalelab.lab.environment import choose_tier

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_tier({}) == "gpu"
    assert choose_tier({"SCALELAB_TIER": "cpu"}) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_tier({}) == "cpu"
    assert scalelab.lab.start(NAME).budget(cpu=10, gpu=20) == 10


@pytest.mark.parametrize("threads", ["0", "-1", "two", "1.5", "²"])
def test_impossible_thread_counts_are_refused(monkeypatch: pytest.MonkeyPatch, threads: str) -> None:
    monkeypatch.setenv("SCALELAB_THREADS", threads)
    with pytest.raises(LabError, match="SCALELAB_THREADS"):
        scalelab.lab.start(NAME)


@pytest.mark.parametrize("seed", [-1, 1.5, "0", None, True, 2**32])
def test_impossible_seeds_are_refused(seed: Any) -> None:
    with pytest.raises(LabError, match="seed must be"):
        scalelab.lab.start(NAME, seed=seed)


def test_unknown_labs_and_exercises_are_refused_with_what_there_is(lab: scalelab.lab.Lab) -> None:
    with pytest.raises(LabError, match="did you mean 'transformers/training'"):
        scalelab.lab.start("transformers/trainings")
    with pytest.raises(LabError, match="next_token_loss, adamw_step"):
        lab.check.gradient_clipping(lambda: 0)
    with pytest.raises(LabError, match="did you mean 'step_bill'"):
        lab.hidden_test("step_bil")
    assert NAME in lab_names()
    assert set(EXERCISES) <= set(dir(lab.check))


def test_a_right_answer_comes_back_as_it_was(
    lab: scalelab.lab.Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, exercise in EXERCISES.items():
        answer = exercise.build()
        assert getattr(lab.check, name)(answer) is answer
        assert capsys.readouterr().out.startswith(f"✓ {name} is right")


def test_a_wrong_answer_is_explained_and_replaced_by_the_reference(
    lab: scalelab.lab.Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, exercise in EXERCISES.items():
        assert getattr(lab.check, name)(wrong(name)) is exercise.reference
        out = capsys.readouterr().out
        assert out.startswith(f"✗ {name}: {exercise.mistakes[0].name}.")
        assert "The lab goes on" in out


def test_hints_come_one_a_try_and_the_last_stays(
    lab: scalelab.lab.Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    hints = EXERCISES["adamw_step"].hints
    for number, mistake in ((0, 0), (1, 1), (2, 2), (2, 3)):
        lab.check.adamw_step(wrong("adamw_step", mistake))
        assert f"Hint {number + 1} of 3: {hints[number]}" in capsys.readouterr().out


def run_cell(source: str) -> Any:
    names: dict[str, Any] = {}
    exec(source, names)
    return names["learning_rate"]


def test_a_cell_run_again_unchanged_and_one_that_raises_use_up_no_hint(
    lab: scalelab.lab.Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = "def learning_rate(step, *, peak, **settings):\n    return {}\n"
    for value, hint in (
        ("undefined_name", None),
        ("peak * 1", "Hint 1 of 3"),
        ("peak * 1", "Hint 1 of 3"),
        ("peak / undefined_name", None),
        ("peak * 1", "Hint 1 of 3"),
        ("peak * 1.0", "Hint 2 of 3"),
        ("[peak * s for s in (2,)][0]", "Hint 3 of 3"),
    ):
        lab.check.learning_rate(run_cell(cell.format(value)))
        out = capsys.readouterr().out
        assert out.startswith("✗ ")
        assert hint in out if hint else "Hint" not in out
    lab.report()
    assert "learning_rate         ✗ 6 tries" in capsys.readouterr().out


def test_running_the_check_again_alone_never_passes_the_reference_as_an_answer(
    lab: scalelab.lab.Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = lab.check.learning_rate(wrong("learning_rate"))
    answer = lab.check.learning_rate(answer)  # the cell once more: the name now holds the reference
    out = capsys.readouterr().out
    assert out.count("zero rate at step 0") == 2
    assert out.count("Hint 1 of 3") == 2
    assert "✓" not in out
    lab.report()
    assert "learning_rate         ✗ 1 try" in capsys.readouterr().out
    with pytest.raises(LabError, match="hand in a function of your own"):
        lab.check.step_bill(EXERCISES["step_bill"].reference)


def test_strict_mode_raises_the_same_message(
    lab: scalelab.lab.Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.check.step_bill(wrong("step_bill"))
    printed = capsys.readouterr().out
    monkeypatch.setenv("SCALELAB_STRICT", "1")
    strict = scalelab.lab.start(NAME, seed=1)
    with pytest.raises(LabError) as error:
        strict.check.step_bill(wrong("step_bill"))
    assert printed.startswith(str(error.value))
    answer = EXERCISES["step_bill"].build()
    assert strict.check.step_bill(answer) is answer


def test_a_hidden_test_tries_what_was_handed_in_and_not_what_came_back(lab: scalelab.lab.Lab) -> None:
    with pytest.raises(LabError, match="nothing was handed in"):
        lab.hidden_test("step_bill")
    step_bill = lab.check.step_bill(wrong("step_bill"))
    for arguments in ((), (step_bill,)):
        with pytest.raises(LabError, match="hidden test: step_bill: forward only"):
            lab.hidden_test("step_bill", *arguments)
    lab.check.step_bill(EXERCISES["step_bill"].build())
    lab.hidden_test("step_bill", seed=4)


def test_a_hidden_test_catches_an_answer_fitted_to_the_visible_cases(lab: scalelab.lab.Lab) -> None:
    exercise = EXERCISES["step_bill"]
    seen = {case.make()[0]: exercise.reference(*case.make()[0]) for case in exercise.cases(lab.seed)}

    def by_heart(n_layers: int, d_model: int, d_ff: int, vocab: int, seq_len: int, batch: int) -> Any:
        return seen.get((n_layers, d_model, d_ff, vocab, seq_len, batch), (1, 1))

    assert lab.check.step_bill(by_heart) is by_heart
    with pytest.raises(LabError, match="hidden test"):
        lab.hidden_test("step_bill")


@pytest.mark.parametrize(
    ("guess", "measured", "said"),
    [
        (2.5, 1.9, "32 % high"),
        (1.9, 2.5, "24 % low"),
        (10, 2.5, "4.0 times too high"),
        (1, 30, "30.0 times too low"),
        (3, 3, "right"),
        (1000, 1001, "right within 0.5 %"),
        (-1, 2, "off by -3"),
        (0, 2, "off by -2"),
        ("bf16", "bf16", "right"),
        ("bf16", "fp32", "not so"),
        ("Yes", "yes", "right"),
        ("warmup and clipping", "warm-up and  Clipping ", "right"),
        ("lr 1e-3", "lr 1e3", "not so"),
        (0.003, "3e-3", "right"),
        (0.3, "3e-3", "not so"),
        (1, "yes", "not so"),
    ],
)
def test_a_guess_is_compared_in_words(guess: Any, measured: Any, said: str) -> None:
    assert compare(Prediction(guess=guess), measured) == said


@pytest.mark.parametrize(
    ("guess", "unit", "measured", "said"),
    [
        (True, "", "yes", "right"),
        (False, "", "yes", "not so"),
        (np.bool_(False), "", "No", "right"),
        ("0", "", 0.0, "right"),
        ("7 nats", "nats", 7.0, "right"),
        (" 1,500 Nats", "nats", 1000, "50 % high"),
        ("1e-3", "", "0.001", "right"),
        ("-1", "", "1", "not so"),
        ("7 bits", "nats", 7.0, "not so"),
        ("1e999", "", 7.0, "not so"),
        ("about 7", "nats", 7.0, "not so"),
    ],
)
def test_a_guess_may_be_a_truth_value_or_a_number_in_a_text(
    guess: Any, unit: str, measured: Any, said: str
) -> None:
    prediction = make_prediction("loss", guess, unit, None, None)
    assert prediction is not None
    assert compare(prediction, measured) == said


def test_an_interval_is_scored() -> None:
    bet = Prediction(guess=2.5, low=2, high=3)
    assert compare(bet, 2.0) == "25 % high, inside your interval 2 to 3"
    assert compare(bet, 1.9) == "32 % high, outside your interval 2 to 3"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (2.5, "nats", "2.5 nats"),
        (1234567, "tokens", "1,230,000 tokens"),
        (1.5e12, "FLOPs", "1.50e12 FLOPs"),
        (812 * 2**20, "bytes", "812 MiB"),
        (95, "s", "1 min 35 s"),
        (0.00012345, "", "0.000123"),
        (40, "s", "40 s"),
        ("bf16", "", "bf16"),
    ],
)
def test_values_are_shown_in_three_figures_with_their_unit(value: Any, unit: str, text: str) -> None:
    assert show(value, unit) == text


def test_predicting_and_measuring_says_how_far_off_one_was(
    lab: scalelab.lab.Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.predict("loss", 2.5, "bits", low=..., high=None)
    lab.predict("seconds", ..., "s")
    lab.predict("memory", None)
    lab.measured("loss", torch.tensor(1.9))
    lab.measured("seconds", 12, "s")
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "loss: you say 2.5 bits."
    assert out[1].startswith("seconds: no guess yet")
    assert out[2].startswith("memory: no guess yet")
    assert out[3] == "loss: you said 2.5 bits, measured 1.9 bits: 32 % high."
    assert out[4] == "seconds: measured 12 s (you made no guess)."


def test_a_guess_after_the_measurement_is_not_kept(
    lab: scalelab.lab.Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.predict("loss", 2.5)
    lab.measured("loss", 1.9)
    lab.predict("loss", 1.9)
    lab.report()
    out = capsys.readouterr().out
    assert "measured already" in out
    assert "32 % high" in out.split("Predictions")[1]


@pytest.mark.parametrize(
    "guess",
    [float("nan"), float("inf"), [1, 2], {"a": 1}, torch.zeros(2), np.array([1, 2]), np.array([]), 10**400],
)
def test_guesses_that_are_no_numbers_are_refused(lab: scalelab.lab.Lab, guess: Any) -> None:
    with pytest.raises(LabError, match="must be a finite number"):
        lab.predict("loss", guess)
    with pytest.raises(LabError, match="must be a finite number"):
        lab.measured("loss", guess)


@pytest.mark.parametrize(("low", "high"), [(3, 4), (1, 2), (3, 1), (2, None), (..., 3), ("a", 3)])
def test_an_interval_must_be_whole_and_hold_the_guess(lab: scalelab.lab.Lab, low: Any, high: Any) -> None:
    with pytest.raises(LabError, match="interval"):
        lab.predict("loss", 2.5, low=low, high=high)


def test_the_report_tells_what_happened_and_is_kept_and_exported(
    lab: scalelab.lab.Lab, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lab.predict("loss", 2.5, "bits")
    lab.check.adamw_step(wrong("adamw_step", 0))
    lab.check.adamw_step(wrong("adamw_step", 3))
    lab.check.adamw_step(EXERCISES["adamw_step"].build())
    lab.check.adamw_step(wrong("adamw_step", 4))  # playing on does not take a pass away
    lab.check.step_bill(EXERCISES["step_bill"].build())
    lab.check.learning_rate(wrong("learning_rate"))
    lab.measured("loss", 1.9)
    capsys.readouterr()
    lab.report(export=tmp_path / "for_teacher" / "report.json")
    out = capsys.readouterr().out
    assert "2.5 bits  1.9 bits  32 % high" in out
    assert "✓ at try 3 (met: L2 in the gradient; no bias correction; eps inside the square root)" in out
    assert "✓ at the first try" in out
    assert "✗ 1 try (met: zero rate at step 0)" in out
    assert "– not written" in out
    assert "2 of 5 exercises done." in out
    assert str(tmp_path) not in out, "no path of this machine, or it would stand in the published lab"
    exported = json.loads((tmp_path / "for_teacher" / "report.json").read_text(encoding="utf-8"))
    kept = json.loads((tmp_path / "cache/reports/transformers-training.json").read_text(encoding="utf-8"))
    assert exported == kept
    adamw = next(e for e in exported["exercises"] if e["name"] == "adamw_step")
    assert (adamw["passed_at_try"], adamw["tries"]) == (3, 4)
    assert exported["predictions"][0]["prediction"]["guess"] == 2.5


def test_a_report_needs_no_writable_cache_and_says_when_it_cannot_export(
    lab: scalelab.lab.Lab,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocker = tmp_path / "a file"
    blocker.write_text("")
    monkeypatch.setenv("SCALELAB_CACHE", str(blocker))
    lab.report()
    assert "Not kept" in capsys.readouterr().out
    for target in (blocker / "report.json", tmp_path):
        with pytest.raises(LabError, match="cannot export"):
            lab.report(export=target)
