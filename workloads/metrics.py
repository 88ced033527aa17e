"""Accuracy of predicted labels.

Legend: B clips, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

REVISION = 1


def top_k(logits_BK: Tensor, label_B: Tensor, k: int = 1) -> float:
    """Return the share of clips whose label is among the k highest logits."""
    best_Bk = logits_BK.topk(min(k, logits_BK.shape[1]), dim=1).indices
    hit_B = (best_Bk == label_B[:, None]).any(dim=1)
    return float((hit_B & ~logits_BK.isnan().any(dim=1)).double().mean())  # NaN is no answer


def mean_class(logits_BK: Tensor, label_B: Tensor) -> float:
    """Return top-1 of each class that occurs, averaged over these classes."""
    hit_B = (logits_BK.argmax(dim=1) == label_B) & ~logits_BK.isnan().any(dim=1)
    by_class = [hit_B[label_B == label].double().mean() for label in label_B.unique()]
    return float(torch.stack(by_class).mean())
