"""Ranks without a notebook: values and functions go there and back, errors name the rank."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import psutil
import pytest
import torch

from scalelab.core.errors import LabError
from scalelab.lab import ranks as lab_ranks
from scalelab.lab.ranks import RanksError
from scalelab.lab.ranks.board import ROW_BYTES, FileBoard
from scalelab.lab.ranks.cluster import Cluster


@pytest.fixture(scope="module")
def three() -> Iterator[lab_ranks.Ranks]:
    running = lab_ranks.ensure(None, 3, on_gpus=False, seed=5)
    yield running
    running.stop()


def of_notebook(source: str, **names: Any) -> FunctionType:
    """A function as a notebook's cell defines it, where these names are known."""
    space = {"__name__": "__main__", "torch": torch, **names}
    exec(source, space)
    return next(each for each in space.values() if isinstance(each, FunctionType))


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie, waiting a little for its end."""
    for _ in range(100):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return False
        except psutil.NoSuchProcess:
            return False
        time.sleep(0.02)
    return True


def test_ranks_know_their_names_and_are_seeded_alike(three: lab_ranks.Ranks) -> None:
    assert three["rank"] == [0, 1, 2]
    assert three["size"] == [3, 3, 3]
    three.run_cell("drawn = (torch.rand(1).item(), np.random.rand(), torch.get_num_threads(), str(device))")
    assert len(set(three["drawn"])) == 1
    assert three["drawn"][0][2:] == (1, "cpu")


def test_a_functions_names_are_those_of_the_ranks(three: lab_ranks.Ranks) -> None:
    around = of_notebook(
        """
def around(group, x, *, times=2):
    result = torch.empty_like(x)
    group.exchange(x + rank, group.next, result, group.previous)
    return result * times
""",
        rank="the notebook has another",
    )
    assert three.run(around, torch.ones(1)) == [torch.tensor([6.0]), torch.tensor([2.0]), torch.tensor([4.0])]
    three.push(around=around, shift=torch.tensor([10.0]))
    three.run_cell("moved = around(group, shift, times=1)")
    assert three["moved"] == [torch.tensor([12.0]), torch.tensor([10.0]), torch.tensor([11.0])]


def test_output_comes_in_the_ranks_order_under_their_headings(
    three: lab_ranks.Ranks, capsys: pytest.CaptureFixture[str]
) -> None:
    three.run_cell(
        "import time; time.sleep((size - rank) / 10); print(rank)\nif rank == 1: print('more')\nrank * 2"
    )
    said = capsys.readouterr()
    assert said.out == (
        "[stdout:0] 0\n[stdout:1]\n1\nmore\n[stdout:2] 2\n[result:0] 0\n[result:1] 2\n[result:2] 4\n"
    )
    assert said.err == ""
    three.run_cell("print(rank)", [0, 2])
    assert capsys.readouterr().out == "[stdout:0] 0\n[stdout:2] 2\n"


def test_an_error_names_its_rank_and_ends_the_others_waits(three: lab_ranks.Ranks) -> None:
    begun = time.monotonic()
    with pytest.raises(RanksError) as raised:
        three.run_cell("x = torch.ones(2)\nif rank == 1:\n    x[5]\ndist.all_reduce(x)")
    assert time.monotonic() - begun < 15, "long before torch's own limit"
    first, second, _ = str(raised.value).splitlines()
    assert first.startswith("rank 1: IndexError: ")
    assert second == "Meanwhile ranks 0 and 2: in `dist.all_reduce(x)`"
    shown = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(raised.value._render_traceback_()))
    assert "x[5]" in shown
    assert "site-packages" not in shown
    three.run_cell("dist.all_reduce(x.fill_(1)); group.barrier()")
    assert [x.tolist() for x in three["x"]] == [[3.0, 3.0]] * 3


def test_the_same_plain_slip_on_all_ranks_leaves_groups_as_they_are(three: lab_ranks.Ranks) -> None:
    three.run_cell("before = group")
    with pytest.raises(RanksError, match=r"^ranks 0, 1 and 2: NameError: name 'nothing' is not defined$"):
        three.run_cell("nothing")
    three.run_cell("assert group is before")
    with pytest.raises(RanksError, match="joined anew"):
        three.run_cell("kept = group.isend(torch.ones(1), group.next); nothing")  # it would be received later
    three.run_cell("assert group is not before")


def test_who_waits_for_whom_is_shown_where_a_wait_in_vain_is_expected(
    three: lab_ranks.Ranks, capsys: pytest.CaptureFixture[str]
) -> None:
    three.run_cell(
        """
