"""An answer is somebody else's code: run it, and say exactly how it failed when it did.

Whatever a learner's function does (raise, return None, return text, a list, a tensor of the wrong
shape) becomes a `Rejected` whose text goes on from "On such-and-such inputs, your_function …".
"""

from __future__ import annotations

import contextlib
import dis
import inspect
import linecache
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from scalelab.lab.checks.guard import LIMIT_S, TookTooLong, time_limit, unchanged
from scalelab.parallel import scratch

_NOT_THE_LEARNERS = (str(Path(__file__).parent), str(Path(scratch.__file__).parent), threading.__file__)


class Rejected(Exception):
    """An answer that gives nothing to compare; its text goes on from the function's name.

    Attributes:
        name: what a report calls it, in a few words.
        ran: whether the answer ran to its end (it did not when it raised, or could not be called).
    """

    def __init__(self, message: str, *, name: str, ran: bool = True) -> None:
        super().__init__(message)
        self.name = name
        self.ran = ran


class NotWritten(Rejected):
    """The function still raises NotImplementedError, as the student edition has it."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """One output of an answer, as float64.

    Attributes:
        values: the numbers, of any shape.
        index_name: what the first axis counts ("step"), or "" for plain indices.
        account: what an account of a difference goes on with; "" for nothing.
    """

    values: np.ndarray
    index_name: str = ""
    account: str = ""

    def place(self, index: tuple[int, ...]) -> str:
        """Words for one element: "" for a scalar, " at step 3", or "[1, 2]"."""
        if not index:
            return ""
        if self.index_name and len(index) == 1:
            return f" at {self.index_name} {index[0]}"
        return f"[{', '.join(str(i) for i in index)}]"


def call(answer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`answer(*args, **kwargs)`, with every failure turned into Rejected.

    Random states, torch's default dtype and its gradient mode are as before afterwards, so that an answer
    changes neither the reference's work nor the lab's.

    Raises:
        NotWritten: it raised NotImplementedError itself, with a raise of its own.
        Rejected: it does not take these arguments, did not come to an end within LIMIT_S, or raised anything
            else, `exit()` too (Ctrl-C goes through).
    """
    check_signature(answer, args, kwargs)
    try:
        with unchanged(), time_limit(LIMIT_S):
            return answer(*args, **kwargs)
    except Rejected:  # on one of several ranks (ranks.py)
        raise
    except TookTooLong as error:
        raise Rejected(
            f"did not come to an end within {LIMIT_S:.0f} s{_where(error)}. Does each loop change what it "
            f"tests?",
            name="did not come to an end",
            ran=False,
        ) from error
    except (Exception, SystemExit) as error:
        if isinstance(error, NotImplementedError) and _raised_by_the_learner(error):
            raise NotWritten(
                "Write it in its cell, run that cell, then this one.", name="not written", ran=False
            ) from error
        detail = str(error).strip().split("\n")[0]
        what = type(error).__name__ + (f": {detail}" if detail else "")
        raise Rejected(
            f"raised {what}{_where(error)}", name=f"raised {type(error).__name__}", ran=False
        ) from error


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread for the length of a check, and as many as before after it.

    Its tensors hold tens of numbers: on a busy machine several threads would wait for each other far
    longer than one needs.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def need_tensor(
    value: Any, what: str, of: Literal["whole numbers", "real numbers", "True and False"]
) -> None:
    """Refuse what the lab's next cells could not use, even where its numbers are right.

    Args:
        of: "whole numbers" (a table can be asked with no others), "real numbers" or "True and False".

    Raises:
        Rejected: it is no torch tensor, or one of another kind.
    """
    if isinstance(value, torch.Tensor):
        is_real, is_bool = value.is_floating_point(), value.dtype == torch.bool
        if {"real numbers": is_real, "True and False": is_bool}.get(of, not (is_real or is_bool)):
            return
    kind = f" of {value.dtype}" if isinstance(value, torch.Tensor | np.ndarray) else ""
    way_out = ": torch.from_numpy makes one of an array" if isinstance(value, np.ndarray) else ""
    raise Rejected(
        f"returned {describe(value)}{kind} for {what}, where a torch tensor of {of} should be{way_out}",
        name=f"no tensor of {of}",
    )


def as_numbers(value: Any, what: str, *, index_name: str = "") -> Numbers:
    """A number, tensor or array as float64.

    Args:
        value: what the answer returned. what: its name in messages, as in "returned None for the loss".

    Raises:
        Rejected: anything that is not made of real numbers.
    """
    if isinstance(value, torch.Tensor) and not value.is_complex():
        with contextlib.suppress(TypeError, RuntimeError):  # sparse, nested, or without numbers (meta)
            return Numbers(value.detach().cpu().double().numpy(), index_name)
    if isinstance(value, int | float | np.number | np.ndarray) and not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            return Numbers(np.asarray(value, dtype=np.float64), index_name)
    missing = " (is the return missing?)" if value is None else ""
    raise Rejected(
        f"returned {describe(value)}{missing} for {what}, where a number or a tensor of numbers should be",
        name="returned the wrong kind of thing",
    )


def as_tuple(value: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    """A tuple of as many parts as there are names.

    Raises:
        Rejected: not a tuple or list, or of another length.
    """
    if isinstance(value, tuple | list) and len(value) == len(names):
        return tuple(value)
    got = f"{len(value)} values" if isinstance(value, tuple | list) else describe(value)
    raise Rejected(
        f"returned {got}, and should return {len(names)}: ({', '.join(names)})",
        name="returned the wrong kind of thing",
    )


def describe(value: object) -> str:
    """A short account of a value of any kind."""
    if value is None:
        return "None"
    if isinstance(value, torch.Tensor):
        kind = str(value.layout).removeprefix("torch.").replace("_", " ")
        if value.is_nested or value.layout != torch.strided:
            return f"a {'nested' if value.is_nested else kind} tensor"
        where = " without numbers (on 'meta')" if value.is_meta else ""
        return f"a tensor of shape {list(value.shape)}{where}"
    if isinstance(value, np.ndarray):
        return f"an array of shape {list(value.shape)}"
    if isinstance(value, int | float | bool | str) and len(repr(value)) <= 30:
        return f"the {type(value).__name__} {value!r}"
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeioAEIO' else 'a'} {kind}"


def check_signature(answer: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raises Rejected where an answer does not take these arguments."""
    try:
        signature = inspect.signature(answer)
    except (TypeError, ValueError):  # some built-ins have none: let the call itself decide
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        names = f"{len(args)} positional argument{'' if len(args) == 1 else 's'}"
        if kwargs:
            names += f" and {', '.join(f'{name}=' for name in kwargs)}"
        raise Rejected(
            f"cannot be called with {names}: {error}. Keep the signature the exercise gives",
            name="another signature",
            ran=False,
        ) from error


def _raised_by_the_learner(error: BaseException) -> bool:
    """Whether a `raise` statement in the learner's own code raised it, rather than a library.

    The last frame alone cannot tell: torch's C++ (grad ^ 2) has no frame, so its errors end in the
    learner's. The instruction that was running there can.
    """
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return False
    code = last.tb_frame.f_code
    own = code.co_filename != __file__ and "site-packages" not in code.co_filename
    return own and code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _where(error: BaseException) -> str:
    """The last line of the learner's own code on the way to an error, quoted where it can be read."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_NOT_THE_LEARNERS) and "site-packages" not in frame.filename
    ]
    if not frames:
        return ""
    frame = frames[-1]
    line = linecache.getline(frame.filename, frame.lineno or 0).strip()
    return f", in line {frame.lineno}" + (f": {line}" if line else "")
