"""An image set: uint8 images and int64 labels as tensors, a training and a test split."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from . import checks, readers

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

    `source` is what `load_dataset` needs to load it again, on another machine, say, as JSON can write it; None when it
    was made by hand with `image_set`.  `regions` are named windows for `Decomposition.regions`, where there are such.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    source: dict[str, Any] | None = None
    regions: Mapping[str, Window] | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all images and labels: has what lies behind a name or a path changed?"""
        sha = hashlib.sha256()
        for split in (self.train, self.test):
            for values in (split.images, split.labels):
                sha.update(values.cpu().contiguous().numpy())
        return sha.hexdigest()

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
        chosen = readers.stratified(self.train.labels, int(train_size), seed)[0]
        return replace(self, train=self.train.some(chosen), source=None)


def image_set(
    name: str,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    classes: tuple[str, ...],
    flip_axes: tuple[int, ...] = (),
    source: dict[str, Any] | None = None,
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


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel in [0, 1], from its histogram: exact, and in little memory."""
    level = torch.arange(256, dtype=torch.float64) / 255
    weight = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in images.unbind(1)]).double()
    weight /= weight.sum(1, keepdim=True)
    mean = weight @ level
    std = (weight @ level.square() - mean.square()).clamp_min(0).sqrt()
    return mean.float(), std.clamp_min(1e-3).float()
