"""How the next trial is chosen: a function a sampler, from a seed to an Optuna sampler.

The seed is made anew for each trial from the study's seed and the trial's number, so that a search
that was killed asks what it would have asked.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.search_space import intersection_search_space
from optuna.trial import FrozenTrial, TrialState

from workloads.mistakes import Mistake


def tpe(seed: int, num_trials: int) -> BaseSampler:
    """Tree-structured Parzen estimator, joint over the knobs of an option; random for a start."""
    warm_up = min(10, max(num_trials // 3, 1))
    return TPESampler(seed=seed, n_startup_trials=warm_up, multivariate=True, group=True)


class _Genetic(NSGAIISampler):
    """NSGA-II without the dense trial, and without a memory of its own.

    Optuna crosses the parameters that all complete trials have. The dense one has none: with it
    among them every ask would be blind. Here it is what all parents have, so the knobs of an option
    are drawn at random until every parent chose that option; the rest is crossed from the start.

    Optuna writes generations down in the study, and a resume would lose them. Here they follow from
    the numbers of the complete trials, so a search that was killed goes on with the same parents.
    """

    def __init__(self, seed: int, size: int) -> None:
        super().__init__(seed=seed, population_size=size)
        self.size = size

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the parameters that all parents of a trial have in common."""
        generation = self.get_trial_generation(study, trial)
        common = intersection_search_space(self.get_parent_population(study, generation))
        return {name: among for name, among in common.items() if not among.single()}

    def get_trial_generation(self, study: Study, trial: FrozenTrial) -> int:
        """Return how many generations are complete before a trial."""
        before = [other for other in _choosers(study) if other.number < trial.number]
        return len(before) // self.size

    def get_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        """Return the complete trials of a generation."""
        start = generation * self.size
        return _choosers(study)[start : start + self.size]

    def get_parent_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        """Return the parents of a generation by number: Optuna's order differs when it is cached,
        and the draws go by place.
        """
        return sorted(super().get_parent_population(study, generation), key=lambda t: t.number)


def _choosers(study: Study) -> list[FrozenTrial]:
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [trial for trial in complete if trial.params]


def nsga2(seed: int, num_trials: int) -> BaseSampler:
    """Genetic search; cheap to ask, for thousands of trials."""
    return _Genetic(seed, size=min(50, max(num_trials // 4, 4)))


def random(seed: int, num_trials: int) -> BaseSampler:
    """Blind search: the control of the others."""
    return RandomSampler(seed=seed)


class _Even(RandomSampler):
    """Takes the option that was taken least often after the same answers."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self.draw = Random(seed)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:  # Any: as Optuna has them
        """Return the value of one parameter; a range has no options and is drawn at random."""
        if not isinstance(param_distribution, CategoricalDistribution):
            return super().sample_independent(study, trial, param_name, param_distribution)
        alike = [
            other.params[param_name]
            for other in study.get_trials(deepcopy=False)
            if other.number < trial.number
            and param_name in other.params
            and trial.params.items() <= other.params.items()
        ]
        options = param_distribution.choices
        return min(self.draw.sample(options, len(options)), key=alike.count)  # one of the rarest


def even(seed: int, num_trials: int) -> BaseSampler:
    """Every combination of options in turn: for studies with few of them."""
    return _Even(seed)


BLIND = ("random", "even")  # what they choose follows from no value
SAMPLERS: dict[str, Callable[[int, int], BaseSampler]] = {
    "tpe": tpe,
    "nsga2": nsga2,
    "random": random,
    "even": even,
}


def refuse_rungs(name: str) -> None:
    """Refuse the sampler of a race that learns from how earlier trials ended.

    In a race all trials are asked before any has ended, so that none stops for want of a rival.

    Raises:
        Mistake: it learns.
    """
    if name not in BLIND:
        what = f"study: sampler={name!r} has nothing to learn from where rungs let all trials race"
        raise Mistake(what, f"sampler: {' or '.join(BLIND)}; or leave rungs out")


def load(name: str) -> Callable[[int, int], BaseSampler]:
    """Return a sampler by name.

    Raises:
        Mistake: there is none of that name.
    """
    if name not in SAMPLERS:
        known = ", ".join(SAMPLERS)
        raise Mistake(f"study: sampler={name!r} does not exist", f"choose from {known}")
    return SAMPLERS[name]
