"""ZeRO-3, which torch calls FSDP: each rank keeps a piece of every weight, and borrows the rest for a moment.

Before a block computes, its weights are gathered from all ranks; after it, they are dropped, and gathered
once more for backward. Its gradients are summed, cut and dropped as soon as they are complete. So a rank
never holds more than its pieces and the weights of one block, for half as much again sent as by plain data
parallelism: two all-gathers and a reduce-scatter instead of an all-reduce.

Autograd keeps weights for backward, and must find them where they were: the memory behind them is released
and taken again, while the tensors that point to it stay.
Condition: as ZeRO-1's; and every block is used by each rank, in the same order, so each has a row in every
micro-batch.
Source: Rajbhandari et al. 2019, arXiv:1910.02054, sections 5.3 and 7.2.2; Zhao et al. 2023, arXiv:2304.11277,
section 3. Taught in book/parallelism/sharding.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from scalelab.cost.sharding import States
from scalelab.parallel.scratch.bytes_held import storage_bytes
from scalelab.parallel.scratch.collectives import piece_of, ring_all_gather
from scalelab.parallel.scratch.cut_optimizer import CutAdamW
from scalelab.parallel.scratch.flat import Unit, units_of, whole_tensors
from scalelab.parallel.scratch.group import Group


class CutUnit(Unit):
    """A unit of which this rank keeps a piece, and the whole only while it is needed.

    Args:
        parameters, group, mixed: as `Unit`.
        stays: whether the weights stay gathered from forward to backward.

    Attributes:
        piece: [n/p], of the weights that the model computes with. Without mixed precision `master` is it.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], group: Group, *, mixed: bool = False, stays: bool = False
    ) -> None:
        super().__init__(parameters, group, mixed=mixed)
        self.stays = stays
        self.piece = piece_of(self.whole, group).clone()
        if not mixed:
            self.master = self.piece
        self.free()

    @property
    def is_here(self) -> bool:
        """Whether the whole weights are in memory."""
        return self.whole.untyped_storage().nbytes() > 0

    def gather(self, *_: Any) -> None:
        """Have the whole weights in memory."""
        if not self.is_here:
            self.whole.untyped_storage().resize_(self.n * self.whole.element_size())
            self.whole.copy_(ring_all_gather(self.piece, self.group, self.n))

    def free(self) -> None:
        """Give the memory of the whole weights back; the parameters keep their shapes."""
        self.whole.untyped_storage().resize_(0)

    def after_forward(self, module: nn.Module, args: Any, output: Tensor) -> None:
        """Drop the weights, unless backward begins with them; have them again when backward comes here."""
        if output.requires_grad:
            output.register_hook(self.gather)  # type: ignore[no-untyped-call]
        if not (self.stays and output.requires_grad):
            self.free()

    def reduce_gradient(self) -> None:
        """Sum the gradients, keep this rank's piece, and drop the weights: this backward is over."""
        super().reduce_gradient()
        self.free()

    def spread(self) -> None:
        """Take over what the optimiser made of the piece; the whole is gathered anew when it is needed."""
        if self.piece is not self.master:
            self.piece.copy_(self.master)
        self.free()  # a forward pass since backward may have left weights here that are now old


class FullySharded:
    """A model of which every rank keeps 1/p: weights, gradients and AdamW's state.

    Args:
        model: rank 0's weights become everyone's. Call the model itself, or its `loss`: its weights are
            gathered when a module is called, not when another of its methods is.
        mixed: weights and gradients in bf16, AdamW in fp32.
        keeps_root: keep what is in no block (tables, last norm, head) from forward to backward, between which
            nothing happens: as FSDP2 does. It saves one all-gather of it.
        learning_rate, betas, weight_decay: AdamW's; matrices decay, vectors do not.

    Raises:
        ParallelError: frozen parameters, or several types.
    """

    def __init__(
        self,
        model: nn.Module,
        group: Group,
        *,
        mixed: bool = False,
        keeps_root: bool = True,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
    ) -> None:
        self.model = model
        self.group = group
        self.units: list[CutUnit] = []
        for module, own in units_of(model):
            unit = CutUnit(own, group, mixed=mixed, stays=keeps_root and module is model)
            self.units.append(unit)
            module.register_forward_pre_hook(unit.gather)
            module.register_forward_hook(unit.after_forward)
            unit.watch()
        self.optimizer = CutAdamW(
            self.units, group, learning_rate=learning_rate, weight_decay=weight_decay, betas=betas
        )

    def reduce(self) -> None:
        """Sum what backward could not: units of which a parameter was not used."""
        for unit in self.units:
            unit.finish_gradient()

    def step(self, max_norm: float | None = None) -> Tensor:
        """After backward (of one micro-batch or more): update this rank's pieces. Nothing is sent but a norm.

        Args:
            max_norm: clip the whole gradient to this norm; None: do not.

        Returns:
            The whole gradient's norm before clipping; NaN when it was not asked for.
        """
        self.reduce()
        norm = self.optimizer.step(max_norm)
        for unit in self.units:
            unit.spread()
        return norm

    def held(self) -> States:
        """Bytes that this rank holds now, counted on its live tensors; before `step` for gradients."""
        weights = [tensor for unit in self.units for tensor in (unit.whole, unit.piece)]
        masters = [unit.master for unit in self.units if unit.master is not unit.piece]
        gradients = [p.grad for p in self.model.parameters()] + [unit.gradient for unit in self.units]
        return States(
            weights_bytes=storage_bytes(weights),
            gradients_bytes=storage_bytes(gradients),
            optimizer_bytes=storage_bytes([*self.optimizer.state(), *masters]),
        )

    def whole_weights(self) -> dict[str, Tensor]:
        """Every parameter by name, whole: to save. In mixed precision the optimiser's fp32 ones."""
        return whole_tensors(self.model, self.units, [unit.master for unit in self.units])

    def whole_gradients(self) -> dict[str, Tensor]:
        """Every summed gradient by name, whole, between backward and `step`: to look at."""
        return whole_tensors(self.model, self.units, [unit.gradient for unit in self.units])
