"""Token reducers, one file a method; found by listing this folder, loaded by name."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

_NOT_METHODS = ("base",)


def available() -> tuple[str, ...]:
    """Return the names of all reducers, sorted."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in names if name not in _NOT_METHODS))


def load(name: str) -> ModuleType:
    """Return the module of a reducer: it has `Config` (with knobs and `Config.off()`).

    Raises:
        ValueError: there is no reducer of that name.
    """
    if name not in available():
        raise ValueError(f"reducer={name!r} does not exist; choose from {', '.join(available())}")
    return importlib.import_module(f"{__name__}.{name}")
