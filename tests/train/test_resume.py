"""Resumed equals uninterrupted, bit for bit; and a checkpoint that cannot be trusted is refused."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import scalelab.train
from scalelab.core.artifacts import MANIFEST
from scalelab.core.config import DecoderConfig
from scalelab.core.errors import CheckpointError
from scalelab.data import TokenData
from scalelab.models import Decoder
from scalelab.train import Trainer, load_checkpoint, train
from scalelab.train.checkpoint import FORMAT_VERSION, _digest
from scalelab.train.state import optimizer_tensors

N_STEPS = 14
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulating": {"accumulate": 3},
    "bf16": {"precision": "bf16"},
    "bf16 accumulating": {"precision": "bf16", "accumulate": 2},
    "unclipped wsd": {"schedule": "wsd", "clip_norm": None},
    "two epochs": {"batch_size": 60},  # 624 windows: the run passes into the second epoch
}


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Everything that the rest of a run depends on, and what it has written down."""
    return {
        **{f"model {name}": value for name, value in trainer.model.state_dict().items()},
        **optimizer_tensors(trainer.model, trainer.optimizer),
        **{f"random {name}": value for name, value in trainer.random.state().items()},
        **{f"history {name}": value for name, value in trainer.history.to_tensors().items()},
    }


def assert_same_bits(one: Trainer, other: Trainer) -> None:
    first, second = state_of(one), state_of(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        same = value.dtype == second[name].dtype and value.numpy().tobytes() == second[name].numpy().tobytes()
        assert same, f"{name} differs by up to {(value.double() - second[name].double()).abs().max()}"
    assert one.batches.state() == other.batches.state()


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_equals_uninterrupted_bit_for_bit(
    variant: str, small: DecoderConfig, chain: TokenData, settings: Any, tmp_path: Path
) -> None:
    config = settings(N_STEPS, **VARIANTS[variant])
    whole = Trainer(small, chain, config, progress=False)
    whole.run()
    rng = random.Random(variant)
    stops = sorted(rng.sample(range(1, N_STEPS), 2))
    trainer = Trainer(small, chain, config, run_dir=tmp_path, progress=False)
    for stop in stops:
        trainer.run(until_tokens=stop * config.batch_tokens)
        trainer.save()
        torch.manual_seed(rng.randrange(100))  # what the process did before must not matter
        trainer = Trainer.resume(tmp_path, chain, progress=False)
        assert trainer.step_count == stop
    trainer.run()
    assert_same_bits(whole, trainer)


def test_a_resumed_run_that_forgot_dropouts_position_would_be_noticed(
    small: DecoderConfig, chain: TokenData, settings: Any, tmp_path: Path
) -> None:
    whole = Trainer(small, chain, settings(6), progress=False)
    whole.run()
    trainer = Trainer(small, chain, settings(6), run_dir=tmp_path, progress=False)
    trainer.run(until_tokens=3 * 256)
    trainer.save()
    resumed = Trainer.resume(tmp_path, chain, progress=False)
    resumed.random.restore({"cpu": torch.Generator().manual_seed(9).get_state()})
    resumed.run()
    with pytest.raises(AssertionError, match="differs"):
        assert_same_bits(whole, resumed)


def test_a_tied_table_is_stored_once_and_comes_back_tied(
    small: DecoderConfig, chain: TokenData, settings: Any, tmp_path: Path
) -> None:
    class WithHead(Decoder):
        """The head under a name of its own, as many models have it."""

        def __init__(self, config: DecoderConfig, seed: int) -> None:
            super().__init__(config, seed=seed)
            self.output = torch.nn.Linear(config.d_model, config.vocab_size, bias=False)
            self.output.weight = self.token_embedding.weight

    trainer = Trainer(WithHead(small, 0), chain, settings(4), run_dir=tmp_path, progress=False)
    trainer.run(until_tokens=2 * 256)
    path = trainer.save()
    assert path is not None
    stored = load_file(path / "weights.safetensors")
    tables = [name for name, tensor in stored.items() if tensor.shape == (64, 32)]
    assert len(tables) == 1
    resumed = Trainer.resume(tmp_path, chain, model=WithHead(small, 1), progress=False)
    assert resumed.model.output.weight is resumed.model.token_embedding.weight  # type: ignore[union-attr]
    trainer.run()
    resumed.run()
    assert_same_bits(trainer, resumed)


# --- keeping and falling back -----------------------------------------------------------------------------


@pytest.fixture
def run_dir(small: DecoderConfig, chain: TokenData, settings: Any, tmp_path: Path) -> Path:
    """A run killed, as it were, after step 9 of 12, with checkpoints at 3, 6 and 9."""
    config = settings(12, checkpoint_every=3, keep_checkpoints=3)
    trainer = Trainer(small, chain, config, run_dir=tmp_path / "run", progress=False)
    trainer.run(until_tokens=10 * 256)
    return tmp_path / "run"


def checkpoints(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "checkpoints").iterdir())


