"""Workflows do nothing that cannot be tried by hand: their steps are make targets, and they may do little."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import notebooks
import pytest
import yaml

FOLDER = notebooks.ROOT / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))
TARGETS = set(
    re.findall(r"^([a-z]+):.*##", (notebooks.ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
)
MAKE = re.compile(r"make (?P<target>[a-z]+)(?: [A-Z]+=(?:[\w.:/-]+|\"\$GITHUB_REF_NAME\"))*")
PINNED = re.compile(r"[\w.-]+/[\w./-]+@(?:v\d+|[0-9a-f]{40})")


def workflow(name: str) -> dict[Any, Any]:
    return dict(yaml.safe_load((FOLDER / f"{name}.yml").read_text(encoding="utf-8")))


def steps(loaded: dict[Any, Any]) -> list[dict[str, Any]]:
    return [step for job in loaded["jobs"].values() for step in job["steps"]]


def commands(loaded: dict[Any, Any]) -> list[str]:
    return [step["run"] for step in steps(loaded) if "run" in step]


def test_there_are_tests_a_release_and_a_canary():
    assert {file.stem for file in FILES} == {"ci", "release", "canary"}


@pytest.mark.parametrize("name", [file.stem for file in FILES])
class TestEveryWorkflow:
    def test_each_command_is_a_make_target_that_exists(self, name):
        found = commands(workflow(name))
        assert found
        for command in found:
            match = MAKE.fullmatch(command)
            assert match, command
            assert match["target"] in TARGETS, f"no target {command!r}"

    def test_it_may_read_and_a_job_that_may_more_says_what_for(self, name):
        loaded = workflow(name)
        assert loaded["permissions"] == {"contents": "read"}
        for job in loaded["jobs"].values():
            for permission, level in job.get("permissions", {}).items():
                assert permission in {"contents", "pages", "id-token"}
                assert level in {"read", "write"}
        writes = [line for line in (FOLDER / f"{name}.yml").read_text().splitlines() if ": write" in line]
        assert all("#" in line or "pages: write" in line for line in writes)

    def test_actions_are_pinned_and_jobs_end(self, name):
        loaded = workflow(name)
        used = [step["uses"] for step in steps(loaded) if "uses" in step]
        assert used
        assert all(PINNED.fullmatch(action) for action in used), used
        assert all(0 < job["timeout-minutes"] <= 360 for job in loaded["jobs"].values())

    def test_nothing_a_stranger_writes_is_put_into_a_command(self, name):
        assert not [command for command in commands(workflow(name)) if "${{" in command]


def test_tests_run_on_every_push_to_main_and_every_pull_request():
    on = workflow("ci")[True]  # YAML reads the key `on` as true
    assert on["push"] == {"branches": ["main"]}
    assert "pull_request" in on
    assert "make test TORCH=cpu" in commands(workflow("ci"))


def test_a_tag_that_is_a_version_publishes_and_nothing_else_does():
    on = workflow("release")[True]
    assert list(on) == ["push"]
    ((pattern,),) = on["push"].values()
    # GitHub's patterns: [0-9]+ is one digit or more, * anything but a slash.
    assert pattern == "v[0-9]+.[0-9]+.[0-9]+*"
    as_regex = re.compile(pattern.replace(".", r"\.").replace("*", "[^/]*"))
    assert as_regex.fullmatch("v0.1.0")
    assert as_regex.fullmatch("v12.0.3rc1")
    assert not as_regex.fullmatch("0.1.0")
    assert not as_regex.fullmatch("version")


def test_a_release_tests_first_and_then_publishes_edition_site_and_files():
    jobs = workflow("release")["jobs"]
    assert [job for job in jobs if "needs" not in jobs[job]] == ["test"]
    assert all(job["needs"] == "test" for name, job in jobs.items() if name != "test")
    checked, tested = commands({"jobs": {"test": jobs["test"]}})
    assert checked == 'make stamp CHECK=1 TAG="$GITHUB_REF_NAME"'
    assert tested.startswith("make test")
    told = {name: " ".join(commands({"jobs": {name: job}})) for name, job in jobs.items()}
    assert "make student" in told["student"]
    assert "make publish REMOTE=origin" in told["student"]
    assert "make book" in told["site"]
    assert "make bundle" in told["files"]
    assert "make pdf" in told["files"]
    assert jobs["student"]["permissions"] == {"contents": "write"}
    pages = next(step for step in jobs["site"]["steps"] if "upload-pages-artifact" in step.get("uses", ""))
    assert pages["with"]["path"] == "_build/html"


def test_the_canary_sings_every_week_on_every_python_of_the_matrix():
    loaded = workflow("canary")
    assert len(loaded[True]["schedule"]) == 1
    python = next(step for step in steps(loaded) if "setup-python" in step.get("uses", ""))
    assert set(python["with"]["python-version"].split()) == {"3.11", "3.12", "3.13"}
    kept = next(step for step in steps(loaded) if "upload-artifact" in step.get("uses", ""))
    assert kept["if"] == "always()"
    assert Path(kept["with"]["path"]).name == "compatibility.json"
