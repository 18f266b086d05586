"""The recorded comparison of architectures: whole, fair by its own account, and as chapter and lab say."""

from __future__ import annotations

import statistics

import pytest

from scalelab.core.config import EncoderConfig
from scalelab.core.errors import LabError
from scalelab.lab.records import study_json
from scalelab.lab.transformers import architecture_records
from scalelab.lab.transformers.architecture_records import (
    KINDS,
    best_fill,
    difference,
    language,
    mean_of,
    rows,
    values,
    winner,
)
from scalelab.lab.transformers.architectures import kin, step_flops

PROVENANCE = study_json("transformers/architectures", "provenance")
SEEDS = [1, 2, 3]


def test_every_arm_has_the_same_three_seeds() -> None:
    for kind in KINDS:
        assert sorted(row["seed"] for row in rows("language", kind=kind)) == SEEDS
    for with_next in (False, True):
        assert sorted(row["seed"] for row in rows("sentences", with_next=with_next)) == SEEDS
    for kind in ("decoder", "encoder-decoder"):
        assert sorted(row["seed"] for row in rows("respelling", kind=kind)) == SEEDS


def test_rates_were_chosen_with_a_seed_that_judges_nothing() -> None:
    for kind in KINDS:
        tried = {row["learning_rate"]: row["loss_nats"] for row in rows("rates", kind=kind)}
        best = min(tried, key=lambda rate: tried[rate])
        assert {row["learning_rate"] for row in rows("language", kind=kind)} == {best}
        assert {row["seed"] for row in rows("rates", kind=kind)} == {0}


def test_training_flops_are_equal_within_one_step() -> None:
    spent = []
    for kind in KINDS:
        config = kin(kind, **PROVENANCE["size"])
        one = step_flops(config, batch_size=PROVENANCE["batch_size"], seq_len=PROVENANCE["size"]["seq_len"])
        spent.append(rows("language", kind=kind)[0]["n_steps"] * one)
        assert abs(spent[-1] - rows("language", kind=kind)[0]["budget_flops"]) <= one / 2
    assert max(spent) / min(spent) < 1.002
    written = [rows("respelling", kind=kind)[0]["flops"] for kind in ("decoder", "encoder-decoder")]
    assert max(written) / min(written) < 1.002


def test_the_second_sentence_arm_pays_for_its_heads() -> None:
    with_heads = kin("encoder", **PROVENANCE["size"], sentences=True)
    assert isinstance(with_heads, EncoderConfig)
    steps = {arm: rows("sentences", with_next=arm)[0]["n_steps"] for arm in (False, True)}
    assert steps[True] <= steps[False]


def test_a_decoder_is_told_about_seven_times_as_many_tokens_as_an_encoder() -> None:
    told = {kind: rows("language", kind=kind)[0]["n_targets"] for kind in KINDS}
    assert 6.5 < told["decoder"] / told["encoder"] < 7.6
    assert told["encoder"] < told["encoder-decoder"] < told["decoder"]


def test_a_decoder_is_best_at_the_next_token() -> None:
    assert winner("next_nats", low=True) == "decoder"


def test_a_decoder_gains_by_the_whole_text_at_every_seed() -> None:
    gains = [
        whole - left
        for whole, left in zip(
            language("decoder", "fill_whole_text"), language("decoder", "fill_few"), strict=True
        )
    ]
    assert min(gains) > 0.02


def test_a_decoder_knows_a_names_role_one_token_later() -> None:
    assert difference(language("decoder", "probe_later"), language("decoder", "probe")).low > 0


def test_an_encoder_with_a_table_of_positions_learns_later() -> None:
    learned, rope = (rows("positions", positions=positions) for positions in ("learned", "rope"))
    tried = {row["learning_rate"]: row["loss_nats"] for row in learned if row["seed"] == 0}
    best = min(tried, key=lambda rate: tried[rate])
    losses = []
    for arm in (learned, rope):
        judged = sorted((row for row in arm if row["seed"] in SEEDS), key=lambda row: row["seed"])
        assert [row["seed"] for row in judged] == SEEDS
        assert arm is rope or {row["learning_rate"] for row in judged} == {best}
        losses.append([row["loss_nats"] for row in judged])
    assert difference(losses[0], losses[1]).low > 0.3


def test_sight_of_both_sides_fills_more_gaps_in_one_pass() -> None:
    assert difference(language("encoder", "fill_accuracy"), language("decoder", "fill_accuracy")).low > 0


def test_everyone_knows_more_of_a_name_than_its_own_spelling_or_than_chance() -> None:
    for kind in KINDS:
        for field in ("probe_words", "probe"):
            assert mean_of(language(kind, field)).mean > 0.15
        assert min(language(kind, "probe")) > max(language(kind, "probe_words"))


def test_the_encoder_decoder_respells_at_least_95_percent_and_copying_at_most_5() -> None:
    assert min(values("respelling", "exact", kind="encoder-decoder")) >= 0.95
    assert rows("tasks", task="respelling")[0]["copy"] <= 0.05
    exact = [values("respelling", "exact", kind=kind) for kind in ("encoder-decoder", "decoder")]
    assert difference(*exact).mean > 0.1


def test_differences_are_paired_and_named_wrongly_they_are_refused() -> None:
    assert difference([2.0, 3.0, 4.0], [1.0, 2.0, 3.0]).mean == 1
    assert difference([2.0, 3.0, 4.0], [1.0, 2.0, 3.0]).half_width == 0
    with pytest.raises(LabError, match="2 runs cannot be paired with 1"):
        difference([1.0, 2.0], [1.0])
    with pytest.raises(LabError, match="no row in 'language'"):
        rows("language", kind="perceptron")
    with pytest.raises(LabError, match=r"no file 'nope'; it has .*language"):
        rows("nope")


def test_a_winner_beats_each_other_one_and_not_the_second_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"decoder": [3.0, 3.1, 2.9], "encoder": [2.0, 2.1, 1.9], "encoder-decoder": [1.0, 1.1, 0.9]}
    monkeypatch.setattr(architecture_records, "language", lambda kind, field: found[kind])
    assert winner("any") == "decoder"
    assert winner("any", low=True) == "encoder-decoder"
    found["encoder-decoder"] = [-20.0, 3.2, 2.8]  # the worst mean, too noisy to be told from the best
    assert winner("any") is None


def test_each_architecture_fills_gaps_in_its_own_best_way() -> None:
    ways = {kind: best_fill(kind) for kind in KINDS}
    assert ways["encoder"] == "fill_accuracy"
    for kind, field in ways.items():
        assert 0 < statistics.mean(language(kind, field)) < 1
