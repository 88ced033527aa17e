"""What evaluations left clip by clip, put together and compared with the dense model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from orchestrator.stages import Outcome
from orchestrator.store import Store
from workloads import evaluate, metrics
from workloads.evaluate import Columns

TABLE = "clips.parquet"


def evaluations(stages: Sequence[dict[str, Any]]) -> list[str]:  # Any: as in a record
    """Return the keys of the evaluations among the stages of an outcome or a record."""
    return [took["key"] for took in stages if took["kind"] == "evaluate"]


class Tables:
    """The tables of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def columns(self, keys: Sequence[str]) -> Columns | None:
        """Return the columns of some evaluations together; None if one is not in the store."""
        found = [self.store.find(key) for key in keys]
        if not found or any(done is None for done in found):
            return None
        paths = [done.folder / TABLE for done in found if done is not None]
        return evaluate.columns_of([pq.read_table(path) for path in paths])

    def compared(self, outcome: Outcome, dense_keys: Sequence[str]) -> Outcome:
        """Return an outcome with its agreement with the dense model, and how far it is from it.

        Clips that either did not evaluate are left out; without any the outcome is as it was.
        """
        dense, reduced = self.columns(dense_keys), self.columns(evaluations(outcome.stages))
        if dense is None or reduced is None:
            return outcome
        _, ours, theirs = np.intersect1d(dense["clip"], reduced["clip"], return_indices=True)
        if not len(ours):
            return outcome
        pair = (
            torch.from_numpy(dense["logits"][ours]),
            torch.from_numpy(reduced["logits"][theirs]),
        )
        more = {"val/agreement": metrics.agreement(*pair), "val/kl": metrics.divergence(*pair)}
        return replace(outcome, metrics=outcome.metrics | more)
