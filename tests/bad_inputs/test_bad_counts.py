"""The floors: at least 40 distinct kinds of bad input for each area, at least 200 in all."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

AREAS = ("configs", "corpora", "checkpoints", "cli")


def kinds(area: str) -> set[str]:
    """Names of an area's cases: the keys of every table called CASES or ..._CASES."""
    spec = importlib.util.spec_from_file_location(
        f"bad_{area}", Path(__file__).with_name(f"test_bad_{area}.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tables = [table for name, table in vars(module).items() if name.endswith("CASES")]
    names = {kind for table in tables for kind in table}
    assert len(names) == sum(map(len, tables)), "two kinds share a name"
    return names


@pytest.mark.parametrize("area", AREAS)
def test_each_area_has_at_least_40_kinds_of_bad_input(area: str) -> None:
    assert len(kinds(area)) >= 40


def test_there_are_at_least_200_bad_inputs() -> None:
    assert len(set.union(*map(kinds, AREAS))) >= 200
