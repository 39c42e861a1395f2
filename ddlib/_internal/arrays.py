"""Images and labels of one's own as tensors: from arrays, or read from a map-style `Dataset`; and what they must be."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import files
from .progress import progress_bar

LEVELS = {"P": "RGB", "PA": "RGBA", "1": "L"}  # modes of Pillow's whose numbers are no grey levels → one whose are


def pair(what: str, given: Any) -> tuple[Tensor, Tensor]:
    """(images, labels) as tensors; a map-style `Dataset` of (image, label) is read.

    Raises:
        ValueError: it is neither, is empty, its images differ in size or type, or labels are no integers.
    """
    if isinstance(given, (tuple, list)) and len(given) == 2:
        return _tensor(given[0]), integers(f"{what} labels", given[1])
    if not (hasattr(given, "__len__") and hasattr(given, "__getitem__")) or isinstance(given, (tuple, list)):
        kind = type(given).__name__
        raise ValueError(f"{what} must be (images, labels), or a map-style Dataset of (image, label), got {kind}.")
    if not len(given):
        raise ValueError(f"{what} is empty: a Dataset of length 0.")
    images, labels = None, torch.empty(len(given), dtype=torch.int64)
    with progress_bar(f"reading {what}", len(given)) as bar:
        for index in range(len(given)):
            one, labels[index] = _example(what, index, given[index])
            if images is None:
                images = files.room((len(given), *one.shape), Path(tempfile.gettempdir()))
            if one.shape != images.shape[1:]:
                sizes = f"{tuple(one.shape)}, image 0 {tuple(images.shape[1:])}"
                raise ValueError(f"image {index} of {what} has the shape {sizes}: resize them to one size.")
            images[index] = one
            bar.update()
    return images, labels


def _example(what: str, index: int, example: Any) -> tuple[Tensor, int]:
    """(image, label) of a `Dataset` → (C, *shape) uint8, and an int."""
    if not isinstance(example, (tuple, list)) or len(example) != 2:
        raise ValueError(f"{what} must give (image, label), image {index} is a {type(example).__name__}.")
    image, label = example
    image = image.convert(LEVELS[image.mode]) if getattr(image, "mode", None) in LEVELS else image
    x = _tensor(image)
    if not isinstance(image, Tensor) and x.ndim == 3 and x.shape[-1] <= 4:  # Pillow's and most arrays
        x = x.movedim(-1, 0)
    x = x[None] if x.ndim == 2 else x
    if x.is_floating_point() and x.numel() and x.min() >= 0 and x.max() <= 1:
        x = (255 * x).round().to(torch.uint8)
    if x.dtype != torch.uint8 or x.ndim not in (3, 4):
        span = f"{x.dtype} {tuple(x.shape)}"
        span += f", from {x.double().min():.3g} to {x.double().max():.3g}" if x.numel() else ""  # no uint16 has a min
        raise ValueError(f"image {index} of {what} must be uint8, or floats from 0 to 1 (no Normalize), got {span}.")
    try:
        number = int(label)
        whole = bool(number == label)  # no 0.2, and no "1"
    except (TypeError, ValueError, OverflowError, RuntimeError):  # a name, NaN, infinity, several numbers
        whole = False
    if not whole:
        raise ValueError(f"the label of image {index} of {what} must be an integer, got {label!r}.")
    return x, number


def _tensor(values: Any) -> Tensor:
    """A tensor as it is, an array of numpy's (or a list) as a tensor of its own."""
    if isinstance(values, Tensor):
        return values
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"images and labels must be arrays of numbers, got {array.dtype} {array.shape}.")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


def integers(what: str, values: Any) -> Tensor:
    """Labels as int64, the one kind of integer that PyTorch computes with everywhere."""
    labels = _tensor(values)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{what} must be integers (int64, say), got {labels.dtype} {tuple(labels.shape)}.")
    return labels.long()


def checked_labels(images: Tensor, labels: Any, mean: Tensor, std: Tensor) -> Tensor:
    """The labels of a `Split` as int64, where its parts fit together."""
    labels = integers("labels of a Split", labels)
    if images.dtype != torch.uint8 or images.ndim not in (4, 5) or labels.shape != images.shape[:1]:
        found = f"{images.dtype} {tuple(images.shape)} and labels {tuple(labels.shape)}"
        raise ValueError(f"a Split has uint8 images (n, C, *shape) and as many labels, got {found}.")
    if labels.numel() and labels.min() < 0:
        raise ValueError(f"labels of a Split must be numbers of classes, from 0, got {int(labels.min())}.")
    if not mean.shape == std.shape == images.shape[1:2]:
        found = f"{tuple(mean.shape)} and {tuple(std.shape)}"
        raise ValueError(f"mean and std of a Split must be of its {images.shape[1]} channels, got {found}.")
    return labels


def class_names(name: str, train: Any, test: Any, given: Any) -> Any:
    """Names of classes as given, else those of the `Dataset` of the training images; None where it has none.

    Raises:
        ValueError: that of the test images has others, or another order: a label would mean two things.
    """
    own = [getattr(half, "classes", None) for half in (train, test)]
    known = [[*map(str, names)] for names in own if isinstance(names, Iterable)]
    if len(known) == 2 and known[0] != known[1]:
        raise ValueError(f"{name}: train and test must have the same classes in the same order, got {known}.")
    return own[0] if given is None else given


def check_images(what: str, images: Tensor, count: int) -> None:
    if images.dtype != torch.uint8 or images.ndim not in (4, 5):
        raise ValueError(
            f"{what} images must be uint8 (n, C, H, W) or (n, C, H, W, D), got {images.dtype} {tuple(images.shape)}."
        )
    order = list(range(images.ndim))
    if len(images) != count and images.shape.count(count) == 1:  # images come last in some files
        order.insert(0, order.pop(images.shape.index(count)))
    if images.shape[order[1]] > 4 >= images.shape[order[-1]]:
        order.insert(1, order.pop())
    if order != sorted(order):
        raise ValueError(
            f"{what} images must have the axes (n, C, *shape), got {tuple(images.shape)}: channels seem not to come "
            f"second; give images.permute({', '.join(map(str, order))}), or numpy.transpose(images, {tuple(order)})."
        )
    if images.ndim == 4 and images.shape[1] > 4 and len(set(images.shape[1:])) == 1:
        raise ValueError(
            f"{what} images {tuple(images.shape)} seem to be volumes without an axis of channels; give images[:, None]."
        )


def check_labels(what: str, labels: Tensor, count: int, classes: tuple[str, ...]) -> None:
    if labels.shape != (count,) or not count:
        raise ValueError(
            f"{what} labels must be of shape ({count},) with at least one image, got {tuple(labels.shape)}."
        )
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(
            f"{what} labels must lie in 0 … {len(classes) - 1}, got {int(labels.min())} … {int(labels.max())}."
        )
    if missing := [name for name, n in zip(classes, labels.bincount(minlength=len(classes))) if not n]:
        raise ValueError(f"{what} has no image of class {missing[0]!r}: leave the class out, or add images of it.")
