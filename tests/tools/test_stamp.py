"""One setting says where the course lives; everything else follows from it, and can be led back."""

from __future__ import annotations

import re
from pathlib import Path

import address
import notebooks
import pytest
import stamp
import student
from address import Address, AddressError
from notebooks import ROOT

FORK = "https://github.com/" + "ada-l/scaling.course"  # in two parts: stamping back must not find it here
# Links that can only lead into this course, whoever keeps it.
OWN = re.compile(
    r"(?:colab\.research\.google\.com/github/|mybinder\.org/v2/gh/|git\+https://github\.com/"
    r"|raw\.githubusercontent\.com/(?=[\w.-]+/[\w.-]+/student/))(?P<owner>[\w.-]+)/(?P<name>[\w.-]+?)(?=[/@?\s\"'`)]|\.git|$)"
)
GITHUB = re.compile(r"https://github\.com/(?P<owner>[\w-]+)/(?P<name>[\w.-]*\w)")
PAGES = re.compile(r"https://(?P<owner>[\w-]+)\.github\.io/(?P<name>[\w.-]*\w)")
PLACEHOLDERS = {("OWNER", "REPOSITORY")}


def contents(folder: Path) -> dict[Path, bytes]:
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def texts(tracked: list[Path]) -> dict[Path, str]:
    """Tracked text files outside the tests, which name other addresses to try the tools on."""
    found = {}
    for name in tracked:
        try:
            found[name] = (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
    return {
        name: text
        for name, text in found.items()
        if name.parts[0] != "tests" and name.name not in stamp.OTHERS
    }


def set_line(path: Path, before: str, after: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after), encoding="utf-8")


def strange(texts: dict[Path, str], here: Address) -> list[str]:
    """Links that lead into a course, or nearly into this one, and not to the address that is set."""
    found = []
    for name, text in texts.items():
        for match in OWN.finditer(text):
            if (match["owner"], match["name"]) not in {(here.owner, here.name), *PLACEHOLDERS}:
                found.append(f"{name}: {match[0]}")
        for pattern in (GITHUB, PAGES):
            for match in pattern.finditer(text):
                near = match["owner"].lower() == here.owner.lower() or match["name"] == here.name
                if near and (match["owner"].lower(), match["name"]) != (here.owner.lower(), here.name):
                    found.append(f"{name}: {match[0]}")
    return found


def test_no_file_gives_the_course_another_address_than_the_setting(texts):
    assert not strange(texts, address.repository())


@pytest.mark.parametrize(
    "line",
    [
        "[Colab](https://colab.research.google.com/github/ada/other/blob/student/a/b.ipynb)",
        "https://mybinder.org/v2/gh/ada/other/student",
        '!pip install -q "scalelab[lab] @ git+https://github.com/ada/old@v0.1.0"',
        "https://raw.githubusercontent.com/ada/other/student/a/b.ipynb",
        "see https://github.com/ada/course2 for the code",
        "see https://github.com/bob/course",
        "the site https://ada.github.io/old/book/",
    ],
)
def test_another_address_would_be_noticed(line):
    here = Address("ada", "course")
    fine = f"{here.repository}/issues {here.site}/book {here.install_line('1')} https://github.com/karpathy/nanoGPT"
    assert strange({Path("a.md"): fine}, here) == []
    assert len(strange({Path("a.md"): line}, here)) >= 1


def test_every_file_is_stamped_with_the_setting_and_the_version():
    assert stamp.problems(ROOT) == []


def test_every_lab_installs_the_package_of_this_version_in_one_line_in_both_editions():
    line = address.repository().install_line(address.version())
    for path in notebooks.find_labs():
        lab = notebooks.read(path)
        for notebook in (lab, student.student_edition(lab)):
            lines = [row.strip() for cell in notebook.cells for row in cell.source.splitlines()]
            assert [row for row in lines if "pip install" in row] == [line]


def test_a_fork_s_address_reaches_every_place_and_stamping_back_restores_every_byte(course):
    before, old = contents(course), address.repository(course)
    assert stamp.main([FORK, "--root", str(course)]) == 0
    after = contents(course)
    left = [
        str(name)
        for name, content in after.items()
        for form in (old.path, old.site.removeprefix("https://"))
        if form.encode() in content
    ]
    assert not left
    for name in (
        "README.md",
        "index.md",
        "CITATION.cff",
        "pyproject.toml",
        "labs/transformers/training.ipynb",
    ):
        assert b"ada-l/scaling.course" in after[Path(name)]
    assert f"{Address.parse(FORK).site}/book/".encode() in after[Path("labs/transformers/training.ipynb")]
    assert stamp.problems(course) == []
    assert stamp.main([old.repository, "--root", str(course)]) == 0
    assert contents(course) == before


