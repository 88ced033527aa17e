"""The pool: long-lived Ray Train groups that work off the board.

A fresh group costs 8-20 s before its first step, a stage taken by a running one 5-10 ms; hence
groups live as long as the run. Ray Train still watches them: a killed rank is back within seconds.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from orchestrator import board, train
from orchestrator.cluster import Shares
from search_spaces.study import Stage

log = logging.getLogger(__name__)

STOP_S = 5.0
CHECKPOINT_S = 10.0  # what a killed stage has to do again, at most


class Pool:
    """Groups and their board."""

    def __init__(
        self, workers: int, ranks: int, shares: Shares, scratch: Path, cached: bool = True
    ) -> None:
        self.board = board.start()
        self.cached = cached
        self.workers, self.ranks, self.shares = workers, ranks, shares
        self.scratch = scratch
        self._threads: list[threading.Thread] = []

    def start(self, store: Path, checkpoint_s: float = CHECKPOINT_S) -> None:
        """Start the groups; returns at once, they take their first stage when they are up."""
        for group in range(self.workers):
            runtime = train.Runtime(
                group=group,
                board=self.board,
                store=store,
                threads=self.shares.threads,
                checkpoint_s=checkpoint_s,
                ahead=self.shares.ahead,
                cached=self.cached,
            )
            thread = threading.Thread(target=self._fit, args=(runtime,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _fit(self, runtime: train.Runtime) -> None:
        trainer = TorchTrainer(
            train.session,
            train_loop_config={"runtime": runtime},
            torch_config=TorchConfig(timeout_s=train.COLLECTIVE_S),
            scaling_config=ScalingConfig(
                num_workers=self.ranks,
                use_gpu=self.shares.gpus > 0,
                resources_per_worker={"CPU": self.shares.cpus, "GPU": self.shares.gpus},
            ),
            # The board counts attempts of a stage; a group itself is always started again.
            run_config=RunConfig(
                name=f"group-{runtime.group}",
                storage_path=str(self.scratch),
                failure_config=FailureConfig(max_failures=-1),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            log.exception("event=group_failed group=%d", runtime.group)
            if ray.is_initialized():
                self.close(f"group {runtime.group} cannot run: {error}")

    def serve(self, data: Path, manifest_digest: str) -> None:
        """Say which clips the stages are about, before the first one is posted."""
        ray.get(self.board.serve.remote(str(data), manifest_digest))

    def launch(self, stage: Stage, key: str) -> dict[str, Any]:
        """Run one stage in whatever group is free; a `stages.Launch`."""
        ended: dict[str, Any] = ray.get(self.board.post.remote(stage, key, "driver"))
        return ended

    def snapshot(self) -> dict[str, Any]:
        """Return what runs now and the counts so far; see `Board.snapshot`."""
        seen: dict[str, Any] = ray.get(self.board.snapshot.remote(), timeout=5)
        return seen

    def close(self, reason: str = "the study is over") -> None:
        """Send all groups home; stages that run are given up, their checkpoints stay."""
        ray.get(self.board.close.remote(reason), timeout=STOP_S)

    def stop(self) -> bool:
        """Send all groups home; say whether they are gone.

        One that is only starting does not hear it yet. Ray must not be shut down under a thread
        that waits for it, or the process crashes.
        """
        end = time.monotonic() + STOP_S
        try:
            self.close()
        except RayError:  # the board is gone, or still starting
            return False
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads)
