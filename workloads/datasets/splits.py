"""Train, val and test: splits that are given are kept, missing ones are made.

    nothing given    a study that trains: 60 % train, 20 % val, 20 % test; else 80 % val, 20 % test
    no val given     20 % of train becomes val

Clips of one group (a scene, a person) never lie on two sides; a clip without a group stands alone.
Groups are placed one after another, the largest first and equals in a seeded order, each where it
brings its classes nearest to their shares. The last groups of a class are kept for the sides that
have none of it yet. The order is by hash: neither the order of the rows nor the machine matters.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from workloads.datasets.manifest import Clip
from workloads.mistakes import Mistake

SIDES = ("train", "val", "test")
NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def assign(
    clips: Sequence[Clip], *, trains: bool, seed: int, field: str
) -> tuple[list[Clip], tuple[str, ...]]:
    """Return the clips with a split each, and what a person should hear about it.

    Args:
        clips: the rows as they were given.
        trains: whether a train split is needed.
        seed: decides between groups of equal size.
        field: names the data set in a Mistake.
    """
    clips = [_named(clip, field) for clip in clips]
    if not any(clip.split for clip in clips):
        shares = {"train": 0.6, "val": 0.2, "test": 0.2} if trains else {"val": 0.8, "test": 0.2}
        return place(clips, shares, seed), _notes("no splits given", shares, clips)
    _check_given(clips, field)
    train = [clip for clip in clips if clip.split == "train"]
    if not train or any(clip.split == "val" for clip in clips):
        return clips, ()
    shares = {"train": 0.8, "val": 0.2}
    placed = place(train, shares, seed) + [clip for clip in clips if clip.split != "train"]
    return placed, _notes("no val split given, so train was divided", shares, train)


def place(clips: Sequence[Clip], shares: Mapping[str, float], seed: int) -> list[Clip]:
    """Divide clips by group, so that each class has its share on every side if that can be.

    Args:
        clips: to be divided; their splits are overwritten.
        shares: of each side, adding up to 1.
        seed: decides between groups of equal size.
    """
    groups = _groups(clips)
    sides = _Sides(groups.values(), shares)
    placed = []
    for name in sorted(groups, key=lambda name: (-len(groups[name]), _hash(seed, *name))):
        side = sides.add(Counter(clip.label for clip in groups[name]))
        placed += [replace(clip, split=side) for clip in groups[name]]
    return placed


class _Sides:
    """How many clips of each class lie on each side, and how many should."""

    def __init__(self, groups: Collection[list[Clip]], shares: Mapping[str, float]) -> None:
        totals = Counter(clip.label for group in groups for clip in group)
        self.names = tuple(shares)
        self.targets = {
            (side, label): share * total
            for side, share in shares.items()
            for label, total in totals.items()
        }
        self.counts: Counter[tuple[str, str]] = Counter()
        self.groups_left = Counter(
            label for group in groups for label in {clip.label for clip in group}
        )

    def add(self, labels: Counter[str]) -> str:
        """Place a group with these labels, and return the side it went to."""
        best = max(
            self.names, key=lambda name: (self._need(name, labels), self._gain(name, labels))
        )
        for label, count in labels.items():
            self.counts[best, label] += count
            self.groups_left[label] -= 1
        return best

    def _need(self, name: str, labels: Counter[str]) -> int:
        """Count the classes that a side has none of and that this may be its last chance to get."""
        return sum(
            self.counts[name, label] == 0 and self.groups_left[label] <= self._num_lacking(label)
            for label in labels
        )

    def _num_lacking(self, label: str) -> int:
        return sum(self.counts[name, label] == 0 for name in self.names)

    def _gain(self, name: str, labels: Counter[str]) -> float:
        """Return by how much sum((count - target)^2 / target) falls if the group is placed here."""
        gain = 0.0
        for label, count in sorted(labels.items()):  # a fixed order of adding, to the last bit
            target = self.targets[name, label]
            gain += count * (2 * (target - self.counts[name, label]) - count) / target
        return gain


def _groups(clips: Sequence[Clip]) -> dict[tuple[str, str], list[Clip]]:
    groups = defaultdict(list)
    for clip in clips:
        groups["group" if clip.group else "clip", clip.group or clip.path].append(clip)
    return groups


def _hash(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


def _named(clip: Clip, field: str) -> Clip:
    """Give a split its one name."""
    if clip.split and clip.split.lower() not in NAMES:
        raise Mistake(
            f'{field}: split "{clip.split}" of {clip.path} is unknown',
            f"name it {', '.join(NAMES)}; or name no splits at all, and paretoken makes them",
        )
    return replace(clip, split=NAMES.get(clip.split.lower(), ""))


def _check_given(clips: Sequence[Clip], field: str) -> None:
    """Refuse splits given for some clips only, and groups that lie on two sides."""
    without = [clip.path for clip in clips if not clip.split]
    if without:
        raise Mistake(
            f"{field}: {len(without)} of {len(clips)} clips have no split, such as {without[0]}",
            "fill the split column in every row or in none",
        )
    for (kind, name), group in _groups(clips).items():
        found = sorted({clip.split for clip in group}, key=SIDES.index)
        if len(found) > 1:
            raise Mistake(
                f'{field}: {kind} "{name}" lies in {found[0]} and in {found[1]}',
                "put a group on one side, or leave the split column empty: paretoken then splits",
            )


def _notes(made: str, shares: Mapping[str, float], clips: Sequence[Clip]) -> tuple[str, ...]:
    alone = sum(not clip.group for clip in clips)
    how = "stratified by class" if alone == len(clips) else "by group"
    notes = [f"{made}: {', '.join(f'{share:.0%} {side}' for side, share in shares.items())}, {how}"]
    if alone == len(clips):
        notes.append("no groups given: near-duplicate clips may leak between splits")
    elif alone:
        notes.append(f"{alone} of {len(clips)} clips have no group: near-duplicates may leak")
    return tuple(notes)
