"""Checkpoint folders: load what others trained, save what was trained or made cheaper here.

    model = load("videomae-base-finetuned-kinetics")
    cheap = load(folder, reducers=(tome.Config(r=65),))
    save(cheap, "cheaper")                # load("cheaper") has the chain

A folder holds `config.json`, weights as safetensors (in one file, or in shards with an index) and,
if pixels are not normalised as the host usually does, `preprocessor_config.json`. It is a VideoMAE
or a CLIP image encoder of Hugging Face transformers (`names.ARCHITECTURES`), or was saved here.
transformers itself is not needed. Pickles are refused: reading one can run any code.

`save` writes a VideoMAE with a head as transformers reads it, dense; the chain, the parameters that
its reducers learned and whatever else transformers does not know stand beside it. Other hosts are
written under our names. Weights are float32 in a model, whatever the file holds.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workloads import clips, layouts, mae, names, sampling
from workloads import folder as folders
from workloads import load as given
from workloads.folder import Folder, read
from workloads.layouts import HostConfig
from workloads.mistakes import Mistake
from workloads.models import videomae
from workloads.names import OURS, PRETRAINING, VIDEOMAE
from workloads.reducers import base
from workloads.vit import VideoTransformer

# What a pre-training has beside the encoder.
_BESIDE = ("decoder.", "encoder_to_decoder.", "mask_token", "videomae.layernorm.")

log = logging.getLogger(__name__)


def load(
    path: str | Path, reducers: Sequence[base.Config] = (), num_classes: int | None = None
) -> VideoTransformer:
    """Return the model of a folder.

    Args:
        path: the folder.
        reducers: its chain; () = the one that it was saved with, dense without one. A forward with
            `chain=()` is always dense.
        num_classes: outputs of the head, for a folder without a head; a head of another size is
            replaced by a new one. None = as many as the folder has.

    Raises:
        Mistake: the folder is not one that can be read, its weights do not fit its config, or the
        chain does not fit the host.
    """
    return of(read(path), reducers, num_classes)


def of(
    folder: Folder, reducers: Sequence[base.Config] = (), num_classes: int | None = None
) -> VideoTransformer:
    """Return the model of a folder that was read; see `load`."""
    weights = folders.weights_of(folder)
    own = _own_classes(folder, weights)
    if num_classes is None and own is None:
        what = f"{folder.path}: this {folder.architecture} has no head"
        raise Mistake(what, "say how many classes there are: num_classes")
    if num_classes is not None and num_classes < 1:
        raise Mistake(f"num_classes={num_classes} must be 1 or more")
    wanted = num_classes or own or 1
    model = folder.config.build(wanted, tuple(reducers) or folder.chain)
    model.chain(None)  # refused here if its parts do not go together
    absent: tuple[str, ...] = ()
    if wanted == own:
        model.labels = folder.labels
    else:
        log.warning("%s: new head for %d classes, it had %s", folder.path, wanted, own or "none")
        weights = {n: w for n, w in weights.items() if not n.startswith(("classifier.", "heads."))}
        absent = ("heads.",)
    if folder.architecture == PRETRAINING:
        weights = {n: w for n, w in weights.items() if not n.startswith(_BESIDE)}
        absent = ("heads.", "pool.norm.")
    _fill(model.state_dict(), folder, weights, absent)
    return model.eval()


def load_pretraining(
    path: str | Path, reducers: Sequence[base.Config] = (), visible_keep: float = 0.1
) -> mae.MaskedAutoencoder:
    """Return encoder and decoder of a VideoMAEForPreTraining, to go on with its pre-training.

    Args:
        path: the folder.
        reducers: what selects its tokens.
        visible_keep: see `MaskedAutoencoder`; no folder tells it, the papers': 0.1.

    Raises:
        Mistake: as `load`, or the folder is no pre-training.
    """
    folder = read(path)
    if folder.decoder is None:
        what = f"{folder.path}: a {folder.architecture} has no decoder"
        raise Mistake(what, f"a pre-training is a {PRETRAINING}")
    model = mae.build(folder.config, reducers, folder.decoder, visible_keep)
    _fill(mae.weights_of(model), folder, folders.weights_of(folder), ())
    return model.eval()


def described(path: str | Path) -> given.Config:
    """Return what a folder is to a study; its weights are hashed, not read.

    Raises:
        Mistake: as `load`.
    """
    folder = read(path)
    files = folders.files_of(folder.path)
    num = _own_classes(folder, folders.weights_of(folder)) or 0
    labels = folder.labels if len(folder.labels) == num else given.placeholders(num)
    return given.Config(
        model=folder.config,
        clip=folders.shown_by(folder).clip,
        labels=labels,
        reducers=folder.chain,
        decoder=folder.decoder,
        digest=given.digest_of(files),
    )


def weights_of(path: str | Path, described: given.Config) -> dict[str, Tensor]:
    """Return the weights of a folder as the stage `load` leaves them: by our names.

    Of a folder without a head, or with a decoder, what it does not have is left out.
    """
    if described.decoder is not None:
        return dict(mae.weights_of(load_pretraining(path)))
    weights = dict(load(path, num_classes=None if described.labels else 1).state_dict())
    is_headless = not described.labels
    return {n: w for n, w in weights.items() if not (is_headless and n.startswith("heads."))}


def _own_classes(folder: Folder, weights: Mapping[str, Tensor]) -> int | None:
    """Return how many classes the head of a folder has, None without a head."""
    head = weights.get("heads.0.weight" if folder.architecture == OURS else "classifier.weight")
    if folder.architecture not in (OURS, VIDEOMAE):
        return None
    if head is None or not head.dim():
        return folder.num_classes or None
    if folder.num_classes not in (0, len(head)):
        what = f"{folder.path}: config.json names {folder.num_classes} classes"
        raise Mistake(f"{what}, the head has {len(head)}", "put right its id2label")
    return len(head)


@torch.no_grad()
def _fill(
    own: Mapping[str, Tensor],
    folder: Folder,
    weights: Mapping[str, Tensor],
    absent: tuple[str, ...],
) -> None:
    """Copy the weights of a folder into a model.

    Args:
        own: those of the model, by our names.
        folder: whose they are.
        weights: by the folder's names.
        absent: how names begin, of ours, that a folder does not have.

    Raises:
        Mistake: some are missing, extra, or of another shape.
    """
    fresh = _not_learned(own, weights)
    for start in fresh:
        log.warning("%s: %s* is not in it and starts new", folder.path, start)
    shapes = {n: tuple(w.shape) for n, w in own.items() if not n.startswith((*absent, *fresh))}
    pairs = names.same(folder.architecture, shapes, getattr(folder.config, "pool", ""))
    _refuse_unfit(folder, {n: pair.shape for pair in pairs for n in pair.theirs}, weights, own)
    for pair in pairs:
        flat = torch.cat([weights[name].flatten().float() for name in pair.theirs])
        parts = flat.split([own[name].numel() for name in pair.ours])
        for name, part in zip(pair.ours, parts, strict=True):
            own[name].copy_(part.view_as(own[name]))


def _not_learned(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return how names begin of what reducers learn and nobody has learned."""
    starts = {".".join(name.split(".")[:2]) + "." for name in own if name.startswith("learned.")}
    return tuple(sorted(s for s in starts if not any(name.startswith(s) for name in weights)))


