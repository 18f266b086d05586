from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import scalelab.train.precision as precision_module
from scalelab.core.config import DecoderConfig
from scalelab.core.errors import TrainingError
from scalelab.data import TokenData
from scalelab.models import Decoder
from scalelab.train import Trainer, load_checkpoint, measure_precision, train

CPU = torch.device("cpu")


def timings(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    """Put chosen timings in place of the clock's."""
    monkeypatch.setattr(precision_module, "_fastest_step", lambda step, candidates, device: seconds)


@pytest.mark.parametrize(
    ("fp32", "bf16", "chosen"), [(1.0, 0.5, "bf16"), (1.0, 2.0, "fp32"), (1.0, 0.97, "fp32")]
)
def test_auto_takes_the_faster_one_and_fp32_when_it_is_close(
    fp32: float,
    bf16: float,
    chosen: str,
    small: DecoderConfig,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timings(monkeypatch, fp32=fp32, bf16=bf16)
    plan = measure_precision(Decoder(small, seed=0), settings(precision="auto"), CPU)
    assert plan.precision == chosen
    assert plan.tokens_per_s == {"fp32": 256 / fp32, "bf16": pytest.approx(256 / bf16, rel=1e-3)}


def test_a_trial_really_runs_and_leaves_weights_and_random_state_untouched(
    small: DecoderConfig, settings: Any
) -> None:
    model = Decoder(small, seed=0)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    plan = measure_precision(model, settings(precision="auto"), CPU)
    assert set(plan.tokens_per_s) == {"fp32", "bf16"}
    assert min(plan.tokens_per_s.values()) > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_run_that_chose_by_trial_equals_one_that_was_told(
    small: DecoderConfig, chain: TokenData, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = Trainer(small, chain, settings(4, precision="auto"), progress=False)
    told = Trainer(small, chain, settings(4, precision=chosen.precision.precision), progress=False)
    chosen.run()
    told.run()
    assert chosen.history.loss_nats == told.history.loss_nats


def test_the_choice_is_stored_and_kept_on_resume_whatever_the_clock_says_then(
    small: DecoderConfig, chain: TokenData, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timings(monkeypatch, fp32=1.0, bf16=0.5)
    trainer = Trainer(small, chain, settings(4, precision="auto"), run_dir=tmp_path, progress=False)
    trainer.run(until_tokens=2 * 256)
    trainer.save()
    timings(monkeypatch, fp32=0.1, bf16=9.0)
    stored = load_checkpoint(tmp_path).precision
    assert (stored.asked, stored.precision) == ("auto", "bf16")
    assert stored.tokens_per_s == {"fp32": 256.0, "bf16": 512.0}
    assert Trainer.resume(tmp_path, chain, progress=False).precision == stored


def test_the_choice_outlives_a_kill_before_the_first_checkpoint_of_the_run(
    small: DecoderConfig, chain: TokenData, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(4, precision="auto")
    timings(monkeypatch, fp32=1.0, bf16=0.5)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_advance", lambda trainer: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            train(small, chain, config, run_dir=tmp_path, progress=False)
    timings(monkeypatch, fp32=0.1, bf16=9.0)
    train(small, chain, config, run_dir=tmp_path, progress=False)
    again = load_checkpoint(tmp_path)
    whole = Trainer(small, chain, settings(4, precision="bf16"), progress=False)
    assert again.precision.precision == "bf16"
    whole.run()
    assert again.history.loss_nats == whole.history.loss_nats


def test_bf16_runs_products_in_bf16_and_keeps_weights_gradients_and_moments_in_fp32(
    small: DecoderConfig, chain: TokenData, settings: Any
) -> None:
    trainer = Trainer(small, chain, settings(2, precision="bf16"), progress=False)
    seen: set[torch.dtype] = set()
    for module in trainer.model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    trainer.step()
    assert seen == {torch.bfloat16}
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    moments = [value for state in trainer.optimizer.state.values() for value in state.values()]
    assert {moment.dtype for moment in moments} == {torch.float32}


def test_bf16_trains_to_nearly_the_same_loss(small: DecoderConfig, chain: TokenData, settings: Any) -> None:
    small = dataclasses.replace(small, dropout=0.0)
    losses = {
        name: Trainer(small, chain, settings(40, precision=name), progress=False).run().loss_nats
        for name in ("fp32", "bf16")
    }
    assert losses["bf16"] == pytest.approx(losses["fp32"], abs=0.03)
    assert losses["bf16"] != losses["fp32"]


def test_fp16_without_a_gpu_is_refused_with_what_to_use(
    small: DecoderConfig, chain: TokenData, settings: Any
) -> None:
    from scalelab.train import SingleProcess

    with pytest.raises(TrainingError, match="needs a CUDA GPU, this run is on 'cpu': use"):
        Trainer(small, chain, settings(precision="fp16"), strategy=SingleProcess("cpu"), progress=False)


def test_a_step_that_loss_scaling_leaves_out_is_no_divergence(
    small: DecoderConfig, chain: TokenData, settings: Any, tmp_path: Path
) -> None:
    # fp32 products with fp16's scaler, which CPUs have: a first scale beyond fp32's range must overflow.
    trainer = Trainer(small, chain, settings(8, n_evals=1), run_dir=tmp_path, progress=False)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-60)
    before = copy.deepcopy(trainer.model.state_dict())
    skipped = trainer.step()
    assert not skipped.grad_norm < float("inf")
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert trainer.step().grad_norm < float("inf")
    assert not torch.equal(trainer.model.token_embedding.weight, before["token_embedding.weight"])  # type: ignore[union-attr, arg-type]
    trainer.save()
    assert load_checkpoint(tmp_path).scaler["scale"] == trainer.scaler.get_scale() == 2.0**67


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_fp16_trains_on_a_gpu_and_resumes_to_the_same_bits(
    small: DecoderConfig, chain: TokenData, settings: Any, tmp_path: Path
) -> None:
    config = settings(10, precision="fp16")
    whole = Trainer(small, chain, config, progress=False)
    whole.run()
    part = Trainer(small, chain, config, run_dir=tmp_path, progress=False)
    part.run(until_tokens=4 * 256)
    part.save()
    resumed = Trainer.resume(tmp_path, chain, progress=False)
    resumed.run()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])
