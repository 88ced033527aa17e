"""Locks: one process at a time, however the one before ended."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.lock import Lock

HOLD = """
import sys
from pathlib import Path
from orchestrator.lock import Lock
lock = Lock(Path(sys.argv[1]))
print(lock.take(), flush=True)
sys.stdin.read()
"""


def holding(path: Path) -> subprocess.Popen[str]:
    """Start a process that takes a lock and keeps it until it is killed or told to go."""
    command = [sys.executable, "-c", HOLD, str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_lock_keeps_other_processes_away_until_its_own_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "stages" / "key" / "lock"
    with holding(path) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with Lock(path) as lock:
            assert not lock.take()
            assert lock.holder().startswith(f"process {other.pid} on ")
            other.kill()
            other.wait()
            assert lock.take()


def test_a_process_that_asks_in_vain_is_told_so(tmp_path: Path) -> None:
    with Lock(tmp_path / "lock") as lock:
        assert lock.take()
        with holding(tmp_path / "lock") as other:
            assert other.communicate()[0] == "False\n"


def test_a_lock_is_free_again_after_its_context(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with Lock(path) as ours, Lock(path) as theirs, Lock(tmp_path / "another") as another:
        assert ours.take()
        assert not theirs.take()
        assert another.take()
        ours.release()
        ours.release()
        assert theirs.take()
    with Lock(path) as lock:
        assert lock.take()


def test_a_lock_whose_holder_cannot_be_written_down_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, text: bytes, place: int) -> int:
        raise OSError(errno.ENOSPC, "full")

    path = tmp_path / "lock"
    with monkeypatch.context() as patch, Lock(path) as ours:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="full"):
            ours.take()
    with Lock(path) as theirs:
        assert theirs.take()


def test_a_lock_that_nobody_ever_took_has_a_holder_in_words(tmp_path: Path) -> None:
    assert Lock(tmp_path / "lock").holder() == "another process"
