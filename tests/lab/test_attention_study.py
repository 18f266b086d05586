"""The task that only positions solve: its bounds, its models, and what the study recorded of them."""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
import itertools
import math
import statistics
from collections.abc import Callable, Hashable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from scalelab.core.errors import ConfigError, LabError
from scalelab.lab.records import study_folder, study_json
from scalelab.lab.transformers.attention_map import attention_map, visible
from scalelab.lab.transformers.copying import (
    Copier,
    CopierConfig,
    best_accuracy,
    distance_penalty,
    draw_shuffles,
    sinusoids,
    train_copier,
    turn,
)
from scalelab.models.loss import IGNORE_INDEX

STUDY = "transformers/attention"
PROGRAM = Path(__file__).resolve().parents[2] / "studies" / "transformers" / "attention.py"


def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("attention_study", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def accuracies(**wanted: Any) -> list[float]:
    wanted = {"is_scaled": True, "is_causal": False, "n_layers": 2, **wanted}
    rows = study_json(STUDY, "copying")["runs"]
    return [row["accuracy"] for row in rows if all(row[key] == value for key, value in wanted.items())]


def losses(init_std: float | None, is_scaled: bool) -> list[float]:
    rows = study_json(STUDY, "scaling")["runs"]
    return [r["loss_nats"] for r in rows if (r["init_std"], r["is_scaled"]) == (init_std, is_scaled)]


# What can be known at best, against counting through all sequences.


def by_enumeration(n: int, known: Callable[[tuple[int, ...], int], Hashable]) -> float:
    """The best share of right answers for one who sees only `known(sequence, place)`."""
    counts: dict[Hashable, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for sequence in itertools.permutations(range(n)):
        for place in range(1, n):
            counts[known(sequence, place)][sequence[place - 1]] += 1
    return sum(max(seen.values()) for seen in counts.values()) / (math.factorial(n) * (n - 1))


def seen_both_ways(sequence: tuple[int, ...], place: int) -> Hashable:
    """A sequence and a place in it, or the same read backwards: whichever comes first."""
    return min((sequence, place), (sequence[::-1], len(sequence) - 1 - place))


@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_bounds_are_those_of_counting_through_all_sequences(n: int) -> None:
    blind = CopierConfig(positions="none", n_symbols=n)
    assert best_accuracy(blind) == pytest.approx(by_enumeration(n, lambda s, t: s[t]))
    one_causal = CopierConfig(positions="none", is_causal=True, n_layers=1, n_symbols=n)
    so_far = by_enumeration(n, lambda s, t: (s[t], frozenset(s[: t + 1])))
    assert best_accuracy(one_causal) == pytest.approx(so_far)
    mirrored = CopierConfig(positions="alibi", n_symbols=n)
    # At a mirror image of the first place nothing is asked, so it is left out of the count as the task does.
    assert best_accuracy(mirrored) == pytest.approx(by_enumeration(n, seen_both_ways))
    assert best_accuracy(CopierConfig(positions="rope", n_symbols=n)) == 1


# The models know no more than their bounds say.


def outputs(config: CopierConfig, symbols: torch.Tensor) -> torch.Tensor:
    model = Copier(config, seed=3).double()
    with torch.no_grad():
        return model(symbols)


@pytest.fixture
def symbols() -> torch.Tensor:
    return draw_shuffles(6, 16, torch.Generator().manual_seed(5))[0]


def test_unmasked_without_positions_shuffles_with_its_input_and_a_mask_or_positions_do_not(
    symbols: torch.Tensor,
) -> None:
    order = torch.randperm(16, generator=torch.Generator().manual_seed(7))

    def change(config: CopierConfig) -> float:
        return float((outputs(config, symbols[:, order]) - outputs(config, symbols)[:, order]).abs().max())

    assert change(CopierConfig(positions="none")) < 1e-13
    assert change(CopierConfig(positions="none", is_causal=True)) > 0.1
    for positions in ("sinusoidal", "learned", "rope", "alibi"):
        assert change(CopierConfig(positions=positions)) > 0.1


def test_one_causal_layer_sees_the_set_and_two_the_order_of_what_came_before(symbols: torch.Tensor) -> None:
    swapped = symbols.clone()
    swapped[:, [2, 7]] = symbols[:, [7, 2]]  # both are before place 10

    def change(n_layers: int) -> float:
        config = CopierConfig(positions="none", is_causal=True, n_layers=n_layers)
        return float((outputs(config, swapped)[:, 10] - outputs(config, symbols)[:, 10]).abs().max())

    assert change(1) < 1e-13
    assert change(2) > 1e-3


def test_symmetric_distances_read_the_same_backwards(symbols: torch.Tensor) -> None:
    backwards = outputs(CopierConfig(positions="alibi"), symbols.flip(1)).flip(1)
    torch.testing.assert_close(
        backwards, outputs(CopierConfig(positions="alibi"), symbols), rtol=0, atol=1e-12
    )


def test_positions_are_the_packages_own_and_blooms() -> None:
    modules = pytest.importorskip("scalelab.models.positions")
    theirs = modules.sinusoidal_positions(20, 12)  # sines and cosines in turn
    torch.testing.assert_close(sinusoids(20, 12), torch.cat((theirs[:, 0::2], theirs[:, 1::2]), 1))
    x = torch.randn(2, 3, 9, 8)
    angles = torch.outer(torch.arange(9).float(), 10_000.0 ** (-torch.arange(0, 8, 2) / 8))
    rotated = modules.rotate(x.transpose(1, 2), angles.cos(), angles.sin()).transpose(1, 2)
    torch.testing.assert_close(turn(x), rotated)
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    by_key = bloom.build_alibi_tensor(torch.ones(1, 7), 8, torch.float32)  # [H, 1, T]
    torch.testing.assert_close(distance_penalty(8, 7)[:, -1] - distance_penalty(8, 7)[:, -1, :1],
                               by_key[:, 0] - by_key[:, 0, :1])  # fmt: skip


def test_every_symbol_occurs_once_and_its_target_stands_before_it() -> None:
    symbols, targets = draw_shuffles(50, 8, torch.Generator().manual_seed(0))
    assert torch.equal(symbols.sort(1).values, torch.arange(8).expand(50, 8))
    assert torch.equal(targets[:, 1:], symbols[:, :-1])
    assert (targets[:, 0] == IGNORE_INDEX).all()


def test_a_run_depends_on_its_seed_alone() -> None:
    config = CopierConfig(positions="rope", n_layers=1, d_model=8)
    torch.manual_seed(1)
    first = train_copier(Copier(config, seed=4), n_steps=6, seed=4)
    torch.manual_seed(2)
    assert train_copier(Copier(config, seed=4), n_steps=6, seed=4) == first
    assert [step for step, _ in first] == [1, 2, 4, 6]


@pytest.mark.parametrize(
    ("settings", "about"),
    [
        ({"positions": "rotary"}, "positions must be one of"),
        ({"positions": "rope", "n_symbols": 1}, "n_symbols must be at least 2"),
        ({"positions": "rope", "d_model": 30, "n_heads": 4}, "heads of even width"),
        ({"positions": "rope", "n_layers": 0}, "n_layers"),
        ({"positions": "rope", "init_std": 0.0}, "init_std"),
    ],
)
def test_settings_that_make_no_model_are_refused(settings: dict[str, Any], about: str) -> None:
    with pytest.raises(ConfigError, match=about):
        CopierConfig(**settings)
    with pytest.raises(ConfigError, match="n_steps"):
        train_copier(Copier(CopierConfig(positions="rope"), seed=0), n_steps=0, seed=0)


# What the chapter and the lab say of the record.


def test_no_recorded_model_beats_what_it_can_know() -> None:
    for row in study_json(STUDY, "copying")["runs"]:
        assert row["accuracy"] < row["best_accuracy"] + 0.02


def test_the_four_levels_of_the_task_hold_for_every_seed() -> None:
    assert all(abs(value - 1 / 15) < 0.015 for value in accuracies(positions="none"))
    assert all(
        abs(value - 0.2212) < 0.015 for value in accuracies(positions="none", is_causal=True, n_layers=1)
    )
    assert all(0.25 < value < 8 / 15 for value in accuracies(positions="alibi"))
    for wanted in ({"positions": "rope"}, {"positions": "learned"}):
        assert min(accuracies(**wanted)) > 0.99
    for positions in ("none", "alibi"):
        assert min(accuracies(positions=positions, is_causal=True)) > 0.99
    assert statistics.median(accuracies(positions="sinusoidal")) > 0.99
    assert min(accuracies(positions="sinusoidal")) > 0.5


def test_without_the_root_some_seeds_miss_what_all_reach_with_it() -> None:
    assert min(accuracies(positions="rope")) > 0.99
    assert min(accuracies(positions="rope", is_scaled=False)) < 0.9


def test_the_root_shows_in_the_loss_from_unit_variance_and_not_from_small_weights() -> None:
    with_root, without = losses(None, True), losses(None, False)
    assert len(with_root) == len(without) >= 3
    assert min(without) - max(with_root) > 5 * max(map(statistics.stdev, (with_root, without)))
    assert statistics.mean(losses(0.02, False)) < statistics.mean(losses(0.02, True))
    assert statistics.mean(losses(0.02, True)) - statistics.mean(losses(0.02, False)) < 0.05


def test_recorded_memory_is_squared_when_plain_and_the_result_when_tiled() -> None:
    rows = study_json(STUDY, "memory")["runs"]
    for before, after in itertools.pairwise(rows):
        assert after["n_places"] == 2 * before["n_places"]
        assert after["plain_bytes"] / before["plain_bytes"] == pytest.approx(4, rel=1e-3)
        more_places = after["n_places"] - before["n_places"]
        assert after["tiled_bytes"] - before["tiled_bytes"] == 4 * after["d_head"] * more_places


def test_recorded_maps_are_causal_and_have_heads_of_three_kinds() -> None:
    found = study_json(STUDY, "maps")
    weights = np.array(found["thousandths"]) / 1000
    assert weights.shape[2:] == (len(found["tokens"]),) * 2
    assert np.abs(weights.sum(-1) - 1).max() < 0.03
    assert np.triu(weights, 1).max() == 0
    assert "".join(found["tokens"]) == found["function"]
    for kind in ("previous", "after same", "line start"):
        entry = found["kinds"][kind]
        assert np.max(entry["share"]) > 5 * entry["alike"]
    assert np.max(found["breadth"]) > 0.8 * found["n_places"]


def test_the_study_is_complete_and_holds_nothing_but_what_its_program_runs() -> None:
    study = program()
    rows = study_json(STUDY, "copying")["runs"]
    wanted = [
        {**dataclasses.asdict(arm), "seed": seed} for arm in study.copying_arms() for seed in study.SEEDS
    ]
    assert len(rows) == len(wanted)
    for key in wanted:
        [row] = [row for row in rows if all(row[name] == value for name, value in key.items())]
        assert row["n_steps"] == study.COPY_STEPS
        assert row["best_accuracy"] == best_accuracy(
            CopierConfig(**{name: value for name, value in key.items() if name != "seed"})
        )
    assert len(study_json(STUDY, "scaling")["runs"]) == len(study.INIT_STDS) * 2 * len(study.SEEDS)
    assert [row["n_places"] for row in study_json(STUDY, "memory")["runs"]] == list(study.LENGTHS)
    files = {"copying", "scaling", "memory", "maps", "provenance"}
    assert {file.stem for file in study_folder(STUDY).glob("*.json")} == files
    assert (study_json(STUDY, "provenance")["command"]) == study.COMMAND


def test_shares_of_kinds_of_places_are_those_of_a_small_example() -> None:
    tokens = torch.tensor([[5, 7, 5, 7]])
    weights = torch.tensor([[1.0, 0, 0, 0], [0.25, 0.75, 0, 0], [0.1, 0.6, 0.3, 0], [0.1, 0.2, 0.3, 0.4]])[
        None, None, None
    ]
    starts = torch.tensor([[True, False, False, False]])
    found = program().head_scores(weights, tokens, starts)

    def share(kind: str) -> float:
        return float(found[kind]["share"][0][0])

    assert share("previous") == pytest.approx((0.25 + 0.6 + 0.3) / 3, abs=1e-4)
    assert share("first") == pytest.approx((0.25 + 0.1 + 0.1) / 3, abs=1e-4)
    assert share("self") == pytest.approx((1 + 0.75 + 0.3 + 0.4) / 4, abs=1e-4)
    assert share("same") == pytest.approx((0.1 + 0.2) / 2, abs=1e-4)
    assert share("after same") == pytest.approx((0.6 + 0.3) / 2, abs=1e-4)
    assert share("line start") == pytest.approx((0.25 + 0.1 + 0.1) / 3, abs=1e-4)
    assert found["same"]["alike"] == pytest.approx((1 / 3 + 1 / 4) / 2, abs=1e-4)


def test_a_map_names_its_tokens_visibly_and_refuses_others() -> None:
    assert [visible(text) for text in ("a", " b", "\n", "\n    ", "    ", "")] == [
        "a", "·b", "↵", "↵·4", "·4", "∅",
    ]  # fmt: skip
    figure, axes = attention_map(np.eye(2), ["a", " b"], title="itself")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "·b"]
    assert figure.axes == [axes]
    with pytest.raises(LabError, match="2 tokens need weights"):
        attention_map(np.eye(3), ["a", "b"], title="no")
