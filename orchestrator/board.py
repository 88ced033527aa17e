"""The board: stages go up, groups take them down, whoever posted one hears how it ended.

One pool serves training and evaluation, so nothing waits for a device that other work keeps. The
same stage posted twice is one job. A job that nobody waits for any more is cancelled. A group that
was killed takes its job again; after the third time the job has failed, for whoever posts it later
in this run too.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search_spaces.study import Stage

MAX_ATTEMPTS = 3
PATIENCE_S = 60.0  # a group asks again this often, or its ranks' collectives would time out

Outcome = dict[str, Any]  # Any: state, reason, seconds, reused
UNWANTED: Outcome = {"state": "cancelled", "reason": "nobody waits for it"}


@dataclass(eq=False)
class Job:
    """A stage on the board."""

    key: str
    stage: Stage
    owners: set[str]
    """Who waits for it."""
    future: asyncio.Future[Outcome]
    attempts: int = 0
    group: int | None = None
    started: float = 0.0
    said: str = ""
    """By a rank that failed while others did not."""
    progress: tuple[int, int] = (0, 0)
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def is_wanted(self) -> bool:
        """Whether anybody still waits."""
        return bool(self.owners)


class Board:
    """The actor's methods; one event loop, so no two of them interleave but at an await."""

    def __init__(self) -> None:
        self.clips: tuple[str, str] | None = None
        self.queue: deque[Job] = deque()
        self.jobs: dict[str, Job] = {}
        self.taken: dict[int, Job] = {}
        self.takes: dict[int, int] = {}
        self.given_up: dict[str, Outcome] = {}
        self.released: set[str] = set()
        self.changed = asyncio.Condition()
        self.closed: str | None = None
        self.busy_s = self.data_wait_s = 0.0
        self.stages_run = self.decoded = 0

    async def serve(self, data: str, manifest_digest: str) -> None:
        """Say which clips all stages are about: the folder of their frames, and their digest.

        Not told to groups at their start, so that they start while the clips are still made. Who
        waits from now on is new, even under a name that was released before.
        """
        self.clips = data, manifest_digest
        self.released.clear()

    async def post(self, stage: Stage, key: str, owner: str) -> Outcome:
        """Put a stage up and return how it ended: `state` is done, failed, fatal or cancelled."""
        refusal = self._refusal(key, owner)
        if refusal is not None:
            return refusal
        job = self.jobs.get(key)
        if job is None:
            future = asyncio.get_running_loop().create_future()
            job = self.jobs[key] = Job(key, stage, set(), future)
            self.queue.append(job)
        job.owners.add(owner)
        await self._notify()
        return await asyncio.shield(job.future)

    def _refusal(self, key: str, owner: str) -> Outcome | None:
        """Return how a stage ends that is not even put up; None if it is."""
        if self.closed is not None:
            return {"state": "fatal", "reason": self.closed}
        if owner in self.released:  # a trial that was stopped between two of its stages
            return UNWANTED
        return self.given_up.get(key)

    async def take(self, group: int) -> Outcome:
        """Hand a group its next job, or the one it was killed with; or `wait`, or `stop`."""
        take = self.takes[group] = self.takes.get(group, 0) + 1
        await self._notify()  # whoever still waits for this group was killed
        job = self.taken.get(group)
        if job is not None and job.attempts >= MAX_ATTEMPTS:
            self.given_up[job.key] = {"state": "failed", "reason": _killed(job)}
            await self.done(group, self.given_up[job.key])
            job = None
        if job is None:
            job = await self._next(group, take)
        if job is None:
            return {"kind": "wait" if self.closed is None else "stop"}
        job.attempts += 1
        job.group, job.started, job.progress = group, job.started or time.time(), (0, 0)
        self.taken[group] = job
        return {"kind": "stage", "stage": job.stage, "key": job.key, "clips": self.clips}

    async def _next(self, group: int, take: int) -> Job | None:
        """Wait for a job; None after a while, at the end, or when the group has asked again."""

        def is_over() -> bool:
            return self.closed is not None or self.takes[group] != take

        async with self.changed:
            ready = self.changed.wait_for(lambda: self.queue or is_over())
            try:
                await asyncio.wait_for(ready, PATIENCE_S)
            except TimeoutError:
                return None
            return self.queue.popleft() if self.queue and not is_over() else None

    async def hear(self, group: int, key: str, reason: str) -> None:
        """Keep why a rank failed; if it was the only one, its group is about to start again."""
        job = self.taken.get(group)
        if job is not None and job.key == key:
            job.said = reason

    async def beat(
        self, group: int, key: str, progress: tuple[int, int], metrics: dict[str, float]
    ) -> bool:
        """Hear how far a group is; say whether to go on."""
        job = self.taken.get(group)
        if job is None or job.key != key:
            return False
        job.progress, job.metrics = progress, metrics
        return job.is_wanted and self.closed is None

    async def done(self, group: int, outcome: Outcome) -> None:
        """Hear that a group ended its job."""
        job = self.taken.pop(group, None)
        if job is None:
            return
        self.busy_s += outcome.get("spent", 0.0)
        self.data_wait_s += outcome.get("data_wait_s", 0.0)
        self.decoded += outcome.get("decoded", 0)
        self.stages_run += outcome["state"] == "done" and not outcome.get("reused", False)
        if outcome["state"] == "cancelled" and job.is_wanted and self.closed is None:
            job.attempts, job.group = 0, None  # wanted again in the meantime
            self.queue.append(job)
        else:
            self._finish(job, outcome)
        await self._notify()

    async def release(self, owner: str) -> None:
        """Wait no longer for whoever it was; a job that nobody wants leaves the board."""
        self.released.add(owner)
        for job in list(self.jobs.values()):
            job.owners.discard(owner)
            if not job.is_wanted and job in self.queue:
                self.queue.remove(job)
                self._finish(job, UNWANTED)

    async def close(self, reason: str) -> None:
        """Send all groups home and end every job."""
        self.closed = reason
        for job in list(self.jobs.values()):
            self._finish(job, {"state": "fatal", "reason": reason})
        self.queue.clear()
        await self._notify()

    async def snapshot(self) -> dict[str, Any]:
        """Return what runs now, what waits, and the counts so far."""
        running = [
            {
                "key": job.key,
                "kind": job.stage.kind,
                "group": group,
                "progress": job.progress,
                "metrics": job.metrics,
                "seconds": time.time() - job.started,
                "attempt": job.attempts,
            }
            for group, job in sorted(self.taken.items())
        ]
        names = ("busy_s", "stages_run", "data_wait_s", "decoded")
        counts = {name: getattr(self, name) for name in names}
        return {"running": running, "waiting": len(self.queue), **counts}

    def _finish(self, job: Job, outcome: Outcome) -> None:
        self.jobs.pop(job.key, None)
        if not job.future.done():
            job.future.set_result(outcome)

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()


def _killed(job: Job) -> str:
    why = f"a rank failed {job.attempts} times ({job.said})" if job.said else ""
    return f"{why or f'its process was killed {job.attempts} times'}; the stage is given up"


def start() -> ray.actor.ActorHandle:
    """Start a board on the node of the driver, which is not one that may be taken away."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote = ray.remote(num_cpus=0, max_concurrency=1000, scheduling_strategy=here)(Board)
    return remote.remote()
