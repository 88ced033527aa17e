"""Where vid-TLDR and ToMe merge in a model, how much, at what cost, and in which precision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from merges import HOST, draw, merged
from scenes import SEEDS, encoded, scene

from workloads.mistakes import Mistake
from workloads.reducers import tome, vid_tldr
from workloads.reducers.base import At
from workloads.trace import Trace


def test_a_share_is_of_the_tokens_that_are_left() -> None:
    """Pitfall 12 of the card: of the first number it would be 16, then 16."""
    model, trace = HOST.build(5).eval(), Trace()
    chain = model.chain((vid_tldr.Config(ratio=0.25, layers=2),))
    model.encode(scene(), chain, SEEDS, trace)
    assert [v.lengths[0] for v in trace.visits if v.part == "attention"] == [64, 48, 36]
    assert [v.lengths[0] for v in trace.visits if v.part == "mlp"] == [48, 36, 36]


def test_only_layers_that_merge_show_their_map() -> None:
    reducer = vid_tldr.Config(counts=(5, 0, 0.2)).build(HOST.host())
    assert [reducer.probe(layer) for layer in range(3)] == ["map", None, "map"]
    assert [step.layer for step in reducer.steps()] == [0, 2]


@torch.no_grad()
def test_mass_stays_with_the_tokens_in_blocks_that_do_not_merge() -> None:
    """Pitfall 10 of the card."""
    model, seen = HOST.build(5).eval(), []
    for block in model.blocks:
        block.attn.register_forward_hook(lambda part, inputs, out: seen.append(inputs[1]))
    encoded(model, scene(), (vid_tldr.Config(counts=(9,)),))
    assert seen[0].mass_N is None
    assert seen[1].mass_N.max() > 1
    assert torch.equal(seen[2].mass_N, seen[1].mass_N)


def test_matching_costs_a_product_over_the_whole_width() -> None:
    reducer = vid_tldr.Config().build(HOST.host())
    assert reducer.macs(At.IN_BLOCK, 13) == 7 * 6 * 24


def test_its_trace_needs_no_numbers() -> None:
    """The model on the meta device: whatever is merged, counts are known before."""
    host = replace(HOST, frames=16, size=32)
    with torch.device("meta"):
        model = host.build(5)
    pixels = torch.empty(2, 3, 16, 32, 32, device="meta")
    _, trace = model.traced(pixels, (vid_tldr.Config(ratio=0.25, layers=3),))
    assert trace.left == (216, 216)


def test_similarity_stays_in_float32_in_half_precision() -> None:
    """Half precision ties often, and then depends on the device."""
    x_SLD = 1 + 1e-3 * draw(2, 40, 8)
    with torch.autocast("cpu", torch.bfloat16):
        half = vid_tldr.match(x_SLD, 10)
    assert all(map(torch.equal, half, vid_tldr.match(x_SLD, 10)))


def test_ties_go_to_the_lower_position() -> None:
    plan = vid_tldr.match(torch.ones(1, 8, 3), 2)
    assert plan.source_SR.tolist() == [[0, 2]]
    assert plan.kept_SK.gather(1, plan.into_SR).tolist() == [[1, 1]]


def test_mass_is_exact_in_half_precision() -> None:
    """bfloat16 knows no odd number above 256."""
    x_SLD, uniform = torch.ones(1, 4, 6).bfloat16(), torch.full((1, 4, 4), 0.25)
    out = merged(x_SLD, uniform, 1, torch.tensor([[300.0, 301.0, 1.0, 2.0]]))
    assert out.mass_N.sum() == 604
    assert out.x_ND.dtype == torch.bfloat16


# What a user may get wrong.


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ratio": -0.1}, "ratio=-0.1 must be in"),
        ({"ratio": 0.6}, "ratio=0.6 must be in"),
        ({"layers": 0}, "layers=0 must be 1 or more"),
        ({"counts": (5, -1)}, "-1 is neither a share nor a number of tokens"),
        ({"counts": (1.5,)}, "1.5 is neither"),
        ({"counts": (float("nan"),)}, "nan is neither"),
    ],
)
@pytest.mark.parametrize("method", [vid_tldr, tome])
def test_knobs_without_meaning_are_refused(method: Any, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(Mistake, match=words):
        method.Config(**fields)


@pytest.mark.parametrize("method", [vid_tldr, tome])
@pytest.mark.parametrize("fields", [{"counts": (5, 0, 0, 0)}, {"ratio": 0.1, "layers": 4}])
def test_a_schedule_longer_than_the_model_is_refused_before_any_work(
    method: Any, fields: dict[str, Any]
) -> None:
    model = HOST.build(5)
    with pytest.raises(Mistake, match=r"a schedule of 4 blocks .* longer than the model is deep"):
        model.chain((method.Config(**fields),))


@torch.no_grad()
@pytest.mark.parametrize("fields", [{"counts": (20, 0, 0.3)}, {"ratio": 0.3}, {"counts": (99, 99)}])
def test_tome_at_the_same_schedule_keeps_as_many(fields: dict[str, Any]) -> None:
    model = HOST.build(5).eval()
    traces = [model.traced(scene(), (m.Config(**fields),))[1] for m in (vid_tldr, tome)]
    lengths = [[(v.part, v.lengths) for v in trace.visits] for trace in traces]
    assert lengths[0] == lengths[1]
