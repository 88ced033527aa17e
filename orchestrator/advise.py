"""`paretoken advise`: about a minute, no model: what each reduction can save on these videos.

A sample of the videos, class by class in turn, is surveyed until the time is over. Shares are means
over videos with their 95 % interval, from resampling the videos.
"""

from __future__ import annotations

import io
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orchestrator.chart import COLOURS, GREY, INK, MARKERS
from orchestrator.display import Display
from orchestrator.files import write_bytes, write_json
from orchestrator.sources import listing, safe
from orchestrator.words import duration
from workloads import survey as surveys
from workloads.mistakes import Mistake
from workloads.readers import UnreadableVideo
from workloads.survey import KEEPS, RATES, SIZES, TAUS, Survey, saving_of, survey

ALL = ""  # which no class is called
TAU = 0.1  # the paper's
MOST_CLASSES = 12  # in the table
MOST_LINES = 6  # in the figure
RESAMPLES = 1000
STILL, MOVING = 0.45, 0.75  # share kept at TAU: below, most of the picture rests; above, none does
WORD = 14  # characters of a class's name in the table

Surveys = dict[str, list[Survey]]


class Share(NamedTuple):
    """A mean over videos with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean * 100:.0f} +-{(self.high - self.low) * 50:.0f}"


@dataclass(frozen=True)
class Advice:
    """What was found on a sample."""

    by_class: Surveys
    """Class -> its surveyed videos; `ALL` are all of them."""
    total: int
    """Videos there are."""
    unreadable: int
    seconds: float


def advise(src: Path, seconds: float, display: Display) -> Advice:
    """Survey videos for so many seconds, or until all are done.

    Raises:
        Mistake: there are none, or none can be read.
    """
    begun = time.monotonic()
    videos = [(safe(source.clip.label), Path(source.file)) for source in listing(src).sources]
    by_class: Surveys = defaultdict(list)
    unreadable = 0
    for done, (label, path) in enumerate(_in_turn(videos)):
        if done and time.monotonic() - begun > seconds:
            break
        try:
            found = survey(path)
        except UnreadableVideo as error:
            unreadable += 1
            display.warn(safe(f"{error.path}: {error.reason}"))
        else:
            by_class[label or "unlabelled"].append(found)
        display.progress("survey", done + 1, len(videos))
    if not by_class:
        raise Mistake(f"SRC {src}: {unreadable or 'no'} videos, none can be read", "try ingest")
    whole = list(chain.from_iterable(by_class.values()))
    ordered = {label: by_class[label] for label in sorted(by_class)}
    return Advice({**ordered, ALL: whole}, len(videos), unreadable, time.monotonic() - begun)


def _in_turn(videos: Sequence[tuple[str, Path]]) -> Iterator[tuple[str, Path]]:
    """Take videos from each class in turn, in a seeded order within it."""
    classes: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for label, path in videos:
        classes[label].append((label, path))
    for label in classes:
        random.Random(0).shuffle(classes[label])
    for row in zip_longest(*classes.values()):
        yield from filter(None, row)


def share_of(values: Sequence[float]) -> Share:
    """Return the mean of some shares with its interval; of one video, there is none."""
    drawn = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Share(float(np.mean(values)), float(low), float(high))


def answer(advice: Advice) -> dict[str, Any]:  # Any: JSON
    """Return all numbers, by class: mean, low and high."""
    savings = {size: saving_of(size) for size in SIZES}
    classes = {}
    for label, found in advice.by_class.items():
        kept = {tau: share_of([one.kept[tau] for one in found]) for tau in TAUS}
        classes[label] = {
            "videos": len(found),
            "rlt": {str(tau): kept[tau] for tau in TAUS},
            "rlt_by_rate": {
                rate: {
                    str(tau): share_of([one.by_rate[rate][tau] for one in found]) for tau in TAUS
                }
                for rate in RATES
            },
            "motion": {
                name: {
                    str(keep): share_of([one.motion[name][keep] for one in found]) for keep in KEEPS
                }
                for name in ("mats", "flux")
            },
            "saving": {
                size: {
                    str(tau): share_of([savings[size](one.kept[tau]) for one in found])
                    for tau in TAUS
                }
                for size in SIZES
            },
        }
    facts: dict[str, Any] = {"videos": advice.total, "surveyed": len(advice.by_class[ALL])}
    facts |= {"unreadable": advice.unreadable, "seconds": advice.seconds}
    return {**facts, "all": classes.pop(ALL), "classes": classes}


def told(made: dict[str, Any]) -> list[str]:  # Any: what `answer` returns
    """Say what may be saved, in tables and in words."""
    clip, classes = surveys.CLIP, _largest(made)
    sample = f"{made['surveyed']} of {made['videos']} videos, {duration(made['seconds'])}"
    lines = [
        f"what can be saved on these videos ({sample}); percent, mean and its 95 % interval",
        f"clips: {clip.frames} frames, every {clip.stride:g}th, {clip.size} x {clip.size} px",
        "",
        *_table("tokens that RLT keeps", {f"tau {t:g}": ("rlt", str(t)) for t in TAUS}, classes),
        "",
        *_table(
            f"... at tau {TAU:g}, by frame rate",
            {rate: ("rlt_by_rate", rate, str(TAU)) for rate in RATES},
            classes,
        ),
        "",
        *_table(
            "motion that the kept tokens hold",
            {f"{m} {k:g}": ("motion", m, str(k)) for m in ("mats", "flux") for k in KEEPS},
            classes,
        ),
        "",
        *_table(
            f"MACs that RLT saves at tau {TAU:g}",
            {f"ViT-{size[0].upper()}": ("saving", size, str(TAU)) for size in SIZES},
            classes,
        ),
        "",
        *(_word(_shown(label), found) for label, found in classes.items()),
    ]
    return lines


def _largest(made: dict[str, Any]) -> dict[str, Any]:
    """Return the classes that fit a table, those of most videos, and all together last."""
    classes = made["classes"]
    names = sorted(classes, key=lambda label: (-classes[label]["videos"], label))
    shown = sorted(names[:MOST_CLASSES]) if len(names) > 1 else []
    return {**{label: classes[label] for label in shown}, ALL: made["all"]}


def _table(
    title: str, columns: dict[str, tuple[str, ...]], classes: dict[str, Any]
) -> Iterator[str]:
    yield f"{title:<36}" + "".join(f"{column:>10}" for column in columns)
    for label, found in classes.items():
        cells = []
        for path in columns.values():
            share: Any = found
            for name in path:
                share = share[name]
            cells.append(f"{share!s:>10}")
        name = _shown(label)[:WORD]
        yield f"  {name:<{WORD}} {found['videos']:>6} videos{'':<5}" + "".join(cells)


def _word(label: str, found: dict[str, Any]) -> str:
    """Say in words what to do about a class."""
    kept, saved = found["rlt"][str(TAU)], found["saving"]["base"][str(TAU)]
    half = f"half of the tokens (mats) hold {found['motion']['mats']['0.5'].mean * 100:.0f} %"
    low, high = f"{max(saved.low, 0) * 100:.0f}", f"{max(saved.high, 0) * 100:.0f}"
    much = f"{low} %" if low == high else f"{low}-{high} %"
    if kept.mean < STILL:
        return f"{label}: mostly still; RLT at {TAU:g} saves {much} of the MACs of a ViT-B"
    if kept.mean > MOVING:
        return f"{label}: all of it moves; RLT at {TAU:g} saves {much}; {half} of the motion"
    return f"{label}: partly still; RLT at {TAU:g} saves {much}; {half} of the motion"


def _shown(label: str) -> str:
    return "all" if label == ALL else label


def write(made: dict[str, Any], out: Path) -> list[str]:
    """Write the numbers and a figure of them; return where, as it is shown."""
    files = [out / "advice.json", out / "advice.png"]
    write_json(files[0], made)
    write_bytes(files[1], _figure(made))
    return [safe(str(file)) for file in files]


def _figure(made: dict[str, Any]) -> bytes:
    """Draw the tokens that RLT keeps by its threshold, a line a class."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.5), dpi=200, layout="constrained")
    panel = figure.add_subplot()
    classes = _largest(made)
    shown = [*list(classes)[:-1][:MOST_LINES], ALL]
    for number, label in enumerate(shown):
        shares = [classes[label]["rlt"][str(tau)] for tau in TAUS]
        colour = INK if label == ALL else COLOURS[number % len(COLOURS)]
        middle = [share.mean * 100 for share in shares]
        marker = MARKERS[number % len(MARKERS)][1]
        panel.plot(TAUS, middle, color=colour, marker=marker, label=str(number))
        low, high = ([share[i] * 100 for share in shares] for i in (1, 2))
        panel.fill_between(TAUS, low, high, color=colour, alpha=0.15, linewidth=0)
    panel.set(xscale="log", ylim=(0, 100), xlabel="RLT's tau", ylabel="tokens kept, %")
    panel.set_xticks(TAUS, [f"{tau:g}" for tau in TAUS])
    panel.minorticks_off()  # their labels would lie on those of the taus
    panel.set_title(f"{made['surveyed']} of {made['videos']} videos", color=GREY, loc="left")
    for text, label in zip(panel.legend(frameon=False).get_texts(), shown, strict=True):
        text.set_parse_math(False)  # a class may be called $a_$, or _a, which no legend would show
        text.set_text(_shown(label))
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
