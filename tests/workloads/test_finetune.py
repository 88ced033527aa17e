"""Training: it learns, it resumes to the same bits, and every number comes from its config."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from movies import movie, movies
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from workloads import augment, branches, clips, finetune, optim
from workloads.branches import Branch, Distil, distillation, encoded
from workloads.clips import ClipSet, Grids, Order, seed_of
from workloads.mistakes import Mistake
from workloads.models import fluxvit, videomae
from workloads.reducers import drop, flux, mats, rlt, tome
from workloads.stage import Cancelled, Input, Quiet, Result, State

CONFIG = finetune.Config(
    model=videomae.Config(dim=16, depth=2, heads=2, patch=4, frames=4, size=16),
    clip=clips.Config(frames=4, stride=2.0, size=16),
    optim=optim.Config(lr=1e-2),
    steps=6,
    batch=4,
)


class Diary(Quiet):
    """A report that begins at a state, keeps every later one, and may cancel."""

    def __init__(self, start: State | None = None, cancel_at: int = 0) -> None:
        self.start, self.cancel_at = start, cancel_at
        self.states: list[State] = []
        self.losses: list[float] = []

    def resume(self) -> State | None:
        return self.start

    def step(self, done: int, total: int, metrics: Any, state: Any = None) -> None:
        self.states.append(copy.deepcopy(state()))
        self.losses.append(metrics()["train/loss"])
        if done == self.cancel_at:
            raise Cancelled


def train(config: finetune.Config, report: Quiet | None = None) -> Result:
    return finetune.run(config, movies(), {}, report or Quiet())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


BUSY = replace(
    CONFIG,
    reducers=(rlt.Config(encode_length=True),),
    augment=augment.Config(crop=0.7, shift=2, flip=0.5, erase=0.5, mix="cutmix"),
    label_smoothing=0.1,
)
FLUX = replace(
    CONFIG,
    model=fluxvit.Config(
        dim=16,
        depth=2,
        heads=2,
        patch=4,
        frames=8,
        size=16,
        budgets=(96, 64, 32),
        pool_heads=4,
        features=24,
        layer_scale=1.0,
    ),
    clip=clips.Config(frames=8, size=16, sampling="segments"),
    grids=Grids(frames=(6, 8, 12), sizes=(12, 16, 20), least=60, most=200),
    branches=tuple(
        Branch(reducers=(flux.Config(budget=b),), head=i, whole=b)
        for i, b in enumerate((96, 64, 32))
    ),
    align=24.0,
)
CONFIGS = {
    "dense": CONFIG,
    "flux": FLUX,
    "busy": BUSY,
    "drop": replace(CONFIG, reducers=(drop.Config(),)),
    "tome": replace(CONFIG, reducers=(tome.Config(r=10),)),
    "half": replace(CONFIG, precision="bfloat16"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_resuming_after_any_step_ends_with_the_same_bits(name: str) -> None:
    """Dropping draws, augmentation draws, RLT learns: all of it must be where it was."""
    whole = Diary()
    expected = train(CONFIGS[name], whole)
    assert len(whole.states) == 6
    for state in whole.states[:-1]:
        rest = Diary(copy.deepcopy(state))
        result = train(CONFIGS[name], rest)
        assert same(result.weights, expected.weights)
        assert result.metrics == expected.metrics
        assert rest.losses == whole.losses[state["done"] :]


def test_a_finished_state_trains_no_further() -> None:
    whole = Diary()
    expected = train(CONFIG, whole)
    again = Diary(whole.states[-1])
    assert same(train(CONFIG, again).weights, expected.weights)
    assert not again.states


def test_loss_falls_and_the_tiny_set_is_learned() -> None:
    config = replace(CONFIG, steps=60, batch=6)
    diary = Diary()
    result = train(config, diary)
    assert np.mean(diary.losses[-5:]) < 0.5 * np.mean(diary.losses[:5])
    model = config.model.build(2)
    model.load_state_dict(result.weights)
    clip_set = movies()
    ids = clip_set.splits["train"]
    pixels = augment.normalise(
        clip_set.load(ids, config.clip, [0.5] * len(ids)), config.model.mean, config.model.std
    )
    assert torch.equal(model(pixels).argmax(dim=1), clip_set.labels_of(ids))


def watched(log: list[tuple[int, float]]) -> ClipSet:
    """Return the clips; which are loaded, and from where in their videos, goes to `log`."""

    class Watched(ClipSet):
        def load(self, ids: Any, config: Any, starts: Any) -> Tensor:
            log.extend(zip(ids, starts, strict=True))
            return super().load(ids, config, starts)

    return Watched(**vars(movies()))


def test_two_epochs_show_each_training_clip_twice_and_no_other() -> None:
    log: list[tuple[int, float]] = []
    finetune.run(CONFIG, watched(log), {}, Quiet())  # 6 batches of 4 of 12 clips
    assert Counter(clip_id for clip_id, _ in log) == dict.fromkeys(range(12), 2)


def test_each_epoch_shows_other_parts_of_a_video_and_each_run_the_same() -> None:
    first: list[tuple[int, float]] = []
    again: list[tuple[int, float]] = []
    for log in (first, again):
        finetune.run(CONFIG, watched(log), {}, Quiet())
    assert first == again
    starts = {clip_id: {start for i, start in first if i == clip_id} for clip_id in range(12)}
    assert all(len(of_clip) == 2 for of_clip in starts.values())
    assert all(0 <= start < 1 for _, start in first)


@pytest.mark.parametrize("reducers", [(), (drop.Config(keep=0.3),)], ids=["dense", "drop"])
@pytest.mark.parametrize("smoothing", [0.0, 0.4])
def test_the_first_loss_is_that_of_the_untrained_model_on_the_first_batch(
    smoothing: float, reducers: tuple[Any, ...]
) -> None:
    """By hand: the seed of a clip gives its start in the video and the draw of random reducers."""
    config = replace(CONFIG, reducers=reducers, label_smoothing=smoothing, steps=1, seed=3)
    places, clip_set = Order(movies().splits["train"], 4, seed=3).at(0), movies()
    ids, seeds = [i for _, i in places], [seed_of(3, epoch, i) for epoch, i in places]
    raw = clip_set.load(ids, config.clip, [np.random.default_rng(s).random() for s in seeds])
    pixels = augment.normalise(raw, config.model.mean, config.model.std)
    logits_BK = config.model.build(2, seed=3)(pixels, reducers, seeds=seeds)
    loss = F.cross_entropy(logits_BK, clip_set.labels_of(ids), label_smoothing=smoothing)
    # Labels as numbers here, as shares of classes there.
    assert train(config).metrics["train/loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_seeds_and_only_they_change_an_equal_training() -> None:
    first, again, other = (train(replace(CONFIG, seed=s)).weights for s in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


def test_chain_and_precision_of_the_config_are_trained_with() -> None:
    dense = train(CONFIG).weights
    for name in ("drop", "tome", "half"):
        other = train(CONFIGS[name]).weights
        assert dense.keys() == other.keys()
        assert not same(dense, other)
    assert all(weight.dtype == torch.float32 for weight in other.values())
    assert "learned.rlt.length_embed" in train(BUSY).weights


@pytest.mark.parametrize(
    ("config", "lengths"),
    [(augment.Config(shift=2, flip=0.5), {2}), (augment.Config(erase=1.0), {1, 2})],
    ids=["shift-flip", "erase"],
)
def test_reducers_see_the_pixels_after_augmentation(
    config: augment.Config, lengths: set[int]
) -> None:
    """Clips that stand still are one run of two tubelets, unless a box comes or goes. Only the rows
    of run lengths that occurred are moved by training, as nothing decays here.
    """
    spec = replace(
        BUSY, augment=config, optim=optim.Config(weight_decay=0.0), steps=1, label_smoothing=0.0
    )
    clip_set = replace(movies(), frames_of=lambda clip_id: movie(clip_id)[:1].repeat(12, axis=0))
    name = "learned.rlt.length_embed"
    before = spec.model.build(2, spec.reducers).state_dict()[name][0]
    after = finetune.run(spec, clip_set, {}, Quiet()).weights[name][0]
    moved_L = (after != before).any(dim=1)
    assert {length for length, moved in enumerate(moved_L.tolist(), start=1) if moved} == lengths


def test_each_step_has_the_rate_of_the_recipe() -> None:
    diary = Diary()
    train(CONFIG, diary)
    rates = [state["optimizer"]["param_groups"][0]["lr"] for state in diary.states]
    assert rates == [optim.rate(step, 6, CONFIG.optim) for step in range(6)]


def test_metrics_are_of_the_training() -> None:
    diary = Diary()
    result = train(CONFIG, diary)
    assert result.metrics == {"train/loss": diary.losses[-1], "train/steps": 6}
    assert result.clips is None
    assert all(weight.device.type == "cpu" for weight in result.weights.values())


def test_the_reported_loss_is_a_running_mean() -> None:
    diary = Diary()
    train(replace(CONFIG, steps=2), diary)
    second = (diary.losses[1] - 0.95 * diary.losses[0]) / 0.05
    alone = Diary(diary.states[0])
    alone.start["smoothed"] = {"loss": torch.zeros(())}
    train(replace(CONFIG, steps=2), alone)
    assert alone.losses[0] / 0.05 == pytest.approx(second, rel=1e-3)  # small differences of floats


def test_a_cancelled_training_stops_there() -> None:
    diary = Diary(cancel_at=2)
    with pytest.raises(Cancelled):
        train(CONFIG, diary)
    assert len(diary.states) == 2


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch": 0}])
def test_trainings_of_nothing_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(Mistake, match="must be 1 or more"):
        replace(CONFIG, **wrong)


def test_mixing_an_odd_batch_is_refused() -> None:
    config = replace(CONFIG, batch=3, augment=augment.Config(mix="mixup"))
    with pytest.raises(Mistake, match="3 clips are odd"):
        train(config)


# Several budgets and flexible grids (Flux).


class Shapes(ClipSet):
    """Clips that remember the configs they were asked with."""

    def load(self, ids: Any, config: Any, starts: Any) -> Tensor:
        self.asked.append(config)
        return super().load(ids, config, starts)

    @classmethod
    def seen_by(cls, config: finetune.Config) -> list[clips.Config]:
        clip_set = cls(**vars(movies()))
        object.__setattr__(clip_set, "asked", [])
        finetune.run(config, clip_set, {}, Quiet())
        return clip_set.asked


def test_all_clips_of_a_step_have_one_shape_that_its_seed_and_place_give() -> None:
    """P13, 9.8: a batch is loaded in one go; another seed, other shapes; all are legal."""
    config = replace(FLUX, steps=8)
    asked = Shapes.seen_by(config)
    assert len(asked) == 8
    shapes = {shape[:2] for shape in config.shapes}
    assert {(clip.frames, clip.size) for clip in asked} <= shapes
    assert len({*asked}) > 2
    assert asked == Shapes.seen_by(config)
    assert asked != Shapes.seen_by(replace(config, seed=1))


def test_shapes_are_those_that_the_grids_and_the_host_allow() -> None:
    assert [shape[:2] for shape in FLUX.shapes] == [
        (6, 16), (6, 20), (8, 12), (8, 16), (8, 20), (12, 12), (12, 16),
    ]  # fmt: skip
    assert not CONFIG.shapes


def test_every_branch_trains_its_own_head() -> None:
    before = FLUX.model.build(2).state_dict()
    after = train(replace(FLUX, steps=2)).weights
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {f"heads.{i}.weight" for i in range(3)} <= moved
    assert {f"pool.aligners.{i}.linear.weight" for i in range(2)} <= moved
    alone = train(replace(FLUX, steps=2, branches=FLUX.branches[1:2])).weights
    assert {name for name in before if not torch.equal(before[name], alone[name])} >= {
        "heads.1.weight", "blocks.0.mlp.fc1.weight",
    }  # fmt: skip
    assert all(torch.equal(before[f"heads.{i}.weight"], alone[f"heads.{i}.weight"]) for i in (0, 2))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"align": -1.0}, "align=-1.0 must be 0 or more"),
        ({"reducers": (drop.Config(),)}, "reducers and branches both name a chain"),
        ({"branches": FLUX.branches[::-1]}, r"heads \[2, 1, 0\], but head 0 can only teach"),
        ({"grids": Grids(frames=(8,), sizes=(16,), least=500)}, "no shape has 500 to 6144 tokens"),
    ],
)
def test_branches_and_grids_that_cannot_be_are_refused_when_written(
    wrong: dict[str, Any], words: str
) -> None:
    with pytest.raises(Mistake, match=words):
        replace(FLUX, **wrong)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"grids": Grids(frames=(4, 8), sizes=(16, 20))}, "flux: 4 frames of tokens cannot be 4"),
        ({"grids": Grids(frames=(7, 8), sizes=(16,))}, "flux: 7 frames of tokens cannot be 2"),
        ({"grids": Grids(frames=(8,), sizes=(16, 18))}, "18x18 px must be a multiple of the patch"),
        ({"branches": (Branch(head=3),)}, "head=3 of a model with 3"),
        ({"distil": Distil(weight=1.0)}, "no stage is read as teacher"),
    ],
)
def test_what_a_later_step_would_stumble_over_is_refused_before_the_first(
    wrong: dict[str, Any], words: str
) -> None:
    """9.7: four frames or an odd number of them, where a selection acts; only there."""
    clip_set = replace(movies(), frames_of=lambda clip_id: pytest.fail("a clip was read"))
    with pytest.raises(Mistake, match=words):
        finetune.run(replace(FLUX, **wrong), clip_set, {}, Quiet())


def test_four_frames_are_trained_on_where_all_their_tokens_are_kept() -> None:
    """9.7: 4 x 3 x 3 tokens are within the budgets of 96 and 64."""
    config = replace(FLUX, grids=Grids(frames=(4,), sizes=(12,)), branches=FLUX.branches[:2])
    assert train(replace(config, steps=1)).metrics["train/steps"] == 1


# A teacher: a finished training, frozen, that sees all tokens.


def taught(config: finetune.Config, source: finetune.Config, folder: Path) -> Result:
    weights = folder / "teacher.safetensors"
    if not weights.exists():
        save_file(train(source).weights, weights)
    return finetune.run(config, movies(), {"teacher": Input(source, weights)}, Quiet())


def test_a_student_comes_closer_to_its_teacher_than_without_it(tmp_path: Path) -> None:
    """Card 4.4a."""
    teacher = replace(CONFIG, steps=20, seed=5)
    student = replace(CONFIG, reducers=(drop.Config(keep=0.5),), steps=40)
    plain = replace(student, distil=Distil(weight=0.0))
    gaps = []
    for config in (plain, replace(student, distil=Distil(weight=5.0, layers=2))):
        model = config.model.build(2)
        model.load_state_dict(taught(config, teacher, tmp_path).weights)
        source = Input(teacher, tmp_path / "teacher.safetensors")
        pixels = augment.normalise(
            movies().load((12, 13), config.clip, [0.5] * 2), config.model.mean, config.model.std
        )
        full = branches.taught_by(source, model, 2)(pixels)
        with torch.no_grad():
            gaps.append(float(distillation(encoded(model.eval(), pixels, Branch(), None, 2), full)))
    assert gaps[1] < 0.5 * gaps[0]


def test_a_teacher_without_weight_changes_nothing(tmp_path: Path) -> None:
    assert same(taught(CONFIG, CONFIG, tmp_path).weights, train(CONFIG).weights)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"model": replace(CONFIG.model, dim=32)}, "teacher: dim=16, that of the model 32"),
        ({"model": replace(CONFIG.model, patch=8)}, "teacher: patch=4, that of the model 8"),
        ({"distil": Distil(weight=1.0, layers=3)}, "layers=3 of depths 2 and 2"),
    ],
)
def test_a_teacher_with_other_tokens_is_refused(
    wrong: dict[str, Any], words: str, tmp_path: Path
) -> None:
    config = replace(CONFIG, **({"distil": Distil(weight=1.0)} | wrong))
    with pytest.raises(Mistake, match=words):
        taught(config, CONFIG, tmp_path)


def test_a_choice_of_frames_that_leaves_too_few_is_refused_before_any_work() -> None:
    config = replace(CONFIG, reducers=(mats.Config(alpha=2.0),))
    with pytest.raises(Mistake, match=r"mats: 1 tubelet of 2 frames .*\n  show 8 frames"):
        config.check()
    longer = replace(config, clip=replace(CONFIG.clip, frames=8), steps=2)
    assert train(longer).metrics["train/steps"] == 2