def _refuse_unfit(
    folder: Folder,
    shapes: Mapping[str, tuple[int, ...]],
    weights: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
) -> None:
    # What was learned for a reducer that is not in the chain is no harm.
    idle = [n for n in weights if n.startswith("learned.") and n not in own]
    unfit = {
        "missing": [name for name in shapes if name not in weights],
        "extra": [name for name in weights if name not in shapes and name not in idle],
        "misshapen": [
            f"{name} {tuple(weights[name].shape)} instead of {shape}"
            for name, shape in shapes.items()
            if name in weights and tuple(weights[name].shape) != shape
        ],
    }
    if any(unfit.values()):
        counts = ", ".join(f"{len(listed)} {word}" for word, listed in unfit.items() if listed)
        lines = [folders.some(word, listed) for word, listed in unfit.items() if listed]
        what = f"{folder.path}: weights do not fit config.json: {counts}"
        raise Mistake(what, "\n  ".join(lines))


def save(model: VideoTransformer, path: str | Path, shown: sampling.Config | None = None) -> None:
    """Write a model with its chain as a folder that `load` reads, in place of what is there.

    Args:
        model: what to save.
        path: the folder.
        shown: what it is shown of a video, if that is known.

    Raises:
        Mistake: a path that is no folder, or a model that no Config built or whose chain does not
        have the reducers that it learned for.
    """
    path, config = Path(path), model.config
    if path.exists() and not path.is_dir():
        raise Mistake(f"{path}: is a file", "give a folder")
    if not isinstance(config, HostConfig):
        what = f"save: a model of {type(config).__name__}, not of a host's Config"
        raise Mistake(what, f"build it with one: {', '.join(layouts.HOSTS)}")
    if lost := {*model.learned} - {*map(base.name_of, model.default)}:
        what = f"save: the model has learned for {', '.join(sorted(lost))}, not in its chain"
        raise Mistake(what, "add it to the chain (`model.default`)")
    architecture = VIDEOMAE if layouts.is_transformers(config) else OURS
    path.mkdir(parents=True, exist_ok=True)
    clip = shown.clip if shown else clips.Config(size=config.size, fit="crop")
    folders.write(path, folders.PREPROCESSOR, folders.preprocessor(config, clip))
    folders.write_weights(path, _named(model, config, architecture))
    settings = _settings(model, config, architecture)
    if shown is not None:
        settings["paretoken"]["sampling"] = layouts.sampling_as_json(shown)
    folders.write(path, folders.CONFIG, settings)


def _named(model: VideoTransformer, config: HostConfig, architecture: str) -> dict[str, Tensor]:
    """Return the weights of a model as a folder names them."""
    own = {name: weight.detach().cpu() for name, weight in model.state_dict().items()}
    shapes = {name: tuple(weight.shape) for name, weight in own.items()}
    weights: dict[str, Tensor] = {}
    for pair in names.same(architecture, shapes, getattr(config, "pool", "")):
        flat = torch.cat([own[name].flatten() for name in pair.ours])
        parts = flat.chunk(len(pair.theirs))
        # A copy of each, as a file does not take parts of one memory.
        weights |= {n: p.clone().view(pair.shape) for n, p in zip(pair.theirs, parts, strict=True)}
    return weights


def _settings(
    model: VideoTransformer, config: HostConfig, architecture: str
) -> dict[str, Any]:  # Any: JSON
    """Return what `config.json` says."""
    num = model.num_classes[0]
    labels = model.labels if len(model.labels) == num else [f"LABEL_{i}" for i in range(num)]
    theirs: dict[str, Any] = {"model_type": "paretoken"}  # Any: JSON
    if architecture == VIDEOMAE:
        assert isinstance(config, videomae.Config)
        theirs = layouts.fields_of(config)
        if not layouts.is_exact(config):
            told = "transformers' last norm has another epsilon: its logits will differ a little"
            log.warning("pool_eps=%s: %s", config.pool_eps or config.norm_eps, told)
    return {
        "architectures": [architecture],
        **theirs,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "paretoken": {
            "version": folders.VERSION,
            "host": layouts.host_as_json(config),
            "chain": layouts.chain_as_json(model.default),
        },
    }
