"""What may vary in a study: a domain for each path into its stages.

    Space({
        "finetune.reducers": either(none=fix(), rlt=fix(rlt.Config(tau=0.1))),
        "evaluate.reducers": either(rlt=narrow(rlt.Config, tau=Float(0.05, 0.4)), ...),
        "evaluate.clip.frames": Int(8, 16, step=2),
    })

A path names a kind of stage, then fields of its config. Reducers stand in a chain, so `fix` and
`narrow` make a chain of them, and of anything else just that: `fix(8)` is 8.

Values that only fit each other stand together, so that no other combination can be asked for; their
paths go on from the one that they stand at:

    "evaluate": either(
        long=together({"reducers": fix(flux.Config(budget=256)), "clip.frames": fix(16)}),
        short=together({"reducers": fix(), "clip.frames": fix(8)}),
    ),

Conditional parameters are what `either` makes: the knobs of an option are asked for only where the
option was chosen. All of it is plain data, so a study has one canonical form and one key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from search_spaces.fit import is_reducer
from workloads.knobs import Choice, Float, Int, Knob, knobs_of, shown
from workloads.mistakes import Mistake

_MANY = 1000  # values of a range, beyond which its ends must do

# Any below: a config field may be of any type, and a domain yields what its field holds.


class Trial(Protocol):
    """The part of Optuna's Trial that a space needs."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int: ...

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any: ...


@dataclass(frozen=True)
class Fixed:
    """One value."""

    value: Any


@dataclass(frozen=True)
class Narrow:
    """A Config with some knobs left open; the others keep their defaults or the values given."""

    config: type
    knobs: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Either:
    """One of some domains, by label."""

    options: tuple[tuple[str, Domain], ...]

    def __post_init__(self) -> None:
        if not self.options:
            raise Mistake("space: either() has no options", "either(none=fix(), ...)")


@dataclass(frozen=True)
class Chained:
    """Several reducers in one chain, each with its knobs."""

    parts: tuple[Narrow, ...]


@dataclass(frozen=True)
class SameAs:
    """Whatever was chosen at another path."""

    path: str


@dataclass(frozen=True)
class Together:
    """Several fields at once: domains by what their paths have beyond that of this one."""

    domains: tuple[tuple[str, Domain], ...]


Domain = Fixed | Narrow | Chained | Either | SameAs | Together | Float | Int | Choice


def fix(*value: Any) -> Fixed:
    """Return the domain of one value; of a chain, its Configs: `fix()` is the dense model.

    Raises:
        Mistake: several values that make no chain.
    """
    if all(is_reducer(one) for one in value):
        return Fixed(value)
    if len(value) > 1:
        raise Mistake(f"space: fix{value!r} is no chain", "one value, or Configs of reducers")
    return Fixed(value[0])


def narrow(config: type, **knobs: Any) -> Narrow:
    """Return a Config whose named knobs are searched in the given ranges, or set to given values.

    Raises:
        Mistake: no such field, or a range for a field that is no knob.
    """
    if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        raise Mistake(f"space: {config!r} is no class of Configs", "narrow(rlt.Config, ...)")
    known, fields = knobs_of(config), [field.name for field in dataclasses.fields(config)]
    for name, value in knobs.items():
        kind, has = ("knob", [*known]) if isinstance(value, Knob) else ("field", fields)
        if name not in has:
            what = f"space: {config.__module__} has no {kind} {name!r}"
            raise Mistake(what, f"it has {', '.join(has)}")
        if isinstance(value, Domain) and not isinstance(value, Knob):
            what = f"space: {config.__module__}.{name} cannot be {type(value).__name__.lower()}"
            raise Mistake(what, "give a value, or a range: Float, Int or Choice")
    return Narrow(config, tuple(knobs.items()))


def chained(*parts: Narrow) -> Chained:
    """Return a chain of reducers, each as `narrow` has it."""
    return Chained(parts)


def either(**options: Domain) -> Either:
    """Return a choice between labelled domains."""
    return Either(tuple(options.items()))


def together(domains: Mapping[str, Domain]) -> Together:
    """Return the domain of several fields, by the end of their paths."""
    return Together(tuple(domains.items()))


def same_as(path: str) -> SameAs:
    """Return the tie to another path, which must stand before this one."""
    return SameAs(path)


