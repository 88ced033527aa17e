"""How a command says that it did not go well, and the exit code of each way.

A traceback is shown only where the error is ours; it is kept in a file then.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

INTERRUPTED = 130
FREE_SPACE = "free space, or choose another --store"
REMEDIES = {
    errno.ENOSPC: FREE_SPACE,
    errno.EDQUOT: FREE_SPACE,
    errno.EROFS: "nothing can be written there: choose another --store",
    errno.EACCES: "check its permissions",
}
# On their way out of a process of Ray, errors may become text.
AS_TEXT = re.compile(r"\[Errno (\d+)\] ([^:\n]+)(?:: '([^'\n]+)')?")


def stopped(argv: Sequence[str], why: str = "") -> str:
    """Say that a command may be given again to go on where it was stopped."""
    because = f": {why}\n " if why else ";"
    return f"stopped{because} nothing is lost. Continue with: {shlex.join(['paretoken', *argv])}"


def explain(error: Exception, argv: Sequence[str]) -> tuple[int, str]:
    """Return exit code and words for an error that is no mistake of the user's.

    What ends a study is told from what is wrong with the machine, and that from our own errors.
    """
    if getattr(error, "is_expected", False):
        goes_on = getattr(error, "goes_on", False)  # or the same command would only fail again
        return 1, stopped(argv, str(error)) if goes_on else f"error: {error}"
    refused = refusal(error)
    if refused is not None and refused.errno is not None:
        where, remedy = refused.filename or "the store", REMEDIES[refused.errno]
        return 2, f"error: {where}: {os.strerror(refused.errno)}\n  {remedy}"
    traceback.print_exception(error)
    log = _kept(error)
    named = f"the log is {log}" if log else "no log could be written"
    return 1, f"this should not happen; {named}; `paretoken doctor` checks the rest"


def refusal(error: Exception) -> OSError | None:
    """Return what the disk refused, if that stands behind an error."""
    return next(_refusals(error), None)


def _refusals(error: Exception) -> Iterator[OSError]:
    """Yield what the disk refused, wherever it stands behind an error."""
    for one in _chain(error):
        found = AS_TEXT.search(str(one))
        if not isinstance(one, OSError) and found:
            one = OSError(int(found[1]), found[2], found[3])
        if isinstance(one, OSError) and one.errno in REMEDIES:
            yield one


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that it came from; Ray keeps the cause in a field of its own."""
    seen: list[BaseException] = []
    todo: list[object] = [error]
    while todo:
        one = todo.pop(0)
        if isinstance(one, BaseException) and one not in seen:
            seen.append(one)
            yield one
            todo += [getattr(one, "cause", None), one.__cause__]
            todo += [] if one.__suppress_context__ else [one.__context__]


def _kept(error: Exception) -> Path | None:
    """Write the traceback to a file, here or where temporary files go; None if neither can be."""
    name = f"paretoken-error-{time.strftime('%Y%m%d-%H%M%S')}.log"
    text = "".join(traceback.format_exception(error))
    for folder in (os.getcwd, tempfile.gettempdir):
        try:
            path = Path(folder(), name)
            path.write_text(text)
        except OSError:
            continue
        return path
    return None
