"""One process keeps the contract that several share, and random states of several are told apart."""

from __future__ import annotations

import pytest
import torch

from scalelab.core.errors import DataError
from scalelab.train import SingleProcess
from scalelab.train.state import random_states, random_tensors
from scalelab.train.strategy import rank_0_first


def test_one_process_decides_alone() -> None:
    alone = SingleProcess("cpu")
    assert alone.agree(True, False) == (True, False)
    assert alone.decide(lambda: 7) == 7
    assert alone.gather("x") == ["x"]
    assert (alone.n_shares, alone.n_parts, alone.layout) == (1, 1, "")
    with pytest.raises(DataError, match="no text"):
        alone.decide(fails)


def fails() -> None:
    raise DataError("no text")


def test_what_rank_0_does_first_is_done_once_in_one_process() -> None:
    done: list[int] = []
    assert rank_0_first(SingleProcess("cpu"), lambda: done.append(1) or 3) == 3
    assert done == [1]


def test_random_states_of_any_number_of_processes_come_back_in_order() -> None:
    states = [{"cpu": torch.tensor([rank]), "cuda": torch.tensor([-rank])} for rank in range(12)]
    named = random_tensors(states)
    assert {"cpu", "cuda", "cpu@1", "cuda@11"} <= named.keys()
    assert random_states(named) == states
    assert random_states(random_tensors(states[:1])) == states[:1]
    assert random_states({"cpu@x": torch.tensor([0])})[0].keys() == {"cpu@x"}
