"""Examining many videos at once: Ray Data's tasks, each with a child process that decodes.

A task has a CPU to itself and its child one thread, so that a small machine is not overrun. A child
that dies or hangs over a video is given a second try; then the video is quarantined. Each verdict
is in the journal before the next video is begun.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import ray.data

from orchestrator import journal
from orchestrator.cluster import num_cpus
from orchestrator.environment import hush
from workloads.examine import Job, Verdict
from workloads.isolation import Child, Lost

TRIES = 2
MOST_AT_ONCE = 32  # videos of a task
SLOWEST_BYTES_A_S = 2e7  # of a disk
TASKS_A_CPU = 8  # so that none waits long for the last one


def examine(
    jobs: dict[str, Job], kept: Path, patience_s: float
) -> Iterator[list[tuple[str, Verdict]]]:
    """Examine videos and yield verdicts with their keys, some at a time, in any order.

    Args:
        jobs: by key.
        kept: folder of the journal.
        patience_s: how long a decoder may give no sign of life.

    Raises:
        OSError, or an error of Ray's that it stands behind: the disk takes no more.
    """
    hush()
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it says of a full disk, we say
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    rows = [{"key": key, "job": json.dumps(asdict(job))} for key, job in jobs.items()]
    at_once = min(max(math.ceil(len(rows) / (TASKS_A_CPU * num_cpus())), 1), MOST_AT_ONCE)

    def work(columns: dict[str, Any]) -> dict[str, Any]:  # Any: numpy arrays of text
        pairs = zip(columns["key"].tolist(), columns["job"].tolist(), strict=True)
        return {"line": _verdicts(list(pairs), kept, patience_s)}

    dataset = ray.data.from_items(rows, override_num_blocks=math.ceil(len(rows) / at_once))
    examined = dataset.map_batches(work, batch_size=at_once, num_cpus=1)
    for columns in examined.iter_batches(batch_size=None, prefetch_batches=0):
        yield [journal.parse(line) for line in columns["line"].tolist()]


def _verdicts(pairs: Sequence[tuple[str, str]], kept: Path, patience_s: float) -> list[str]:
    """Examine some videos one after another, and return the lines of the journal."""
    with journal.busy(kept):
        return [
            journal.append(kept, key, verdict_on(job, patience_s, more_s=_more_s(job)))
            for key, job in pairs
        ]


def _more_s(job: str) -> float:
    """Return how long a file takes to be read whole: while it is hashed, nothing is said."""
    with suppress(OSError):
        return Path(json.loads(job)["source"]).stat().st_size / SLOWEST_BYTES_A_S
    return 0.0


def verdict_on(
    job: str, patience_s: float, module: str = "workloads.examine", more_s: float = 0.0
) -> Verdict:
    """Let a child examine a video, and another one if the first is lost over it.

    Raises:
        OSError: the disk takes no more.
    """
    why = ""
    for _ in range(TRIES):
        try:
            answer = json.loads(_child(module, patience_s).ask(job, more_s))
        except Lost as lost:
            why = str(lost)
            continue
        if "refused" in answer:
            raise OSError(*answer["refused"])
        return Verdict(**answer["verdict"])
    reason = f"its decoder {why}, {TRIES} times"
    return Verdict(action="quarantined", reason=reason, passing=True)


@cache
def _child(module: str, patience_s: float) -> Child:
    """Return the child of this process; Ray gives a process one task after another."""
    return Child(module, patience_s)
