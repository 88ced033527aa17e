"""A race of seconds for tests that run the whole way: random weights, twelve evaluations.

paretoken run tests/orchestrator/raced.py --store STORE
"""

from __future__ import annotations

from search_spaces.objectives import AGREEMENT, GMACS
from search_spaces.space import Space, either, narrow
from search_spaces.study import Stage, Study
from workloads import clips, evaluate, load
from workloads.datasets import synthetic
from workloads.knobs import Float
from workloads.models import videomae
from workloads.reducers import drop, rlt

CLIP = clips.Config(frames=8, stride=1.0, size=32)
DATA = synthetic.Config(train=8, val=128, test=8, side=32, frames=8)
MODEL = videomae.Config(dim=16, depth=2, heads=2, patch=8, frames=8, size=32)


def study() -> Study:
    """Return what a model that learned nothing makes of fewer tokens."""
    model = Stage(kind="load", config=load.Config(model=MODEL, clip=CLIP, labels=DATA.classes))
    measure = Stage(
        kind="evaluate", config=evaluate.Config(clip=CLIP), inputs=(("weights", model),)
    )
    space = either(
        rlt=narrow(rlt.Config, tau=Float(0.02, 2.0, log=True)),
        drop=narrow(drop.Config, keep=Float(0.05, 0.9)),
    )
    return Study(
        name="raced",
        question="Which reduction agrees with the dense model?",
        stages=(model, measure),
        space=Space({"evaluate.reducers": space}),
        objectives=(AGREEMENT, GMACS),
        controls=("drop",),
        sampler="even",
        trials=12,
        rungs=(1 / 8, 1 / 4, 1 / 2),
        data=DATA,
    )
