"""Damaged and foreign checkpoints: each gets one of our errors, and the run's folder stays as it was."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from scalelab.cli import main
from scalelab.cli.generate import continue_text, load_run
from scalelab.cli.run_folder import read_run_settings
from scalelab.core.artifacts import read_artifact, sha256_of_file
from scalelab.core.errors import CheckpointError
from scalelab.data import TokenData, byte_tokenizer, corpus, encode_corpus
from scalelab.train import TrainConfig, Trainer, load_checkpoint
from scalelab.train.checkpoint import _digest

pytestmark = pytest.mark.filterwarnings("ignore:passing over a damaged checkpoint")
GROUPS = ("weights", "optimizer", "random", "history")
Damage = Callable[[Path], object]


def newest(run: Path) -> Path:
    """The checkpoint that a damage is done to."""
    return run / "checkpoints" / "step-000000008"


def older(run: Path) -> Path:
    return run / "checkpoints" / "step-000000006"


def group(run: Path, name: str) -> Path:
    return newest(run) / f"{name}.safetensors"


def manifest(run: Path) -> Path:
    return newest(run) / "manifest.json"


# --- damage to bytes ---------------------------------------------------------------------------------------


def cut(name: str, place: Callable[[bytes], int]) -> Damage:
    """Keep the bytes before a place."""

    def damage(run: Path) -> None:
        file = newest(run) / name
        content = file.read_bytes()
        file.write_bytes(content[: place(content)])

    return damage


def flip(name: str, place: Callable[[bytes], int], bit: int = 0) -> Damage:
    """Change one bit."""

    def damage(run: Path) -> None:
        file = newest(run) / name
        content = bytearray(file.read_bytes())
        content[place(bytes(content))] ^= 1 << bit
        file.write_bytes(bytes(content))

    return damage


def header_end(content: bytes) -> int:
    """Where a safetensors file's numbers begin: after 8 bytes of length and so many of JSON."""
    return 8 + int.from_bytes(content[:8], "little")


def share(part: float) -> Callable[[bytes], int]:
    return lambda content: int(len(content) * part)


def at(index: int) -> Callable[[bytes], int]:
    return lambda content: index % len(content)


def written(name: str, content: bytes) -> Damage:
    return lambda run: (newest(run) / name).write_bytes(content)


def removed(name: str) -> Damage:
    return lambda run: (newest(run) / name).unlink()


