"""A stage that runs in a pool while a test looks on, and kills whoever runs it."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import psutil
import ray

from orchestrator.pool import Pool
from search_spaces.study import Stage

DEADLINE_S = 90


class Launched:
    """A stage that runs in the pool while the test looks on."""

    def __init__(self, pool: Pool, stage: Stage, digest: str, owner: str = "test") -> None:
        self.pool, self.key = pool, stage.key(digest)
        self.ref = pool.board.post.remote(stage, self.key, owner)

    def progress(self) -> tuple[int, int]:
        """Return which attempt runs and how many steps it has done."""
        running = [job for job in self.pool.snapshot()["running"] if job["key"] == self.key]
        return (running[0]["attempt"], running[0]["progress"][0]) if running else (0, 0)

    def wait_for(self, steps: int, attempt: int = 1) -> None:
        end = time.monotonic() + DEADLINE_S
        while self.progress() < (attempt, steps):
            assert time.monotonic() < end, "the stage does not get on"
            time.sleep(0.02)

    def ended(self) -> dict[str, Any]:
        outcome: dict[str, Any] = ray.get(self.ref, timeout=DEADLINE_S)
        return outcome


def rank_pids() -> list[int]:
    everyone = psutil.Process().children(recursive=True)
    living = [p for p in everyone if p.status() != psutil.STATUS_ZOMBIE]
    return [p.pid for p in living if "RayTrainWorker" in " ".join(p.cmdline())]


def run_with_a_kill(pool: Pool, stage: Stage, digest: str) -> str:
    """Run a stage whose rank is killed in the middle; return its key."""
    launched = Launched(pool, stage, digest)
    launched.wait_for(150)
    (pid,) = rank_pids()
    os.kill(pid, signal.SIGKILL)
    seen = []
    while not ray.wait([launched.ref], timeout=0.05)[0]:
        seen.append(launched.progress())
    assert launched.ended()["state"] == "done"
    after = [done for attempt, done in seen if attempt == 2 and done]
    assert min(after) >= 100, "it began again instead of going on"
    return launched.key
