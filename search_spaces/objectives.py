"""What a study optimises: a row an objective; direction, unit and reference flow from here
everywhere.

`top1`  share of clips with the right label, 0..1; a guess reaches 1 / classes.
`agreement`
        share of clips to which the reduced model gives the label of the dense one, 0..1; needs no
        labels. The dense model agrees with itself, and of a guess it is as for `top1`.
`gmacs` 1e9 multiply-accumulates of one view (1 MAC = 2 FLOPs), selection and embedding included,
mean
        over the evaluated clips; the dense model of the study's host is the reference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One axis of the front."""

    name: str
    """Key in `values`."""
    metric: str
    """Key among the metrics of an evaluate stage and in MLflow."""
    direction: Literal["max", "min"]
    unit: str
    reference: Literal["chance", "dense"]
    """The worst corner of the box: a guess (1 / classes), or the dense model's own value."""
    ideal: float
    """The best corner of the box."""


TOP1 = Objective(
    name="top1",
    metric="val/top1",
    direction="max",
    unit="fraction",
    reference="chance",
    ideal=1.0,
)
AGREEMENT = replace(TOP1, name="agreement", metric="val/agreement")
GMACS = Objective(
    name="gmacs",
    metric="cost/gmacs",
    direction="min",
    unit="1e9 MACs",
    reference="dense",
    ideal=0.0,
)
