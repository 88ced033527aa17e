"""What may vary in a study: a domain for each path into its stages.

    Space({
        "finetune.reducers": either(none=fix(), rlt=fix(rlt.Config(tau=0.1))),
        "evaluate.reducers": either(rlt=narrow(rlt.Config, tau=Float(0.05, 0.4)), ...),
        "evaluate.clip.frames": Int(8, 16, step=2),
    })

A path names a kind of stage, then fields of its config. Conditional parameters are what `either`
makes: the knobs of an option are asked for only where the option was chosen. All of it is plain
data, so a study has one canonical form and one key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from workloads.knobs import Choice, Float, Int, Knob, knobs_of
from workloads.mistakes import Mistake

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


@dataclass(frozen=True)
class SameAs:
    """Whatever was chosen at another path."""

    path: str


Domain = Fixed | Narrow | Either | SameAs | Float | Int | Choice


def fix(*value: Any) -> Fixed:
    """Return the domain of one value; of a chain, its Configs: `fix()` is the dense model."""
    return Fixed(value)


def narrow(config: type, **knobs: Any) -> Narrow:
    """Return a Config whose named knobs are searched in the given ranges, or set to given values.

    Raises:
        Mistake: a range for a field that is no knob.
    """
    known = knobs_of(config)
    for name, domain in knobs.items():
        if isinstance(domain, Knob) and name not in known:
            what = f"space: {config.__module__} has no knob {name!r}"
            raise Mistake(what, f"it has {', '.join(known)}")
    return Narrow(config, tuple(knobs.items()))


def either(**options: Domain) -> Either:
    """Return a choice between labelled domains."""
    return Either(tuple(options.items()))


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
            if isinstance(domain, SameAs) and domain.path not in seen:
                what = f"space: {path} is tied to {domain.path!r}, which is not before it"
                raise Mistake(what, "put the other path first")
            seen.add(path)

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Ask a trial for everything at once and return the value of each path."""
        chosen: dict[str, Any] = {}
        for path, domain in self.domains:
            if isinstance(domain, SameAs):
                chosen[path] = chosen[domain.path]
            else:
                chosen[path] = _ask(trial, path, domain)
        return chosen

    def examples(self) -> Iterator[dict[str, Any]]:
        """Yield every combination of options, with ranges at their low and at their high end."""
        for end in (0, 1):
            script: list[int] | None = []
            while script is not None:
                trial = _Scripted(script, end)
                yield self.suggest(trial)
                script = trial.following()


class _Scripted:
    """A trial that takes the options a script says, and the first ones after its end."""

    def __init__(self, script: list[int], end: int) -> None:
        self.script, self.end = script, end
        self.taken: list[tuple[int, int]] = []

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return (low, high)[self.end]

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        return (low, high - (high - low) % step)[self.end]

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


def _ask(trial: Trial, name: str, domain: Domain) -> Any:
    match domain:
        case Fixed(value):
            return value
        case Narrow(config, knobs):
            values = {
                knob: _ask(trial, f"{name}.{knob}", value) if isinstance(value, Knob) else value
                for knob, value in knobs
            }
            return (config(**values),)
        case Either(options):
            label = trial.suggest_categorical(name, [label for label, _ in options])
            return _ask(trial, f"{name}.{label}", dict(options)[label])
        case Float(low, high, log):
            return trial.suggest_float(name, low, high, log=log)
        case Int(low, high, step):
            return trial.suggest_int(name, low, high, step=step)
        case Choice(values):
            return trial.suggest_categorical(name, list(values))
    raise AssertionError(f"no domain: {domain}")