x = torch.zeros(4)
if rank == 0:
    group.recv(x, 1)
elif rank == 1:
    dist.all_reduce(x)""",
        stuck_s=1,
    )
    assert capsys.readouterr().out.splitlines() == [
        "Stuck after 1 s:",
        "rank 0: waiting to receive 16 bytes from rank 1, in `group.recv(x, 1)`",
        "rank 1: in `dist.all_reduce(x)`",
        "rank 2: finished",
    ]
    silly = of_notebook("def silly(group):\n    x = torch.zeros(2)\n    group.send(x, group.next)")
    three.show_stuck(silly, limit_s=1)
    assert "rank 2: waiting to send 8 bytes to rank 0" in capsys.readouterr().out
    with pytest.raises(LabError, match="expected to wait in vain, and all have finished"):
        three.run_cell("group.barrier()", stuck_s=5)


def test_a_function_that_needs_what_the_ranks_lack_is_not_sent(three: lab_ranks.Ranks) -> None:
    f = of_notebook("def f(group):\n    return [helper(i) for i in range(3)]", helper=abs)
    with pytest.raises(LabError, match=r"f uses helper, .* ranks\.push\(helper=helper\)"):
        three.push(f=f)
    with pytest.raises(LabError, match="f uses helper"):
        three.run(f)
    three.push(f=f, helper=abs)
    assert three.run(f) == [[0, 1, 2]] * 3


def test_a_class_of_the_notebook_is_told_where_to_go(three: lab_ranks.Ranks) -> None:
    class Model:
        pass

    Model.__module__ = "__main__"
    with pytest.raises(LabError, match="%%px --local"):
        three.push(Model=Model)


def test_names_and_ranks_that_are_none_are_told(three: lab_ranks.Ranks) -> None:
    three.run_cell("only = 1", [1])
    with pytest.raises(LabError, match="'only' is no name on ranks 0 and 2 of 3"):
        three.pull("only")
    with pytest.raises(LabError, match="there are ranks 0 to 2"):
        three.run_cell("1", [3])
    for size in (0, 17, 2.0, True):
        with pytest.raises(LabError, match="from 1 to 16"):
            lab_ranks.ensure(None, size, on_gpus=False, seed=0)  # type: ignore[arg-type]


def test_an_answer_that_cannot_be_sent_is_an_error_of_its_rank(three: lab_ranks.Ranks) -> None:
    with pytest.raises(RanksError, match="ranks 0, 1 and 2: "):
        three.run(of_notebook("def f(group):\n    return (each for each in 'abc')"))
    assert three["rank"] == [0, 1, 2]


def test_a_rank_that_was_killed_is_told_and_all_start_anew(capsys: pytest.CaptureFixture[str]) -> None:
    with lab_ranks.ensure(None, 2, on_gpus=False, seed=0) as two:
        folder, pids = two._cluster.folder, list(two._cluster.pids.values())
        assert lab_ranks.ensure(two, 2, on_gpus=False, seed=0) is two
        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises(
            LabError, match=r"rank 1 has ended \(killed by SIGKILL: out of memory\?\): .*lab\.ranks\(2\)"
        ):
            two.run_cell("import time; time.sleep(60)")
        assert not folder.exists()
        assert not any(map(runs, pids))
        with lab_ranks.ensure(two, 2, on_gpus=False, seed=0) as anew:
            assert anew is not two
            assert anew["rank"] == [0, 1]
    assert capsys.readouterr().out == "2 ranks on the CPU by gloo, one thread each\n" * 3
    with pytest.raises(LabError, match="the ranks have ended"):
        anew.run_cell("1")


def test_ranks_also_start_where_forking_is_not_safe() -> None:
    """As on macOS: each imports torch for itself."""
    with lab_ranks.Ranks(Cluster(2, fork=False), backend="gloo", limit_s=15) as two:
        two.begin(seed=0)
        two.run_cell("x = torch.ones(1); dist.all_reduce(x)")
        assert two["x"] == [torch.tensor([2.0])] * 2


def test_a_board_holds_a_row_for_each_rank(tmp_path: Path) -> None:
    board = FileBoard.create(tmp_path / "board", 3)
    board.write(2, "ü" * ROW_BYTES)
    board.write(1, "long words")
    board.write(1, "short")
    rows = FileBoard(tmp_path / "board", 3).read()
    assert rows[:2] == ["", "short"]
    assert rows[2].startswith("ü" * 100)
