"""SIGTERM ends a run as Ctrl-C does: its own way out, exit code 130."""

from __future__ import annotations

import signal
import threading


def arm() -> None:
    """Let SIGTERM interrupt the main thread.

    Ray's core takes the signal for a crash once it is up, so this is called again after that.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt
