"""The `README.md` of an exported folder: what it is, what was measured, where it comes from."""

from __future__ import annotations

import math
import platform
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch

from orchestrator.ledger import Record
from orchestrator.summary import Summary
from orchestrator.words import (
    Axes,
    Entry,
    confirmed_of,
    digits,
    label,
    method,
    percent,
    value_of,
)

NAME = "README.md"


@dataclass(frozen=True, kw_only=True)
class Check:
    """How a folder, loaded again, compares with what the study recorded."""

    clips: int
    split: str
    difference: float
    """The farthest that a logit lies from the recorded one."""
    bound: float
    is_close: bool
    """Whether labels are equal and logits within the bound, absolute or relative."""
    draws: bool
    """Whether the chain draws, so that logits depend on the seed of a clip."""
    device: str

    @property
    def words(self) -> str:
        """Say what was compared and how far it lay apart."""
        return (
            f"{self.clips} {self.split} clips, largest difference of a logit {self.difference:.1e} "
            f"(bound {self.bound:.0e}, on {self.device})"
        )

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """Return what `--json` shows."""
        return {name: value for name, value in asdict(self).items() if name != "is_close"}


class Configs(Protocol):
    """The configs of the two stages that a point is made of."""

    @property
    def trained(self) -> dict[str, Any]:  # Any: JSON
        """Config of the training."""

    @property
    def evaluated(self) -> dict[str, Any]:  # Any: JSON
        """Config of the evaluation."""


def of(made: Summary, record: Record, configs: Configs, check: Check, command: str) -> bytes:
    """Return the README of a point."""
    sections = (
        _title(made, record),
        _measured(made, record),
        _use(),
        _shown(configs.evaluated),
        _made(made, record, configs, check, command),
    )
    return "\n".join(sections).encode()


def _title(made: Summary, record: Record) -> str:
    return f"""# {method(record.params)}

Trial {record.trial} of the study `{made["study"]}` ({made["study_key"]}): {made["question"]}
"""


def _measured(made: Summary, record: Record) -> str:
    """Return a table: this point, and the dense model beside it."""
    axes, dense = Axes.of(made), made["dense"]
    entry = {"values": record.values, "tokens": record.metrics.get("cost/tokens")}
    rows = [("this model", axes.cells(entry))]
    if dense and dense["trial"] != record.trial:
        rows.append(("dense", axes.cells(dense)))
    lines = [f"| {name} | {' | '.join(cells)} |" for name, cells in rows]
    others = {name: value for name, value in sorted(record.metrics.items()) if value}
    listed = "\n".join(f"| `{name}` | {value:.6g} |" for name, value in others.items())
    cost = record.values[axes.cost]
    saved = percent(1 - cost / value_of(dense, axes.cost), digits=0) if dense else "-"
    heads = " | ".join(axes.headings)
    return f"""## Measured

| | {heads} |
| :-- | --: | --: | --: | --: |
{chr(10).join(lines)}

{label(axes.cost)} are 1e9 multiply-accumulates of one view; {saved} fewer than dense.
{_error(made, record, axes)}
{confirmation(made, record, axes)}

| metric | value |
| :-- | --: |
{listed}
"""


def _error(made: Summary, record: Record, axes: Axes) -> str:
    share, clips = record.values[axes.gain], made["split"]["clips"]
    error = 100 * math.sqrt(share * (1 - share) / clips)
    return f"val split, {clips} clips: standard error {error:.1f} points."


def confirmation(made: Summary, record: Record, axes: Axes) -> str:
    """Say what `paretoken confirm` found of this point, if it looked at it."""
    found, entry = made.get("confirmed"), confirmed_of(made, record.trial)
    if found is None or entry is None:
        return """Not confirmed: one training, and the split that the point was chosen on.
Latency, throughput and memory were not measured."""
    low, high = (percent(end) for end in entry["intervals"][axes.gain])
    seeds = len(entry["by_seed"])
    on = f"{seeds} further seeds" if seeds > 1 else "the same weights"
    lines = [
        f"Confirmed on {on} and {found['clips']} {found['split']} clips: {label(axes.gain)} "
        f"{percent(entry['values'][axes.gain])} (95 % interval {low} to {high}),",
        f"{entry['difference']:+.1f} points from the searched value; on the front in "
        f"{percent(entry['on_front'], digits=0)} of the draws.",
    ]
    return "\n".join([*lines, *_timed(found, entry)])


def _timed(found: dict[str, Any], entry: Entry) -> list[str]:
    """Say how fast this point was where it was timed, and how much memory it took."""
    if "latency_ms" not in entry:
        return ["Latency, throughput and memory were not measured."]
    setting, peak = found["timing"], entry.get("peak_mb")
    return [
        f"Timed alone on {setting['device']}, {setting['threads']} threads, attention "
        f"{entry['attention']}:",
        f"latency {digits(entry['latency_ms']['median'])} ms (one clip), throughput "
        f"{digits(entry['clips_per_s']['median'])} clips/s in batches of {setting['batch']} "
        f"({entry['speedup']:.2f} x dense), peak memory {digits(peak)} MB.",
    ]


def _use() -> str:
    return """## Use

    paretoken predict FOLDER VIDEO...

    from workloads.predict import Predictor
    for answer in Predictor("FOLDER")(["one.mp4"]): print(answer.label, answer.score)

    from workloads.pretrained import load
    model = load("FOLDER")              # model(clip_BCTHW), its chain included; chain=() is dense
"""


def _shown(evaluated: dict[str, Any]) -> str:  # Any: JSON
    clip = evaluated["clip"]
    how = (
        f"at stride {clip['stride']:g}"
        if clip["sampling"] == "dense"
        else "one from each of equal parts"
    )
    square = "squashed to" if clip["fit"] == "squash" else "scaled and cropped in the middle to"
    views = f"{evaluated['views']} view{'s' * (evaluated['views'] > 1)}"
    return f"""## What it is shown

{views} of {clip["frames"]} frames, {how}, {square} {clip["size"]}
px; a video that is too short repeats its last frame. Matrix products in {evaluated["precision"]},
classifier {evaluated["head"]}. All of it stands in `config.json` under `paretoken`.
"""


def _trained(configs: Configs) -> str:
    """Say where the weights are from: a seed, or a checkpoint, which has none."""
    if "digest" in configs.trained:
        return f"a checkpoint from outside (sha256 {configs.trained['digest'][:16]})"
    return f"training {configs.trained['seed']}"


def _made(made: Summary, record: Record, configs: Configs, check: Check, command: str) -> str:
    stages = "\n".join(
        f"* {took['kind']} `{took['key'][:12]}`: {took['seconds']:.0f} s on {took['device']}"
        for took in record.stages
    )
    draws = (
        "\nIts chain draws at random: the study seeds each clip by its number, `predict` all "
        "alike, so single\npredictions differ from the study's; the check above used the study's "
        "seeds.\n"
        if check.draws
        else ""
    )
    return f"""## How it was made

    {command}

* seeds: {_trained(configs)}, evaluation {configs.evaluated["seed"]}
{stages}
* exported with torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}

After writing, the folder was loaded again and compared with what the study recorded:
{check.words}; labels equal.
{draws}"""
