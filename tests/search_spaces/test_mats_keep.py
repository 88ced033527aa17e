"""A study of three stages: what is shared, what is named, and what is refused before any work."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from variants import DIGEST

from search_spaces import mats_keep
from search_spaces.space import Space, fix
from search_spaces.study import Stage, Study, params_of
from workloads import decoder, mae, pretrain
from workloads.mistakes import Mistake
from workloads.models import clip
from workloads.reducers import drop, mats, rlt, tome

STUDY = mats_keep.study()
LEARN, TRAIN, MEASURE = STUDY.stages


def study_of(learn: Stage = LEARN, train: Stage = TRAIN, **space: Any) -> Study:
    """Return the study with other trainings, and nothing to search but what is given."""
    train = replace(train, inputs=(("weights", learn),))
    measure = replace(MEASURE, inputs=(("weights", train),))
    return replace(STUDY, stages=(learn, train, measure), space=Space(space))


def changed(stage: Stage, **changes: Any) -> Stage:
    return replace(stage, config=replace(stage.config, **changes))


def test_one_pretraining_is_shared_by_all_that_differs_only_later() -> None:
    plans = [STUDY.plan(chosen) for chosen in ({}, *STUDY.space.examples())]
    stages = {stage.key(DIGEST): stage.kind for plan in plans for stage in plan.chain()}
    kinds = [*stages.values()]
    assert kinds.count("pretrain") == 1
    assert 1 < kinds.count("finetune") < kinds.count("evaluate") == len({*plans})


def test_another_pretraining_is_other_work_all_the_way() -> None:
    other = STUDY.plan({"pretrain.reducers": (drop.Config(keep=0.3),)})
    keys, others = ([s.key(DIGEST) for s in plan.chain()] for plan in (STUDY.plan({}), other))
    assert len(keys) == 3
    assert not {*keys} & {*others}


@pytest.mark.parametrize("module", [pretrain, mae, decoder, mats])
def test_a_module_that_pretrains_otherwise_renames_what_goes_through_it(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [stage.key(DIGEST) for stage in STUDY.stages]
    monkeypatch.setattr(module, "REVISION", module.REVISION + 1)
    after = [stage.key(DIGEST) for stage in STUDY.stages]
    assert all(key != other for key, other in zip(before, after, strict=True))


def test_a_point_is_named_by_what_each_stage_kept() -> None:
    plan = STUDY.plan(
        {
            "finetune.reducers": (mats.Config(keep=0.6),),
            "evaluate.reducers": (mats.Config(keep=0.4),),
        }
    )
    assert params_of(plan, {}) == {
        "reducer": "mats",
        "keep": 0.4,
        "finetune.reducer": "mats",
        "finetune.keep": 0.6,
        "pretrain.reducer": "mats",
        "pretrain.keep": 0.5,
    }


def test_in_small_all_three_stages_shrink_together() -> None:
    learn, train, measure = STUDY.smoke().stages
    assert isinstance(learn.config, pretrain.Config)
    assert (learn.config.steps, learn.config.batch, learn.config.decoder.dim) == (4, 8, 12)
    assert learn.config.model == train.config.model
    assert learn.config.reducers == LEARN.config.reducers
    assert train.inputs == (("weights", learn),)
    assert measure.inputs == (("weights", train),)
    STUDY.smoke().check()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("dim", 32, r"has dim=32 \(48\)\n  the stages that pass weights on must have the same"),
        ("depth", 1, r"has depth=1 \(2\)"),
        ("patch", 4, r"has patch=4 \(8\)"),
        ("mlp_ratio", 2.0, r"blocks.0.mlp.fc1.weight is \(96, 48\) .*, and \(192, 48\) before"),
        ("qv_bias", False, r"blocks.0.attn.q_bias is None .*, and \(48,\) before"),
    ],
)
def test_a_fine_tuning_of_another_model_is_refused(field: str, value: int, words: str) -> None:
    model = replace(TRAIN.config.model, **{field: value})
    with pytest.raises(Mistake, match=words):
        study_of(train=changed(TRAIN, model=model)).check()
    with pytest.raises(Mistake, match=words):
        study_of(**{f"finetune.model.{field}": fix(value)}).check()


def test_a_fine_tuning_may_pool_otherwise_and_see_longer_clips() -> None:
    study_of(train=changed(TRAIN, model=replace(TRAIN.config.model, pool="mean"))).check()
    study_of(train=changed(TRAIN, model=replace(TRAIN.config.model, frames=16))).check()


def test_learned_positions_of_another_grid_are_refused() -> None:
    image = clip.Config(dim=48, depth=2, heads=2, patch=8, frames=1, size=32)
    video = replace(image, frames=8, adapters="space_time")
    first = replace(changed(TRAIN, model=image), inputs=(), name="pretrain")
    study_of(first, changed(TRAIN, model=video)).check()
    with pytest.raises(Mistake, match=r"positions.table is \(25, 48\) .*, and \(16, 48\) before"):
        study_of(first, changed(TRAIN, model=replace(video, size=40))).check()


def test_a_pretraining_with_another_decoder_cannot_go_on() -> None:
    other = changed(LEARN, decoder=decoder.Config(dim=24, heads=2))
    again = replace(other, inputs=(("weights", LEARN),))
    train = replace(TRAIN, inputs=(("weights", again),))
    measure = replace(MEASURE, inputs=(("weights", train),))
    with pytest.raises(Mistake, match=r"weights: decoder.mask_token is .24,. where they are read"):
        replace(STUDY, stages=(LEARN, again, train, measure), space=Space({})).check()


@pytest.mark.parametrize(
    ("reducers", "words"),
    [
        ((tome.Config(r=4),), "pretrain: reducers: tome acts in block 0"),
        ((rlt.Config(), mats.Config()), "mats at block 0 needs the full grid"),
        (
            (mats.Config(alpha=4.0),),
            "mats: 1 tubelet of 2 frames has none before it\n  show 16 frames",
        ),
    ],
)
def test_a_pretraining_that_cannot_run_is_refused(reducers: Any, words: str) -> None:
    with pytest.raises(Mistake, match=words):
        study_of(changed(LEARN, reducers=reducers)).check()


@pytest.mark.parametrize("reducers", [(), (drop.Config(),), (rlt.Config(encode_length=True),)])
def test_other_selections_may_stand_in_its_place(reducers: Any) -> None:
    study_of(changed(LEARN, reducers=reducers)).check()


def test_an_evaluation_of_a_pretraining_is_refused() -> None:
    measure = replace(MEASURE, inputs=(("weights", LEARN),))
    with pytest.raises(Mistake, match="an evaluation reads no weights of a finetune"):
        replace(STUDY, stages=(LEARN, measure), space=Space({}))


def test_a_pretraining_goes_on_only_from_another_one() -> None:
    train = replace(TRAIN, inputs=())
    again = replace(LEARN, inputs=(("weights", train),))
    with pytest.raises(Mistake, match="a pretrain reads weights of a finetune"):
        replace(STUDY, stages=(train, again, replace(MEASURE, inputs=(("weights", train),))))
