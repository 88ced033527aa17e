"""What a plan is called: its reducers, their knobs, and whatever else varies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from variants import STUDY, measuring

from search_spaces.study import params_of
from workloads.knobs import Float
from workloads.reducers import drop, rlt, tome


@dataclass(frozen=True)
class Twin:
    """A reducer of this file with a knob called like that of another."""

    tau: Annotated[float, Float(0, 1)] = 0.5


@pytest.mark.parametrize(
    ("reducers", "expected"),
    [
        ((), {"reducer": "none"}),
        ((rlt.Config(tau=0.2, encode_length=True),), {"reducer": "rlt", "tau": 0.2}),
        ((drop.Config(keep=0.3), tome.Config(r=8)), {"reducer": "drop+tome", "keep": 0.3, "r": 8}),
        (
            (tome.Config(r=8, schedule="decreasing"),),
            {"reducer": "tome", "r": 8, "schedule": "decreasing"},
        ),
        (
            (tome.Config(ratio=0.3, layers=1),),
            {"reducer": "tome", "ratio": 0.3, "layers": 1},
        ),
        (
            (rlt.Config(tau=0.2), Twin()),
            {"reducer": "rlt+test_params", "rlt.tau": 0.2, "test_params.tau": 0.5},
        ),
    ],
)
def test_params_name_the_chain_and_its_knobs(
    reducers: tuple[Any, ...], expected: dict[str, Any]
) -> None:
    dense = {"finetune.reducer": "none"}
    assert params_of(measuring(*reducers), {}) == dense | expected


def test_params_of_training_have_its_name_before_them() -> None:
    chosen = {
        "finetune.reducers": (rlt.Config(tau=0.1),),
        "evaluate.reducers": (rlt.Config(tau=0.3),),
    }
    assert params_of(STUDY.plan(chosen), chosen) == {
        "reducer": "rlt",
        "tau": 0.3,
        "finetune.reducer": "rlt",
        "finetune.tau": 0.1,
    }


def test_whatever_else_was_chosen_is_named_by_its_path() -> None:
    chosen = {"evaluate.reducers": (), "evaluate.clip.frames": 8, "finetune.optim.lr": 0.1}
    params = params_of(STUDY.plan(chosen), chosen)
    assert params == {
        "reducer": "none",
        "finetune.reducer": "none",
        "evaluate.clip.frames": 8,
        "finetune.optim.lr": 0.1,
    }
