"""Image sets as tensors: uint8 images and int64 labels, with what is needed to normalise and augment them."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import checks, files


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


@dataclass(frozen=True)
class ImageSet:
    """A data set: `train` and `test` splits, its class names, and where it came from.

    `source` is what `load_dataset` needs to load it again, on another machine, say; None when it was made by
    hand with `image_set`.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    source: dict[str, Any] | None = None

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
        chosen = stratified(self.train.labels, train_size / len(self.train), seed)[0]
        train = replace(self.train, images=self.train.images[chosen], labels=self.train.labels[chosen])
        return replace(self, train=train, source=None)


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


def load_dataset(name: str, root: str | Path | None = None, **options: Any) -> ImageSet:
    """A data set by name.

    Args:
        name: a key of `DATASETS`.
        root: where the files are; by default the folder that the environment variable `DDLIB_DATA` names, else
            a per-user cache folder.
        options: what the data set takes, see `DATASETS`.

    Raises:
        ValueError: an unknown name or option (the nearest is named).
        FileNotFoundError: the files are not there and cannot be downloaded; says where it looked and what to do.
        files.DamagedFile: a file is not what it should be.
    """
    entry = DATASETS[checks.one_of("data set", name, DATASETS)]
    for option in options:
        checks.one_of(f"option of {name}", option, entry.options)
    data = entry.load(data_folder(root), **options)
    return replace(data, source={"name": name, **options})


def data_folder(root: str | Path | None = None) -> Path:
    """`root`, else `$DDLIB_DATA`, else the per-user cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ddlib"
    return Path(root or os.environ.get("DDLIB_DATA") or cache).expanduser()


def stratified(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of two parts, `fraction` and the rest, with each class in proportion; both sorted."""
    from sklearn.model_selection import train_test_split

    first, second = (
        train_test_split(range(len(labels)), train_size=fraction, stratify=labels.tolist(), random_state=seed)
        if fraction < 1
        else (range(len(labels)), [])
    )
    return torch.tensor(sorted(first)), torch.tensor(sorted(second), dtype=torch.int64)


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel in [0, 1], from its histogram: exact, and in little memory."""
    level = torch.arange(256, dtype=torch.float64) / 255
    weight = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in images.unbind(1)]).double()
    weight /= weight.sum(1, keepdim=True)
    mean = weight @ level
    std = (weight @ level.square() - mean.square()).clamp_min(0).sqrt()
    return mean.float(), std.clamp_min(1e-3).float()


# ── preparing a batch, on the device ──────────────────────────────────────────────────────────────────────────


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


# ── the sets ──────────────────────────────────────────────────────────────────────────────────────────────────


def _digits(root: Path) -> ImageSet:
    """scikit-learn's 1,797 handwritten digits, 8×8, scaled to 32×32; the 20 % test half is drawn with seed 0."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    small = torch.from_numpy(raw.images).float()[:, None] * (255 / 16)
    images = F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False).round().to(torch.uint8)
    labels = torch.from_numpy(raw.target).long()
    train, test = stratified(labels, 0.8, seed=0)
    classes = tuple(map(str, raw.target_names))
    return image_set("digits", (images[train], labels[train]), (images[test], labels[test]), classes)


def _cifar10(root: Path) -> ImageSet:
    from torchvision.datasets import CIFAR10

    halves = []
    for is_train in (True, False):
        half = _torchvision(CIFAR10, root, "cifar-10-batches-py", train=is_train)
        images = torch.from_numpy(half.data).permute(0, 3, 1, 2).contiguous()
        halves.append((images, torch.tensor(half.targets)))
    return image_set("cifar10", *halves, tuple(half.classes), flip_axes=(1,))


def _torchvision(kind: Callable[..., Any], root: Path, folder: str, train: bool) -> Any:
    """One half of a torchvision set; downloaded, with torchvision's own checksums, where it is missing."""
    place = root / folder
    if place.exists():
        members = kind.train_list if train else kind.test_list
        for member, expected in [*members, (kind.meta["filename"], kind.meta["md5"])]:
            path = place / member
            if not path.exists():
                raise FileNotFoundError(f"{path} is missing: {place} is incomplete; delete it to download it again.")
            found = files.checksum(path, "md5")
            if found != expected:
                raise files.DamagedFile(f"{path} is damaged: its MD5 should be {expected}, it is {found}.")
        return kind(root, train=train, download=False)
    try:
        root.mkdir(parents=True, exist_ok=True)
        return kind(root, train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{kind.__name__} is not at {place}, and downloading {kind.url} failed ({error}). Without a network, "
            f"unpack {kind.filename} (MD5 {kind.tgz_md5}) there, or let the environment variable DDLIB_DATA name "
            f"the folder that holds {folder}/."
        ) from error


@dataclass(frozen=True)
class Entry:
    """A row of the registry: how to load a data set, what it takes, where it comes from."""

    load: Callable[..., ImageSet]
    about: str
    source: str
    licence: str
    options: tuple[str, ...] = ()


DATASETS: dict[str, Entry] = {
    "digits": Entry(
        _digits,
        "handwritten digits, 1,437 + 360 of 32×32 grey",
        "inside scikit-learn (UCI ML, Alpaydin, Kaynak)",
        "CC BY 4.0",
    ),
    "cifar10": Entry(
        _cifar10,
        "50,000 + 10,000 of 32×32 RGB, 10 classes",
        "https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky 2009)",
        "none stated",
    ),
}
