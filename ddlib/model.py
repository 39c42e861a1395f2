"""The CNN-DNN as one coherent model."""

import torch
from torch import Tensor, nn

from .aggregation import DenseAggregator
from .local import LocalCNNs, softmax


class CNNDNN(nn.Module):
    """Local CNNs and dense network in one: images → windows → local probabilities → global distribution.

    Trained in two steps it is the CNN-DNN (P2); trained end to end, the *coherent* model (P1); end to end from
    pre-trained local CNNs and dense network, *transfer* learning (P1).  The dense network sees softmax
    probabilities in all three, so that at its first step the transfer model is the CNN-DNN.
    """

    def __init__(self, local: LocalCNNs, head: DenseAggregator):
        super().__init__()
        if (len(local), local.num_classes) != (head.num_subdomains, head.num_classes):
            raise ValueError(
                f"{len(local)} local CNNs with {local.num_classes} classes do not fit a dense network for "
                f"{head.num_subdomains} subdomains and {head.num_classes} classes."
            )
        self.local, self.head = local, head

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, *image_shape) → logits (B, K)."""
        return self.head(self.local.probabilities(x))


class BothLevels(nn.Module):
    """A coherent model with the local losses added to the global one: (B, C, *image_shape) → (B, 1 + N, K) (ours).

    `fit` sums the cross-entropies of all these logits.  The local CNNs then learn from the first step, also where
    the dense network sees the softmax of so many classes that hardly any gradient passes through it.
    """

    def __init__(self, model: CNNDNN):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        local = self.model.local(x)  # (B, N, K)
        logits = self.model.head(softmax(local))[:, None]  # (B, 1, K)
        return torch.cat([logits, local.to(logits.dtype)], 1)
