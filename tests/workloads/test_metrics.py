"""Accuracies of a few clips, and finds of a few queries, counted by hand."""

from __future__ import annotations

import pytest
import torch

from workloads import metrics
from workloads.metrics import contrastive, mean_class, recall, retrieval, top_k

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


# Retrieval: three videos, four texts, of which the second and the third belong to one video.

SCORES_VT = torch.tensor([[0.9, 0.1, 0.3, 0.2], [0.8, 0.2, 0.7, 0.1], [0.5, 0.4, 0.3, 0.2]])
VIDEO_OF_TEXT = torch.tensor([0, 1, 1, 2])


def test_recall_of_a_video_takes_any_of_its_texts() -> None:
    """Ranks of the best right text: 1, 2, 4; of the right video: 1, 2, 1 and, in a tie, 1."""
    found = retrieval(SCORES_VT, SCORES_VT.T, VIDEO_OF_TEXT)
    assert [found[f"v2t/r{k}"] for k in (1, 5, 10)] == [1 / 3, 1, 1]
    assert [found[f"t2v/r{k}"] for k in (1, 5, 10)] == [3 / 4, 1, 1]
    assert found["v2t/mean"] == pytest.approx(7 / 9)
    assert found["mean"] == pytest.approx((7 / 9 + 11 / 12) / 2)


def test_of_equal_scores_the_later_one_stands_higher() -> None:
    score_QG = torch.zeros(4, 4)
    right_QG = torch.eye(4, dtype=torch.bool)
    assert [recall(score_QG, right_QG, k) for k in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1]


def test_recall_never_falls_with_k_and_ends_at_1() -> None:
    score_QG, right_QG = torch.randn(20, 20), torch.eye(20, dtype=torch.bool)
    by_k = [recall(score_QG, right_QG, k) for k in range(1, 25)]
    assert by_k == sorted(by_k)
    assert by_k[19:] == [1] * 5


def test_a_query_without_scores_finds_nothing() -> None:
    score_QG = torch.eye(3)
    score_QG[1, 2] = torch.nan
    assert recall(score_QG, torch.eye(3, dtype=torch.bool)) == 2 / 3


def test_contrastive_loss_shares_its_target_among_pairs_of_one_video() -> None:
    """By hand: the mean over both directions of -sum target * log softmax."""
    generator = torch.Generator().manual_seed(0)
    video_BD, text_BD = (torch.randn(4, 6, generator=generator) for _ in range(2))
    video_BD[2] = 3 * video_BD[1]
    unit = [x / x.norm(dim=1, keepdim=True) for x in (video_BD, text_BD)]
    score_BB = (unit[0] @ unit[1].T) / 0.1
    target_BB = torch.tensor([[1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]])
    ways = [-(target_BB * s.log_softmax(dim=1)).sum(dim=1).mean() for s in (score_BB, score_BB.T)]
    ours = contrastive(video_BD, text_BD, 0.1, torch.tensor([7, 3, 3, 0]))
    torch.testing.assert_close(ours, (ways[0] + ways[1]) / 2)
    alone = contrastive(video_BD, text_BD, 0.1)
    torch.testing.assert_close(alone, contrastive(video_BD, text_BD, 0.1, torch.arange(4)))


def test_contrastive_loss_pulls_pairs_together() -> None:
    generator = torch.Generator().manual_seed(0)
    video_BD, text_BD = (torch.randn(4, 6, generator=generator).requires_grad_() for _ in range(2))
    loss = contrastive(video_BD, text_BD, 0.5)
    gradients = torch.autograd.grad(loss, (video_BD, text_BD))
    nearer = [x - 0.1 * g for x, g in zip((video_BD, text_BD), gradients, strict=True)]
    assert contrastive(*nearer, 0.5) < loss


def test_agreement_is_the_share_of_equal_labels_and_nan_agrees_with_nothing() -> None:
    dense_BK = torch.tensor([[2.0, 1], [0, 1], [3, 1], [float("nan"), 1], [0, 1]])
    reduced_BK = torch.tensor([[9.0, 1], [1, 0], [3, 2], [float("nan"), 1], [0, float("nan")]])
    assert metrics.agreement(dense_BK, reduced_BK) == 2 / 5
    assert metrics.agreement(dense_BK[:3], dense_BK[:3]) == 1


def test_divergence_is_that_of_the_definition() -> None:
    draw = torch.Generator().manual_seed(0)
    dense_BK, reduced_BK = (torch.randn(5, 4, generator=draw) for _ in range(2))
    p, q = dense_BK.double().softmax(1), reduced_BK.double().softmax(1)
    expected = sum(float(a * (a / b).log()) for a, b in zip(p.flatten(), q.flatten(), strict=True))
    assert metrics.divergence(dense_BK, reduced_BK) == pytest.approx(expected / 5, rel=1e-12)
    assert metrics.divergence(dense_BK, dense_BK + 3) == pytest.approx(0, abs=1e-12)
    assert metrics.divergence(dense_BK, dense_BK) == 0
