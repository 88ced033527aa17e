"""Label videos with a saved model: the same decoding, frames, chain and head that it was measured
with.

    predictor = Predictor("cheaper")
    for answer in predictor(found([Path("videos"), Path("one.mp4")])):
        answer.path, answer.label, answer.score

Videos are read one by one and labelled in batches; a clip's numbers do not depend on its batch, but
for the last bits that matrix products of another size have. Reducers that draw do so with the same
seed for every video, so that a video's label depends on nothing else. A video that cannot be read
is an answer with a reason.

A folder that was not saved here has no word on sampling: then 16 frames (or those of its model),
every fourth, as its preprocessor fits them.

Legend: B clips, K classes, V views, C T H W video on the device, T H W C uint8 from the decoder.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workloads import augment, clips, evaluate, footage, frames, pretrained, readers
from workloads import folder as folders
from workloads.clips import CPU, Video, View, seed_of
from workloads.datasets.folders import SUFFIXES
from workloads.folder import Folder, read
from workloads.mistakes import Mistake

LISTS = (".csv", ".txt")
BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of a video."""

    path: Path
    label: str = ""
    score: float = math.nan
    """Probability of the label."""
    logits: tuple[float, ...] = ()
    """By class; of several views, the logarithm of the mean of their probabilities."""
    frames: int = 0
    """Frames of the video."""
    reason: str = ""
    """Why it has no label; empty if it has one."""


class Predictor:
    """A saved model that labels videos.

    Args:
        path: a folder that `pretrained.load` reads.
        device: where it runs.

    Raises:
        Mistake: the folder cannot be read, its weights do not fit its config, or its chain or head
        do not fit the clips that it is shown.
    """

    def __init__(self, path: str | Path, device: torch.device = CPU) -> None:
        folder = read(path)
        self.model = pretrained.of(folder).to(device)
        self.device, self.host, self.is_ours = device, folder.config, folder.sampling is not None
        self.sampling = folders.shown_by(folder)
        self._check(folder)
        num_classes = self.model.num_classes[self.sampling.head]
        self.classes = folder.labels or tuple(f"LABEL_{i}" for i in range(num_classes))

    def _check(self, folder: Folder) -> None:
        shown, num_heads = self.sampling, len(self.model.num_classes)
        if shown.head >= num_heads:
            raise Mistake(f"{folder.path}: head={shown.head} of a model with {num_heads}")
        side, chain = shown.clip.size, self.model.chain(None)
        grid = self.model.host.grid_of(shown.clip.frames, side, side)
        chain.check(chain.grid(grid))

    @property
    def span(self) -> int:
        """Frames of a video that a clip spans; a shorter one repeats frames."""
        return self.sampling.clip.span

    def __call__(self, paths: Sequence[str | Path], batch: int = BATCH) -> Iterator[Answer]:
        """Yield an answer a video, in their order."""
        for start in range(0, len(paths), batch):
            yield from self._label([Path(path) for path in paths[start : start + batch]])

    def _label(self, paths: Sequence[Path]) -> list[Answer]:
        answers, videos, lengths = [Answer(path=path) for path in paths], {}, {}
        for place, path in enumerate(paths):
            try:
                video = footage.whole(path)
            except readers.UnreadableVideo as error:
                answers[place] = Answer(path=path, reason=error.reason)
            except OSError as error:
                answers[place] = Answer(path=path, reason=error.strerror or str(error))
            else:
                videos[place], lengths[place] = self.views_of(video), len(video)
        if videos:
            logits_BK = self.logits(list(videos.values()))
            for place, logits_K in zip(videos, logits_BK, strict=True):
                answers[place] = self._answer(paths[place], logits_K, lengths[place])
        return answers

    def _answer(self, path: Path, logits_K: Tensor, num_frames: int) -> Answer:
        if not logits_K.isfinite().all():
            return Answer(path=path, reason="its logits are no finite numbers")
        score, label = logits_K.softmax(dim=0).max(dim=0)
        return Answer(
            path=path,
            label=self.classes[int(label)],
            score=float(score),
            logits=tuple(logits_K.tolist()),
            frames=num_frames,
        )

    def views_of(self, frames_THWC: Video) -> np.ndarray:
        """Return the clips of a video, uint8 (V, T, H, W, C)."""
        shown = self.sampling
        views = []
        for place in range(shown.views):
            chosen = clips.frame_indices(len(frames_THWC), shown.clip, View(place, shown.views))
            kept_THWC = frames_THWC[chosen]
            if shown.short_side:
                kept_THWC = frames.cap(kept_THWC, shown.short_side)
            views.append(clips.fit(kept_THWC, shown.clip))
        return np.stack(views)

    @torch.inference_mode()
    def logits(self, videos: Sequence[np.ndarray], ids: Sequence[int] | None = None) -> Tensor:
        """Return the logits (B, K) of videos as `views_of` has them, float32 on the CPU.

        Args:
            videos: their clips.
            ids: a number a video, from which reducers draw; 0 for all if none are given.
        """
        shown, ids = self.sampling, ids or (0,) * len(videos)
        batch_BVTHWC = torch.from_numpy(np.stack(videos)).to(self.device)
        logits_VBK = []
        for view, clip_BTHWC in enumerate(batch_BVTHWC.unbind(dim=1)):
            clip_BCTHW = clip_BTHWC.permute(0, 4, 1, 2, 3)
            pixels = augment.normalise(clip_BCTHW, self.host.mean, self.host.std)
            seeds = [seed_of(shown.seed, view, one) for one in ids]
            half = shown.precision == "bfloat16"
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                logits_BK = self.model(pixels, None, shown.head, seeds)
            logits_VBK.append(logits_BK.float())
        return evaluate.average(torch.stack(logits_VBK)).cpu()


# Which videos.


def found(paths: Sequence[Path]) -> list[Path]:
    """Return the videos that paths stand for: files, folders of them, and lists.

    A list is a text file with a path a line, or a CSV with the column `path`, relative to it. What
    is no folder and no list is taken for a video, there or not.

    Raises:
        Mistake: a folder without videos, or a list that cannot be read or has none.
    """
    return [video for path in paths for video in _found(path)]


def _found(path: Path) -> list[Path]:
    if path.is_dir():
        videos = [one for one in sorted(path.rglob("*")) if _is_video(one, path)]
    elif path.suffix.lower() in LISTS:
        videos = [path.parent / name for name in _names(path)]
    else:
        return [path]
    if not videos:
        raise Mistake(f"{path}: no videos", f"known endings: {' '.join(SUFFIXES)}")
    return videos


def _is_video(path: Path, root: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return path.suffix.lower() in SUFFIXES and not is_hidden and path.is_file()


def _names(path: Path) -> list[str]:
    """Return the paths in a list."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "no UTF-8 text"
        raise Mistake(
            f"{path}: {why}", "a list has a path a line, or is a CSV with `path`"
        ) from None
    if path.suffix.lower() != ".csv":
        return [line.strip() for line in lines if line.strip()]
    rows = list(csv.DictReader(lines))
    if any(not row.get("path") for row in rows):
        raise Mistake(f"{path}: a row has no path", "the first line must name the column: path")
    return [row["path"].strip() for row in rows]
