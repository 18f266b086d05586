"""The helpers that methods are judged by: equal passes, and every way of being unequal raises Differs."""

from __future__ import annotations

import pytest
import torch
from equality import (
    Differs,
    Found,
    alone,
    assert_same_found,
    assert_same_weights,
    make_batch,
    make_model,
    trained_alone,
)

from scalelab.models.loss import IGNORE_INDEX


def test_one_process_equals_itself_and_trains() -> None:
    batch = make_batch()
    found = alone(make_model(), batch)
    assert_same_found(found, alone(make_model(), batch), 0.0)
    weights = trained_alone(make_model(double=True), [batch])
    assert_same_weights(weights, trained_alone(make_model(double=True), [batch]))
    with pytest.raises(Differs):
        assert_same_weights(weights, trained_alone(make_model(double=True), [batch] * 2))


@pytest.mark.parametrize("n_rows", [4, 7, 8, 9])
def test_rows_have_unequal_numbers_of_targets_and_no_row_none(n_rows: int) -> None:
    counts = (make_batch(n_rows).targets != IGNORE_INDEX).sum(-1)
    assert (counts >= 1).all()
    assert (counts.diff() != 0).all()
    for n in (2, 3, 4):
        parts = make_batch(n_rows).cut(n)
        assert len({part.n_targets for part in parts}) > 1
        assert sum(part.n_targets for part in parts) == make_batch(n_rows).n_targets


def test_what_differs_is_told() -> None:
    expected = alone(make_model(), make_batch())
    name = next(iter(expected.gradients))
    changed = dict(expected.gradients)
    for gradients, says in (
        ({k: v for k, v in changed.items() if k != name}, "missing"),
        (changed | {"more": torch.zeros(1)}, "too many"),
        (changed | {name: changed[name].T}, "shape"),
        (changed | {name: changed[name] * (1 + 1e-5)}, "off by 1.00e-05"),
        (changed | {name: changed[name] * torch.nan}, "off by nan"),
    ):
        with pytest.raises(Differs, match=says):
            assert_same_found(Found(expected.loss, gradients), expected)
    with pytest.raises(Differs, match="loss"):
        assert_same_found(Found(expected.loss * 1.001, changed), expected)
    with pytest.raises(Differs, match="loss"):
        assert_same_found(Found(float("nan"), changed), expected)
