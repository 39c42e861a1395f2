"""From the N local class distributions to one, average, geometric mean, vote, a dense network; and its accuracy."""

import itertools

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._internal import checks

TIES = ("average", "first")
STARTS = ("random", "average", "geometric")
LEAST = 1e-6  # what a probability counts as at the least, where its logarithm is taken


def average_probability(p: Tensor) -> Tensor:
    """The mean of the local distributions (P1): (B, N, K) → (B, K)."""
    return _numbers(p).mean(1)


def geometric_mean(p: Tensor) -> Tensor:
    """The normalised geometric mean of the local distributions: (B, N, K) → (B, K) (ours).

    A logarithmic opinion pool (Genest and Zidek 1986), or product of experts (Hinton 2002): the softmax of the mean of
    log p.  A probability counts as `LEAST` at the least, so that no local CNN alone can rule a class out.
    """
    return _log(_numbers(p)).mean(1).softmax(-1)


def majority_vote(p: Tensor, ties: str = "average") -> Tensor:
    """Each local CNN votes for its most probable class (P1): (B, N, K) → (B, K), the shares of the votes.

    Ties, of 7 to 21 % of the images, go to the class with the higher average probability by default (ours): the average
    is added as one further, shared vote.  It never overturns a majority, since a class that is a whole vote behind
    cannot make that up.  With `ties="first"` they go to the first class, as in a plain argmax of counts.
    """
    p = _numbers(p)
    votes = F.one_hot(p.argmax(2), p.shape[2]).sum(1)  # (B, K)
    if checks.one_of("ties", ties, TIES) == "first":
        return votes.to(p.dtype) / p.shape[1]
    return (votes + p.mean(1)) / (p.shape[1] + 1)


class DenseAggregator(nn.Module):
    """The dense network (DNN) of the CNN-DNN, the coarse problem of the two-level method (P2).

    Takes all N·K local probabilities and returns the logits of the global distribution: (B, N, K) → (B, K).
    It learns on what the local CNNs say, as stacked generalisation does (Wolpert 1992).

    `hidden` gives the widths of its hidden layers (ours: three of 128; () is a linear network).  With
    `log_probabilities` it sees their logarithms, in which the doubts of a local CNN stay visible where its
    probabilities are near 0 and 1 (ours).

    With `start` "average" or "geometric" it is a correction of that aggregate: the logits are those of the aggregate
    plus the network's, whose last layer is zero at first, so that before its first step it *is* the aggregate (ours).

    Otherwise its weights start as He et al. 2015 propose (ours): with PyTorch's own, smaller ones the coherent model
    often stays at chance level, since the differences between local distributions that are all near uniform die out on
    their way through.  It always computes in full precision: it is tiny, and bf16 would round its probabilities to
    three digits.
    """

    def __init__(
        self,
        num_subdomains: int,
        num_classes: int,
        hidden: tuple[int, ...] = (128, 128, 128),
        log_probabilities: bool = False,
        start: str = "random",
    ):
        super().__init__()
        self.start = checks.one_of("start", start, STARTS)
        self.log_probabilities = checks.flag("log_probabilities", log_probabilities)
        self.num_subdomains = checks.integer("num_subdomains", num_subdomains, 1)
        self.num_classes = checks.integer("num_classes", num_classes, 2)
        hidden = tuple(hidden) if hasattr(hidden, "__len__") else (hidden,)
        widths = [self.num_subdomains * self.num_classes, *hidden]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise([checks.integer("hidden", width, 1) for width in widths]):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Linear(int(widths[-1]), self.num_classes))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        if start != "random":
            nn.init.zeros_(self.layers[-1].weight)

    def forward(self, p: Tensor) -> Tensor:
        if tuple(_local(p).shape[1:]) != (self.num_subdomains, self.num_classes):
            wanted = f"(B, {self.num_subdomains}, {self.num_classes})"
            raise ValueError(f"the dense network takes probabilities {wanted}, got {tuple(p.shape)}.")
        with torch.autocast(p.device.type, enabled=False):
            p = p.to(next(self.parameters()).dtype)
            logits = self.layers((_log(p) if self.log_probabilities else p).flatten(1))
            if self.start == "random":
                return logits
            return logits + (_log(p).mean(1) if self.start == "geometric" else _log(p.mean(1)))


def accuracy(probabilities: Tensor | np.ndarray, labels: Tensor | np.ndarray) -> float | list[float]:
    """Share of right answers in [0, 1]: a number for (n, K), one for each local CNN for (n, N, K).

    Raises:
        ValueError: as many probabilities as labels are needed, and all of them numbers.
    """
    p, labels = torch.as_tensor(probabilities), torch.as_tensor(labels)
    if p.ndim not in (2, 3) or labels.shape != p.shape[:1] or not len(p):
        raise ValueError(f"accuracy takes (n, K) or (n, N, K) and labels (n,), got {(*p.shape,)}, {(*labels.shape,)}.")
    right = checks.finite("what accuracy is taken of", p).argmax(-1) == labels.view(-1, *(1,) * (p.ndim - 2))
    return right.double().mean(0).tolist()


def _log(p: Tensor) -> Tensor:
    return p.clamp_min(LEAST).log()


def _numbers(p: Tensor) -> Tensor:
    """Local probabilities, none of which is NaN: it would become a vote, or hide what the others say."""
    return checks.finite("what a local CNN predicts", _local(p))


def _local(p: Tensor) -> Tensor:
    if p.ndim != 3 or not p.is_floating_point():
        raise ValueError(f"local probabilities must be floats of shape (B, N, K), got {p.dtype} {tuple(p.shape)}.")
    return p
