"""Knobs: what may vary in a frozen Config, and the key of a Config.

A field of a Config that a search may turn carries its range as an annotation, next to its meaning:

    tau: Annotated[float, Float(0.01, 0.5, log=True)] = 0.1

Whatever changes a number is in a Config, and every Config has one canonical form, so that equal
work has equal keys and is done once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from workloads.mistakes import Mistake

STAGES = ("pretrain", "finetune", "evaluate")


@dataclass(frozen=True)
class Float:
    """A real knob in [low, high]; `log` where ratios matter, not differences."""

    low: float
    high: float
    log: bool = False
    stage: str = "evaluate"
    """The earliest stage that reads the knob: a knob of `evaluate` needs no training of its own."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise Mistake(f"{self}: low must not be above high", "both are finite numbers")
        if self.log and self.low <= 0:
            raise Mistake(f"{self}: low must be above 0", "a ratio has no zero: leave `log` out")


@dataclass(frozen=True)
class Int:
    """A whole knob in low, low + step, ..., high."""

    low: int
    high: int
    step: int = 1
    stage: str = "evaluate"

    def __post_init__(self) -> None:
        if not all(isinstance(n, int) for n in (self.low, self.high, self.step)):
            raise Mistake(f"{self}: all must be whole numbers", "use Float for a real knob")
        if self.low > self.high or self.step < 1:
            raise Mistake(f"{self}: low must not be above high, step must be 1 or more")


Option = str | int | float | bool | tuple[str | int | float, ...]


@dataclass(frozen=True)
class Choice:
    """A knob with a few named values: words, numbers, or tuples of them."""

    options: tuple[Option, ...]
    stage: str = "evaluate"

    def __post_init__(self) -> None:
        if not isinstance(self.options, tuple) or not self.options:
            raise Mistake(f"{self}: options must be a tuple of one or more", "Choice((8, 16))")
        if not all(isinstance(one, str | int | float) for o in self.options for one in _parts(o)):
            raise Mistake(f"{self}: options are words and numbers", "either() chooses among others")


Knob = Float | Int | Choice


def _parts(option: Option) -> tuple[str | int | float, ...]:
    return option if isinstance(option, tuple) else (option,)


def shown(value: Any) -> Any:  # Any: the value of a knob, of whatever type
    """Return a value as samplers and files may hold it: of a tuple its parts in one word."""
    if not isinstance(value, tuple):
        return value
    return "+".join(map(str, value)) or "none"


def knobs_of(config_class: type) -> dict[str, Knob]:
    """Return the knobs of a Config class by field name."""
    hints = get_type_hints(config_class, include_extras=True)
    return {
        name: knob
        for name, hint in hints.items()
        if get_origin(hint) is Annotated
        for knob in get_args(hint)[1:]
        if isinstance(knob, Float | Int | Choice)
    }


def type_name(config_class: type) -> str:
    """Return the full name of a Config class: two methods may both call theirs `Config`."""
    return f"{config_class.__module__}.{config_class.__qualname__}"


def canonical(value: Any) -> Any:  # Any: a Config field may hold whatever JSON can
    """Return `value` as JSON types; a dataclass becomes a dict that names its type.

    Raises:
        TypeError: something without one obvious JSON form, which would make keys ambiguous.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: canonical(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type_name(type(value)), **fields}
    if isinstance(value, tuple | list):
        return [canonical(item) for item in value]
    if isinstance(value, dict):
        return {str(name): canonical(item) for name, item in value.items()}
    if isinstance(value, type):
        return type_name(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 1.0 == 1, so their keys are one
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"{value!r} of type {type(value).__name__} has no canonical form")


def key_of(value: Any) -> str:  # Any: as in canonical
    """Return the sha256 (64 hex digits) of the canonical form: equal configs, equal keys."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
