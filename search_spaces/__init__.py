"""Studies: which question is asked and what may vary, as data; a file a study, with `study()`."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from workloads.mistakes import Mistake

if TYPE_CHECKING:
    from search_spaces.study import Study
    from workloads.load import Config

T = TypeVar("T")

_NOT_STUDIES = ("equal", "fit", "objectives", "space", "stage", "started", "study")


def available() -> tuple[str, ...]:
    """Return the names of the studies that come with the package, sorted."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in names if name not in _NOT_STUDIES))


def questions() -> dict[str, str]:
    """Return the question of each study: the first line of its file, read without running it."""
    folder = Path(__path__[0])
    texts = {name: (folder / f"{name}.py").read_text() for name in available()}
    docs = {name: ast.get_docstring(ast.parse(text)) or "" for name, text in texts.items()}
    return {name: doc.split("\n")[0] for name, doc in docs.items()}


def load(name: str, source: Config | None = None) -> Study:
    """Return a study by name, or from a Python file with `def study() -> Study`.

    Args:
        name: of the study, or a path.
        source: a model from outside. `study` gets it where it takes an argument; any other study
            starts its trainings from it.

    Raises:
        Mistake: there is no such study, its file raises, it has no `study()`, or it has no place
            for such a model.
    """
    if name.endswith(".py") or "/" in name:
        return _made_by(_run_file(Path(name)), name, source)
    if name not in available():
        near = difflib.get_close_matches(name, available(), n=1)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise Mistake(f'no study "{name}"{hint}', "paretoken studies lists all")
    built_in = f"{__name__}.{name}"
    module = _guarded(lambda: importlib.import_module(built_in), name, "mend the file")
    return _made_by(module, name, source)


def _run_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise Mistake(f'no study file "{path}"', "paretoken studies lists those that are built in")
    spec = importlib.util.spec_from_file_location(f"study_{path.stem}", path)
    if spec is None or spec.loader is None:  # told by the ending alone
        raise Mistake(f'study file "{path}" is no Python file', "its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    load_it = spec.loader.exec_module
    _guarded(lambda: load_it(module), str(path), "mend the file")
    return module


def _made_by(module: ModuleType, name: str, source: Config | None) -> Study:
    from search_spaces.started import started
    from search_spaces.study import Study

    make = getattr(module, "study", None)
    if not callable(make):
        raise Mistake(f"study file {name} has no study()", "add `def study() -> Study` to it")
    takes = bool(inspect.signature(make).parameters)
    study: object = _guarded(lambda: make(source) if takes else make(), name, "mend study()")
    if not isinstance(study, Study):
        kind = type(study).__name__
        raise Mistake(f"study file {name}: study() returned a {kind}", "return a Study")
    return study if takes or source is None else started(study, source)


def _guarded(run: Callable[[], T], name: str, remedy: str) -> T:
    """Run a user's code; whatever it raises is a mistake in it, an exit included."""
    try:
        return run()
    except Mistake:
        raise
    except (Exception, SystemExit) as error:
        raise Mistake(f"study file {name}: {_last_line(error)}", remedy) from None


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else ''}".rstrip(": ")
