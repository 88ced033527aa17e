"""Exclusive use of a file by one process, given back by the kernel however the process ends.

A lock on a stage only saves work: equal stages publish equal results. The lock on a study keeps a
second driver away, and its text says who holds it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path
from types import TracebackType


class Lock:
    """An flock on a file; `take` it, or use it as a context once taken.

    Args:
        path: of the file.
        shared: with others that take it shared; it keeps away who wants it for himself alone.
    """

    def __init__(self, path: Path, shared: bool = False) -> None:
        self.path = path
        self._how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self._fd: int | None = None

    def take(self) -> bool:
        """Take the lock if it is free; say whether it is ours now."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, self._how | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(fd)
                return False
            if error.errno not in (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS):
                os.close(fd)
                raise
            # A file system without locks: go on, at the price of work done twice.
        self._fd = fd  # from here on `release` gives it back, whatever comes
        os.truncate(fd, 0)
        os.pwrite(fd, _self().encode(), 0)
        return True

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def holder(self) -> str:
        """Return who took it last, in words."""
        try:
            return self.path.read_text(errors="replace") or "another process"
        except OSError:
            return "another process"

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def _self() -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"process {os.getpid()} on {socket.gethostname()} since {since}"
