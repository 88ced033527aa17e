"""What does MATS keep in pre-training, fine-tuning and evaluation, and is its choice worth it?

    paretoken run mats_keep

A small VideoMAE, without the choices that let small models learn from nothing, is pre-trained by
masked reconstruction of the half of the tokens that MATS selects, once for all trials; fine-tuned
on all tokens or on those of MATS at 0.6 or 0.3; and evaluated under MATS. The clips are the moving
shapes of the demo, calmer and smaller: 64 tokens, of which few move.

Expected: fewer tokens are better, down to those that the shape itself covers, where fine-tuning saw
as few; random drop at equal tokens is near chance, as it drops the shape; a pre-training on random
tokens, exactly as many, is behind one on those of MATS.

Measured, top-1 on val (400 clips: standard error 2.4 points), one seed, 3 m 14 s on 2 cores; dense
is 0.0055 GMACs:

    fine-tuned   evaluated    MACs   top-1     pre-trained on     fine-tuned and evaluated
                                               random tokens      on random tokens
    mats 0.3     mats 0.33    0.44   0.618     0.698              0.105
    mats 0.6     mats 0.26    0.38   0.525     0.538              0.163
    mats 0.6     mats 0.10    0.28   0.490     0.508              0.115
    dense        dense        1.00   0.440

So its choice decides all in fine-tuning and evaluation, and loses in pre-training: there, random
tokens were as good or better. MACs stop falling below 0.28: all tokens are embedded before any is
chosen.

What pre-training itself is worth: top-1 after fine-tunings of so many steps, each with its whole
schedule, fine-tuned and evaluated under MATS at 0.3. Mean of 3 seeds [lowest, highest]; stages
`PRETRAIN` and `TRAIN` but for `seed`, `steps` and `reducers`, on the clips before compression:

    steps                       100               200               300               500
    from random weights    .18 [.15, .21]    .31 [.27, .39]    .48 [.41, .53]    .61 [.56, .65]
    pre-trained, mats      .26 [.20, .30]    .47 [.44, .49]    .55 [.55, .56]    .70 [.65, .76]
    pre-trained, random    .23 [.16, .27]    .43 [.39, .47]    .55 [.49, .62]    .72 [.68, .74]

A pre-trained model is after 200 steps where one from random weights is after 300. It is of no use
where most tokens are such as pre-training never saw: fine-tuned on all tokens for 500 steps, 0.35
against 0.54 from random weights (one seed). Nor with `embed_init="difference"`, which gives away
what motion looks like: 0.49 and 0.49 after 400 steps on the tokens of MATS (one seed).
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
    embed_init="xavier",
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
    steps=500,
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
