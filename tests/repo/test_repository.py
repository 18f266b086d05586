"""Claims about the files around the code: pins, environments, targets, licences, paths."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.metadata import version as installed_version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import scalelab

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
# A folder that only some machine has; /usr/bin and the like are on all of them.
MACHINE_PATH = re.compile(r"(?<![\w./])/(?:work|farm|root|home|tmp|Users|opt)/[\w.-]+")


def pins(name: str) -> dict[str, Version]:
    """Package → version of a constraints file, which must hold nothing but exact pins and comments."""
    found = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            package, _, exact = line.partition("==")
            assert exact, f"{name}: {line!r} is no exact pin"
            found[canonicalize_name(package)] = Version(exact)
    return found


def requirements(*extras: str) -> Iterator[Requirement]:
    """What the package needs with these extras, our own extras followed."""
    for text in PROJECT["dependencies"]:
        yield Requirement(text)
    for extra in extras:
        for requirement in map(Requirement, EXTRAS[extra]):
            if requirement.name == PROJECT["name"]:
                yield from requirements(*requirement.extras)
            else:
                yield requirement


def makefile_variable(name: str) -> str:
    match = re.search(rf"^{name} := (.+)$", MAKEFILE, flags=re.MULTILINE)
    assert match, f"the Makefile sets no {name}"
    return match[1]


def tracked_files() -> list[Path]:
    """The files git has, or would have; without git the test is skipped."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True
    )
    if listed.returncode != 0:
        pytest.skip("not a git clone")
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize(
    ("file", "variable"), [("constraints.txt", "DEV_EXTRAS"), ("constraints-site.txt", "SITE_EXTRAS")]
)
def test_constraints_pin_every_direct_dependency_within_its_bounds(file, variable):
    pinned = pins(file)
    for requirement in requirements(*makefile_variable(variable).split(",")):
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{file} lacks {name}"
        assert requirement.specifier.contains(pinned[name]), (
            f"{file}: {name} {pinned[name]} is not {requirement}"
        )


def test_the_site_is_pinned_without_torch():
    assert "torch" not in pins("constraints-site.txt")
    assert not any(requirement.name == "torch" for requirement in requirements("site"))


def test_runtime_dependencies_have_lower_bounds_only():
    """A hosted notebook keeps the torch and numpy it came with."""
    for requirement in requirements("lab", "hub", "log"):
        assert {specifier.operator for specifier in requirement.specifier} == {">="}, str(requirement)


def test_the_tests_run_on_the_pinned_torch():
    assert Version(installed_version("torch")).public == str(pins("constraints.txt")["torch"])


def test_environment_file_names_the_makefile_s_extras_and_constraints():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == [
        f"--extra-index-url {makefile_variable('TORCH_CPU_WHEELS')}",
        "-c constraints.txt",
        f"-e .[{makefile_variable('DEV_EXTRAS')}]",
    ]
    python = next(entry for entry in conda if entry.startswith("python="))
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(
        python.removeprefix("python=")
    )
    assert "pip" in conda


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", "index.md"])
def test_every_make_target_that_the_documents_name_exists(file):
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, flags=re.MULTILINE))
    code = re.findall(
        r"`([^`\n]+)`|^(?:\$ )?(make .+)$", (ROOT / file).read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    named = {
        word
        for command in ("".join(pair) for pair in code)
        if command.startswith("make ")
        for word in command.split("#")[0].split()[1:2]
        if "=" not in word
    }
    assert named, f"{file} names no target"
    assert named <= targets


def test_make_without_a_target_lists_every_target():
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.+)$", MAKEFILE, flags=re.MULTILINE)
    assert phony
    for target in set(phony[1].split()) - {"python"}:  # which only helps others
        assert re.search(rf"^  {target} ", shown, flags=re.MULTILINE), target


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["book", "PYTHON=no-such-python"], "no-such-python"), (["help", "TORCH=gpu"], "TORCH=gpu")],
)
def test_make_refuses_what_it_cannot_use_and_says_so(arguments, says):
    failed = subprocess.run(["make", "-B", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode != 0
    assert says in failed.stderr


def test_citation_names_this_version_licence_and_repository():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == scalelab.__version__
    assert citation["license"] == ["Apache-2.0", "CC-BY-4.0"]
    assert citation["repository-code"] == PROJECT["urls"]["Homepage"]
    assert all(citation[field] for field in ("title", "message", "authors"))


def test_the_changelog_s_newest_entry_is_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+)", changelog, flags=re.MULTILINE)
    assert newest
    assert newest[1] == scalelab.__version__


def test_both_licences_are_there_in_full():
    code = (ROOT / "LICENSE").read_text(encoding="utf-8")
    text = (ROOT / "LICENSE-TEXT").read_text(encoding="utf-8")
    assert "Apache License" in code
    assert "END OF TERMS AND CONDITIONS" in code
    assert "Attribution 4.0 International" in text
    assert "Section 8 -- Interpretation." in text


def test_every_data_file_of_the_package_goes_into_a_wheel():
    """An installed package, as in Colab, has only what these patterns name."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["scalelab"]
    package = ROOT / "src" / "scalelab"
    packed = {file for pattern in patterns for file in package.glob(pattern)}
    data = {file for file in tracked_files() if package in file.parents and file.suffix != ".py"}
    assert data <= packed, sorted(str(file.relative_to(package)) for file in data - packed)


def test_no_file_holds_a_path_of_some_machine():
    found = []
    for file in tracked_files():
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if file.suffix == ".py" and "tests" in file.parts:
            continue  # tests may name such folders as bad input
        found += [f"{file.relative_to(ROOT)}: {path}" for path in MACHINE_PATH.findall(text)]
    assert not found, "\n".join(found)


def test_a_machine_path_would_be_noticed():
    assert MACHINE_PATH.search("see /" + "home/someone/course")
    assert not MACHINE_PATH.search("https://example.org/home/page and ./tmp/x and #!/usr/bin/env bash")
