"""A network of one's own, held against what is asked of it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._internal import checks


@torch.no_grad()
def checked(net: Any, name: Any, channels: int, classes: int, groups: int, shape: Sequence[int] | None) -> nn.Module:
    """A network of one's own, held against what is asked of it by two cheap forward passes.

    Raises:
        ValueError: no module, nothing to train, outputs that are no logits, groups that see one another's windows.
    """
    what = f"the network of {name if isinstance(name, str) else checks.name_of(name)}"
    if not isinstance(net, nn.Module) or not any(True for _ in net.parameters()):
        raise ValueError(f"{what} must be an nn.Module with parameters, got {type(net).__name__}.")
    if shape is None or type(net).__module__ == "ddlib.networks.backbones":
        return net
    modes = {module: module.training for module in net.modules()}
    with torch.random.fork_rng(devices=[]):
        like = next(net.parameters())
        x = torch.rand(2, groups * channels, *shape, dtype=torch.float64).to(like.device, like.dtype)
        net.eval()
        try:
            y = net(x)
        except Exception as error:
            raise ValueError(f"{what} cannot take images {tuple(x.shape)}: {error}") from error
        if not isinstance(y, Tensor) or tuple(y.shape) != (2, groups * classes):
            found = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            wanted = f"logits (B, {groups * classes}), {classes} classes for each of {groups} windows"
            raise ValueError(f"{what} must return {wanted}, got {found} for B = 2.")
        if groups > 1:
            x[:, channels:] = 1 - x[:, channels:]  # all windows but the first are others
            moved = (net(x)[:, :classes] - y[:, :classes]).abs().max()
            if moved > 1e-4 * (1 + y.abs().max()):
                raise ValueError(f"{what} lets its groups see one another: the first one's logits move by {moved:.2g}.")
    for module, mode in modes.items():
        module.training = mode
    return net
