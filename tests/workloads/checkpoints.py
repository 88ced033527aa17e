"""Checkpoint folders to read: models of transformers with random weights, whole and broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from workloads.mistakes import Mistake
from workloads.models import videomae
from workloads.pretrained import load

transformers = pytest.importorskip("transformers")

# Small, wide and flat, of one frame a token and an odd width of the MLP.
SHAPES: list[dict[str, Any]] = [
    {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96},
    {
        **{"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4},
        **{"intermediate_size": 50, "image_size": 24, "num_frames": 6},
    },
    {
        **{"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3},
        **{"intermediate_size": 31, "patch_size": 4, "tubelet_size": 1, "num_frames": 3},
    },
]
USUAL = {"image_size": 16, "patch_size": 8, "num_frames": 4, "num_labels": 5}
LIGHT = {
    **{"decoder_hidden_size": 12, "decoder_num_hidden_layers": 2},
    **{"decoder_num_attention_heads": 3, "decoder_intermediate_size": 40},
}
OWN = videomae.Config(dim=24, depth=2, heads=2, patch=8, frames=4, size=16, pool_eps=1e-5)


def shaken(model: Any) -> Any:
    """Return a model of which no weight is as it was made: no bias is zero any more."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=draw))
    return model.eval()


def theirs(kind: str = "VideoMAEForVideoClassification", **settings: Any) -> Any:
    torch.manual_seed(0)
    config_class = "CLIPVisionConfig" if kind.startswith("CLIP") else "VideoMAEConfig"
    usual = {} if kind.startswith("CLIP") else USUAL | LIGHT
    config = getattr(transformers, config_class)(**{**usual, **SHAPES[0], **settings})
    return shaken(getattr(transformers, kind)(config))


def clips_for(config: Any, num: int = 2) -> Tensor:
    shape = (num, 3, getattr(config, "num_frames", 3), config.image_size, config.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def saved(model: Any, folder: Path, **settings: Any) -> Path:
    """Write a model of transformers, and change what its config.json says."""
    model.save_pretrained(folder)
    edit(folder, **settings)
    return folder


def edit(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def weights_in(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(folder / "model.safetensors")
    return found


def rewrite(folder: Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def refused(folder: Path, *words: str, **kwargs: Any) -> None:
    with pytest.raises(Mistake) as caught:
        load(folder, **kwargs)
    told = str(caught.value)
    assert len(told.splitlines()) <= 8
    assert all(word in told for word in words), told
