"""What could be dropped of a video follows from its pixels, as the reducers themselves decide."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from barcodes import write

from workloads import cost, survey
from workloads.models import videomae
from workloads.reducers import rlt

SIDE = survey.CLIP.size


def still(num: int = 61) -> np.ndarray:
    return np.full((num, SIDE, SIDE, 3), 100, np.uint8)


def flicker(num: int = 61, rows: int = SIDE) -> np.ndarray:
    """Frames of which the upper rows get another grey each time."""
    frames_THWC = still(num)
    frames_THWC[:, :rows] = (np.arange(num) * 37 % 200).astype(np.uint8)[:, None, None, None]
    return frames_THWC


@pytest.mark.parametrize(
    ("frames_THWC", "kept"),
    [(still(), 1 / 8), (flicker(), 1.0), (flicker(rows=SIDE // 2), 0.5 + 0.5 / 8)],
)
def test_rlt_keeps_what_changes(frames_THWC: np.ndarray, kept: float) -> None:
    found = survey.kept_by_rlt(survey.sampled(frames_THWC, 4.0))
    assert found == pytest.approx(dict.fromkeys(survey.TAUS, kept))
    for stride in (1.0, 4.0):
        assert survey.kept_at(frames_THWC, stride) == pytest.approx(found)


def test_frames_that_repeat_the_last_one_do_not_count_at_a_rate() -> None:
    short_THWC = flicker(20)
    assert survey.kept_by_rlt(survey.sampled(short_THWC, 4.0))[0.1] < 0.7
    assert survey.kept_at(short_THWC, 4.0)[0.1] == 1.0
    assert survey.kept_at(short_THWC[:1], 4.0)[0.1] == 1 / 8


def test_a_slower_rate_sees_more_change() -> None:
    ramp_THWC = still()
    ramp_THWC += np.arange(61, dtype=np.uint8)[:, None, None, None]  # a grey level a frame
    kept = [survey.kept_at(ramp_THWC, stride)[0.1] for stride in (1.0, 4.0)]
    assert kept == [1 / 8, 1.0]


def test_the_tokens_that_change_hold_all_motion() -> None:
    moving = survey.motion_held(survey.sampled(flicker(rows=SIDE // 4), 4.0))
    assert moving["mats"] == pytest.approx(dict.fromkeys(survey.KEEPS, 1.0))
    assert moving["flux"] == pytest.approx(dict.fromkeys(survey.KEEPS, 1.0))
    assert survey.motion_held(survey.sampled(still(), 4.0))["mats"][0.3] == 1.0
    even = survey.motion_held(survey.sampled(flicker(), 4.0))["mats"]
    assert even[0.5] >= 0.5


def test_tokens_are_the_pixels_that_an_embedding_takes() -> None:
    """The same cells in the same order, so that an embedding is a matrix product of them."""
    generator = torch.Generator().manual_seed(0)
    clip_BCTHW = torch.randn(1, 3, 4, 32, 48, generator=generator)
    x_BTLD = survey._tokens(clip_BCTHW)
    weight = torch.randn(5, 3, 2, 16, 16, generator=generator)
    embedded = torch.nn.functional.conv3d(clip_BCTHW, weight, stride=(2, 16, 16))
    expected = embedded.flatten(3).permute(0, 2, 3, 1)
    assert torch.allclose(x_BTLD @ weight.flatten(1).T, expected, atol=1e-3)


def test_what_a_share_saves_is_what_a_forward_saves() -> None:
    config = videomae.Config(**videomae.SIZES["small"])
    clip_BCTHW = survey.sampled(flicker(rows=SIDE // 4), 4.0)
    chain = (rlt.Config(tau=0.1),)
    parts = [cost.macs_by_clip(cost.foresee(config, clip_BCTHW, c)) for c in (chain, ())]
    reduced, dense = (float(sum(part.values())[0]) for part in parts)
    share = survey.kept_by_rlt(clip_BCTHW)[0.1]
    assert math.isclose(survey.saving_of("small")(share), 1 - reduced / dense, abs_tol=1e-6)


def test_a_file_is_surveyed_at_its_own_rate(tmp_path: Path) -> None:
    path = write(tmp_path / "video.mp4", list(flicker(30, SIDE // 2)), crf="10")
    found = survey.survey(path)
    assert found.kept.keys() == set(survey.TAUS)
    assert tuple(found.by_rate) == survey.RATES
    assert found.by_rate["native"][0.1] == pytest.approx(0.5 + 0.5 / 8, abs=0.08)
