"""`scalelab cost`: what a model costs before a weight of it exists, without torch.

Parameters by part, FLOPs exact and by 6ND, memory of a training step by kind, and the time a run takes on a
named accelerator. Taught in book/transformers/training.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scalelab.cli.parser import Command, Parser, did_you_mean, one_of, real_number, whole_number
from scalelab.cli.settings import (
    MODEL_SETTINGS,
    RUN_SETTINGS,
    TABLES,
    Table,
    add_flags,
    decoder_config,
    given_flags,
    read_settings,
)
from scalelab.cli.tables import table
from scalelab.core.checks import check_positive_int
from scalelab.core.config import EncoderDecoderConfig, ModelConfig, VisionConfig, config_to_dict
from scalelab.core.errors import ConfigError
from scalelab.core.presets import preset, preset_names
from scalelab.core.units import format_bytes, format_count, format_seconds

DEFAULT_SEQ_LEN, DEFAULT_BATCH_SIZE, DEFAULT_VOCAB_SIZE, DEFAULT_MFU = 1024, 8, 512, 0.4
DEFAULT_PRECISION = "fp32"


def run(argv: Sequence[str]) -> int:
    """Print what a model costs.

    Raises:
        ConfigError: an unusable flag, model, device or size.
    """
    args = _parser().parse(argv)
    if args.list:
        print(_preset_list(as_json=args.json))
        return 0
    name, config, settings = _model(args)
    report = cost_report(
        name,
        config,
        batch_size=args.batch_size or settings.get("batch_size", DEFAULT_BATCH_SIZE),
        seq_len=args.seq_len or min(getattr(config, "seq_len", DEFAULT_SEQ_LEN), DEFAULT_SEQ_LEN),
        precision=args.precision or _precision(settings),
        accumulate=args.accumulate or settings.get("accumulate", 1),
        n_tokens=args.tokens or settings.get("n_tokens"),
        device=args.device,
        mfu=args.mfu,
        target_len=args.target_len,
    )
    print(json.dumps(report, indent=1, allow_nan=False) if args.json else report_text(report))
    return 0


def cost_report(
    name: str,
    config: ModelConfig,
    *,
    batch_size: int,
    seq_len: int,
    precision: str = "fp32",
    accumulate: int = 1,
    n_tokens: int | None = None,
    device: str | None = None,
    mfu: float = DEFAULT_MFU,
    target_len: int | None = None,
) -> dict[str, Any]:
    """What a model costs, as JSON values: what `scalelab cost --json` prints.

    Args:
        name: what to call the model.
        config: its shape; FLOPs and memory are None for models of pictures.
        batch_size, seq_len: B and T of a step; of an encoder–decoder S, tokens of each source.
        precision: fp32, bf16 or fp16.
        accumulate: micro-batches that the step is cut into; the activations of one are held at a time.
        n_tokens: of a whole training run; one step when None.
        device: an accelerator of `scalelab.cost`'s table; no time when None.
        mfu: the share of the device's peak that training reaches, in (0, 1].
        target_len: T, tokens that an encoder–decoder writes for each source; `seq_len` when None.

    Raises:
        ConfigError: a size, precision, device or share that cannot be.
    """
    sizes = {"batch_size": batch_size, "seq_len": seq_len, "accumulate": accumulate}
    _check_sizes(sizes if n_tokens is None else {**sizes, "n_tokens": n_tokens})
    report: dict[str, Any] = {
        "model": name,
        "config": config_to_dict(config),
        "params": _params(config),
        "step": {**sizes, "n_tokens": batch_size * seq_len, "precision": precision},
        "flops": None,
        "memory_bytes": None,
        "run": None,
    }
    if isinstance(config, VisionConfig):
        if (n_tokens, device, target_len) != (None, None, None):
            raise ConfigError(
                f"{name} reads no tokens: its parameters can be counted, its FLOPs and time cannot"
            )
        return report
    if isinstance(config, EncoderDecoderConfig):
        report["step"]["target_len"] = seq_len if target_len is None else target_len
    report["flops"] = _flops(config, report["params"]["matmul"], batch_size, seq_len, target_len)
    report["memory_bytes"] = _memory(config, report["step"])
    if n_tokens is not None or device is not None:
        report["run"] = _run_cost(report, n_tokens or batch_size * seq_len, device, mfu)
    return report


def _check_sizes(sizes: Mapping[str, int]) -> None:
    for size, value in sizes.items():
        check_positive_int(size, value)  # a settings file may hold anything
    accumulate, batch_size = sizes["accumulate"], sizes["batch_size"]
    if accumulate > batch_size:
        raise ConfigError(f"accumulate={accumulate} micro-batches cannot be cut from batch_size={batch_size}")


def _params(config: ModelConfig) -> dict[str, Any]:
    from scalelab.cost import params

    counts = params(config)
    return {
        "total": counts.total,
        "matmul": counts.matmul,
        "non_embedding": counts.non_embedding,
        "parts": dict(counts.parts),
    }


def _flops(
    config: ModelConfig, n_params_matmul: int, batch_size: int, seq_len: int, target_len: int | None
) -> dict[str, Any]:
    """Per token: of a text, or of an encoder–decoder's source."""
    from scalelab.cost import flops, flops_6nd

    shape: dict[str, Any] = {"batch_size": batch_size, "seq_len": seq_len, "target_len": target_len}
    forward = flops(config, **shape, training=False)
    training = flops(config, **shape, training=True)
    n_tokens = batch_size * seq_len
    has_one_d = target_len in (None, seq_len)  # else the two sides multiply with different numbers of tokens
    return {
        "forward_per_token": forward.total / n_tokens,
        "training_per_token": training.total / n_tokens,
        "six_n_per_token": flops_6nd(n_params_matmul, 1) if has_one_d else None,
        "forward_per_step": forward.total,
        "training_per_step": training.total,
        "six_nd_per_step": flops_6nd(n_params_matmul, n_tokens) if has_one_d else None,
        "training_parts_per_step": dict(training.parts),
    }