def test_stamping_twice_changes_nothing_more(course, capsys):
    assert stamp.main([FORK, "--root", str(course)]) == 0
    first = contents(course)
    assert stamp.main([FORK + "/", "--root", str(course)]) == 0
    assert stamp.main(["--root", str(course)]) == 0
    assert contents(course) == first
    assert "0 files changed" in capsys.readouterr().out


def test_after_a_new_version_set_up_cells_and_citation_name_it(course):
    set_line(course / "src/scalelab/__init__.py", address.version(), "7.8.9")
    assert stamp.main(["--check", "--root", str(course)]) == 1
    assert stamp.main(["--root", str(course)]) == 0
    for path in notebooks.find_labs(labs=course / "labs"):
        assert address.repository(course).install_line("7.8.9") in notebooks.read(path).cells[2].source
    assert "\nversion: 7.8.9\n" in (course / "CITATION.cff").read_text(encoding="utf-8")


def test_a_setting_that_was_edited_by_hand_is_followed_everywhere(course):
    expected = contents(course)
    set_line(course / "pyproject.toml", address.repository(course).repository, FORK)
    assert stamp.main(["--root", str(course)]) == 0
    found = contents(course)
    assert stamp.main([address.repository().repository, "--root", str(course)]) == 0
    assert contents(course) == expected
    assert b"ada-l/scaling.course" in found[Path("README.md")]


def test_addresses_that_only_begin_like_the_course_s_stay(course):
    here = address.repository()
    kept = f"{here.repository}-data and {here.repository}.js and {here.site}-old/x\n"
    changed = f"{here.repository}. {here.repository}.git, ({here.repository}) {here.repository}/issues\n"
    (course / "notes.md").write_text(kept + changed, encoding="utf-8")
    assert stamp.main([FORK, "--root", str(course)]) == 0
    first, second = (course / "notes.md").read_text(encoding="utf-8").splitlines(keepends=True)
    assert first == kept
    assert second == changed.replace(here.repository, FORK)


def test_a_user_s_own_site_has_no_folder_in_its_address():
    assert Address.parse("https://github.com/Ada/ada.github.io").site == "https://ada.github.io"
    assert Address.parse("https://github.com/Ada/Course").site == "https://ada.github.io/Course"
    assert Address.parse(FORK).site == "https://ada-l" + ".github.io/scaling.course"


@pytest.mark.parametrize("text", [FORK, FORK + "/", FORK + ".git", f"  {FORK}\n"])
def test_a_trailing_slash_git_or_blanks_are_tolerated(text):
    assert Address.parse(text).repository == FORK


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ada/course",
        "http://github.com/ada/course",
        "https://gitlab.com/ada/course",
        "git@github.com:ada/course.git",
        "https://github.com/ada",
        "https://github.com/ada/course/tree/main",
        "https://github.com/ada/two words",
        "https://github.com/-ada/course",
        "https://github.com/a--b/course",
        "https://github.com/ada/..",
        "https://github.com/ada/course?tab=1",
        "https://github.com/ädä/course",
    ],
)
def test_what_is_no_repository_on_github_is_refused_and_changes_nothing(course, capsys, text):
    before = contents(course)
    with pytest.raises(AddressError, match="OWNER/REPOSITORY"):
        Address.parse(text)
    if text:  # an empty one means: as it is set
        assert stamp.main([text, "--root", str(course)]) == 2
        assert repr(text) in capsys.readouterr().err
        assert contents(course) == before


def test_a_file_that_cannot_be_written_leaves_all_as_they_were(course, monkeypatch):
    before = contents(course)
    write, calls = Path.write_bytes, []

    def full_disk(path: Path, content: bytes) -> int:
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    assert stamp.main([FORK, "--root", str(course)]) == 2
    monkeypatch.undo()
    assert contents(course) == before


def test_stopped_half_way_the_same_command_finishes(course, monkeypatch):
    replace, calls = stamp.os.replace, []

    def stopped(before: Path, after: Path) -> None:
        calls.append(after)
        if len(calls) == 3:
            raise KeyboardInterrupt
        replace(before, after)

    monkeypatch.setattr(stamp.os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        stamp.main([FORK, "--root", str(course)])
    monkeypatch.undo()
    assert stamp.main(["--check", "--root", str(course)]) == 1
    assert stamp.main([FORK, "--root", str(course)]) == 0
    assert stamp.problems(course) == []
    assert not [file for file in contents(course) if file.suffix == ".tmp"]


def test_a_release_s_tag_must_be_the_version(course, capsys):
    good = f"v{address.version(course)}"
    assert stamp.main(["--check", "--tag", good, "--root", str(course)]) == 0
    for tag in ("v9.9.9", address.version(course), good + "-rc1"):
        assert stamp.main(["--check", "--tag", tag, "--root", str(course)]) == 1
        assert repr(tag) in capsys.readouterr().out
    set_line(course / "CHANGELOG.md", f"## {address.version(course)}", "## 0.0.1")
    assert stamp.main(["--check", "--tag", good, "--root", str(course)]) == 1
    assert "CHANGELOG" in capsys.readouterr().out
