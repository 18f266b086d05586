"""Planning costs nothing: no torch, no numpy, and a quick start."""

from __future__ import annotations

import resource
import subprocess
import sys

USE = """
import sys
from scalelab.cost import *
from scalelab.core.presets import preset_names
for name in preset_names():
    params(name)
for name in ("gpt2", "bert-base-uncased", "t5-small"):
    flops(name, batch_size=1, seq_len=8, training=True)
    memory(name, batch_size=1, seq_len=8)
prefill_pass("gpt2", batch_size=1, seq_len=8)
decode_pass("gpt2", batch_size=1, context_len=8)
mfu(1.0, "gpt2", 8, peak_flops("a100", "bf16"))
link = fit_link([1, 1000], [1e-6, 2e-6]).link
largest_dp(1e15, 10**8, efficiency=0.5, flops_per_s=1e14, link=link)
tensor_parallel_step("gpt2", 2, batch_size=1, seq_len=8, flops_per_s=1e14, link=link)
pipeline_traffic("gpt2", 2, n_micro_batches=2, micro_batch_size=1, seq_len=8)
rank_memory("gpt2", dp=2, tp=2, pp=2, stage=3)
stage_activation_bytes(8, n_layers=4, pp=2, n_micro_batches=2)
heavy = {"torch", "numpy", "transformers", "scipy", "pandas", "matplotlib"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""


def test_nothing_heavy_is_imported_even_by_using_everything() -> None:
    run = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_import_takes_less_than_seven_tenths_of_a_second() -> None:
    best = float("inf")
    for _ in range(3):  # the first may have to write byte code
        before = _seconds_of_children()
        subprocess.run([sys.executable, "-c", "import scalelab.cost"], check=True)
        best = min(best, _seconds_of_children() - before)
    assert best < 0.7


def _seconds_of_children() -> float:
    """Of the processor, not of the clock: others may be using the machine."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
