"""Published models beside the law: how many tokens a parameter, how far above the best loss for their
compute.

N and D are what each report states; losses are the law's, on its own text, not the models' own. No torch
here.
Source: beside each model. Taught in book/scaling-laws/planning.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from scalelab.core.units import FLOPS_PER_PARAM_TOKEN
from scalelab.laws import ChinchillaLaw


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedModel:
    """A model as its report has it.

    Attributes:
        name, year, source: of it. n_params, n_tokens: all parameters, and tokens it was pretrained on.
    """

    name: str
    year: int
    n_params: float
    n_tokens: float
    source: str

    @property
    def flops(self) -> float:
        """6 N D."""
        return FLOPS_PER_PARAM_TOKEN * self.n_params * self.n_tokens


MODELS = (
    PublishedModel(
        name="GPT-3", year=2020, n_params=175e9, n_tokens=300e9, source="arXiv:2005.14165, table 2.1"
    ),
    PublishedModel(
        name="Gopher", year=2021, n_params=280e9, n_tokens=300e9, source="arXiv:2112.11446, section 3"
    ),
    PublishedModel(
        name="Chinchilla", year=2022, n_params=70e9, n_tokens=1.4e12, source="arXiv:2203.15556, section 4"
    ),
    PublishedModel(
        name="LLaMA-65B", year=2023, n_params=65.2e9, n_tokens=1.4e12, source="arXiv:2302.13971, table 2"
    ),
    PublishedModel(
        name="Llama 2 70B", year=2023, n_params=70e9, n_tokens=2.0e12, source="arXiv:2307.09288, table 1"
    ),
    PublishedModel(name="Llama 3 8B", year=2024, n_params=8e9, n_tokens=15e12, source="Llama 3.1 model card"),
    PublishedModel(
        name="Llama 3 70B", year=2024, n_params=70e9, n_tokens=15e12, source="Llama 3.1 model card"
    ),
    PublishedModel(
        name="Llama 3 405B", year=2024, n_params=405e9, n_tokens=15.6e12, source="arXiv:2407.21783, section 3"
    ),
)


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
    loss = float(law.loss(model.n_params, model.n_tokens))
    same_loss = law.optimal(law.flops_for(loss))
    saved = 2 * (same_loss.n_params - model.n_params)  # FLOPs for each token served
    extra = model.flops - same_loss.flops
    return Placed(
        model=model,
        loss=loss,
        above=loss - law.optimal(model.flops).loss,
        compute=model.flops / same_loss.flops,
        size=model.n_params / same_loss.n_params,
        break_even=extra / saved if saved > 0 else float("nan"),
    )
