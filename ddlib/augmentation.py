"""From raw images to a batch, on the device: mirror, shift, normalise."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .images import Split


def prepare(images: Tensor, split: "Split", dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 images (B, C, *shape) → normalised images of `dtype`, channels-last where the hardware likes it."""
    shape = (-1,) + (1,) * (images.ndim - 2)
    mean, std = split.mean.to(images.device, dtype), split.std.to(images.device, dtype)
    x = images.to(dtype) * (1 / (255 * std)).view(shape) - (mean / std).view(shape)
    return x.contiguous(memory_format=memory_format(images.ndim - 2))


def memory_format(dims: int) -> torch.memory_format:
    """Channels-last: the layout in which convolutions are fast on CPUs and GPUs."""
    return torch.channels_last if dims == 2 else torch.channels_last_3d


def augment(images: Tensor, flip_axes: tuple[int, ...], generator: torch.Generator, reach: float = 1 / 8) -> Tensor:
    """Mirror and shift each image at random; pixels from outside are black.  (B, C, *shape) uint8 → the same.

    Each axis of `flip_axes` is mirrored with probability one half, and each axis is shifted by a whole number
    of pixels, uniform up to `reach` times its length (4 pixels of 32).  Whole images are augmented before they
    are cut, so that the windows of an image stay consistent (ours).
    """
    size, shape = len(images), images.shape[2:]
    device = images.device
    index = torch.zeros((size,) + (1,) * len(shape), dtype=torch.int64, device=device)
    inside = torch.ones_like(index, dtype=torch.bool)
    for axis, length in enumerate(shape):
        most = int(length * reach)
        shift = torch.randint(-most, most + 1, (size, 1), generator=generator).to(device)
        place = torch.arange(length, device=device) + shift  # (B, length)
        valid = (place >= 0) & (place < length)
        place = place.clamp(0, length - 1)
        if axis in flip_axes:
            mirrored = torch.rand((size, 1), generator=generator).to(device) < 0.5
            place = torch.where(mirrored, length - 1 - place, place)
        view = (size,) + tuple(length if a == axis else 1 for a in range(len(shape)))
        index = index * length + place.view(view)
        inside = inside & valid.view(view)
    index = index.flatten(1)[:, None].expand(-1, images.shape[1], -1)  # (B, C, pixels)
    moved = images.flatten(2).gather(2, index).view(images.shape)
    return moved * inside[:, None]
