"""A real Ray head of our own, in token mode, and a stand-in for the project folder.

The stand-in prints what it was given and ends with the exit code --trials less 1.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import hear_interrupts

TOKEN = "0123456789abcdef" * 4
BIN = Path(sys.executable).parent
PROJECT = Path(__file__).resolve().parents[2]
FOREVER = 200  # with so many trials, the stand-in does not end
PORTS = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
STAND_IN = f"""
import json, os, sys, time
walk = [(here, names) for here, _, names in os.walk(".") if not here.endswith("__pycache__")]
found = sorted(os.path.join(here, name)[2:] for here, names in walk for name in names)
print("args", json.dumps(sys.argv[1:]), flush=True)
print("files", json.dumps(found), flush=True)
trials = int(sys.argv[sys.argv.index("--trials") + 1])
while trials >= {FOREVER}:
    print("tick", flush=True)
    time.sleep(0.2)
print(json.dumps({{"front": [trials]}}))
sys.exit(trials - 1)
"""
CLI = """
import sys
from pathlib import Path
from orchestrator import __main__, submit
root = Path(sys.argv[1])
__main__.COMMANDS["submit"] = lambda args: submit.submit(args, root)
sys.exit(__main__.main(["submit", *sys.argv[2:]]))
"""


@dataclass(frozen=True)
class Head:
    """A running head, and what a shell of its user looks like."""

    address: str
    root: Path
    env: dict[str, str]

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
        """Start `paretoken submit` with these words."""
        argv = [sys.executable, "-c", CLI, str(self.root), *words, "--address", self.address]
        pipe, env = subprocess.PIPE, {**self.env, **env}
        return subprocess.Popen(
            argv, env=env, stdout=pipe, stderr=pipe, text=True, preexec_fn=hear_interrupts
        )

    def submit(self, *words: str, **env: str) -> tuple[int, str, str]:
        """Return exit code, stdout and stderr of `paretoken submit` with these words."""
        process = self.start(*words, **env)
        stdout, stderr = process.communicate(timeout=60)
        return process.returncode, stdout, stderr

    def answer(self, *words: str) -> dict[str, Any]:
        """Return its JSON object."""
        _, stdout, _ = self.submit(*words, "--json")
        answer: dict[str, Any] = json.loads(stdout.splitlines()[-1])
        return answer

    def kill(self) -> None:
        """Kill what belongs to the head: `ray stop` would end the Ray of others too."""
        mark = f"RAY_TMPDIR={self.root.parent}"
        deadline = time.monotonic() + 20
        while (found := carriers(mark)) and time.monotonic() < deadline:
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)


@contextmanager
def running() -> Iterator[Head]:
    """Start a head in a folder of its own, and leave nothing of it."""
    # Ray's sockets lie in that folder, and their paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    (folder / "token").write_text(TOKEN)
    root = stand_in(folder / "project")
    ports = free_ports(len(PORTS))
    ours = {
        "HOME": str(folder),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
    }
    env = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")} | ours
    # PYTHONPATH is for us alone: jobs are to run the code that was shipped.
    seen = Head(f"http://127.0.0.1:{ports[1]}", root, env | {"PYTHONPATH": str(PROJECT)})
    try:
        start(folder, ports, env | {"RAY_AUTH_MODE": "token", "RAY_TMPDIR": str(folder)})
        yield seen
    finally:
        seen.kill()
        shutil.rmtree(folder, ignore_errors=True)


def start(folder: Path, ports: list[int], env: dict[str, str]) -> None:
    command = [str(BIN / "ray"), "start", "--head", "--dashboard-host=127.0.0.1"]
    command += [f"--temp-dir={folder}", "--num-cpus=2", "--object-store-memory=100000000"]
    command += [f"--{name}={port}" for name, port in zip(PORTS, ports, strict=True)]
    command += ["--disable-usage-stats"]
    subprocess.run(command, env=env, check=True, capture_output=True, timeout=60)


def stand_in(root: Path) -> Path:
    """Make a project folder with things in it that are not to be shipped."""
    hidden = (".venv/x", ".git/x", "paretoken-store/x", "sub/paretoken-store-2/x", "ignored/x")
    for name in ("pyproject.toml", "sub/kept.csv", *hidden):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / ".gitignore").write_text("ignored/\n__pycache__/\n")
    (root / "orchestrator").mkdir()
    (root / "orchestrator" / "__main__.py").write_text(STAND_IN)
    return root


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def carriers(mark: str) -> list[int]:
    """Return the processes with a variable in their environment; zombies have none."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{mark}\0".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found
