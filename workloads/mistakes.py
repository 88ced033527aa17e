"""The one kind of error a person can cause: what and where on a line, the remedy on the next."""

from __future__ import annotations


class Mistake(ValueError):  # noqa: N818 - the user's, not an error of ours
    """Bad input. Printed without a traceback, exit code 2; nothing is lost.

    Args:
        what: the field, its value and what is wrong with it, on one line.
        remedy: what to do instead, at most a few lines.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what}\n  {remedy}" if remedy else what)
        self.what = what
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[Mistake], tuple[str, str]]:
        """Survive the way through Ray's processes with both parts."""
        return type(self), (self.what, self.remedy)
