"""Our dense VideoMAE against the one of Hugging Face transformers: same weights, same batch.

    python -m benchmarks.dense [--quick]

`ratio` = our throughput / theirs in a forward, `ratio_train` in a training step (forward, loss,
backward, clipped update; the same optimiser). Expected: 1 or more, for both spend their time in the
same matrix products and the same attention of torch, and packing must cost nothing where nothing is
packed. Theirs is read from the folder that `workloads.pretrained` saves ours to, and runs with
SDPA; before anything is timed, the logits of both are compared. Pixels are noise: dense work does
not depend on them.

ViT-S on 16 frames of 224 px; `--quick` takes 112 px and a batch of 4. On a GPU ViT-B, in bfloat16.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import clips, command
from benchmarks.pairs import Comparison, compare
from workloads import attention, optim
from workloads.layouts import TORCH_EPS
from workloads.models import videomae
from workloads.pretrained import save
from workloads.vit import VideoTransformer

NUM_CLASSES = 400
CLOSE = 1e-4  # logits in float32; the two sum in another order
RATE = 1e-6


@dataclass(frozen=True)
class Sides:
    """The same model twice, each as a function of its batch, and that batch."""

    ours: VideoTransformer
    theirs: Any  # of transformers, which has no types here
    clip_BCTHW: Tensor
    clip_BTCHW: Tensor
    dtype: torch.dtype

    def logits(self, which: str) -> Tensor:
        """Return the logits (B, K) of one of the two."""
        device, is_half = self.clip_BCTHW.device.type, self.dtype != torch.float32
        with torch.autocast(device, self.dtype, enabled=is_half):
            if which == "ours":
                found: Tensor = self.ours(self.clip_BCTHW, ())
            else:
                found = self.theirs(self.clip_BTCHW).logits
        return found


def main() -> None:
    """Measure, print a table, and last a JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    command.run(lambda: _measured(args.quick))


def _measured(quick: bool) -> dict[str, Any]:
    size, batch, pairs = (112, 4, 15) if quick else (224, 8, 20)
    device = clips.device()
    host = "base" if device.type == "cuda" else "small"
    config = videomae.Config(size=size, pool_eps=TORCH_EPS, **videomae.SIZES[host])
    return measure(config, batch, pairs, device)


def measure(
    config: videomae.Config, batch: int, pairs: int, device: torch.device
) -> dict[str, Any]:  # Any: JSON
    """Print how fast a host is beside transformers' and return the same as JSON."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    sides = _sides(config, batch, device, dtype)
    difference = _difference(sides)
    forward = compare(_forward(sides, "theirs"), _forward(sides, "ours"), pairs, device)
    train = compare(_train(sides, "theirs"), _train(sides, "ours"), pairs, device)
    backend = attention.backend(True, device, dtype)
    other = f"transformers, {sides.theirs.config._attn_implementation}"
    setting = (
        f"dim {config.dim}, depth {config.depth}, {config.frames} x {config.size} px, batch "
        f"{batch}, {dtype}, {pairs} pairs, {command.machine(device, 'transformers')}"
    )
    print(setting)
    print(f"attention: {backend} (ours), {other}; logits differ by {difference:.1e} in float32")
    print(f"{'':<15}{'ours':>12}{'theirs':>12}  our throughput / theirs")
    for name, measured in (("forward", forward), ("training step", train)):
        print(f"{name:<15}{_cells(measured, batch)}")
    return {
        "ratio": round(forward.ratio, 4),
        "ratio_train": round(train.ratio, 4),
        "quartiles": [round(forward.low, 4), round(forward.high, 4)],
        "quartiles_train": [round(train.low, 4), round(train.high, 4)],
        "clips_per_s": {"ours": batch / forward.second_s, "theirs": batch / forward.first_s},
        "clips_per_s_train": {"ours": batch / train.second_s, "theirs": batch / train.first_s},
        "difference": difference,
        "backend": {"ours": backend, "theirs": other},
        "setting": setting,
    }


def _sides(config: videomae.Config, batch: int, device: torch.device, dtype: torch.dtype) -> Sides:
    from transformers import VideoMAEForVideoClassification  # seconds, and not needed by --help

    ours = config.build(NUM_CLASSES).eval()
    with tempfile.TemporaryDirectory() as folder:
        save(ours, folder)
        theirs = VideoMAEForVideoClassification.from_pretrained(folder, attn_implementation="sdpa")
    shape = (batch, 3, config.frames, config.size, config.size)
    clip_BCTHW = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    clip_BTCHW = clip_BCTHW.transpose(1, 2).contiguous()
    return Sides(ours.to(device), theirs.eval().to(device), clip_BCTHW, clip_BTCHW, dtype)


@torch.no_grad()
def _difference(sides: Sides) -> float:
    """Return by how much the logits differ, in float32.

    Raises:
        RuntimeError: by more than rounding: then there is nothing to compare.
    """
    exact = Sides(sides.ours, sides.theirs, sides.clip_BCTHW, sides.clip_BTCHW, torch.float32)
    most = float((exact.logits("ours") - exact.logits("theirs")).abs().max())
    if not most <= CLOSE:
        raise RuntimeError(f"logits differ by {most}, more than {CLOSE}")
    return most


def _forward(sides: Sides, which: str) -> Callable[[], object]:
    def run() -> Tensor:
        with torch.inference_mode():
            return sides.logits(which)

    return run


def _train(sides: Sides, which: str) -> Callable[[], object]:
    model: nn.Module = (sides.ours if which == "ours" else sides.theirs).train()
    config = optim.Config(lr=RATE)
    optimizer = optim.build(model, config)
    label_B = torch.arange(len(sides.clip_BCTHW), device=sides.clip_BCTHW.device)

    def run() -> None:
        F.cross_entropy(sides.logits(which).float(), label_B).backward()
        optim.step(model, optimizer, config.lr, config.max_norm)

    return run


def _cells(measured: Comparison, batch: int) -> str:
    ours, theirs = batch / measured.second_s, batch / measured.first_s
    quartiles = f"[{measured.low:.3f}, {measured.high:.3f}]"
    return f"{ours:>8.2f} c/s{theirs:>8.2f} c/s  {measured.ratio:.3f} {quartiles}"


if __name__ == "__main__":
    main()
