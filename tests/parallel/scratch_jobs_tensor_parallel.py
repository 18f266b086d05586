"""Jobs of a pool that cut a decoder over real processes, by our parts and by torch's."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    loss_parallel,
    parallelize_module,
)

from scalelab.models.feed_forward import FeedForward
from scalelab.parallel.scratch.group import Traffic
from scalelab.parallel.scratch.tensor_decoder import cut
from scalelab.parallel.scratch.tensor_parallel import ParallelFeedForward, TensorBorders
from scalelab.parallel.scratch.torch_group import TorchGroup
from scalelab.parallel.scratch.vocabulary import vocabulary_loss

sys.path.insert(0, str(Path(__file__).parents[1] / "parallel_scratch"))

from cut_models import CONFIGS, WAYS, batch_of, found_on, trained_on
from equality import Found


def gradients(group: dist.ProcessGroup, *, name: str, way: str) -> tuple[Found, Traffic]:
    return found_on(TorchGroup(group), CONFIGS[name], **WAYS[way])


def trained(group: dist.ProcessGroup, *, name: str, way: str, n_steps: int) -> dict[str, Tensor]:
    batches = [batch_of(seed=100 + step) for step in range(n_steps)]
    return trained_on(TorchGroup(group), CONFIGS[name], batches, WAYS[way])


def kinds(counted: CommDebugMode) -> dict[str, int]:
    return {str(kind).rsplit(".", 1)[-1]: n for kind, n in counted.get_comm_counts().items()}


def feed_forward(
    group: dist.ProcessGroup,
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[dict[str, int]], Traffic]:
    """Results and this rank's gradients by our parts and by torch's, and what each communicates."""
    ranks = TorchGroup(group)
    config = dataclasses.replace(CONFIGS["gpt"], d_ff=36)  # torch's cut takes none that does not divide
    torch.manual_seed(0)
    whole = FeedForward(config)
    draw = torch.Generator().manual_seed(1)
    x, back = torch.randn(2, 2, 11, config.d_model, generator=draw)
    ours = ParallelFeedForward(config, ranks)
    ours.load_state_dict(cut(whole.state_dict(), config, ranks.rank, ranks.size))
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    with ranks.counted() as sent:
        y = ours(first, TensorBorders(ranks))
        y.backward(back)
    mesh = init_device_mesh("cpu", (ranks.size,))
    torchs = parallelize_module(whole, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    with CommDebugMode() as forward:
        z = torchs(second)
    with CommDebugMode() as backward:
        z.backward(back)
    found = {"y": y.detach(), "x": first.grad} | {n: p.grad for n, p in ours.named_parameters()}
    theirs = {"y": z.detach(), "x": second.grad}
    theirs |= {
        n: p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad for n, p in torchs.named_parameters()
    }
    return found, theirs, [kinds(forward), kinds(backward)], sent.traffic  # type: ignore[return-value]


def loss(group: dist.ProcessGroup) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Our mean loss and its gradient at this rank's logits, then torch's loss_parallel's."""
    ranks, draw = TorchGroup(group), torch.Generator().manual_seed(0)
    vocab = 16 * ranks.size
    logits, targets = torch.randn(10, vocab, generator=draw), torch.randint(vocab, (10,), generator=draw)
    own = logits.tensor_split(ranks.size, 1)[ranks.rank].clone().requires_grad_()
    mean = vocabulary_loss(own, targets, 16 * ranks.rank, ranks).mean()
    mean.backward()
    mesh = init_device_mesh("cpu", (ranks.size,))
    local = own.detach().clone().requires_grad_()
    with loss_parallel():
        theirs = F.cross_entropy(DTensor.from_local(local, mesh, [Shard(1)]), targets)
        theirs.backward()
    assert own.grad is not None
    assert local.grad is not None
    whole: Any = theirs.full_tensor() if isinstance(theirs, DTensor) else theirs
    return mean.detach(), own.grad, whole.detach(), local.grad


def gradient_through_torchs_all_reduce(group: dist.ProcessGroup) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.distributed.nn.functional import all_reduce

        x = torch.ones(1, requires_grad=True)
        all_reduce(x, group=group).sum().backward()
    assert x.grad is not None
    return float(x.grad)
