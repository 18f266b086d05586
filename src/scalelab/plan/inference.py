"""A model that is served costs twice: a smaller one, trained for longer to the same loss, is cheaper over its
life.

Minimise

    6 N D p_train + 2 N (D_in p_prompt + D_out p_output)

over all N and D with L(N, D) = loss, where p is the price of a FLOP: 1 for each when FLOPs are counted; with
money, generated tokens are dear, since an accelerator that writes one token at a time reaches a few per cent
of its peak. Demand is taken to depend on the loss, not on the size.

Source: Sardana et al. 2024, arXiv:2401.00448, equations 3 and 6.
Taught in book/scaling-laws/planning.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from scalelab.core.checks import is_number, require_amount
from scalelab.core.errors import BudgetError, ConfigError
from scalelab.laws.data_constrained import BaseLaw
from scalelab.plan.assumptions import Assumptions

TRAINING_FLOPS = 6.0  # per parameter and token, Kaplan et al. 2020, section 2.1
LARGEST_SHARE = 1 - 1e-15  # of the loss above the floor that the size may leave
INFERENCE_FLOPS = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class FlopPrices:
    """What a FLOP costs where.

    Attributes:
        training, prompt, output: price of one FLOP in training, in reading a prompt, in writing a token.
        unit: what prices are in: "FLOPs" where each is 1, else a currency.
    """

    training: float = 1.0
    prompt: float = 1.0
    output: float = 1.0
    unit: str = "FLOPs"

    def __post_init__(self) -> None:
        for name in ("training", "prompt", "output"):
            value = getattr(self, name)
            if not (is_number(value) and value > 0):
                raise ConfigError(f"{name} must be a finite price above 0, got {value!r}")


def money_prices(
    training: Assumptions, serving: Assumptions, *, prompt_mfu: float, output_mfu: float
) -> FlopPrices:
    """Prices of FLOPs from hardware, price per hour and utilisation; `serving.mfu` is not used.

    Args:
        training: where the model is trained, with its MFU.
        serving: where it is served.
        prompt_mfu: share of the peak in reading prompts, which are read at once: near that of training.
        output_mfu: share of the peak in writing: about 1 % (Sardana et al., section 6), more in large
            batches.

    Raises:
        ConfigError: a share outside (0, 1], two currencies, or a price of 0.
    """
    if training.currency != serving.currency:
        raise ConfigError(
            f"training is priced in {training.currency}, serving in {serving.currency}: use one"
        )
    return FlopPrices(
        training=training.price_per_flop(),
        prompt=serving.price_per_flop(prompt_mfu),
        output=serving.price_per_flop(output_mfu),
        unit=training.currency,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """A model, its training data, and its cost over its life.

    Attributes:
        n_params, n_tokens: the model and its training tokens.
        loss: nats per token.
        training_cost, inference_cost: in `unit`.
        unit: "FLOPs" or a currency.
    """

    n_params: float
    n_tokens: float
    loss: float
    training_cost: float
    inference_cost: float
    unit: str

    @property
    def cost(self) -> float:
        """Of its whole life."""
        return self.training_cost + self.inference_cost

    @property
    def tokens_per_param(self) -> float:
        """D / N."""
        return self.n_tokens / self.n_params


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingPlan:
    """The cheapest model over its life beside the one that is cheapest to train, at equal loss.

    Attributes:
        best: minimises training and inference together.
        training_only: minimises training alone (Chinchilla's), served as much.
    """

    best: ServedModel
    training_only: ServedModel

    @property
    def saving(self) -> float:
        """Share of the cost that `best` saves over `training_only`."""
        return 1 - self.best.cost / self.training_only.cost

    @property
    def size_ratio(self) -> float:
        """N of `best` over N of `training_only`: at most 1."""
        return self.best.n_params / self.training_only.n_params

    @property
    def data_ratio(self) -> float:
        """Training tokens of `best` over those of `training_only`: at least 1."""
        return self.best.n_tokens / self.training_only.n_tokens


def plan_serving(
    law: BaseLaw,
    loss: float,
    *,
    prompt_tokens: float = 0.0,
    output_tokens: float = 0.0,
    prices: FlopPrices | None = None,
) -> ServingPlan:
    """The size and the training tokens that reach a loss at least cost over a model's life.

        plan_serving(law, plan_budget(law, 1e23).loss, output_tokens=1e12).best

    Training takes 6 FLOPs per parameter and token, serving 2.
    With D(N) = (B / (loss - E - A/N^alpha))^(1/beta) on the curve of equal loss, the cost N (6 p D(N) + V) is
    least where 6 p D (1 - alpha A N^-alpha / (beta (loss - E - A N^-alpha))) + V = 0, V the price of serving
    one parameter; the left side rises with N from minus infinity, so it has one root. V = 0 gives
    Chinchilla's closed form.

    Args:
        law: with E, A, B, alpha and beta.
        loss: to reach, nats per token.
        prompt_tokens, output_tokens: over the model's whole life; with prices all alike only their sum
            counts.
        prices: of a FLOP in training and serving; 1 each when None, so that FLOPs are counted.

    Raises:
        BudgetError: no size reaches the loss, or tokens that are no finite number of at least 0.
        ConfigError: a law without the five parameters.
    """
    priced = FlopPrices() if prices is None else prices
    e, a, b, alpha, beta = _parameters(law)
    target = require_amount("loss", loss)
    if target <= e:
        raise BudgetError(
            f"no model reaches a loss of {target:g}: the law's floor is E = {e:.6g} nats per token"
        )
    served = sum(
        INFERENCE_FLOPS * _tokens(name, count) * price
        for name, count, price in (
            ("prompt_tokens", prompt_tokens, priced.prompt),
            ("output_tokens", output_tokens, priced.output),
        )
    )
    gap = target - e

    def log_tokens(share: float) -> float:
        """ln D where the parameter term takes that share of the gap."""
        return (math.log(b) - math.log(gap) - math.log1p(-share)) / beta

    def slope(share: float) -> float:
        # alpha A N^-alpha / (beta rest) in terms of the share s = A N^-alpha / gap, over 6 p D: bounded
        # numbers.
        ease = (
            math.log(served) - math.log(TRAINING_FLOPS * priced.training) - log_tokens(share)
            if served
            else -math.inf
        )
        return 1 - alpha / beta * share / (1 - share) + math.exp(min(ease, 700.0))

    # V = 0: alpha s = beta (1 - s). Serving moves the optimum to a larger share, that is a smaller model.
    chinchilla = beta / (alpha + beta)
    share = chinchilla
    if served:
        if slope(LARGEST_SHARE) > 0:
            raise BudgetError(
                f"prompt_tokens={prompt_tokens:g}, output_tokens={output_tokens:g}: too many, the cheapest "
                f"model is so near the smallest that reaches {target:g} that its training text has no end"
            )
        share = float(brentq(slope, chinchilla, LARGEST_SHARE, xtol=1e-16, rtol=1e-14, maxiter=500))

    def model(part: float) -> ServedModel:
        try:
            n_params = math.exp((math.log(a) - math.log(gap) - math.log(part)) / alpha)
            n_tokens = math.exp(log_tokens(part))
        except OverflowError:
            raise BudgetError(f"a loss of {target:g}, {gap:.2g} above the floor, is out of reach") from None
        return ServedModel(
            n_params=n_params,
            n_tokens=n_tokens,
            loss=target,
            training_cost=TRAINING_FLOPS * n_params * n_tokens * priced.training,
            inference_cost=n_params * served,
            unit=priced.unit,
        )

    return ServingPlan(best=model(share), training_only=model(chinchilla))


def serving_cost(
    law: BaseLaw,
    loss: float,
    n_params: ArrayLike,
    *,
    prompt_tokens: float = 0.0,
    output_tokens: float = 0.0,
    prices: FlopPrices | None = None,
) -> np.ndarray:
    """Cost over its life of a model of each size that is trained to a loss; infinite for a size too small for
    it.

    Raises:
        BudgetError: loss is no finite number above 0, or tokens that are no finite number of at least 0.
        ConfigError: a law without the five parameters, or sizes that are no numbers above 0.
    """
    priced = FlopPrices() if prices is None else prices
    e, a, b, alpha, beta = _parameters(law)
    target = require_amount("loss", loss)
    sizes = np.asarray(n_params)
    if sizes.dtype.kind not in "iuf" or not np.all(sizes > 0):
        raise ConfigError(f"n_params must be numbers above 0, got {n_params!r}")
    sizes = sizes.astype(np.float64)
    rest = target - e - a * sizes**-alpha
    tokens = np.where(rest > 0, (b / np.where(rest > 0, rest, 1.0)) ** (1 / beta), np.inf)
    serving = INFERENCE_FLOPS * (
        _tokens("prompt_tokens", prompt_tokens) * priced.prompt
        + _tokens("output_tokens", output_tokens) * priced.output
    )
    return np.asarray(sizes * (TRAINING_FLOPS * priced.training * tokens + serving))


def _parameters(law: BaseLaw) -> tuple[float, float, float, float, float]:
    try:
        return float(law.E), float(law.A), float(law.B), float(law.alpha), float(law.beta)
    except (AttributeError, TypeError, ValueError):
        raise ConfigError(f"law must have E, A, B, alpha and beta, got {type(law).__name__}") from None


def _tokens(name: str, value: object) -> float:
    if not (is_number(value) and value >= 0):  # type: ignore[operator]
        raise BudgetError(f"{name} must be a finite number of at least 0, got {value!r}")
    return float(value)  # type: ignore[arg-type]
