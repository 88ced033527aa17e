"""Videos whose frames carry their number as a barcode: bars, black or white, survive any codec."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from workloads.barcodes import barcode, numbers_of

__all__ = ["barcode", "numbers_of", "write"]


def write(
    path: Path,
    frames: Iterable[np.ndarray],
    codec: str = "libx264",
    pixels: str = "yuv420p",
    **options: str,
) -> Path:
    import av

    with av.open(str(path), "w") as container:
        stream = None
        for frame in frames:
            if stream is None:
                stream = container.add_stream(codec, rate=25, options=options)
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = pixels
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path
