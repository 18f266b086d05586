"""The small tasks and texts of `capability`, and what its record must hold."""

from __future__ import annotations

import numpy as np
import pytest

from scalelab.core.errors import ConfigError
from scalelab.lab.scaling_laws import small_tasks, small_text
from scalelab.lab.scaling_laws.recorded_capability import DESIGN, recorded, table
from scalelab.laws import fit_floor_line

NOT_ASKED = small_tasks.NOT_ASKED


def test_what_is_asked_is_the_next_token_and_can_be_told_from_the_row() -> None:
    rng = np.random.default_rng(0)
    names, values = small_tasks.fact_table()
    known = {tuple(name): value for name, value in zip(names.tolist(), values.tolist(), strict=True)}
    for task in small_tasks.TASKS:
        tokens, targets = small_tasks.draw_rows(task, 50, rng)
        assert tokens.shape == targets.shape == (50, small_tasks.ROW)
        for row, want in zip(tokens.tolist(), targets.tolist(), strict=True):
            places = [t for t, target in enumerate(want) if target != NOT_ASKED]
            answer = [want[t] for t in places]
            assert [row[t + 1] for t in places if t + 1 < len(row)] == answer[: len(row) - 1 - places[0]][
                : sum(t + 1 < len(row) for t in places)
            ]
            if task == "sorting":
                assert answer == sorted(row[1:8])
            elif task == "recall":
                pairs = dict(zip(row[1:9:2], row[2:9:2], strict=True))
                assert answer == [pairs[row[t]] for t in places]
            else:
                assert answer == [known[row[t - 1], row[t]] for t in places]


def test_perfect_and_hopeless_answers_score_as_they_should() -> None:
    right = np.array([[1, 2], [0, 1]])
    sure = np.log(np.where(np.arange(3) == right[..., None], 1 - 2e-12, 1e-12))
    best = small_tasks.score(sure, right)
    assert (best.token_accuracy, best.exact) == (1, 1)
    assert best.nats == pytest.approx(0, abs=1e-9)
    assert best.brier == pytest.approx(0, abs=1e-9)
    half = np.where(np.array([[[True], [False]], [[True], [True]]]), sure, np.roll(sure, 1, axis=2))
    score = small_tasks.score(half, right)
    assert (score.token_accuracy, score.exact) == (0.75, 0.5)


def test_a_run_repeats_and_a_record_of_it_reads_back() -> None:
    first, _ = small_tasks.train_on_tasks(8, 4, seed=3, n_marks=2)
    again, _ = small_tasks.train_on_tasks(8, 4, seed=3, n_marks=2)
    other, _ = small_tasks.train_on_tasks(8, 4, seed=4)
    assert first.scores == again.scores != other.scores
    assert [row[0] for row in first.curve] == [2 * 63 * 16, 4 * 63 * 16]
    assert small_tasks.task_run(first.as_dict()) == first


def test_equal_flops_are_equal_to_a_step() -> None:
    for width in DESIGN.widths:
        steps = small_tasks.steps_for(DESIGN.flops, width)
        spent = 6 * small_tasks.n_params_of(width) * steps * 63 * 16
        assert spent == pytest.approx(DESIGN.flops, rel=0.5 / steps + 1e-9)


def test_leaks_and_respelled_copies_are_what_they_say() -> None:
    leaked, clean = small_text.split_held_out(8, 16)
    assert (len(leaked), len(clean)) == (8, 16)
    text = small_text.leak(small_text.draw_documents(100, 0), leaked, 3)
    assert len(text) == 100
    assert sum((row == leaked[0]).all() for row in text) == 3
    told = small_text.respelled(leaked, 8, np.random.default_rng(0))
    changed = (told != leaked).any(axis=0)
    assert changed.sum() == 4
    assert changed[7::8].all()
    with pytest.raises(ConfigError, match="do not fit"):
        small_text.leak(leaked, leaked, 2)


def test_every_document_is_read_once_before_any_is_read_again() -> None:
    documents = np.arange(24 * 33).reshape(24, 33) % 128
    marked = documents.copy()
    marked[:, 0] = np.arange(24)
    batches = small_text._batches(marked, 6, np.random.default_rng(0))
    order = np.concatenate([batch[:, 0] for batch in batches])
    assert sorted(order[:24]) == sorted(order[24:48]) == list(range(24))


