"""A run's tensors under names: weights with tied tables once, optimiser state by parameter, ready for a file.

Names, not positions: a checkpoint stays readable when a model's parameters change their order.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from scalelab.core.errors import CheckpointError

_SEPARATOR = "|"  # parameter names hold dots, never this


def model_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every weight and buffer once, and which other names stand for the same tensor.

    Returns:
        name → tensor, and alias → name: a head tied to the input table is an alias of it.
    """
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        if tensor.numel() and place in seen:
            aliases[name] = seen[place]
            continue
        seen[place] = name
        tensors[name] = _whole(tensor.detach())
    return tensors, aliases


def load_model_tensors(model: nn.Module, tensors: Mapping[str, Tensor], aliases: Mapping[str, str]) -> None:
    """Copy stored weights into a model, in place.

    Raises:
        CheckpointError: names or shapes are not this model's.
    """
    named = dict(tensors) | {alias: tensors[name] for alias, name in aliases.items() if name in tensors}
    own = model.state_dict()
    missing = [name for name in own if name not in named]
    surplus = [name for name in named if name not in own]
    if missing or surplus:
        raise CheckpointError(
            f"the stored weights are of another model: it lacks {', '.join(surplus[:3]) or 'nothing'}, "
            f"they lack {', '.join(missing[:3]) or 'nothing'}"
        )
    for name, tensor in own.items():
        if tensor.shape != named[name].shape or tensor.dtype != named[name].dtype:
            raise CheckpointError(
                f"{name} is stored as {_kind(named[name])}, the model has {_kind(tensor)}: another model"
            )
    model.load_state_dict(named)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as `parameter|quantity` → tensor; settings are the config's, not stored here."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}{_SEPARATOR}{quantity}": _whole(value.detach())
        for parameter, state in optimizer.state.items()
        for quantity, value in state.items()
    }


def load_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Put stored state in place of the optimiser's own.

    Raises:
        CheckpointError: it is the state of other parameters.
    """
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for key, value in tensors.items():
        name, _, quantity = key.rpartition(_SEPARATOR)
        parameter = parameters.get(name)
        if parameter is None or (value.ndim and value.shape != parameter.shape):
            raise CheckpointError(f"optimiser state {key!r} {_kind(value)} fits no parameter of this model")
        # A copy in torch's own, aligned memory: a file's tensors lie at any address, where vector code may
        # take another path. AdamW's fused form wants its step count on the parameter's device.
        optimizer.state[parameter][quantity] = value.clone().to(parameter.device)
    quantities = {quantity for state in optimizer.state.values() for quantity in state}
    for name, parameter in parameters.items():
        lacking = quantities - set(optimizer.state.get(parameter, quantities))
        if lacking:  # the step would fail on it, or count from nothing
            raise CheckpointError(f"optimiser state of {name} lacks {', '.join(sorted(lacking))}")


def _whole(tensor: Tensor) -> Tensor:
    """The tensor, copied where it is a window on a larger storage, which safetensors refuses."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
