"""Moving shapes: a textured polygon that crosses a textured ground once, drawn with numpy.

A way is drawn for one direction of an axis; the opposite direction is the same way run backwards,
and all that disturbs the picture looks the same backwards. So the frames of a clip, taken out of
order, do not tell left from right: only motion carries the label. Slow and quick motions cover the
same distance, in different time.

Letters: T frames, S side of the picture in pixels, C colour channels. Grey levels are 0 to 255;
places are (x, y) in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

Range = tuple[float, float]

# The axis of the way (0 is x, 1 is y), and whether it is run backwards.
DIRECTIONS = {"right": (0, False), "left": (0, True), "down": (1, False), "up": (1, True)}
SPEEDS = ("slow", "quick")
MARGIN = 3  # pixels of scene around the picture, for a shaking camera to look at


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the clips look like, whatever their class; a pair is a range to draw from."""

    length: Range = (0.30, 0.45)
    """Length of the actor, as a share of the side."""
    aspect: Range = (0.45, 0.70)
    """Width of a polygon over its length."""
    offset: Range = (50.0, 95.0)
    """Distance of a polygon's colour from the ground's, grey levels in each channel."""
    texture: float = 30.0
    """Amplitude of the gratings on polygons and waving patches, grey levels."""
    travel: Range = (0.5, 0.7)
    """Length of the way, as a share of the side."""
    slow: Range = (0.8, 1.0)
    """Duration of a slow motion, as a share of the frames."""
    quick: Range = (0.25, 0.4)
    """Duration of a quick motion, as a share of the frames; the polygon rests before and after."""
    jitter: float = 5.0
    """Largest angle between the way and its axis, degrees."""
    spin: float = 2.0
    """Largest turn of the polygon, degrees a frame."""
    ground: Range = (95.0, 155.0)
    """Mean of the ground, grey levels."""
    tint: float = 25.0
    """Largest distance of a channel's mean from the ground's, grey levels."""
    relief: float = 35.0
    """Contrast of the ground's texture, grey levels: the amplitude of a sine as strong."""
    distractors: int = 3
    """Most polygons that lie still on the ground."""
    distractor_length: Range = (0.12, 0.28)
    """Length of a distractor, as a share of the side."""
    noise: Range = (1.0, 3.0)
    """Standard deviation of the sensor noise, grey levels; half of it comes on top by channel."""
    drift: float = 0.02
    """Largest change of the light over a clip, as a share."""
    shaking: float = 0.20
    """Share of clips with a shaking camera."""
    shake: Range = (0.3, 0.8)
    """Standard deviation of the camera's place, pixels in each frame."""
    waving: float = 0.15
    """Share of clips with a waving patch, as of leaves."""
    patch: Range = (0.3, 0.5)
    """Side of a waving patch, as a share of the picture's."""
    wave: Range = (1.0, 3.0)
    """Amplitude of the waving, pixels."""


