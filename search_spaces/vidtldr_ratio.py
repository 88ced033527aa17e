"""Is saliency worth it: vid-TLDR or plain ToMe, where both merge as much in the same blocks?

    paretoken run vidtldr_ratio        (one training, then evaluations alone)

A small dense model learns the moving shapes of `demo` (the same training, shared through the
store). It is then evaluated as it is: with vid-TLDR and with ToMe at the same knobs (share of the
tokens that a block merges, number of first blocks that do), and with random drop.

Expected before the run: ToMe level with vid-TLDR or ahead of it. Nothing pulls the attention of so
small a model towards what moves, and a still background that is averaged does less harm than one
that is dropped by a saliency that misses it; users of the official code found the same on large
models.

Measured, top-1 on val (400 clips, one model; standard error 1.7 points; dense 0.880), both at one
schedule, evaluated by hand, and the clips that only one of them gets right:

    blocks  ratio   MACs of dense   vid-TLDR   ToMe    only vid-TLDR : only ToMe
    1       0.3     0.75            0.883      0.880    1 : 0
    1       0.5     0.60            0.768      0.828    6 : 30
    2       0.4     0.57            0.878      0.880    2 : 3
    2       0.5     0.50            0.665      0.768   16 : 57
    3       0.3     0.65            0.883      0.883    1 : 1
    3       0.4     0.56            0.878      0.878    4 : 4
    3       0.5     0.48            0.628      0.710   24 : 57

So up to 0.4 saliency changes nothing and costs 1 % of the MACs (similarity of whole tokens instead
of mean keys); at 0.5, where moving tokens must merge too, plain ToMe wins by 6 to 10 points (by 4
to 10 on test), and random drop at as many MACs (about 0.78) is ahead of both in 2 or 3 blocks. On
the front both stand 5 points and more above random drop at equal tokens. Saliency does not mark
what moves here: its AUC against tubelets that change (RLT at 0.1) is 0.43, 0.44 and 0.43 in the
three blocks, below chance.
"""

from __future__ import annotations

from search_spaces.demo import CLIP, TRAIN
from search_spaces.space import Space, either, narrow
from search_spaces.study import Stage, Study
from workloads import evaluate
from workloads.datasets import synthetic
from workloads.knobs import Float, Int
from workloads.reducers import drop, tome, vid_tldr

RATIO, LAYERS = Float(0.05, 0.5), Int(1, 3)


def study() -> Study:
    """Return the study."""
    train = Stage(kind="finetune", config=TRAIN)
    measure = Stage(
        kind="evaluate", config=evaluate.Config(clip=CLIP), inputs=(("weights", train),)
    )
    return Study(
        name="vidtldr_ratio",
        question=str(__doc__).splitlines()[0],
        stages=(train, measure),
        space=Space(
            {
                "evaluate.reducers": either(
                    vid_tldr=narrow(vid_tldr.Config, ratio=RATIO, layers=LAYERS),
                    tome=narrow(tome.Config, ratio=RATIO, layers=LAYERS),
                    drop=narrow(drop.Config, keep=Float(0.3, 0.95)),
                ),
            }
        ),
        trials=30,
        data=synthetic.Config(),
    )
