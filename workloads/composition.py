"""Which reducers work together, and in which host: the table of the README, made from the code.

    python -m workloads.composition

A chain is legal where it can be built; nothing here knows of any reducer or host by name.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from workloads import models
from workloads.mistakes import Mistake
from workloads.models import HostConfig
from workloads.reducers import available, load
from workloads.reducers.base import chain_of


def hosts() -> dict[str, HostConfig]:
    """Return every host in its default form, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(models.__path__))
    modules = {name: importlib.import_module(f"workloads.models.{name}") for name in names}
    return {name: module.Config() for name, module in modules.items()}


def refusal(names: Sequence[str], config: HostConfig) -> str | None:
    """Return why a chain of default reducers cannot be built in a host, None if it can."""
    configs: tuple[Any, ...] = tuple(load(name).Config() for name in names)
    host = config.host(configs)  # a model that was built with them, if they learn
    try:
        chain_of(configs, host).check(config.grid)
    except Mistake as mistake:
        return str(mistake)
    return None


def legal_pairs(host: HostConfig) -> dict[str, list[str]]:
    """Return for each reducer those that it works together with; a host may take none of it."""
    alone = [name for name in available() if refusal((name,), host) is None]
    pairs: dict[str, list[str]] = {name: [] for name in alone}
    for one, other in combinations(alone, 2):
        if refusal((one, other), host) is None:
            pairs[one].append(other)
            pairs[other].append(one)
    return pairs


def table() -> str:
    """Return a Markdown table: a row a reducer, a column a host, and in it who may join it."""
    columns = {name: legal_pairs(host) for name, host in hosts().items()}
    lines = [f"| with | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in available():
        cells = (_cell(pairs.get(name)) for pairs in columns.values())
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(partners: list[str] | None) -> str:
    if partners is None:
        return "not here"
    return ", ".join(partners) or "alone"


if __name__ == "__main__":
    print(table())
