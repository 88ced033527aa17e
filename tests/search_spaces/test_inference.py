"""Studies of a model from outside: what is searched on it, and trainings that start from it."""

from __future__ import annotations

from dataclasses import replace

import pytest

import search_spaces
from search_spaces import flux_budget, inference, mats_keep, rlt_tau
from search_spaces.space import Either
from search_spaces.study import Study
from workloads import clips, decoder, finetune, load
from workloads.mistakes import Mistake
from workloads.models import clip, fluxvit, videomae
from workloads.reducers import rlt

SHOWN = clips.Config(frames=16, size=64)
SMALL = videomae.Config(dim=24, depth=4, heads=2, patch=16, frames=16, size=64)
GIVEN = load.Config(model=SMALL, clip=SHOWN, labels=("run", "jump"), digest="ab")


def options_of(study: Study) -> set[str]:
    ((_, domain),) = study.space.domains
    assert isinstance(domain, Either)
    return {label for label, _ in domain.options}


def test_everything_that_needs_no_training_is_searched_on_a_videomae() -> None:
    study = inference.study(GIVEN)
    study.check()
    alone = {"rlt", "drop", "flux", "mats", "tome", "vid_tldr", "clip"}
    pairs = {"rlt_drop", "drop_tome", "drop_vid_tldr"}
    pairs |= {"flux_tome", "flux_vid_tldr", "mats_tome", "mats_vid_tldr"}
    assert options_of(study) == alone | pairs


def test_a_host_with_attention_per_frame_has_the_chains_that_it_can_take() -> None:
    host = clip.Config(dim=24, depth=2, heads=2, patch=16, size=64)
    study = inference.study(load.Config(model=host, clip=SHOWN, labels=("a", "b"), digest="ab"))
    study.check()
    assert "flux_tome" not in options_of(study)
    assert {"tome", "vid_tldr", "clip"} <= options_of(study)


def test_the_papers_own_settings_are_tried_first() -> None:
    usual = load.Config(model=videomae.Config(), clip=clips.Config(), labels=("a",), digest="ab")
    study = inference.study(usual)
    plans = [study.plan(study.space.answer(dict(asked))) for asked in study.first]
    shown = [[str(one) for one in plan.config.reducers] for plan in plans]
    assert shown[0] == [str(rlt.Config(tau=0.1))]
    assert "r=65" in shown[1][0]


def test_an_answer_that_cannot_be_is_refused_when_the_study_is_checked() -> None:
    study = inference.study(GIVEN)
    start = "evaluate.rlt.reducers.rlt.tau"
    wrong = {
        "first has no 'evaluate.rlt": (("evaluate", "rlt"),),
        "tau=9": (("evaluate", "rlt"), (start, 9.0)),
        "evaluate='sleep'": (("evaluate", "sleep"),),
    }
    for words, asked in wrong.items():
        with pytest.raises(Mistake, match=words):
            replace(study, first=(asked,)).check()


def test_a_model_without_a_head_has_nothing_to_compare() -> None:
    with pytest.raises(Mistake, match="--model: it has no head"):
        inference.study(replace(GIVEN, labels=()))


def test_clips_without_labels_are_judged_by_the_dense_model() -> None:
    assert [o.name for o in inference.study(GIVEN).unlabelled().objectives] == [
        "agreement",
        "gmacs",
    ]


def test_a_study_says_whether_it_lacks_a_model() -> None:
    assert inference.study().lacks_model
    assert not inference.study(GIVEN).lacks_model
    assert not rlt_tau.study().lacks_model
    tried_out = replace(GIVEN, digest="", labels=("a", "b"))  # random weights, for two classes
    assert not inference.study(tried_out).lacks_model


def test_trainings_start_from_the_checkpoint_with_its_clips() -> None:
    study = search_spaces.load("rlt_tau", GIVEN)
    study.check()
    given, train, measure = study.stages
    assert isinstance(train.config, finetune.Config)
    assert dict(train.inputs) == {"weights": given}
    assert train.config.model == SMALL
    assert {stage.config.clip.size for stage in (train, measure)} == {64}
    assert train.config.clip.stride == rlt_tau.CLIP.stride


def test_a_pre_training_needs_the_decoder() -> None:
    with pytest.raises(Mistake, match="no decoder, and 'mats_keep' pre-trains"):
        search_spaces.load("mats_keep", GIVEN)
    whole = replace(GIVEN, labels=(), decoder=decoder.Config(dim=12, depth=1, heads=2))
    study = search_spaces.load(
        "mats_keep", replace(whole, clip=mats_keep.study().stages[0].config.clip)
    )
    assert study.stages[0].config == replace(whole, clip=study.stages[0].config.clip)


def test_a_study_of_another_host_is_refused() -> None:
    assert isinstance(flux_budget.study().stages[0].config, finetune.Config)
    with pytest.raises(Mistake, match="a videomae, but 'flux_budget' starts from a fluxvit"):
        search_spaces.load("flux_budget", GIVEN)
    other = load.Config(model=fluxvit.Config(), clip=SHOWN, labels=("a", "b"), digest="ab")
    with pytest.raises(Mistake, match="a fluxvit, but 'rlt_tau' starts from a videomae"):
        search_spaces.load("rlt_tau", other)
