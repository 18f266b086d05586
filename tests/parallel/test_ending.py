"""Who tells an error: all alike, one alone, or one that only lost the others."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch.distributed as dist

from scalelab.core.errors import ConfigError, DataError
from scalelab.parallel.engine.ending import Ending, compare_endings
from scalelab.parallel.engine.launch import Launch

LOST = RuntimeError("gloo: Connection closed by peer [127.0.0.1]:1234")


def endings(folder: Path, *errors: BaseException | None) -> list[Ending | None]:
    """What each of so many processes finds; None: it goes on working and says nothing."""
    found: list[Ending | None] = [None] * len(errors)

    def end(rank: int, error: BaseException) -> None:
        launch = Launch(rank=rank, n_processes=len(errors), local_rank=rank, local_processes=len(errors))
        store = dist.FileStore(str(folder / "store"), len(errors))
        found[rank] = compare_endings(error, launch, store, patience_s=0.5)

    threads = [
        threading.Thread(target=end, args=(rank, error))
        for rank, error in enumerate(errors)
        if error is not None
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


def test_what_all_met_is_common(tmp_path: Path) -> None:
    assert endings(tmp_path, ConfigError("x"), ConfigError("x")) == [Ending.COMMON] * 2


def test_an_interruption_that_reached_all_is_common(tmp_path: Path) -> None:
    assert endings(tmp_path, KeyboardInterrupt(), KeyboardInterrupt()) == [Ending.COMMON] * 2


def test_what_one_met_while_the_others_go_on_is_its_own(tmp_path: Path) -> None:
    assert endings(tmp_path, None, DataError("y"), None) == [None, Ending.OWN, None]


def test_the_same_words_of_another_kind_of_error_are_not_the_same(tmp_path: Path) -> None:
    assert Ending.COMMON not in endings(tmp_path, DataError("x"), ConfigError("x"))


def test_who_fails_after_another_only_shows_a_consequence(tmp_path: Path) -> None:
    assert endings(tmp_path, None, DataError("y")) == [None, Ending.OWN]
    assert endings(tmp_path, RuntimeError("something else"), None) == [Ending.CONSEQUENCE, None]


def test_a_process_that_was_killed_says_nothing_and_the_others_know_that_they_lost_it(tmp_path: Path) -> None:
    assert endings(tmp_path, LOST, None) == [Ending.CONSEQUENCE, None]


def test_a_store_that_is_gone_does_not_hide_the_error() -> None:
    class Gone:
        def check(self, keys: list[str]) -> bool:
            raise dist.DistNetworkError("the store's process ended")

    launch = Launch(rank=1, n_processes=2, local_rank=1, local_processes=2)
    assert compare_endings(DataError("y"), launch, Gone()) is Ending.OWN  # type: ignore[arg-type]
    assert compare_endings(LOST, launch, Gone()) is Ending.CONSEQUENCE  # type: ignore[arg-type]


@pytest.mark.parametrize("n_processes", [3])
def test_one_that_differs_among_many_keeps_the_rest_from_calling_theirs_common(
    tmp_path: Path, n_processes: int
) -> None:
    errors = [ConfigError("x")] * (n_processes - 1) + [DataError("y")]
    assert Ending.COMMON not in endings(tmp_path, *errors)