def _memory(config: ModelConfig, step: Mapping[str, Any]) -> dict[str, float]:
    from scalelab.cost import memory

    found = memory(
        config,
        batch_size=-(-step["batch_size"] // step["accumulate"]),  # the largest micro-batch
        seq_len=step["seq_len"],
        precision=step["precision"],
        accumulate=step["accumulate"],
        target_len=step.get("target_len"),
    )
    return {
        kind: getattr(found, f"{kind}_bytes")
        for kind in ("weights", "gradients", "optimizer", "activations", "total", "peak")
    }


def _run_cost(report: Mapping[str, Any], n_tokens: int, device: str | None, mfu: float) -> dict[str, Any]:
    """FLOPs of so many tokens, and the seconds they take on a device where one is named."""
    from scalelab.cost import flops_6nd

    if not 0 < mfu <= 1:
        raise ConfigError(f"--mfu must lie in (0, 1], got {mfu:g}")
    exact = report["flops"]["training_per_token"] * n_tokens
    has_rule = report["flops"]["six_n_per_token"] is not None
    found: dict[str, Any] = {
        "n_tokens": n_tokens,
        "flops": exact,
        "flops_6nd": flops_6nd(report["params"]["matmul"], n_tokens) if has_rule else None,
    }
    if device is not None:
        peak = _peak(device, report["step"]["precision"])
        found |= {"device": device, "peak_flops_per_s": peak, "mfu": mfu, "seconds": exact / (peak * mfu)}
    return found


def _peak(device: str, precision: str) -> float:
    from scalelab.cost.hardware import accelerator_names, require_accelerator

    try:
        peaks = require_accelerator(device).peak_flops
    except ConfigError as error:
        raise ConfigError(f"--device: {error}{did_you_mean(device, accelerator_names())}") from None
    if precision not in peaks:
        raise ConfigError(
            f"{device} has no {precision} units; it multiplies in {', '.join(peaks)} (--precision)"
        )
    return peaks[precision]


def report_text(report: Mapping[str, Any]) -> str:
    """The report as tables for people."""
    blocks = [f"{report['model']}: {_shape(report['config'])}", _params_table(report["params"])]
    if report["flops"] is None:
        blocks.append("FLOPs and memory are counted for models that read tokens; this one reads pictures.")
    else:
        blocks += [_flops_table(report["flops"], report["step"]), _memory_table(report)]
    if report["run"] is not None:
        blocks.append(_run_text(report["run"], report["step"]["precision"]))
    return "\n\n".join(blocks)


def _shape(config: Mapping[str, Any]) -> str:
    words = [f"{config['n_layers']} layers", f"d_model {config['d_model']}", f"{config['n_heads']} heads"]
    if config.get("n_kv_heads") not in (None, config["n_heads"]):
        words.append(f"{config['n_kv_heads']} key/value heads")
    words.append(f"d_ff {config['d_ff']}")
    if "vocab_size" in config:
        words.append(f"vocabulary {config['vocab_size']:,}")
    if "seq_len" in config:
        words.append(f"context {config['seq_len']:,}")
    return ", ".join(words)


def _params_table(counts: Mapping[str, Any]) -> str:
    rows = [(part, f"{n:,}", f"{n / counts['total']:.1%}") for part, n in counts["parts"].items()]
    rows += [
        ("total (n_params)", f"{counts['total']:,}", ""),
        ("that multiply (n_params_matmul, the N of 6ND)", f"{counts['matmul']:,}", ""),
        ("without tables and head (n_params_non_embedding)", f"{counts['non_embedding']:,}", ""),
    ]
    return table("Parameters", ("count", "share"), rows)


def _flops_table(counts: Mapping[str, Any], step: Mapping[str, Any]) -> str:
    target = f" and {step['target_len']:,}" if "target_len" in step else ""
    step_name = f"per step of {step['batch_size']:,} × {step['seq_len']:,}{target} tokens"
    kinds = (("forward", "forward"), ("training", "training, exact"))
    rows = [
        (label, format_count(counts[f"{kind}_per_token"]), format_count(counts[f"{kind}_per_step"]))
        for kind, label in kinds
    ]
    if counts["six_nd_per_step"] is None:
        note = "6ND needs one D: here each side multiplies its own weights with its own tokens"
    else:
        per_token, per_step = counts["six_n_per_token"], counts["six_nd_per_step"]
        rows.append(("training, 6ND", format_count(per_token), format_count(per_step)))
        ratio = counts["six_nd_per_step"] / counts["training_per_step"]
        note = f"6ND is {ratio:.3f} of the exact count: it leaves out the attention's own products"
    per = "per source token" if "target_len" in step else "per token"
    return table("FLOPs (a multiply–add is two)", (per, step_name), rows) + f"\n  {note}"


def _memory_table(report: Mapping[str, Any]) -> str:
    kinds = {"optimizer": "optimiser (AdamW)", "total": "all four", "peak": "most at one time"}
    rows = [(kinds.get(kind, kind), format_bytes(n)) for kind, n in report["memory_bytes"].items()]
    step = report["step"]
    pieces = f", cut into {step['accumulate']:,} micro-batches" if step["accumulate"] > 1 else ""
    return table(f"Memory of a training step in {step['precision']}{pieces}", ("bytes",), rows)


def _run_text(costs: Mapping[str, Any], precision: str) -> str:
    text = f"Training on {format_count(costs['n_tokens'])} tokens: {costs['flops']:.3g} FLOPs exact"
    if costs["flops_6nd"] is not None:
        text += f", {costs['flops_6nd']:.3g} by 6ND"
    if "device" in costs:
        peak = f"{format_count(costs['peak_flops_per_s'])}FLOP/s dense in {precision}"
        seconds = format_seconds(costs["seconds"])
        text += f"\n  on one {costs['device']} ({peak}) at an MFU of {costs['mfu']:g}: {seconds}"
    return text


def _model(args: argparse.Namespace) -> tuple[str, ModelConfig, Table]:
    """The model asked for, its name, and the settings of [train] where a file gives them."""
    flags = given_flags(args, _MODEL_FLAGS)
    if args.seq_len is not None:
        flags["seq_len"] = args.seq_len
    if args.model is not None:
        others = [s.option for s in _MODEL_FLAGS if s.name in flags] + (["--config"] if args.config else [])
        if others:
            raise ConfigError(f"give a preset ({args.model}) or a shape ({others[0]}), not both")
        return args.model, preset(args.model), {}
    if args.config is None and not given_flags(args, _MODEL_FLAGS):
        raise ConfigError(
            "which model? Give a preset (scalelab cost gpt2; --list names them), "
            "a shape (--n-layers 4 --d-model 128) or --config FILE"
        )
    file = read_settings(Path(args.config), TABLES) if args.config else {"": {}, "model": {}, "train": {}}
    vocab_size = flags.pop("vocab_size", file[""].get("vocab_size", DEFAULT_VOCAB_SIZE))
    config = decoder_config({**file["model"], **flags}, vocab_size)
    return args.config or "model", config, file["train"]


def _precision(settings: Table) -> str:
    """A file's precision; "auto", which a trial on the machine of the run settles, counts as the default."""
    found: str = settings.get("precision", DEFAULT_PRECISION)
    return DEFAULT_PRECISION if found == "auto" else found


def _preset_list(*, as_json: bool) -> str:
    from scalelab.cost import count_params

    counts = {name: count_params(name) for name in preset_names()}
    if as_json:
        return json.dumps(counts, indent=1)
    return table("Presets", ("parameters",), [(name, f"{n:,}") for name, n in counts.items()])


_MODEL_FLAGS = (
    *(s for s in MODEL_SETTINGS if s.name != "seq_len"),
    *(s for s in RUN_SETTINGS if s.name == "vocab_size"),
)


def _parser() -> Parser:
    parser = Parser(
        "scalelab cost",
        "What a model costs: parameters by part, FLOPs (exact, and by 6ND), memory of a training step\n"
        "by kind, and the time of a run on a named accelerator. Nothing is built or downloaded.",
        """
  scalelab cost gpt2
  scalelab cost llama-3.1-8b --seq-len 8192 --batch-size 1 --precision bf16
  scalelab cost t5-small --seq-len 512 --target-len 114
  scalelab cost gpt2 --tokens 10B --precision bf16 --device h100 --mfu 0.4
  scalelab cost --n-layers 4 --d-model 128 --n-heads 4 --vocab-size 512
  scalelab cost --config run.toml --json
""",
    )
    parser.add_argument("model", nargs="?", help="a preset's name, such as gpt2 or llama-3.1-8b")
    parser.add_argument("--list", action="store_true", help="list the presets with their parameters")
    parser.add_argument(
        "--config", metavar="FILE", help="take the shape from [model] of a TOML file, the step from [train]"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    step = parser.add_argument_group("the step and the run")
    step.add_argument(
        "--seq-len", type=whole_number, metavar="N", help="tokens of a sequence (1024, or the context)"
    )
    step.add_argument(
        "--target-len", type=whole_number, metavar="N",
        help="tokens that an encoder–decoder writes for a source (--seq-len)",
    )  # fmt: skip
    step.add_argument(
        "--batch-size", type=whole_number, metavar="N", help=f"sequences of a step ({DEFAULT_BATCH_SIZE})"
    )
    step.add_argument(
        "--accumulate", type=whole_number, metavar="N", help="micro-batches that a step is cut into (1)"
    )
    step.add_argument(
        "--precision", type=one_of("fp32", "bf16", "fp16"), metavar="NAME", help="fp32, bf16, fp16 (fp32)"
    )
    step.add_argument("--tokens", type=whole_number, metavar="N", help="tokens of a whole run: 1e9, 300B")
    step.add_argument(
        "--device", metavar="NAME", help="an accelerator, such as h100 or a100, to time the run on"
    )
    step.add_argument("--mfu", type=real_number, metavar="X", default=DEFAULT_MFU,
                      help=f"share of the device's peak that is reached ({DEFAULT_MFU})")  # fmt: skip
    add_flags(parser, "a shape of your own, instead of a preset", _MODEL_FLAGS)
    return parser


COMMAND = Command("cost", "parameters, FLOPs, memory and time of a model, without building it", run)
