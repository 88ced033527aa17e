"""Where may a trained model halve its frames, and does it matter how two of them become one?

    paretoken run inti_halvings

The dense model of the demo (the same stage, trained once for both) is frozen. Every trial adds
halvings to it and learns what is added: the networks of InTI, the pool and the head. Three ways of
making one frame of two, at three places of 3 blocks each, evaluated as they were trained:

    halve_after    blocks see         softmax  InTI-style weights
    1              8 4 4 tubelets     mean     the plain mean of each pair
    2              8 8 4              first    every second one is dropped
    1+2            8 4 2

Mean and first are the controls, at the same MACs but for the networks' share: they stand in the
space. The host has joint attention, so a halving saves more than its share of the tokens.

Expected, before anything was run: InTI level with the mean or a little above it, the mean above
dropping, and within a point of no halving where blocks cost 37.5 % less.

Measured with the command above, top-1 on val (400 clips, one seed: 2 points of standard error), 7
minutes on 2 busy cores. Dense 88.8 at 0.0498 GMACs; random drop at InTI's tokens is trained alike:

    halve_after    GMACs            softmax    mean    first    drop (GMACs)
    2              0.041  ( 83 %)   87.8       79.5    82.8     87.5 (0.039)
    1              0.032  ( 65 %)   87.2       68.2    78.5     81.5 (0.030)
    1+2            0.029  ( 58 %)   86.0       58.0    66.2     79.2 (0.025)

So InTI is ahead of both controls, by far where frames are halved early, and within 3 points of
dense. Against what was expected, dropping is ahead of the mean. Read it with care: behind a frozen
backbone the networks are all that can adapt inside of it, and the controls have none. At one late
halving random drop does as well.

Not on the host of frames (`models/clip.py`), for which the method was made: it needs an image model
to begin with, and these clips hold no label for images. Trained from nothing on them it stayed at
chance (12.5 % of 8 classes) in 300 steps, per frame and with attention over time.
"""

from __future__ import annotations

from dataclasses import replace

from search_spaces.demo import CLIP, TRAIN
from search_spaces.space import Space, either, narrow, same_as
from search_spaces.study import Stage, Study
from workloads import evaluate
from workloads.datasets import synthetic
from workloads.knobs import Choice
from workloads.reducers import inti

ADAPT = replace(TRAIN, train="added", steps=200)
AFTER = Choice(((1,), (2,), (1, 2)), stage="finetune")


def study() -> Study:
    """Return the study."""
    dense = Stage(kind="finetune", name="pretrain", config=TRAIN)
    adapt = Stage(kind="finetune", config=ADAPT, inputs=(("weights", dense),))
    measure = Stage(
        kind="evaluate", config=evaluate.Config(clip=CLIP), inputs=(("weights", adapt),)
    )
    return Study(
        name="inti_halvings",
        question=str(__doc__).splitlines()[0],
        stages=(dense, adapt, measure),
        space=Space(
            {
                "finetune.reducers": either(
                    softmax=narrow(inti.Config, halve_after=AFTER),
                    mean=narrow(inti.Config, halve_after=AFTER, weights="mean"),
                    first=narrow(inti.Config, halve_after=AFTER, weights="first"),
                ),
                "evaluate.reducers": same_as("finetune.reducers"),
            }
        ),
        controls=("drop",),
        sampler="even",
        trials=10,
        data=synthetic.Config(),
    )
