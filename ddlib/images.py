"""Image sets as uint8 tensors, and from their images to a batch: mirror, shift, normalise."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from . import checks, files

Window = tuple[tuple[int, int], ...]  # (start, stop) for each axis


@dataclass(frozen=True)
class Split:
    """Images and labels of one half of a data set.

    Attributes:
        images: (n, C, *image_shape) uint8.
        labels: (n,) int64 in [0, num_classes).
        mean, std: (C,) of the *training* images, in [0, 1]; `prepare` uses them.
        flip_axes: spatial axes along which a mirrored image is as good an example (augmentation).
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    flip_axes: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def some(self, chosen: Tensor) -> "Split":
        """The images `chosen`: indices (m,), or a mask (n,)."""
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])


@dataclass(frozen=True)
class ImageSet:
    """A data set: `train` and `test` splits, its class names, and where it came from.

    `source()` loads it again, on another machine, say; None when it was made by hand with `image_set`.  `regions` are
    named windows for `Decomposition.regions`, where there are such.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    source: Callable[[], "ImageSet"] | None = None
    regions: Mapping[str, Window] | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all images and labels: has what lies behind a name or a path changed?"""
        train, test = self.train, self.test
        return files.digest(train.images, train.labels, test.images, test.labels)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def image_shape(self) -> tuple[int, ...]:
        return tuple(self.train.images.shape[2:])

    def few(self, train_size: int, seed: int = 0) -> "ImageSet":
        """The same test images with `train_size` training images drawn at random, each class in proportion."""
        checks.whole("train_size", train_size, self.num_classes, len(self.train))
        chosen = stratified(self.train.labels, int(train_size), seed)[0]
        return replace(self, train=self.train.some(chosen), source=None)


def image_set(
    name: str,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    classes: tuple[str, ...],
    flip_axes: tuple[int, ...] = (),
    source: Callable[[], "ImageSet"] | None = None,
) -> ImageSet:
    """An `ImageSet` from (images, labels) of one's own, checked.

    Args:
        train, test: images (n, C, *shape) uint8 with two or three spatial axes, labels (n,) int64.
        flip_axes: spatial axes that augmentation may mirror, e.g. (1,) for left-right.

    Raises:
        ValueError: a tensor of the wrong shape, type or range; the message says which and what is allowed.
    """
    for half, (images, labels) in {"train": train, "test": test}.items():
        if images.dtype != torch.uint8 or images.ndim not in (4, 5):
            raise ValueError(
                f"{name} {half} images must be uint8 (n, C, H, W) or (n, C, H, W, D), "
                f"got {images.dtype} {tuple(images.shape)}."
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1] or not len(labels):
            raise ValueError(
                f"{name} {half} labels must be int64 of shape ({len(images)},) with at least one image, "
                f"got {labels.dtype} {tuple(labels.shape)}."
            )
        if labels.min() < 0 or labels.max() >= len(classes):
            raise ValueError(
                f"{name} {half} labels must lie in 0 … {len(classes) - 1}, "
                f"got {int(labels.min())} … {int(labels.max())}."
            )
    if train[0].shape[1:] != test[0].shape[1:]:
        shapes = f"{tuple(train[0].shape[1:])} and {tuple(test[0].shape[1:])}"
        raise ValueError(f"{name}: training and test images must have the same shape, got {shapes}.")
    if any(axis not in range(train[0].ndim - 2) for axis in flip_axes):
        raise ValueError(f"flip_axes must be spatial axes from 0 to {train[0].ndim - 3}, got {flip_axes}.")
    mean, std = _statistics(train[0])
    halves = [Split(images, labels, mean, std, tuple(flip_axes)) for images, labels in (train, test)]
    return ImageSet(name, *halves, tuple(classes), source)


def stratified(labels: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of `size` images and of the rest, each class in proportion; both sorted."""
    from sklearn.model_selection import train_test_split

    if len(labels) - size < len(labels.unique()):  # too few are left for one of each class: any will do
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        parts = (order[:size].tolist(), order[size:].tolist())
    else:
        parts = train_test_split(range(len(labels)), train_size=size, stratify=labels.tolist(), random_state=seed)
    first, rest = (torch.tensor(sorted(part), dtype=torch.int64) for part in parts)
    return first, rest


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel in [0, 1], from its histogram: exact, and in little memory."""
    level = torch.arange(256, dtype=torch.float64) / 255
    weight = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in images.unbind(1)]).double()
    weight /= weight.sum(1, keepdim=True)
    mean = weight @ level
    std = (weight @ level.square() - mean.square()).clamp_min(0).sqrt()
    return mean.float(), std.clamp_min(1e-3).float()


# ── a batch ──


def prepare(images: Tensor, split: Split, dtype: torch.dtype = torch.float32) -> Tensor:
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
        shift = torch.randint(-most, most + 1, (size, 1), generator=generator, device="cpu").to(device)
        place = torch.arange(length, device=device) + shift  # (B, length)
        valid = (place >= 0) & (place < length)
        place = place.clamp(0, length - 1)
        if axis in flip_axes:
            mirrored = torch.rand((size, 1), generator=generator, device="cpu").to(device) < 0.5
            place = torch.where(mirrored, length - 1 - place, place)
        view = (size,) + tuple(length if a == axis else 1 for a in range(len(shape)))
        index = index * length + place.view(view)
        inside = inside & valid.view(view)
    index = index.flatten(1)[:, None].expand(-1, images.shape[1], -1)  # (B, C, pixels)
    moved = images.flatten(2).gather(2, index).view(images.shape)
    return moved * inside[:, None]
