"""`scalelab data`: which texts there are, fetching the public ones, and a look into any of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from scalelab.cli.parser import Command, Parser, named_lines, pick
from scalelab.cli.tables import table
from scalelab.core.errors import DataFileError
from scalelab.core.units import format_count

LIVE_CORPORA = {
    "python": "the standard library's source of this interpreter; no download",
    "docs": "English prose from docstrings on this machine; no download",
    "markov": "a synthetic language of known entropy; no download",
    "packages": "sources of well-known Python packages, pinned; from the package index",
}


def run(argv: Sequence[str]) -> int:
    """Run `scalelab data list`, `fetch` or `show`.

    Raises:
        ConfigError: an unknown command or flag. DataError, DataFileError: a set that cannot be had.
    """
    if argv and argv[0] in ("-h", "--help"):
        _parser().print_help()
        return 0
    return pick(_COMMANDS, argv, "scalelab data").run(argv[1:])


def _list(argv: Sequence[str]) -> int:
    parser = Parser(
        "scalelab data list",
        "The texts that can be named, and whether the public ones are on this machine.",
        "  scalelab data list\n  scalelab data list --json",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse(argv)
    sets = _sets()
    if args.json:
        print(json.dumps({"live": LIVE_CORPORA, "sets": sets}, indent=1))
        return 0
    print(f"Made when asked for\n{named_lines(LIVE_CORPORA)}")
    rows = [(s["name"], s["kind"], f"{format_count(s['bytes'])}B", _here(s), s["licence"]) for s in sets]
    print("\n" + table("Public sets", ("kind", "size", "here", "licence"), rows))
    for reason in (reason for s in sets for reason in s["files_damaged"].values()):
        print(f"  damaged: {reason}")
    return 0


def _here(known: Mapping[str, Any]) -> str:
    return "damaged" if known["files_damaged"] else "yes" if known["here"] else "no"


def _sets() -> list[dict[str, Any]]:
    from scalelab.data import datasets
    from scalelab.data.cache import data_folder

    data_folder()  # a SCALELAB_DATA that is no folder is a mistake of the user's, not damage to a set
    found = []
    for name in datasets.names():
        known = datasets.dataset(name)
        here, damaged = [], {}
        for role, file in known.files.items():
            try:
                here += [role] if datasets.locate(file) is not None else []
            except DataFileError as error:
                damaged[role] = str(error)
        found.append(
            {
                "name": name,
                "title": known.title,
                "kind": known.kind,
                "licence": known.licence,
                "bytes": sum(file.size_bytes for file in known.files.values()),
                "files": list(known.files),
                "files_here": here,
                "files_damaged": damaged,
                "here": all(role in here for role, file in known.files.items() if file.required),
            }
        )
    return found


def _fetch(argv: Sequence[str]) -> int:
    parser = Parser(
        "scalelab data fetch",
        "Download public sets, check them against their checksums, and say where they are. Files in the\n"
        "folder named by SCALELAB_DATA, or fetched before, are not downloaded again.",
        "  scalelab data fetch tiny-shakespeare\n  scalelab data fetch wikitext-2 sst-2\n"
        "  scalelab data fetch --all",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="sets, as `scalelab data list` names them")
    parser.add_argument("--all", action="store_true", help="every set")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    args = parser.parse(argv)
    from scalelab.data import datasets

    names = datasets.names() if args.all else args.names
    if not names:
        parser.error(f"which set? One of {', '.join(datasets.names())}, or --all")
    for name in names:
        datasets.dataset(name)  # a misspelt name must not cost the downloads before it
    for name in names:
        for role, path in datasets.fetch(name, progress=not args.quiet).items():
            print(f"{name}\t{role}\t{path}")
    return 0


def _show(argv: Sequence[str]) -> int:
    parser = Parser(
        "scalelab data show",
        "What a text is, how much of it there is to train on and held out, and how it begins.",
        "  scalelab data show python\n  scalelab data show wikitext-2\n  scalelab data show my-texts/",
    )
    parser.add_argument("name", metavar="NAME", help="a corpus, a public set, or a path")
    name = parser.parse(argv).name
    from scalelab.data import corpus, datasets, packages

    print(datasets.preview(name) if name in datasets.names() else corpus(name).preview())
    if name == "packages":
        print(f"\n{packages.licences()}")
    return 0


_COMMANDS = (
    Command("list", "the texts that can be named", _list),
    Command("fetch", "download public sets", _fetch),
    Command("show", "look into a corpus, a set or a file", _show),
)


def _parser() -> Parser:
    parser = Parser(
        "scalelab data",
        f"Texts to train on.\n\ncommands:\n{named_lines({c.name: c.summary for c in _COMMANDS})}",
        "  scalelab data list\n  scalelab data fetch tiny-shakespeare\n  scalelab data show python",
    )
    parser.usage = "scalelab data [--help] COMMAND ..."
    return parser


COMMAND = Command("data", "list, fetch and show texts to train on", run)