def test_a_model_reads_a_short_text_by_heart() -> None:
    text, (_, clean) = small_text.draw_documents(16, 0), small_text.split_held_out(8, 64)
    run, _ = small_text.train_on_documents(
        16, text, 60, seed=0, judged={"train": text, "held_out": clean}, n_marks=3
    )
    assert len(run.curve) == 3
    assert run.losses["held_out"] - run.losses["train"] > 0.5
    assert run.n_tokens == 60 * 16 * 32


@pytest.mark.parametrize("arm", ["sizes", "compute", "seeds", "repeats", "leaks", "times"])
def test_the_record_holds_every_run_of_the_design_once(arm: str) -> None:
    cells, rows = DESIGN.cells(arm), recorded(arm)
    assert len(rows) == len(cells)
    for cell in cells:
        assert sum(all(row[key] == value for key, value in cell.items()) for row in rows) == 1
    for row in rows:
        if arm in ("compute", "seeds"):
            steps = small_tasks.steps_for(DESIGN.flops, row["width"])
            assert row["n_tokens"] == steps * 63 * small_tasks.ROW
        elif arm == "sizes":
            assert row["n_tokens"] == DESIGN.sorting_steps * DESIGN.sorting_rows * small_tasks.ROW
        else:
            steps = DESIGN.repeat_steps if arm == "repeats" else DESIGN.leak_steps
            assert row["n_tokens"] == steps * small_text.BATCH * small_text.ASKED


def test_the_record_shows_a_jump_in_one_metric_and_none_in_the_loss() -> None:
    rows = recorded("sizes")
    token, exact, nats = (
        table(rows, "sorting", name).mean(axis=1) for name in ("token_accuracy", "exact", "nats")
    )
    assert (np.diff(nats) < 0).all()
    assert exact[0] < 0.005 < 0.2 < token[0]
    assert np.abs(exact - token**7).max() < 0.1


def test_the_record_holds_seeds_that_learn_recall_and_seeds_that_do_not_and_none_between() -> None:
    right = np.array([row["scores"]["recall"]["token_accuracy"] for row in recorded("seeds")])
    assert ((right < 0.4) | (right > 0.95)).all()
    assert 0 < (right > 0.95).sum() < len(right) / 2


def test_the_record_shows_that_text_decides_over_fitting() -> None:
    end = {}
    for row in recorded("repeats"):
        marks = np.array(row["curve"]) - [0, row["exact"]["train"], row["exact"]["held_out"]]
        end.setdefault((row["width"], row["documents"]), []).append(
            [marks[-1, 2] - marks[-1, 1], marks[-1, 2], marks[:, 2].min()]
        )
    mean = {key: np.mean(rows, axis=0) for key, rows in end.items()}
    small, large = DESIGN.repeat_widths[0], DESIGN.repeat_widths[-1]
    for width in DESIGN.repeat_widths:
        assert (np.diff([mean[width, u][0] for u in DESIGN.lengths]) < 0).all()
    assert mean[large, DESIGN.lengths[0]][1] > mean[small, DESIGN.lengths[0]][1] + 1
    assert mean[large, DESIGN.lengths[-1]][1] < mean[small, DESIGN.lengths[-1]][1]
    assert all(mean[large, u][2] < mean[small, u][2] for u in DESIGN.lengths), "stopped in time"


def test_the_record_shows_a_leak_that_bends_the_law_below_the_language() -> None:
    rows = recorded("leaks")
    size, exact = table(rows, None, "n_params").mean(axis=1), rows[0]["exact"]
    excess = {
        name: table(rows, None, f"losses/{name}").mean(axis=1) - exact[name] for name in ("clean", "leaked")
    }
    assert (np.diff(excess["clean"] - excess["leaked"]) > 0).all()
    assert excess["leaked"][-1] < 0 < excess["clean"][-1]
    law = fit_floor_line(size, excess["leaked"] + exact["clean"])
    assert float(law(10 * size[-1])) < exact["clean"]
