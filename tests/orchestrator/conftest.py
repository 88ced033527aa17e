"""Real runs of the command line, for the tests that need them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.environment import prepare

prepare()

TINY = Path(__file__).with_name("tiny.py")
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def answer(self) -> dict[str, Any]:
        """The JSON object on the last line of stdout."""
        answer: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return answer


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "orchestrator", *map(str, args)]


def environment(**changes: str) -> dict[str, str]:
    quiet = {"PYTHONWARNINGS": "ignore", **changes}
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | quiet


def hear_interrupts() -> None:
    """Undo, in a new process, that what a shell starts in the background ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def paretoken(*args: object, timeout: float = 300, **changes: str) -> Ended:
    """Run a command to its end."""
    done = subprocess.run(
        command(*args),
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env=environment(**changes),
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """The store of a tiny study that was run once, and what the run said."""
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    return store, paretoken("run", TINY, "--store", store, "--json")
