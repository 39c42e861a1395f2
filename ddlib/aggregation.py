"""From the N local class distributions to one: average probability, majority voting, a dense network."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import checks


def average_probability(p: Tensor) -> Tensor:
    """The mean of the local distributions (P1): (B, N, K) → (B, K)."""
    return _local(p).mean(1)


def majority_vote(p: Tensor) -> Tensor:
    """Each local CNN votes for its most probable class (P1): (B, N, K) → (B, K), the shares of the votes.

    Ties go to the class with the higher average probability (ours): the average is added as one further,
    shared vote.  It never overturns a majority, since a class that is a whole vote behind cannot make that up.
    """
    p = _local(p)
    votes = F.one_hot(p.argmax(2), p.shape[2]).sum(1)  # (B, K)
    return (votes + p.mean(1)) / (p.shape[1] + 1)


class DenseAggregator(nn.Module):
    """The dense network (DNN) of the CNN-DNN, the coarse problem of the two-level method (P2).

    Takes all N·K local probabilities and returns the logits of the global distribution: (B, N, K) → (B, K).
    `hidden` gives the widths of its hidden layers (ours: three of 128).  With `log_probabilities` it sees their
    logarithms, in which the doubts of a local CNN stay visible where its probabilities are near 0 and 1 (ours).
    Its weights start as He et al. 2015 propose (ours): with PyTorch's own, smaller ones the coherent model often
    stays at chance level, since the differences between local distributions that are all near uniform die out on
    their way through.  It always computes in full precision: it is tiny, and bf16 would round its probabilities to
    three digits.
    """

    def __init__(
        self,
        num_subdomains: int,
        num_classes: int,
        hidden: tuple[int, ...] = (128, 128, 128),
        log_probabilities: bool = False,
    ):
        super().__init__()
        self.log_probabilities = checks.flag("log_probabilities", log_probabilities)
        self.num_subdomains = checks.whole("num_subdomains", num_subdomains, 1)
        self.num_classes = checks.whole("num_classes", num_classes, 2)
        widths = [num_subdomains * num_classes, *hidden]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, checks.whole("hidden", outputs, 1)), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, p: Tensor) -> Tensor:
        if tuple(_local(p).shape[1:]) != (self.num_subdomains, self.num_classes):
            wanted = f"(B, {self.num_subdomains}, {self.num_classes})"
            raise ValueError(f"the dense network takes probabilities {wanted}, got {tuple(p.shape)}.")
        with torch.autocast(p.device.type, enabled=False):
            x = p.flatten(1).to(self.layers[0].weight.dtype)
            return self.layers(x.clamp_min(1e-6).log() if self.log_probabilities else x)


@torch.no_grad()
def importance(head: DenseAggregator, p: Tensor, labels: Tensor, seed: int = 0, repeats: int = 10) -> list[float]:
    """What each subdomain contributes to the dense network's decision: its permutation importance (Breiman 2001).

    Args:
        p: local probabilities (n, N, K) of images that the network was not trained on; labels: (n,).

    Returns:
        N numbers: the accuracy, as a share of the images, that is lost when the subdomain's probabilities are dealt
        to other images at random; the mean over `repeats`.
    """
    place = next(head.parameters())
    p, labels = _local(p).to(place.device, place.dtype), labels.to(place.device)
    generator = torch.Generator().manual_seed(seed)

    def right(q: Tensor) -> float:
        return (head(q).argmax(1) == labels).double().mean().item()

    whole, lost = right(p), []
    for i in range(p.shape[1]):
        mixed, without = p.clone(), 0.0
        for _ in range(repeats):
            mixed[:, i] = p[torch.randperm(len(p), generator=generator).to(p.device), i]
            without += right(mixed)
        lost.append(whole - without / repeats)
    return lost


def _local(p: Tensor) -> Tensor:
    if p.ndim != 3 or not p.is_floating_point():
        raise ValueError(f"local probabilities must be floats of shape (B, N, K), got {p.dtype} {tuple(p.shape)}.")
    return p