@dataclass(frozen=True, init=False)
class Space:
    """Domains by path, in the order in which they are asked."""

    domains: tuple[tuple[str, Domain], ...]

    def __init__(self, domains: Mapping[str, Domain]) -> None:
        object.__setattr__(self, "domains", tuple(domains.items()))
        seen: set[str] = set()
        for path, domain in self.domains:
            leaves = [*_leaves(path, path, domain)]
            for _, place, leaf in leaves:
                _refuse_leaf(place, leaf, seen)
            seen |= {place for _, place, _ in leaves}

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Ask a trial for everything at once and return the value of each path."""
        chosen: dict[str, Any] = {}
        for path, domain in self.domains:
            chosen |= _ask(trial, path, path, domain, chosen)
        return chosen

    def answer(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a trial with these answers would choose, by path.

        Raises:
            Mistake: something is asked for that has no answer, or none that can be.
        """
        return self.suggest(_Answered(asked))

    def examples(self, named: Mapping[str, int] | None = None) -> Iterator[dict[str, Any]]:
        """Yield every combination of options, with ranges at their low and at their high end.

        Args:
            named: numbers to take instead, by the names that a trial asks for; see `numbers`.
        """
        for end in (0, 1):
            script: list[int] | None = []
            while script is not None:
                trial = _Scripted(script, end, named or {})
                yield self.suggest(trial)
                script = trial.following()

    def numbers(self) -> Iterator[tuple[str, str, int]]:
        """Yield every whole number that a path may come to, where they are not too many.

        Each with the name that a trial asks for it by, which has labels of options in it, and path.
        """
        for path, domain in self.domains:
            for name, place, leaf in _leaves(path, path, domain):
                if isinstance(leaf, Int) and leaf.high - leaf.low < _MANY * leaf.step:
                    yield from ((name, place, n) for n in range(leaf.low, leaf.high + 1, leaf.step))


def _leaves(name: str, path: str, domain: Domain) -> Iterator[tuple[str, str, Domain]]:
    """Yield the domains at the ends of a domain, each with its name (see `_ask`) and path."""
    if isinstance(domain, Either):
        for label, option in domain.options:
            yield from _leaves(f"{name}.{label}", path, option)
    elif isinstance(domain, Together):
        for end, part in domain.domains:
            yield from _leaves(f"{name}.{end}", f"{path}.{end}", part)
    else:
        yield name, path, domain


def _refuse_leaf(path: str, leaf: Domain, before: set[str]) -> None:
    if not isinstance(leaf, Domain):
        remedy = f"write fix({leaf!r})" if not isinstance(leaf, tuple) else f"write fix{leaf!r}"
        raise Mistake(f"space: {path} has {leaf!r}, which is no domain", remedy)
    if isinstance(leaf, SameAs) and leaf.path not in before:
        what = f"space: {path} is tied to {leaf.path!r}, which is not before it"
        raise Mistake(what, "put the other path first")


class _Answered:
    """A trial whose answers are known."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        self.asked = asked

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return float(self._number(name, low, high))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        return int(self._number(name, low, high))

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        value = self._answer(name)
        if value not in choices:
            raise Mistake(f"study: first has {name}={value!r}", f"one of {choices}")
        return value

    def _number(self, name: str, low: float, high: float) -> float:
        value = self._answer(name)
        if not low <= value <= high:
            raise Mistake(f"study: first has {name}={value}", f"from {low} to {high}")
        return float(value)

    def _answer(self, name: str) -> Any:
        if name not in self.asked:
            raise Mistake(f"study: first has no {name!r}", f"it has {', '.join(self.asked)}")
        return self.asked[name]


class _Scripted:
    """A trial that takes the options a script says, and the first ones after its end."""

    def __init__(self, script: list[int], end: int, named: Mapping[str, int]) -> None:
        self.script, self.end, self.named = script, end, named
        self.taken: list[tuple[int, int]] = []

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return (low, high)[self.end]

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        return self.named.get(name, (low, high - (high - low) % step)[self.end])

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        place = len(self.taken)
        index = self.script[place] if place < len(self.script) else 0
        self.taken.append((index, len(choices)))
        return choices[index]

    def following(self) -> list[int] | None:
        """Return the script of the next combination, counting like an odometer."""
        while self.taken:
            index, num = self.taken.pop()
            if index + 1 < num:
                return [taken for taken, _ in self.taken] + [index + 1]
        return None


def _ask(
    trial: Trial, name: str, path: str, domain: Domain, chosen: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the value of a path, or of several; `name` is how the trial knows what it is asked."""
    match domain:
        case Either(options):
            label = trial.suggest_categorical(name, [label for label, _ in options])
            return _ask(trial, f"{name}.{label}", path, dict(options)[label], chosen)
        case Together(domains):
            values: dict[str, Any] = {}
            for end, part in domains:
                values |= _ask(trial, f"{name}.{end}", f"{path}.{end}", part, chosen)
            return values
        case SameAs(other):
            return {path: chosen[other]}
    return {path: _value(trial, name, domain)}


def _value(trial: Trial, name: str, domain: Domain) -> Any:
    match domain:
        case Fixed(value):
            return value
        case Narrow(config, knobs):
            values = {
                knob: _value(trial, f"{name}.{knob}", value) if isinstance(value, Knob) else value
                for knob, value in knobs
            }
            made = config(**values)
            return (made,) if is_reducer(made) else made
        case Chained(parts):
            names = [part.config.__module__.rpartition(".")[2] for part in parts]
            pairs = zip(names, parts, strict=True)
            return tuple(one for own, part in pairs for one in _value(trial, f"{name}.{own}", part))
        case Float(low, high, log):
            return trial.suggest_float(name, low, high, log=log)
        case Int(low, high, step):
            return trial.suggest_int(name, low, high, step=step)
        case Choice(values):
            label = trial.suggest_categorical(name, [shown(value) for value in values])
            # Samplers know a tuple by its label alone; all else is its own.
            tuples = {shown(value): value for value in values if isinstance(value, tuple)}
            return tuples.get(label, label)
    raise AssertionError(f"no domain: {domain}")
