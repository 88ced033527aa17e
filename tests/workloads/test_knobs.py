"""Knobs are found, and equal configs, no others, have equal keys."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import pytest

from workloads import augment, finetune, optim
from workloads.knobs import (
    STAGES,
    Choice,
    Float,
    Int,
    canonical,
    key_of,
    knobs_of,
    shown,
    type_name,
)
from workloads.mistakes import Mistake
from workloads.models import videomae
from workloads.reducers import available, drop, load, rlt, tome


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A config inside another one."""

    ratio: Annotated[float, "words", Float(0.0, 1.0)] = 0.5
    name: str = "plain"


@dataclass(frozen=True, kw_only=True)
class Outer:
    """A config of many kinds of fields."""

    inner: Inner = Inner()
    sizes: tuple[int, ...] = (1, 2)
    flag: Annotated[bool, Choice((False, True))] = False
    r: Annotated[int, Int(0, 10, step=5, stage="finetune")] = 5
    kind: type = Inner
    nothing: None = None


def test_knobs_are_the_annotated_fields_by_name() -> None:
    assert knobs_of(Outer) == {
        "flag": Choice((False, True)),
        "r": Int(0, 10, step=5, stage="finetune"),
    }
    assert knobs_of(Inner) == {"ratio": Float(0.0, 1.0)}
    assert knobs_of(augment.Config) == {}


@pytest.mark.parametrize("name", available())
def test_every_reducer_has_a_knob_and_defaults_within_its_range(name: str) -> None:
    kind = load(name).Config
    assert knobs_of(kind)
    for field, knob in knobs_of(kind).items():
        value = getattr(kind(), field)
        assert knob.stage in STAGES
        if isinstance(knob, Choice):
            assert value in knob.options
        else:
            assert knob.low <= value <= knob.high


def test_a_knob_of_training_names_its_stage() -> None:
    assert knobs_of(optim.Config)["lr"].stage == "finetune"
    assert knobs_of(rlt.Config)["tau"].stage == "evaluate"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Float(0.4, 0.02), "low must not be above high"),
        (lambda: Float(0, math.inf), "finite"),
        (lambda: Float(math.nan, 1), "finite"),
        (lambda: Float(0, 1, log=True), "low must be above 0"),
        (lambda: Int(10, 4), "low must not be above high"),
        (lambda: Int(1, 4, step=0), "step must be 1 or more"),
        (lambda: Int(1.5, 4), "whole numbers"),  # type: ignore[arg-type]
        (lambda: Choice(()), "one or more"),
        (lambda: Choice("abc"), "must be a tuple"),  # type: ignore[arg-type]
        (lambda: Choice((Inner(),)), "words and numbers"),  # type: ignore[arg-type]
    ],
)
def test_a_range_of_nothing_is_refused_when_written(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(Mistake, match=words):
        make()


def test_an_option_may_be_a_tuple_with_one_word_for_it() -> None:
    options = ((3,), (4, 8), (), "plain", 5)
    assert Choice(options).options == options
    assert [shown(option) for option in options] == ["3", "4+8", "none", "plain", 5]
    with pytest.raises(Mistake, match="words and numbers"):
        Choice(((1, (2, 3)),))  # type: ignore[arg-type]


def test_a_range_may_be_one_value() -> None:
    assert Float(1, 1).low == Int(1, 1).low == 1


def test_canonical_form_is_json_that_names_types() -> None:
    form = canonical(Outer())
    assert json.loads(json.dumps(form)) == form
    assert form["type"] == type_name(Outer)
    assert form["inner"] == {"type": type_name(Inner), "ratio": 0.5, "name": "plain"}
    assert form["sizes"] == [1, 2]
    assert form["kind"] == type_name(Inner)
    assert type_name(drop.Config) != type_name(tome.Config)


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", np.float32(1.0), object(), 1j])
def test_what_has_no_one_form_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="has no canonical form"):
        canonical((1, value))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_know_have_no_key(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        key_of(Inner(ratio=value))


def test_equal_configs_have_equal_keys_and_others_other_ones() -> None:
    config = finetune.Config(model=videomae.Config(), clip=finetune.clips.Config())
    others = [
        config,
        replace(config, seed=1),
        replace(config, reducers=(rlt.Config(),)),
        replace(config, reducers=(rlt.Config(tau=0.2),)),
        replace(config, reducers=(rlt.Config(), drop.Config())),
        replace(config, reducers=(drop.Config(), rlt.Config())),
        replace(config, model=videomae.Config(depth=11)),
        replace(config, augment=augment.Config(flip=0.5)),
        replace(config, precision="bfloat16"),
    ]
    keys = [key_of(other) for other in others]
    assert len({*keys}) == len(others)
    assert keys == [key_of(replace(other)) for other in others]
    assert all(len(key) == 64 for key in keys)


def test_two_methods_with_equal_fields_have_other_keys() -> None:
    assert key_of(rlt.Config.off()) != key_of(drop.Config.off()) != key_of(tome.Config.off())


def test_a_whole_number_has_one_key_however_it_was_written() -> None:
    assert rlt.Config(tau=1) == rlt.Config(tau=1.0)
    assert key_of(rlt.Config(tau=1)) == key_of(rlt.Config(tau=1.0))


def test_keys_are_the_same_in_another_process() -> None:
    code = (
        "from workloads.knobs import key_of; from workloads.reducers import rlt;"
        "print(key_of((rlt.Config(tau=0.1), {'b': 1, 'a': 2})))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == key_of((rlt.Config(tau=0.1), {"a": 2, "b": 1}))
