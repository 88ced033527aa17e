"""A checkpoint folder on disk: what it says of its model, its weights, and how both are written.

`config.json`, weights as safetensors (in one file, or in shards with an index), and, if pixels are
not normalised as the host usually does, `preprocessor_config.json`. Whatever is wrong with a folder
is said before a model is built. Pickles are refused: reading one can run any code.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from workloads import clips, decoder, layouts, names, sampling
from workloads.layouts import Fields, HostConfig
from workloads.mistakes import Mistake
from workloads.names import CLIP, OURS, PRETRAINING, VIDEOMAE
from workloads.reducers import base

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
VERSION = 1  # of our entry in config.json
_READERS: dict[str, Callable[[Fields], HostConfig]] = {
    VIDEOMAE: layouts.videomae_of,
    PRETRAINING: layouts.encoder_of,
    CLIP: layouts.clip_of,
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Folder:
    """What a folder says of its model, weights apart."""

    path: Path
    architecture: str
    config: HostConfig
    """The host, with the folder's own units of pixels."""
    labels: tuple[str, ...]
    """Names of the classes; () = not known."""
    num_classes: int
    """Classes that it names, with or without words; 0 = it does not say."""
    chain: tuple[base.Config, ...]
    """Reducers that it was saved with."""
    fit: Literal["crop", "squash"]
    """How frames become squares, as `clips.Config.fit` has it."""
    decoder: decoder.Config | None
    """That of a pre-training."""
    sampling: sampling.Config | None
    """What it is shown of a video, if it was saved with that."""


def shown_by(folder: Folder) -> sampling.Config:
    """Return what a model is shown of a video: as it was saved, or as such a model usually is."""
    frames = getattr(folder.config, "frames", 16)
    usual = clips.Config(frames=frames, size=folder.config.size, fit=folder.fit)
    return folder.sampling or sampling.Config(clip=usual)


def read(path: str | Path) -> Folder:
    """Return what a folder says of its model; its weights are not looked at.

    Raises:
        Mistake: no folder, no `config.json`, another architecture, values that cannot be.
    """
    path = Path(path)
    if not path.is_dir():
        raise Mistake(f"{path}: no such folder", "give a folder with config.json and safetensors")
    if not (path / CONFIG).is_file():
        raise Mistake(f"{path}: no {CONFIG}", "it says what model the weights are of")
    values = _json(path / CONFIG)
    architecture = _architecture(values, path)
    source = str(path / CONFIG)
    fields = Fields(values, source)
    config, chain = _host(architecture, fields)
    shown = _sampling(values, source)
    config, fit = _as_shown(config, path, shown.clip.size if shown else config.size)
    labels = _labels(values.get("id2label") or {}, source)
    return Folder(
        path=path,
        architecture=architecture,
        config=config,
        labels=() if all(map(_is_placeholder, labels, range(len(labels)))) else labels,
        num_classes=len(labels),
        chain=chain,
        fit=shown.clip.fit if shown else fit,
        decoder=layouts.decoder_of(fields) if architecture == PRETRAINING else None,
        sampling=shown,
    )


