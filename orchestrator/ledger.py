"""The ledger of a study: one JSON object a line, a line a finished trial, written by the driver
alone.

It is the truth: the sampler's journal and MLflow can be made again from it. Append-only; a line
that was cut short by a crash is passed over by readers, and said, and taken away before the next
one is written: never by a reader, for whom a line that is just being written looks the same.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

log = logging.getLogger(__name__)

Role = Literal["trial", "control", "confirm"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """A finished trial, a control of one, or one seed of its confirmation."""

    trial: int
    """Its number; of what is no trial, the number of the one that it belongs to."""
    role: Role
    params: dict[str, Any]  # Any: knobs are numbers, names or flags
    values: dict[str, float]
    """By objective; of a pruned trial those of the clips that it was shown; empty if failed."""
    state: Literal["complete", "failed", "pruned"]
    stage_keys: list[str]
    """In order of execution, several evaluations in a race; another code or data, other keys."""
    metrics: dict[str, float] = field(default_factory=dict)
    """All that the evaluation measured."""
    stages: list[dict[str, Any]] = field(default_factory=list)
    """What each stage took: key, kind, seconds, device."""
    reason: str = ""
    """Why it failed: the last lines; or why it was stopped."""
    asked: dict[str, Any] = field(default_factory=dict)
    """The sampler's own parameters, from which its journal can be made again."""


class Ledger:
    """All records of a study, in memory and in its file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = _load(path)

    def append(self, record: Record) -> None:
        """Add a record; on return it is on the disk."""
        line = json.dumps(asdict(record), sort_keys=True, allow_nan=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole, torn = _lines(self.path)
        if torn:
            os.truncate(self.path, len(whole))
        with self.path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self.records.append(record)

    def trials(self) -> dict[int, Record]:
        """Return the trials by number; of a trial that was run again, the later record."""
        return {r.trial: r for r in self.records if r.role == "trial"}

    def controls(self) -> list[Record]:
        """Return the controls."""
        return [record for record in self.records if record.role == "control"]

    def confirmations(self) -> list[Record]:
        """Return the confirmations, a record a point and seed."""
        return [record for record in self.records if record.role == "confirm"]


def _lines(path: Path) -> tuple[bytes, bytes]:
    """Return the whole lines of a ledger, and what there is of a torn one."""
    content = path.read_bytes() if path.exists() else b""
    end = content.rfind(b"\n") + 1
    return content[:end], content[end:]


def _load(path: Path) -> list[Record]:
    whole, torn = _lines(path)
    if torn:
        log.warning("event=torn_line path=%s bytes=%d", path, len(torn))
    return [Record(**json.loads(line)) for line in whole.splitlines()]
