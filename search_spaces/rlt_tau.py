"""Which threshold for RLT on your own clips, and is it worth training with it?

    paretoken run rlt_tau --data YOUR_VIDEOS

A small model learns your classes from random weights, once dense and once with RLT at the paper's
0.1; tau is searched at evaluation on both. Expect a flat front on static cameras (most tubelets
repeat) and a steep one on handheld clips. A model of this size is a probe of your footage, not a
good classifier: on a few hundred clips its accuracy is modest, and its front says where redundancy
ends, not how good a large model would be.
"""

from __future__ import annotations

from search_spaces.space import Space, either, fix, narrow
from search_spaces.study import Stage, Study
from workloads import augment, clips, evaluate, finetune, optim
from workloads.knobs import Float
from workloads.models import videomae
from workloads.reducers import rlt

CLIP = clips.Config(frames=16, stride=3.0, size=64)
MODEL = videomae.Config(
    dim=96,
    depth=4,
    heads=3,
    patch=8,
    size=64,
    pool="attention",
    positions="separable",
    embed_init="difference",
)
TRAIN = finetune.Config(
    model=MODEL,
    clip=CLIP,
    augment=augment.Config(crop=0.8, flip=0.5),
    optim=optim.Config(lr=1e-3, betas=(0.9, 0.98)),
    steps=200,
    batch=16,
    label_smoothing=0.1,
)


def study() -> Study:
    """Return the study."""
    train = Stage(kind="finetune", config=TRAIN)
    measure = Stage(
        kind="evaluate", config=evaluate.Config(clip=CLIP), inputs=(("weights", train),)
    )
    return Study(
        name="rlt_tau",
        question=str(__doc__).splitlines()[0],
        stages=(train, measure),
        space=Space(
            {
                "finetune.reducers": either(none=fix(), rlt=fix(rlt.Config(tau=0.1))),
                "evaluate.reducers": narrow(rlt.Config, tau=Float(0.02, 0.5, log=True)),
            }
        ),
        trials=16,
    )
