"""Functions of a notebook on their way to the ranks: the code goes, its names are looked up there."""

from __future__ import annotations

import builtins
import dis
import linecache
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

from scalelab.core.errors import LabError


def portable(value: Any) -> Any:
    """A value that can be sent; functions of the notebook lose their annotations, which may not be sendable.

    Raises:
        LabError: a class of the notebook, which cannot.
    """
    if isinstance(value, type) and value.__module__ == "__main__":
        raise LabError(
            f"the class {value.__name__} is written in this notebook and cannot be sent: define it in a cell "
            "that begins with %%px (%%px --local defines it on the ranks and here)"
        )
    if not _is_of_notebook(value):
        return value
    bare = FunctionType(
        value.__code__, value.__globals__, value.__name__, value.__defaults__, value.__closure__
    )
    bare.__kwdefaults__ = value.__kwdefaults__
    bare.__module__ = value.__module__
    return bare


def sources(values: Iterable[Any]) -> dict[str, list[str]]:
    """The source files, which are cells, of the notebook's functions among these."""
    files = {value.__code__.co_filename for value in values if _is_of_notebook(value)}
    return {name: linecache.getlines(name) for name in files}


def needed(values: Mapping[str, Any]) -> dict[str, str]:
    """Names that the notebook's functions among these look up there → the function that does.

    Only names that the notebook has: the others are the ranks' own, such as `group`.
    """
    found: dict[str, str] = {}
    for name, value in values.items():
        if _is_of_notebook(value):
            for used in _globals_of(value.__code__):
                if used in value.__globals__ and used not in values and not hasattr(builtins, used):
                    found.setdefault(used, name)
    return found


def _is_of_notebook(value: Any) -> bool:
    return isinstance(value, FunctionType) and value.__module__ == "__main__"


def _globals_of(code: CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals_of(constant)
