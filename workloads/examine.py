"""The verdict on one video: left as it is, rewritten, or not to be used, with the reason.

    python -m workloads.examine      # answers jobs as JSON, a line each; see `isolation`

accepted      decord gives the frames of PyAV's sequential pass, bit for bit, in order and at
              random, and nothing about the file speaks against seeking; it is linked
normalised    it can be decoded, but not by everyone the same; it is rewritten, and then proved
quarantined   it cannot be decoded from its first frame to its last, or is no video

Where decord is not installed, or mistakes a narrow video's width whatever the codec, the verdict
names PyAV as the decoder to use.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from workloads import isolation, normalise, proof, readers
from workloads.normalise import Target
from workloads.probe import MOST_PIXELS, Beat, Film, probe
from workloads.readers import UnreadableVideo

REVISION = 3  # raised when the same video may get another verdict

ACTIONS = ("accepted", "normalised", "quarantined")
Action = Literal["accepted", "normalised", "quarantined"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A video to examine, and where to put it."""

    source: str
    """Absolute path; bytes that are no UTF-8 as Python escapes them."""
    folder: str
    """Where the data set lies."""
    link: str
    """Its name there if it is accepted."""
    copy: str
    """Its name there if it is rewritten; ends in .mp4."""
    target: Target = field(default_factory=Target)
    most_pixels: int = MOST_PIXELS
    salvage: bool = False
    """Whether to keep the frames before the place where a video breaks off."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found and done."""

    action: Action
    reason: str = ""
    path: str = ""
    """Its name in the data set; empty if it is not in it."""
    decoder: str = ""
    """Which decoder to read it with, `decord` or `pyav`."""
    frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    sha256: str = ""
    """Of the file at `path`."""
    passing: bool = False
    """Whether a reason not to use it lies outside of its content, and may go away."""
    pictures: str = ""
    """Equal for sources that show the same frames, whatever the container."""


def examine(job: Job, beat: Beat = lambda: None) -> Verdict:
    """Examine a video and put it into the data set, whole or not at all.

    Args:
        beat: called at least for every frame, to show that the work goes on.

    Raises:
        OSError: the data set's folder takes no more.
    """
    source = Path(job.source)
    try:
        film = probe(source, job.most_pixels, beat, job.salvage)
        with _named(source) as readable:
            fault, decoder = _doubt(readable, film, beat)
        if not fault:
            return _accept(job, film, decoder)
        return _rewrite(job, film, fault, beat)
    except UnreadableVideo as error:
        return Verdict(action="quarantined", reason=error.reason, passing=error.passing)


def _doubt(path: Path, film: Film, beat: Beat) -> tuple[str, str]:
    """Return why a video should be rewritten, if it should, and else who is to decode it."""
    if film.dangers:
        return "; ".join(film.dangers), ""
    if "decord" not in readers.versions():
        return "", "pyav"
    fault = proof.fault(path, film, beat)
    if fault == readers.MISTAKEN_WIDTH:  # of a rewritten one too
        return "", "pyav"
    return fault, "decord"


def _accept(job: Job, film: Film, decoder: str) -> Verdict:
    try:
        sha256 = _hash(Path(job.source))
    except OSError as error:
        reason = str(error.strerror).lower()
        raise UnreadableVideo(Path(job.source), reason, passing=True) from error
    with _draft(job, job.link) as draft:
        draft.symlink_to(job.source)
    return _verdict("accepted", job.link, film, decoder, sha256, film.notes)


def _rewrite(job: Job, film: Film, fault: str, beat: Beat) -> Verdict:
    with _draft(job, job.copy) as draft:
        normalise.rewrite(Path(job.source), film, draft, job.target, job.most_pixels, beat)
        made = probe(draft, job.most_pixels, beat)
        again, decoder = _doubt(draft, made, beat)
        if again or made.frames != film.frames:
            found = again or f"{made.frames} of {film.frames} frames"
            raise UnreadableVideo(Path(job.source), f"{fault}; rewritten, still: {found}")
        sha256 = _hash(draft)
    reasons = (fault, *film.notes)
    verdict = _verdict("normalised", job.copy, made, decoder, sha256, reasons)
    return replace(verdict, pictures=film.digest)


def _verdict(
    action: Action, path: str, film: Film, decoder: str, sha256: str, reasons: tuple[str, ...]
) -> Verdict:
    return Verdict(
        action=action,
        reason="; ".join(reasons),
        path=path,
        decoder=decoder,
        frames=film.frames,
        fps=round(film.fps, 4),
        width=film.width,
        height=film.height,
        sha256=sha256,
        pictures=film.digest,
    )


@contextmanager
def _draft(job: Job, name: str) -> Iterator[Path]:
    """Give a place beside a file to be; what lies there takes its name at the end, or is gone."""
    final = Path(job.folder, name)
    final.parent.mkdir(parents=True, exist_ok=True)
    draft = final.parent / f".{os.getpid()}.part.mp4"
    with suppress(FileNotFoundError):
        draft.unlink()
    try:
        yield draft
        draft.replace(final)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _named(path: Path) -> Iterator[Path]:
    """Give a path that decord can open, for it only takes UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder, "video")
            link.symlink_to(path)
            yield link
    else:
        yield path


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def answer(question: str, beat: Beat) -> str:
    """Answer a job as JSON: a verdict, or what the disk refused; nothing is raised."""
    fields: dict[str, Any] = json.loads(question)  # Any: JSON
    job = Job(**{**fields, "target": Target(**fields["target"])})
    try:
        return json.dumps({"verdict": asdict(examine(job, beat))})
    except Exception as error:
        if isinstance(error, OSError) and error.errno in normalise.REFUSALS:
            return json.dumps({"refused": [error.errno, error.strerror, str(error.filename)]})
        # A file has broken something: it is the file that goes.
        first_line = f"{type(error).__name__}: {error}".partition("\n")[0][:160]
        verdict = Verdict(action="quarantined", reason=first_line, passing=True)
        return json.dumps({"verdict": asdict(verdict)})


if __name__ == "__main__":
    isolation.serve(answer)
