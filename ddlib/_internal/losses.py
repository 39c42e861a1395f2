"""Losses of logits (B, K), and of N networks side by side, (B, N, K)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]


def at_least_single(logits: Tensor) -> Tensor:
    """Half precision as single precision."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the batch, sum over networks: (B, K) or (B, N, K) logits, (B,) labels → a scalar.

    A mean over networks would divide every local gradient by N.
    """
    logits = at_least_single(logits)
    if logits.ndim == 2:
        return F.cross_entropy(logits, labels)
    networks = logits.shape[1]
    return networks * F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(networks))


def balanced_loss(labels: Tensor) -> Loss:
    """The cross-entropy in which each class weighs as the inverse of its frequency, 1 in the mean over the images."""
    counts = labels.bincount()
    return _Weighted(len(labels) / ((counts > 0).sum() * counts.clamp_min(1).float()))


class _Weighted:
    def __init__(self, weight: Tensor):
        self.weight = weight

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.weight = self.weight.to(labels.device)  # once
        each = F.cross_entropy(logits.float(), labels, reduction="none")
        return (self.weight[labels] * each).mean()


def over_networks(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    """A loss of logits (B, K) and labels (B,), summed over the networks of logits (B, N, K)."""
    return loss(logits, labels) if logits.ndim == 2 else sum(loss(each, labels) for each in logits.unbind(1))


def scalar(loss: Any) -> Tensor:
    """A loss of one's own, when it is what can be trained on; otherwise a ValueError that says what it must be."""
    if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
        found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"a loss must return a scalar tensor that depends on the logits, got {found}.")
    return loss
