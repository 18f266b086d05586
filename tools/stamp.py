"""Write the repository's address and the version into every file that names them.

    python tools/stamp.py                                       again, as after a new version
    python tools/stamp.py https://github.com/OWNER/REPOSITORY   a fork's own address
    python tools/stamp.py --check [--tag v0.1.0]                only say what is not as it should be

The setting is `Homepage` in pyproject.toml. Badges, set-up cells, links to the site, the citation file: all
follow from it. Only the standard library is needed, so that a fork can be stamped before anything is set up.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import address
from address import Address, AddressError

SETTING = Path("pyproject.toml")
CITATION = Path("CITATION.cff")
# What may follow an address that ends here: no letter, digit, hyphen, or dot within a name.
END = r"(?:(?=\.git(?![\w-]))|(?![\w-]|\.\w))"
INSTALL = re.compile(
    r"scalelab\[lab\] @ git\+(?P<repository>https://github\.com/[^/@\s\"]+/[^/@\s\"]+)@v[^\s\"\\]+"
)
HOMEPAGE = re.compile(r'^(Homepage = )"[^"\n]*"$', re.MULTILINE)
CITED = re.compile(r"^repository-code: *(?P<repository>\S+)$", re.MULTILINE)
CITED_VERSION = re.compile(r"^version: .*$", re.MULTILINE)
# These name other people's repositories, or none: links in them are not the course's.
OTHERS = ("NOTICE.txt", "references.bib")
BUILT = {".git", ".venv", "_build", "__pycache__"}


def stamped(root: Path, new: Address) -> dict[Path, bytes]:
    """What the files that are not as `new` and the version ask would have to hold, by relative path.

    Raises:
        AddressError: the repository has no version, or an old address cannot be read.
    """
    version = address.version(root)
    texts = dict(_texts(root))
    old = _old_addresses(texts)
    changed = {}
    for path, text in texts.items():
        result = _stamp(path, text, old - {new}, new, version)
        if result != text:
            changed[path] = result.encode("utf-8")
    return changed


def write(root: Path, contents: dict[Path, bytes]) -> None:
    """Write the files: all are prepared before the first is replaced, and the setting is replaced last.

    Whatever stops this, running it again with the same address finishes the work.
    """
    prepared: list[tuple[Path, Path]] = []
    try:
        for path, content in contents.items():
            target = root / path
            temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
            prepared.append((temporary, target))
            temporary.write_bytes(content)
            os.chmod(temporary, target.stat().st_mode)
        for temporary, target in sorted(prepared, key=lambda pair: pair[1] == root / SETTING):
            os.replace(temporary, target)
    finally:
        for temporary, _ in prepared:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()


def problems(root: Path, tag: str | None = None) -> list[str]:
    """What is not as the setting, the version and the tag of a release ask; [] when all is."""
    found = [f"{path} is not stamped: run `make stamp`" for path in stamped(root, address.repository(root))]
    expected = f"v{address.version(root)}"
    if tag is not None and tag != expected:
        found.append(
            f"the tag is {tag!r} and the package's version asks for {expected!r}: change __version__ in "
            "src/scalelab/__init__.py and run `make stamp`, or tag anew"
        )
    changelog = root / "CHANGELOG.md"
    newest = re.search(r"^## (\S+)", changelog.read_text(encoding="utf-8"), re.MULTILINE)
    if newest is None or f"v{newest[1]}" != expected:
        found.append(f"the newest entry of CHANGELOG.md is not about {expected.removeprefix('v')}")
    return found


def _stamp(path: Path, text: str, old: Iterable[Address], new: Address, version: str) -> str:
    if path.name in OTHERS:
        return text
    for before in old:
        for form_before, form_new in zip(before.forms, new.forms, strict=True):
            text = re.sub(re.escape(form_before) + END, form_new, text)
    if path == SETTING:
        text = HOMEPAGE.sub(lambda match: f'{match[1]}"{new.repository}"', text)
    if path == CITATION:
        text = CITED_VERSION.sub(f"version: {version}", text)
    if path.suffix == ".ipynb":
        text = INSTALL.sub(f"scalelab[lab] @ git+{new.repository}@v{version}", text)
    return text


def _old_addresses(texts: dict[Path, str]) -> set[Address]:
    """The addresses that files give as the course's own: normally one; more after an edit by hand."""
    named = [match[0].split('"')[1] for match in HOMEPAGE.finditer(texts.get(SETTING, ""))]
    named += CITED.findall(texts.get(CITATION, ""))
    for path, text in texts.items():
        if path.suffix == ".ipynb":
            named += INSTALL.findall(text)
    return {Address.parse(name) for name in named}


def _texts(root: Path) -> Iterator[tuple[Path, str]]:
    """Every tracked or new file that is text, by relative path; without git, every file but what is built."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=root, capture_output=True
    )
    if listed.returncode == 0:
        names = [Path(name) for name in os.fsdecode(listed.stdout).split("\0") if name]
    else:
        names = [
            file.relative_to(root)
            for file in root.rglob("*")
            if not BUILT & set(file.relative_to(root).parts[:-1])
        ]
    for name in sorted(set(names)):
        if (root / name).is_file() and not (root / name).is_symlink():
            with contextlib.suppress(UnicodeDecodeError):
                yield name, (root / name).read_bytes().decode("utf-8")


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "repository", nargs="?", help="https://github.com/OWNER/REPOSITORY; default: the setting"
    )
    parser.add_argument("--root", type=Path, default=address.ROOT, help="folder of the course")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 if something is wrong"
    )
    parser.add_argument("--tag", help="with --check: a release's tag, which must be v and the version")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            found = problems(options.root, options.tag)
            print("\n".join(found) or f"stamped: {address.repository(options.root).repository}")
            return 1 if found else 0
        new = Address.parse(options.repository) if options.repository else address.repository(options.root)
        contents = stamped(options.root, new)
        write(options.root, contents)
    except (AddressError, OSError) as error:
        print(f"stamp: {error}", file=sys.stderr)
        return 2
    for path in contents:
        print(f"stamped {path}")
    version = address.version(options.root)
    print(f"{len(contents)} files changed; the course is at {new.repository}, version {version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
