from __future__ import annotations

import pytest
import torch

from scalelab.core.errors import CheckpointError, ConfigError
from scalelab.core.seeding import RandomStream, derive_seed, deterministic_kernels

CPU = torch.device("cpu")


def test_seeds_differ_by_seed_and_by_name_and_repeat() -> None:
    seeds = {derive_seed(seed, name) for seed in range(50) for name in ("weights", "dropout", "data")}
    assert len(seeds) == 150
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(3, "weights") == derive_seed(3, "weights")
    assert derive_seed(1, "a", 0) != derive_seed(1, "a", 1)


def test_a_seed_that_is_no_whole_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="seed must be"):
        derive_seed(-1, "weights")


def test_a_stream_draws_what_a_seeded_generator_draws_over_any_number_of_blocks() -> None:
    expected = torch.rand(6, generator=torch.Generator().manual_seed(5))
    stream = RandomStream(5, CPU)
    drawn = []
    for _ in range(3):
        torch.rand(11)  # others draw between the blocks
        with stream:
            drawn.append(torch.rand(2))
    assert torch.equal(torch.cat(drawn), expected)


def test_the_callers_stream_goes_on_as_if_nothing_had_been_drawn() -> None:
    torch.manual_seed(2)
    expected = torch.rand(4)
    torch.manual_seed(2)
    first = torch.rand(2)
    with RandomStream(5, CPU):
        torch.rand(100)
    assert torch.equal(torch.cat([first, torch.rand(2)]), expected)


def test_a_stream_goes_on_from_a_stored_state() -> None:
    stream = RandomStream(5, CPU)
    with stream:
        torch.rand(3)
    state = stream.state()
    with stream:
        expected = torch.rand(4)
    other = RandomStream(99, CPU)
    other.restore(state)
    with other:
        assert torch.equal(torch.rand(4), expected)


def test_a_state_of_another_kind_of_device_is_refused() -> None:
    with pytest.raises(CheckpointError, match="of cpu, cuda, this device needs cpu"):
        RandomStream(0, CPU).restore({"cpu": torch.zeros(1), "cuda": torch.zeros(1)})


def test_asking_for_deterministic_kernels_changes_nothing_on_a_cpu() -> None:
    with deterministic_kernels(CPU):
        assert not torch.are_deterministic_algorithms_enabled()
