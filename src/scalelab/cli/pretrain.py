"""`scalelab pretrain`: make one of the course's base models again, or one like it on another text.

Taught in book/transformers/architectures.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from scalelab.cli.parser import Command, Parser, whole_number
from scalelab.core.artifacts import user_path
from scalelab.core.errors import ConfigError

NAMES = ("decoder", "encoder")  # of lab.recipes, which --help must not import: it needs torch
MODEL_FOLDER = "model"


def run(argv: Sequence[str]) -> int:
    """Train a base model, or go on where it was stopped, and write it as `transformers` lays models out.

    Raises:
        ConfigError, DataError, DataFileError, TrainingError, CheckpointError: whatever cannot be used.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with how to go on.
    """
    args = _parser().parse(argv)
    if args.name not in NAMES:
        raise ConfigError(f"no base model {args.name!r}; there are {', '.join(NAMES)}")
    out = user_path(args.out)
    from scalelab.lab.recipes import pretrain

    try:
        record = pretrain(
            args.name,
            out,
            corpus_name=args.corpus,
            n_tokens=args.tokens,
            model_folder=out / MODEL_FOLDER,
            progress=not args.quiet,
        )
    except KeyboardInterrupt as stop:
        raise type(stop)(f"{str(stop) or 'interrupted'}; go on with: {_again(args, out)}") from None
    if args.json:
        print(json.dumps({"out": str(out), "record": json.loads(record.to_json())}, indent=1))
        return 0
    print(f"held-out loss {record.loss_nats:.4f} nats a predicted token, after {record.n_tokens:,} tokens")
    print(f"the model, for transformers and scalelab alike: {out / MODEL_FOLDER}")
    return 0


def _again(args: argparse.Namespace, out: Path) -> str:
    words = ["scalelab", "pretrain", args.name, "--out", str(out)]
    words += ["--corpus", args.corpus] if args.corpus is not None else []
    words += ["--tokens", str(args.tokens)] if args.tokens is not None else []
    return shlex.join(words)


def _parser() -> Parser:
    parser = Parser(
        "scalelab pretrain",
        "Make a base model of the course: a small Llama (decoder) or a small RoFormer (encoder), trained on\n"
        "the frozen corpus `packages`. About half an hour on two cores with bf16; the same command goes on\n"
        "with a run that was stopped.",
        """
  scalelab pretrain decoder --out runs/base-decoder
  scalelab pretrain encoder --corpus python --tokens 1e6 --out runs/small-encoder
""",
    )
    parser.add_argument("name", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument(
        "--out", metavar="FOLDER", required=True, help="the run's folder; the model goes into it"
    )
    parser.add_argument("--corpus", metavar="NAME", help="another text than `packages`")
    parser.add_argument("--tokens", type=whole_number, metavar="N", help="another budget than the recipe's")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="print the run's record as JSON")
    return parser


COMMAND = Command("pretrain", "make a base model of the course again", run)
