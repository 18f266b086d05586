"""Who tells an error: all alike, one alone, or one that only lost the others."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from scalelab.core.errors import ConfigError, DataError, TrainingError
from scalelab.parallel.engine.ending import (
    Ending,
    announce,
    compare_endings,
    is_loss,
    is_timeout,
    say_told,
    silent,
    wait_until_told,
)
from scalelab.parallel.engine.launch import Launch
from scalelab.train.interrupt import Stopped

LATE = RuntimeError("gloo: Timed out waiting 5000ms for recv operation to complete")
LOST = RuntimeError("gloo: Connection closed by peer [127.0.0.1]:1234")


def endings(folder: Path, *errors: BaseException | None, patience_s: float = 0.5) -> list[Ending | None]:
    """What each of so many processes finds; None: it goes on working and says nothing."""
    found: list[Ending | None] = [None] * len(errors)

    def end(rank: int, error: BaseException) -> None:
        launch = Launch(rank=rank, n_processes=len(errors), local_rank=rank, local_processes=len(errors))
        store = dist.FileStore(str(folder / "store"), len(errors))
        found[rank] = compare_endings(error, launch, store, patience_s=patience_s)

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


def test_who_waits_in_vain_for_one_that_says_nothing_has_timed_out(tmp_path: Path) -> None:
    assert endings(tmp_path, LATE, None, LOST) == [Ending.TIMED_OUT, None, Ending.CONSEQUENCE]
    launch = Launch(rank=0, n_processes=3, local_rank=0, local_processes=3)
    assert silent(launch, dist.FileStore(str(tmp_path / "store"), 3)) == [1]


def test_who_waits_in_vain_for_one_that_failed_meets_a_consequence(tmp_path: Path) -> None:
    launch = Launch(rank=1, n_processes=2, local_rank=1, local_processes=2)
    announce(DataError("a text that only this one reads"), launch, dist.FileStore(str(tmp_path / "store"), 2))
    assert endings(tmp_path, LATE, None) == [Ending.CONSEQUENCE, None]


def test_what_all_met_is_common(tmp_path: Path) -> None:
    assert endings(tmp_path, ConfigError("x"), ConfigError("x")) == [Ending.COMMON] * 2


@pytest.mark.parametrize(
    "errors",
    [
        (KeyboardInterrupt(), KeyboardInterrupt()),
        (Stopped("after step 3"), KeyboardInterrupt()),
        (KeyboardInterrupt(), None),
        (KeyboardInterrupt(), LOST),
        (LOST, KeyboardInterrupt()),
    ],
)
def test_ctrl_c_is_nobodys_own_failure_wherever_it_finds_the_processes(
    errors: tuple[BaseException | None, ...], tmp_path: Path
) -> None:
    found = endings(tmp_path, *errors)
    assert found == [None if error is None else Ending.INTERRUPTED for error in errors]


def test_who_is_interrupted_waits_for_nobody(tmp_path: Path) -> None:
    started = time.monotonic()
    endings(tmp_path, None, KeyboardInterrupt(), patience_s=10)
    assert time.monotonic() - started < 5


def test_output_that_nobody_reads_is_nobodys_failure(tmp_path: Path) -> None:
    assert endings(tmp_path, BrokenPipeError(), LOST) == [Ending.READER_GONE] * 2


def test_what_rank_0_announced_is_common_before_it_has_come_to_its_end(tmp_path: Path) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 2)
    first, second = (Launch(rank=r, n_processes=2, local_rank=r, local_processes=2) for r in (0, 1))
    announce(TrainingError("the loss is nan"), first, store)
    started = time.monotonic()
    assert compare_endings(TrainingError("the loss is nan"), second, store) is Ending.COMMON
    assert time.monotonic() - started < 1
    assert compare_endings(TrainingError("the loss is nan"), first, store) is Ending.COMMON


def test_who_waits_for_rank_0s_word_leaves_when_it_has_come(tmp_path: Path) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 2)
    started = time.monotonic()
    wait_until_told(store, 0.2)
    assert time.monotonic() - started >= 0.2
    say_told(store)
    wait_until_told(store, 60)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    "words",
    [
        "[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1",
        "[gloo/transport/tcp/pair.cc:269] Application timeout caused pair closure",
        "ncclRemoteError: possibly a network error or a remote process exited unexpectedly.",
    ],
)
def test_gloo_and_nccl_have_several_words_for_a_process_that_is_gone(words: str) -> None:
    assert is_loss(RuntimeError(words))
    assert is_loss(dist.DistBackendError(words))
    assert not is_loss(DataError(words))


def test_a_process_that_does_not_answer_is_not_taken_for_one_that_is_gone() -> None:
    late = RuntimeError("[gloo/transport/tcp/buffer.cc:81] Timed out waiting 1800000ms for recv operation")
    assert is_timeout(late)
    assert not is_loss(late)
    assert not is_timeout(DataError(str(late)))


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
