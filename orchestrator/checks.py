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

    from workloads.readers import Decoder

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
FASTER = "decord would decode faster, where it has a wheel"
NUM_FRAMES = 30
MOVIES = {
    "closed GOPs": {"g": "12", "bf": "2"},
    "open GOPs": {"x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=3"},
}
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
    """Let each decoder read frames that carry their number, in order and at random."""
    from workloads import readers

    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, options in MOVIES.items():
            movie = _movie(Path(folder) / f"{name}.mp4", options)
            for decoder in readers.versions():
                wrong += [f"{decoder}: {fault} ({name})" for fault in _misread(movie, decoder)]
    found = ", ".join(f"{name} {version}" for name, version in readers.versions().items())
    if wrong:
        return Finding(f"{found}; {'; '.join(wrong)}", False, "install those of the lock")
    told = f"{found}: every frame by its barcode, in order and at random"
    return Finding(told, True, "" if "decord" in readers.versions() else FASTER)


def _movie(path: Path, options: dict[str, str]) -> Path:
    """Write a video whose frames carry their number."""
    import av

    from workloads.barcodes import barcode

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for number in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(barcode(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _misread(movie: Path, decoder: Decoder) -> list[str]:
    """Say which of the frames that were asked for are others."""
    from workloads import readers
    from workloads.barcodes import numbers_of

    asked = {"in order": list(range(NUM_FRAMES)), "at random": [17, 3, 28, 24, 11, 25, 0, 23]}
    wrong = []
    for how, numbers in asked.items():
        read = numbers_of(readers.read(movie, numbers, decoder=decoder))
        other = sum(a != b for a, b in zip(read, numbers, strict=False))
        if other or len(read) != len(numbers):
            wrong.append(f"{other or len(numbers)} of {len(numbers)} frames wrong {how}")
    return wrong
