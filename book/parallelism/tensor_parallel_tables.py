"""Two papers' tables of the chapter `tensor-parallel`, as printed, with our formulas beside them."""

from __future__ import annotations

from data_parallel_common import table
from IPython.display import HTML
from tensor_parallel_counts import GPT3, RANKS, units

from scalelab.cost import contradictions, hardware_flops, layer_activation_bytes
from scalelab.cost.published_training import RECOMPUTATION, WEAK_SCALING, RecomputationRow

PEAK = 312e12  # FLOP/s of an A100 in 16 bits, as both papers take it
# (name, whether tokens are cut, what is made again, formula in units of sbh)
WAYS = (
    ("tensor parallel", False, "none", "10 + 24/t + 5as/ht"),
    ("tokens cut", True, "none", "34/t + 5as/ht"),
    ("core remade", False, "selective", "10 + 24/t"),
    ("both", True, "selective", "34/t"),
    ("layer remade", False, "full", "2"),
    ("… tokens cut", True, "full", "2/t"),
)


def table_kept() -> HTML:
    """What a layer of GPT-3 keeps on each of eight ranks: formula, number, MB."""
    rows = []
    for name, in_time, again, formula in WAYS:
        kept = layer_activation_bytes(**GPT3, tp=RANKS, sequence_parallel=in_time, recompute=again)
        count = units(RANKS, sequence_parallel=in_time, recompute=again)
        rows.append([name, formula, f"{count:g}", f"{kept / 1e6:,.0f}"])
    return table(["way", "bytes / sbh", "t = 8", "MB"], rows)


def table_weak() -> HTML:
    """Narayanan et al.'s table 1, and what follows from its rows."""
    rows = []
    for row in WEAK_SCALING:
        assert not contradictions(row)
        seconds = row.iteration_flops / (row.teraflops_per_gpu.value * 1e12 * row.n_gpus)
        rows.append(
            [row.params_billions.text, f"{row.n_params / 1e9:.1f}", f"{row.tp}·{row.pp}·{row.dp}",
             f"{row.d_model // row.tp:,}", row.teraflops_per_gpu.text, row.peak_percent.text,
             f"{seconds:.0f}"]
        )  # fmt: skip
    return table(["B", "ours", "t·p·d", "h/t", "TFLOP/s", "%", "s, ours"], rows)


def table_recomputed() -> HTML:
    """Korthikanti et al.'s table 5, and its utilisation with the second forward pass counted once."""
    rows = []
    for row in RECOMPUTATION:
        assert not contradictions(row)
        rows.append(
            [row.name, f"{row.tp}·{row.pp}", row.full_s.text, row.selective_s.text,
             row.model_percent.text, f"{utilisation(row.model_flops, row):.1f}",
             row.hardware_percent.text, f"{utilisation(counted_once(row), row):.1f}"]
        )  # fmt: skip
    header = ["model", "t·p", "before", "after", "MFU", "ours", "HFU", "ours"]
    return table(header, rows)


def counted_once(row: RecomputationRow) -> int:
    """Hardware FLOPs of an iteration, attention's products made once more."""
    return hardware_flops(
        batch_size=row.batch_size,
        seq_len=row.seq_len,
        n_layers=row.n_layers,
        d_model=row.d_model,
        vocab_size=row.vocab_size,
        recompute="selective",
    )


def utilisation(work: int, row: RecomputationRow) -> float:
    """Per cent of the devices' peak."""
    return 100 * work / (row.selective_s.value * row.n_gpus * PEAK)
