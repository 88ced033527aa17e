"""Accuracy of predicted labels, agreement of two models, and what videos and texts find of each
other.

Legend: B clips, K classes, Q queries, G gallery, V videos, T texts, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

REVISION = 1
RANKS = (1, 5, 10)


def top_k(logits_BK: Tensor, label_B: Tensor, k: int = 1) -> float:
    """Return the share of clips whose label is among the k highest logits."""
    best_Bk = logits_BK.topk(min(k, logits_BK.shape[1]), dim=1).indices
    hit_B = (best_Bk == label_B[:, None]).any(dim=1)
    return float((hit_B & ~logits_BK.isnan().any(dim=1)).double().mean())  # NaN is no answer


def margin(logits_BK: Tensor, label_B: Tensor) -> Tensor:
    """Return how far the label's logit lies above the highest other one, (B,); -inf for NaN."""
    own_B1 = logits_BK.gather(1, label_B[:, None])
    others_BK = logits_BK.scatter(1, label_B[:, None], -torch.inf)
    margin_B = own_B1[:, 0] - others_BK.max(dim=1).values
    return torch.where(logits_BK.isnan().any(dim=1), -torch.inf, margin_B)


def mean_class(logits_BK: Tensor, label_B: Tensor) -> float:
    """Return top-1 of each class that occurs, averaged over these classes."""
    hit_B = (logits_BK.argmax(dim=1) == label_B) & ~logits_BK.isnan().any(dim=1)
    by_class = [hit_B[label_B == label].double().mean() for label in label_B.unique()]
    return float(torch.stack(by_class).mean())


def agreement(dense_BK: Tensor, reduced_BK: Tensor) -> float:
    """Return the share of clips to which two models give the same label."""
    same_B = dense_BK.argmax(dim=1) == reduced_BK.argmax(dim=1)
    is_answer_B = ~(dense_BK.isnan() | reduced_BK.isnan()).any(dim=1)
    return float((same_B & is_answer_B).double().mean())


def divergence(dense_BK: Tensor, reduced_BK: Tensor) -> float:
    """Return KL(dense || reduced) of the labels' probabilities, nats, mean over the clips."""
    dense_BK, reduced_BK = (x.double().log_softmax(dim=1) for x in (dense_BK, reduced_BK))
    return float((dense_BK.exp() * (dense_BK - reduced_BK)).sum(dim=1).mean())


def recall(score_QG: Tensor, is_right_QG: Tensor, k: int = 1) -> float:
    """Return the share of queries with a right answer among the k highest scores.

    Of equal scores the later one stands higher, as in the retrieval code of UMT and vid-TLDR. Any
    right answer will do where a query has several.
    """
    best_QG = score_QG.argsort(dim=1, stable=True).flip(1)
    hit_Q = is_right_QG.gather(1, best_QG[:, :k]).any(dim=1)
    return float((hit_Q & ~score_QG.isnan().any(dim=1)).double().mean())


def retrieval(score_VT: Tensor, score_TV: Tensor, video_T: Tensor) -> dict[str, float]:
    """Return recall at 1, 5 and 10 in both directions, and its means.

    Args:
        score_VT, score_TV: of texts for each video, and of videos for each text; not always one
            the transpose of the other, where only the best are scored with care.
        video_T: the video of each text; several texts may have one.
    """
    is_right_VT = video_T == torch.arange(len(score_VT), device=video_T.device)[:, None]
    found = {f"v2t/r{k}": recall(score_VT, is_right_VT, k) for k in RANKS}
    found |= {f"t2v/r{k}": recall(score_TV, is_right_VT.T, k) for k in RANKS}
    for way in ("v2t", "t2v"):
        found[f"{way}/mean"] = sum(found[f"{way}/r{k}"] for k in RANKS) / len(RANKS)
    return found | {"mean": (found["v2t/mean"] + found["t2v/mean"]) / 2}


def likeness(video_BD: Tensor, text_BD: Tensor, temperature: float) -> Tensor:
    """Return the cosine of each video with each text over the temperature, (B, B)."""
    return F.normalize(video_BD, dim=1) @ F.normalize(text_BD, dim=1).T / temperature


def contrastive(
    video_BD: Tensor, text_BD: Tensor, temperature: float, id_B: Tensor | None = None
) -> Tensor:
    """Return the symmetric contrastive loss of a batch of pairs.

    Args:
        video_BD, text_BD: of pairs, of any length.
        temperature: what cosines are divided by.
        id_B: video of each pair; pairs of one video are right for each other, in equal parts.
    """
    score_BB = likeness(video_BD, text_BD, temperature)
    if id_B is None:
        id_B = torch.arange(len(video_BD), device=video_BD.device)
    is_right_BB = (id_B[:, None] == id_B).to(score_BB.dtype)
    target_BB = is_right_BB / is_right_BB.sum(dim=1, keepdim=True)
    return (F.cross_entropy(score_BB, target_BB) + F.cross_entropy(score_BB.T, target_BB)) / 2
