"""How much of the saved arithmetic becomes saved time: each method against the same model dense.

    python -m benchmarks.reduction [--quick] [--data VIDEOS]

`efficiency` = (dense time / reduced time) / (dense MACs / reduced MACs), for a forward and for a
training step (forward, loss, backward, update). 1 means that time falls as the MACs do; selection
and matching are in both. Settings are chosen so that 0.4-0.6 of the tokens enter a block. ViT-S on
16 frames of 224 px; `--quick` takes 112 px and a batch of 4. The attention backend stands beside
each figure.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import clips, command
from benchmarks.pairs import Comparison, compare
from workloads import attention, cost, optim
from workloads.models import videomae
from workloads.reducers import base, drop, rlt, tome
from workloads.trace import Trace
from workloads.vit import VideoTransformer

NUM_CLASSES = 400
WANTED, LEAST, MOST = 0.5, 0.4, 0.6  # share of the tokens
MOST_TAU = 2.0


@dataclass(frozen=True)
class Row:
    """One method, measured."""

    name: str
    config: base.Config
    kept: float
    macs_ratio: float
    forward: Comparison
    train: Comparison
    backend: str

    def efficiency(self, measured: Comparison) -> float:
        """Return saved time / saved arithmetic."""
        return measured.ratio / self.macs_ratio


def main() -> None:
    """Measure, print a table, and last a JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", type=Path, default=clips.default_data())
    args = parser.parse_args()
    command.run(lambda: _measured(args.data, args.quick))


def _measured(data: Path | None, quick: bool) -> dict[str, Any]:
    rows, setting = measure(data, quick, clips.device())
    print(setting)
    print(f"{'method':<28}{'kept':>6}{'MACs':>7}  {'forward':>22}  {'training step':>22}  backend")
    for row in rows:
        cells = "  ".join(_cell(row, measured) for measured in (row.forward, row.train))
        print(
            f"{_title(row):<28}{row.kept:>6.2f}{1 / row.macs_ratio:>7.2f}  {cells}  {row.backend}"
        )
    for row in rows:
        if not LEAST <= row.kept <= MOST:  # such clips allow no other: all still, or all in motion
            print(f"{_title(row)} keeps {row.kept:.2f} of the tokens, not {LEAST} to {MOST}")
    return _answer(rows, setting)


def measure(data: Path | None, quick: bool, device: torch.device) -> tuple[list[Row], str]:
    """Return a row a method, and the setting in words."""
    size, batch, pairs = (112, 4, 7) if quick else (224, 8, 20)
    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    host = "base" if on_gpu else "small"
    config = videomae.Config(size=size, **videomae.SIZES[host])
    clip_BCTHW, source = clips.load(data, batch, size, config)
    clip_BCTHW = clip_BCTHW.to(device)
    model = config.build(NUM_CLASSES).to(device)
    chosen: list[base.Config] = [
        rlt_at(model, clip_BCTHW),
        drop.Config(keep=WANTED),
        tome_at(model, clip_BCTHW),
    ]
    rows = [_row(model, clip_BCTHW, reducer, pairs, dtype) for reducer in chosen]
    setting = (
        f"ViT-{host[0].upper()}, 16 x {size} px, batch {batch}, {dtype}, "
        f"{command.machine(device)}; {source}"
    )
    return rows, setting


def rlt_at(model: VideoTransformer, clip_BCTHW: Tensor) -> rlt.Config:
    """Return the threshold at which RLT keeps the wanted share of these clips, or comes nearest."""
    low, high = 0.0, MOST_TAU
    for _ in range(20):
        tau = (low + high) / 2
        kept = rlt.mask(rlt.score(clip_BCTHW, model.host.tubelet, model.host.patch), tau)
        low, high = (tau, high) if kept.float().mean() > WANTED else (low, tau)
    return rlt.Config(tau=round(high, 4))


