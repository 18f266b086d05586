"""Batches: every window once an epoch, in the same order whatever interrupts it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from scalelab.core.errors import ConfigError, DataError, ScalelabError
from scalelab.data import Batches, held_out_windows

TOKENS = np.arange(1_000, dtype=np.uint16)  # each id is its own position, so a batch shows where it is from


def batches(**settings) -> Batches:
    return Batches(TOKENS, **{"batch_size": 4, "seq_len": 16, "seed": 0, **settings})


def test_targets_are_the_tokens_after_the_inputs() -> None:
    inputs, targets = batches().next()
    assert inputs.shape == targets.shape == (4, 16)
    assert inputs.dtype == targets.dtype == np.int64
    np.testing.assert_array_equal(targets, inputs + 1)
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])


@pytest.mark.parametrize(("batch_size", "seq_len"), [(1, 1), (3, 16), (7, 33), (200, 16), (1, 999)])
def test_each_window_comes_exactly_once_an_epoch(batch_size: int, seq_len: int) -> None:
    made = batches(batch_size=batch_size, seq_len=seq_len)
    n_windows = 999 // seq_len
    assert made.n_tokens_unique == n_windows * seq_len
    drawn: list[int] = []
    while len(drawn) < 3 * n_windows:
        drawn += made.next()[0][:, 0].tolist()
    for epoch in range(3):
        starts = sorted(drawn[epoch * n_windows : (epoch + 1) * n_windows])
        assert starts == [i * seq_len for i in range(n_windows)]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order(made: Batches) -> list[int]:
        return [int(made.next()[0][0, 0]) for _ in range(made.n_windows)]

    one = batches(batch_size=1)
    first, second = order(one), order(one)
    assert first != second
    assert first != sorted(first)
    assert first != order(batches(batch_size=1, seed=1))
    assert first == order(batches(batch_size=1))


def test_resumed_batches_equal_uninterrupted_ones_from_any_point() -> None:
    straight = batches(batch_size=7)
    expected = [straight.next() for _ in range(40)]
    for stop in (0, 1, 8, 9, 17, 39):
        first = batches(batch_size=7)
        for _ in range(stop):
            first.next()
        state = json.loads(json.dumps(first.state()))
        second = batches(batch_size=7)
        second.next()
        second.restore(state)
        for inputs, targets in expected[stop:]:
            got = second.next()
            np.testing.assert_array_equal(got[0], inputs)
            np.testing.assert_array_equal(got[1], targets)


def test_order_of_windows_does_not_depend_on_the_batch_size() -> None:
    by_one = batches(batch_size=1)
    singles = np.concatenate([by_one.next()[0] for _ in range(60)])
    by_six = batches(batch_size=6)
    np.testing.assert_array_equal(np.concatenate([by_six.next()[0] for _ in range(10)]), singles)


@pytest.mark.parametrize("change", [
    {"seed": 1}, {"seq_len": 8}, {"position": -1}, {"position": 1.5}, {"position": True}, {"position": None},
    {"tokens_sha256": "0"},
])  # fmt: skip
def test_state_of_another_run_is_refused_and_changes_nothing(change: dict) -> None:
    made = batches()
    made.next()
    before = made.state()
    with pytest.raises(DataError, match=next(iter(change))):
        made.restore({**before, **change})
    assert made.state() == before


@pytest.mark.parametrize("state", [{}, None, [], {"position": 3}])
def test_what_is_no_state_is_refused(state) -> None:
    with pytest.raises(DataError):
        batches().restore(state)


@pytest.mark.parametrize("settings", [
    {"batch_size": 0}, {"batch_size": 2.0}, {"seq_len": 0}, {"seq_len": "16"}, {"seed": -1},
    {"seq_len": float("nan")}, {"seq_len": 1_000},
])  # fmt: skip
def test_impossible_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ScalelabError):
        batches(**settings)


@pytest.mark.parametrize("tokens", [np.zeros(0, int), np.zeros(10), np.zeros((10, 10), int)])
def test_what_is_no_token_stream_is_refused(tokens) -> None:
    with pytest.raises(DataError):
        Batches(tokens, batch_size=1, seq_len=4, seed=0)


@pytest.mark.parametrize("seq_len", [1, 7, 16, 999])
@pytest.mark.parametrize("max_tokens", [None, 1, 100, 10**6])
def test_every_held_out_token_is_predicted_at_most_once(seq_len: int, max_tokens: int | None) -> None:
    inputs, targets = held_out_windows(TOKENS, seq_len, max_tokens)
    np.testing.assert_array_equal(targets, inputs + 1)
    assert len(np.unique(targets)) == targets.size
    if max_tokens is None:
        assert targets.size == 999 // seq_len * seq_len
    else:
        assert targets.size <= max(max_tokens, seq_len)


def test_a_bounded_evaluation_spreads_over_the_whole_stream() -> None:
    inputs, _ = held_out_windows(TOKENS, 10, max_tokens=100)
    gaps = np.diff(inputs[:, 0])
    assert len(inputs) == 10
    assert inputs[0, 0] == 0
    assert inputs[-1, 0] > 850
    assert gaps.max() - gaps.min() <= 10


def test_held_out_text_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(DataError, match="too few"):
        held_out_windows(TOKENS[:16], 16)
    with pytest.raises(ConfigError, match="max_tokens"):
        held_out_windows(TOKENS, 16, 0)
