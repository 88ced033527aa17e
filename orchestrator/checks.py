"""What has to be right on a machine: one small function a thing, which says what it found."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from importlib.util import cache_from_source, find_spec
from pathlib import Path

import numpy as np
import torch
from packaging.requirements import Requirement

from orchestrator.submit import token_source

PROJECT = Path(__file__).resolve().parent.parent
LOCK = PROJECT / "requirements.lock"
STORE = Path("paretoken-store")
SLOW_TO_IMPORT = ("torch", "ray", "mlflow", "optuna", "pyarrow")
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found."""

    found: str
    ok: bool = True
    remedy: str = ""
    """What to do about it; where `ok`, what one could do."""


def python() -> Finding:
    """Python is new enough for the lock."""
    found = f"{sys.version.split()[0]} in {sys.prefix}"
    return Finding(found=found, ok=sys.version_info >= (3, 11), remedy="use Python 3.11 or newer")


def packages(lock: Path = LOCK) -> Finding:
    """The packages are those of the lock, where the lock lies beside the project."""
    if not lock.is_file():
        return Finding(found="no requirements.lock beside the project to compare with")
    lines = (line.partition("#")[0].strip() for line in lock.read_text().splitlines())
    wanted = [Requirement(line) for line in lines if line]
    wanted = [one for one in wanted if one.marker is None or one.marker.evaluate()]
    other = [f"{one.name} {_version(one.name)}" for one in wanted if not _is_met(one)]
    named = ", ".join(other[:3]) + (", ..." if len(other) > 3 else "")
    return Finding(
        found=f"{len(wanted) - len(other)} of {len(wanted)} as locked" + f"; not {named}" * bool(other),
        ok=not other,
        remedy=f"{sys.executable} -m pip install -r {lock}",
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _is_met(wanted: Requirement) -> bool:
    version = _version(wanted.name)
    return version != "missing" and wanted.specifier.contains(version, prereleases=True)


def byte_code() -> Finding:
    """The large packages are compiled; without it every process that Ray starts compiles them."""
    folders = [Path(spec.origin).parent for spec in map(find_spec, SLOW_TO_IMPORT) if spec and spec.origin]
    sources = [source for folder in folders for source in folder.rglob("*.py")]
    compiled = sum(Path(cache_from_source(str(source))).exists() for source in sources)
    is_off = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    share = compiled / len(sources)
    compile_all = f"{sys.executable} -m compileall -q -j 0 {folders[0].parent}"
    return Finding(
        found=f"{share:.0%} of {', '.join(SLOW_TO_IMPORT)}"
        + "; PYTHONDONTWRITEBYTECODE is set" * is_off,
        ok=share > 0.9,
        remedy=compile_all if share <= 0.9 else "unset PYTHONDONTWRITEBYTECODE" * is_off,
    )


def decoders() -> Finding:
    """Each decoder gives the same frames of a clip."""
    from workloads import readers
    from workloads.datasets import synthetic

    ramp_THWC = np.arange(8 * 48 * 64 * 3, dtype=np.uint32).reshape(8, 48, 64, 3)
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        clip.write_bytes(synthetic.encode((ramp_THWC // 200 % 256).astype(np.uint8), fps=8))
        frames = [readers.read(clip, decoder=name) for name in readers.versions()]  # type: ignore[arg-type]
    same = all(np.array_equal(one, frames[0]) and len(one) == 8 for one in frames)
    ...
