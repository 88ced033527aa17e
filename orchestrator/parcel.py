"""What a job is sent with: the project folder, and the shell command that is run in it.

Every word of the command that comes from outside is quoted.
"""

from __future__ import annotations

import argparse
import shlex
from collections import Counter
from pathlib import Path

from pathspec import GitIgnoreSpec

import search_spaces
from workloads.mistakes import Mistake

EXCLUDES = (".git", ".venv", "paretoken-store*")  # Ray adds what .gitignore names
DEFAULT_STORE = Path("paretoken-store")


def command(args: argparse.Namespace, root: Path) -> str:
    """Return the command that runs a study as a command line asks for it.

    Raises:
        Mistake: there is no project to ship, or what is asked for would not do over there.
    """
    if not (root / "pyproject.toml").is_file():
        raise Mistake(
            f"submit ships the project folder, and {root} is none",
            "install paretoken from a checkout with `make setup`, and submit from there",
        )
    words = ["python", "-m", "orchestrator", "run", _study(args.study, root), "--address", "auto"]
    for name in ("trials", "workers", "ranks", "cache", "tracking_uri"):
        value = getattr(args, name)
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--json"] * args.json
    paths = {"data": args.data, "model": args.model}  # of the cluster, as is the store
    given = "".join(f" --{name} {_quoted(path)}" for name, path in paths.items() if path)
    return f"{shlex.join(words)}{given} --store {_quoted(_store(args.store))}"


def _study(name: str, root: Path) -> str:
    """Return the name of a study, or the path of its file within the project folder."""
    if name in search_spaces.available():
        return name
    search_spaces.load(name)  # better to fail here than over there
    path = Path(name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise Mistake(
            f"study file {name} is not in the project folder, and nothing else is shipped",
            f"move it into {root}",
        )
    return f"./{path.relative_to(root.resolve()).as_posix()}"


def _store(path: Path) -> Path:
    """Return a store that outlives the job, whose own folder is temporary."""
    if path == DEFAULT_STORE:
        return "~" / path
    if path.is_absolute() or path.parts[:1] == ("~",):
        return path
    raise Mistake(
        f"--store {path} must be an absolute path of the cluster, or one under ~",
        f"such as '~/{path}', quoted: the home folder over there is meant",
    )


def _quoted(path: Path) -> str:
    """Quote a path, but for a `~` in front, which the shell of the job expands."""
    if path.parts[:1] == ("~",):
        return f"~/{shlex.quote(str(path.relative_to('~')))}"
    return shlex.quote(str(path))


def too_large(root: Path) -> Mistake:
    """Return the complaint that a folder is too large, naming the largest things in it."""
    ignore = root / ".gitignore"
    lines = ignore.read_text().splitlines() if ignore.is_file() else []
    ignored = GitIgnoreSpec.from_lines([*EXCLUDES, *lines])
    sizes: Counter[str] = Counter()
    for name in ignored.match_tree_files(root, negate=True):
        sizes[Path(name).parts[0]] += (root / name).stat().st_size
    largest = [(name, size >> 20) for name, size in sizes.most_common(3) if size >> 20]
    heavy = ", ".join(f"{name} ({mebibytes} MiB)" for name, mebibytes in largest)
    return Mistake(
        f"{root} is too large to be shipped, the limit is 100 MiB packed: {heavy}",
        "name what the job does not need in .gitignore or .rayignore; videos belong on the\n"
        "  cluster, at the path that --data gives",
    )
