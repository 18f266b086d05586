"""Published models: what their reports say, whether that fits together, and where a law places them.

N and D are what each report states; losses are the law's, on its own text, not the models' own. FLOPs, hours
and utilisation are given only where a report states them. A mixture of experts is placed by the parameters
that work for a token: the laws were fitted to dense models, so that is a stand-in.

No torch here. Source: beside each model. Taught in book/scaling-laws/planning.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from scalelab.core.units import FLOPS_PER_PARAM_TOKEN
from scalelab.cost import peak_flops
from scalelab.laws import ChinchillaLaw, Finding, check_runs


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedModel:
    """A model as its report has it.

    Attributes:
        name, year, source: of it. n_params, n_tokens: all parameters, and tokens it was pretrained on.
        active_params: those that work for a token, in a mixture of experts.
        stated_flops: of training, as printed. source_flops: where, unless it is `source`.
        device_hours, hardware: accelerator-hours as printed, and of what (a row of scalelab.cost's table).
        stated_mfu: utilisation that the report gives for the running machine.
        more: other figures of the report, under the names that `check_runs` knows.
    """

    name: str
    year: int
    n_params: float
    n_tokens: float
    source: str
    active_params: float | None = None
    stated_flops: float | None = None
    source_flops: str = ""
    device_hours: float | None = None
    hardware: str | None = None
    stated_mfu: float | None = None
    more: Mapping[str, float] = field(default_factory=dict)

    @property
    def working_params(self) -> float:
        """Parameters that multiply for a token: all, or a mixture's active ones."""
        return self.active_params or self.n_params

    @property
    def flops(self) -> float:
        """6 N D, N being the working parameters."""
        return FLOPS_PER_PARAM_TOKEN * self.working_params * self.n_tokens

    @property
    def tokens_per_param(self) -> float:
        """D / N, N being the working parameters."""
        return self.n_tokens / self.working_params

    @property
    def stated_over_6nd(self) -> float | None:
        """The printed FLOPs over 6 N D."""
        return None if self.stated_flops is None else self.stated_flops / self.flops

    @property
    def used(self) -> float | None:
        """Share of the peak of all printed hours that 6 N D is; None where hours or peak are not known."""
        peak = peak_flops(self.hardware, "bf16") if self.hardware else self.more.get("peak_flops_per_s")
        if self.device_hours is None or peak is None:
            return None
        return self.flops / (self.device_hours * 3600 * peak)

    def row(self) -> dict[str, object]:
        """What is printed, by the names of `scalelab.laws.check_runs`."""
        found: dict[str, object] = {
            "name": self.name,
            "n_params": self.n_params,
            "n_params_matmul": self.active_params,
            "n_tokens": self.n_tokens,
            "flops": self.stated_flops,
            "gpu_hours": self.device_hours,
            "hardware": self.hardware,
            "precision": "bf16" if self.hardware else None,
            "mfu": self.stated_mfu,
            **self.more,
        }
        return {key: value for key, value in found.items() if value is not None}


_V3 = {"peak_flops_per_s": 123e12}  # TPU v3 by arXiv:2104.10350, table 4, footnote 12
_LLAMA = "Llama 3.1 model card"

MODELS = (
    PublishedModel(
        name="GPT-3", year=2020, n_params=175e9, n_tokens=300e9, source="arXiv:2005.14165, table 2.1",
        stated_flops=3.14e23, source_flops="table D.1",
        more={"n_layers": 96, "d_model": 12288, "n_heads": 96, "d_head": 128},
    ),
    PublishedModel(
        name="Gopher", year=2021, n_params=280e9, n_tokens=300e9, source="arXiv:2112.11446, table 1",
        stated_flops=5.76e23, source_flops="arXiv:2203.15556, section 3 (6.3e23 in its appendix F)",
        device_hours=4096 * 920, stated_mfu=0.325,  # by arXiv:2204.02311, table 3
        more={"n_layers": 80, "d_model": 16384, "n_heads": 128, "d_head": 128, **_V3},
    ),
    PublishedModel(
        name="Chinchilla", year=2022, n_params=70e9, n_tokens=1.4e12, source="arXiv:2203.15556, section 4",
        stated_flops=5.76e23, source_flops="section 4: Gopher's budget",
        more={"n_layers": 80, "d_model": 8192, "n_heads": 64, "d_head": 128},
    ),
    PublishedModel(
        name="PaLM", year=2022, n_params=540.35e9, n_tokens=780e9, source="arXiv:2204.02311, table 1",
        stated_flops=2.5272e24, source_flops="table 20", device_hours=6144 * 1200 + 3072 * 336,
        hardware="tpu-v4", stated_mfu=0.462,
        more={"n_layers": 118, "d_model": 18432, "n_heads": 48, "d_head": 256, "vocab_size": 256_000},
    ),
    PublishedModel(
        name="LLaMA-65B", year=2023, n_params=65.2e9, n_tokens=1.4e12, source="arXiv:2302.13971, table 2",
        device_hours=1_022_362, hardware="a100-sxm4-80gb",
        more={"n_layers": 80, "d_model": 8192, "n_heads": 64},
    ),
    PublishedModel(
        name="Pythia-12B", year=2023, n_params=11.846e9, n_tokens=299_892_736_000,
        source="arXiv:2304.01373, table 1", device_hours=72_300, hardware="a100-sxm4-40gb",
        more={"n_layers": 36, "d_model": 5120, "n_heads": 40, "n_steps": 143_000, "batch_tokens": 2_097_152},
    ),
    PublishedModel(
        name="Llama 2 70B", year=2023, n_params=70e9, n_tokens=2.0e12, source="arXiv:2307.09288, table 1",
        device_hours=1_720_320, hardware="a100-sxm4-80gb",
    ),
    PublishedModel(
        name="Llama 3 8B", year=2024, n_params=8e9, n_tokens=15e12, source=_LLAMA, device_hours=1.46e6,
        hardware="h100-sxm",
    ),
    PublishedModel(
        name="Llama 3 70B", year=2024, n_params=70e9, n_tokens=15e12, source=_LLAMA, device_hours=7.0e6,
        hardware="h100-sxm",
    ),
    PublishedModel(
        name="Llama 3 405B", year=2024, n_params=405e9, n_tokens=15.6e12, source="arXiv:2407.21783",
        stated_flops=3.8e25, source_flops="section 1", device_hours=30.84e6, hardware="h100-sxm",
        stated_mfu=0.41, more={"n_layers": 126, "d_model": 16384, "d_ff": 53248, "n_heads": 128},
    ),
    PublishedModel(
        name="Qwen2.5-72B", year=2024, n_params=72.7e9, n_tokens=18e12, source="arXiv:2412.15115, section 3",
    ),
    PublishedModel(
        name="DeepSeek-V3", year=2024, n_params=671e9, active_params=37e9, n_tokens=14.8e12,
        source="arXiv:2412.19437, abstract and table 1", device_hours=2.664e6,
    ),
    PublishedModel(
        name="OLMo 2 13B", year=2025, n_params=13.7e9, n_tokens=5.6e12, source="arXiv:2501.00656, section 2",
        stated_flops=4.6e23, source_flops="table 6", more={"n_layers": 40, "d_model": 5120, "n_heads": 40},
    ),
    PublishedModel(
        name="SmolLM2", year=2025, n_params=1.71e9, n_tokens=11e12, source="arXiv:2502.02737, abstract",
        stated_flops=1e23, source_flops="section 1: about",
    ),
)  # fmt: skip

# GPT-3's table 2.1 as printed: name, parameters, layers, width, heads, head size.
_GPT3_FAMILY = (
    ("GPT-3 Small", 125e6, 12, 768, 12, 64), ("GPT-3 Medium", 350e6, 24, 1024, 16, 64),
    ("GPT-3 Large", 760e6, 24, 1536, 16, 96), ("GPT-3 XL", 1.3e9, 24, 2048, 24, 128),
    ("GPT-3 2.7B", 2.7e9, 32, 2560, 32, 80), ("GPT-3 6.7B", 6.7e9, 32, 4096, 32, 128),
    ("GPT-3 13B", 13.0e9, 40, 5140, 40, 128),
)  # fmt: skip


def rows() -> list[dict[str, object]]:
    """Every printed figure, GPT-3's smaller siblings after the models, by the names `check_runs` knows."""
    names = ("name", "n_params", "n_layers", "d_model", "n_heads", "d_head")
    family = [{**dict(zip(names, one, strict=True)), "n_tokens": 300e9} for one in _GPT3_FAMILY]
    return [model.row() for model in MODELS] + family


def check_published(*, flops_tolerance: float = 1.5) -> tuple[Finding, ...]:
    """What in the printed figures does not fit together; `flops_tolerance` as in `check_runs`."""
    return check_runs(rows(), peak_flops=peak_flops, flops_tolerance=flops_tolerance)


def named(findings: Iterable[Finding]) -> set[str]:
    """The models that findings are about."""
    return {finding.row for finding in findings}


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """A model beside the best one by a law.

    Attributes:
        model: it. loss: that the law gives its N and D. above: nats above the best loss for its FLOPs.
        compute: its FLOPs over the least that reach its loss: 1 is compute-optimal.
        size: its parameters over those of the compute-optimal model of the same loss.
        break_even: tokens served beyond which a smaller, longer-trained model has cost less than that optimum
            (training and serving FLOPs together); nan for a model that is larger than it.
    """

    model: PublishedModel
    loss: float
    above: float
    compute: float
    size: float
    break_even: float


def place(model: PublishedModel, law: ChinchillaLaw) -> Placed:
    """A model beside the law's optimum at its compute, and at its loss."""
    loss = float(law.loss(model.working_params, model.n_tokens))
    same_loss = law.optimal(law.flops_for(loss))
    saved = 2 * (same_loss.n_params - model.working_params)  # FLOPs for each token served
    extra = model.flops - same_loss.flops
    return Placed(
        model=model,
        loss=loss,
        above=loss - law.optimal(model.flops).loss,
        compute=model.flops / same_loss.flops,
        size=model.working_params / same_loss.n_params,
        break_even=extra / saved if saved > 0 else float("nan"),
    )