def tome_at(model: VideoTransformer, clip_BCTHW: Tensor) -> tome.Config:
    """Return the constant r that leaves the wanted share of the tokens, mean over blocks."""
    time, rows, columns = model.host.grid(clip_BCTHW)
    removed = time * rows * columns * (1 - WANTED)  # on average; r grows from 0 to twice that
    return tome.Config(r=round(2 * removed / (model.host.depth - 1)))


def _row(
    model: VideoTransformer,
    clip_BCTHW: Tensor,
    reducer: base.Config,
    pairs: int,
    dtype: torch.dtype,
) -> Row:
    chain = (reducer,)
    with torch.no_grad():
        _, trace = model.traced(clip_BCTHW, chain)
        _, dense_trace = model.traced(clip_BCTHW, ())
    device = clip_BCTHW.device
    dense = cost.macs(model, clip_BCTHW, ())["total"]
    return Row(
        name=base.name_of(reducer),
        config=reducer,
        kept=_mean_tokens(trace) / _mean_tokens(dense_trace),
        macs_ratio=dense / cost.macs(model, clip_BCTHW, chain)["total"],
        forward=compare(
            _forward(model, clip_BCTHW, (), dtype),
            _forward(model, clip_BCTHW, chain, dtype),
            pairs,
            device,
        ),
        train=compare(
            _train(model, clip_BCTHW, (), dtype),
            _train(model, clip_BCTHW, chain, dtype),
            pairs,
            device,
        ),
        backend=_backend(trace, device, dtype),
    )


def _mean_tokens(trace: Trace) -> float:
    return float(cost.tokens_by_clip(trace).mean())


def _backend(trace: Trace, device: torch.device, dtype: torch.dtype) -> str:
    lengths = [visit.lengths for visit in trace.visits if visit.part == "attention"]
    names = {attention.backend(len(set(sizes)) == 1, device, dtype) for sizes in lengths}
    return " + ".join(sorted(names))


def _forward(
    model: VideoTransformer,
    clip_BCTHW: Tensor,
    chain: Sequence[base.Config],
    dtype: torch.dtype,
) -> Callable[[], object]:
    def run() -> Tensor:
        half = dtype == torch.bfloat16
        with torch.inference_mode(), torch.autocast(clip_BCTHW.device.type, dtype, enabled=half):
            return model(clip_BCTHW, chain)

    return run


def _train(
    model: VideoTransformer,
    clip_BCTHW: Tensor,
    chain: Sequence[base.Config],
    dtype: torch.dtype,
) -> Callable[[], object]:
    config = optim.Config(lr=1e-6)
    optimizer = optim.build(model, config)
    label_B = torch.arange(len(clip_BCTHW), device=clip_BCTHW.device)

    def run() -> None:
        half = dtype == torch.bfloat16
        with torch.autocast(clip_BCTHW.device.type, dtype, enabled=half):
            logits_BK = model(clip_BCTHW, chain)
        F.cross_entropy(logits_BK.float(), label_B).backward()
        optim.step(model, optimizer, config.lr, config.max_norm)

    return run


def _title(row: Row) -> str:
    shown = {"rlt": "tau", "drop": "keep", "tome": "r"}[row.name]
    return f"{row.name} {shown}={getattr(row.config, shown)}"


def _cell(row: Row, measured: Comparison) -> str:
    low, high = measured.low / row.macs_ratio, measured.high / row.macs_ratio
    return f"{row.efficiency(measured):.2f} [{low:.2f}, {high:.2f}] {measured.ratio:.2f}x"


def _answer(rows: list[Row], setting: str) -> dict[str, Any]:
    return {
        "efficiency": {row.name: round(row.efficiency(row.forward), 4) for row in rows},
        "efficiency_train": {row.name: round(row.efficiency(row.train), 4) for row in rows},
        "kept": {row.name: round(row.kept, 4) for row in rows},
        "speedup": {row.name: round(row.forward.ratio, 4) for row in rows},
        "speedup_train": {row.name: round(row.train.ratio, 4) for row in rows},
        "backend": {row.name: row.backend for row in rows},
        "setting": setting,
    }


if __name__ == "__main__":
    main()
