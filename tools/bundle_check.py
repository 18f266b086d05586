"""Try a bundle where it will be used: unpacked elsewhere, set up by its README's own commands, no network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from notebooks import ToolError

COMMANDS = re.compile(
    r"^## (?P<section>[^\n]+)\n(?:(?!^## ).)*?^```sh\n(?P<commands>.*?)^```$", re.MULTILINE | re.DOTALL
)
SECTIONS = ("Set up", "Work", "Try it before the lesson")
# A namespace of its own has no interface but a loopback that is down; kernels talk to their clients over it.
LOOPBACK_UP = """\
import fcntl, socket, struct
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    fcntl.ioctl(s, 0x8914, struct.pack("16sh22x", b"lo", 0x1 | 0x40))
"""
# JupyterLab would open a browser and wait for its user: here it is asked for the list of labs instead.
OPEN = "jupyter lab notebooks"
SERVE = """\
jupyter lab notebooks --no-browser --allow-root --port 8765 --IdentityProvider.token= > server.log 2>&1 &
server=$!
trap "kill $server" EXIT
.venv/bin/python -c '
import json, time, urllib.request
for _ in range(120):
    try:
        found = json.load(urllib.request.urlopen("http://127.0.0.1:8765/api/contents"))
        break
    except OSError:
        time.sleep(0.5)
assert found["content"], "JupyterLab shows no labs"
assert urllib.request.urlopen("http://127.0.0.1:8765/lab").status == 200
print("JupyterLab shows", ", ".join(item["name"] for item in found["content"]))
'
kill $server
trap - EXIT"""
NO_NETWORK = """\
import socket, sys
try:
    socket.create_connection(("1.1.1.1", 443), timeout=3).close()
except OSError:
    sys.exit(0)
sys.exit("there is a network after all: this proves nothing")
"""


def commands(readme: str) -> dict[str, str]:
    """The shell commands of each section of a README.

    Raises:
        ToolError: a section that is needed has none.
    """
    found = {match["section"]: match["commands"] for match in COMMANDS.finditer(readme)}
    for section in SECTIONS:
        if section not in found:
            raise ToolError(f"the bundle's README has no commands under {section!r}; pack it with solutions")
    return found


def check(archive: Path) -> None:
    """Unpack a bundle and do what its README says, up to the end of each lab.

    Raises:
        ToolError: a command failed, or this machine cannot take the network away.
    """
    with tempfile.TemporaryDirectory(prefix="scalelab-room-") as scratch:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(scratch)
        (folder,) = Path(scratch).iterdir()
        found = commands((folder / "README.md").read_text(encoding="utf-8"))
        work = found["Work"].replace(OPEN, SERVE)
        script = [
            "set -eu",
            f"{sys.executable} -c '{LOOPBACK_UP}'",
            f"{sys.executable} -c '{NO_NETWORK}'",
            "sha256sum --check --quiet SHA256SUMS",
            found["Set up"],
            work,
            found["Try it before the lesson"],
        ]
        run_without_network("\n".join(script), folder)


def run_without_network(script: str, folder: Path) -> float:
    """Run shell commands in a network namespace with nothing in it; seconds taken.

    Raises:
        ToolError: they failed, or there can be no such namespace here.
    """
    if not shutil.which("unshare"):
        raise ToolError("trying a bundle needs Linux's unshare (package util-linux) to take the network away")
    unshare = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode != 0:
        raise ToolError(
            "this machine does not allow a network namespace (unshare --net), so nothing was tried"
        )
    # Homes and pip's settings are part of the machine that packed, not of the room; how threads wait is not.
    kept = re.compile(r"PATH|LANG|TERM|G?OMP_\w+")
    clean = {name: value for name, value in os.environ.items() if kept.fullmatch(name)}
    clean |= {"HOME": str(folder / "home"), "PIP_CONFIG_FILE": os.devnull, "PIP_QUIET": "1"}
    clean["SCALELAB_STRICT"] = "1"
    clean["PATH"] = os.pathsep.join([str(Path(sys.executable).resolve().parent), clean.get("PATH", "")])
    (folder / "home").mkdir(exist_ok=True)
    begun = time.perf_counter()
    done = subprocess.run([*unshare, "sh", "-c", script], cwd=folder, env=clean)
    if done.returncode != 0:
        raise ToolError(f"without a network, the README's commands ended with exit code {done.returncode}")
    return time.perf_counter() - begun