def render(
    look: Look, direction: str, speed: str, *, side: int, frames: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw one clip as uint8 (T, S, S, C).

    Args:
        look: what clips look like.
        direction: one of DIRECTIONS.
        speed: one of SPEEDS.
        side: of the picture, pixels.
        frames: their number, at least 8.
        rng: draws the same for opposite directions: only the order of the way differs.
    """
    ground_C = rng.uniform(*look.ground) + rng.uniform(-look.tint, look.tint, 3)
    scene_1SSC = (ground_C + _relief(look, side + 2 * MARGIN, rng)[None]).astype(np.float32)
    for _ in range(rng.integers(look.distractors + 1)):
        still = _Polygon(look, look.distractor_length, ground_C, side, rng)
        still.draw(scene_1SSC, rng.uniform(0, side, (1, 2)), np.zeros(1))
    scene_TSSC = np.repeat(scene_1SSC, frames, axis=0)
    if rng.random() < look.waving:
        _wave(scene_TSSC, look, ground_C, side, rng)
    actor = _Polygon(look, look.length, ground_C, side, rng)
    axis, is_backwards = DIRECTIONS[direction]
    order = slice(None, None, -1) if is_backwards else slice(None)
    shares_T = _progress(getattr(look, speed), frames, rng)
    places_T2 = _way(look, axis, side, actor.length, shares_T, rng)
    angles_T = np.radians(rng.uniform(-look.spin, look.spin)) * np.arange(frames)
    actor.draw(scene_TSSC, places_T2[order], angles_T[order])
    return _film(_picture(scene_TSSC, look, rng), look, rng)


def _progress(duration: Range, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Draw how much of the way (T,) in [0, 1] is done in each frame; a short motion has rests."""
    low, high = (round(share * frames) for share in duration)
    moving = int(rng.integers(low, high + 1))
    rest = min(1, (frames - high) // 2)
    start = int(rng.integers(rest, frames - moving - rest + 1))
    return ((np.arange(frames) - start) / (moving - 1)).clip(0, 1)


def _way(
    look: Look, axis: int, side: int, length: float, shares_T: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draw a forward way along an axis, and return the places (T, 2) on it."""
    travel = side * rng.uniform(*look.travel)
    angle = axis * np.pi / 2 + np.radians(rng.uniform(-look.jitter, look.jitter))
    slack = np.full(2, (side - length) / 2)
    slack[axis] -= travel / 2
    middle = side / 2 + rng.uniform(-1, 1, 2) * slack.clip(0)
    return middle + travel * np.outer(shares_T - 0.5, (np.cos(angle), np.sin(angle)))


class _Gratings:
    """Two waves of colour across the plane: a texture that can be looked up anywhere."""

    def __init__(self, look: Look, rng: np.random.Generator) -> None:
        angles, lengths = rng.uniform(0, 2 * np.pi, 2), rng.uniform(4, 10, 2)
        waves = np.stack([np.cos(angles), np.sin(angles)], axis=1) * 2 * np.pi / lengths[:, None]
        self.waves = np.column_stack([waves, rng.uniform(0, 2 * np.pi, 2)]).tolist()
        self.colours_2C = (look.texture / 2 * rng.uniform(0.3, 1, (2, 3))).astype(np.float32)

    def levels(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the grey levels (..., C) to add at these places."""
        phases = [a * x + b * y + start for a, b, start in self.waves]
        return np.sin(np.stack(phases, axis=-1)) @ self.colours_2C


class _Polygon:
    """A triangle or quadrangle inscribed in an ellipse, with gratings on it."""

    def __init__(
        self, look: Look, length: Range, ground_C: np.ndarray, side: int, rng: np.random.Generator
    ) -> None:
        self.length = side * float(rng.uniform(*length))
        radii = self.length / 2 * np.array([1, rng.uniform(*look.aspect)])
        count = rng.integers(3, 5)
        angles = 2 * np.pi * (np.arange(count) + rng.uniform(-0.3, 0.3, count)) / count
        corners = radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        sides = np.roll(corners, -1, axis=0) - corners
        normals = sides[:, ::-1] * (1, -1) / np.linalg.norm(sides, axis=1, keepdims=True)
        self.edges = np.column_stack([normals, (normals * corners).sum(axis=1)]).tolist()
        self.angle = rng.uniform(0, 2 * np.pi)
        offset_C = rng.uniform(*look.offset) * rng.choice((-1, 1), 3)
        self.colour_C = (ground_C + offset_C).astype(np.float32)
        self.gratings = _Gratings(look, rng)

    def draw(self, scene_TSSC: np.ndarray, places_T2: np.ndarray, angles_T: np.ndarray) -> None:
        """Blend the polygon into each frame, in place; its edges are one pixel soft."""
        columns, x = _window(places_T2[:, 0], self.length / 2 + 1, scene_TSSC.shape[2])
        rows, y = _window(places_T2[:, 1], self.length / 2 + 1, scene_TSSC.shape[1])
        angles = (angles_T + self.angle).astype(np.float32)[:, None]
        cos, sin = np.cos(angles), np.sin(angles)
        u = (cos * x)[:, None, :] + (sin * y)[:, :, None]
        v = (cos * y)[:, :, None] - (sin * x)[:, None, :]
        outside = np.maximum.reduce([a * u + b * v - distance for a, b, distance in self.edges])
        cover = np.clip(0.5 - outside, 0, 1)[..., None]
        part = scene_TSSC[:, rows, columns]
        part += cover * (self.colour_C + self.gratings.levels(u, v) - part)


def _window(places_T: np.ndarray, reach: float, size: int) -> tuple[slice, np.ndarray]:
    """Return the pixels of an axis within reach of any place, and how far (T, .) they are."""
    low = max(0, int(places_T.min() - reach + MARGIN))
    high = min(size, int(places_T.max() + reach + MARGIN) + 1)
    return slice(low, high), (np.arange(low, high) - MARGIN - places_T[:, None]).astype(np.float32)


def _relief(look: Look, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a smooth texture (S, S, C): five octaves of noise, each half as strong as the last."""
    total = np.zeros((size, size, 3), np.float32)
    for octave in range(5):
        grid = rng.standard_normal((2**octave + 2, 2**octave + 2, 3), dtype=np.float32)
        total += _resize(grid, _stretch(len(grid), size), _stretch(len(grid), size)) / 2**octave
    return look.relief / 2**0.5 * total / total.std()


def _wave(
    scene_TSSC: np.ndarray,
    look: Look,
    ground_C: np.ndarray,
    side: int,
    rng: np.random.Generator,
) -> None:
    """Put a patch into the scene whose rows swing from side to side, one after another."""
    length = round(side * rng.uniform(*look.patch))
    top, left = MARGIN + rng.integers(0, side - length + 1, 2)
    t, y, x = np.ogrid[: len(scene_TSSC), :length, :length]
    turns = rng.choice((-1, 1)) * t / rng.uniform(6, 16) + y / length + rng.random()
    colour_C = ground_C + rng.uniform(-look.tint, look.tint, 3)
    swung = x + rng.uniform(*look.wave) * np.sin(2 * np.pi * turns)
    levels = colour_C + _Gratings(look, rng).levels(swung, y)
    scene_TSSC[:, top : top + length, left : left + length] = levels


def _picture(scene_TSSC: np.ndarray, look: Look, rng: np.random.Generator) -> np.ndarray:
    """Cut off the margin: in the middle, or around it in each frame if the camera shakes."""
    if rng.random() >= look.shaking:
        return scene_TSSC[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
    size = scene_TSSC.shape[1]
    offsets_T2 = rng.normal(0, rng.uniform(*look.shake), (len(scene_TSSC), 2))
    pixels = np.arange(size - 2 * MARGIN)
    corners_T2 = MARGIN + offsets_T2.clip(-MARGIN, MARGIN)
    return np.stack(
        [
            _resize(frame, _weights(pixels + top, size), _weights(pixels + left, size))
            for frame, (top, left) in zip(scene_TSSC, corners_T2, strict=True)
        ]
    )


def _film(picture_TSSC: np.ndarray, look: Look, rng: np.random.Generator) -> np.ndarray:
    """Add drifting light and grain, and round."""
    frames, side = picture_TSSC.shape[:2]
    drift = rng.uniform(-look.drift, look.drift) * np.linspace(-0.5, 0.5, frames)
    light_T111 = (1 + drift).astype(np.float32)[:, None, None, None]
    grain = rng.standard_normal((frames, side, side, 4), dtype=np.float32)
    grain *= float(rng.uniform(*look.noise))
    levels = picture_TSSC * light_T111 + grain[..., :1] + grain[..., 1:] / 2
    return (levels + 0.5).clip(0, 255).astype(np.uint8)


def _resize(grid: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Resample (y, x, C) with a matrix of weights for each axis."""
    height, width, channels = grid.shape
    tall = rows @ grid.reshape(height, width * channels)
    return columns @ tall.reshape(len(rows), width, channels)


def _weights(places: np.ndarray, cells: int) -> np.ndarray:
    """Return the matrix (places, cells) of linear interpolation between neighbours."""
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(cells))).astype(np.float32)


@cache
def _stretch(cells: int, size: int) -> np.ndarray:
    """Return the matrix (size, cells) that spreads cells over a length."""
    return _weights(np.linspace(0, cells - 1, size), cells)
