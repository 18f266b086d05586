from __future__ import annotations

import dataclasses
import math
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scalelab.core.config import DecoderConfig, EncoderConfig, EncoderDecoderConfig, VisionConfig
from scalelab.core.errors import CheckpointError, ConfigError, DataError, TrainingError
from scalelab.core.records import read_records
from scalelab.core.seeding import derive_seed
from scalelab.cost import flops, params
from scalelab.data import Batches, TokenData
from scalelab.models import Decoder
from scalelab.train import (
    CheckpointFolder,
    SingleProcess,
    Trainer,
    learning_rate,
    load_checkpoint,
    parameter_groups,
    train,
)


class Bigrams(nn.Module):
    """Any module with a config and a loss will do: this one is a table of next tokens."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Parameter(torch.zeros(config.vocab_size, config.vocab_size))

    def loss(self, tokens: torch.Tensor, targets: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
        return F.cross_entropy(self.table[tokens].flatten(0, 1), targets.flatten(), reduction=reduction)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_steps_equal_a_plain_torch_loop_bit_for_bit(
    small: DecoderConfig, chain: TokenData, settings: Any
) -> None:
    small = dataclasses.replace(small, dropout=0.0)
    config = settings(5, seed=4)
    trainer = Trainer(small, chain, config, progress=False)
    trainer.run()

    model = Decoder(small, seed=derive_seed(4, "weights"))
    groups = parameter_groups(model, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, fused=True)
    batches = Batches(chain.train, batch_size=8, seq_len=32, seed=4)
    for step in range(5):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        inputs, targets = batches.next()
        logits = model(torch.from_numpy(inputs))
        loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        assert trainer.history.loss_nats[step] == pytest.approx(loss.item(), rel=1e-6)
    assert same_weights(trainer.model, model)


def test_the_first_loss_is_about_ln_v(small: DecoderConfig, chain: TokenData, settings: Any) -> None:
    trainer = Trainer(small, chain, settings(), progress=False)
    assert trainer.step().loss_nats == pytest.approx(math.log(64), abs=0.1)


def test_a_model_overfits_one_batch(small: DecoderConfig, settings: Any) -> None:
    tokens = np.random.default_rng(0).integers(0, 64, 4 * 32 + 1).astype(np.uint16)
    noise = TokenData(
        name="noise",
        tokenizer_name="none",
        train=tokens,
        held_out=tokens,
        vocab_size=64,
        end_of_text=0,
        bytes_per_token=np.ones(64, dtype=np.int64),
    )
    small = dataclasses.replace(small, dropout=0.0)
    record = train(small, noise, settings(250, batch_size=4, learning_rate=1e-2, n_evals=1), progress=False)
    assert record.loss_nats < 0.05  # random tokens: nothing but memory can bring this below ln 64 = 4.2


def test_training_learns_what_there_is_to_learn(
    chain: TokenData, small: DecoderConfig, settings: Any
) -> None:
    record = train(Bigrams(small), chain, settings(600, learning_rate=0.3, weight_decay=0.0), progress=False)
    # A table of smoothed counts is the best that a bigram model can be.
    counts = np.full((64, 64), 0.1)
    np.add.at(counts, (chain.train[:-1], chain.train[1:]), 1)
    held_out = np.log(counts / counts.sum(1, keepdims=True))[chain.held_out[:-1], chain.held_out[1:]]
    assert record.loss_nats == pytest.approx(-held_out.mean(), abs=0.15)


def test_the_rate_of_each_step_is_the_schedules(
    small: DecoderConfig, chain: TokenData, settings: Any
) -> None:
    config = settings(9, schedule="wsd", warmup_steps=3, decay_fraction=0.4)
    trainer = Trainer(small, chain, config, progress=False)
    trainer.run()
    assert trainer.history.learning_rate == [learning_rate(config, step) for step in range(9)]


@pytest.mark.parametrize("way", ["in two runs", "step by step", "with evaluations between"])
def test_how_a_run_is_driven_does_not_change_it(
    way: str, small: DecoderConfig, chain: TokenData, settings: Any
) -> None:
    whole = Trainer(small, chain, settings(), progress=False)
    whole.run()
    other = Trainer(small, chain, settings(), progress=False)
    if way == "in two runs":
        other.run(until_tokens=5 * 256)
        assert other.step_count == 5
    for _ in range(12 - other.step_count):
        if way == "with evaluations between":
            other.evaluate()
        torch.rand(7)  # the run must not care who else draws
        other.step()
    other.run()
    assert same_weights(whole.model, other.model)
    assert whole.history.loss_nats == other.history.loss_nats


def test_training_leaves_the_callers_random_state_alone(
    small: DecoderConfig, chain: TokenData, settings: Any
) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    train(small, chain, settings(3), progress=False)
    assert torch.equal(torch.rand(3), expected)


def test_clipping_limits_the_step_and_keeps_the_norm_before(
    small: DecoderConfig, chain: TokenData, settings: Any
) -> None:
    free = Trainer(small, chain, settings(2, clip_norm=1e9), progress=False)
    tight = Trainer(small, chain, settings(2, clip_norm=1e-3), progress=False)
    off = Trainer(small, chain, settings(2, clip_norm=None), progress=False)
    assert free.step().grad_norm == tight.step().grad_norm > 1e-3
    assert math.isnan(off.step().grad_norm)
    assert same_weights(free.model, off.model)
    assert not same_weights(free.model, tight.model)


def test_a_diverging_run_stops_with_the_step_the_rate_and_what_to_try(
    chain: TokenData, small: DecoderConfig, settings: Any
) -> None:
    class Explodes(Bigrams):
        calls = 0

        def loss(self, tokens: torch.Tensor, targets: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
            self.calls += 1
            value = super().loss(tokens, targets, reduction)
            return value * math.nan if self.calls == 4 else value

    trainer = Trainer(Explodes(small), chain, settings(12, n_evals=1), progress=False)
    with pytest.raises(TrainingError, match=r"loss is nan at step 3 \(learning rate .*lower learning_rate"):
        trainer.run()
    assert len(trainer.history) == 3


def test_an_infinite_gradient_under_a_finite_loss_stops_the_run_too(
    chain: TokenData, small: DecoderConfig, settings: Any
) -> None:
    trainer = Trainer(Bigrams(small), chain, settings(), progress=False)
    trainer.model.table.register_hook(lambda gradient: gradient * math.inf)  # type: ignore[union-attr, operator]
    with pytest.raises(TrainingError, match=r"gradient's norm is (nan|inf) at step 0"):
        trainer.step()


class PressesCtrlC:
    """A logger that sends SIGINT when a step is logged, which no other moment of a test can aim at."""

    def __init__(self, at: int, number: int = signal.SIGINT) -> None:
        self.at = at
        self.number = number

    def start(self, run_id: str, settings: Mapping[str, Any], step: int) -> None:
        pass

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step == self.at:
            os.kill(os.getpid(), self.number)

    def close(self) -> None:
        pass


def test_ctrl_c_finishes_the_step_writes_a_checkpoint_and_the_run_goes_on_to_the_same_bits(
    small: DecoderConfig, chain: TokenData, settings: Any, tmp_path: Path
) -> None:
    config = settings(log_every=1)
    before = signal.getsignal(signal.SIGINT)
    trainer = Trainer(small, chain, config, run_dir=tmp_path, loggers=[PressesCtrlC(5)], progress=False)
    with pytest.raises(KeyboardInterrupt, match="after step 5 of 12"):
        trainer.run()
    assert signal.getsignal(signal.SIGINT) is before
    resumed = Trainer.resume(tmp_path, chain, progress=False)
    assert resumed.step_count == 5
    resumed.run()
    whole = Trainer(small, chain, config, progress=False)
    whole.run()
    assert same_weights(resumed.model, whole.model)


@pytest.mark.parametrize(
    ("moment", "until", "stopped"), [("save", None, 4), ("close", None, 4), ("close", 3 * 256, 3)]
)
def test_ctrl_c_after_the_last_step_is_told_and_what_was_trained_is_kept(
    moment: str, until: int | None, stopped: int, small: DecoderConfig, chain: TokenData, settings: Any,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    class PressesAtItsClose(PressesCtrlC):
        def close(self) -> None:
            if moment == "close":
                os.kill(os.getpid(), signal.SIGINT)

    save = CheckpointFolder.save

    def and_press(self: CheckpointFolder, checkpoint: Any) -> Path:
        if moment == "save":
            os.kill(os.getpid(), signal.SIGINT)
        return save(self, checkpoint)

    monkeypatch.setattr(CheckpointFolder, "save", and_press)
    logger = PressesAtItsClose(-1)
    trainer = Trainer(small, chain, settings(4), run_dir=tmp_path, loggers=[logger], progress=False)
    with pytest.raises(KeyboardInterrupt, match=f"after step {stopped} of 4"):
        trainer.run(until)
    assert load_checkpoint(tmp_path).step == stopped


def test_sigterm_ends_a_run_as_ctrl_c_does(
    small: DecoderConfig, chain: TokenData, settings: Any, tmp_path: Path
) -> None:
    logger = PressesCtrlC(5, signal.SIGTERM)
    trainer = Trainer(small, chain, settings(log_every=1), run_dir=tmp_path, loggers=[logger], progress=False)
    with pytest.raises(KeyboardInterrupt, match="after step 5 of 12"):
        trainer.run()
    assert load_checkpoint(tmp_path).step == 5


def test_a_record_says_what_was_trained_and_agrees_with_cost(
    small: DecoderConfig, chain: TokenData, settings: Any, tmp_path: Path
) -> None:
    config = settings(10, seed=3)
    record = train(small, chain, config, run_dir=tmp_path, progress=False)
    counts = params(small)
    assert (record.n_params, record.n_params_matmul) == (counts.total, counts.matmul)
    assert record.flops == 10 * flops(small, batch_size=8, seq_len=32, training=True).total
    assert record.n_tokens == 10 * 256
    assert record.epochs == record.n_tokens / record.n_tokens_unique
    assert [tokens for tokens, _ in record.curve] == [256 * step for step in config.eval_steps]
    assert record.curve[-1][1] == record.loss_nats
    assert (record.corpus, record.tokenizer, record.seed) == ("chain", "symbols", 3)
    assert read_records(tmp_path / "record.jsonl") == [record]


def test_more_tokens_than_the_text_has_are_counted_as_epochs(
    small: DecoderConfig, chain: TokenData, settings: Any
) -> None:
    unique = (len(chain.train) - 1) // 32 * 32
    record = train(small, chain, settings(120, n_evals=1), progress=False)
    assert record.n_tokens_unique == unique
    assert record.epochs == 120 * 256 / unique > 1


def test_a_finished_run_called_again_leaves_one_record(
    small: DecoderConfig, chain: TokenData, settings: Any, tmp_path: Path
) -> None:
    first = train(small, chain, settings(4), run_dir=tmp_path, progress=False)
    again = train(small, chain, settings(4), run_dir=tmp_path, progress=False)
    assert (again.loss_nats, again.curve) == (first.loss_nats, first.curve)
    assert len(read_records(tmp_path / "record.jsonl")) == 1
    trainer = Trainer.resume(tmp_path, chain, progress=False)
    with pytest.raises(TrainingError, match="all 4 steps"):
        trainer.step()


def test_a_new_run_does_not_mix_with_the_one_in_its_folder(
    small: DecoderConfig, chain: TokenData, settings: Any, tmp_path: Path
) -> None:
    train(small, chain, settings(4), run_dir=tmp_path, progress=False)
    with pytest.raises(CheckpointError, match="already holds a run, at step 4"):
        Trainer(small, chain, settings(4), run_dir=tmp_path, progress=False)
    with pytest.raises(CheckpointError, match=r"learning_rate is 0\.003 in the checkpoint, 0\.001 here"):
        train(small, chain, settings(4, learning_rate=1e-3), run_dir=tmp_path, progress=False)


def test_models_settings_and_data_that_do_not_fit_are_refused_before_training(
    small: DecoderConfig, chain: TokenData, settings: Any
) -> None:
    with pytest.raises(ConfigError, match="seq_len=64 is longer than the model's context of 32"):
        Trainer(small, chain, settings(seq_len=64))
    with pytest.raises(ConfigError, match="the training text has 20000"):
        Trainer(small, chain, settings(batch_size=1000))
    with pytest.raises(DataError, match="has token 63, the model's vocabulary ends at 31"):
        Trainer(dataclasses.replace(small, vocab_size=32), chain, settings())
    with pytest.raises(ConfigError, match=r"Linear cannot be trained: it needs \.config"):
        Trainer(nn.Linear(2, 2), chain, settings())
    encoder = EncoderConfig(n_layers=1, d_model=8, n_heads=1, d_ff=8, vocab_size=64)
    with pytest.raises(ConfigError, match="objective='causal' does not train a model with a EncoderConfig"):
        Trainer(encoder, chain, settings())
    with pytest.raises(ConfigError, match="vocab_size=64 must be at least 68"):
        Trainer(encoder, chain, settings(objective="mlm"))
    with pytest.raises(ConfigError, match="needs a model with mlm_head=True"):
        Trainer(dataclasses.replace(encoder, vocab_size=68), chain, settings(objective="mlm"))
    vision = VisionConfig(n_layers=1, d_model=8, n_heads=1, d_ff=8, patch_size=14)
    with pytest.raises(ConfigError, match="got VisionConfig"):
        Trainer(vision, chain, settings())
    with pytest.raises(ConfigError, match="until_tokens"):
        Trainer(small, chain, settings(), progress=False).run(until_tokens=-1)


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(TrainingError, match="unknown device 'gpu'"):
        SingleProcess("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(TrainingError, match="0 CUDA devices found"):
            SingleProcess("cuda")


def test_an_encoder_decoders_record_counts_the_target_it_writes_not_the_source_again(
    chain: TokenData, settings: Any
) -> None:
    first = chain.vocab_size
    config = EncoderDecoderConfig(
        n_layers=1, d_model=8, n_heads=1, d_head=8, d_ff=8, vocab_size=first + 4 + 12, pad_id=first
    )
    run = Trainer(config, chain, settings(2, objective="spans"), progress=False)
    record = run.run()
    inputs, targets = run.batches.next()
    counted = flops(
        config, batch_size=len(inputs), seq_len=inputs.shape[1], training=True, target_len=targets.shape[1]
    )
    assert targets.shape[1] < inputs.shape[1]
    assert record.flops == 2 * counted.total
