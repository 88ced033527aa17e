"""What a person sees while a study runs: a calm live view, or a line an event without a terminal.

Everything goes to stderr; stdout belongs to results. A thread looks at the board twice a second, so
that the view moves while Tune has the main thread.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from orchestrator.ledger import Record
from orchestrator.words import duration, method

WIDTH = 100
BAR = 20
REFRESH_S = 0.5
SAY_S = 30.0  # between two lines on how far a phase is, without a terminal
PACE = 6  # trials that tell how fast the search is now: the first ones train, later ones need not

Snapshot = Callable[[], dict[str, Any] | None]  # Any: what `Board.snapshot` returns


class Display:
    """Lines that stay, and below them what runs now."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, width=None if sys.stderr.isatty() else WIDTH)
        self.is_live = self.console.is_terminal
        self.begun = time.monotonic()
        self.phase: tuple[str, int, int] | None = None
        self.phase_begun = (self.begun, 0)
        self.said = self.begun
        self.trials = (0, 0, 0)
        self.best = ""
        self.race = ""
        self.ends: deque[float] = deque(maxlen=PACE)
        self.snapshot: Snapshot = lambda: None
        self._last: dict[str, Any] | None = None
        self._live: Live | None = None
        self._stop = threading.Event()

    def line(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(Text(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a warning that stays."""
        self.line(f"warning: {text}")

    def progress(self, what: str, done: int, total: int) -> None:
        """Show how far a phase is; without a terminal, its end is a line, and each half minute."""
        now = time.monotonic()
        if self.phase is None or self.phase[0] != what:
            self.phase_begun, self.said = (now, done), now
        self.phase = (what, done, total) if done < total else None
        if self.is_live:
            return
        if done == total:
            self.line(f"{what:<7} {total} of {total}")
        elif now - self.said >= SAY_S:
            self.said = now
            self.line(f"{what:<7} {done} of {total}   {self._pace(done, total)}")

    def searching(self, record: Record, done: int, total: int, failed: int, best: str) -> None:
        """Count a trial that ended, and say what came of it."""
        self.trials, self.best = (done, total, failed), best
        self.ends.append(time.monotonic())
        values = "  ".join(f"{name} {value:.4g}" for name, value in record.values.items())
        values += f"   {record.reason}" if record.state == "pruned" else ""
        ended = values or f"failed: {record.reason.splitlines()[0] if record.reason else '?'}"
        what = method(record.params)
        if not self.is_live:
            self.line(f"trial   {record.trial:>4} ({done}/{total})  {what:<40} {ended}   {best}")
        elif record.state == "failed":
            self.line(f"trial {record.trial} {ended}")

    def racing(self, rung: int, rungs: int, running: int) -> None:
        """Say that a rung of a race begins, and how many trials are still in it."""
        self.race = f"rung {rung} of {rungs}, {running} in the race"
        if not self.is_live:
            self.line(f"race    {self.race}")

    def control(self, record: Record) -> None:
        """Say what came of a control."""
        if not self.is_live:
            values = "  ".join(f"{name} {value:.4g}" for name, value in record.values.items())
            what = f"{record.params['control']} of {record.trial}"
            self.line(f"control {what:<10} {method(record.params):<40} {values}")

    def confirmed(self, record: Record, done: int, total: int) -> None:
        """Say what came of a point under one more seed."""
        self.phase = ("confirm", done, total) if done < total else None
        if not self.is_live:
            values = "  ".join(f"{name} {value:.4g}" for name, value in record.values.items())
            what = f"{record.trial:>4} seed {record.params['seed']} ({done}/{total})"
            ended = values or f"failed: {record.reason.splitlines()[0] if record.reason else '?'}"
            self.line(f"confirm {what}  {method(_searched(record)):<40} {ended}")

    def __enter__(self) -> Display:
        if self.is_live:
            self._live = Live(
                get_renderable=self._render, console=self.console, refresh_per_second=4
            )
            self._live.start()
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._live is not None:
            self.phase, self.snapshot, self._last = None, lambda: None, None
            self.trials = (0, 0, 0)
            self._live.stop()

    def _watch(self) -> None:
        while not self._stop.wait(REFRESH_S):
            try:
                self._last = self.snapshot()
            except Exception:  # the board is going away; the view is no reason to stop
                self._last = None

    def _render(self) -> Text:
        lines = []
        if self.phase is not None:
            what, done, total = self.phase
            lines.append(
                f"{what:<7} {bar(done, total)}   {done}/{total}   {self._pace(done, total)}"
            )
        for running in (self._last or {}).get("running", ()):
            lines.append(self._running(running))
        done, total, failed = self.trials
        if total:
            left = self._left(total - done)
            shown = f"{done}/{total} trials   {failed} failed   {self.best}   {left}"
            lines.append(f"search  {shown}")
        if self.race and done < total:
            lines.append(f"race    {self.race}")
        lines.append(f"time    {duration(time.monotonic() - self.begun)}")
        return Text("\n".join(line[: self.console.width] for line in lines))

    def _pace(self, done: int, total: int) -> str:
        """Say how fast a phase is, and how long it will go on at that pace."""
        since, before = self.phase_begun
        rate = (done - before) / max(time.monotonic() - since, 1e-9)
        return f"{rate:.3g} a second   {duration((total - done) / rate)} left" if rate > 0 else ""

    def _left(self, trials: int) -> str:
        """Say how long some trials will take, at the pace of the last ones; controls come after."""
        if trials == 0 or len(self.ends) < PACE // 2:
            return ""
        pace = (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)
        return f"{duration(pace * trials)} left"

    def _running(self, running: dict[str, Any]) -> str:
        done, total = running["progress"]
        left = ""
        if 0 < done < total:
            left = f"{duration(running['seconds'] / done * (total - done))} left"
        loss = running["metrics"].get("train/loss")
        shown = f"loss {loss:.2f}" if loss is not None else ""
        return f"{running['kind']:<9} {bar(done, total)}   {done}/{total}   {shown}   {left}"


def _searched(record: Record) -> dict[str, Any]:
    """Return what a point is, without the seed of its confirmation."""
    return {name: value for name, value in record.params.items() if name != "seed"}


def bar(done: int, total: int) -> str:
    """Return a bar of `BAR` characters."""
    full = BAR * done // total if total else 0
    return "#" * full + "-" * (BAR - full)
