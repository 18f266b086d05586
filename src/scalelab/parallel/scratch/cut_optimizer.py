"""AdamW on this rank's pieces: each number has its own two moments, so ranks can share the work out.

Equal to one process because nothing in the update looks beyond one number, except clipping, which needs the
norm of the whole gradient: the pieces' squares are added over ranks first. An optimiser that looks at whole
matrices (Adafactor, Shampoo, Muon) cannot be cut like this.
Source: Rajbhandari et al. 2019, arXiv:1910.02054, section 5.1. Taught in book/parallelism/sharding.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scalelab.core.errors import ParallelError
from scalelab.parallel.scratch.collectives import ring_all_reduce
from scalelab.parallel.scratch.flat import Unit
from scalelab.parallel.scratch.group import Group

EPSILON = 1e-6  # in the divisor of clipping, as in torch's clip_grad_norm_


class CutAdamW:
    """torch's AdamW on the units' pieces; matrices decay, vectors do not.

    Args:
        units: all of a model's, cut among the group's ranks.
        learning_rate, betas, weight_decay: as AdamW's.

    Attributes:
        inner: torch's optimiser; None on a rank that owns nothing (fewer numbers than ranks).
    """

    def __init__(
        self,
        units: Sequence[Unit],
        group: Group,
        *,
        learning_rate: float,
        weight_decay: float,
        betas: tuple[float, float],
    ) -> None:
        self.units = list(units)
        self.group = group
        self._shares = [
            (unit, parameter.ndim >= 2, place, unit.master[place])
            for unit in units
            for parameter, place in unit.cut()
        ]
        groups: list[dict[str, object]] = []
        for matrices in (True, False):
            views = [view for _, is_matrix, _, view in self._shares if is_matrix is matrices]
            if views:
                groups.append({"params": views, "weight_decay": weight_decay if matrices else 0.0})
        self.inner = torch.optim.AdamW(groups, lr=learning_rate, betas=betas) if groups else None

    def step(self, max_norm: float | None = None) -> Tensor:
        """Update this rank's pieces by the units' gradients, which are dropped after.

        Args:
            max_norm: the largest norm of the whole gradient that is left as it is; None: any.

        Returns:
            The norm of the whole gradient, before clipping; NaN when `max_norm` is None: to know it takes a
            message.

        Raises:
            ParallelError: a unit has no gradient (backward has not run, or was not reduced); a norm that is
                not positive.
        """
        if max_norm is not None and not max_norm > 0:
            raise ParallelError(
                f"max_norm must be positive, got {max_norm!r}; None leaves gradients as they are"
            )
        gradients = {id(unit): _gradient(unit) for unit in self.units}  # as `master` is: fp32 or wider
        norm = torch.tensor(torch.nan)
        if max_norm is not None:
            norm = global_norm(list(gradients.values()), self.group)
            factor = (max_norm / (norm + EPSILON)).clamp(max=1.0)
            for gradient in gradients.values():
                gradient *= factor
        for unit, _, place, view in self._shares:
            view.grad = gradients[id(unit)][place]
        if self.inner is not None:
            self.inner.step()
            self.inner.zero_grad()
        for unit in self.units:
            unit.gradient = None
        return norm

    def state(self) -> list[Tensor]:
        """The moments, two numbers for each that this rank owns; AdamW's step counts, one a tensor, are not
        among them."""
        if self.inner is None:
            return []
        return [value for kept in self.inner.state.values() for value in kept.values() if value.ndim]


def global_norm(gradients: Sequence[Tensor], group: Group) -> Tensor:
    """The norm of a vector of which each rank has some pieces: the root of the sum of all squares.

    Squares are what can be added over ranks; norms cannot.
    """
    square = torch.stack([gradient.square().sum() for gradient in gradients]).sum()  # of this rank's pieces
    ring_all_reduce(square, group)
    return square.sqrt()


def _gradient(unit: Unit) -> Tensor:
    if unit.gradient is None:
        raise ParallelError("there is no gradient to step by: call backward() before step()")
    return unit.gradient.to(unit.master.dtype)
