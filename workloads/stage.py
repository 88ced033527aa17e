"""What the run of a stage gets and gives, so that its loop knows nothing of who runs it.

Each kind of stage is a module with `run(config, clips, inputs, report) -> Result`: a plain loop
that a notebook can call with `Quiet()`, and a worker with a report that saves checkpoints and
listens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import torch.distributed as dist
from torch import Tensor

State = dict[str, Any]  # Any: a checkpoint holds tensors, numbers and the optimiser's own dicts


class Cancelled(Exception):  # noqa: N818 - not an error: somebody no longer wants the result
    """Raised by `Report.step` to end a stage whose result nobody waits for."""


class Report(Protocol):
    """How a running stage speaks to whoever runs it."""

    def resume(self) -> State | None:
        """Return the newest checkpoint of this stage, None at the start."""

    def step(
        self,
        done: int,
        total: int,
        metrics: Callable[[], dict[str, float]],
        state: Callable[[], State] | None = None,
    ) -> None:
        """Say that a step is done; called after each. `metrics` and `state` are made if wanted.

        Raises:
            Cancelled: stop here.
        """


class Quiet:
    """A report to nobody: no checkpoints, never cancelled."""

    def resume(self) -> State | None:
        return None

    def step(
        self,
        done: int,
        total: int,
        metrics: Callable[[], dict[str, float]],
        state: Callable[[], State] | None = None,
    ) -> None:
        return None


@dataclass(frozen=True)
class Input:
    """A finished stage that another one reads."""

    config: Any  # Any: the config of whatever kind of stage it was
    weights: Path
    """Its safetensors file."""


Inputs = dict[str, Input]


class Result(NamedTuple):
    """What a stage leaves; on ranks other than 0 only the metrics count."""

    weights: dict[str, Tensor] | None
    metrics: dict[str, float]
    clips: pa.Table | None
    """One row a clip, from evaluation; one row a forward, from timing."""


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the number of processes in its group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
