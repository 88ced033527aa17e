"""The loop of a group: take a stage from the board, run it, publish it, take the next.

Runs in every rank of a long-lived Ray Train group. Ray restarts the group when a process dies; the
loop then takes the same job again and its stage goes on from its own checkpoint.
"""

from __future__ import annotations

import errno
import importlib
import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist

from orchestrator import cluster
from orchestrator.lock import Lock
from orchestrator.store import Attempt, Store
from orchestrator.stream import Stream
from search_spaces.study import Stage
from workloads.clips import ClipSet, open_clips
from workloads.footage import Frames
from workloads.knobs import canonical
from workloads.mistakes import Mistake
from workloads.stage import Cancelled, Input, Result, State, rank_and_world

log = logging.getLogger(__name__)

BEAT_S = 0.2  # how often a stage reports and hears whether it is still wanted
COLLECTIVE_S = 600  # a rank that hangs longer than this brings its group down
AGREE_S = 20.0  # how long ranks wait for each other where all should be at the same place
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Runtime:
    """What a group is told once; nothing in it changes a number."""

    group: int
    board: ray.actor.ActorHandle
    store: Path
    threads: int
    checkpoint_s: float
    ahead: int = 8
    cached: bool = True


def session(settings: dict[str, Any]) -> None:  # Any: Ray wants a plain dict
    """Run stages until the board says stop; the train loop of a group's TorchTrainer."""
    runtime: Runtime = settings["runtime"]
    beside = ray.train.get_context().get_local_world_size()
    torch.set_num_threads(max(min(runtime.threads, cluster.num_cores() // beside), 1))
    ranks = Ranks()
    device = ray.train.torch.get_device() if torch.cuda.is_available() else torch.device("cpu")
    while True:
        job = ranks.agree(lambda: ray.get(runtime.board.take.remote(runtime.group)))
        if job["kind"] == "stop":
            return
        if job["kind"] == "stage":
            outcome = Work(runtime, ranks, device, job).run()
            if ranks.rank == 0:
                ray.get(runtime.board.done.remote(runtime.group, outcome))


class Ranks:
    """The processes of a group, and how they agree: on a line beside that of the gradients."""

    def __init__(self) -> None:
        self.rank, self.world = rank_and_world()
        if self.world > 1:
            self.line = dist.new_group(backend="gloo", timeout=timedelta(seconds=COLLECTIVE_S))

    def agree(self, decide: Callable[[], Any]) -> Any:  # Any: whatever rank 0 decides
        """Return on every rank what rank 0 decides, or raise there what it raises."""
        if self.world == 1:
            return decide()
        box = [_tried(decide) if self.rank == 0 else None]
        dist.broadcast_object_list(box, group=self.line)
        if isinstance(box[0], Exception):
            raise box[0]
        return box[0]

    def any(self, flag: bool) -> bool:
        """Return whether any rank says yes."""
        if self.world == 1:
            return flag
        votes = torch.tensor([int(flag)])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.line)
        return bool(votes.item())

    def total(self, count: int) -> int:
        """Return the sum of the counts of all ranks."""
        if self.world == 1:
            return count
        counts = torch.tensor([count])
        dist.all_reduce(counts, group=self.line)
        return int(counts.item())

    def meet(self) -> None:
        """Return when every rank is here; raise where one is not."""
        if self.world > 1:
            dist.monitored_barrier(group=self.line, timeout=timedelta(seconds=AGREE_S))


def _tried(decide: Callable[[], Any]) -> Any:  # Any: as in agree
    try:
        return decide()
    except Exception as error:
        return error


class Work:
    """One stage in one group."""

    def __init__(
        self, runtime: Runtime, ranks: Ranks, device: torch.device, job: dict[str, Any]
    ) -> None:
        self.runtime, self.ranks, self.device = runtime, ranks, device
        self.stage: Stage = job["stage"]
        self.key: str = job["key"]
        self.data, self.manifest_digest = job["clips"]
        self.store = Store(runtime.store)

    def run(self) -> dict[str, Any]:
        """Run the stage and publish it; return how it ended."""
        lock = self.store.lock(self.key)
        begun = time.monotonic()
        try:
            claim = "wait"
            while claim == "wait":
                claim = self.ranks.agree(lambda: self._claim(lock))
            if claim != "ours":
                return {"state": claim, "reused": True, "spent": 0.0}
            return {"state": "done", "spent": time.monotonic() - begun} | self._work()
        except Cancelled:
            return {"state": "cancelled", "spent": time.monotonic() - begun}
        except Exception as error:
            # All ranks failed alike: an answer. One alone: this raises, and the group starts again.
            failure = _failure(error)
            if self.ranks.world > 1:
                hear = self.runtime.board.hear
                hear.remote(self.runtime.group, self.key, failure["reason"])
            self.ranks.meet()
            return failure | {"spent": time.monotonic() - begun}
        finally:
            lock.release()

    def _claim(self, lock: Lock) -> str:
        """Say whether the stage is ours to do, done by another process, in work, or unwanted."""
        if lock.take():
            return "ours" if self.store.find(self.key) is None else "done"
        beat = self.runtime.board.beat
        if not ray.get(beat.remote(self.runtime.group, self.key, (0, 0), {})):
            return "cancelled"
        time.sleep(BEAT_S)
        return "wait"  # in rounds, as no collective of the other ranks lasts as long as a stage

    def _work(self) -> dict[str, Any]:
        begun = time.monotonic()
        attempt = self.store.attempt(self.key)
        report = _Report(self, attempt)
        module = importlib.import_module(f"workloads.{self.stage.kind}")
        clip_set = _clips(Path(self.data), self.device, self.runtime.cached, self.runtime.ahead)
        before = replace(clip_set.meter)
        try:
            result: Result = module.run(self.stage.config, clip_set, self._inputs(), report)
        finally:
            clip_set.expect(())
        spent = time.monotonic() - begun
        waited = {
            "data_wait_s": clip_set.meter.wait_s - before.wait_s,
            "decoded": self.ranks.total(clip_set.meter.decoded - before.decoded),
        }
        facts = self._facts(report.earlier_s + spent) | waited
        # What rank 0 cannot write is the failure of all, or they would wait for it in vain.
        self.ranks.agree(lambda: attempt.publish(result, canonical(self.stage.config), facts))
        return {"spent": spent, "seconds": report.earlier_s + spent, **waited}

    def _facts(self, seconds: float) -> dict[str, Any]:
        return {
            "seconds": seconds,
            "kind": self.stage.kind,
            "device": _device_name(self.device),
            "threads": torch.get_num_threads(),
            "ranks": self.ranks.world,
            "torch": torch.__version__,
        }

    def _inputs(self) -> dict[str, Input]:
        inputs: dict[str, Input] = {}
        for role, stage in self.stage.inputs:
            done = self.store.expect(stage.key(self.manifest_digest))
            if done is None:
                raise RuntimeError(f"the {stage.kind} stage that this one reads is gone")
            inputs[role] = Input(stage.config, done.weights)
        return inputs


class _Report:
    """How a running stage speaks: checkpoints every few seconds, a beat to the board."""

    def __init__(self, work: Work, attempt: Attempt) -> None:
        self.work, self.attempt, self.ranks = work, attempt, work.ranks
        self.begun = self.saved = time.monotonic()
        self.beaten = 0.0
        self.earlier_s = 0.0
        self.end: Exception | None = None  # why it cannot go on; rank 0 alone knows
        self._reply: ray.ObjectRef | None = None

    def resume(self) -> State | None:
        state = self.attempt.newest()
        if state is not None:
            self.earlier_s = float(state.pop("seconds"))
            log.info("event=resume stage=%s done=%s", self.work.key[:12], state["done"])
        return state

    def step(
        self,
        done: int,
        total: int,
        metrics: Callable[[], dict[str, float]],
        state: Callable[[], State] | None = None,
    ) -> None:
        now = time.monotonic()
        if self.ranks.rank == 0 and now - self.beaten > BEAT_S:
            self._beat((done, total), metrics)
            self.beaten = now
        if self.ranks.any(self.end is not None):
            raise self.ranks.agree(lambda: self.end)
        due = now - self.saved > self.work.runtime.checkpoint_s and done < total
        if self.ranks.rank == 0 and state is not None and due:
            self._save({**state(), "seconds": self.earlier_s + now - self.begun})

    def _save(self, state: State) -> None:
        """Save a checkpoint; where that fails, all ranks end together at the next step."""
        try:
            self.attempt.save(state)
        except OSError as error:
            self.end = error
        self.saved = time.monotonic()

    def _beat(self, progress: tuple[int, int], metrics: Callable[[], dict[str, float]]) -> None:
        """Read the answer to the last beat if it is there, and send the next; never wait."""
        if self._reply is not None:
            ready, _ = ray.wait([self._reply], timeout=0)
            if not ready:
                return
            if not ray.get(self._reply):
                self.end = Cancelled()
        runtime = self.work.runtime
        beat = runtime.board.beat
        self._reply = beat.remote(runtime.group, self.work.key, progress, metrics())


@cache
def _clips(folder: Path, device: torch.device, cached: bool, ahead: int) -> ClipSet:
    """Open the clips once in the life of a group."""
    clip_set = open_clips(folder, device, cached)
    assert isinstance(clip_set.frames_of, Frames), "they come from a folder"
    return replace(clip_set, feed=Stream(clip_set.frames_of, ahead, clip_set.meter))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _failure(error: Exception) -> dict[str, Any]:
    if isinstance(error, OSError) and error.errno in FULL:
        return {"state": "fatal", "reason": f"{error.strerror}: {error.filename or 'the store'}"}
    if isinstance(error, Mistake):
        return {"state": "failed", "reason": str(error)}
    log.exception("event=stage_failed")
    tail = "".join(traceback.format_exception(error)[-3:])
    return {"state": "failed", "reason": f"{type(error).__name__}: {error}\n{tail}"}
