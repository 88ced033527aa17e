"""Augmentation: what each kind does to pixels and targets, each clip by its own generator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from packing import draw
from torch import Tensor

from workloads.augment import Config, augment, normalise
from workloads.mistakes import Mistake

TARGETS = torch.eye(4)
KINDS = {
    "crop": Config(crop=0.5),
    "shift": Config(shift=3),
    "flip": Config(flip=0.5),
    "erase": Config(erase=0.7),
    "mixup": Config(mix="mixup"),
    "cutmix": Config(mix="cutmix"),
    "all": Config(crop=0.7, shift=2, flip=0.5, erase=0.5, mix="cutmix"),
}
ALONE = [name for name, config in KINDS.items() if config.mix == "none"]


def rngs(*seeds: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in seeds]


def clips(batch: int = 4) -> Tensor:
    return draw(batch, 3, 6, 10, 12)


def still(batch: int = 4) -> Tensor:
    return draw(batch, 3, 1, 10, 12).repeat(1, 1, 6, 1, 1)


def augmented(clip_BCTHW: Tensor, config: Config, *seeds: int) -> tuple[Tensor, Tensor]:
    return augment(clip_BCTHW, TARGETS[: len(clip_BCTHW)], config, rngs(*seeds))


def test_normalised_pixels_are_those_of_the_formula() -> None:
    clip_BCTHW = torch.arange(2 * 3 * 2 * 2 * 2, dtype=torch.uint8).view(2, 3, 2, 2, 2)
    before = clip_BCTHW.clone()
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    pixels = normalise(clip_BCTHW, mean, std)
    for channel in range(3):
        expected = (clip_BCTHW[:, channel].double() / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(pixels[:, channel], expected.float(), rtol=1e-6, atol=1e-6)
    assert torch.equal(clip_BCTHW, before)


def test_the_default_does_nothing() -> None:
    pixels, target_BK = augmented(clips(), Config(), 0, 1, 2, 3)
    assert torch.equal(pixels, clips())
    assert torch.equal(target_BK, TARGETS)


@pytest.mark.parametrize("name", KINDS)
def test_equal_generators_give_equal_clips_and_others_other_ones(name: str) -> None:
    first, same = (augmented(clips(), KINDS[name], 0, 1, 2, 3) for _ in range(2))
    assert torch.equal(first[0], same[0])
    assert torch.equal(first[1], same[1])
    assert not torch.equal(augmented(clips(), KINDS[name], 4, 5, 6, 7)[0], first[0])


@pytest.mark.parametrize("name", ALONE)
def test_a_clip_does_not_depend_on_its_place_in_a_batch(name: str) -> None:
    together, _ = augmented(clips(), KINDS[name], 0, 1, 2, 3)
    for i in range(4):
        alone, _ = augmented(clips()[i : i + 1], KINDS[name], i)
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("name", ["mixup", "cutmix", "all"])
def test_a_pair_does_not_depend_on_its_place_in_a_batch(name: str) -> None:
    """So ranks that share a batch in runs of even length mix as one would."""
    pixels, target_BK = augmented(clips(), KINDS[name], 0, 1, 2, 3)
    some, targets = augment(clips()[2:], TARGETS[2:], KINDS[name], rngs(2, 3))
    assert torch.equal(some, pixels[2:])
    assert torch.equal(targets, target_BK[2:])


@pytest.mark.parametrize("name", KINDS)
def test_pixels_keep_their_shape_and_targets_their_sum(name: str) -> None:
    before = clips()
    pixels, target_BK = augment(before, TARGETS, KINDS[name], rngs(0, 1, 2, 3))
    assert pixels.shape == before.shape
    assert torch.equal(before, clips()), "the caller's clips were changed"
    torch.testing.assert_close(target_BK.sum(dim=1), torch.ones(4))


@pytest.mark.parametrize("name", ["crop", "shift", "flip", "mixup", "cutmix"])
def test_still_clips_stay_still_bit_for_bit(name: str) -> None:
    pixels, _ = augmented(still(), KINDS[name], 0, 1, 2, 3)
    assert not torch.equal(pixels, still())
    assert torch.equal(pixels, pixels[:, :, :1].expand_as(pixels))


def test_flips_mirror_columns_at_their_chance() -> None:
    pixels, _ = augmented(clips(), Config(flip=1.0), 0, 1, 2, 3)
    assert torch.equal(pixels, clips().flip(-1))
    clip_BCTHW = draw(1, 1, 1, 1, 2).expand(200, 1, 1, 1, 2)
    some, _ = augment(clip_BCTHW, torch.ones(200, 1), Config(flip=0.3), rngs(*range(200)))
    share = (some != clip_BCTHW).flatten(1).any(dim=1).double().mean()
    assert share == pytest.approx(0.3, abs=0.1)  # three deviations of 200 draws


def test_shifts_move_the_clip_and_repeat_its_border() -> None:
    """A pixel's value names its place: after a shift it is the clamped place, the same for all."""
    rows, columns = torch.meshgrid(torch.arange(10.0), torch.arange(12.0), indexing="ij")
    clip_BCTHW = torch.stack([rows, columns]).view(1, 2, 1, 10, 12)
    moves = set()
    for seed in range(60):
        moved, _ = augment(clip_BCTHW, torch.ones(1, 1), Config(shift=1), rngs(seed))
        by_row, by_column = moved[0, :, 0]
        dy, dx = int(by_row[5, 5] - 5), int(by_column[5, 5] - 5)
        assert torch.equal(by_row, (rows + dy).clamp(0, 9))
        assert torch.equal(by_column, (columns + dx).clamp(0, 11))
        moves.add((dy, dx))
    assert moves == {(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}


def test_crops_show_a_part_of_the_frame_as_large_as_the_frame() -> None:
    """On a ramp the crop is a ramp of smaller range, and never less steep than asked for."""
    ramp = torch.arange(12.0).expand(1, 1, 2, 10, 12)
    for seed in range(20):
        crop, _ = augment(ramp, torch.ones(1, 1), Config(crop=0.5), rngs(seed))
        row = crop[0, 0, 0, 0]
        assert row.min() >= 0
        assert row.max() <= 11
        assert 0.5 - 0.1 <= row[4:8].diff().mean() <= 1.0 + 1e-6  # whole pixels are cut


def test_erasing_blanks_one_box_of_the_clip_alone() -> None:
    ones = torch.ones(4, 3, 6, 10, 12)
    for clip_CTHW in augmented(ones, Config(erase=1.0), 0, 1, 2, 3)[0]:
        erased_THW = (clip_CTHW == 0).all(dim=0)
        assert torch.equal((clip_CTHW == 1).all(dim=0), ~erased_THW)
        spans = [erased_THW.movedim(axis, 0).flatten(1).any(dim=1).nonzero() for axis in range(3)]
        box = [int(span.max() - span.min()) + 1 for span in spans]
        assert erased_THW.sum() == np.prod(box)
        assert box[1] * box[2] <= 0.33 * 10 * 12


def test_mixup_blends_neighbours_and_their_targets_alike() -> None:
    flat = torch.arange(4.0)[:, None, None, None, None].expand(4, 3, 6, 10, 12)
    pixels, target_BK = augmented(flat, Config(mix="mixup"), 0, 1, 2, 3)
    for i, other in ((0, 1), (1, 0), (2, 3), (3, 2)):
        share = target_BK[i, i]
        torch.testing.assert_close(target_BK[i, other], 1 - share)
        expected = share * i + (1 - share) * other
        torch.testing.assert_close(pixels[i], expected.expand(3, 6, 10, 12))
    assert target_BK[0, 0] == target_BK[1, 1] != target_BK[2, 2]


def test_cutmix_swaps_one_box_between_neighbours_and_counts_its_pixels() -> None:
    flat = torch.arange(4.0)[:, None, None, None, None].expand(4, 3, 6, 10, 12)
    pixels, target_BK = augmented(flat, Config(mix="cutmix"), 1, 2, 3, 4)
    for i, other in ((0, 1), (1, 0), (2, 3), (3, 2)):
        assert set(pixels[i].unique().tolist()) <= {float(i), float(other)}
        own = (pixels[i] == i).double().mean().item()
        assert target_BK[i, i].item() == pytest.approx(own)
    swapped_HW = pixels[0, 0, 0] == 1
    assert torch.equal(swapped_HW, pixels[1, 0, 0] == 0)
    rows, columns = swapped_HW.any(dim=1), swapped_HW.any(dim=0)
    assert swapped_HW.sum() == rows.sum() * columns.sum() > 0


def test_mixing_needs_neighbours() -> None:
    with pytest.raises(Mistake, match="mix='mixup' pairs neighbours, 3 clips are odd"):
        augmented(clips(3), Config(mix="mixup"), 0, 1, 2)


@pytest.mark.parametrize("wrong", [{"crop": 0.0}, {"crop": 1.5}, {"shift": -1}, {"alpha": 0.0}])
def test_ranges_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(Mistake, match="augment: "):
        Config(**wrong)
