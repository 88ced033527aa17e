"""What has to be right about an installation: a small function a thing, saying what it found.

Whatever is not in the standard library is imported where it is used: it may be missing or broken,
and that is for the checks to say.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from importlib.util import cache_from_source, find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
SLOW_TO_IMPORT = ("torch", "ray", "mlflow", "optuna", "pyarrow")


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    found: str
    ok: bool = True
    remedy: str = ""
    """What to do about it; where it is `ok`, what one might do."""


def judge(found: str, ok: bool, remedy: str) -> Finding:
    """Return a finding with its remedy only where one is needed."""
    return Finding(found, ok, "" if ok else remedy)


def python() -> Finding:
    """Say which Python this is; the lock needs 3.11."""
    found = f"{sys.version.split()[0]} in {sys.prefix}"
    return judge(found, sys.version_info >= (3, 11), "make setup PYTHON=python3.11")


def packages(lock: Path = LOCK) -> Finding:
    """Compare the packages with the lock, where it lies beside the project."""
    from packaging.requirements import Requirement

    if not lock.is_file():
        return Finding("no requirements.lock beside the project to compare with")
    lines = [line.partition("#")[0].strip() for line in lock.read_text().splitlines()]
    wanted = [Requirement(line) for line in lines if line]
    wanted = [one for one in wanted if one.marker is None or one.marker.evaluate()]
    other = [difference for one in wanted if (difference := _difference(one))]
    found = f"{len(wanted) - len(other)} of {len(wanted)} as in the lock"
    if other:
        found += f", but {', '.join(other[:3])}{', ...' if len(other) > 3 else ''}"
    return judge(found, not other, f"{sys.executable} -m pip install -r {lock}")


def _difference(wanted: Requirement) -> str | None:
    """Say what is there instead of a locked package; None if it is that package."""
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return f"no {wanted.name}"
    return None if wanted.specifier.contains(version) else f"{wanted.name} {version}"


def byte_code() -> Finding:
    """Look for the byte code of the large packages: every process that Ray starts needs it."""
    origins = [spec.origin for spec in map(find_spec, SLOW_TO_IMPORT) if spec and spec.origin]
    folders = [Path(origin).parent for origin in origins]
    sources = [source for folder in folders for source in folder.rglob("*.py")]
    share = sum(Path(cache_from_source(str(one))).exists() for one in sources) / len(sources)
    found = f"{share:.0%} of {', '.join(SLOW_TO_IMPORT)} compiled"
    if share < 0.9:
        return Finding(found, False, f"{sys.executable} -m compileall -q -j 0 {folders[0].parent}")
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        return Finding(f"{found}; PYTHONDONTWRITEBYTECODE is set", True, "unset it")
    return Finding(found)


def decoders() -> Finding:
    """Let each decoder read one clip: they have to give the same frames."""
    import numpy as np

    from workloads import readers
    from workloads.datasets import synthetic

    ramp_THWC = np.arange(8 * 48 * 64 * 3).reshape(8, 48, 64, 3) // 200 % 256
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        clip.write_bytes(synthetic.encode(ramp_THWC.astype(np.uint8), fps=8))
        decoded = {"pyav": readers.read(clip, decoder="pyav")}
        if "decord" in readers.versions():
            decoded["decord"] = readers.read(clip, decoder="decord")
    found = ", ".join(f"{name} {readers.versions()[name]}" for name in decoded)
    if any(not np.array_equal(frames, decoded["pyav"]) for frames in decoded.values()):
        return Finding(f"{found} give different frames", False, "install those of the lock")
    if "decord" not in decoded:
        return Finding(found, True, "decord would decode faster, where it has a wheel")
    return Finding(f"{found}: the same frames")
