"""What in a published table does not follow from the rest of its row.

A row contradicts itself where what is computed from some of its numbers, over the ranges that these stand
for, never meets the range of another. Most rows of `published_training` hold to every printed digit. Not so:
- ZeRO's table 1 cuts decimals off in its large numbers, though it rounds the small ones;
- Llama 3's table 4 calls 400 TFLOP/s 41 % of an H100, which is 40 % (its rates may be rounded to tens), and
  had 4 replicas in the last row of its first version, where 8 make the devices and tokens that it prints.
Taught in book/parallelism (all chapters).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from scalelab.cost.hardware import peak_flops
from scalelab.cost.published_training import (
    LAYER_TIMES,
    LayerTimeRow,
    LlamaRow,
    Printed,
    RecomputationRow,
    WeakScalingRow,
    ZeroRow,
)
from scalelab.cost.sharding import zero_memory

_TERA = 1e12
_GB = 1e9

Row = WeakScalingRow | RecomputationRow | LayerTimeRow | ZeroRow | LlamaRow


def contradictions(row: Row) -> tuple[str, ...]:
    """What in a row does not follow from the rest of it, one sentence each; none where all holds."""
    return tuple(_CHECKS[type(row)](row))


def _weak_scaling(row: WeakScalingRow) -> Iterator[str]:
    yield from _whole("n_gpus", row.n_gpus, row.tp * row.pp, "tp · pp")
    yield from _whole("batch_size", row.batch_size, row.dp, "replicas")
    yield from _whole("n_layers", row.n_layers, row.pp, "pp")
    yield from _whole("n_heads", row.n_heads, row.tp, "tp")
    yield from _differs("params_billions", row.params_billions, row.n_params / 1e9)
    rate = row.teraflops_per_gpu
    peak = _peak("a100") / _TERA
    yield from _differs("peak_percent", row.peak_percent, 100 * rate.low / peak, 100 * rate.high / peak)
    low, high = rate.low * row.n_gpus / 1e3, rate.high * row.n_gpus / 1e3
    yield from _differs("aggregate_petaflops", row.aggregate_petaflops, low, high)


def _recomputation(row: RecomputationRow) -> Iterator[str]:
    if row.tp * row.pp != row.n_gpus:
        yield f"tp · pp = {row.tp * row.pp}, but n_gpus = {row.n_gpus} without data parallelism"
    yield from _whole("n_layers", row.n_layers, row.pp * row.v, "pp · v")
    yield from _whole("batch_size", row.batch_size, row.micro_batch_size, "micro_batch_size")
    full, now = row.full_s, row.selective_s
    low, high = 100 * (full.low / now.high - 1), 100 * (full.high / now.low - 1)
    yield from _differs("gain_percent", row.gain_percent, low, high)
    at_peak = row.n_gpus * _peak("a100")
    for name, printed, work in (
        ("model_percent", row.model_percent, row.model_flops),
        ("hardware_percent", row.hardware_percent, row.hardware_flops),
    ):
        low, high = 100 * work / (now.high * at_peak), 100 * work / (now.low * at_peak)
        yield from _differs(name, printed, low, high)


def _layer_time(row: LayerTimeRow) -> Iterator[str]:
    low, high = row.forward_ms.low + row.backward_ms.low, row.forward_ms.high + row.backward_ms.high
    yield from _differs("combined_ms", row.combined_ms, low, high)
    if row.overhead_percent is not None:
        base = LAYER_TIMES[0].combined_ms
        low = 100 * (row.combined_ms.low / base.high - 1)
        high = 100 * (row.combined_ms.high / base.low - 1)
        yield from _differs("overhead_percent", row.overhead_percent, low, high)


def _zero(row: ZeroRow) -> Iterator[str]:
    for stage, printed in enumerate((row.stage_1_gb, row.stage_2_gb, row.stage_3_gb), start=1):
        held = zero_memory(row.n_params, stage=stage, dp=row.dp, precision="mixed").total_bytes
        yield from _differs(f"stage_{stage}_gb", printed, held / _GB)


def _llama(row: LlamaRow) -> Iterator[str]:
    product = row.tp * row.cp * row.pp * row.dp
    if product != row.n_gpus:
        yield f"tp · cp · pp · dp = {product}, but n_gpus = {row.n_gpus}"
    tokens = row.dp * row.sequences_per_dp * row.seq_len / 2**20
    yield from _differs("tokens_millions", row.tokens_millions, tokens)
    rate, peak = row.teraflops_per_gpu, _peak("h100") / _TERA
    yield from _differs("model_percent", row.model_percent, 100 * rate.low / peak, 100 * rate.high / peak)


def _whole(name: str, value: int, divisor: int, what: str) -> Iterator[str]:
    if value % divisor:
        yield f"{name} = {value} is no multiple of {what} = {divisor}"


def _differs(name: str, printed: Printed, low: float, high: float | None = None) -> Iterator[str]:
    if not printed.agrees(low, high):
        found = f"{low:.6g}" if high is None else f"{low:.6g} to {high:.6g}"
        yield f"{name} is printed as {printed.text}, but the rest of the row gives {found}"


def _peak(name: str) -> float:
    found = peak_flops(name, "bf16")
    assert found is not None
    return found


_CHECKS: Mapping[type, Callable[..., Iterator[str]]] = {
    WeakScalingRow: _weak_scaling,
    RecomputationRow: _recomputation,
    LayerTimeRow: _layer_time,
    ZeroRow: _zero,
    LlamaRow: _llama,
}
