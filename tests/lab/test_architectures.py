"""Three architectures side by side: alike but for their shape, and asked without leaks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from scalelab.core.errors import ConfigError, DataError
from scalelab.cost import flops
from scalelab.data import (
    make_objective,
)
from scalelab.data.objectives import replace_spans
from scalelab.lab.transformers.architectures import (
    KINDS,
    Model,
    ask,
    ask_by_whole_text,
    ask_for_one_token,
    draw_places,
    kin,
    log_probabilities,
    make,
    opening,
    other_spans,
    spanned,
    specials,
    step_flops,
    steps_for,
)
from scalelab.models import Decoder, EncoderDecoder

VOCAB, SEQ_LEN = 40, 32
SIZE: dict[str, Any] = {"n_layers": 2, "d_model": 16, "n_heads": 2, "vocab_size": VOCAB, "seq_len": SEQ_LEN}
SPECIAL = specials(VOCAB, SEQ_LEN)
OBJECTIVES = dict(zip(KINDS, ("causal", "mlm", "spans"), strict=True))


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Model:
    return make(kin(request.param, **SIZE), seed=0)


def windows(n: int = 6, length: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, SPECIAL.n_ordinary, size=(n, length))


def test_the_three_differ_in_nothing_that_all_of_them_have() -> None:
    shared = ("d_model", "n_heads", "d_ff", "vocab_size", "norm", "norm_position", "positions", "norm_eps",
              "feed_forward", "attention_bias", "feed_forward_bias", "dropout", "rope_theta")  # fmt: skip
    configs = [kin(kind, **SIZE) for kind in KINDS]
    for field in shared:
        assert len({repr(getattr(config, field)) for config in configs}) == 1, field


def test_all_three_begin_at_the_same_sizes() -> None:
    for kind in KINDS:
        config = kin(kind, n_layers=2, d_model=64, n_heads=2, vocab_size=256, seq_len=32)
        weights = dict(make(config, seed=0).named_parameters())
        table = weights["token_embedding.weight"]
        assert abs(float(table.detach().std()) * 8 - 1) < 0.05
        ups = [w for name, w in weights.items() if name.endswith("feed_forward.up.weight")]
        assert all(abs(float(w.detach().std()) * 8 - 1) < 0.05 for w in ups)


def test_an_odd_number_of_blocks_cannot_be_shared_by_two_stacks() -> None:
    with pytest.raises(ConfigError, match="n_layers=3"):
        kin("encoder-decoder", **{**SIZE, "n_layers": 3})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("d_model", 66, "d_model=66 is not a multiple of n_heads=4"),
        ("d_model", "x", "d_model must be a whole number of at least 1, got 'x'"),
        ("n_heads", 0, "n_heads must be a whole number of at least 1, got 0"),
        ("vocab_size", -3, "vocab_size must be a whole number of at least 1, got -3"),
        ("n_layers", 0, "n_layers must be a whole number of at least 1, got 0"),
    ],
)
def test_all_kinds_refuse_the_same_sizes(kind: str, setting: str, value: Any, says: str) -> None:
    size = {**SIZE, "d_model": 64, "n_heads": 4, setting: value}
    with pytest.raises(ConfigError, match=says):
        kin(kind, **size)


@pytest.mark.parametrize("kind", KINDS)
def test_a_steps_flops_are_those_of_the_batch_that_the_objective_makes(kind: str) -> None:
    config = kin(kind, **SIZE)
    objective = make_objective(OBJECTIVES[kind], seq_len=SEQ_LEN, special=SPECIAL)  # type: ignore[arg-type]
    raw = windows(4, objective.window_length(SEQ_LEN))
    inputs, targets = objective(raw, np.random.default_rng(0))
    lengths: dict[str, Any] = {"batch_size": 4, "seq_len": inputs.shape[1], "training": True}
    if kind == "encoder-decoder":
        lengths["target_len"] = targets.shape[1]
    assert step_flops(config, batch_size=4, seq_len=SEQ_LEN) == flops(config, **lengths).total


def test_equal_budgets_buy_whole_steps_within_half_a_step() -> None:
    for kind in KINDS:
        config = kin(kind, **SIZE)
        one = step_flops(config, batch_size=4, seq_len=SEQ_LEN)
        n = steps_for(config, 1e9, batch_size=4, seq_len=SEQ_LEN)
        assert abs(n * one - 1e9) <= one / 2
    with pytest.raises(ConfigError, match="pays for no step"):
        steps_for(config, 1.0, batch_size=4, seq_len=SEQ_LEN)


def test_the_hidden_token_is_hidden(model: Model) -> None:
    rows = torch.from_numpy(windows())
    places = torch.full((len(rows),), 9)
    before = log_probabilities(model.eval(), rows, places, SPECIAL)
    other = rows.clone()
    other[:, 9] = (other[:, 9] + 1) % SPECIAL.n_ordinary
    assert torch.equal(before, log_probabilities(model, other, places, SPECIAL))


@pytest.mark.parametrize("places", [[20, 33, 46], [61, 61, 61]])
def test_an_encoder_decoder_is_asked_as_it_was_taught(places: list[int]) -> None:
    special = specials(256, 64)
    rows, at = torch.from_numpy(windows(3, 62)), torch.tensor(places)
    before, after = other_spans(62, at, special)
    gone = np.zeros(rows.shape, dtype=bool)
    for first, stop in (*before, *after):
        gone[:, first:stop] = True
    gone[np.arange(3), places] = True
    source, told = spanned(rows, at, special), opening(rows, at, special)
    assert np.array_equal(source.numpy(), replace_spans(rows.numpy(), gone, special, source.shape[1]))
    target = replace_spans(rows.numpy(), ~gone, special, int(gone[0].sum()) + 4)
    n = told.shape[1] - 1
    assert np.array_equal(told[:, 1:].numpy(), target[:, :n])
    assert np.array_equal(target[:, n], rows[np.arange(3), places]), "and the answer follows"
    objective = make_objective("spans", seq_len=64, special=special)
    taught, _ = objective(windows(1, objective.window_length(64)), np.random.default_rng(0))
    for one in (source[0].tolist(), taught[0].tolist()):
        assert [token for token in one if token in special.sentinels] == list(special.sentinels)
        assert one[-2:] == [special.sentinels[-1], special.sep]


def test_a_place_too_near_the_end_of_a_window_is_refused() -> None:
    with pytest.raises(DataError, match="60 of 62"):
        other_spans(62, torch.tensor([20, 60]), SPECIAL)


def test_only_a_decoder_does_not_see_the_right_side(model: Model) -> None:
    rows = torch.from_numpy(windows())
    places = torch.full((len(rows),), 9)
    before = log_probabilities(model.eval(), rows, places, SPECIAL)
    for at, seen in ((3, True), (15, not isinstance(model, Decoder))):
        other = rows.clone()
        other[:, at] = (other[:, at] + 1) % SPECIAL.n_ordinary
        moved = not torch.allclose(before, log_probabilities(model, other, places, SPECIAL))
        assert moved == seen


def test_answers_are_the_mean_over_rows_whatever_the_batch(model: Model) -> None:
    rows = windows(7)
    places = draw_places(rows, SPECIAL, seed=0)
    once, by_two = (ask(model, rows, places, SPECIAL, batch_size=size) for size in (64, 2))
    assert once.accuracy == by_two.accuracy
    assert once.nats == pytest.approx(by_two.nats, rel=1e-5)


def test_a_place_is_text_in_the_middle_half() -> None:
    rows = windows(200)
    rows[:, 6] = SPECIAL.end_of_text
    places = draw_places(rows, SPECIAL, seed=0)
    assert places.min() >= 5
    assert places.max() < 15
    assert 6 not in places
    with pytest.raises(DataError, match="too short"):
        draw_places(windows(3, 4), SPECIAL, seed=0)


def test_a_decoder_with_all_candidates_gives_bayes_rule() -> None:
    decoder = make(kin("decoder", **SIZE), seed=1).eval()
    assert isinstance(decoder, Decoder)
    rows = windows(5)
    places = draw_places(rows, SPECIAL, seed=0)
    n_ids = decoder.config.vocab_size
    hits = 0
    for row, place in zip(rows, places.tolist(), strict=True):
        texts = torch.from_numpy(row).repeat(n_ids, 1)
        texts[:, place] = torch.arange(n_ids)
        with torch.no_grad():
            log_p = decoder(texts)[:, :-1].log_softmax(-1).gather(2, texts[:, 1:, None])[..., 0]
        hits += int(log_p.sum(1).argmax()) == int(row[place])
    found = ask_by_whole_text(decoder, rows, places, SPECIAL, n_candidates=n_ids)
    assert found.accuracy == hits / len(rows)


def test_one_candidate_is_the_first_guess() -> None:
    rows = windows(30)
    places = draw_places(rows, SPECIAL, seed=0)
    decoder, pair = (make(kin(kind, **SIZE), seed=0) for kind in ("decoder", "encoder-decoder"))
    assert isinstance(decoder, Decoder)
    assert isinstance(pair, EncoderDecoder)
    first = ask(decoder, rows, places, SPECIAL).accuracy
    assert ask_by_whole_text(decoder, rows, places, SPECIAL, n_candidates=1).accuracy == first
    first = ask(pair, rows, places, SPECIAL).accuracy
    assert ask_for_one_token(pair, rows, places, SPECIAL, n_candidates=1).accuracy == first