def flip_a_bit(file: Path, place: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    file.write_bytes(bytes(content))


def edit(run: Path, change: Callable[[dict[str, Any]], None], *, sign: bool = True) -> None:
    """Change the newest manifest; signed again, as another version would have written it."""
    file = checkpoints(run)[-1] / MANIFEST
    manifest = json.loads(file.read_text())
    change(manifest)
    if sign:
        manifest["digest"] = _digest({k: v for k, v in manifest.items() if k not in ("files", "digest")})
    file.write_text(json.dumps(manifest))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "weights truncated": lambda path: (path / "weights.safetensors").write_bytes(
        (path / "weights.safetensors").read_bytes()[:-100]
    ),
    "weights empty": lambda path: (path / "weights.safetensors").write_bytes(b""),
    "weights missing": lambda path: (path / "weights.safetensors").unlink(),
    "a bit of the weights": lambda path: flip_a_bit(path / "weights.safetensors", 0.7),
    "a bit of the weights' header": lambda path: flip_a_bit(path / "weights.safetensors", 0.001),
    "a bit of the optimiser": lambda path: flip_a_bit(path / "optimizer.safetensors", 0.5),
    "a bit of the random state": lambda path: flip_a_bit(path / "random.safetensors", 0.9),
    "a bit of the history": lambda path: flip_a_bit(path / "history.safetensors", 0.99),
    "manifest truncated": lambda path: (path / MANIFEST).write_bytes(
        (path / MANIFEST).read_bytes()[:200]
    ),
    "manifest missing": lambda path: (path / MANIFEST).unlink(),
    "manifest no JSON": lambda path: (path / MANIFEST).write_text("no manifest"),
    "manifest a list": lambda path: (path / MANIFEST).write_text("[]"),
    "manifest not text": lambda path: (path / MANIFEST).write_bytes(b"\xff\xfe\x00{"),
    "folder empty": lambda path: (shutil.rmtree(path), path.mkdir()),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(
    damage: str, run_dir: Path, small: DecoderConfig, chain: TokenData, settings: Any
) -> None:
    DAMAGE[damage](checkpoints(run_dir)[-1])
    with pytest.warns(UserWarning, match="passing over a damaged checkpoint"):
        trainer = Trainer.resume(run_dir, chain, progress=False)
    assert trainer.step_count == 6
    trainer.run()
    whole = Trainer(small, chain, settings(12, checkpoint_every=3, keep_checkpoints=3), progress=False)
    whole.run()
    assert_same_bits(whole, trainer)
    assert [path.name[-2:] for path in checkpoints(run_dir)] == ["06", "09", "12"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_checkpoint(run_dir)


def test_every_bit_of_a_manifest_is_guarded(run_dir: Path) -> None:
    path = checkpoints(run_dir)[-1]
    original = (path / MANIFEST).read_bytes()
    expected = load_checkpoint(path)
    rng = random.Random(0)
    for _ in range(150):
        changed = bytearray(original)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        (path / MANIFEST).write_bytes(bytes(changed))
        try:
            found = load_checkpoint(path)
        except CheckpointError:
            continue
        # White space may have changed, or an escape's letter case: nothing that means anything.
        assert found.step == expected.step
        assert found.train_config == expected.train_config
        assert found.data_state == expected.data_state


def test_when_all_checkpoints_are_damaged_the_error_says_so(run_dir: Path, chain: TokenData) -> None:
    for path in checkpoints(run_dir):
        flip_a_bit(path / "weights.safetensors", 0.5)
    with (
        pytest.warns(UserWarning, match="passing over"),
        pytest.raises(CheckpointError, match=r"all 3 checkpoints .* are damaged"),
    ):
        Trainer.resume(run_dir, chain, progress=False)


def test_only_the_last_checkpoints_stay_and_leftovers_of_a_killed_writer_go(
    small: DecoderConfig, chain: TokenData, settings: Any, tmp_path: Path
) -> None:
    config = settings(12, checkpoint_every=2, keep_checkpoints=2)
    trainer = Trainer(small, chain, config, run_dir=tmp_path, progress=False)
    trainer.run(until_tokens=9 * 256)
    half = tmp_path / "checkpoints" / ".step-000000010.abc.tmp"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    (tmp_path / "checkpoints" / ".step-000000004.abc.old").mkdir()
    Trainer.resume(tmp_path, chain, progress=False).run()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000010", "step-000000012"]


def test_a_kill_while_an_old_checkpoint_is_removed_leaves_nothing_of_it(
    small: DecoderConfig, chain: TokenData, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(6, checkpoint_every=2, keep_checkpoints=1)
    trainer = Trainer(small, chain, config, run_dir=tmp_path, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *args, **options: None)  # killed before a file is deleted
        trainer.run(until_tokens=5 * 256)
    Trainer.resume(tmp_path, chain, progress=False).run()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000006"]


def test_no_checkpoint_is_an_error_that_says_where_it_was_sought(tmp_path: Path, chain: TokenData) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        Trainer.resume(tmp_path / "nowhere", chain)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        Trainer.resume(tmp_path, chain)


def test_another_version_or_format_is_refused_with_both_and_nothing_falls_back(
    run_dir: Path, chain: TokenData
) -> None:
    edit(run_dir, lambda manifest: manifest.update(format_version=99))
    with pytest.raises(CheckpointError, match=f"version 99, this scalelab reads version {FORMAT_VERSION}"):
        Trainer.resume(run_dir, chain)
    edit(run_dir, lambda manifest: manifest.update(format="something else"))
    with pytest.raises(CheckpointError, match="format 'something else'"):
        Trainer.resume(run_dir, chain)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.pop("step"),
        lambda manifest: manifest.pop("train_config"),
        lambda manifest: manifest.update(surplus=1),
        lambda manifest: manifest["train_config"].update(learning_rate=-1.0),
        lambda manifest: manifest["model_config"].update(n_layers="many"),
        lambda manifest: manifest["precision"].update(precision="fp3"),
        lambda manifest: manifest["files"].pop("history.safetensors"),
        lambda manifest: manifest["files"].update({"../escape.safetensors": "0"}),
    ],
)
def test_a_manifest_that_makes_no_sense_is_a_checkpoint_error(
    change: Callable[[dict[str, Any]], None], run_dir: Path
) -> None:
    edit(run_dir, change)
    with pytest.raises(CheckpointError):
        load_checkpoint(checkpoints(run_dir)[-1])


def test_weights_of_another_model_are_refused_with_the_names_that_differ(
    run_dir: Path, small: DecoderConfig, chain: TokenData
) -> None:
    wide = dataclasses.replace(small, d_ff=256)
    with pytest.raises(CheckpointError, match="d_ff is 128 in the checkpoint, 256 here"):
        Trainer.resume(run_dir, chain, model=Decoder(wide, seed=0), progress=False)

    edit(run_dir, lambda manifest: manifest["model_config"].update(n_layers=1))
    with pytest.raises(CheckpointError, match=r"another model: it lacks blocks\.1"):
        Trainer.resume(run_dir, chain, progress=False)


def test_other_data_is_refused_even_under_the_same_name(run_dir: Path, chain: TokenData) -> None:
    changed = chain.train.copy()
    changed[1000] = (changed[1000] + 1) % 64
    with pytest.raises(CheckpointError, match=r"other data: sha256 is"):
        Trainer.resume(run_dir, dataclasses.replace(chain, train=changed), progress=False)
    with pytest.raises(CheckpointError, match="tokenizer is 'symbols' in the checkpoint, 'bytes' here"):
        Trainer.resume(run_dir, dataclasses.replace(chain, tokenizer_name="bytes"), progress=False)


def test_another_thread_count_is_warned_of(run_dir: Path, chain: TokenData) -> None:
    edit(run_dir, lambda manifest: manifest["environment"].update(threads=64))
    with pytest.warns(UserWarning, match="last bits may differ.*threads was 64, is 1"):
        Trainer.resume(run_dir, chain, progress=False)


def test_train_goes_on_where_a_run_was_left(
    small: DecoderConfig, chain: TokenData, settings: Any, run_dir: Path
) -> None:
    config = settings(12, checkpoint_every=3, keep_checkpoints=3)
    record = train(small, chain, config, run_dir=run_dir, progress=False)
    alone = train(small, chain, config, progress=False)
    assert (record.loss_nats, record.curve, record.run_id) == (alone.loss_nats, alone.curve, alone.run_id)


def test_nothing_in_a_checkpoint_is_pickled(run_dir: Path) -> None:
    for path in checkpoints(run_dir):
        assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}
    source = Path(scalelab.train.__file__).parent
    for file in source.glob("*.py"):
        text = file.read_text()
        assert "torch.load(" not in text
        assert "torch.save(" not in text
        assert "import pickle" not in text


def test_history_survives_a_checkpoint_to_the_last_bit(run_dir: Path) -> None:
    history = load_checkpoint(run_dir).history
    assert len(history) == 9
    assert history[-1].tokens == 9 * 256
    assert np.isfinite(history.loss_nats).all()
    assert history.curve[0][0] == 256
