"""How the next trial is chosen: a function a sampler, from a seed to an Optuna sampler.

The seed is made anew for each trial from the study's seed and the trial's number, so that a search
that was killed asks what it would have asked.
"""

from __future__ import annotations

from collections.abc import Callable

from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

from workloads.mistakes import Mistake


def tpe(seed: int, num_trials: int) -> BaseSampler:
    """Tree-structured Parzen estimator, joint over the knobs of an option; random for a start."""
    warm_up = min(10, max(num_trials // 3, 1))
    return TPESampler(seed=seed, n_startup_trials=warm_up, multivariate=True, group=True)


def nsga2(seed: int, num_trials: int) -> BaseSampler:
    """Genetic search; cheap to ask, for thousands of trials."""
    return NSGAIISampler(seed=seed, population_size=min(50, max(num_trials // 4, 4)))


def random(seed: int, num_trials: int) -> BaseSampler:
    """Blind search: the control of the others."""
    return RandomSampler(seed=seed)


SAMPLERS: dict[str, Callable[[int, int], BaseSampler]] = {
    "tpe": tpe,
    "nsga2": nsga2,
    "random": random,
}


def load(name: str) -> Callable[[int, int], BaseSampler]:
    """Return a sampler by name.

    Raises:
        Mistake: there is none of that name.
    """
    if name not in SAMPLERS:
        known = ", ".join(SAMPLERS)
        raise Mistake(f"study: sampler={name!r} does not exist", f"choose from {known}")
    return SAMPLERS[name]
