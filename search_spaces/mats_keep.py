"""What does MATS keep in pre-training, fine-tuning and evaluation, and is its choice worth it?

paretoken run mats_keep
"""

from __future__ import annotations

from search_spaces.space import Space, either, fix, narrow
from search_spaces.study import Stage, Study
from workloads import augment, clips, decoder, evaluate, finetune, optim, pretrain
from workloads.datasets import synthetic
from workloads.datasets.shapes import Look
from workloads.knobs import Float
from workloads.models import videomae
from workloads.reducers import mats

CLIP = clips.Config(frames=8, stride=1.0, size=32)
MODEL = videomae.Config(
    dim=48,
    depth=2,
    heads=2,
    patch=8,
    frames=8,
    size=32,
    pool="attention",
    positions="separable",
    embed_init="difference",
)
AUGMENT = augment.Config(shift=1)
PRETRAIN = pretrain.Config(
    model=MODEL,
    clip=CLIP,
    reducers=(mats.Config(keep=0.5),),
    visible_keep=0.15,
    decoder=decoder.Config(dim=32, depth=1, heads=2, positions="separable"),
    augment=AUGMENT,
    optim=optim.Config(lr=3e-3, betas=(0.9, 0.95)),
    steps=2000,
    batch=32,
)
TRAIN = finetune.Config(
    model=MODEL,
    clip=CLIP,
    augment=AUGMENT,
    optim=optim.Config(lr=3e-3, betas=(0.9, 0.98)),
    steps=400,
    batch=32,
)
CALM = Look(distractors=1, noise=(0.5, 1.5), shaking=0.0, waving=0.0)
DATA = synthetic.Config(train=1600, val=400, test=400, side=32, frames=8, look=CALM)


def study() -> Study:
    """Return the study."""
    learn = Stage(kind="pretrain", config=PRETRAIN)
    train = Stage(kind="finetune", config=TRAIN, inputs=(("weights", learn),))
    measure = Stage(
        kind="evaluate", config=evaluate.Config(clip=CLIP), inputs=(("weights", train),)
    )
    return Study(
        name="mats_keep",
        question=str(__doc__).splitlines()[0],
        stages=(learn, train, measure),
        space=Space(
            {
                "finetune.reducers": either(
                    none=fix(),
                    most=fix(mats.Config(keep=0.6)),
                    some=fix(mats.Config(keep=0.3)),
                ),
                "evaluate.reducers": narrow(mats.Config, keep=Float(0.1, 0.9)),
            }
        ),
        controls=("drop", "masking"),
        trials=12,
        data=DATA,
    )
