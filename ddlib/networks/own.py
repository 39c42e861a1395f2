"""A network of one's own, held against what is asked of it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._internal import checks
from .._internal.loop import eval_mode


@torch.no_grad()
def checked(net: Any, name: Any, channels: int, classes: int, groups: int, shape: Sequence[int] | None) -> nn.Module:
    """A network of one's own, held against what is asked of it by a few cheap forward passes.

    Raises:
        ValueError: no module, nothing to train, outputs that are no logits, groups that see one another's windows.
    """
    what = f"the network of {name if isinstance(name, str) else checks.name_of(name)}"
    if not isinstance(net, nn.Module) or not any(True for _ in net.parameters()):
        raise ValueError(f"{what} must be an nn.Module with parameters, got {type(net).__name__}.")
    if shape is None or type(net).__module__ == "ddlib.networks.backbones":
        return net
    if groups > 1 and any(not p.ndim for p in net.parameters()):
        raise ValueError(f"{what} has a weight without an axis, which {groups} networks side by side would share.")
    y, _ = _in_eval_mode(net, groups * channels, shape, what)
    if not isinstance(y, Tensor) or tuple(y.shape) != (2, groups * classes):
        found = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        wanted = f"logits (B, {groups * classes}), {classes} classes for each of {groups} windows"
        raise ValueError(f"{what} must return {wanted}, got {found} for B = 2.")
    check_groups(net, channels, shape, what)
    return net


@torch.no_grad()
def check_groups(net: Any, channels: int, shape: Sequence[int], what: str) -> None:
    """Do the networks side by side compute what they compute alone?  The first and the last are compared.

    Raises:
        ValueError: they see one another's windows, or cannot be taken apart.
    """
    groups = getattr(net, "groups", 1)
    for group in (0, groups - 1) if groups > 1 else ():
        together, x = _in_eval_mode(net, groups * channels, shape, what)
        try:
            alone = net.take([group]).eval()(x.unflatten(1, (groups, -1))[:, group])
        except RuntimeError as error:
            raise ValueError(f"{what} cannot be taken apart into {groups} networks: {error}") from error
        moved = (together.unflatten(1, (groups, -1))[:, group] - alone).abs().max()
        exact = alone.dtype in (torch.float32, torch.float64)
        if not moved <= (1e-4 if exact else 0.1) * (1 + alone.abs().max()):
            raise ValueError(f"{what} lets its groups see one another: alone, logits of group {group} are others.")


def _in_eval_mode(net: nn.Module, channels: int, shape: Sequence[int], what: str) -> tuple[Any, Tensor]:
    """What two random images give, and the images; modes and torch's random state stay."""
    like = next(net.parameters())
    x = torch.rand(2, channels, *shape, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)
    try:
        with eval_mode(net), torch.random.fork_rng(devices=[]):
            return net(x), x
    except Exception as error:
        raise ValueError(f"{what} cannot take images {tuple(x.shape)}: {error}") from error