W = "weights.safetensors"
BYTE_CASES: dict[str, tuple[Damage, str]] = {
    "weights cut to nothing": (cut(W, at(0)), W),
    "weights cut inside the header's length": (cut(W, at(5)), W),
    "weights cut after the header's length": (cut(W, at(8)), W),
    "weights cut inside the header": (cut(W, lambda c: header_end(c) // 2), W),
    "weights cut after the header": (cut(W, header_end), W),
    "weights cut in the middle": (cut(W, share(0.5)), W),
    "weights cut by one byte": (cut(W, at(-1)), W),
    "optimiser cut in the middle": (cut("optimizer.safetensors", share(0.5)), "optimizer.safetensors"),
    "random state cut in the middle": (cut("random.safetensors", share(0.5)), "random.safetensors"),
    "history cut in the middle": (cut("history.safetensors", share(0.5)), "history.safetensors"),
    "weights grown by one byte": (
        lambda run: group(run, "weights").write_bytes(group(run, "weights").read_bytes() + b"\0"), W,
    ),
    "weights with a bit flipped in the header's length": (flip(W, at(0)), W),
    "weights with a bit flipped in the header": (flip(W, lambda c: header_end(c) // 2), W),
    "weights with a bit flipped in the first number": (flip(W, header_end), W),
    "weights with a bit flipped in the middle": (flip(W, share(0.6)), W),
    "weights with a sign flipped": (flip(W, at(-1), bit=7), W),
    "optimiser with a bit flipped": (flip("optimizer.safetensors", share(0.7)), "optimizer.safetensors"),
    "random state with a bit flipped": (flip("random.safetensors", share(0.7)), "random.safetensors"),
    "history with a bit flipped": (flip("history.safetensors", share(0.9)), "history.safetensors"),
    "weights of zeros": (written(W, bytes(2000)), W),
    "weights that are a pickle": (written(W, pickle.dumps({"w": [1.0]})), W),
    "weights that are missing": (removed(W), W),
    "optimiser that is missing": (removed("optimizer.safetensors"), "optimizer.safetensors"),
    "random state that is missing": (removed("random.safetensors"), "random.safetensors"),
    "history that is missing": (removed("history.safetensors"), "history.safetensors"),
    "weights that are a folder": (lambda run: (removed(W)(run), group(run, "weights").mkdir()), W),
    "weights behind a broken link": (
        lambda run: (removed(W)(run), group(run, "weights").symlink_to(run / "gone")), W,
    ),
    "weights and optimiser swapped": (
        lambda run: [
            file.write_bytes(content)
            for file, content in (
                (group(run, "weights"), group(run, "optimizer").read_bytes()),
                (group(run, "optimizer"), group(run, "weights").read_bytes()),
            )
        ],
        W,
    ),
    "weights of an older step": (lambda run: shutil.copy(older(run) / W, group(run, "weights")), W),
    "manifest of an older step": (
        lambda run: shutil.copy(older(run) / "manifest.json", manifest(run)), "sha256",
    ),
    "manifest that is missing": (removed("manifest.json"), "manifest.json"),
    "manifest that is empty": (written("manifest.json", b""), "manifest.json"),
    "manifest cut at a quarter": (cut("manifest.json", share(0.25)), "manifest.json"),
    "manifest cut in the middle": (cut("manifest.json", share(0.5)), "manifest.json"),
    "manifest cut by one byte": (cut("manifest.json", at(-1)), "manifest.json"),
    "manifest that is binary": (written("manifest.json", b"\xff\xfe\0"), "manifest.json"),
    "manifest in UTF-16": (
        lambda run: manifest(run).write_bytes(manifest(run).read_text().encode("utf-16")), "manifest.json",
    ),
    "manifest that is no JSON": (written("manifest.json", b"step = 8"), "manifest.json"),
    "manifest that is a list": (written("manifest.json", b"[]"), "manifest.json"),
    "manifest that is a number": (written("manifest.json", b"8"), "manifest.json"),
    "manifest that is null": (written("manifest.json", b"null"), "manifest.json"),
    "manifest nested too deep": (written("manifest.json", b"[" * 100_000), "manifest.json"),
    "manifest that lists no files": (written("manifest.json", b"{}"), "manifest.json"),
    "manifest that is a folder": (
        lambda run: (removed("manifest.json")(run), manifest(run).mkdir()), "manifest.json",
    ),
    "folder that is empty": (lambda run: [file.unlink() for file in newest(run).iterdir()], "step-000000008"),
    "folder that is missing": (lambda run: shutil.rmtree(newest(run)), "step-000000008"),
    "folder that is a file": (
        lambda run: (shutil.rmtree(newest(run)), newest(run).write_text("x")), "step-000000008",
    ),
}  # fmt: skip


# --- manifests that say something else ----------------------------------------------------------------------


def edited(change: Callable[[dict[str, Any]], object], *, sealed: bool) -> Damage:
    """Change a manifest's values; `sealed` gives it the checksum that the new values have."""

    def damage(run: Path) -> None:
        values = json.loads(manifest(run).read_text())
        change(values)
        if sealed:
            stored = {name: value for name, value in values.items() if name not in ("files", "digest")}
            values["digest"] = _digest(stored)
        manifest(run).write_text(json.dumps(values))

    return damage


def put(name: str, value: object) -> Callable[[dict[str, Any]], object]:
    def change(values: dict[str, Any]) -> None:
        *path, last = name.split(".")
        for key in path:
            values = values[key]
        values[last] = value

    return change


def lack(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda values: values.pop(name)


def files(value: object) -> Damage:
    return edited(lambda values: values.update(files=value), sealed=True)


EDIT_CASES: dict[str, tuple[Damage, str]] = {
    "manifest edited by hand": (edited(put("step", 9), sealed=False), "checksum"),
    "manifest without its own checksum": (edited(lack("digest"), sealed=False), "checksum"),
    "manifest with a checksum of text": (edited(put("digest", "none"), sealed=False), "checksum"),
    "checkpoint of a later version": (edited(put("format_version", 99), sealed=True), "99"),
    "checkpoint whose version is text": (edited(put("format_version", "1"), sealed=True), "'1'"),
    "checkpoint without a version": (edited(lack("format_version"), sealed=True), "None"),
    "checkpoint of another program": (edited(put("format", "pt"), sealed=True), "'pt'"),
    "files that are a list": (files(["weights.safetensors"]), "manifest.json"),
    "files outside the folder": (files({"../weights.safetensors": "0"}), "../weights.safetensors"),
    "files by absolute path": (files({"/etc/passwd": "0"}), "/etc/passwd"),
    "files that are pickles": (files({"weights.pt": "0"}), "weights.pt"),
    "files without checksums": (files({"weights.safetensors": None}), "None"),
    "files that leave out the weights": (
        edited(lambda values: values["files"].pop("weights.safetensors"), sealed=True), "weights.safetensors",
    ),
    "files that list one more": (
        edited(lambda values: values["files"].update({"extra.safetensors": "0"}), sealed=True),
        "extra.safetensors",
    ),
}  # fmt: skip

# Whole and sealed, but of values that no run has: found when a run is to go on from them.
RESUME_CASES: dict[str, tuple[Damage, str]] = {
    "manifest without a step": (edited(lack("step"), sealed=True), "step"),
    "manifest without a model": (edited(lack("model_config"), sealed=True), "model_config"),
    "manifest with an unknown key": (edited(put("extra", 1), sealed=True), "extra"),
    "step that is text": (edited(put("step", "eight"), sealed=True), "'eight'"),
    "step that is negative": (edited(put("step", -8), sealed=True), "-8"),
    "step that is a fraction": (edited(put("step", 7.5), sealed=True), "7.5"),
    "step beyond the run's end": (edited(put("step", 10**6), sealed=True), "1000000"),
    "step of another count than the history": (edited(put("step", 7), sealed=True), "7"),
    "model that is a list": (edited(put("model_config", [1]), sealed=True), "[1]"),
    "model of an unknown kind": (edited(put("model_config.kind", "mamba"), sealed=True), "mamba"),
    "model of another width": (edited(put("model_config.d_model", 16), sealed=True), "16"),
    "model with an unknown field": (edited(put("model_config.n_experts", 8), sealed=True), "n_experts"),
    "training with a refused value": (edited(put("train_config.batch_size", 0), sealed=True), "batch_size"),
    "training that is null": (edited(put("train_config", None), sealed=True), "None"),
    "unknown precision": (edited(put("precision.precision", "fp4"), sealed=True), "fp4"),
    "precision that is text": (edited(put("precision", "bf16"), sealed=True), "bf16"),
    "data of another text": (edited(put("data.sha256", "0" * 64), sealed=True), "sha256"),
    "data that is null": (edited(put("data", None), sealed=True), "data"),
    "position that is null": (edited(put("data_state", None), sealed=True), "data_state"),
    "position without a place": (edited(put("data_state", {}), sealed=True), "'seed'"),
    "position of another seed": (edited(put("data_state.seed", 5), sealed=True), "5"),
    "position that is text": (edited(put("data_state.position", "first"), sealed=True), "'first'"),
    "aliases that are a list": (edited(put("aliases", ["a"]), sealed=True), "aliases"),
    "aliases of nothing": (edited(put("aliases", {"head.weight": "gone"}), sealed=True), "head.weight"),
    "seconds that are text": (edited(put("seconds", "long"), sealed=True), "'long'"),
    "scaler that is a number": (edited(put("scaler", 3), sealed=True), "scaler"),
    "environment that is text": (edited(put("environment", "here"), sealed=True), "environment"),
    "compiling that is text": (edited(put("compiled", "no"), sealed=True), "compiled"),
}


# --- tensors that fit no model ------------------------------------------------------------------------------


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """Change a group's tensors and give the file the checksum that it then has."""

    def damage(run: Path) -> None:
        file = group(run, name)
        held = load_file(file)
        change(held)
        save_file({key: value.contiguous() for key, value in held.items()}, file)
        values = json.loads(manifest(run).read_text())
        values["files"][file.name] = sha256_of_file(file)
        manifest(run).write_text(json.dumps(values))

    return damage


def first(held: dict[str, torch.Tensor]) -> str:
    return min(held)


def each(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda held: held.update({name: change(value) for name, value in held.items()})


def filled(value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda held: held[first(held)].fill_(value)


TENSOR_CASES: dict[str, tuple[Damage, str]] = {
    "weights with one missing": (tensors("weights", lambda held: held.pop(first(held))), "they lack"),
    "weights with one too many": (tensors("weights", lambda held: held.update(one=torch.zeros(1))), "one"),
    "weights with one renamed": (
        tensors("weights", lambda held: held.update(renamed=held.pop(first(held)))), "renamed",
    ),
    "weights of another shape": (
        tensors("weights", each(lambda t: t.repeat(2, *[1] * (t.ndim - 1)))), "(514, 8)",
    ),
    "weights of flattened shape": (tensors("weights", each(lambda t: t.flatten())), "stored as"),
    "weights in float64": (tensors("weights", each(lambda t: t.double())), "float64"),
    "weights in whole numbers": (tensors("weights", each(lambda t: t.long())), "int64"),
    "weights that are nan": (tensors("weights", filled(math.nan)), "finite"),
    "weights that are infinite": (tensors("weights", filled(math.inf)), "finite"),
    "no weights": (tensors("weights", lambda held: held.clear()), "they lack"),
    "optimiser with one missing": (tensors("optimizer", lambda held: held.pop(first(held))), "optimiser"),
    "optimiser with one too many": (
        tensors("optimizer", lambda held: held.update({"extra|exp_avg": torch.zeros(1)})), "extra|exp_avg",
    ),
    "optimiser with names of its own": (
        tensors("optimizer", lambda held: held.update(momentum=torch.zeros(3))), "momentum",
    ),
    "optimiser of another shape": (
        tensors("optimizer", each(lambda t: t.repeat(2, *[1] * (t.ndim - 1)) if t.ndim else t)), "optimiser",
    ),
    "optimiser that is empty": (tensors("optimizer", lambda held: held.clear()), "optimiser"),
    "optimiser that is nan": (tensors("optimizer", filled(math.nan)), "finite"),
    "random state that is empty": (tensors("random", lambda held: held.clear()), "random"),
    "random state of another device": (
        tensors("random", lambda held: held.update(tpu=held[first(held)].clone())), "tpu",
    ),
    "random state of another length": (tensors("random", each(lambda t: t[:100].clone())), "random"),
    "random state in floats": (tensors("random", each(lambda t: t.float())), "random"),
    "history without losses": (tensors("history", lambda held: held.pop("loss_nats")), "loss_nats"),
    "history of another length": (
        tensors("history", lambda held: held.update(loss_nats=held["loss_nats"][:3].clone())), "history",
    ),
    "history whose curve is flat": (
        tensors("history", lambda held: held.update(curve=held["curve"].flatten())), "history",
    ),
}  # fmt: skip


# --- runs --------------------------------------------------------------------------------------------------


def both(damage: Damage) -> Damage:
    """The same done to the older checkpoint, so that nothing is left to fall back on."""

    def twice(run: Path) -> None:
        damage(run)
        for file in older(run).iterdir():
            file.write_bytes(b"")

    return twice


def settings(content: bytes) -> Damage:
    return lambda run: (run / "settings.json").write_bytes(content)


# kind → (damage, words after `scalelab` with RUN for the folder, what the line must name)
RUN_CASES: dict[str, tuple[Damage, str, str]] = {
    "run of which all checkpoints are damaged": (both(cut(W, at(9))), "generate RUN", "all 2 checkpoints"),
    "run without checkpoints": (
        lambda run: shutil.rmtree(run / "checkpoints"), "generate RUN", "manifest.json",
    ),
    "run whose checkpoints folder is empty": (
        lambda run: [shutil.rmtree(folder) for folder in (newest(run), older(run))],
        "generate RUN", "checkpoint",
    ),
    "run without a tokenizer": (
        lambda run: (run / "tokenizer.json").unlink(), "generate RUN", "tokenizer.json",
    ),
    "run with a cut tokenizer": (
        lambda run: (run / "tokenizer.json").write_text('{"format'), "generate RUN", "tokenizer.json",
    ),
    "run with another run's tokenizer": (
        lambda run: (run / "tokenizer.json").write_text(
            json.dumps({"format": "scalelab-tokenizer-1", "kind": "symbols", "settings": {}})
        ),
        "generate RUN", "129",
    ),
    "run whose settings are missing": (
        lambda run: (run / "settings.json").unlink(), "generate RUN", "settings.json",
    ),
    "run whose settings are cut": (settings(b'{"format": 1, "run": {'), "generate RUN", "settings.json"),
    "run whose settings are a list": (settings(b"[]"), "generate RUN", "settings.json"),
    "run whose settings nest too deep": (settings(b"[" * 100_000), "generate RUN", "settings.json"),
    "run whose settings are of another version": (settings(b'{"format": 2}'), "generate RUN", "format 2"),
    "run whose settings lack the model": (
        settings(b'{"format": 1, "run": {}, "train": {}}'), "generate RUN", "'model'",
    ),
    "run whose settings have an unknown key": (
        settings(b'{"format": 1, "run": {"corpsu": "python"}, "model": {}, "train": {}}'),
        "generate RUN", "corpsu",
    ),
    "resume with another width": (lambda run: None, "train --out RUN --resume --d-model 16", "--d-model"),
    "resume with another budget": (lambda run: None, "train --out RUN --resume --tokens 9k", "--tokens"),
    "resume with another corpus": (lambda run: None, "train --out RUN --resume --corpus markov", "--corpus"),
    "new run over an old one": (lambda run: None, "train --out RUN --corpus markov", "--resume"),
    "resume from other settings than the checkpoint's": (
        lambda run: (run / "settings.json").write_text(
            (run / "settings.json").read_text().replace('"batch_size": 2', '"batch_size": 4')
        ),
        "train --out RUN --resume --quiet", "batch_size",
    ),
    "text at a negative temperature": (lambda run: None, "generate RUN --temperature -1", "-1"),
    "text from more tokens than there are": (lambda run: None, "generate RUN --top-k 300", "top_k=300"),
}  # fmt: skip


def named(cases: dict[str, Any]) -> Any:
    """One test a case, called by its kind."""
    return pytest.mark.parametrize("case", cases.values(), ids=cases.keys())


@pytest.fixture(scope="module")
def data(trained: Path) -> TokenData:
    """The tokens that the run was trained on."""
    return encode_corpus(corpus(trained / "text.txt"), byte_tokenizer(), cache=None)


def test_the_undamaged_run_is_accepted(run: Path, data: TokenData) -> None:
    assert load_checkpoint(newest(run)).step == 8
    assert Trainer.resume(run, data, progress=False).step_count == 8
    assert read_run_settings(run).model["d_model"] == 8
    model, tokenizer = load_run(run)
    assert (
        continue_text(
            model, tokenizer, "a", max_new_tokens=2, temperature=1.0, top_k=None, top_p=None, seed=0
        )
        is not None
    )


@named(BYTE_CASES | EDIT_CASES)
def test_damaged_checkpoint_is_refused(
    case: tuple[Damage, str], run: Path, refuses: Any, contents: Any
) -> None:
    damage, says = case
    damage(run)
    before = contents(run)
    error = refuses(lambda: load_checkpoint(newest(run)), says)
    assert isinstance(error, CheckpointError)
    assert contents(run) == before


@named(RESUME_CASES | TENSOR_CASES)
def test_checkpoint_that_is_whole_but_wrong_is_refused(
    case: tuple[Damage, str], run: Path, data: TokenData, refuses: Any, contents: Any
) -> None:
    damage, says = case
    damage(run)
    shutil.rmtree(older(run))  # nothing to fall back on
    before = contents(run)
    refuses(lambda: Trainer.resume(run, data, progress=False), says)
    assert contents(run) == before


@named(RUN_CASES)
def test_damaged_run_is_one_line_and_exit_code_2(
    case: tuple[Damage, str, str], run: Path, capsys: pytest.CaptureFixture[str], contents: Any
) -> None:
    damage, words, says = case
    damage(run)
    before = contents(run)
    capsys.readouterr()
    code = main([str(run) if word == "RUN" else word for word in words.split()])
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("scalelab: warning: ")]
    assert (code, out, len(lines)) == (2, "", 1), err
    assert lines[0].startswith("scalelab: error: ")
    assert says in lines[0].replace(str(run), "")
    assert contents(run) == before


@pytest.mark.parametrize("place", [number / 40 for number in range(40)])
def test_manifest_with_any_bit_flipped_is_refused(place: float, run: Path, refuses: Any) -> None:
    flip("manifest.json", share(place), bit=int(place * 40) % 7)(run)
    refuses(lambda: load_checkpoint(newest(run)), "step-000000008")


def test_checkpoint_of_a_run_on_other_tokens_is_refused(run: Path, tmp_path: Path, refuses: Any) -> None:
    (tmp_path / "other.txt").write_text("other words, other tokens\n" * 100)
    other = encode_corpus(corpus(tmp_path / "other.txt"), byte_tokenizer(), cache=None)
    refuses(lambda: Trainer.resume(run, other, progress=False), "data")


def test_checkpoint_of_another_model_is_refused(run: Path, data: TokenData, refuses: Any) -> None:
    from scalelab.core.config import DecoderConfig
    from scalelab.models import Decoder

    other = Decoder(DecoderConfig(n_layers=2, d_model=8, n_heads=2, vocab_size=257, seq_len=16))
    refuses(lambda: Trainer.resume(run, data, model=other, progress=False), "n_layers")


def test_checkpoint_under_other_settings_is_refused(run: Path, data: TokenData, refuses: Any) -> None:
    found = load_checkpoint(run)
    config = TrainConfig(n_tokens=512, batch_size=2, seq_len=16)
    refuses(
        lambda: Trainer(found.model_config, data, config, progress=False, checkpoint=found), "n_tokens is 256"
    )


def test_new_run_in_the_folder_of_an_old_one_is_refused(run: Path, data: TokenData, refuses: Any) -> None:
    found = load_checkpoint(run)
    refuses(
        lambda: Trainer(found.model_config, data, found.train_config, run_dir=run, progress=False), "step 8"
    )


def test_tokens_that_the_model_does_not_know_are_refused(run: Path, trained: Path, refuses: Any) -> None:
    from scalelab.core.config import DecoderConfig

    data = encode_corpus(corpus(trained / "text.txt"), byte_tokenizer(), cache=None)
    small = DecoderConfig(n_layers=1, d_model=8, n_heads=2, vocab_size=64, seq_len=16)
    config = TrainConfig(n_tokens=512, batch_size=2, seq_len=16)
    refuses(lambda: Trainer(small, data, config, progress=False), "63")


def test_artifact_is_read_by_nothing_but_its_own_names(run: Path) -> None:
    """Whatever lies beside the named files is not read."""
    (newest(run) / "evil.pkl").write_bytes(b"\x80\x04.")
    held, _ = read_artifact(newest(run))
    assert set(held) == set(GROUPS)
