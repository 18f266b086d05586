"""Text of the running Python: what is in, what is out, and that nothing is imported for it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scalelab.core.errors import DataFileError
from scalelab.data import corpus, split_of
from scalelab.data import python_source as source


def test_python_holds_the_library_as_it_lies_on_the_disk() -> None:
    made = corpus("python")
    by_path = {d.path: d.text for d in (*made.train, *made.held_out)}
    for module in (json, ast):
        path = Path(module.__file__)
        name = "json/__init__.py" if module is json else "ast.py"
        assert by_path[name] == path.read_text(encoding="utf-8")
    assert 5e6 < made.train_bytes + made.held_out_bytes < 20e6


def test_python_leaves_out_tests_tables_and_other_peoples_packages() -> None:
    made = corpus("python")
    forbidden = {"test", "tests", "idle_test", "encodings", "pydoc_data", "site-packages", "__pycache__"}
    for document in (*made.train, *made.held_out):
        assert not forbidden & set(document.path.split("/")), document.path


def test_every_python_document_parses_and_is_on_the_side_of_its_hash() -> None:
    made = corpus("python", max_bytes=300_000)
    for document in made.train:
        ast.parse(document.text)
        assert split_of(document.path) == "train"
    assert all(split_of(d.path) == "held_out" for d in made.held_out)


def test_docs_are_the_docstrings_that_ast_finds() -> None:
    text = (Path(json.__file__).parent / "decoder.py").read_text(encoding="utf-8")
    found = source.docstrings(text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            expected = ast.get_docstring(node)
            if expected and len(expected.split()) >= source.MIN_DOCSTRING_WORDS:
                assert expected in found
    assert any("Simple JSON" in text for text in found)


def test_docstrings_come_in_the_order_of_the_file_at_any_depth() -> None:
    text = '"""one two three four five"""\nif x:\n  try: pass\n  except E:\n    def f():\n'
    text += '      """two two two two two"""\nclass C:\n  """too short"""\n  async def g(self):\n'
    text += "    '''three three three\n    three three'''\n"
    assert source.docstrings(text) == [
        "one two three four five", "two two two two two", "three three three\nthree three",
    ]  # fmt: skip


@pytest.mark.parametrize("content", [b"", b"  \n", b"def f(:\n", b"\xff\xfe", b"x = 'caf\xe9'", b"a\0b"])
def test_what_is_not_python_text_is_no_document(content: bytes) -> None:
    assert source.python_document("a.py", content) is None


def test_reading_the_corpora_runs_none_of_the_files_read(tmp_path: Path) -> None:
    trap = tmp_path / "trap.py"
    trap.write_text("raise SystemExit('imported')\n", encoding="utf-8")
    assert [d.path for d in source.read_python([("trap.py", trap)])] == ["trap.py"]
    code = (
        "import sys; from scalelab.data import corpus; before = set(sys.modules)\n"
        "corpus('python', cache=None)\n"
        "print({'turtle', 'this', 'antigravity', 'idlelib'} & (set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_data_needs_no_torch() -> None:
    code = "import sys, scalelab.data; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_python_is_the_same_from_the_cache_as_from_the_disk_and_quicker(tmp_path: Path) -> None:
    fresh = corpus("python", cache=tmp_path)
    began = time.perf_counter()
    cached = corpus("python", cache=tmp_path)
    assert cached.fingerprint == fresh.fingerprint
    assert time.perf_counter() - began < 5  # 0.1 s on an idle machine; a fresh read takes 2 s


def test_damaged_cache_entry_is_found_out_and_made_again(tmp_path: Path, monkeypatch) -> None:
    files = [("a.py", tmp_path / "a.py"), ("b.py", tmp_path / "b.py")]
    for name, file in files:
        file.write_text(f"'''{name}'''\n", encoding="utf-8")
    monkeypatch.setattr(source, "stdlib_files", lambda: files)
    whole = corpus("python", cache=tmp_path)
    (entry,) = (tmp_path / "corpora").iterdir()
    content = entry.read_bytes()
    for damaged in (content[:-3], content[:20], b"", content.replace(b"a.py", b"c.py"), b"{}\n" + content):
        entry.write_bytes(damaged)
        assert corpus("python", cache=tmp_path).fingerprint == whole.fingerprint
        assert entry.read_bytes() == content


def test_changed_file_is_read_again(tmp_path: Path, monkeypatch) -> None:
    files = [("a.py", tmp_path / "a.py"), ("b.py", tmp_path / "b.py")]
    for name, file in files:
        file.write_text(f"'''{name}'''\n", encoding="utf-8")
    monkeypatch.setattr(source, "stdlib_files", lambda: files)
    before = corpus("python", cache=tmp_path)
    files[0][1].write_text("'''something else'''\n", encoding="utf-8")
    assert corpus("python", cache=tmp_path).fingerprint != before.fingerprint


def test_python_without_its_source_is_an_error_with_a_way_out(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(source.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataFileError, match="tiny-shakespeare"):
        corpus("python", cache=None)


def test_cache_that_cannot_be_written_costs_a_warning_and_nothing_else(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder", encoding="utf-8")
    with pytest.warns(UserWarning, match="SCALELAB_CACHE"):
        made = corpus("python", cache=blocked, max_bytes=1_000)
    assert made.train
