"""The sequence-to-sequence task: two writers that get the same FLOPs and learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from scalelab.core.config import DecoderConfig, EncoderDecoderConfig
from scalelab.core.errors import ConfigError, DataError
from scalelab.data import (
    Corpus,
    Document,
)
from scalelab.data.transduction import END, PAD, transduction_task
from scalelab.lab.transformers.architectures import (
    make,
)
from scalelab.lab.transformers.respelling import (
    Apprentice,
    WritingRun,
    as_prompts,
    pair_flops,
    writer,
    writing_loss,
)
from scalelab.models import Decoder

NAMES = " ".join(f"read_{a}{b} get{a.upper()}{b}Name" for a in "abcdefgh" for b in "xyzuvw")


@pytest.fixture(scope="module")
def task() -> Any:
    return transduction_task(Corpus("names", (Document("a.py", NAMES),), (Document("b.py", NAMES),)))


def test_prompts_end_with_the_sign_that_asks() -> None:
    sources = torch.tensor([[5, 6, 7, PAD, PAD], [8, 9, 10, 11, 12]])
    prompts, is_text = as_prompts(sources)
    assert prompts.tolist() == [[PAD, PAD, 5, 6, 7, END], [8, 9, 10, 11, 12, END]]
    assert torch.equal(is_text, prompts != PAD)


def test_a_decoders_loss_of_a_batch_is_that_of_its_rows_without_filling(task: Any) -> None:
    model = make(writer("decoder", task, n_layers=2, d_model=16, n_heads=2), seed=0).eval()
    assert isinstance(model, Decoder)
    sources, targets = (torch.from_numpy(part) for part in task.encode_batch(task.train[:5]))
    nats, n = 0.0, 0
    for source, target in zip(sources, targets, strict=True):
        told = target[target >= 0]
        row = torch.cat((source[source != PAD], torch.tensor([END]), told))
        log_p = model(row[None, :-1])[0].log_softmax(-1)[-len(told) :]
        nats -= float(log_p.gather(1, told[:, None]).sum().detach())
        n += len(told)
    assert float(writing_loss(model, sources, targets).detach()) == pytest.approx(nats / n, rel=1e-4)


def test_both_writers_get_the_same_flops(task: Any) -> None:
    run = WritingRun(budget_flops=1e10, batch_size=16)
    for kind in ("decoder", "encoder-decoder"):
        config = writer(kind, task, n_layers=2, d_model=16, n_heads=2)
        assert isinstance(config, DecoderConfig | EncoderDecoderConfig)
        one = 16 * pair_flops(config, task)
        assert abs(run.n_steps(config, task) * one - 1e10) <= one / 2
    with pytest.raises(ConfigError, match="cannot write"):
        writer("encoder", task)


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_a_writer_learns_and_repeats(kind: str, task: Any) -> None:
    def trained() -> Apprentice:
        config = writer(kind, task, n_layers=2, d_model=16, n_heads=2)
        pupil = Apprentice(config, task, WritingRun(budget_flops=1e9, batch_size=16, learning_rate=1e-2))
        pupil.first = pupil.learn(0.01)  # type: ignore[attr-defined]
        pupil.last = pupil.learn()  # type: ignore[attr-defined]
        return pupil

    one, two = trained(), trained()
    assert one.step == one.n_steps
    assert one.last < one.first - 0.5  # type: ignore[attr-defined]
    assert one.last == two.last  # type: ignore[attr-defined]
    assert one.respell(task.held_out[:3]) == two.respell(task.held_out[:3])
    assert 0 <= one.exact_match(task.held_out) <= 1


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_both_writers_refuse_the_same_sizes(kind: str, task: Any) -> None:
    with pytest.raises(ConfigError, match="d_model=30 is not a multiple of n_heads=4"):
        writer(kind, task, d_model=30)
    with pytest.raises(ConfigError, match="n_heads must be a whole number of at least 1, got 0"):
        writer(kind, task, n_heads=0)


def test_an_apprentice_that_has_learnt_all_says_its_last_loss_again(task: Any) -> None:
    config = writer("decoder", task, n_layers=2, d_model=16, n_heads=2)
    pupil = Apprentice(config, task, WritingRun(budget_flops=1e8, batch_size=16))
    last = pupil.learn()
    assert pupil.step == pupil.n_steps
    assert pupil.learn() == pupil.learn(0.5) == last
    assert np.isfinite(last)
    for share in (0, -1, 1.5, float("nan"), True):
        with pytest.raises(ConfigError, match="share must lie above 0"):
            pupil.learn(share)
    assert pupil.step == pupil.n_steps
    with pytest.raises(DataError, match="at least one pair"):
        pupil.exact_match(())
