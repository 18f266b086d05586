"""Layers dealt out: tensor and pipeline parallelism, by themselves, with each other, and with shares of rows.

Read `Composed.place`: what one process holds, step by step. Data axes under them are FSDP's, also where each
weight is held whole (`dp_replicate` alone is a cut into one part), since DDP knows nothing of tensors that
are cut.

Rank 0 gathers what is saved, tensor by tensor: it needs room for the whole model and its optimiser in the
CPU's memory, and so does each process when it begins, for the model alone.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Hashable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import Schedule1F1B
from torch.distributed.tensor.experimental import implicit_replication
from torch.distributed.tensor.parallel import loss_parallel

from scalelab.core.config import DecoderConfig, ModelConfig
from scalelab.core.errors import ConfigError, TrainingError
from scalelab.models import Decoder
from scalelab.models.loss import loss_nats
from scalelab.parallel.engine.data_parallel import Announce, DataParallel, SummedLoss
from scalelab.parallel.engine.layout import Layout, Order
from scalelab.parallel.engine.pipeline import Pipeline, Stage, layers_of, n_micro_batches
from scalelab.parallel.engine.sharded import cut_again, shard
from scalelab.parallel.engine.tensor_parallel import check_divides, parallelize, rows_by_rank
from scalelab.parallel.engine.tensors import (
    broadcast_model,
    copies_of,
    is_cut,
    own_part,
    part_of,
    whole_of,
)
from scalelab.train.config import TrainConfig
from scalelab.train.passes import Share, on_device
from scalelab.train.precision import LossFunction
from scalelab.train.state import (
    check_named,
    load_model_tensors,
    load_optimizer_tensors,
    model_tensors,
    optimizer_tensors,
    parameter_of,
)

TABLE = "token_embedding.weight"


class Composed(DataParallel):
    """`scalelab.train.Strategy` for layouts with tp or pp.

    Args:
        layout, group, device, announce: as for `DataParallel`.
        mesh: all processes, by all of the layout's axes.
        order: the pipeline's schedule.

    Raises:
        TrainingError: this torch is too old.
    """

    can_compile = False  # torch's hooks on cut tensors and its schedules are not what a compiler sees through

    def __init__(
        self,
        layout: Layout,
        group: dist.ProcessGroup,
        device: torch.device,
        *,
        mesh: DeviceMesh,
        order: Order = "1f1b",
        announce: Announce | None = None,
    ) -> None:
        super().__init__(layout, group, device, announce=announce)
        _check_torch(layout)
        self._axes = layout
        self._place = layout.coordinates(self.rank)
        self._mesh = mesh
        self._order = order
        self._pipeline: Pipeline | None = None
        self._stage: Stage | None = None
        self._n_targets = 1
        self._needs_mixing = False
        self._shapes: dict[str, tuple[torch.Size, torch.dtype]] = {}
        self._rows: dict[str, Tensor] = {}

    def check(self, model: ModelConfig, config: TrainConfig) -> None:
        """Refuse what tp and pp cannot cut.

        Raises:
            ConfigError: another model than a decoder, counts that do not divide, too few layers or rows, or
                fp16 in a pipeline.
        """
        if not isinstance(model, DecoderConfig):
            raise ConfigError(
                f"{self.layout} cuts the layers of a decoder, got a {type(model).__name__}: use dp_replicate "
                "or dp_shard, which take any model"
            )
        if self._axes.tp > 1:
            check_divides(model, self._axes.tp, seq_len=config.seq_len)
        if self._axes.pp > 1:
            layers_of(model.n_layers, 0, self._axes.pp)
            n_micro_batches(config.batch_size // self.n_shares, config.accumulate, self._axes.pp)
            if config.precision == "fp16":
                raise ConfigError(
                    "precision='fp16' scales losses by what all gradients allow, which the stages of a "
                    f"pipeline ({self.layout}) do not tell each other: give 'bf16' or 'fp32'"
                )

    def place(self, model: nn.Module) -> nn.Module:
        if not isinstance(model, Decoder) or _has_own_path(model):
            raise ConfigError(
                f"{self.layout} knows the way through a Decoder, not through {type(model).__name__}: use "
                "dp_replicate or dp_shard, which take any model"
            )
        axes, config = self._axes, model.config
        if axes.tp > 1:
            check_divides(config, axes.tp)
        broadcast_model(model, self._group)  # on the CPU still: the device may have no room for all of it
        self._shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
        self._note_rows(model)
        dtype = model.token_embedding.weight.dtype
        if axes.pp > 1:
            self._stage = Stage(model, self._place["pp"], axes.pp, tp=axes.tp)
        if axes.tp > 1:
            trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
            parallelize(model, self._mesh["tp"])
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(trained[name])
        self._needs_mixing = axes.tp > 1 and config.positions == "sinusoidal"
        engine: nn.Module = self._stage or _Whole(model)
        if self.n_shares > 1:
            shard(engine, model, self._data_mesh())
        self._engine = engine.to(self.device)
        if self._stage is not None:
            self._pipeline = Pipeline(
                self._stage,
                self._mesh.get_group("pp"),
                config,
                device=self.device,
                dtype=dtype,
                order=self._order,
                loss=self._mean_loss,
            )
        return model

    def loss_function(self, model: nn.Module) -> LossFunction:
        """The loss of rows; in a pipeline the last stage's alone, and not to go back from."""
        engine, pipeline = self._engine, self._pipeline
        assert engine is not None, "a model is placed before its loss is asked for"

        def loss(tokens: Tensor, targets: Tensor) -> Tensor:
            # Going back must be done in the context too: there `_micro_batch` makes it.
            with contextlib.nullcontext() if torch.is_grad_enabled() else self._context():
                if pipeline is None:
                    total: Tensor = engine(tokens, targets)
                    return total
                logits = pipeline.forward(tokens)
                return torch.zeros((), device=self.device) if logits is None else _summed(logits, targets)

        return loss

    def forward_and_back(self, share: Share, loss_function: LossFunction) -> Tensor:
        if self._pipeline is None:
            found = super().forward_and_back(share, loss_function)
        else:
            found = self._through_the_pipeline(share)
        self._settle_gradients()
        return found

    def _through_the_pipeline(self, share: Share) -> Tensor:
        pipeline, stage = self._pipeline, self._stage
        assert pipeline is not None
        assert stage is not None
        tokens, targets = (on_device(part, self.device) for part in (share.inputs, share.targets))
        self._n_targets = share.n_targets
        stage.precision = share.precision
        n_pieces = n_micro_batches(len(tokens), share.pieces, self._axes.pp)
        try:
            with self._context():
                losses = pipeline.train(tokens, targets, n_pieces)
        finally:
            stage.precision = "fp32"  # evaluations are in fp32, whatever is trained in
        total = torch.zeros((), device=self.device, dtype=pipeline.loss_dtype)
        for loss in losses:
            total = total + loss.detach().to(total.dtype)
        return total

    def _mean_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return _summed(logits, targets) / self._n_targets

    def _settle_gradients(self) -> None:
        """Sums that torch still owes, and the two halves of a tied table's gradient."""
        assert self._engine is not None
        for parameter in self._engine.parameters():
            grad: Any = parameter.grad
            if grad is not None and is_cut(grad) and grad.placements != parameter.placements:  # type: ignore[attr-defined]
                parameter.grad = grad.redistribute(placements=parameter.placements)  # type: ignore[attr-defined]
        table = self._tied_table()
        if table is not None and table.grad is not None:
            assert self._pipeline is not None
            own = own_part(table.grad)
            (theirs,) = self._pipeline.swap_ends([own.contiguous()])
            own.add_(theirs)  # a + b is b + a to the last bit: both ends go on with the same table

    def _tied_table(self) -> Tensor | None:
        """The input table where both ends of a pipeline hold it."""
        stage = self._stage
        if stage is None or not stage.model.config.tie_embeddings or not (stage.is_first or stage.is_last):
            return None
        return stage.model.token_embedding.weight

    def total(self, value: Tensor) -> Tensor:
        """The sum over shares: a pipeline's last stage has a share's number, and each of its tp processes."""
        counts = self._place["tp"] == 0 and self._place["pp"] == self._axes.pp - 1
        return super().total(value if counts else torch.zeros_like(value))

    def clip(self, model: nn.Module, max_norm: float) -> Tensor:
        """By the norm over all parts of all stages, each counted once."""
        squares = torch.zeros((), device=self.device, dtype=torch.float64)  # whatever parameters are in
        stage_size = self.n_processes // self._axes.pp
        for name, parameter in model.named_parameters():
            if parameter.grad is None or (name == TABLE and self._is_second_table()):
                continue
            own = torch.linalg.vector_norm(own_part(parameter.grad)).square()
            n_parts = _n_parts(parameter)
            squares = squares + own / (stage_size // n_parts)  # as many processes add the same part
        norm = DataParallel.total(self, squares).sqrt()
        scale = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        for parameter in model.parameters():
            if parameter.grad is not None:
                own_part(parameter.grad).mul_(scale)
        return norm

    def weights(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
        self._cut_again()
        known = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}

        def identity(name: str, tensor: Tensor) -> Hashable:
            return known.get(name, name)

        keeps = self._speaks_for_stage()
        own, aliases = model_tensors(model, whole=lambda t: whole_of(t, kept=keeps), identity=identity)
        assert not aliases, "a decoder has each tensor under one name"
        return self._of_all_stages(own), {}

    def optimizer_state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        self._cut_again()
        keeps = self._speaks_for_stage()
        return self._of_all_stages(
            optimizer_tensors(model, optimizer, whole=lambda t: whole_of(t, kept=keeps))
        )

    def load(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        weights: tuple[Mapping[str, Tensor], Mapping[str, str]],
        optimizer_state: Mapping[str, Tensor],
    ) -> None:
        self._cut_again()
        tensors, aliases = weights
        named = dict(tensors) | {alias: tensors[name] for alias, name in aliases.items() if name in tensors}
        mine = model.state_dict()
        others = {name: kind for name, kind in self._shapes.items() if name not in mine}
        check_named(named, self._shapes)
        own = {name: self._by_rank(name, tensor) for name, tensor in named.items() if name in mine}
        load_model_tensors(model, own, {}, fitting=part_of)
        state = {
            key: self._by_rank(parameter_of(key), value)
            for key, value in optimizer_state.items()
            if parameter_of(key) not in others
        }
        load_optimizer_tensors(model, optimizer, state, fitting=part_of)

    # --- names and parts ----------------------------------------------------------------------------------

    def _note_rows(self, model: Decoder) -> None:
        """For each tensor whose rows will stand in another order: which."""
        if self._axes.tp == 1:
            return
        config = model.config
        order = rows_by_rank(config.n_heads, config.kv_heads, config.head_width, self._axes.tp)
        self._rows = {name: order for name in self._shapes if ".attention.qkv." in name}

    def _by_rank(self, name: str, tensor: Tensor) -> Tensor:
        """A stored tensor, in the order that it is cut in; step counts have none."""
        return tensor[self._rows[name]] if name in self._rows and tensor.ndim else tensor

    def _by_head(self, name: str, tensor: Tensor) -> Tensor:
        """A gathered tensor, in the model's own order."""
        return tensor[self._rows[name].argsort()] if name in self._rows and tensor.ndim else tensor

    def _speaks_for_stage(self) -> bool:
        """Whether this process keeps what its stage gathers."""
        return self.rank % (self.n_processes // self._axes.pp) == 0

    def _is_second_table(self) -> bool:
        stage = self._stage
        return stage is not None and stage.is_last and stage.model.config.tie_embeddings

    def _of_all_stages(self, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every stage's tensors in the model's own order of rows, on rank 0; elsewhere none."""
        if self._is_second_table():
            own = {name: tensor for name, tensor in own.items() if parameter_of(name) != TABLE}
        kinds = self.gather(
            {name: _kind(tensor) for name, tensor in own.items()} if self._speaks_for_stage() else {}
        )
        found = own if self.rank == 0 else {}
        for rank, named in enumerate(kinds[1:], start=1):
            for name, (shape, dtype) in named.items():
                if self.rank == 0:
                    found[name] = torch.empty(shape, dtype=dtype)
                    dist.recv(found[name], group=self._group, group_src=rank)
                elif self.rank == rank:
                    dist.send(own[name], group=self._group, group_dst=0)
        return {name: self._by_head(parameter_of(name), tensor) for name, tensor in found.items()}

    def _data_mesh(self) -> DeviceMesh:
        """The data axes; a cut into one part where each weight is held whole."""
        axes = ("dp_replicate", "dp_shard") if self._axes.dp_replicate > 1 else ("dp_shard",)
        return self._mesh[axes]

    def _micro_batch(self, last: bool) -> AbstractContextManager[object]:
        return self._context()

    @contextlib.contextmanager
    def _context(self) -> Iterator[None]:
        """Around forward and back: the loss of cut logits, and fixed waves beside a cut stream."""
        with contextlib.ExitStack() as stack:
            if self._axes.tp > 1:
                stack.enter_context(loss_parallel())
            if self._needs_mixing:
                stack.enter_context(implicit_replication())
            yield

    def _cut_again(self) -> None:
        if self.n_shares > 1:
            cut_again(self._engine)


class _Whole(SummedLoss):
    """All layers in one process: its loss is a plain number, the same on all that share the layers."""

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return own_part(super().forward(tokens, targets)).clone()  # FSDP hangs its hooks on no view


def _check_torch(layout: Layout) -> None:
    """By what is used of torch's pipelining, which changed from version to version."""
    if "return_outputs" not in inspect.signature(Schedule1F1B.step).parameters and layout.pp > 1:
        raise TrainingError(
            f"pp needs a newer torch than {torch.__version__}: update it (2.13 will do), or leave pp away"
        )


def _summed(logits: Tensor, targets: Tensor) -> Tensor:
    return own_part(loss_nats(logits, targets, "sum"))


def _n_parts(parameter: Tensor) -> int:
    """Different parts that there are of a parameter."""
    cut: Any = parameter
    return cut.device_mesh.size() // copies_of(parameter) if is_cut(parameter) else 1


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def _has_own_path(model: Decoder) -> bool:
    """Whether a class built on Decoder goes another way through its parts."""
    steps = ("forward", "hidden", "embed", "sights", "logits", "loss")
    return any(getattr(type(model), step) is not getattr(Decoder, step) for step in steps)
