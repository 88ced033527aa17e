"""A child may die or hang over a question: the parent hears how, and asks another one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from workloads.isolation import Child, Lost

MODULE = """
import os, time
from workloads import isolation

def answer(question, beat):
    print("what libraries print is no answer")
    if question == "die":
        os.abort()
    if question == "hang":
        time.sleep(60)
    if question == "slow":
        for _ in range(8):
            time.sleep(0.25)
            beat()
    return f"{question} by {os.getpid()}"

if __name__ == "__main__":
    isolation.serve(answer)
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Child:
    (tmp_path / "worker_of_a_test.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Child("worker_of_a_test", patience_s=1.0)


def is_gone(pid: int, seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_a_child_answers_and_is_replaced_when_it_is_lost(child: Child) -> None:
    first = child.ask("one").split()[-1]
    assert child.ask("two") == f"two by {first}"
    assert child.ask("slow") == f"slow by {first}"  # with signs of life, longer than the patience
    with pytest.raises(Lost, match="died of signal 6"):
        child.ask("die")
    second = child.ask("three").split()[-1]
    assert second != first
    with pytest.raises(Lost, match="gave no sign of life for 1 s"):
        child.ask("hang")
    assert is_gone(int(second))
    third = int(child.ask("four").split()[-1])
    threading.Timer(0.3, os.kill, (third, signal.SIGSTOP)).start()
    with pytest.raises(Lost, match="no sign of life"):
        child.ask("slow")
    child.end()
    assert child.pid is None


def test_a_child_ends_with_its_parent_whatever_it_does(child: Child, tmp_path: Path) -> None:
    code = (
        "import sys, threading, time\n"
        "from workloads.isolation import Child\n"
        "child = Child('worker_of_a_test', 60)\n"
        "print(child.ask('one').split()[-1], flush=True)\n"
        "child.ask('hang')"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    assert is_gone(pid)
