"""What a space asks, in which order, and what it makes of the answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FixedTrial

from search_spaces import demo
from search_spaces.space import Domain, Space, either, fix, narrow, same_as, together
from workloads import optim
from workloads.knobs import Choice, Float, Int
from workloads.mistakes import Mistake
from workloads.reducers import drop, rlt, tome

PATH = "evaluate.reducers"
CONDITIONAL = Space(
    {
        "finetune.reducers": either(none=fix(), rlt=fix(rlt.Config(tau=0.1))),
        PATH: either(
            rlt=narrow(rlt.Config, tau=Float(0.02, 0.4, log=True)),
            tome=narrow(tome.Config, r=Int(10, 70), schedule=Choice(("constant", "decreasing"))),
            dense=fix(),
        ),
    }
)


def one(domain: Domain, **answers: Any) -> Any:
    """Return what a space of one domain makes of answers, named without their path."""
    asked = {f"{PATH}{'.' if name else ''}{name}": value for name, value in answers.items()}
    return Space({PATH: domain}).suggest(FixedTrial(asked))[PATH]


def asked_by(space: Space, **answers: Any) -> list[str]:
    """Return the names that a space asks for, in order."""
    trial = FixedTrial(answers)
    space.suggest(trial)
    return list(trial.distributions)


def test_fix_is_a_chain_of_its_configs_and_asks_nothing() -> None:
    assert one(fix()) == ()
    assert one(fix(rlt.Config(), drop.Config(keep=0.3))) == (rlt.Config(), drop.Config(keep=0.3))


def test_narrow_asks_the_ranges_and_keeps_the_rest_as_given_or_usual() -> None:
    domain = narrow(tome.Config, r=Int(4, 8), schedule="decreasing")
    assert one(domain, r=6) == (tome.Config(r=6, schedule="decreasing"),)
    assert one(narrow(rlt.Config, encode_length=True)) == (rlt.Config(encode_length=True),)


def test_only_reducers_stand_in_a_chain() -> None:
    assert one(narrow(optim.Config, lr=Float(1e-3, 1e-2)), lr=2e-3) == optim.Config(lr=2e-3)
    assert one(fix(optim.Config())) == optim.Config()
    assert one(fix((0.9, 0.98))) == (0.9, 0.98)


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        (Float(0.1, 0.9), FloatDistribution(0.1, 0.9)),
        (Float(0.1, 0.9, log=True), FloatDistribution(0.1, 0.9, log=True)),
        (Int(1, 64), IntDistribution(1, 64)),
        (Int(8, 16, step=4), IntDistribution(8, 16, step=4)),
        (Choice((True, "both", 3)), CategoricalDistribution((True, "both", 3))),
        (Choice(((3,), (4, 8))), CategoricalDistribution(("3", "4+8"))),
        (either(a=fix(), b=fix(rlt.Config())), CategoricalDistribution(("a", "b"))),
    ],
)
def test_a_domain_is_asked_as_it_was_written(domain: Domain, expected: BaseDistribution) -> None:
    trial = optuna.create_study().ask()
    Space({PATH: domain}).suggest(trial)
    assert trial.distributions == {PATH: expected}


def test_a_tuple_is_asked_by_its_word_and_comes_out_as_it_is() -> None:
    assert one(Choice(((3,), (4, 8))), **{"": "4+8"}) == (4, 8)


@pytest.mark.parametrize(
    ("label", "knobs", "expected"),
    [
        ("rlt", {"rlt.tau": 0.3}, (rlt.Config(tau=0.3),)),
        (
            "tome",
            {"tome.r": 20, "tome.schedule": "decreasing"},
            (tome.Config(r=20, schedule="decreasing"),),
        ),
        ("dense", {}, ()),
    ],
)
def test_only_the_knobs_of_the_chosen_option_are_asked(
    label: str, knobs: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    answers = {"finetune.reducers": "rlt", PATH: label}
    answers |= {f"{PATH}.{name}": value for name, value in knobs.items()}
    assert CONDITIONAL.suggest(FixedTrial(answers)) == {
        "finetune.reducers": (rlt.Config(tau=0.1),),
        PATH: expected,
    }
    assert asked_by(CONDITIONAL, **answers) == list(answers)


def test_options_may_have_options() -> None:
    nested = either(off=fix(), on=either(weak=narrow(drop.Config, keep=Float(0.5, 0.9)), no=fix()))
    answers = {PATH: "on", f"{PATH}.on": "weak", f"{PATH}.on.weak.keep": 0.7}
    assert Space({PATH: nested}).suggest(FixedTrial(answers))[PATH] == (drop.Config(keep=0.7),)


def test_same_as_takes_the_value_of_the_other_path_and_asks_nothing() -> None:
    frames = "finetune.clip.frames"
    space = Space({frames: Int(8, 16), "evaluate.clip.frames": same_as(frames)})
    assert space.suggest(FixedTrial({frames: 12})) == {frames: 12, "evaluate.clip.frames": 12}
    assert asked_by(space, **{frames: 12}) == [frames]


def test_an_option_may_be_the_tie_to_another_path() -> None:
    tied = either(tied=same_as("finetune.reducers"), free=fix())
    space = Space({"finetune.reducers": fix(rlt.Config()), PATH: tied})
    assert space.suggest(FixedTrial({PATH: "tied"}))[PATH] == (rlt.Config(),)


def test_a_field_that_is_no_chain_can_be_fixed() -> None:
    assert Space({"evaluate.clip.frames": fix(8)}).suggest(FixedTrial({})) == {
        "evaluate.clip.frames": 8
    }


def test_whole_numbers_are_all_named_wherever_they_stand() -> None:
    free = either(few=Int(2, 6, step=2), many=Int(1, 5000), other=fix(3))
    space = Space({"evaluate.clip.frames": free, "evaluate.clip.size": Int(8, 9)})
    assert [*space.numbers()] == [
        *(("evaluate.clip.frames.few", "evaluate.clip.frames", n) for n in (2, 4, 6)),
        *(("evaluate.clip.size", "evaluate.clip.size", n) for n in (8, 9)),
    ]


def test_examples_with_a_number_have_it_where_it_is_asked_for_alone() -> None:
    free = either(few=Int(2, 6, step=2), other=fix(3))
    space = Space(
        {"evaluate.clip.frames": free, "finetune.clip.frames": same_as("evaluate.clip.frames")}
    )
    frames = [tuple(one.values()) for one in space.examples({"evaluate.clip.frames.few": 4})]
    assert frames == [(4, 4), (3, 3), (4, 4), (3, 3)]


def test_examples_are_every_combination_of_options_at_both_ends_of_ranges() -> None:
    trained = ((), (rlt.Config(tau=0.1),))
    evaluated = [
        *(rlt.Config(tau=tau) for tau in (0.02, 0.4)),
        *(tome.Config(r=r, schedule=s) for r in (10, 70) for s in ("constant", "decreasing")),
    ]
    chains = [(), *((config,) for config in evaluated)]
    examples = [(e["finetune.reducers"], e[PATH]) for e in CONDITIONAL.examples()]
    assert {*examples} == {*product(trained, chains)}
    assert len(examples) == 2 * (2 * 4)  # at each end: two trainings, and one, two or one chain


def test_the_high_end_of_a_range_with_steps_is_its_last_step() -> None:
    space = Space({"evaluate.clip.frames": Int(8, 15, step=4)})
    assert [*space.examples()] == [{"evaluate.clip.frames": frames} for frames in (8, 12)]


@pytest.mark.parametrize(
    ("domains", "words"),
    [
        (lambda: {PATH: same_as("finetune.reducers")}, "'finetune.reducers', which is not before"),
        (lambda: {PATH: same_as(PATH)}, "put the other path first"),
        (
            lambda: {PATH: same_as("finetune.reducers"), "finetune.reducers": fix()},
            "evaluate.reducers is tied to 'finetune.reducers'",
        ),
        (
            lambda: {PATH: narrow(tome.Config, tau=Float(0, 1))},
            r"workloads.reducers.tome has no knob 'tau'\n  it has r, schedule",
        ),
        (
            lambda: {PATH: narrow(rlt.Config, encode_length=Choice((True, False)))},
            "no knob 'encode_length'",
        ),
        (
            lambda: {PATH: narrow(rlt.Config, tua=0.1)},
            "no field 'tua'\n  it has tau, encode_length",
        ),
        (lambda: {PATH: narrow(rlt.Config, tau=fix(0.1))}, "rlt.tau cannot be fixed\n  give a va"),
        (lambda: {PATH: narrow(rlt.Config())}, "is no class of Configs"),  # type: ignore[arg-type]
        (lambda: {PATH: either(tied=same_as("finetune.reducers"))}, "which is not before it"),
        (lambda: {PATH: either(a=8)}, r"evaluate.reducers has 8, which .*\n  write fix\(8\)"),  # type: ignore[arg-type]
        (lambda: {PATH: fix(1, 2)}, r"fix\(1, 2\) is no chain"),
        (lambda: {PATH: narrow(rlt.Config, tau=Float(-0.5, 0.4))}, "tau=-0.5 must be 0 or more"),
        (lambda: {PATH: narrow(drop.Config, keep=Float(0.1, 1.5))}, "keep=1.5 must be in"),
        (lambda: {PATH: narrow(tome.Config, schedule=Choice(("odd",)))}, "schedule='odd'"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused_in_words(
    domains: Callable[[], dict[str, Domain]], words: str
) -> None:
    with pytest.raises(Mistake, match=words):
        list(Space(domains()).examples())


@pytest.mark.parametrize(
    "domain",
    [
        pytest.param(lambda: narrow(rlt.Config, tua=0.1), id="value for no field"),
        pytest.param(lambda: narrow(rlt.Config, tau=either(a=fix())), id="option for a knob"),
        pytest.param(lambda: narrow(rlt.Config, tau=Float(0.4, 0.02)), id="upside down"),
        pytest.param(lambda: narrow(rlt.Config, tau=Float(0, 0.4, log=True)), id="log from 0"),
        pytest.param(lambda: narrow(tome.Config, r=Int(10, 4)), id="whole, upside down"),
        pytest.param(lambda: narrow(tome.Config, r=Int(1, 64, step=0)), id="steps of nothing"),
        pytest.param(lambda: Choice(()), id="choice of nothing"),
        pytest.param(lambda: either(), id="either of nothing"),
        pytest.param(lambda: (rlt.Config(),), id="value without fix"),
        pytest.param(lambda: Float(0, 1), id="number for a chain"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_any_work(domain: Callable[[], Any]) -> None:
    with pytest.raises(Mistake):
        replace(demo.study(), space=Space({PATH: domain()})).check()


# Fields that only fit each other.

PAIRED = Space(
    {
        "evaluate": either(
            long=together(
                {
                    "reducers": narrow(drop.Config, keep=Float(0.2, 0.4)),
                    "clip.frames": fix(16),
                    "head": either(own=fix(1), other=fix(0)),
                }
            ),
            short=together({"reducers": fix(), "clip.frames": Int(4, 8, step=2)}),
        )
    }
)


def test_fields_that_stand_together_are_chosen_together() -> None:
    answers = {"evaluate": "long", "evaluate.long.reducers.keep": 0.3}
    assert PAIRED.suggest(FixedTrial({**answers, "evaluate.long.head": "own"})) == {
        "evaluate.reducers": (drop.Config(keep=0.3),),
        "evaluate.clip.frames": 16,
        "evaluate.head": 1,
    }
    assert PAIRED.suggest(FixedTrial({"evaluate": "short", "evaluate.short.clip.frames": 6})) == {
        "evaluate.reducers": (),
        "evaluate.clip.frames": 6,
    }


def test_examples_and_numbers_of_fields_that_stand_together() -> None:
    shown = [
        (example["evaluate.clip.frames"], example.get("evaluate.head", 0))
        for example in PAIRED.examples()
    ]
    assert shown == [(16, 1), (16, 0), (4, 0), (16, 1), (16, 0), (8, 0)]
    numbers = [(place, n) for _, place, n in PAIRED.numbers()]
    assert numbers == [("evaluate.clip.frames", n) for n in (4, 6, 8)]
    longer = [
        one["evaluate.clip.frames"] for one in PAIRED.examples({next(PAIRED.numbers())[0]: 6})
    ]
    assert longer == [16, 16, 6] * 2
