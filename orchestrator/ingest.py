"""`paretoken ingest`: from videos as they come to a data set that every decoder reads the same.

    DIR/manifest.csv, .parquet    a row a video that can be used; `--data DIR/manifest.csv`
    DIR/quarantine.csv            a row a video that cannot, with the reason
    DIR/videos/                   links to videos that are fine, rewritten ones of the others
    DIR/spare/                    copies of videos that lie on another side of a split
    DIR/journal/                  what was examined: a run that was killed goes on from there

Every video is decoded whole, once, by PyAV, and proved against decord. Splits stay as given: where
there are none, a study makes its own. Copies of a video never lie on two sides.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator import cluster, examiners, failures, interrupts, inventory, journal
from orchestrator.display import Display
from orchestrator.files import read_json, write_json
from orchestrator.inventory import Inventory
from orchestrator.lock import Lock
from orchestrator.sources import Listing, Lists, Source, listing, safe
from orchestrator.words import duration, percent
from workloads import examine, normalise, readers
from workloads.examine import Job, Verdict
from workloads.knobs import key_of
from workloads.mistakes import Mistake
from workloads.normalise import Target
from workloads.probe import MOST_PIXELS

NORMAL = "normalised"
CLAIM = "ingest.json"  # written first: whose videos the folder holds


class Stopped(RuntimeError):  # noqa: N818 - nothing is lost
    """The disk takes no more."""

    is_expected = True
    goes_on = True  # with the same command


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says."""

    src: Path
    out: Path
    target: Target = field(default_factory=Target)
    most_pixels: int = MOST_PIXELS
    max_bad: float = 0.02
    """Share of videos that cannot be used, beyond which the exit code is 1."""
    salvage: bool = False
    """Whether to keep the readable head of damaged videos."""
    patience_s: float = 60.0
    """How long a decoder may give no sign of life."""
    address: str | None = None
    lists: Lists | None = None
    """Of a published data set."""


def ingest(options: Options, display: Display) -> tuple[Inventory, Listing]:
    """Examine all videos of a source and write the data set; return what it says of them.

    Raises:
        Mistake: something the user can put right.
        Stopped: the disk takes no more.
    """
    _check_places(options)
    found = listing(options.src, options.lists, options.out)
    if not found.sources and not found.closed:
        raise Mistake(f"SRC {options.src}: no videos", "name the folder they are in")
    if found.missing:
        display.warn(f"{found.missing} videos of the lists are not in {safe(str(options.src))}")
    if found.doubt:
        display.warn(found.doubt)
    with _claimed(options):
        verdicts = _examined(options, found, display)
        made = inventory.take(options.out, found, verdicts)
        inventory.fetch(made)
        inventory.write(made)
        inventory.sweep(made, {verdict.path for verdict in verdicts.values()})
    return made, found


def of(args: argparse.Namespace) -> Options:
    """Return the options that a command line gives."""
    kind, place = args.annotations or ("", args.src)
    return Options(
        src=args.src,
        out=args.out,
        target=Target(short_side=args.short_side, quality=args.quality),
        most_pixels=args.max_pixels,
        max_bad=args.max_bad,
        salvage=args.salvage,
        patience_s=args.patience,
        address=args.address,
        lists=Lists(kind, place, args.fold) if kind else None,
    )


def answer(options: Options, made: Inventory, seconds: float) -> tuple[int, dict[str, Any]]:
    """Return exit code and JSON object: 1 where too much is bad, or nothing is left."""
    is_bad = made.share_bad > options.max_bad or not made.rows
    return int(is_bad), {
        "accepted": made.count("accepted"),
        "normalised": made.count(NORMAL),
        "quarantined": len(made.bad),
        "duplicates": made.twins,
        "manifest": safe(str(made.csv)),
        "quarantine": safe(str(made.quarantine)),
        "seconds": round(seconds, 3),
    }


def told(options: Options, made: Inventory, found: Listing, seconds: float) -> list[str]:
    """Say what came of all videos, a line a thing."""
    why = _whys(row["reason"] for row in made.rows if row["action"] == NORMAL)
    lines = [f"accepted     {made.count('accepted'):>6}   as they are, linked"]
    lines.append(f"normalised   {made.count(NORMAL):>6}   rewritten: {why}".removesuffix(": "))
    if made.bad:
        why = _whys(row["reason"] for row in made.bad)
        lines.append(f"quarantined  {len(made.bad):>6}   {why}: {safe(str(made.quarantine))}")
    if found.unlisted:
        count, first = len(found.unlisted), found.unlisted[0]
        lines.append(f"passed over  {count:>6}   in none of the lists, such as {first}")
    if found.others:
        endings = ", ".join(f"{n} {ending}" for ending, n in found.others.most_common(4))
        lines.append(f"passed over  {found.others.total():>6}   not named like videos: {endings}")
    given = {bool(row["label"]) for row in made.rows}
    data = shlex.quote(safe(str(made.csv)))
    study = "rlt_tau" if given == {True} else "inference"
    lines.append(f"manifest     {data}   {duration(seconds)}")
    if made.share_bad > options.max_bad:
        limit = f"{percent(made.share_bad)}, limit {percent(options.max_bad)}"
        lines.append(f"too many videos cannot be used ({limit}, --max-bad)")
    return [*lines, f"next         paretoken run {study} --data {data}"]


def _whys(reasons: Iterable[str]) -> str:
    """Count reasons by how they begin, the most frequent first."""
    begun = Counter(re.split(r"[:;,]| \d", reason)[0] for reason in reasons)
    return ", ".join(f"{n} {why}" for why, n in begun.most_common(4))


