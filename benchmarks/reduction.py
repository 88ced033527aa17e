"""How much of the saved arithmetic becomes saved time: each method against the same model dense.

    python -m benchmarks.reduction [--quick] [--data VIDEOS]

`efficiency` = (dense time / reduced time) / (dense MACs / reduced MACs), for a forward and for a
training step (forward, loss, backward, update). 1 means that time falls as the MACs do; selection
and matching are in both. Settings are chosen so that 0.4-0.6 of the tokens enter a block. ViT-S on
16 frames of 224 px; `--quick` takes 112 px and a batch of 4. The attention backend stands beside
each figure, and under the table what each part of a forward loses (see `breakdown`).
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

from benchmarks import breakdown, clips, command
from benchmarks.pairs import Comparison, compare
from benchmarks.settings import LEAST, MOST, chosen
from workloads import attention, cost, optim
from workloads.knobs import knobs_of
from workloads.models import videomae
from workloads.reducers import base
from workloads.trace import Trace
from workloads.vit import VideoTransformer

NUM_CLASSES = 400


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
    lost: dict[str, float]
    """Share of the reduced forward that each part loses; see `breakdown`."""

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
    print("lost, % of the reduced forward (its own selection and matching are all lost):")
    for row in rows:
        lost = "  ".join(f"{part} {share:+.1%}" for part, share in row.lost.items())
        print(f"{_title(row):<28}{lost}")
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
    reducers = chosen(config, clip_BCTHW)
    model = config.build(NUM_CLASSES, tuple(reducers.values())).to(device)
    rows = [_row(model, clip_BCTHW, reducer, pairs, dtype) for reducer in reducers.values()]
    setting = (
        f"ViT-{host[0].upper()}, 16 x {size} px, batch {batch}, {dtype}, "
        f"{command.machine(device)}; {source}"
    )
    return rows, setting


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
        lost=breakdown.lost(model, clip_BCTHW, chain, dtype),
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
    config, kind = row.config, type(row.config)
    knobs = [name for name in knobs_of(kind) if name not in getattr(config, "idle", ())]
    usual = kind()
    told = [f"{name}={getattr(config, name)}" for name in knobs]
    changed = [
        t for t, n in zip(told, knobs, strict=True) if getattr(config, n) != getattr(usual, n)
    ]
    return " ".join([row.name, *(changed or told[:1])])


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
        "lost": {
            row.name: {part: round(share, 4) for part, share in row.lost.items()} for row in rows
        },
        "setting": setting,
    }


if __name__ == "__main__":
    main()
