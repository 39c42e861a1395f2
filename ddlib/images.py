"""Image sets as uint8 tensors, and from their images to a batch: mirror, shift, normalise."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._internal import checks, files
from ._internal.arrays import check_images, check_labels, checked_labels, class_names, pair
from ._internal.devices import memory_free
from .decomposition import Bounds


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels of one half of a data set.

    Attributes:
        images: (n, C, *image_shape) uint8.
        labels: (n,) in [0, num_classes), of any kind of integers; they become int64.
        mean, std: (C,) of the *training* images, in [0, 1]; `prepare` uses them.
        flip_axes: spatial axes along which a mirrored image is as good an example (augmentation).
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    flip_axes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", checked_labels(self.images, self.labels, self.mean, self.std))

    def __len__(self) -> int:
        return len(self.labels)

    def told_apart_by(self) -> list[Tensor]:
        """All that a training sees of it: images, labels, statistics, axes of mirroring."""
        return [self.images, self.labels, self.mean, self.std, torch.tensor(self.flip_axes, dtype=torch.int64)]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """(uint8 image (C, *shape), label): a split is a map-style `Dataset` for PyTorch's `DataLoader`."""
        return self.images[index], int(self.labels[index])

    def some(self, chosen: Tensor) -> "Split":
        """The images `chosen`: indices (m,), or a mask (n,)."""
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A data set: `train` and `test` splits, its class names, and where it came from.

    `source()` loads it again, on another machine, say; None when it was made by hand with `image_set`.  `regions` are
    named windows for `Decomposition.regions`, where there are such.  `loaded` is the identity of what `source` gave.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    source: Callable[[], "ImageSet"] | None = None
    regions: Mapping[str, Bounds] | None = None
    loaded: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of all images and labels as they are now; computed anew each time, since tensors can change."""
        return files.digest(*(part for half in (self.train, self.test) for part in (half.images, half.labels)))

    @property
    def contents(self) -> str:
        """SHA-256 of the values that a training or a table sees: images, labels, statistics, axes; and the classes."""
        return files.digest(*self.train.told_apart_by(), *self.test.told_apart_by()) + " ".join(self.classes)

    @property
    def identity(self) -> str:
        """All that a training or a table sees: the contents, and the shapes, which no digest tells apart."""
        return f"{self.contents} {files.shapes(self.train.images, self.test.images)}"

    @property
    def by_name(self) -> bool:
        """Whether `source` gives this set: nothing was replaced, nor changed in place."""
        return self.source is not None and self.identity == self.loaded

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
        """The same test images with `train_size` training images drawn at random, each class in proportion.

        Raises:
            ValueError: fewer than classes, more than there are, or so few that a class would have none.
        """
        size = checks.integer("train_size", train_size, self.num_classes, len(self.train))
        drawn = self.train.some(stratified(self.train.labels, size, checks.integer("seed", seed, 0))[0])
        if lost := {*self.train.labels.tolist()} - {*drawn.labels.tolist()}:
            raise ValueError(f"train_size {size} leaves no image of class {self.classes[min(lost)]!r}: take more.")
        return replace(self, train=drawn, source=None)

    def hold_out(self, fraction: float, seed: int = 0) -> "ImageSet":
        """A validation set: the same training images without a `fraction` of them, which take the place of the test.

        Each class is held out in proportion; mean and std stay those of all training images.

        Raises:
            ValueError: a class would have no images in one of the halves.
        """
        count = round(len(self.train) * checks.real("fraction", fraction, 0, 0.99, open_low=True))
        counts = self.train.labels.bincount(minlength=self.num_classes)
        told = f"a share of {fraction} of {len(self.train)} images leaves a class without images in one of the halves."
        if not count * counts.min() / len(self.train) >= 1 or counts.min() < 2 or len(self.train) - count < len(counts):
            raise ValueError(told)
        parts = stratified(self.train.labels, len(self.train) - count, checks.integer("seed", seed, 0))
        kept, held_out = map(self.train.some, parts)
        if any(not half.labels.bincount(minlength=len(counts)).all() for half in (kept, held_out)):
            raise ValueError(told)
        return replace(self, train=kept, test=held_out, source=None)


def split_of(data: Any, what: str) -> Split:
    """The training split of an image set, or a split as it is, for the function `what`."""
    if isinstance(data, ImageSet | Split):
        return data.train if isinstance(data, ImageSet) else data
    raise ValueError(f"{what} takes an ImageSet or a Split, which ddlib.image_set makes, got {type(data).__name__}.")


def normalised_as(model: Any, split: Split) -> None:
    """Remember on a model and its parts how the images were normalised that it was trained on."""
    for module in model.modules():
        module.__dict__["_normalisation"] = split.mean.cpu(), split.std.cpu()


def split_to_predict(model: Any, images: Any) -> Split:
    """A split as it is, the test images of a set, or images alone, normalised as those that `model` was trained on.

    Raises:
        ValueError: images alone for a model that `fit` has not trained, or of other channels; or something else.
    """
    if not isinstance(images, Tensor):
        return images.test if isinstance(images, ImageSet) else split_of(images, "predict")
    known = [m.__dict__["_normalisation"] for m in model.modules() if "_normalisation" in m.__dict__]
    if not known:
        raise ValueError("images alone can be predicted by a model that `fit` has trained: give a Split, say.")
    channels, found = len(known[0][0]), f"{images.dtype} {tuple(images.shape)}"
    if images.dtype != torch.uint8 or images.ndim not in (4, 5) or images.shape[1] != channels:
        raise ValueError(f"images must be uint8 (n, {channels}, *shape), as in training, got {found}.")
    return Split(images, torch.zeros(len(images), dtype=torch.int64, device=images.device), *known[0])


def image_set(
    name: str,
    train: Any,
    test: Any,
    classes: Sequence[str] | None = None,
    flip_axes: Sequence[int] = (),
    source: Callable[[], "ImageSet"] | None = None,
) -> ImageSet:
    """An `ImageSet` of one's own, checked.

    Args:
        train, test: (images, labels): images (n, C, *shape) uint8 with two or three spatial axes, labels (n,) of
            integers, as tensors or numpy's arrays; or a map-style `Dataset` of (image, label), torchvision's, say: its
            images, of one size, Pillow's, uint8, or floats in [0, 1], are read once.
        classes: their names; None for those of the `Dataset`, else "0", "1", ….
        flip_axes: spatial axes that augmentation may mirror, e.g. (1,) for left-right.

    Raises:
        ValueError: a tensor of the wrong shape, layout, type or range, a class without images, halves of other classes.
    """
    named = class_names(name, train, test, classes)
    halves = {half: pair(f"{name} {half}", given) for half, given in (("train", train), ("test", test))}
    train, test = halves.values()
    if named is None:
        named = range(max((int(labels.max()) for _, labels in halves.values() if labels.numel()), default=0) + 1)
    classes = tuple(str(name) for name in named)
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise ValueError(f"{name} must have two classes or more, each name once, got {classes}.")
    for half, (images, labels) in halves.items():
        check_images(f"{name} {half}", images, len(labels) if labels.ndim else 0)
        check_labels(f"{name} {half}", labels, len(images), classes)
    if train[0].shape[1:] != test[0].shape[1:]:
        shapes = f"{tuple(train[0].shape[1:])} and {tuple(test[0].shape[1:])}"
        raise ValueError(f"{name}: training and test images must have the same shape, got {shapes}.")
    axes = range(train[0].ndim - 2)
    flip_axes = np.asarray(flip_axes).tolist()
    if not isinstance(flip_axes, list) or any(axis not in axes for axis in flip_axes):
        raise ValueError(f"flip_axes must be a list of spatial axes from 0 to {axes[-1]}, got {flip_axes!r}.")
    mean, std = _statistics(train[0])
    splits = [Split(images, labels, mean, std, tuple(flip_axes)) for images, labels in (train, test)]
    data = ImageSet(name, *splits, classes, source)
    return replace(data, loaded=data.identity) if source else data


def stratified(labels: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of `size` images and of the rest, each class in proportion; both sorted."""
    from sklearn.model_selection import train_test_split

    counts = labels.bincount()
    if size < len(labels) and (counts == 1).any():
        alone = (counts == 1).nonzero()[0].item()
        raise ValueError(f"class {alone} has a single image: images cannot be drawn from each class in proportion.")
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
    weight = torch.zeros(images.shape[1], 256, dtype=torch.float64)  # whole numbers: blocks add up exactly
    for block in images.split(64):
        weight += torch.stack([torch.bincount(c.flatten(), minlength=256) for c in block.unbind(1)])
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
    shifts, mirrored = draw_moves(1, len(images), images.shape[2:], flip_axes, generator, reach)
    return move(images, shifts[0].to(images.device), mirrored[0].to(images.device))


def draw_moves(
    steps: int,
    size: int,
    shape: tuple[int, ...],
    flip_axes: tuple[int, ...],
    generator: torch.Generator,
    reach: float = 1 / 8,
) -> tuple[Tensor, Tensor]:
    """What `augment` would draw in so many steps with batches of `size`: at once, so that no step waits for it.

    Returns:
        shifts (steps, axes, size) int64 in pixels, and mirrored (steps, axes, size) bool; on the CPU.
    """
    shifts = torch.zeros(steps, len(shape), size, dtype=torch.int64, device="cpu")
    mirrored = torch.zeros_like(shifts, dtype=torch.bool)
    kinds = [(axis, what) for axis in range(len(shape)) for what in ("shift", "mirror")[: 1 + (axis in flip_axes)]]
    numbers = _words(steps * len(kinds) * size, generator).view(steps, len(kinds), size)
    for (axis, what), drawn in zip(kinds, numbers.unbind(1), strict=True):
        if what == "shift":
            most = int(shape[axis] * reach)
            shifts[:, axis] = drawn % (2 * most + 1) - most
        else:
            mirrored[:, axis] = drawn % 2**24 < 2**23
    return shifts, mirrored


def _words(count: int, generator: torch.Generator) -> Tensor:
    """So many random words of 32 bits, int64: what `torch.randint` and `torch.rand` take one of for each number."""
    pairs = torch.empty(-(-count // 2), dtype=torch.int64, device="cpu").random_(-(2**63), None, generator=generator)
    return torch.stack([pairs >> 32, pairs], 1).flatten()[:count] & 0xFFFFFFFF


def move(images: Tensor, shifts: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror and shift each image as `draw_moves` says, (axes, B) each: (B, C, *shape) uint8 → the same."""
    size, shape, device = len(images), images.shape[2:], images.device
    index = torch.zeros((size,) + (1,) * len(shape), dtype=torch.int64, device=device)
    inside = torch.ones_like(index, dtype=torch.bool)
    for axis, length in enumerate(shape):
        place = torch.arange(length, device=device) + shifts[axis, :, None]  # (B, length)
        valid = (place >= 0) & (place < length)
        place = place.clamp(0, length - 1)
        place = torch.where(mirrored[axis, :, None], length - 1 - place, place)
        view = (size,) + tuple(length if a == axis else 1 for a in range(len(shape)))
        index = index * length + place.view(view)
        inside = inside & valid.view(view)
    index = index.flatten(1)[:, None].expand(-1, images.shape[1], -1)  # (B, C, pixels)
    moved = images.flatten(2).gather(2, index).view(images.shape)
    return moved * inside[:, None]


class Batches:
    """The training images on their way to the model: a batch, augmented, normalised.

    They lie on the device; where they do not fit, in the CPU's memory, and each batch is sent.  `place` is where its
    indices must lie; `obstacle`, why a CUDA graph cannot hold it.
    """

    def __init__(self, split: Split, augment: Any, device: torch.device, dtype: torch.dtype):
        fits = device.type != "cuda" or split.images.nbytes <= files.SHARE * memory_free(device)
        self.images = split.images.to(device) if fits else split.images.cpu()
        self.split = replace(split, mean=split.mean.to(device), std=split.std.to(device))
        self.augment, self.device, self.dtype, self.place = augment, device, dtype, self.images.device
        self.obstacle = "" if fits else "the images do not fit on the device"
        self.obstacle = "its augmentation is one's own" if callable(augment) else self.obstacle

    def draw(self, steps: int, size: int, generator: torch.Generator) -> list[Tensor]:
        """The moves of an epoch, (steps, axes, B) each, where the images are shifted and mirrored."""
        self.generator = generator
        if self.augment is not True:
            return []
        return [*draw_moves(steps, size, self.images.shape[2:], self.split.flip_axes, generator)]

    def __call__(self, indices: Tensor, *moves: Tensor) -> Tensor:
        """Indices (B,), and the moves of this step → normalised images (B, C, *shape)."""
        x = self.images.index_select(0, indices)
        x = x if self.place.type == self.device.type else x.pin_memory().to(self.device, non_blocking=True)
        if moves:
            x = move(x, *(drawn.to(self.device) for drawn in moves))
        elif self.augment:
            x = self._of_ones_own(x)
        return prepare(x, self.split, self.dtype)

    def _of_ones_own(self, x: Tensor) -> Tensor:
        found = self.augment(x, self.generator)
        if not isinstance(found, Tensor) or (found.dtype, found.shape) != (x.dtype, x.shape):
            kind = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"augment must return uint8 images {tuple(x.shape)}, as it gets them; got {kind}.")
        return found
