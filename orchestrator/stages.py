"""Run the stages of a plan, each through the store: what is there is read, the rest launched.

The launcher is passed in: the board in a study, the same process in a smoke test.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from orchestrator.store import Done, Store
from search_spaces.study import Stage
from workloads.clips import ClipSet
from workloads.knobs import canonical
from workloads.stage import Input, Quiet

Launch = Callable[[Stage, str], dict[str, Any]]
"""Run one stage of a key and publish it; return its `state`, and a `reason` if it is not done."""


class StageFailed(RuntimeError):  # noqa: N818 - a failed trial is data
    """A stage did not end well; `state` says how."""

    def __init__(self, kind: str, state: str, reason: str) -> None:
        super().__init__(f"{kind}: {reason}")
        self.state = state


@dataclass
class Outcome:
    """What a plan came to."""

    metrics: dict[str, float] = field(default_factory=dict)
    """Of its last stage."""
    keys: list[str] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    """For each stage: key, kind, seconds, device, and whether it was there already."""


def run(plan: Stage, manifest_digest: str, store: Store, launch: Launch) -> Outcome:
    """Run a plan, stage after stage.

    Raises:
        StageFailed: a stage failed, was cancelled, or nothing can run any more (`fatal`).
    """
    outcome = Outcome()
    for stage in plan.chain():
        key = stage.key(manifest_digest)
        if key in outcome.keys:
            continue
        found = store.find(key)
        reused = found is not None
        if found is None:
            ended = launch(stage, key)
            found = _result(stage, key, store, ended)
            reused = bool(ended.get("reused", False))
        took = {"key": key, "kind": stage.kind, "seconds": found.seconds, "device": found.device}
        outcome.stages.append({**took, "reused": reused})
        outcome.keys.append(key)
        outcome.metrics = found.metrics
    return outcome


def _result(stage: Stage, key: str, store: Store, ended: dict[str, Any]) -> Done:
    """Return what a stage that ended left in the store."""
    if ended["state"] != "done":
        reason = str(ended.get("reason", "it left no result"))
        raise StageFailed(stage.kind, ended["state"], reason)
    found = store.expect(key)
    if found is None:
        reason = (
            f"done, but its result is not in {store.root}: this is not the same folder for the "
            "driver and the workers; --store must lie on a file system that all nodes share"
        )
        raise StageFailed(stage.kind, "fatal", reason)
    return found


def in_process(clip_set: ClipSet, manifest_digest: str, store: Store) -> Launch:
    """Return a launcher that runs stages here and now."""

    def launch(stage: Stage, key: str) -> dict[str, Any]:
        inputs: dict[str, Input] = {}
        for role, needed in stage.inputs:
            done = store.find(needed.key(manifest_digest))
            assert done is not None, "stages are run in order"
            inputs[role] = Input(needed.config, done.weights)
        begun = time.monotonic()
        module = importlib.import_module(f"workloads.{stage.kind}")
        result = module.run(stage.config, clip_set, inputs, Quiet())
        facts = {"seconds": time.monotonic() - begun, "kind": stage.kind, "device": "cpu"}
        store.attempt(key).publish(result, canonical(stage.config), facts)
        return {"state": "done"}

    return launch
