"""What a saved model is shown of a video, and how it is read: all of a prediction but the weights.

The pixels of a video pass `footage.whole`, the choice of frames, `frames.cap` and `clips.fit`, as
they do between a study's videos and its logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from workloads import clips
from workloads.mistakes import Mistake


@dataclass(frozen=True, kw_only=True)
class Config:
    """As the evaluation had it that measured the model."""

    clip: clips.Config = clips.Config()  # noqa: RUF009 - frozen
    """Frames and size of a clip."""
    short_side: int = 0
    """Cap on the short side of frames before a clip is made of them, pixels; 0 = none."""
    views: int = 1
    """Clips of a video whose predictions are averaged."""
    head: int = 0
    """Classifier that is read."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products."""
    seed: int = 0
    """Of reducers that draw."""

    def __post_init__(self) -> None:
        if self.views < 1 or self.head < 0 or self.short_side < 0:
            shown = f"views={self.views}, head={self.head}, short_side={self.short_side}"
            raise Mistake(
                f"sampling: {shown} cannot be", "views are 1 or more, the others 0 or more"
            )
