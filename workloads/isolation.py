"""Work in a process of its own, which may die or hang without harm to whoever asked for it.

    child = Child("workloads.examine", patience_s=60)
    answer = child.ask(question)              # text on one line, both; Lost if it died or hung

The module is run as a program and calls `serve`. A child that was lost is replaced at the next
question. Where the parent dies, however it does, the child ends too.
"""

from __future__ import annotations

import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

Beat = Callable[[], None]

ROOT = Path(__file__).resolve().parents[1]
START_S = 60.0  # that a child may need to begin
BEAT_S = 0.5  # between two signs of life
CHUNK = 1 << 16


class Lost(RuntimeError):  # noqa: N818 - what became of the child
    """The child died or hung over a question; says how."""


class Child:
    """A process that answers one question after another.

    Args:
        module: run as a program; it calls `serve`.
        patience_s: without a sign of life, after which it counts as hung.
    """

    def __init__(self, module: str, patience_s: float) -> None:
        self.module, self.patience_s = module, patience_s
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""

    @property
    def pid(self) -> int | None:
        """The number of its process; None while there is none."""
        return None if self._process is None else self._process.pid

    def ask(self, question: str, more_s: float = 0.0) -> str:
        """Return the answer to a question.

        Args:
            question: a line.
            more_s: how much longer than `patience_s` to wait for a sign of life.

        Raises:
            Lost: the child died, or gave none.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(question.encode() + b"\n")
            process.stdin.flush()
        except OSError:  # it died since the last answer
            raise Lost(self._end()) from None
        while not (line := self._line(self.patience_s + more_s)):
            pass  # a sign of life
        return line.decode()

    def end(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # decoders print what they think of every byte
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        )
        self._rest = b""
        self._line(START_S)
        return self._process

    def _line(self, seconds: float) -> bytes:
        """Return the next line of the child, which is empty for a sign of life."""
        assert self._process is not None
        assert self._process.stdout is not None
        while b"\n" not in self._rest:
            if not select.select([self._process.stdout], [], [], seconds)[0]:
                self._end()
                raise Lost(f"gave no sign of life for {seconds:g} s")
            chunk = os.read(self._process.stdout.fileno(), CHUNK)
            if not chunk:
                raise Lost(self._end())
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _end(self) -> str:
        """Kill the process unless it is dead, and say how it died."""
        assert self._process is not None
        process, self._process = self._process, None
        if not _dies_by_itself(process):
            process.kill()
        with process:  # closes its pipes
            code = process.wait()
        return f"died of signal {-code}" if code < 0 else f"ended with code {code}"


def _dies_by_itself(process: subprocess.Popen[bytes]) -> bool:
    """Give a process whose output has ended a moment, so that its own code is seen."""
    try:
        process.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        return False
    return True


def serve(answer: Callable[[str, Beat], str]) -> None:
    """Answer questions from stdin on stdout until it ends.

    Args:
        answer: takes a question and what to call now and then while it works on it.
    """
    out = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's affair
    questions: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(questions,), daemon=True).start()
    last = 0.0

    def beat() -> None:
        nonlocal last
        if time.monotonic() - last >= BEAT_S:
            last = time.monotonic()
            os.write(out, b"\n")

    beat()
    while True:
        os.write(out, answer(questions.get(), beat).encode() + b"\n")


def _listen(questions: queue.Queue[str]) -> None:
    """Take questions; with the end of stdin the parent is gone, and nobody waits for an answer."""
    for line in sys.stdin.buffer:
        questions.put(line.decode().rstrip("\n"))
    os._exit(0)
