"""What each subdomain contributes to the dense network's decision."""

import torch
from torch import Tensor

from ..aggregation import DenseAggregator


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
    p, labels = p.to(place.device, place.dtype), labels.to(place.device)
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
