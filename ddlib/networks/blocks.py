"""Which block of each of a network's tensors belongs to which of its sub-networks (P3)."""

from collections.abc import Iterator, Sequence
from itertools import accumulate

from torch import Tensor, nn

from .backbones import Backbone, GroupedLinear

_LAYERS = (nn.Conv2d, nn.Conv3d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Linear, GroupedLinear)  # that can be split


def matched(network: Backbone, subs: Sequence[Backbone]) -> Iterator[tuple[str, Tensor, list[Tensor], list[tuple]]]:
    """Each tensor of a network, the sub-networks' of that name, and the block where each of them lies.

    On an axis where sizes add up the blocks follow one another; an axis in common (channels of the image, pixels of
    a kernel, classes) belongs to every block.  A 3×3 convolution of 8 and 16 channels, split into two, for instance:

        name            whole             pieces                           blocks
        conv.weight     (16, 8, 3, 3)     (8, 4, 3, 3), (8, 4, 3, 3)       [0:8, 0:4, :, :], [8:16, 4:8, :, :]
        head.weight     (10, 16)          (10, 8), (10, 8)                 [:, 0:8], [:, 8:16]
    """
    widths = [sub.width for sub in subs]
    for sub in subs:
        for layer, *_ in sorted(_structure(network) ^ _structure(sub)):
            raise ValueError(f"layer {layer!r} cannot be split: another at width {sub.width} than at {network.width}.")
    states = [sub.state_dict() for sub in subs]
    for name, whole in network.state_dict().items():
        pieces, layer, axes = [state[name] for state in states], name.rpartition(".")[0], []
        for axis, (size, *sizes) in enumerate(zip(whole.shape, *(piece.shape for piece in pieces), strict=True)):
            if sum(sizes) == size:
                axes.append([slice(end - own, end) for own, end in zip(sizes, accumulate(sizes), strict=True)])
            elif set(sizes) == {size} and (axis > 0 or layer == "head"):
                axes.append([slice(None)] * len(subs))
            else:
                reason = f"its sizes {sizes} at widths {widths} do not add up to {size} at width {network.width}"
                raise ValueError(f"layer {layer!r} cannot be split: {reason} (for MobileNetV2, try multiples of 4).")
        yield name, whole, pieces, [tuple(axis[p] for axis in axes) for p in range(len(subs))]


def _structure(network: nn.Module) -> set[tuple[str, ...]]:
    """Layers and their switches: whether a block of MobileNetV2 has a shortcut, say, which depends on its width."""
    return {(n, *(k for k, v in vars(m).items() if v is True and k != "training")) for n, m in network.named_modules()}


def _settings(network: nn.Module) -> str:
    """What of its layers does not depend on the width: eps, momentum, the p of a dropout; and what is frozen."""
    own = [(name, key, value) for name, m in network.named_modules() for key, value in vars(m).items()]
    kept = [f"{name}.{key}={value}" for name, key, value in own if key in ("eps", "momentum", "p")]
    return " ".join([*kept, *(name for name, p in network.named_parameters() if not p.requires_grad)])


def check_splittable(networks: Sequence[nn.Module]) -> None:
    """Refuse networks with a layer that mixes channels in its own way, and networks that do not go together."""
    for network in networks:
        for name, layer in network.named_modules():
            full = getattr(layer, "groups", 1) in (1, getattr(layer, "in_channels", 1))  # or depthwise
            has_own = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
            if has_own and not (full and isinstance(layer, _LAYERS) and isinstance(network, Backbone)):
                reason = "only convolutions (full or depthwise), batch norms and linear layers of one Backbone can be"
                raise ValueError(f"layer {name!r} of a {type(network).__name__} cannot be split: {layer}; {reason}.")
    for what, values in {
        "kind": [type(network).__name__ for network in networks],
        "image channels": [network.in_channels for network in networks],
        "axes": [network.dims for network in networks],
        "classes": [network.num_classes for network in networks],
        "settings and frozen weights": dict.fromkeys(_settings(network) for network in networks),  # in their order
        "device and precision": dict.fromkeys(f"{p.dtype} on {p.device}" for n in networks for p in n.parameters()),
    }.items():
        if len(set(values)) != 1:
            raise ValueError(f"sub-networks must agree in {what}, got {', '.join(map(str, values)) or 'none'}.")
