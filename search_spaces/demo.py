"""Which reduction keeps the accuracy of a small video transformer at a fraction of its cost?

    make demo        (about 4 minutes on 2 cores, nothing needed but this repository)

4 000 short clips of moving shapes, 8 classes that only motion tells apart. Two models are trained,
dense and with RLT; the search evaluates RLT, ToMe and random drop on both. A third, trained with
random drop at RLT's keep ratio, is the control of the trained points.
"""

from __future__ import annotations

from search_spaces.space import Space, either, fix, narrow
from search_spaces.study import Stage, Study
from workloads import augment, clips, evaluate, finetune, optim
from workloads.datasets import synthetic
from workloads.knobs import Float, Int
from workloads.models import videomae
from workloads.reducers import drop, rlt, tome


def study() -> Study:
    """Return the study."""
    clip = clips.Config(frames=16, stride=1.0, size=40)
    train = Stage(
        kind="finetune",
        config=finetune.Config(
            model=videomae.Config(
                dim=64,
                depth=3,
                heads=2,
                patch=8,
                size=40,
                pool="attention",
                positions="separable",
                embed_init="difference",
            ),
            clip=clip,
            augment=augment.Config(shift=2),
            optim=optim.Config(lr=3e-3, betas=(0.9, 0.98)),
            steps=700,
            batch=32,
        ),
    )
    measure = Stage(
        kind="evaluate", config=evaluate.Config(clip=clip), inputs=(("weights", train),)
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