def _json(path: Path) -> dict[str, Any]:  # Any: JSON
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:  # ValueError: no JSON, or no text
        raise Mistake(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise Mistake(f"{path}: is no JSON object")
    return values


def _architecture(values: Mapping[str, Any], path: Path) -> str:  # Any: JSON
    named = values.get("architectures")
    name = named[0] if isinstance(named, list) and named else values.get("model_type")
    if name not in names.ARCHITECTURES:
        what = f"{path}: architecture {name!r} is not supported"
        raise Mistake(what, f"one of {', '.join(names.ARCHITECTURES)}")
    return str(name)


def _host(architecture: str, fields: Fields) -> tuple[HostConfig, tuple[base.Config, ...]]:
    """Return the host and the chain, from our own entry if there is one."""
    ours = fields.values.get("paretoken")
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout"):
        if fields.values.get(name):
            log.warning("%s: %s is ignored", fields.source, name)
    if ours is None and architecture != OURS:
        return _READERS[architecture](fields), ()
    if not isinstance(ours, dict) or ours.get("version") != VERSION:
        what = f"{fields.source}: paretoken={str(ours)[:40]!r} is not of version {VERSION}"
        raise Mistake(what, "it was made by another version, or by hand")
    source = f"{fields.source}: paretoken"
    config = layouts.host_of_json(ours.get("host"), source)
    if architecture == VIDEOMAE:
        _refuse_edited(config, fields)
    return config, layouts.chain_of_json(ours.get("chain", []), source)


def _refuse_edited(config: HostConfig, fields: Fields) -> None:
    """Refuse a file that says two things of one model."""
    theirs = layouts.videomae_of(fields)
    for name in ("dim", "depth", "heads", "tubelet", "patch", "frames", "size", "pool", "norm_eps"):
        one, two = getattr(config, name, None), getattr(theirs, name)
        if one != two:
            what = f"{fields.source}: {name}={two}, but paretoken.host says {one}"
            raise Mistake(what, "take back the change, or take out the entry `paretoken`")


def _labels(value: Any, source: str) -> tuple[str, ...]:  # Any: JSON
    """Return the names of classes in their order."""
    try:
        return tuple(str(value[str(i)]) for i in range(len(value)))
    except (TypeError, KeyError):
        what = f"{source}: id2label must name the classes 0, 1, 2, ..."
        raise Mistake(what, "leave none out") from None


def _is_placeholder(label: str, i: int) -> bool:
    return label == f"LABEL_{i}"  # transformers' own


def _sampling(values: Mapping[str, Any], source: str) -> sampling.Config | None:  # Any: JSON
    ours = values.get("paretoken")
    if ours is None or "sampling" not in ours:
        return None
    return layouts.sampling_of_json(ours["sampling"], f"{source}: paretoken.sampling")


def _as_shown(
    config: HostConfig, path: Path, side: int
) -> tuple[HostConfig, Literal["crop", "squash"]]:
    """Return the host in the units of its preprocessor, and how that makes squares of frames."""
    if not (path / PREPROCESSOR).is_file():
        log.warning("%s: no %s, mean=%s std=%s", path, PREPROCESSOR, config.mean, config.std)
        return config, "crop"
    fields = Fields(_json(path / PREPROCESSOR), str(path / PREPROCESSOR))
    # Ours are pixels in 0..1, theirs whatever the factor makes of 0..255.
    unit = fields.real("rescale_factor", 1 / 255) if fields.flag("do_rescale", True) else 1.0
    if not unit:
        raise Mistake(f"{fields.source}: rescale_factor=0 leaves nothing")
    unit *= 255
    is_normed = fields.flag("do_normalize", True)
    mean = fields.triple("image_mean", config.mean) if is_normed else (0.0,) * 3
    std = fields.triple("image_std", config.std) if is_normed else (1.0,) * 3
    if min(std) <= 0:
        raise Mistake(f"{fields.source}: image_std={std} must be above 0")
    _tell_other_size(fields, side)
    red, green, blue = ((m / unit, s / unit) for m, s in zip(mean, std, strict=True))
    config = replace(config, mean=(red[0], green[0], blue[0]), std=(red[1], green[1], blue[1]))
    size = fields.values.get("size")
    is_whole = isinstance(size, dict) and "shortest_edge" not in size
    return config, "squash" if is_whole and not fields.flag("do_center_crop", True) else "crop"


def _tell_other_size(fields: Fields, side: int) -> None:
    size = fields.values.get("crop_size", fields.values.get("size"))
    sides = {str(one) for one in (size.values() if isinstance(size, dict) else [size])}
    if sides - {"None", str(side)}:
        told = "%s: clips of %s px, but the model is for %d px, which counts"
        log.warning(told, fields.source, " x ".join(sorted(sides)), side)


# Weights.


def weights_of(folder: Folder) -> dict[str, Tensor]:
    """Return all weights of a folder by the names that they have in `names.same`.

    Raises:
        Mistake: there are none, only pickled ones, or some that are no finite numbers.
    """
    found: dict[str, Tensor] = {}
    for path in files_of(folder.path):
        try:
            found |= load_file(path)
        except (OSError, SafetensorError) as error:
            raise Mistake(f"{path}: cannot be read: {error}", "fetch or save it again") from None
    # Old versions of transformers saved the numbers 0, 1, 2, ... of positions too.
    found = {name: weight for name, weight in found.items() if not name.endswith("position_ids")}
    bad = [name for name, weight in found.items() if not _is_finite(weight)]
    if bad:
        what = f"{folder.path}: {len(bad)} of {len(found)} weights are not all finite numbers"
        raise Mistake(what, some("such as", bad))
    if folder.architecture == OURS:
        return found
    return {names.alias(name): weight for name, weight in found.items()}


def _is_finite(weight: Tensor) -> bool:
    return weight.is_floating_point() and bool(weight.float().isfinite().all())


def files_of(path: Path) -> list[Path]:
    """Return the files that hold the weights of a folder."""
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if (path / INDEX).is_file():
        placed = _json(path / INDEX).get("weight_map")
        shards = {*map(str, placed.values())} if isinstance(placed, dict) else set()
        lost = sorted(n for n in shards if Path(n).name != n or not (path / n).is_file())
        if lost or not shards:
            what = f"{path / INDEX}: names {len(shards)} shards, {len(lost)} of them not here"
            raise Mistake(what, some("missing", lost) if lost else "fetch it again")
        return [path / name for name in sorted(shards)]
    if pickles := sorted(one.name for one in path.iterdir() if one.suffix in PICKLES):
        what = f"{path}: only pickled weights ({pickles[0]}), and reading those can run any code"
        raise Mistake(
            what,
            "convert them to safetensors where you trust them: in transformers, "
            "from_pretrained(FOLDER).save_pretrained(OTHER)",
        )
    raise Mistake(f"{path}: no {WEIGHTS}", f"weights are read from it, or from shards and {INDEX}")


SHOWN = 8  # names in a message


def some(word: str, listed: list[str]) -> str:
    """Return a list in words, cut where it grows long."""
    rest = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return f"{word}: {', '.join(listed[:SHOWN])}{rest}"


# Writing.


def write(path: Path, name: str, values: Mapping[str, Any]) -> None:  # Any: JSON
    """Write a JSON file of a folder, whole or not at all."""
    draft = path / f".{name}.tmp"
    draft.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")
    os.replace(draft, path / name)


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write the weights of a folder, whole or not at all."""
    draft = path / f".{WEIGHTS}.tmp"
    save_file(dict(weights), draft, metadata={"format": "pt"})  # transformers asks for the format
    os.replace(draft, path / WEIGHTS)


def preprocessor(config: HostConfig, clip: clips.Config) -> dict[str, Any]:  # Any: JSON
    """Return how the pixels of a host are made, for transformers and for `read`."""
    is_clip = isinstance(config, layouts.HOSTS["clip"])
    square = {"height": clip.size, "width": clip.size}
    is_whole = clip.fit == "squash"
    return {
        "image_processor_type": "CLIPImageProcessor" if is_clip else "VideoMAEImageProcessor",
        "do_resize": True,
        "size": square if is_whole else {"shortest_edge": clip.size},
        "do_center_crop": not is_whole,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.mean),
        "image_std": list(config.std),
    }
