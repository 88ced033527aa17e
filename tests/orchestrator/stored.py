"""Stages that were published without being run, and harm that is done to files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import torch

from orchestrator.store import Done, Store
from workloads.stage import Result

KEY = "ab" + "0" * 62
FACTS = {"seconds": 2.5, "device": "cpu", "kind": "finetune"}


def result(top1: float = 0.5) -> Result:
    weights = {"head": torch.full((2, 3), top1), "steps": torch.tensor([1, 2])}
    return Result(weights, {"val/top1": top1}, pa.table({"clip": ["a", "b"], "label": [0, 1]}))


def published(store: Store, top1: float = 0.5) -> Done:
    """Publish a stage and return what is found of it."""
    store.attempt(KEY).publish(result(top1), {"steps": 4}, FACTS)
    found = store.find(KEY)
    assert found is not None
    return found


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
