"""Anyone's table is read whole or refused by line: nothing dropped, mended or derived without a word."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scalelab.core.errors import ConfigError, DataFileError, FitError
from scalelab.laws.read_runs import read_runs

HEADER = "n_params,n_tokens,flops,loss_nats"
GOOD_ROW = "1e6,2e7,1.2e14,3.5"
NAMES = {"n_params": "N", "n_tokens": "D", "loss": "L"}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """`write(text, name="runs.csv")`: a file that holds the text."""

    def make(text: str | bytes, name: str = "runs.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return make


def columns_of(path: Path, **options: Any) -> list[list[float]]:
    runs = read_runs(path, **options).runs
    return [getattr(runs, name).tolist() for name in ("n_params", "n_tokens", "flops", "loss")]


EXPECTED = [[1e6, 3e6], [2e7, 6e7], [1.2e14, 1.08e15], [3.5, 3.25]]


TABLE = f"{HEADER}\n{GOOD_ROW}\n3e6,6e7,1.08e15,3.25\n"
SPELLINGS: dict[str, tuple[str, str]] = {
    "plain": (TABLE, "runs.csv"),
    "other numbers": (f"{HEADER}\n1000000,2.0E+7,.12e15,3.50\n+3e6,6e7,1.08e15,3.25\n", "runs.csv"),
    "no last newline": (TABLE.rstrip(), "runs.csv"),
    "of Excel": ("\ufeff" + TABLE.replace("\n", "\r\n"), "runs.csv"),
    "quoted, with spaces": ('"n_params", "n_tokens", flops ,loss_nats\n" 1e6", "2e7",1.2e14 ,3.5\n'
                            "3e6,6e7,1.08e15,3.25\n", "runs.csv"),
    "tabs": (TABLE.replace(",", "\t"), "runs.tsv"),
    "tabs by another name": (TABLE.replace(",", "\t"), "runs.txt"),
    "semicolons": (TABLE.replace(",", ";"), "runs.csv"),
    "blank lines": (f"\n\n{HEADER}\n\n{GOOD_ROW}\n,,,\n3e6,6e7,1.08e15,3.25\n\n", "runs.csv"),
    "line ends in cells": (f'{HEADER},note\n{GOOD_ROW},"a, b\nc"\n3e6,6e7,1.08e15,3.25,\n', "runs.csv"),
    "other order": ("loss_nats,flops,n_tokens,n_params\n3.5,1.2e14,2e7,1e6\n3.25,1.08e15,6e7,3e6\n", "x.csv"),
    "JSONL": ('{"n_params": 1000000, "n_tokens": 2e7, "flops": 1.2e14, "loss_nats": 3.5}\n\n'
              '{"loss_nats": "3.25", "n_params": 3e6, "n_tokens": 6e7, "flops": 1.08e15, "x": {"a": [1]}}\n',
              "runs.jsonl"),
    "JSONL by another name": ('{"n_params":1e6,"n_tokens":2e7,"flops":1.2e14,"loss_nats":3.5}\r\n'
                              '{"n_params":3e6,"n_tokens":6e7,"flops":1.08e15,"loss_nats":3.25}', "runs"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "name"), SPELLINGS.values(), ids=SPELLINGS.keys())
def test_the_same_runs_are_read_from_every_spelling(write: Any, text: str, name: str) -> None:
    assert columns_of(write(text, name)) == EXPECTED


def test_a_path_may_be_text_as_the_readme_has_it(write: Any) -> None:
    assert columns_of(str(write(TABLE))) == EXPECTED  # type: ignore[arg-type]


def test_runs_are_named_by_the_line_on_which_they_begin(write: Any) -> None:
    text = 'note,n_params,n_tokens,loss_nats\n\n"two\nlines",1e6,2e7,3\nx,1e6,4e7,2.9\n'
    assert read_runs(write(text)).runs.rows == ("line 3", "line 5")


def test_any_two_of_the_three_scales_do_and_the_third_is_noted(write: Any) -> None:
    for left_out, formula in (("n_params", "C / 6D"), ("n_tokens", "C / 6N"), ("flops", "6ND")):
        kept = [name for name in HEADER.split(",") if name != left_out]
        row = dict(zip(HEADER.split(","), GOOD_ROW.split(","), strict=True))
        table = read_runs(write(",".join(kept) + "\n" + ",".join(row[name] for name in kept) + "\n"))
        assert getattr(table.runs, left_out)[0] == pytest.approx(float(row[left_out]))
        assert table.notes == (f"{left_out} is {formula}: the file has no column for it",)
        assert left_out not in table.columns


def test_empty_cells_of_one_scale_are_derived_row_by_row(write: Any) -> None:
    table = read_runs(write(f"{HEADER}\n1e6,2e7,,3.5\n1e6,,2.4e14,3.4\n,2e7,1.2e14,3.5\n{GOOD_ROW}\n"))
    assert table.runs.flops.tolist() == [1.2e14, 2.4e14, 1.2e14, 1.2e14]
    assert table.runs.n_tokens.tolist() == [2e7, 4e7, 2e7, 2e7]
    assert table.runs.n_params.tolist() == [1e6] * 4
    assert [note.split(":")[0] for note in table.notes] == [
        "n_params is C / 6D in 1 of 4 rows, where it is empty (lines 4)",
        "n_tokens is C / 6N in 1 of 4 rows, where it is empty (lines 3)",
        "flops is 6ND in 1 of 4 rows, where it is empty (lines 2)",
    ]


def test_columns_of_other_names_are_read_when_named(write: Any) -> None:
    path = write("Model Size,Training FLOP,loss\n1e6,1.2e14,3.5\n")
    table = read_runs(path, n_params="Model Size", flops="Training FLOP", loss="loss")
    assert table.runs.n_tokens.tolist() == [2e7]
    assert table.columns == {"n_params": "Model Size", "flops": "Training FLOP", "loss": "loss"}


def test_epoch_s_chinchilla_points_are_read(tmp_path: Path) -> None:
    folder = os.environ.get("SCALELAB_DATA")
    path = Path(folder or tmp_path) / "epoch_chinchilla.csv"
    if not path.is_file():
        pytest.skip("set SCALELAB_DATA to a folder with epoch_chinchilla.csv")
    table = read_runs(path, n_params="Model Size", flops="Training FLOP", loss="loss")
    assert len(table.runs) == 245
    np.testing.assert_allclose(6 * table.runs.n_params * table.runs.n_tokens, table.runs.flops, rtol=1e-12)
    assert sorted(table.runs.loss.tolist())[-1] == 5.005581996196243


BAD_ROWS = {
    "1e6,2e7,1.2e14,nan": "loss_nats is NaN",
    "1e6,2e7,1.2e14,NaN": "loss_nats is NaN",
    "1e6,2e7,1.2e14,": "loss_nats is empty",
    "1e6,2e7,1.2e14,inf": "loss_nats is inf",
    "1e6,2e7,1.2e14,-3.5": "loss_nats is -3.5",
    "0,2e7,1.2e14,3.5": "n_params is 0",
    "1e6,many,1.2e14,3.5": "n_tokens is 'many', no number",
    "7B,2e7,1.2e14,3.5": "n_params is '7B': write it out, 7e9",
    "1e6,1.4T,1.2e14,3.5": "n_tokens is '1.4T': write it out, 1.4e12",
    '"1,000,000",2e7,1.2e14,3.5': "n_params is '1,000,000': write it without separators, 1000000",
    "1_000_000,2e7,1.2e14,3.5": "n_params is '1_000_000': write it without separators, 1000000",
    "1 000 000,2e7,1.2e14,3.5": "n_params is '1 000 000': write it without separators, 1000000",
    '1e6,2e7,1.2e14,"3,5104"': "loss_nats is '3,5104': write the decimal comma as a point, 3.5104",
    '1e6,2e7,1.2e14,"3,510"': "3510, or, where the comma is the decimal one, with a point, 3.510",
    '"1.300,5",2e7,1.2e14,3.5': "n_params is '1.300,5': write the decimal comma as a point, 1300.5",
    "1.000.000,2e7,1.2e14,3.5": "n_params is '1.000.000': write it without separators, 1000000",
    "1e6,,,3.5": "n_tokens and flops are empty",
    "1e6,2e7,1.2e14": "has 3 cells, the header 4",
    "1,000,000,2e7,1.2e14,3.5": "has 6 cells, the header 4 (a comma inside a number? Write it without)",
    "1e6,2e7,6e13,3.5": "flops is 6e+13, 2 times too small for 6ND = 1.2e+14 (a multiply–add is two FLOPs)",
    "1e6,2e7,4e13,3.5": "3 times too small for 6ND = 1.2e+14 (the forward pass alone is 2ND)",
    "1e6,2e7,1.2e17,3.5": "1.2e+17, 1,000 times too large for 6ND = 1.2e+14 (a slip of the exponent?)",
    "1e6,2e7,1.9e14,3.5": "1.58 times too large",
    "1e6,2e7,1e-300,3.5": "too small for 6ND",
    "1e300,2e300,1e30,3.5": "for 6ND = inf",
}


@pytest.mark.parametrize(("row", "why"), BAD_ROWS.items())
def test_a_bad_row_is_named_by_line_and_reason(write: Any, row: str, why: str) -> None:
    path = write(f"{HEADER}\n{GOOD_ROW}\n\n{row}\n{GOOD_ROW}\n")
    with pytest.raises(FitError) as caught:
        read_runs(path)
    message = str(caught.value)
    assert "1 of 3 rows cannot be used: line 4: " in message
    assert why in message
    assert "--skip-bad" in message
    table = read_runs(path, skip_bad=True)
    assert table.runs.rows == ("line 2", "line 5")
    assert [bad.row for bad in table.skipped] == ["line 4"]
    assert why in table.skipped[0].why


def test_ten_bad_rows_are_named_and_the_others_counted(write: Any) -> None:
    with pytest.raises(FitError) as caught:
        read_runs(write(f"{HEADER}\n{GOOD_ROW}\n" + "1e6,2e7,1.2e14,nan\n" * 25))
    assert "25 of 26 rows" in str(caught.value)
    assert "lines 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 and 15 more: loss_nats is NaN. Mend" in str(caught.value)


def test_bad_rows_of_one_reason_are_one_clause_and_many_reasons_are_cut(write: Any) -> None:
    rows = "".join(f"1e6,2e7,1.2e14,{'nan' if i % 2 else f'word{i}'}\n" for i in range(30))
    with pytest.raises(FitError) as caught:
        read_runs(write(f"{HEADER}\n{GOOD_ROW}\n{rows}"))
    assert str(caught.value).count("NaN") == 1
    assert "; and 6 more. Mend" in str(caught.value)  # 15 words and NaN: ten reasons are said


def test_no_good_row_is_an_error_even_when_bad_ones_are_skipped(write: Any) -> None:
    with pytest.raises(FitError, match="all 1 rows are bad, the first: line 2: loss_nats is NaN"):
        read_runs(write(f"{HEADER}\n1e6,2e7,1.2e14,nan\n"), skip_bad=True)


def test_flops_may_differ_from_6nd_by_the_stated_factor(write: Any) -> None:
    exact_count = write(f"{HEADER}\n1e6,2e7,1.7e14,3.5\n")  # 1.42: a narrow model's attention
    assert columns_of(exact_count)[2] == [1.7e14]
    with pytest.raises(FitError, match=r"1\.42 times too large"):
        read_runs(exact_count, flops_tolerance=1.3)
    forward_only = write(f"{HEADER}\n1e6,2e7,4e13,3.5\n")
    with pytest.raises(FitError, match="--flops-tolerance"):  # all rows: a convention, not a slip
        read_runs(forward_only)
    assert columns_of(forward_only, flops_tolerance=3.1)[2] == [4e13]


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("N,D,L\n1e6,2e7,3\n", {}, "no column 'loss_nats'; its columns are N, D, L"),
        ("n_params,n_tokens,loss\n1e6,2e7,3\n", {}, r"did you mean 'loss'\?; say which holds loss .*--loss"),
        ("n_params,tokens,loss_nats\n1e6,2e7,3\n", {}, "has only n_params; .*did you mean 'tokens'"),
        ("params,tokens,loss_nats\n1e6,2e7,3\n", {}, "has none of them; .*did you mean 'params'"),
        ("N,D,L\n1e6,2e7,3\n", {**NAMES, "n_params": "n"}, r"no column 'n'; .*did you mean 'N'"),
        ("N,D,L\n1e6,2e7,3\n", {**NAMES, "flops": "C"}, "no column 'C'.*--flops"),
        ("N,D,L,L\n1e6,2e7,3,3\n", NAMES, "more than one column 'L'"),
    ],
)
def test_a_missing_column_is_named_with_those_that_are_there(
    write: Any, text: str, options: dict[str, str], says: str
) -> None:
    with pytest.raises(FitError, match=says):
        read_runs(write(text), **options)


def test_a_repeated_column_that_is_not_used_does_no_harm(write: Any) -> None:
    assert columns_of(write("N,D,L,note,note\n1e6,2e7,3,a,b\n"), **NAMES)[3] == [3.0]


def test_one_column_cannot_be_two_quantities(write: Any) -> None:
    with pytest.raises(ConfigError, match="'N' cannot be both n_params and n_tokens"):
        read_runs(write("N,D,L\n1,2,3\n"), n_params="N", n_tokens="N", loss="L")


@pytest.mark.parametrize("tolerance", [0.9, 0.0, float("nan")])
def test_a_tolerance_below_one_is_refused(write: Any, tolerance: float) -> None:
    with pytest.raises(ConfigError, match="flops_tolerance"):
        read_runs(write(f"{HEADER}\n{GOOD_ROW}\n"), flops_tolerance=tolerance)


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        (b"", "runs.csv", "is empty"),
        (b"\n \n\r\n", "runs.csv", "is empty"),
        (b"", "runs.jsonl", "is empty"),
        (f"{HEADER}\n".encode(), "runs.csv", "column names and no runs"),
        (b"1e6,2e7,1.2e14,3.5\n1e6,2e7,1.2e14,3.5\n", "runs.csv", "line 1: numbers where the column names"),
        (b"\x89PNG\r\n\x1a\n\0\0\0", "runs.csv", "binary"),
        (b"PK\x03\x04\x14\0", "runs.xlsx", "save its table as CSV"),
        (f"{HEADER}\n{GOOD_ROW}\n".encode("utf-16"), "runs.csv", "UTF-16"),
        (f"{HEADER}\n\xe9,2e7,1.2e14,3.5\n".encode("latin-1"), "runs.csv", "line 2: not UTF-8"),
        (f'{HEADER}\n{GOOD_ROW}\n1e6,"2e7,1.2e14,3.5\n'.encode(), "runs.csv", "line 3: .*quotation mark"),
        (b'[{"n_params": 1e6}]', "runs.json", "one JSON array"),
        (b'{"n_params": 1e6, "n_par', "runs.jsonl", "holds no JSON object: line 1"),
        (b"not json\n", "runs.jsonl", "line 1 is no JSON object"),
        (b"[1, 2]\n{}\n", "runs.jsonl", "one JSON array"),
        (b"[" * 100_000 + b"\n", "runs.jsonl", "JSON array"),
        (b'{"a":' * 100_000 + b"\n", "runs.jsonl", "line 1 is no JSON object"),
    ],
)
def test_a_file_that_is_no_table_is_refused(write: Any, content: bytes, name: str, says: str) -> None:
    with pytest.raises(DataFileError, match=says):
        read_runs(write(content, name))


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="there is no file"):
        read_runs(tmp_path / "gone.csv")
    with pytest.raises(DataFileError, match="is a folder"):
        read_runs(tmp_path)
    with pytest.raises(DataFileError, match="cannot read"):
        read_runs(Path("a\0b"))


def jsonl(*rows: Any) -> str:
    return "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)


ROW = {"n_params": 10**6, "n_tokens": 2 * 10**7, "loss_nats": 3.5}


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ('{"n_params": 1e6, \n', "is no JSON object"),
        ("[1, 2]\n", "is no JSON object (it is list)"),
        ('{"n_params": 1, "n_params": 2}\n', "the key 'n_params' stands there twice"),
        ({**ROW, "loss_nats": float("nan")}, "loss_nats is NaN"),
        ({**ROW, "loss_nats": None}, "loss_nats is empty"),
        ({"n_params": 1, "n_tokens": 2}, "loss_nats is empty"),
        ({**ROW, "n_params": True}, "n_params is True, no number"),
        ({**ROW, "n_params": [1]}, "n_params is [1], no number"),
        ({**ROW, "n_params": 10**400}, "n_params is too large a number"),
        ({**ROW, "curve": [1, 2]}, "curve must be pairs (tokens, loss), got [1, 2]"),
        ({**ROW, "curve": [[1, -2.0]]}, "curve holds (1, -2)"),
    ],
)
def test_a_bad_line_of_jsonl_is_named(write: Any, bad: Any, why: str) -> None:
    path = write(jsonl(ROW, bad, ROW), "runs.jsonl")
    with pytest.raises(FitError) as caught:
        read_runs(path)
    assert "1 of 3 rows cannot be used: line 2: " in str(caught.value)
    assert why in str(caught.value)
    assert read_runs(path, skip_bad=True).runs.rows == ("line 1", "line 3")


def test_a_last_line_that_a_kill_cut_off_is_left_out_and_said(write: Any) -> None:
    table = read_runs(write(jsonl(ROW) + '{"n_params": 1000', "runs.jsonl"))
    assert len(table.runs) == 1
    assert table.notes[0] == "line 2 is cut off and left out"


def test_seeds_and_curves_are_read_where_they_are(write: Any) -> None:
    rows = [{**ROW, "seed": s, "curve": [[1e6, 5.0], [2e7, 3.5]]} for s in (3, 4)]
    runs = read_runs(write(jsonl(*rows), "runs.jsonl")).runs
    assert runs.seeds is not None
    assert runs.seeds.tolist() == [3, 4]
    assert runs.curves == (((1e6, 5.0), (2e7, 3.5)),) * 2
    partly = read_runs(write(jsonl(rows[0], ROW), "runs.jsonl"))
    assert partly.runs.seeds is None
    assert "seeds are ignored: 1 of 2 runs have none" in partly.notes
    assert partly.runs.curves == (((1e6, 5.0), (2e7, 3.5)), ())
    assert read_runs(write("N,D,L,seed\n1e6,2e7,3,7\n"), **NAMES).runs.seeds.tolist() == [7]  # type: ignore[union-attr]


def test_what_check_runs_knows_is_kept_beside_the_runs(write: Any) -> None:
    text = "N,D,L,n_gpus,other\n1e6,2e7,3,8,x\n1e6,2e7,bad,8,x\n1e6,2e7,3,9,x\n"
    table = read_runs(write(text), **NAMES, skip_bad=True)
    assert [row["row"] for row in table.details] == ["line 2", "line 4"]
    assert [row["n_gpus"] for row in table.details] == ["8", "9"]
    assert table.details[0]["n_params"] == "1e6"
    assert "other" not in table.details[0]
    assert read_runs(write("N,D,L,other\n1e6,2e7,3,x\n"), **NAMES).details == ()


def test_another_count_of_parameters_is_not_held_against_the_whole_shape(write: Any) -> None:
    text = (
        "n_params,n_params_matmul,n_params_non_embedding,n_tokens,loss_nats,n_layers,flops,dp\n"
        "3e6,2e6,1e6,2e7,3,4,2.4e14,8\n"
    )
    (by_default,) = read_runs(write(text)).details
    assert by_default["n_params"] == "3e6"
    assert by_default["n_params_matmul"] == "2e6"
    assert by_default["n_layers"] == "4"
    (kaplan,) = read_runs(write(text), n_params="n_params_non_embedding", flops_tolerance=3).details
    assert kaplan["n_params"] == "1e6"
    assert not {"n_params_matmul", "n_layers"} & set(kaplan)


def test_many_rows_are_read_in_seconds(write: Any) -> None:
    """A million take ten seconds on these two cores."""
    text = "\n".join(f"{1e6 + i},{2e7 + i},,{3 + i * 1e-6}" for i in range(20_000))
    table = read_runs(write(f"{HEADER}\n{text}\n"))
    assert len(table.runs) == 20_000
    assert table.runs.n_params[-1] == 1e6 + 19_999
    assert table.notes == ("flops is 6ND: its column is empty",)
