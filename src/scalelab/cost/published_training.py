"""Published training runs as data: numbers as four papers print them, and what our formulas make of them.

A printed number stands for a range, 142 for 141.5 to 142.5, which `Printed` keeps. Rows that contradict
themselves stand as they are printed; `published_checks.contradictions` says where.
Source: each row's class names its paper and table. Taught in book/parallelism (all chapters).
"""

from __future__ import annotations

from dataclasses import dataclass

from scalelab.cost.megatron import hardware_flops, megatron_params, model_flops, printed_hardware_flops


@dataclass(frozen=True, slots=True)
class Printed:
    """A number as it is printed.

    Attributes:
        text: its digits, "502.0".
    """

    text: str

    @property
    def value(self) -> float:
        """The number itself."""
        return float(self.text)

    @property
    def half_unit(self) -> float:
        """Half a unit of the last digit printed: how far the number meant may be away."""
        _, _, decimals = self.text.partition(".")
        return 0.5 * 10.0 ** -len(decimals)

    @property
    def low(self) -> float:
        """The least number that is printed so."""
        return self.value - self.half_unit

    @property
    def high(self) -> float:
        """The largest number that is printed so."""
        return self.value + self.half_unit

    def agrees(self, low: float, high: float | None = None) -> bool:
        """Whether this may stand for a number between low and high (or for low itself)."""
        slack = 1e-9 * abs(self.value)
        return self.low - slack <= (low if high is None else high) and low <= self.high + slack


