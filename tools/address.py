"""Where the course lives: one repository's address, and every other address that follows from it.

The one setting is `Homepage` in pyproject.toml's project.urls; `make stamp` writes it, and what follows from
it, into every file. Only the standard library is needed here.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STUDENT_BRANCH = "student"
_FORM = re.compile(r"https://github\.com/(?P<owner>[^/\s]+)/(?P<name>[^/\s]+)")
_OWNER = re.compile(r"[A-Za-z0-9](?:-?[A-Za-z0-9])*")  # GitHub's own rule
_NAME = re.compile(r"(?!\.{1,2}$)[\w.-]+", re.ASCII)
_VERSION = re.compile(r"^__version__ = \"(?P<version>[^\"]+)\"$", re.MULTILINE)


class AddressError(ValueError):
    """An address the course cannot live at; the text says which would do."""


@dataclass(frozen=True, slots=True)
class Address:
    """A repository on GitHub.

    Attributes:
        owner: user or organisation.
        name: of the repository.
    """

    owner: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `https://github.com/OWNER/REPOSITORY`; a trailing slash or `.git` is dropped.

        Raises:
            AddressError: it is something else.
        """
        plain = text.strip().removesuffix("/").removesuffix(".git")
        match = _FORM.fullmatch(plain)
        if not match or not _OWNER.fullmatch(match["owner"]) or not _NAME.fullmatch(match["name"]):
            raise AddressError(
                f"the repository's address must read https://github.com/OWNER/REPOSITORY, got {text!r}: "
                "the badges open notebooks in Colab and Binder, and from GitHub only"
            )
        return cls(match["owner"], match["name"])

    @property
    def path(self) -> str:
        """`OWNER/REPOSITORY`."""
        return f"{self.owner}/{self.name}"

    @property
    def repository(self) -> str:
        """The repository itself."""
        return f"https://github.com/{self.path}"

    @property
    def site(self) -> str:
        """Where GitHub Pages shows the book, without a trailing slash."""
        host = f"{self.owner.lower()}.github.io"
        return f"https://{host}" if self.name.lower() == host else f"https://{host}/{self.name}"

    @property
    def colab(self) -> str:
        """What Colab's links to notebooks of this repository begin with."""
        return f"https://colab.research.google.com/github/{self.path}"

    @property
    def raw(self) -> str:
        """What links to plain files of this repository begin with."""
        return f"https://raw.githubusercontent.com/{self.path}"

    @property
    def binder(self) -> str:
        """What Binder's links to this repository begin with."""
        return f"https://mybinder.org/v2/gh/{self.path}"

    @property
    def forms(self) -> tuple[str, ...]:
        """Every beginning of a link that leads into this repository or its site."""
        return (self.colab, self.raw, self.binder, self.repository, self.site)

    def install_line(self, version: str) -> str:
        """The line of a set-up cell that installs the package of one tag, keeping what is there already."""
        return f'!pip install -q "scalelab[lab] @ git+{self.repository}@v{version}"'

    def student_in_colab(self, lab: str) -> str:
        """Where Colab opens the student edition of a lab "part/name"."""
        return f"{self.colab}/blob/{STUDENT_BRANCH}/{lab}.ipynb"

    def student_in_binder(self, lab: str) -> str:
        """Where Binder opens the student edition of a lab "part/name"."""
        return f"{self.binder}/{STUDENT_BRANCH}?labpath={lab.replace('/', '%2F')}.ipynb"


def repository(root: Path = ROOT) -> Address:
    """The address that is set in pyproject.toml.

    Raises:
        AddressError: it is no repository on GitHub.
    """
    urls = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    return Address.parse(str(urls["Homepage"]))


def version(root: Path = ROOT) -> str:
    """The package's version, read without importing it.

    Raises:
        AddressError: the package names none.
    """
    match = _VERSION.search((root / "src" / "scalelab" / "__init__.py").read_text(encoding="utf-8"))
    if not match:
        raise AddressError('src/scalelab/__init__.py lacks a line __version__ = "…"')
    return match["version"]
