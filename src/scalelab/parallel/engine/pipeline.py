"""Pipeline parallelism: each process holds some of the layers, and hands its rows' activations on.

A batch's rows go through as micro-batches, so that the stages have something to do at the same time. In what
order each stage does them is the schedule: "gpipe" goes forward through all of them, then back; "1f1b" goes
back through one as soon as it can, and so keeps no more micro-batches' activations than there are stages from
it to the end.

Source: Huang et al. 2019, arXiv:1811.06965 (GPipe); Narayanan et al. 2019, arXiv:1806.03377 (1F1B), and
2021, arXiv:2104.04473, section 2.2. Taught in book/transformers/training.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from scalelab.core.config import DecoderConfig
from scalelab.core.errors import ConfigError
from scalelab.models import Decoder
from scalelab.models.masks import token_positions
from scalelab.parallel.engine.layout import Order
from scalelab.train.config import Precision
from scalelab.train.precision import autocast

Loss = Callable[[Tensor, Tensor], Tensor]  # logits [B, T, V], targets [B, T] → what goes back


def layers_of(n_layers: int, stage: int, n_stages: int) -> range:
    """The layers of a stage; where they do not divide, earlier ones have one more: the last has the head.

    Raises:
        ConfigError: there are fewer layers than stages.
    """
    if n_layers < n_stages:
        raise ConfigError(
            f"pp={n_stages} stages need a layer each, the model has n_layers={n_layers}: use pp={n_layers} "
            "or less"
        )
    least, more = divmod(n_layers, n_stages)
    start = stage * least + min(stage, more)
    return range(start, start + least + (stage < more))


def n_micro_batches(rows: int, wanted: int, n_stages: int) -> int:
    """As many equal micro-batches as wanted or as there are stages, or the next number that divides the rows.

    Raises:
        ConfigError: there are fewer rows than stages.
    """
    if rows < n_stages:
        raise ConfigError(
            f"a pipeline of {n_stages} stages needs as many rows in each share of a batch, and gets {rows}: "
            "raise batch_size, or lower pp"
        )
    least = min(max(wanted, n_stages), rows)
    return next(number for number in range(least, rows + 1) if rows % number == 0)


class Stage(nn.Module):
    """A stretch of a decoder's layers; the first looks tokens up, the last says what comes next.

    Args:
        model: a whole decoder, of which only this stage's parts are kept, under the names they have in it.
            With tied embeddings the first and the last stage have the table, each a copy of its own.
        index, n_stages: which stretch.
        tp: processes that the time axis is cut over between blocks.
    """

    def __init__(self, model: Decoder, index: int, n_stages: int, *, tp: int) -> None:
        super().__init__()
        self.is_first, self.is_last = index == 0, index == n_stages - 1
        kept = layers_of(model.config.n_layers, index, n_stages)
        model.blocks = nn.ModuleDict({str(layer): model.blocks[layer] for layer in kept})  # type: ignore[assignment]
        if not self.is_first:
            if not (self.is_last and model.config.tie_embeddings):
                del model.token_embedding
            if hasattr(model, "position_embedding"):
                del model.position_embedding
            del model.dropout
        if not self.is_last:
            del model.final_norm
            if not model.config.tie_embeddings:
                del model.head
        self.model = model
        self.tp = tp
        self.precision: Precision = "fp32"

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, T] or the stream [B, T / tp, D] in; the stream or logits [B, T, V] out."""
        model, time = self.model, x.shape[1] * (1 if self.is_first else self.tp)
        positions = token_positions(time, 0, None, x.device)
        # Inside, since a schedule goes back while others still go forward: autocast is for the way forward.
        with autocast(self.precision, x.device):
            if self.is_first:
                x = model.embed(x, positions)
            sights = model.sights(positions)
            for layer, block in model.blocks.items():  # type: ignore[operator]
                x = block(x, sights[int(layer)])
            return model.logits(model.final_norm(x)) if self.is_last else x


class Pipeline:
    """A stage among the others: how micro-batches and their gradients come in, and go out.

    Args:
        stage: this process's.
        group: the processes of one pipeline, in order of stage.
        config: of the model.
        loss: makes what goes back of logits and targets; the last stage calls it.

    Attributes:
        loss_dtype: of losses, on every stage.
    """

    def __init__(
        self,
        stage: Stage,
        group: dist.ProcessGroup,
        config: DecoderConfig,
        *,
        device: torch.device,
        dtype: torch.dtype,
        order: Order,
        loss: Loss,
    ) -> None:
        self._stage = stage
        self._group, self._index, self._n_stages = group, group.rank(), group.size()
        self._config, self._device, self._dtype = config, device, dtype
        self._order, self._loss = order, loss
        self.loss_dtype = torch.promote_types(dtype, torch.float32)
        self._schedules: dict[tuple[int, ...], Any] = {}

    def train(self, tokens: Tensor, targets: Tensor, n_pieces: int) -> list[Tensor]:
        """Forward and back through equal micro-batches; their losses on the last stage, elsewhere none."""
        rows, time = tokens.shape
        key = (rows // n_pieces, time, n_pieces)
        if key not in self._schedules:
            self._schedules[key] = self._schedule(*key)
        losses: list[Tensor] = []
        self._schedules[key].step(
            *([tokens] if self._stage.is_first else []),
            target=targets if self._stage.is_last else None,
            losses=losses,
            return_outputs=False,
        )
        return losses

    def forward(self, tokens: Tensor) -> Tensor | None:
        """Logits of tokens [B, T] on the last stage, elsewhere None; nothing goes back."""
        rows, time = tokens.shape
        x = tokens
        if not self._stage.is_first:
            x = torch.empty(self._stream(rows, time), device=self._device, dtype=self._dtype)
            dist.recv(x, group=self._group, group_src=self._index - 1)
        out: Tensor = self._stage(x)
        if self._stage.is_last:
            return out
        dist.send(out.contiguous(), group=self._group, group_dst=self._index + 1)
        return None

    def swap_ends(self, tensors: list[Tensor]) -> list[Tensor]:
        """What the other end of the pipeline has in their place; for its first and last stage alone."""
        other = 0 if self._stage.is_last else self._n_stages - 1
        theirs = [torch.empty_like(tensor) for tensor in tensors]
        calls = [
            dist.P2POp(way, tensor, group=self._group, group_peer=other)
            for way, parts in ((dist.isend, tensors), (dist.irecv, theirs))
            for tensor in parts
        ]
        for work in dist.batch_isend_irecv(calls):
            work.wait()
        return theirs

    def _schedule(self, rows: int, time: int, n_pieces: int) -> Any:
        """torch's schedule for micro-batches of this shape.

        Shapes are told, not tried: torch would run the model once to find them.
        """
        stream = self._like(self._stream(rows, time), self._dtype)
        tokens = self._like((rows, time), torch.int64)
        logits = self._like((rows, time, self._config.vocab_size), self._dtype)
        stage = PipelineStage(
            self._stage,
            self._index,
            self._n_stages,
            self._device,
            input_args=tokens if self._stage.is_first else stream,
            output_args=logits if self._stage.is_last else stream,
            group=self._group,
        )
        kinds: dict[Order, Any] = {"1f1b": Schedule1F1B, "gpipe": ScheduleGPipe}
        return kinds[self._order](stage, n_pieces, loss_fn=self._loss, scale_grads=False)

    def _stream(self, rows: int, time: int) -> tuple[int, int, int]:
        return rows, time // self._stage.tp, self._config.d_model

    def _like(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta", requires_grad=dtype.is_floating_point)
