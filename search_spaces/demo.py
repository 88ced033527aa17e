"""Which reduction keeps the accuracy of a small video transformer at a fraction of its cost?

    make demo        (about 4 minutes on 2 cores, nothing needed but this repository)

4 000 short clips of moving shapes, 8 classes that only motion tells apart. Two models are trained,
dense and with RLT; the search evaluates RLT, ToMe and random drop on both. A third, trained with
random drop at RLT's keep ratio, is the control of the trained points.

Calibrated over 3 seeds (weights, order, augmentation, draws; one data set), top-1 on val, 400
clips:

    trained      evaluated      MACs     mean   [lowest, highest]
    dense        dense          1.00     0.856  [0.843, 0.880]
    dense        rlt tau=0.1    0.21     0.863  [0.850, 0.888]
    dense        tome r=40      0.70     0.856  [0.840, 0.885]
    rlt tau=0.1  rlt tau=0.1    0.21     0.898  [0.893, 0.903]
    rlt tau=0.1  rlt tau=0.2    0.16     0.882  [0.873, 0.890]
    drop 0.25    drop 0.265     0.20     0.537  [0.448, 0.595]
    drop 0.25    drop 0.205     0.15     0.490  [0.395, 0.545]

So expect dense above 0.80, RLT level with it at a fifth of the MACs, and 30 points above random
drop at equal tokens. That RLT *beats* dense is not a claim: equal steps favour the model that sees
less.
"""

from __future__ import annotations

from search_spaces.space import Space, either, fix, narrow
from search_spaces.study import Stage, Study
from workloads import augment, clips, evaluate, finetune, optim
from workloads.datasets import synthetic
from workloads.knobs import Float, Int
from workloads.models import videomae
from workloads.reducers import drop, rlt, tome

CLIP = clips.Config(frames=16, stride=1.0, size=40)
MODEL = videomae.Config(
    dim=64,
    depth=3,
    heads=2,
    patch=8,
    size=40,
    pool="attention",
    positions="separable",
    embed_init="difference",
)
TRAIN = finetune.Config(
    model=MODEL,
    clip=CLIP,
    augment=augment.Config(shift=2),
    optim=optim.Config(lr=3e-3, betas=(0.9, 0.98)),
    steps=850,
    batch=32,
)


def study() -> Study:
    """Return the study."""
    train = Stage(kind="finetune", config=TRAIN)
    measure = Stage(
        kind="evaluate", config=evaluate.Config(clip=CLIP), inputs=(("weights", train),)
    )
    return Study(
        name="demo",
        question=str(__doc__).splitlines()[0],
        stages=(train, measure),
        space=Space(
            {
                "finetune.reducers": either(none=fix(), rlt=fix(rlt.Config(tau=0.1))),
                "evaluate.reducers": either(
                    rlt=narrow(rlt.Config, tau=Float(0.02, 0.4, log=True)),
                    tome=narrow(tome.Config, r=Int(10, 70)),
                    drop=narrow(drop.Config, keep=Float(0.1, 0.9)),
                ),
            }
        ),
        trials=24,
        data=synthetic.Config(),
    )
