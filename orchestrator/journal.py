"""What was examined: a line a video, written by whoever examined it as soon as that is done.

Every process appends to a file of its own, so no line is torn by another; the last line of one that
was killed may be, and is passed over. Verdicts are found by a key that changes with the video.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path

from workloads.examine import Verdict

BUSY = ".busy"
WAIT_S = 60.0  # for the processes of a driver that was killed; Ray ends them within seconds


def append(folder: Path, key: str, verdict: Verdict) -> str:
    """Keep a verdict, and return its line."""
    line = json.dumps({"key": key, **asdict(verdict)})
    with _own(folder, os.getpid()).open("a") as file:
        file.write(f"{line}\n")
    return line


@cache
def _own(folder: Path, pid: int) -> Path:
    """Return the file of this process; others may have its number, elsewhere or later."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{pid}-{uuid.uuid4().hex[:12]}.jsonl"


def parse(line: str) -> tuple[str, Verdict]:
    """Return key and verdict of a line."""
    fields = json.loads(line)
    return fields.pop("key"), Verdict(**fields)


def read(folder: Path) -> Iterator[tuple[str, Verdict]]:
    """Yield all verdicts that were kept, oldest file first."""
    for path in sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns):
        for line in path.read_text().splitlines(keepends=True):
            with suppress(ValueError, TypeError):  # torn, or of another version
                if line.endswith("\n"):
                    yield parse(line)


@contextmanager
def busy(folder: Path) -> Iterator[None]:
    """Let others see that somebody works in a folder, however it ends."""
    with (folder / BUSY).open("a") as file:
        with suppress(OSError):  # a file system without locks: work may be done twice
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


def wait(folder: Path) -> None:
    """Wait until nobody works in a folder: the heirs of a killed driver finish what they do."""
    until = time.monotonic() + WAIT_S
    with (folder / BUSY).open("a") as file:
        while time.monotonic() < until:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.2)
            except OSError:
                return
            else:
                return
