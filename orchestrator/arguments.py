"""Values of the command line: what each may be, and the flags of commands that take many."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

SRC = "class folders, a folder of videos, or a CSV"


def add_ingest(verb: argparse.ArgumentParser) -> None:
    """Add what `paretoken ingest` takes."""
    verb.add_argument("src", type=place, metavar="SRC", help=SRC)
    verb.add_argument("--out", required=True, type=place, metavar="DIR", help="a folder for it")
    given = "labels and splits from ucf101:, hmdb51:, ssv2: or kinetics: and their folder"
    verb.add_argument("--annotations", type=lists, metavar="KIND:PATH", help=given)
    verb.add_argument("--fold", type=count, default=1, metavar="N", help="of official splits")
    short = "cap on the short side of rewritten videos, pixels (default: as it is)"
    verb.add_argument("--short-side", type=count, default=0, metavar="N", help=short)
    crf = "of rewritten videos: 0 lossless to 51 (default: 18)"
    verb.add_argument("--quality", type=quality, default=18, metavar="CRF", help=crf)
    pixels = "most pixels of a frame (default: 4096 x 4096)"
    verb.add_argument("--max-pixels", type=count, default=4096**2, metavar="N", help=pixels)
    bad = "share of bad videos beyond which the exit code is 1 (default: 0.02)"
    verb.add_argument("--max-bad", type=share, default=0.02, metavar="SHARE", help=bad)
    head = "keep what comes before the place where a video breaks off (default: quarantine it)"
    verb.add_argument("--salvage", action="store_true", help=head)
    still = "seconds without a sign of life of a decoder (default: 60)"
    verb.add_argument("--patience", type=count, default=60, metavar="S", help=still)
    advice = "what `paretoken advise` may take at the end (default: 20, 0 = leave it out)"
    verb.add_argument("--advice-seconds", type=seconds, default=20, metavar="S", help=advice)
    verb.add_argument("--address", metavar="ADDR", help="Ray cluster (default: start one here)")


def add_advise(verb: argparse.ArgumentParser) -> None:
    """Add what `paretoken advise` takes."""
    verb.add_argument("src", type=place, metavar="SRC", help=SRC)
    verb.add_argument("--seconds", type=count, default=60, metavar="S", help="at most, about")
    page = Path("paretoken-store", "advice")
    verb.add_argument("--out", type=place, default=page, metavar="DIR", help="for the figure")


def path(text: str) -> Path:
    """Return a path."""
    if not text.strip():  # a variable of the shell that is not set; it would mean this folder
        raise argparse.ArgumentTypeError(f"{text!r} is no path")
    return Path(text)


def place(text: str) -> Path:
    """Return a path that processes of Ray are told of: it takes UTF-8 alone."""
    try:
        text.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(text).decode(errors="backslashreplace")
        what = f"'{shown}' is not UTF-8: rename it, or name a link to it"
        raise argparse.ArgumentTypeError(what) from None
    return path(text)


def count(text: str) -> int:
    """Return a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, 1 or more")
    return int(text)


def lists(text: str) -> tuple[str, Path]:
    """Return the kind of a published data set and where its lists are."""
    kind, _, folder = text.partition(":")
    if not kind or not folder:
        raise argparse.ArgumentTypeError(f"{text!r} must be KIND:PATH, such as ucf101:lists")
    return kind, place(folder)


def seconds(text: str) -> int:
    """Return a whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, 0 or more")
    return int(text)


def quality(text: str) -> int:
    """Return a constant rate factor of x264."""
    if not text.isdecimal() or int(text) > 51:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 0 to 51")
    return int(text)


def share(text: str) -> float:
    """Return a number from 0 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a share from 0 to 1")
    return number


def size(text: str) -> float:
    """Return GiB, 0 or more."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of GiB, 0 or more")
    return number