@dataclass(frozen=True, kw_only=True, slots=True)
class WeakScalingRow:
    """A row of Narayanan et al. 2021, arXiv:2104.04473, table 1: GPT models on A100s, full recomputation.

    Attributes:
        params_billions, n_heads, d_model, n_layers: the model; all with V = 51,200 and s = 2,048.
        tp, pp, n_gpus, batch_size: tensor and pipeline ranks, devices, sequences of the whole batch.
        teraflops_per_gpu: reached, recomputation counted.
        peak_percent: of 312 TFLOP/s. aggregate_petaflops: of all devices.
    """

    params_billions: Printed
    n_heads: int
    d_model: int
    n_layers: int
    tp: int
    pp: int
    n_gpus: int
    batch_size: int
    teraflops_per_gpu: Printed
    peak_percent: Printed
    aggregate_petaflops: Printed

    vocab_size = 51_200
    seq_len = 2_048

    @property
    def dp(self) -> int:
        """Replicas: devices over tp times pp."""
        return self.n_gpus // (self.tp * self.pp)

    @property
    def n_params(self) -> int:
        """By the paper's formula."""
        return megatron_params(
            n_layers=self.n_layers, d_model=self.d_model, vocab_size=self.vocab_size, seq_len=self.seq_len
        )

    @property
    def iteration_flops(self) -> int:
        """Hardware FLOPs of an iteration, by the paper's formula."""
        return hardware_flops(
            batch_size=self.batch_size,
            seq_len=self.seq_len,
            n_layers=self.n_layers,
            d_model=self.d_model,
            vocab_size=self.vocab_size,
            recompute="full",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RecomputationRow:
    """Rows of Korthikanti et al. 2022, arXiv:2205.05198, tables 3 and 5: A100s, no data parallelism.

    Attributes:
        name, n_heads, d_model, n_layers: the model; all with V = 51,200 and s = 2,048.
        tp, pp, v, n_gpus, batch_size, micro_batch_size: v is the pieces of layers on each stage.
        full_s: seconds of an iteration with full recomputation.
        selective_s: with selective recomputation and sequence parallelism.
        gain_percent: of throughput. model_percent, hardware_percent: utilisation of 312 TFLOP/s.
    """

    name: str
    n_heads: int
    d_model: int
    n_layers: int
    tp: int
    pp: int
    v: int
    n_gpus: int
    batch_size: int
    micro_batch_size: int
    full_s: Printed
    selective_s: Printed
    gain_percent: Printed
    model_percent: Printed
    hardware_percent: Printed

    vocab_size = 51_200
    seq_len = 2_048

    @property
    def model_flops(self) -> int:
        """Of an iteration, by the paper's formula."""
        return model_flops(
            batch_size=self.batch_size,
            seq_len=self.seq_len,
            n_layers=self.n_layers,
            d_model=self.d_model,
            vocab_size=self.vocab_size,
        )

    @property
    def hardware_flops(self) -> int:
        """Of an iteration with selective recomputation, by the paper's formula (which counts too many)."""
        return printed_hardware_flops(
            batch_size=self.batch_size,
            seq_len=self.seq_len,
            n_layers=self.n_layers,
            d_model=self.d_model,
            vocab_size=self.vocab_size,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerTimeRow:
    """A row of Korthikanti et al. 2022, table 4: one layer of the 22B model, forward and back.

    Attributes:
        name: what is recomputed, and whether sequences are cut.
        forward_ms, backward_ms, combined_ms: recomputation counts as backward.
        overhead_percent: over the row without recomputation, 19.6 ms; None in that row itself.
    """

    name: str
    forward_ms: Printed
    backward_ms: Printed
    combined_ms: Printed
    overhead_percent: Printed | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroRow:
    """An entry of Rajbhandari et al. 2019 (ZeRO), arXiv:1910.02054, table 1: mixed precision, Adam, K = 12.

    Attributes:
        n_params, dp: the model and its replicas.
        stage_1_gb, stage_2_gb, stage_3_gb: training state per device, in units of 10⁹ bytes.
    """

    n_params: int
    dp: int
    stage_1_gb: Printed
    stage_2_gb: Printed
    stage_3_gb: Printed


@dataclass(frozen=True, kw_only=True, slots=True)
class LlamaRow:
    """A row of the Llama 3 paper, arXiv:2407.21783, table 4: the 405B model on H100s.

    Attributes:
        version: of the arXiv paper in which the row stands so.
        n_gpus, tp, cp, pp, dp: devices, and ranks of each axis.
        seq_len: tokens of a sequence. sequences_per_dp: of the batch, on each replica.
        tokens_millions: of the whole batch; the paper's million is 2²⁰.
        teraflops_per_gpu: reached. model_percent: utilisation in bf16.
    """

    version: str
    n_gpus: int
    tp: int
    cp: int
    pp: int
    dp: int
    seq_len: int
    sequences_per_dp: int
    tokens_millions: Printed
    teraflops_per_gpu: Printed
    model_percent: Printed


def _weak(
    params: str, shape: tuple[int, ...], mesh: tuple[int, ...], rate: str, *shares: str
) -> WeakScalingRow:
    n_heads, d_model, n_layers = shape
    tp, pp, n_gpus, batch_size = mesh
    peak_percent, aggregate = shares
    return WeakScalingRow(
        params_billions=Printed(params),
        n_heads=n_heads,
        d_model=d_model,
        n_layers=n_layers,
        tp=tp,
        pp=pp,
        n_gpus=n_gpus,
        batch_size=batch_size,
        teraflops_per_gpu=Printed(rate),
        peak_percent=Printed(peak_percent),
        aggregate_petaflops=Printed(aggregate),
    )


def _recomputed(name: str, shape: tuple[int, ...], mesh: tuple[int, ...], *printed: str) -> RecomputationRow:
    n_heads, d_model, n_layers = shape
    tp, pp, v, n_gpus, batch_size, micro_batch_size = mesh
    full, selective, gain, model, hardware = map(Printed, printed)
    return RecomputationRow(
        name=name,
        n_heads=n_heads,
        d_model=d_model,
        n_layers=n_layers,
        tp=tp,
        pp=pp,
        v=v,
        n_gpus=n_gpus,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        full_s=full,
        selective_s=selective,
        gain_percent=gain,
        model_percent=model,
        hardware_percent=hardware,
    )


def _layer(name: str, forward: str, backward: str, combined: str, overhead: str | None) -> LayerTimeRow:
    return LayerTimeRow(
        name=name,
        forward_ms=Printed(forward),
        backward_ms=Printed(backward),
        combined_ms=Printed(combined),
        overhead_percent=None if overhead is None else Printed(overhead),
    )


def _zero(billions: float, dp: int, *stages: str) -> ZeroRow:
    first, second, third = map(Printed, stages)
    return ZeroRow(
        n_params=round(billions * 1e9), dp=dp, stage_1_gb=first, stage_2_gb=second, stage_3_gb=third
    )


def _llama(version: str, mesh: tuple[int, ...], batch: tuple[int, int], rate: str, percent: str) -> LlamaRow:
    n_gpus, tp, cp, pp, dp = mesh
    seq_len, sequences = batch
    return LlamaRow(
        version=version,
        n_gpus=n_gpus,
        tp=tp,
        cp=cp,
        pp=pp,
        dp=dp,
        seq_len=seq_len,
        sequences_per_dp=sequences,
        tokens_millions=Printed("16"),
        teraflops_per_gpu=Printed(rate),
        model_percent=Printed(percent),
    )


WEAK_SCALING: tuple[WeakScalingRow, ...] = (
    # (heads, width, layers), (tp, pp, devices, batch), TFLOP/s each, % of peak, PFLOP/s
    _weak("1.7", (24, 2_304, 24), (1, 1, 32, 512), "137", "44", "4.4"),
    _weak("3.6", (32, 3_072, 30), (2, 1, 64, 512), "138", "44", "8.8"),
    _weak("7.5", (32, 4_096, 36), (4, 1, 128, 512), "142", "46", "18.2"),
    _weak("18.4", (48, 6_144, 40), (8, 1, 256, 1_024), "135", "43", "34.6"),
    _weak("39.1", (64, 8_192, 48), (8, 2, 512, 1_536), "138", "44", "70.8"),
    _weak("76.1", (80, 10_240, 60), (8, 4, 1_024, 1_792), "140", "45", "143.8"),
    _weak("145.6", (96, 12_288, 80), (8, 8, 1_536, 2_304), "148", "47", "227.1"),
    _weak("310.1", (128, 16_384, 96), (8, 16, 1_920, 2_160), "155", "50", "297.4"),
    _weak("529.6", (128, 20_480, 105), (8, 35, 2_520, 2_520), "163", "52", "410.2"),
    _weak("1008.0", (160, 25_600, 128), (8, 64, 3_072, 3_072), "163", "52", "502.0"),
)  # fmt: skip

RECOMPUTATION: tuple[RecomputationRow, ...] = (
    # (heads, width, layers), (tp, pp, v, devices, batch, micro-batch), seconds full, selective, %, MFU, HFU
    _recomputed("22B", (64, 6_144, 48), (8, 1, 1, 8, 4, 4), "1.42", "1.10", "29.0", "41.5", "43.7"),
    _recomputed("175B", (96, 12_288, 96), (8, 8, 3, 64, 64, 1), "18.13", "13.75", "31.8", "51.4", "52.8"),
    _recomputed("530B", (128, 20_480, 105), (8, 35, 3, 280, 280, 1), "49.05", "37.83", "29.7", "56.0", "57.0"),  # noqa: E501
    _recomputed("1T", (160, 25_600, 128), (8, 64, 1, 512, 512, 1), "94.42", "71.49", "32.1", "56.3", "57.0"),
)  # fmt: skip

LAYER_TIMES: tuple[LayerTimeRow, ...] = (
    _layer("no recomputation", "7.7", "11.9", "19.6", None),
    _layer("sequence parallelism", "7.2", "11.8", "19.0", "-3"),
    _layer("full recomputation", "7.7", "19.5", "27.2", "39"),
    _layer("selective recomputation", "7.7", "13.2", "20.9", "7"),
    _layer("selective recomputation, sequence parallelism", "7.2", "13.1", "20.3", "4"),
)

ZERO_MEMORY: tuple[ZeroRow, ...] = (
    _zero(7.5, 1, "120", "120", "120"),
    _zero(7.5, 4, "52.5", "41.3", "30"),
    _zero(7.5, 16, "35.6", "21.6", "7.5"),
    _zero(7.5, 64, "31.4", "16.6", "1.88"),
    _zero(7.5, 256, "30.4", "15.4", "0.47"),
    _zero(7.5, 1_024, "30.1", "15.1", "0.12"),
    _zero(128, 1, "2048", "2048", "2048"),
    _zero(128, 4, "896", "704", "512"),
    _zero(128, 16, "608", "368", "128"),
    _zero(128, 64, "536", "284", "32"),
    _zero(128, 256, "518", "263", "8"),
    _zero(128, 1_024, "513", "257", "2"),
    _zero(1_000, 1, "16000", "16000", "16000"),
    _zero(1_000, 4, "7000", "5500", "4000"),
    _zero(1_000, 16, "4750", "2875", "1000"),
    _zero(1_000, 64, "4187", "2218", "250"),
    _zero(1_000, 256, "4046", "2054", "62.5"),
    _zero(1_000, 1_024, "4011", "2013", "15.6"),
)

LLAMA_3: tuple[LlamaRow, ...] = (
    # (devices, tp, cp, pp, dp), (tokens a sequence, sequences a replica), TFLOP/s each, MFU
    _llama("v3", (8_192, 8, 1, 16, 64), (8_192, 32), "430", "43"),
    _llama("v3", (16_384, 8, 1, 16, 128), (8_192, 16), "400", "41"),
    _llama("v1", (16_384, 8, 16, 16, 4), (131_072, 16), "380", "38"),  # dp corrected later
    _llama("v3", (16_384, 8, 16, 16, 8), (131_072, 16), "380", "38"),
)
