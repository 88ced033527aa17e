"""Accuracies of a few clips counted by hand."""

from __future__ import annotations

import pytest
import torch

from workloads.metrics import mean_class, top_k

# Highest logits: classes 2, 0, 1, 1, 0; second highest: 1, 1, 2, 0, 2.
LOGITS = torch.tensor([[0.0, 1, 2], [2, 1, 0], [0, 2, 1], [1, 2, 0], [2, 0, 1]])
LABELS = torch.tensor([2, 1, 1, 0, 0])


@pytest.mark.parametrize(("k", "share"), [(1, 3 / 5), (2, 1.0), (3, 1.0), (5, 1.0)])
def test_top_k_counts_labels_among_the_k_highest(k: int, share: float) -> None:
    """More than there are classes is all of them."""
    assert top_k(LOGITS, LABELS, k) == share


def test_a_lowest_logit_is_never_among_the_first_two() -> None:
    assert top_k(LOGITS, LOGITS.argmin(dim=1), k=2) == 0.0


def test_mean_class_weighs_classes_alike_and_leaves_out_those_without_clips() -> None:
    """Class 0: one of two, class 1: one of two, class 2: one of one; a fourth has no clip."""
    wider = torch.cat([LOGITS, torch.full((5, 1), -1.0)], dim=1)
    assert mean_class(wider, LABELS) == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)


def test_both_are_exact_on_many_clips() -> None:
    """A mean in float32 would lose the last digits of a share."""
    label_B = torch.zeros(30_001, dtype=torch.long)
    logits_BK = torch.zeros(30_001, 2)
    logits_BK[:, 1] = -1.0
    logits_BK[0, 1] = 1.0
    assert top_k(logits_BK, label_B) == 30_000 / 30_001
    assert mean_class(logits_BK, label_B) == 30_000 / 30_001


def test_a_model_that_gives_nan_is_right_about_nothing() -> None:
    logits_BK = torch.full((4, 3), torch.nan)
    assert top_k(logits_BK, torch.zeros(4, dtype=torch.long)) == 0.0
    assert mean_class(logits_BK, torch.zeros(4, dtype=torch.long)) == 0.0
