"""`paretoken predict`: what a model folder makes of videos, a line each. Needs no Ray, no store."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from orchestrator.display import Display
from orchestrator.words import percent
from workloads.predict import Answer, Predictor, found

Tell = Callable[[str], None]


def predict(
    folder: Path, videos: Sequence[Path], batch: int, as_json: bool, tell: Tell
) -> tuple[int, dict[str, Any]]:  # Any: JSON
    """Label videos; return exit code and what came of them all: 1 if not one could be read.

    Args:
        folder: of the model.
        videos: files, folders of them, lists of them.
        batch: videos at once; changes no label.
        as_json: whether a video's line is JSON.
        tell: prints a line on stdout.

    Raises:
        Mistake: the folder is no model, or a folder or list has no videos.
    """
    display = Display()
    paths = found(videos)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predictor = Predictor(folder, device)
    if not predictor.is_ours:
        display.warn(f"{folder}: says nothing of sampling; {_sampled(predictor)} are taken")
    counts = {"videos": len(paths), "labelled": 0, "failed": 0, "short": 0}
    for answer in predictor(paths, batch):
        is_short = not answer.reason and answer.frames < predictor.span
        if is_short and not counts["short"]:
            display.warn(_told_short(answer, predictor))
        counts["labelled" if not answer.reason else "failed"] += 1
        counts["short"] += is_short
        if answer.reason:
            display.warn(f"{answer.path}: {answer.reason}")
        if as_json:
            tell(json.dumps(_entry(answer), allow_nan=False))
        elif not answer.reason:
            tell(f"{percent(answer.score):>7}  {answer.label}  {answer.path}")
    return int(not counts["labelled"]), {"model": str(folder), **counts}


def _entry(answer: Answer) -> dict[str, Any]:  # Any: JSON
    """Return what `--json` says of a video."""
    if answer.reason:
        return {"path": str(answer.path), "error": answer.reason}
    return {
        "path": str(answer.path),
        "label": answer.label,
        "score": answer.score,
        "logits": list(answer.logits),
    }


def _sampled(predictor: Predictor) -> str:
    clip = predictor.sampling.clip
    return f"{clip.frames} frames at stride {clip.stride:g}, {clip.size} px ({clip.fit})"


def _told_short(answer: Answer, predictor: Predictor) -> str:
    return (
        f"{answer.path} has {answer.frames} frames, a clip spans {predictor.span}: the last frame "
        "repeats, here and wherever a video is too short"
    )
