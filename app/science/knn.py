"""Weighted k-nearest-neighbour classification on features: the monitor of pretraining."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


def knn_scores(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, *, n_classes: int, neighbours: int, temperature: float
) -> NDArray[np.float64]:
    """Vote of the nearest training images by cosine similarity (Wu et al. 2018, section 3.4).

    Each of the ``neighbours`` nearest votes for its class with weight ``exp(similarity / temperature)``.

    Args:
        bank: training features, (N, D).
        bank_labels: their classes, int64 (N,), or 0/1 labels, (N, C), of a multi-label task; whoever lacks one
            (below 0) does not vote on it.
        queries: features to classify, (M, D).
        n_classes: number of classes C.
        neighbours: how many vote; at most N do.
        temperature: of the weights, above 0.

    Returns:
        Scores between 0 and 1, (M, C); rows sum to 1 unless multi-label.
    """
    bank, queries = F.normalize(bank.float(), dim=1), F.normalize(queries.float(), dim=1)
    similarity, index = (queries @ bank.T).topk(min(neighbours, len(bank)), dim=1)
    weights = torch.softmax(similarity / temperature, dim=1)
    votes = bank_labels if bank_labels.ndim == 2 else F.one_hot(bank_labels, n_classes)
    if bool((votes < 0).any()):
        known = torch.einsum("mk,mkc->mc", weights, (votes >= 0)[index].to(weights.dtype))
        yes = torch.einsum("mk,mkc->mc", weights, (votes == 1)[index].to(weights.dtype))
        return (yes / known.clamp(min=1e-12)).double().cpu().numpy()
    return torch.einsum("mk,mkc->mc", weights, votes[index].to(weights.dtype)).double().cpu().numpy()
