"""What may a trained model drop without any training, and what does it cost?

    paretoken run inference --model DIR --data VIDEOS

Every reduction that needs no training, and every two of them that go together, on your checkpoint
as it is: RLT, ToMe, vid-TLDR, the selections of Flux and of MATS, random drop, and shorter or
smaller clips. The papers' own settings come first. With labels the best accuracy for the cost is
sought; without them, how often a cheaper model says what the dense one says (`agreement`).

ToMe's 65 tokens a block are those of its paper at 1568 tokens a clip; here they are as large a
share of the clip. Flux' 0.5 is the first of its budgets below all tokens.
"""

from __future__ import annotations

import math
from typing import Any

from search_spaces.space import Domain, Space, chained, either, fix, narrow, together
from search_spaces.stage import Stage
from search_spaces.study import Study
from workloads import clips, evaluate, load
from workloads.knobs import Choice, Float, Int
from workloads.mistakes import Mistake
from workloads.models import videomae
from workloads.reducers import drop, flux, mats, rlt, tome, vid_tldr
from workloads.reducers.base import chain_of

NOBODY = load.Config(
    model=videomae.Config(size=64), clip=clips.Config(size=64), labels=load.placeholders(8)
)
"""What stands for the model until one is named; small, so that trying it out takes seconds."""
KEEP = Float(0.1, 0.9)
LEAST_LEFT = 0.1  # share of the tokens that ToMe leaves at its strongest
RUNGS = tuple(n / 32 for n in (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24))
"""Close to each other at the start, where most leave; measured in `orchestrator/race.py`."""
TOME_SHARE = 65 / 1568  # merged in a block, of a clip's tokens


def study(source: load.Config | None = None) -> Study:
    """Return the study of a checkpoint.

    Args:
        source: the model that is evaluated.
    """
    source = source or NOBODY
    if not source.labels:
        what = "--model: it has no head, so there is nothing to compare"
        raise Mistake(what, "give a classifier, or fine-tune it first: paretoken run rlt_tau")
    given = Stage(kind="load", config=source)
    measure = Stage(
        kind="evaluate",
        config=evaluate.Config(clip=source.clip, batch=16),
        inputs=(("weights", given),),
    )
    options = _legal(source) | _smaller(source)
    return Study(
        name="inference",
        question=str(__doc__).splitlines()[0],
        stages=(given, measure),
        space=Space({"evaluate": either(**options)}),
        first=tuple(asked for asked in _papers(source) if asked[0][1] in options),
        controls=("drop",),
        sampler="even",
        trials=200,
        rungs=RUNGS,
    )


def _tokens(source: load.Config) -> int:
    """Return the tokens of a sequence that attention sees."""
    host, clip = source.model.host(), source.clip
    times, height, width = host.grid_of(clip.frames, clip.size, clip.size)
    return height * width * (1 if host.per_frame else times)


def _most_merged(source: load.Config) -> int:
    return max(int((1 - LEAST_LEFT) * _tokens(source) / source.model.depth), 2)


def _legal(source: load.Config) -> dict[str, Domain]:
    """Return reductions and pairs of them that the host takes, by what they are called."""
    most = _most_merged(source)
    single = {
        "rlt": narrow(rlt.Config, tau=Float(0.01, 0.5, log=True)),
        "drop": narrow(drop.Config, keep=KEEP),
        "flux": narrow(flux.Config, keep=KEEP),
        "mats": narrow(mats.Config, keep=KEEP),
        "tome": narrow(tome.Config, r=Int(1, most), schedule=Choice(("constant", "decreasing"))),
        "vid_tldr": narrow(
            vid_tldr.Config, ratio=Float(0.05, 0.45), layers=Int(1, max(source.model.depth // 2, 1))
        ),
    }
    pairs = [(a, b) for i, a in enumerate(single) for b in list(single)[i + 1 :]]
    groups: list[tuple[str, ...]] = [*((name,) for name in single), *pairs]
    chains = {"_".join(names): chained(*(single[name] for name in names)) for names in groups}
    return {
        label: together({"reducers": chain})
        for label, chain in chains.items()
        if _is_legal(tuple(part.config() for part in chain.parts), source)
    }


def _is_legal(reducers: tuple[Any, ...], source: load.Config) -> bool:  # Any: Configs
    host, clip = source.model.host(source.reducers), source.clip
    try:
        chain_of(reducers, host).check(host.grid_of(clip.frames, clip.size, clip.size))
    except Mistake:
        return False
    return True


def _smaller(source: load.Config) -> dict[str, Domain]:
    """Return shorter and smaller clips without any reducer; they span the same time."""
    clip, patch = source.clip, source.model.patch
    least = math.ceil(clip.size / 2 / patch) * patch
    smaller: dict[str, Domain] = {"clip.size": Int(least, clip.size - patch, step=patch)}
    options: dict[str, Domain] = {}
    for frames in _lengths(clip.frames, source.model.tubelet):
        shorter: dict[str, Domain] = {"reducers": fix()}
        if frames < clip.frames:
            stride = fix(clip.stride * clip.frames / frames)
            shorter |= {"clip.frames": fix(frames), "clip.stride": stride}
            options[f"of_{frames}"] = together(shorter)
        if least < clip.size:
            options[f"of_{frames}_smaller"] = together(shorter | smaller)
    return {"clip": either(**options)} if options else {}


def _lengths(frames: int, tubelet: int) -> list[int]:
    """Return a clip's length, and half and a quarter of it, in whole tubelets."""
    return sorted({max(frames // part // tubelet, 1) * tubelet for part in (1, 2, 4)})[::-1]


def _papers(source: load.Config) -> list[tuple[tuple[str, Any], ...]]:  # Any: knobs
    """Return the settings of the papers, in the words of the sampler."""
    r = min(max(round(TOME_SHARE * _tokens(source)), 1), _most_merged(source))
    layers = min(2, max(source.model.depth // 2, 1))
    knobs: dict[str, dict[str, Any]] = {
        "rlt": {"tau": 0.1},
        "tome": {"r": r, "schedule": "constant"},
        "vid_tldr": {"ratio": 0.25, "layers": layers},
        "flux": {"keep": 0.5},
        "mats": {"keep": 0.6},
    }
    start = "evaluate.{0}.reducers.{0}.{1}"
    return [
        (("evaluate", name), *((start.format(name, knob), v) for knob, v in own.items()))
        for name, own in knobs.items()
    ]
