"""A model from outside: which output is which class, and when it is another model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import OWN, theirs

from workloads import clips, load, mae, pretrained
from workloads.mistakes import Mistake
from workloads.stage import Quiet

NOTHING = clips.ClipSet((), (), (), {}, lambda clip: pytest.fail("no clip is read"))
GIVEN = load.Config(model=OWN, clip=clips.Config(frames=4, size=16), labels=("run", "high jump"))


def test_classes_are_found_by_name_however_they_are_written() -> None:
    assert load.places_of(("run", "high jump"), ("High_Jump", "run")) == (1, 0)
    assert load.places_of(("run", "high jump", "swim"), ("swim",)) == (2,)


def test_clips_without_labels_have_no_place() -> None:
    assert load.places_of(("run", "jump"), ("",)) == (-1,)


def test_labels_that_are_no_words_go_by_alphabet_where_there_are_as_many() -> None:
    assert load.places_of(load.placeholders(3), ("a", "b", "c")) == (0, 1, 2)
    with pytest.raises(Mistake, match="no label 'a', 'b'"):
        load.places_of(load.placeholders(3), ("a", "b"))


def test_a_class_that_the_model_does_not_know_is_named() -> None:
    with pytest.raises(Mistake) as refused:
        load.places_of(("run", "jump"), ("swim", "run"))
    assert str(refused.value) == (
        "--data: the model has no label 'swim'\n  it has 2: run, jump; give its names, or no "
        "labels at all"
    )


def test_a_head_serves_for_the_same_classes_in_the_same_order_alone() -> None:
    assert GIVEN.names(("run", "High_Jump"))
    assert not GIVEN.names(("High_Jump", "run"))
    assert not GIVEN.names(("run",))


def test_without_a_checkpoint_the_weights_are_random_and_with_one_they_are_never_made() -> None:
    weights = load.run(GIVEN, NOTHING, {}, Quiet()).weights
    assert weights is not None
    assert weights["heads.0.weight"].shape == (2, OWN.dim)
    with pytest.raises(Mistake, match="not in the store"):
        load.run(load.Config(model=OWN, clip=GIVEN.clip, digest="ab"), NOTHING, {}, Quiet())


def test_a_folder_is_described_with_a_digest_of_its_weights(tmp_path: Path) -> None:
    model = OWN.build(2)
    model.labels = ("run", "jump")
    pretrained.save(model, tmp_path / "one")
    pretrained.save(model, tmp_path / "two")
    one, two = (pretrained.described(tmp_path / name) for name in ("one", "two"))
    assert one == two
    assert (one.labels, one.clip.frames, one.clip.size) == (("run", "jump"), 4, 16)
    weights = pretrained.weights_of(tmp_path / "one", one)
    assert all(torch.equal(weights[name], w) for name, w in model.state_dict().items())
    with torch.no_grad():
        model.patch_embed.proj.bias += 1
    pretrained.save(model, tmp_path / "two")
    assert pretrained.described(tmp_path / "two").digest != one.digest


def test_a_pre_training_is_described_with_its_decoder_and_goes_on_from_all_of_it(
    tmp_path: Path,
) -> None:
    theirs("VideoMAEForPreTraining").save_pretrained(tmp_path)
    described = pretrained.described(tmp_path)
    assert (described.labels, described.decoder is None) == ((), False)
    assert described.decoder is not None
    model = mae.build(described.model, (), described.decoder, 0.5)
    weights = pretrained.weights_of(tmp_path, described)
    mae.load(model, weights)
    assert {*mae.weights_of(model)} == {*weights}