def _check_places(options: Options) -> None:
    """Refuse a folder inside the other one: the next walk would find what this one made."""
    src, out = (Path(os.path.realpath(path)) for path in (options.src, options.out))
    place = src if src.is_dir() else src.parent
    if out == place or out in place.parents:
        raise Mistake(f"--out {options.out}: holds SRC {options.src}", "name a folder beside it")
    if src.is_dir() and src in out.parents:
        raise Mistake(f"--out {options.out}: lies in SRC {options.src}", "name a folder beside it")
    try:
        if not stat.S_ISDIR(os.stat(options.out).st_mode):
            raise Mistake(f"--out {options.out}: is no folder", "name a new one")
    except OSError as error:  # FileNotFoundError: it will be made
        if not isinstance(error, FileNotFoundError) or options.out.is_symlink():
            raise _unusable(options, error) from error


def _unusable(options: Options, error: OSError) -> Mistake:
    is_link = isinstance(error, FileNotFoundError | FileExistsError)  # to what is not there
    why = "is a link to nothing" if is_link else (error.strerror or str(error)).lower()
    return Mistake(f"--out {options.out}: {why}", "name another folder")


def _claimed(options: Options) -> Lock:
    """Make an empty folder the one for these videos, or find that it is; return its lock, taken."""
    out = options.out
    is_ours = (out / CLAIM).is_file()
    if not is_ours and out.exists() and any(not name.startswith(".") for name in os.listdir(out)):
        raise Mistake(f"--out {out}: holds other files", "name a new or an empty folder")
    if is_ours and (before := _source_of(out)) != _claim(options)["source"]:
        raise Mistake(f"--out {out}: holds the videos of {before}", "name another folder")
    lock = Lock(out / ".lock")
    try:
        is_taken = lock.take()
    except OSError as error:
        raise _unusable(options, error) from error
    if not is_taken:
        raise Mistake(f"--out {out}: is being filled by {lock.holder()}", "wait for it, or stop it")
    write_claim(options)
    return lock


def _source_of(out: Path) -> str:
    """Return whose videos a folder holds."""
    try:
        return str(read_json(out / CLAIM)["source"])
    except (ValueError, TypeError, KeyError) as error:
        what = f"--out {out}: its {CLAIM} is not one that paretoken wrote"
        raise Mistake(what, "name another folder") from error


def write_claim(options: Options) -> None:
    """Write down whose videos the folder holds."""
    write_json(options.out / CLAIM, _claim(options))


def _claim(options: Options) -> dict[str, str]:
    return {"source": safe(os.path.realpath(options.src))}


def _examined(options: Options, found: Listing, display: Display) -> dict[str, Verdict]:
    """Return the verdict on every video by its path, examining those that have none yet."""
    kept = options.out / "journal"
    kept.mkdir(exist_ok=True)
    journal.wait(kept)
    jobs = {source.clip.path: _job(options, source) for source in found.sources}
    keys = {source.clip.path: key_for(options, source) for source in found.sources}
    jobs = {path: _told_apart(job, keys[path]) for path, job in jobs.items()}
    files = {keys[path]: job.source for path, job in jobs.items()}
    known = {
        key: verdict
        for key, verdict in journal.read(kept)
        if key in files and _holds(options.out, verdict, files[key])
    }
    todo = {keys[path]: job for path, job in jobs.items() if keys[path] not in known}
    done, total = len(jobs) - len(todo), len(jobs)
    if done:
        display.line(f"continuing: {done} of {total} videos are done")
    if todo:
        display.line(f"ray     {cluster.join(options.address)}")
        interrupts.arm()
        display.progress("examine", done, total)
    try:
        for some in examiners.examine(todo, kept, options.patience_s) if todo else ():
            known.update(some)
            done += len(some)
            display.progress("examine", done, total)
    except Exception as error:
        refused = failures.refusal(error)
        if refused is None:
            raise
        raise Stopped(f"{refused.filename or options.out}: {refused.strerror}") from error
    return {path: known[key] for path, key in keys.items()}


def _job(options: Options, source: Source) -> Job:
    return Job(
        source=source.file,
        folder=os.path.abspath(options.out / "videos"),
        link=source.link,
        copy=source.copy,
        target=options.target,
        most_pixels=options.most_pixels,
        salvage=options.salvage,
    )


def key_for(options: Options, source: Source) -> str:
    """Return what changes with a video and with whatever decides on its verdict."""
    revisions = (examine.REVISION, normalise.REVISION)
    job = _job(options, source)
    moved = replace(job, folder="", source=safe(job.source))  # the data set may be moved
    return key_of([moved, source.size, source.mtime_ns, *revisions, readers.versions()])


def _told_apart(job: Job, key: str) -> Job:
    """Give a rewritten video a name that no other verdict has: what lies there is what it says."""
    stem, suffix = os.path.splitext(job.copy)
    return replace(job, copy=f"{stem}.{key[:8]}{suffix}")


def _holds(out: Path, verdict: Verdict, source: str) -> bool:
    """Say whether a verdict still holds: nothing passing, and what it made is there."""
    if not verdict.path or verdict.passing:
        return not verdict.passing
    there = [place for place in inventory.places(out, verdict.path) if os.path.lexists(place)]
    if verdict.action == "accepted":
        return any(place.is_symlink() and os.readlink(place) == source for place in there)
    return bool(there)
