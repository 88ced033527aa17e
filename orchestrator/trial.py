"""A Tune trial: takes no CPU, asks the board for what it needs, and stays interruptible.

The work happens in the pool; a trial only waits for it, in steps of half a second, so that Tune can
stop it in the middle. One actor serves many trials (`reuse_actors`), at 0.06 s each.
"""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError

from orchestrator import stages
from orchestrator.store import Store
from search_spaces.study import Stage

STEP_S = 0.5


def owner_of(config: dict[str, Any]) -> str:  # Any: what Tune hands a trial
    """Return the name under which a trial waits at the board; at each of its rungs another one."""
    return f"trial-{config['number']}-{config.get('rung', 0)}"


class Trial(tune.Trainable):  # type: ignore[misc]  # Ray ships no types
    """Runs a plan of one trial: config `{"number": ..., "plan": ...}`, and `rung` in a race."""

    def setup(
        self,
        config: dict[str, Any],
        board: ray.actor.ActorHandle = None,
        store: str = "",
        manifest_digest: str = "",
    ) -> None:
        """Remember where things are; Tune calls this once for an actor."""
        self.board, self.store, self.digest = board, Store(Path(store)), manifest_digest
        self.threads = ThreadPoolExecutor(max_workers=8)
        self.future: Future[stages.Outcome] | None = None

    def step(self) -> dict[str, Any]:
        """Wait a little; return how the trial stands, `done` at its end."""
        if self.future is None:
            self.future = self.threads.submit(self._work, self.config["plan"])
        try:
            outcome = self.future.result(timeout=STEP_S)
        except StillRunning:
            return {"state": "running", "done": False}
        except stages.StageFailed as error:
            return {"state": error.state, "reason": str(error), "done": True}
        except (RayError, OSError) as error:  # the board is gone, or the store is full
            return {"state": "fatal", "reason": str(error), "done": True}
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            return {"state": "failed", "reason": reason, "done": True}
        # As text: Tune flattens dictionaries on their way to the searcher.
        return {"state": "done", "outcome": json.dumps(asdict(outcome)), "done": True}

    def _work(self, plan: Stage) -> stages.Outcome:
        owner = owner_of(self.config)

        def launch(stage: Stage, key: str) -> dict[str, Any]:
            ended: dict[str, Any] = ray.get(self.board.post.remote(stage, key, owner))
            return ended

        return stages.run(plan, self.digest, self.store, launch)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial in the same process."""
        self.future = None
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save nothing: what a trial has done lies in the store."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Load nothing; see `save_checkpoint`."""

    def cleanup(self) -> None:
        """End the actor; the driver releases what it had posted."""
        self.threads.shutdown(wait=False, cancel_futures=True)
