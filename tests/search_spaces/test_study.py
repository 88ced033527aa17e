"""A study as data: its plans, what they are called, and what is refused before any work starts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from variants import DIGEST, MEASURE, STUDY, TRAIN, measuring, study_of, training

from search_spaces import demo
from search_spaces.fit import with_field
from search_spaces.objectives import AGREEMENT, GMACS, TOP1
from search_spaces.space import Domain, Space, either, fix, narrow
from search_spaces.study import Stage, Study, params_of
from workloads import finetune
from workloads.datasets import synthetic
from workloads.knobs import Choice, Float, Int
from workloads.mistakes import Mistake
from workloads.reducers import drop, flux, inti, rlt, tome

RLT = (rlt.Config(tau=0.1),)
OTHER = replace(TOP1, name="top5", metric="val/top5")
EVALUATED = Space({"evaluate.reducers": narrow(rlt.Config, tau=Float(0.1, 0.4))})
REDUCED: dict[str, Any] = {"finetune.reducers": RLT, "evaluate.reducers": (rlt.Config(tau=0.3),)}


def test_the_plan_of_no_choice_is_the_dense_model_as_written() -> None:
    assert STUDY.plan({}) == MEASURE
    nothing = dict.fromkeys(REDUCED, ())
    assert STUDY.plan(nothing).key(DIGEST) == MEASURE.key(DIGEST)


def test_a_plan_has_what_was_chosen_in_every_stage() -> None:
    chosen = {**REDUCED, "evaluate.clip.frames": 8, "finetune.optim.lr": 0.1}
    train = training(reducers=chosen["finetune.reducers"], optim=replace(demo.TRAIN.optim, lr=0.1))
    clip = replace(demo.CLIP, frames=8)
    expected = measuring(*chosen["evaluate.reducers"], of=train, clip=clip)
    assert STUDY.plan(chosen) == expected
    assert [stage.kind for stage in STUDY.plan(chosen).chain()] == ["finetune", "evaluate"]


def test_plans_that_differ_in_evaluation_share_their_training() -> None:
    plans = [STUDY.plan(REDUCED | {"evaluate.reducers": chain}) for chain in ((), (drop.Config(),))]
    (first, last), (other_first, other_last) = (plan.chain() for plan in plans)
    assert first.key(DIGEST) == other_first.key(DIGEST)
    assert last.key(DIGEST) != other_last.key(DIGEST)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nothing", "workloads.finetune has no field 'nothing'"),
        ("", "workloads.finetune has no field ''"),
        ("clip.frame", "workloads.clips has no field 'frame'"),
    ],
)
def test_a_path_to_no_field_is_refused(path: str, words: str) -> None:
    with pytest.raises(Mistake, match=words):
        with_field(demo.TRAIN, path, 1)


@pytest.mark.parametrize("path", ["reducers.tau", "steps.most", "clip.frames.x"])
def test_a_path_into_what_has_no_fields_is_refused(path: str) -> None:
    with pytest.raises(Mistake, match=path.rsplit(".", 1)[-1]):
        with_field(demo.TRAIN, path, 1)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("reducers", 0.5, r"finetune.reducers cannot be 0.5\n  it is tuple\[.*Config, ...\]"),
        ("reducers", rlt.Config(), "cannot be Config"),
        ("clip.frames", (rlt.Config(),), "clips.frames cannot be .*\n  it is int"),
        ("clip.frames", 8.5, "cannot be 8.5"),
        ("clip.frames", True, "cannot be True"),
        ("precision", "float23", "cannot be 'float23'"),
        ("clip", demo.MODEL, "cannot be Config"),
    ],
)
def test_a_value_that_is_not_of_its_field_is_refused(path: str, value: Any, words: str) -> None:
    with pytest.raises(Mistake, match=words):
        with_field(demo.TRAIN, path, value)


def test_a_whole_number_is_a_real_one_too() -> None:
    assert with_field(demo.TRAIN, "clip.stride", 2).clip.stride == 2


def test_with_field_changes_one_field_and_leaves_the_config_alone() -> None:
    config = replace(demo.TRAIN)
    changed = with_field(config, "optim.betas", (0.5, 0.5))
    assert changed == replace(config, optim=replace(config.optim, betas=(0.5, 0.5)))
    assert config == demo.TRAIN


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trials": 0}, "trials=0 must be 1 or more"),
        ({"space": Space({"measure.reducers": fix()})}, "'measure.reducers' is of no stage"),
        ({"space": Space({"pretrain.reducers": fix()})}, r"\['finetune', 'evaluate'\]"),
        ({"name": "a/b"}, "name='a/b' is no plain word\n  it names a folder"),
        ({"name": ""}, "name='' is no plain word"),
        ({"name": ".."}, "is no plain word"),
        ({"objectives": (TOP1,)}, r"objectives=\(top1 \(max\)\)\n  one to raise and one to lower"),
        ({"objectives": (TOP1, GMACS, GMACS)}, "one to raise and one to lower"),
        ({"controls": ("drop", "dropp")}, "controls has 'dropp'\n  there are drop, frames"),
        ({"controls": ["drop"]}, r"controls=\['drop'\] can be changed\n  write \(...\)"),
        ({"stages": [*STUDY.stages]}, "stages=.* can be changed"),
        ({"space": Space({"finetune.optim.betas": fix([0, 1])})}, r"=\[0, 1\] can be changed"),
        (
            {"stages": (training(reducers=[]), measuring(of=training(reducers=[])))},
            r"stages\[0\].config.reducers=\[\] can be changed",
        ),
        ({"stages": (replace(TRAIN, kind="pretrain"), MEASURE)}, "kind 'pretrain' cannot run"),
        ({"stages": (replace(TRAIN, kind="evaluate"), MEASURE)}, "kind 'evaluate' cannot run"),
        ({"objectives": (AGREEMENT, GMACS)}, "agreement is with the dense model of a study that"),
        ({"rungs": (0.5,)}, "rungs, where finetune.reducers varies"),
        ({"rungs": (0.5, 0.25)}, "must rise between 0 and 1"),
        ({"rungs": (0.0, 0.25)}, "must rise between 0 and 1"),
        ({"rungs": (0.5, 1.0)}, "must rise between 0 and 1"),
        ({"rungs": [0.5]}, r"rungs=\[0.5\] can be changed"),
        (
            {"rungs": (0.5,), "space": EVALUATED, "objectives": (OTHER, GMACS)},
            r"rungs with objectives=\(top5, gmacs\)",
        ),
        (
            {"stages": (*STUDY.stages, replace(MEASURE, inputs=(("weights", MEASURE),)))},
            "an evaluation reads no weights",
        ),
    ],
)
def test_a_study_that_cannot_be_is_refused_when_written(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(Mistake, match=words):
        replace(STUDY, **changes)


def test_a_study_in_which_evaluation_alone_varies_may_have_rungs() -> None:
    raced = replace(STUDY, space=EVALUATED, rungs=(1 / 16, 1 / 4))
    assert raced.key(DIGEST) != replace(STUDY, space=EVALUATED).key(DIGEST)


def test_two_stages_of_one_kind_have_paths_of_their_own() -> None:
    first = replace(TRAIN, name="pretrain")
    second = replace(TRAIN, inputs=(("weights", first),))
    measure = replace(MEASURE, inputs=(("weights", second),))
    study = replace(STUDY, stages=(first, second, measure), space=Space({"pretrain.steps": fix(9)}))
    image, video, _ = study.plan({"pretrain.steps": 9, "finetune.reducers": RLT}).chain()
    assert (image.config, video.config) == (
        training(steps=9).config,
        training(reducers=RLT).config,
    )
    assert first.key(DIGEST) == TRAIN.key(DIGEST), "a name is no part of the work"
    chosen = {"pretrain.steps": 9, "finetune.reducers": RLT}
    assert params_of(study.plan(chosen), chosen) == {
        "reducer": "none",
        "finetune.reducer": "rlt",
        "finetune.tau": 0.1,
        "pretrain.reducer": "none",
        "pretrain.steps": 9,
    }


@pytest.mark.parametrize(
    "stage", [replace(TRAIN, name="image"), replace(TRAIN, name="evaluate")], ids=["new", "other"]
)
def test_a_stage_has_a_name_that_points_can_be_told_by(stage: Stage) -> None:
    with pytest.raises(Mistake, match="a stage of kind 'finetune' cannot be called"):
        replace(STUDY, stages=(stage, measuring(of=stage)), space=Space({}))


@pytest.mark.parametrize(
    "stages",
    [
        pytest.param((training(seed=1), MEASURE), id="an input of no stage of the study"),
        pytest.param((MEASURE, TRAIN), id="an input after its reader"),
        pytest.param((TRAIN,), id="no evaluation at the end"),
        pytest.param((replace(MEASURE, inputs=()),), id="an evaluation of nothing"),
        pytest.param((), id="no stages"),
    ],
)
def test_stages_that_do_not_make_a_study_are_refused(stages: tuple[Stage, ...]) -> None:
    with pytest.raises(Mistake):
        replace(STUDY, stages=stages, space=Space({})).check()


# What is refused before any work starts.


@pytest.mark.parametrize(
    ("study", "words"),
    [
        (
            study_of(TRAIN, rlt.Config(), tome.Config()),
            r"reducers=\(rlt, tome\): tome at block 0 needs the same number of tokens in every "
            r"clip, rlt leaves them ragged\n  legal here: rlt \| tome",
        ),
        (study_of(TRAIN, rlt.Config(), rlt.Config(tau=0.2)), "the same one twice"),
        (study_of(training(reducers=(rlt.Config(), tome.Config()))), "rlt leaves them ragged"),
        (study_of(TRAIN, rlt.Config(encode_length=True)), "this model has no length table"),
        (
            study_of(TRAIN, clip=replace(demo.CLIP, frames=15)),
            r"frames=15 must be a multiple of the tubelet \(2\)\n  choose 14 frames",
        ),
        (study_of(training(clip=replace(demo.CLIP, frames=7))), "choose 6 frames"),
        (study_of(TRAIN, clip=replace(demo.CLIP, size=44)), r"44x44 px .* patch \(8\)"),
        (study_of(TRAIN, rlt.Config(), clip=replace(demo.CLIP, frames=2)), "at least two"),
    ],
)
def test_a_study_that_cannot_run_is_refused_and_told_why(study: Study, words: str) -> None:
    with pytest.raises(Mistake, match=words):
        study.check()


@pytest.mark.parametrize(
    ("path", "domain", "words"),
    [
        ("evaluate.clip.frames", Int(8, 13), "frames=13"),
        ("evaluate.clip.size", Choice((40, 42)), "42x42 px"),
        ("evaluate.clip.frames", Int(8, 12), "frames=9 "),
        ("finetune.clip.size", either(a=fix(40), b=Int(32, 40)), "33x33 px"),
        ("evaluate.reducers", fix((1, 2)), "1 is no reducer"),
        ("evaluate.reducers", fix(tome.Config(), rlt.Config()), "rlt leaves them ragged"),
        ("evaluate.reducers", narrow(rlt.Config, encode_length=True), "no length table"),
        ("evaluate.nothing", fix(), "has no field 'nothing'"),
    ],
)
def test_what_a_search_would_come_to_is_checked_too(path: str, domain: Domain, words: str) -> None:
    with pytest.raises(Mistake, match=words):
        replace(STUDY, space=Space({path: domain})).check()


FLUX = fix(flux.Config(keep=0.5))


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"evaluate.reducers": FLUX, "evaluate.clip.frames": Int(4, 12, step=2)}, "flux: 3 frames"),
        (
            {
                "evaluate.reducers": narrow(inti.Config, halve_after=(1, 1), weights="mean"),
                "evaluate.clip.frames": either(all=fix(16), some=Int(8, 16, step=2)),
            },
            "inti: 5 frames .* cannot be halved 2 times",
        ),
        (
            {
                "evaluate.reducers": narrow(flux.Config, budget=Int(25, 200)),
                "evaluate.clip.frames": Int(4, 16, step=12),
            },
            "budget=200 is more than the 50 tokens",
        ),
    ],
)
def test_lengths_between_the_ends_are_checked_with_every_chain(
    space: dict[str, Domain], words: str
) -> None:
    with pytest.raises(Mistake, match=words):
        replace(STUDY, space=Space(space)).check()


@pytest.mark.parametrize(
    "other", [inti.Config(halve_after=(1, 2)), inti.Config(halve_after=(1,), scales=("point",))]
)
def test_networks_that_were_trained_for_something_else_are_refused(other: inti.Config) -> None:
    trained = inti.Config(halve_after=(1,))
    train = training(reducers=(trained,))
    for right in (trained, inti.Config(halve_after=(2,), weights="mean"), inti.Config.off()):
        study_of(train, right).check()
    with pytest.raises(Mistake, match=r"not what this model was trained with\n  .*same_as"):
        study_of(train, other).check()


def test_a_length_table_that_training_leaves_may_be_used() -> None:
    lengths = rlt.Config(encode_length=True)
    study_of(training(reducers=(lengths,)), lengths).check()


def test_clips_longer_than_the_length_table_are_refused() -> None:
    lengths, longer = rlt.Config(encode_length=True), replace(demo.CLIP, frames=32)
    with pytest.raises(Mistake, match="run lengths only up to 8"):
        study_of(training(reducers=(lengths,)), lengths, clip=longer).check()


# The same study in seconds.


def test_a_smoke_study_asks_the_same_of_less() -> None:
    small = STUDY.smoke()
    same = ("name", "question", "space", "objectives", "controls", "sampler", "seed")
    assert all(getattr(small, name) == getattr(STUDY, name) for name in same)
    assert small.trials == 2
    assert small.data == synthetic.Config(train=32, val=16, test=8, side=32, frames=8)
    train, measure = small.stages
    assert isinstance(train.config, finetune.Config)
    assert (train.config.steps, train.config.model.dim, train.config.model.depth) == (
        4,
        16,
        demo.MODEL.depth,
    )
    assert train.config.clip == measure.config.clip
    assert measure.inputs == (("weights", train),)
    assert small.smoke() == small
    assert small.key(DIGEST) != STUDY.key(DIGEST)


def test_a_smoke_study_keeps_how_its_model_and_training_are_made() -> None:
    small = STUDY.smoke().stages[0].config
    assert isinstance(small, finetune.Config)
    assert small.model == replace(demo.MODEL, dim=16, heads=2, patch=8, frames=8, size=32)
    assert (small.optim, small.augment) == (demo.TRAIN.optim, demo.TRAIN.augment)
