"""A run's tensors under names: weights with tied tables once, optimiser state by parameter, ready for a file.

Names, not positions: a checkpoint stays readable when a model's parameters change their order.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
from torch import Tensor, nn

from scalelab.core.errors import CheckpointError

_SEPARATOR = "|"  # parameter names hold dots, never this
_OF_RANK = "@"  # "cpu@1": the CPU generator of rank 1

# How a stored tensor (first) becomes like one of the model's own (second): on its device, or the part of it
# that this process holds.
Fitting = Callable[[Tensor, Tensor], Tensor]
Kind = tuple[torch.Size, torch.dtype]


def whole_tensor(tensor: Tensor) -> Tensor:
    """The tensor, copied where it is a window on a larger storage, which safetensors refuses."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def memory_of(name: str, tensor: Tensor) -> Hashable:
    """Where a tensor lies: two names of the same memory are one tensor."""
    return (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))


def on_its_device(stored: Tensor, own: Tensor) -> Tensor:
    """A copy in torch's own, aligned memory, on the device of `own`.

    A file's tensors lie at any address, where vector code may take another path; AdamW's fused form wants
    its step count on the parameter's device.
    """
    return stored.clone().to(own.device)


def model_tensors(
    model: nn.Module,
    *,
    whole: Callable[[Tensor], Tensor] = whole_tensor,
    identity: Callable[[str, Tensor], Hashable] = memory_of,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every weight and buffer once, and which other names stand for the same tensor.

    Args:
        whole: makes a tensor fit for a file.
        identity: what two names have in common when they stand for one tensor.

    Returns:
        name → tensor, and alias → name: a head tied to the input table is an alias of it.
    """
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[Hashable, str] = {}
    for name, tensor in model.state_dict().items():
        place = identity(name, tensor)
        if tensor.numel() and place in seen:
            aliases[name] = seen[place]
            continue
        seen[place] = name
        tensors[name] = whole(tensor.detach())
    return tensors, aliases


def load_model_tensors(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    aliases: Mapping[str, str],
    *,
    fitting: Fitting | None = None,
) -> None:
    """Copy stored weights into a model, in place.

    Args:
        fitting: for models whose tensors are not whole; None: as they are.

    Raises:
        CheckpointError: names or shapes are not this model's.
    """
    named = dict(tensors) | {alias: tensors[name] for alias, name in aliases.items() if name in tensors}
    own = model.state_dict()
    check_named(named, {name: (tensor.shape, tensor.dtype) for name, tensor in own.items()})
    if fitting is not None:
        named = {name: fitting(named[name], tensor) for name, tensor in own.items()}
    model.load_state_dict(named)


def check_named(named: Mapping[str, Tensor], own: Mapping[str, Kind]) -> None:
    """Refuse stored weights that are not a model's.

    Args:
        named: what is stored, aliases included. own: shape and type of the model's own tensors.

    Raises:
        CheckpointError: names or shapes are not this model's.
    """
    missing = [name for name in own if name not in named]
    surplus = [name for name in named if name not in own]
    if missing or surplus:
        raise CheckpointError(
            f"the stored weights are of another model: it lacks {', '.join(surplus[:3]) or 'nothing'}, "
            f"they lack {', '.join(missing[:3]) or 'nothing'}"
        )
    for name, kind in own.items():
        found = (named[name].shape, named[name].dtype)
        if found != kind:
            raise CheckpointError(
                f"{name} is stored as {_said(found)}, the model has {_said(kind)}: another model"
            )


def parameter_of(key: str) -> str:
    """The parameter that a key of `optimizer_tensors` is of."""
    return key.rpartition(_SEPARATOR)[0] or key


def optimizer_tensors(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    whole: Callable[[Tensor], Tensor] = whole_tensor,
) -> dict[str, Tensor]:
    """The optimiser's state as `parameter|quantity` → tensor; settings are the config's, not stored here."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}{_SEPARATOR}{quantity}": whole(value.detach())
        for parameter, state in optimizer.state.items()
        for quantity, value in state.items()
    }


def load_optimizer_tensors(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    *,
    fitting: Fitting = on_its_device,
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
            said = _said((value.shape, value.dtype))
            raise CheckpointError(f"optimiser state {key!r} {said} fits no parameter of this model")
        optimizer.state[parameter][quantity] = fitting(value, parameter)
    quantities = {quantity for state in optimizer.state.values() for quantity in state}
    for name, parameter in parameters.items():
        lacking = quantities - set(optimizer.state.get(parameter, quantities))
        if lacking:  # the step would fail on it, or count from nothing
            raise CheckpointError(f"optimiser state of {name} lacks {', '.join(sorted(lacking))}")


def random_tensors(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Every process's generators under names of their own; rank 0's as a run of one process stores them."""
    return {
        f"{name}{_OF_RANK}{rank}" if rank else name: value
        for rank, state in enumerate(states)
        for name, value in state.items()
    }


def random_states(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The states that `random_tensors` named, in order of rank."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, mark, rank = key.rpartition(_OF_RANK)
        if mark and rank.isdigit():
            states.setdefault(int(rank), {})[name] = value
        else:
            states.setdefault(0, {})[key] = value
    return [states.get(rank, {}) for rank in range(max(states, default=0) + 1)]


def _said(kind: Kind) -> str:
    shape, dtype = kind
    return f"{tuple(shape)} {str(dtype).removeprefix('torch.')}"
