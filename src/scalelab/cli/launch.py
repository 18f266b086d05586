"""`scalelab launch`: the commands that start one run on several machines, to paste or to submit.

It starts nothing itself. Every machine runs the same `torchrun`, which starts its processes and meets the
others at the first machine's address; under Slurm the scheduler starts torchrun on each machine of a job.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from scalelab.cli.parser import Command, Parser, whole_number
from scalelab.core.errors import ConfigError
from scalelab.parallel.engine.layout import Layout, parse_layout

PORT = 29500
WARNING_S = 120  # from Slurm's signal to the end of a job: for a step and a checkpoint


def run(argv: Sequence[str]) -> int:
    """Print the commands for plain hosts, or a script for Slurm.

    Raises:
        ConfigError: no training command after "--", or its layout is not of as many processes.
    """
    args = _parser().parse(argv)
    words = _training(args)
    layout = _layout(words, args.nodes * args.gpus_per_node)
    print(slurm_script(args, words) if args.slurm else host_commands(args, words))
    _say_what_crosses(layout, args.gpus_per_node)
    return 0


def host_commands(args: argparse.Namespace, words: Sequence[str]) -> str:
    """A command for each machine, to be started at about the same time; the first one's address is common."""
    lines = []
    for node in range(args.nodes):
        torchrun = [
            *("torchrun", "--nnodes", str(args.nodes), "--nproc-per-node", str(args.gpus_per_node)),
            *("--node-rank", str(node), "--master-addr", args.master_addr, "--master-port", str(args.port)),
        ]
        where = f"on {args.master_addr}" if node == 0 else f"on machine {node + 1} of {args.nodes}"
        lines += [f"# {where}", shlex.join([*torchrun, "-m", "scalelab", *words])]
    return "\n".join(lines)


def slurm_script(args: argparse.Namespace, words: Sequence[str]) -> str:
    """A batch script: one torchrun on each machine, which meet on the first one of the job."""
    torchrun = f"torchrun --nnodes {args.nodes} --nproc-per-node {args.gpus_per_node}"
    return f"""#!/bin/bash
#SBATCH --job-name=scalelab
#SBATCH --nodes={args.nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={args.gpus_per_node}
# Before the time is up: torchrun passes this on, and the run stops with a checkpoint.
#SBATCH --signal=TERM@{WARNING_S}

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun {torchrun} \\
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:{args.port}" \\
    -m scalelab {shlex.join(words)}"""


def _training(args: argparse.Namespace) -> list[str]:
    """The words of `scalelab train` that every process gets."""
    words: list[str] = args.words
    if not words or words[0] != "train":
        raise ConfigError(
            f"what is to be started? Give a training command after --, got {shlex.join(words) or 'nothing'}: "
            "scalelab launch --nodes 2 --gpus-per-node 8 -- train --parallel fsdp --out runs/NAME"
        )
    return words


def _layout(words: Sequence[str], n_processes: int) -> Layout:
    """The layout that the training command names, held against the machines.

    Raises:
        ConfigError: none, or one of another number of processes.
    """
    for place, word in reversed(list(enumerate(words))):  # the last one counts, as for train
        flag, equals, value = word.partition("=")
        if flag == "--parallel" and (equals or place + 1 < len(words)):
            return parse_layout(value if equals else words[place + 1], n_processes)
    raise ConfigError(
        f"{n_processes} processes would start, and nothing says how they train together: give train "
        "--parallel fsdp, or counts of processes by axis"
    )


def _say_what_crosses(layout: Layout, per_node: int) -> None:
    """Tensor parallelism between machines works, and is slow: every layer waits for the network."""
    if per_node % layout.tp:
        print(
            f"# note: tp={layout.tp} crosses machines of {per_node} processes, and every layer waits for the "
            f"network several times: a tp that divides {per_node} stays inside"
        )


def _parser() -> Parser:
    parser = Parser(
        "scalelab launch",
        "Print the commands that start one run on several machines: one for each, or with --slurm a\n"
        "script for sbatch. All machines need the package and must see the run's folder and its text.",
        """
  scalelab launch --nodes 2 --gpus-per-node 8 --master-addr 10.0.0.1 -- train --parallel fsdp --out runs/big
  scalelab launch --nodes 4 --gpus-per-node 8 --slurm -- train --parallel dp_shard=4,tp=8 --out runs/big
""",
    )
    parser.usage = "scalelab launch --nodes N --gpus-per-node M [--slurm] [FLAG ...] -- train ..."
    parser.add_argument("words", nargs="*", metavar="train ...", help="after --: the training command")
    parser.add_argument("--nodes", type=whole_number, required=True, metavar="N", help="machines")
    parser.add_argument(
        "--gpus-per-node", type=whole_number, required=True, metavar="M",
        help="processes on each, one for each GPU",
    )  # fmt: skip
    parser.add_argument(
        "--master-addr", default="HOST1", metavar="HOST",
        help="the first machine's name or address, as the others reach it [HOST1, to be filled in]",
    )  # fmt: skip
    parser.add_argument(
        "--port", type=whole_number, default=PORT, help=f"a free port on the first machine [{PORT}]"
    )
    parser.add_argument("--slurm", action="store_true", help="print a script for sbatch")
    return parser


COMMAND = Command("launch", "print the commands that train on several machines", run)
