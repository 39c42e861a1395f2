"""A network's width split along the channels into sub-networks, and sub-networks composed to a network (P3).

    network → split → P sub-networks, trained alone → compose → the global network, trained further

Stated in P3's abstract: the width is partitioned along the channels, the depth kept; sub-networks train alone, on
"the corresponding decomposed samples"; their weights, recomposed, initialise the global network, which can extract
their feature maps, and whose cost and accuracy are bounded from both sides by theirs.  Ours: zero blocks between
sub-networks, averaged logits, what the samples are (all, a share or a window), the form and proofs of the bounds.
Not checked, for lack of P3's text: which bounds it proves, assuming what, and how it treats batch norm.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from ._internal import checks
from ._internal.loop import eval_mode
from .decomposition import near_even
from .images import Split
from .local import LocalCNNs
from .networks.backbones import Backbone
from .networks.blocks import check_splittable, matched


def split(network: Backbone, parts: int | Sequence[int]) -> list[Backbone]:
    """The sub-networks of a network: of its kind and depth, each with its share of every layer's channels (P3).

    Each keeps its diagonal block of every kernel; what lies between the blocks is left out.  The classifiers are
    multiplied by P, so that the network's logits are the average of theirs where all that is zero (ours).
    `split(compose(subs), widths)` is `subs`, but for the classifiers' biases, each now the mean, and, where P is no
    power of two, for the last bit of the classifiers' weights.

    Args:
        parts: P, as even as possible and the wider ones first; or the width of each.

    Raises:
        ValueError: more parts than channels, widths that do not add up, or a layer (named) that cannot be split.
    """
    check_splittable([network])
    if isinstance(parts, Sequence):
        widths = [checks.integer("a sub-network's width", width, 1) for width in parts]
        if sum(widths) != network.width:
            raise ValueError(f"the sub-networks' widths must add up to {network.width}, got {parts!r}.")
    else:
        count = checks.integer(f"the number of parts of {network.width} channels", parts, 1, network.width)
        widths = [stop - start for start, stop in near_even(network.width, count)]
    subs = [network.fresh(width) for width in widths]
    for name, whole, pieces, blocks in matched(network, subs):
        for piece, block in zip(pieces, blocks, strict=True):
            piece.copy_(whole[block] * len(subs) if name == "head.weight" else whole[block])
    return subs


def compose(subs: Sequence[Backbone] | LocalCNNs) -> Backbone:
    """The global network of sub-networks side by side, whose logits are the average of theirs (P3).

    Kernels are block diagonal; batch norms (statistics too) and what reads the image are concatenated; so are the
    classifiers, divided by P, with the mean of the biases.  Nothing holds the blocks between sub-networks at zero:
    they receive gradients from the first step.  Every layer's feature maps are those of the sub-networks, side by
    side, for images of any size: a kernel's zero blocks let through its own maps alone, and batch norm, activation,
    pooling and shortcut treat each channel alone.

    Args:
        subs: sub-networks of one kind, of any widths; or the `LocalCNNs` in which they were trained.

    Raises:
        ValueError: sub-networks that differ in more than width and weights; a layer (named) that cannot be split.
    """
    subs = [subs.subnet(i) for i in range(len(subs))] if isinstance(subs, LocalCNNs) else list(subs)
    check_splittable(subs)
    network = subs[0].fresh(sum(sub.width for sub in subs))
    for name, whole, pieces, blocks in matched(network, subs):
        if pieces[0].shape == whole.shape:  # the classifier's bias, counters of batches: their mean
            apart = sum(piece - pieces[0] for piece in pieces) / len(subs)  # 0, without rounding, where all are equal
            whole.copy_(pieces[0] + apart.to(whole.dtype))
            continue
        whole.zero_()
        for piece, block in zip(pieces, blocks, strict=True):
            whole[block] = piece / len(subs) if name == "head.weight" else piece
    return network


def shares(data: Split, parts: int, seed: int = 0) -> list[Split]:
    """Deal images into P shares of equal size, each class in proportion; up to P − 1 images are left over (ours).

    Raises:
        ValueError: more shares than images.
    """
    checks.integer(f"the number of shares of {len(data)} images", parts, 1, len(data))
    generator = torch.Generator().manual_seed(checks.integer("seed", seed, 0))
    order = torch.randperm(len(data), generator=generator).to(data.labels.device)
    order = order[data.labels[order].argsort(stable=True)]
    return [data.some(order[p::parts][: len(data) // parts]) for p in range(parts)]


@torch.no_grad()
def feature_maps(network: Backbone, x: Tensor) -> dict[str, Tensor]:
    """What each layer and block below the classifier makes of normalised images (B, C, *shape), in eval mode.

    Returns:
        {layer: (B, channels, *its shape)}, in the order of computing; for a composed network, up to rounding, the
        sub-networks' side by side: `torch.cat([maps[layer] for maps in theirs], 1)`.
    """
    maps: dict[str, Tensor] = {}

    def keep(name: str):
        return lambda layer, inputs, output: maps.update({name: output.clone()})  # the next layer may work in place

    with ExitStack() as after:
        after.enter_context(eval_mode(network))
        for name, layer in network.named_modules():
            if name not in ("", "head"):
                after.callback(layer.register_forward_hook(keep(name)).remove)
        network(x)
    return maps


def bounds(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Cross-entropy and accuracy of the composed network, and bounds on them, from its sub-networks on one input.

    Sub-network p has logits z_p, p_p = softmax(z_p) and, with the true class y and lse = log Σ exp, the cross-entropy
    CE_p = lse(z_p) − z_py; the composed network has the logits z = mean z_p.  For each image (the proofs are ours):

    - CE ≤ mean CE_p ≤ max CE_p: lse is convex, lse(mean z_p) ≤ mean lse(z_p); subtract z_y = mean z_py.
    - CE ≥ mean CE_p − mean KL(q ‖ p_p) for every distribution q, here the average probability.  With l = mean log p_p,
      CE = lse(l) − l_y = lse(l) + mean CE_p, and lse(l) = log Σ q_k exp(l_k − log q_k) ≥ Σ q_k (l_k − log q_k)
      = −mean KL(q ‖ p_p) by Jensen's inequality.  And CE ≥ 0.
    - Where all are right, so is the composed network: if z_py ≥ z_pk for all p, then in the mean, strictly where one
      is strict.  So accuracy ≥ the share of these images ≥ 1 − Σ (1 − accuracy_p).
    - Where one wrong class k beats y in all, z_pk > z_py, it does so in the mean: the composed network is wrong.
      But for K > 2 neither CE ≥ min CE_p nor "wrong where all are wrong" holds: errors that differ average out.

    Args:
        logits: (n, P, K); or log-probabilities, of `predict(sub, data.test, precision="fp32")`, say (bf16 rounds).
        labels: (n,) the true classes.

    Returns:
        `cross_entropy` and `accuracy` of the average logits, over all images, each with its bounds `_low` and
        `_high`; and `cross_entropy_highest`, that of the worst sub-network.

    Raises:
        ValueError: logits and labels that do not fit, or of which softmax is no number (NaN); −inf is one, log 0.
    """
    if logits.ndim != 3 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(f"needs logits (n, P, K) and labels (n,), got {tuple(logits.shape)}, {tuple(labels.shape)}.")
    log_p = logits.double().log_softmax(-1)
    q = checks.finite("what a sub-network predicts", log_p.exp()).mean(1, keepdim=True)  # (n, 1, K)
    mean = log_p.mean(1)  # (n, K)
    log_true = log_p.gather(2, labels.view(-1, 1, 1).expand(-1, log_p.shape[1], 1))  # (n, P, 1)
    cost = -log_true.squeeze(2)  # (n, P)
    apart = (torch.special.xlogy(q, q) - q * log_p).nan_to_num(0, float("inf")).sum(2)  # (n, P) KL; 0 · log 0 = 0
    low = (cost.mean(1) - apart.mean(1)).nan_to_num(0, float("inf")).clamp_min(0)  # (n,)
    figures = {
        "cross_entropy": nn.functional.cross_entropy(mean, labels),
        "cross_entropy_low": low.mean(),
        "cross_entropy_high": cost.mean(),
        "cross_entropy_highest": cost.mean(0).max(),
        "accuracy": (mean.argmax(1) == labels).double().mean(),
        "accuracy_low": (log_p.argmax(2) == labels[:, None]).all(1).double().mean(),
        "accuracy_high": (log_p <= log_true).any(1).all(1).double().mean(),
    }
    return {name: figure.item() for name, figure in figures.items()}
