"""Videos that show the same pictures, whatever their files are: none may lie on two sides.

Where splits are given, the copies stay on one side, test before val before train, and leave the
others. Where a split is still to be made, they become one group, for a group is never divided.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from workloads.datasets import Clip

KEPT_FIRST = ("test", "val", "train", "")


@dataclass(frozen=True)
class Settled:
    """What becomes of the videos."""

    clips: tuple[Clip, ...]
    """Those that stay, in their order, with the groups that they now have."""
    leaving: dict[str, str]
    """Path of a video that leaves -> why."""
    notes: dict[str, str]
    """Path of a video that stays -> what is odd about it."""


def settle(clips: Sequence[Clip], pictures: dict[str, str]) -> Settled:
    """Bring the copies of a video to one side.

    Args:
        clips: with splits and groups as given.
        pictures: path of a clip -> what is equal for those that show the same.
    """
    twins = defaultdict(list)
    for clip in clips:
        twins[pictures[clip.path]].append(clip)
    leaving: dict[str, str] = {}
    notes: dict[str, str] = {}
    merged = _Groups()
    for same in twins.values():
        sides = {clip.split for clip in same}
        side = next((side for side in KEPT_FIRST if side in sides), same[0].split)
        kept = [clip for clip in same if clip.split == side]
        first = kept[0]
        for clip in same:
            if clip.split != side:
                leaving[clip.path] = f"shows the same as {first.path}, which is in {side}"
        for clip in kept[1:]:
            what = "" if clip.label == first.label else f", which is labelled {first.label}"
            notes[clip.path] = f"shows the same as {first.path}{what}"
            merged.join(first, clip)
    staying = [merged.of(clip) for clip in clips if clip.path not in leaving]
    return Settled(tuple(staying), leaving, notes)


class _Groups:
    """Groups that have become one: each points to another, the first of them to itself."""

    def __init__(self) -> None:
        self._up: dict[tuple[str, str], tuple[str, str]] = {}

    def join(self, one: Clip, other: Clip) -> None:
        """Make the groups of two clips one; a clip without a group is a group of its own."""
        first, second = sorted((self._top(_own(one)), self._top(_own(other))))
        self._up[second] = first
        self._up.setdefault(first, first)

    def of(self, clip: Clip) -> Clip:
        """Return a clip with the group it is in now."""
        if _own(clip) not in self._up:
            return clip
        return replace(clip, group=self._top(_own(clip))[1])

    def _top(self, group: tuple[str, str]) -> tuple[str, str]:
        while self._up.get(group, group) != group:
            group = self._up[group]
        return group


def _own(clip: Clip) -> tuple[str, str]:
    """Name a clip's group; one that was given comes first."""
    return ("a group", clip.group) if clip.group else ("b path", clip.path)
