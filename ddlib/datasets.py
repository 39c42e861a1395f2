"""Image sets by name, as tensors: uint8 images and int64 labels, with what is needed to normalise and augment them.

A set that is made of files is `<class>/<file>` below its folder; `readers` turns files into tensors, `downloads` gets
them.  The registry, `DATASETS`, is at the end.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from . import checks, downloads, files, readers
from .downloads import Remote

if TYPE_CHECKING:
    import pandas as pd

Window = tuple[tuple[int, int], ...]  # (start, stop) for each axis
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
FLOWERS_URL = "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz"


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

    `source` is what `load_dataset` needs to load it again, on another machine, say, as JSON can write it; None when
    it was made by hand with `image_set`.  `regions` are named windows in pixels, for `Decomposition.regions`, where
    the images have such.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    source: dict[str, Any] | None = None
    regions: Mapping[str, Window] | None = None

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
    """A data set by name; downloaded where it is missing and can be.

    Args:
        name: a key of `DATASETS`.
        root: where the files are; by default the folder that the environment variable `DDLIB_DATA` names, else
            a per-user cache folder.
        options: what the data set takes, see `DATASETS`; a path is absolute or below `root`.

    Raises:
        ValueError: an unknown name or option (the nearest is named), or a value that is not allowed.
        FileNotFoundError: the files are not there and cannot be downloaded; says where it looked and what to do.
        files.DamagedFile: a file is not what it should be, or cannot be decoded; it is named.
        ImportError: the set needs a package that is not installed; says which.
    """
    entry = DATASETS[checks.one_of("data set", name, DATASETS)]
    chosen = dict(entry.options)
    for option, value in options.items():
        checks.one_of(f"option of {name}", option, entry.options)
        chosen[option] = _checked(option, value, entry.options[option])
    data = entry.load(data_folder(root), **chosen)
    place = {} if root is None else {"root": str(data_folder(root).resolve())}
    return replace(data, source={"name": name, **place, **chosen})


def data_folder(root: str | Path | None = None) -> Path:
    """`root`, else `$DDLIB_DATA`, else the per-user cache folder."""
    return Path(root or os.environ.get("DDLIB_DATA") or readers.user_folder()).expanduser()


def present(name: str, root: str | Path | None = None) -> Path | None:
    """Where the files of a data set are below the data folder; None where they are not."""
    entry, folder = DATASETS[checks.one_of("data set", name, DATASETS)], data_folder(root)
    return next((folder / place for place in entry.places if (folder / place).exists()), None)


def fetch(name: str, root: str | Path | None = None, place: str | None = None) -> Path:
    """Where the files of a data set are; unpacked from an archive beside, or else downloaded, if they are not there.

    Args:
        place: one of the entry's `places`; by default the first that is there, or the first.

    Raises:
        ValueError: an unknown name, or a set without a place of its own.
        FileNotFoundError: it cannot be downloaded (no network, or its source asks for a form); says what to do.
        files.DamagedFile: the download or the archive is damaged or hostile.
    """
    entry, folder = DATASETS[checks.one_of("data set", name, DATASETS)], data_folder(root)
    if not entry.places:
        raise ValueError(f"{name} is not fetched: it is {entry.layout}.")
    places = {place: entry.places[place]} if place else entry.places
    for place in places:
        if (folder / place).exists():
            return folder / place
    for place, remote in places.items():
        for archive in [remote.name] if remote else [place + suffix for suffix in downloads.ARCHIVES]:
            if (folder / archive).exists():
                return downloads.extract(folder / archive, folder / place)
    place, remote = next(iter(places.items()))
    missing = f"{name} is not at {folder / place}"
    elsewhere = f"Or let the environment variable DDLIB_DATA name the folder that holds {place}."
    if remote is None:
        by_hand = f"get it at {entry.source} and put it there; its layout: {entry.layout}."
        raise FileNotFoundError(f"{missing}, and only a person can download it: {by_hand} {elsewhere}")
    try:
        file = downloads.download(remote, folder / remote.name)
    except OSError as error:
        raise FileNotFoundError(f"{missing}: {error} {elsewhere}") from error
    return file if remote.name == place else downloads.extract(file, folder / place)


def table(root: str | Path | None = None) -> "pd.DataFrame":
    """A row a registered set: what it is, source, licence, checksum, layout, where it is, the command to fetch it."""
    import pandas as pd

    rows = {
        name: {
            "about": entry.about,
            "source": entry.source,
            "licence": entry.licence,
            "checksum": next((remote.checksum for remote in entry.places.values() if remote), ""),
            "layout": entry.layout,
            "present": str(present(name, root) or "") if entry.places else entry.layout,
            "fetch": f"python -m ddlib datasets fetch {name}" if entry.places else "",
        }
        for name, entry in DATASETS.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")


def _checked(option: str, value: Any, usual: Any) -> Any:
    """The value of an option, as JSON can write it (a list as a tuple)."""
    match option:
        case "path" | "patient":
            return str(value)
        case "size":
            return checks.whole(option, value, 1)
        case "split_seed":
            return checks.whole(option, value, 0, 2**31 - 1)
        case "test_fraction":
            return checks.real(option, value, 0, 1, open_low=True)
        case "grey":
            return checks.flag(option, value)
    if not isinstance(value, (list, tuple)) or (option != "flip_axes" and len(value) != len(usual)):
        raise ValueError(f"{option} must be a list of numbers, like {list(usual)}, got {value!r}.")
    if option == "window":
        low, high = (checks.real(option, v, -1e6) for v in value)
        if low >= high:
            raise ValueError(f"window must be (low, high) with low < high, got {value!r}.")
        return low, high
    return tuple(checks.whole(option, v, int(option == "shape")) for v in value)


def stratified(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of two parts, `fraction` and the rest, with each class in proportion; both sorted."""
    from sklearn.model_selection import train_test_split

    first, second = (
        train_test_split(range(len(labels)), train_size=fraction, stratify=labels.tolist(), random_state=seed)
        if fraction < 1
        else (range(len(labels)), [])
    )
    return torch.tensor(sorted(first)), torch.tensor(sorted(second), dtype=torch.int64)


def split_by_group(
    labels: Tensor, groups: Sequence[str], fraction: float, seed: int, classes: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Indices of the training and the test images, both sorted; about `fraction` of each class is for the test.

    A group (the images of a patient, say) lies on one side whole.  Groups come in random order, and each goes to the
    test side if that brings the shares of its classes there nearer to `fraction` (ours); with groups of one image
    this is the usual stratified split.

    Raises:
        ValueError: a class would be missing on one side.
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    shares = np.zeros((len(names), len(classes)))
    np.add.at(shares, (member, labels.numpy()), 1)
    shares /= shares.sum(0)  # of each class, in each group
    lacking, chosen = np.full(len(classes), fraction), np.zeros(len(names), dtype=bool)
    for group in np.random.default_rng(seed).permutation(len(names)):
        if np.square(lacking - shares[group]).sum() < np.square(lacking).sum():
            lacking -= shares[group]
            chosen[group] = True
    for side, there in {"test": chosen, "training": ~chosen}.items():
        for label in np.flatnonzero(shares[there].sum(0) == 0):
            raise ValueError(
                f"class {classes[label]!r} has {int((labels == label).sum())} images of {(shares[:, label] > 0).sum()} "
                f"patients: too few for the {side} side to have one, with a test share of {fraction}."
            )
    test = chosen[member]
    return torch.from_numpy(np.flatnonzero(~test)), torch.from_numpy(np.flatnonzero(test))


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel in [0, 1], from its histogram: exact, and in little memory."""
    level = torch.arange(256, dtype=torch.float64) / 255
    weight = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in images.unbind(1)]).double()
    weight /= weight.sum(1, keepdim=True)
    mean = weight @ level
    std = (weight @ level.square() - mean.square()).clamp_min(0).sqrt()
    return mean.float(), std.clamp_min(1e-3).float()


# ── the sets ──────────────────────────────────────────────────────────────────────────────────────────────────


def _digits(root: Path) -> ImageSet:
    """scikit-learn's 1,797 handwritten digits, 8×8, scaled to 32×32; the 20 % test half is drawn with seed 0."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    small = torch.from_numpy(raw.images).float()[:, None] * (255 / 16)
    images = F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False).round().to(torch.uint8)
    labels = torch.from_numpy(raw.target).long()
    halves = [(images[half], labels[half]) for half in stratified(labels, 0.8, seed=0)]
    return image_set("digits", *halves, tuple(map(str, raw.target_names)))


def _cifar10(root: Path) -> ImageSet:
    from torchvision.datasets import CIFAR10

    place, halves = fetch("cifar10", root), []
    for name, expected in [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]:
        path = place / name
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: {place} is incomplete; delete it to download it again.")
        if (found := files.checksum(path, "md5")) != expected:
            raise files.DamagedFile(f"{path} is damaged: its MD5 should be {expected}, it is {found}.")
    for is_train in (True, False):
        half = CIFAR10(place.parent, train=is_train, download=False)
        images = torch.from_numpy(half.data).permute(0, 3, 1, 2).contiguous()
        halves.append((images, torch.tensor(half.targets)))
    return image_set("cifar10", *halves, tuple(half.classes), flip_axes=(1,))


def _folders(
    name: str,
    root: Path,
    *,
    split_seed: int,
    size: int = 0,
    shape: tuple[int, ...] = (),
    grey: bool = False,
    window: tuple[float, float] = readers.CT_WINDOW,
    path: str | None = "",
    classes: str = "*",
    leave_out: str | None = None,
    test_fraction: float = 0.2,
    patient: str = readers.PATIENT,
    flip_axes: tuple[int, ...] = (),
    regions: Mapping[str, Window] | None = None,
) -> ImageSet:
    """Photos (a shape of two axes) or NIfTI volumes (three) in `<class>/`, split by patient where names carry one."""
    if path is None:
        raise ValueError(f"{name} needs path=…, the folder that holds a sub-folder for each class.")
    folder = root / Path(path).expanduser() if path else fetch(name, root)
    shape = shape or (size, size)
    photos = len(shape) == 2
    listing = readers.list_classes(folder, readers.PHOTOS if photos else readers.VOLUMES, classes, leave_out)
    groups = readers.patients(listing.paths, patient)
    split = split_by_group(listing.labels, groups, test_fraction, split_seed, listing.classes)
    how = {"shape": shape} | ({"grey": grey} if photos else {"window": window})
    read = partial(readers.photo if photos else readers.volume, **how)
    key = {"name": name, "folder": str(folder).removeprefix(str(root)), **how}
    images = readers.cached(root, key, listing.paths, lambda: {"": readers.read_all(listing.paths, read, name)})[""]
    halves = [(images[half], listing.labels[half]) for half in split]
    if regions:
        scale = [new / usual for new, usual in zip(shape, DATASETS[name].options["shape"], strict=True)]
        scaled = lambda w: tuple((round(a * s), round(b * s)) for (a, b), s in zip(w, scale, strict=True))  # noqa: E731
        regions = {region: scaled(window) for region, window in regions.items()}
    return image_set(name, *halves, listing.classes, flip_axes, regions=regions)


def _medmnist3d(name: str, root: Path, size: int, flip_axes: tuple[int, ...] = ()) -> ImageSet:
    place = {28: f"{name}.npz", 64: f"{name}_64.npz"}.get(size)
    if place is None:
        raise ValueError(f"size of {name} must be 28 or 64, got {size!r}.")
    path, remote = fetch(name, root, place), DATASETS[name].places[place]

    def make() -> dict[str, Any]:
        if wrong := remote.differs(path):
            raise files.DamagedFile(f"{path} is damaged: {wrong}.")
        return readers.medmnist3d(path, name, size)

    content = readers.cached(root, {"name": name, "size": size}, [path], make)
    return image_set(name, content["train"], content["test"], tuple(content["classes"]), flip_axes)


# ── the registry ──────────────────────────────────────────────────────────────────────────────────────────────

# Windows on a 96×84 face, left and right as one sees them; placed on the mean of the frontal faces (ours).
FACE_REGIONS: dict[str, Window] = {
    "forehead": ((0, 16), (12, 72)),
    "left eye": ((8, 32), (0, 30)),
    "right eye": ((8, 32), (54, 84)),
    "nose": ((24, 60), (26, 58)),
    "left cheek": ((32, 64), (2, 28)),
    "right cheek": ((32, 64), (56, 82)),
    "mouth": ((64, 88), (16, 68)),
    "chin": ((80, 96), (16, 68)),
}
OWN = {"test_fraction": 0.2, "split_seed": 0, "patient": readers.PATIENT}


@dataclass(frozen=True)
class Entry:
    """A row of the registry.

    Attributes:
        load: from the data folder and the options to the image set.
        about, source, licence, layout: for people; the layout is what the files look like.
        options: what it takes, with the usual values.
        places: where it lies below the data folder → what to download for that; None where only a person can.
    """

    load: Callable[..., ImageSet]
    about: str
    source: str
    licence: str
    layout: str
    options: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, Remote | None] = field(default_factory=dict)


def _medmnist(name: str, about: str, md5_64: str, md5_28: str, flip_axes: tuple[int, ...] = ()) -> Entry:
    url, large, small = "https://zenodo.org/records/10519652/files/", f"{name}_64.npz", f"{name}.npz"
    return Entry(
        partial(_medmnist3d, name, flip_axes=flip_axes),
        f"{about} (MedMNIST's training and test volumes; its validation volumes are left out)",
        "https://medmnist.com (Yang et al. 2023)",
        "CC BY 4.0",
        f"{large}, or {small} for size=28",
        {"size": 64},
        {
            large: Remote(f"{url}{large}?download=1", f"md5:{md5_64}"),
            small: Remote(f"{url}{small}?download=1", f"md5:{md5_28}"),
        },
    )


DATASETS: dict[str, Entry] = {
    "digits": Entry(
        _digits,
        "handwritten digits, 1,437 + 360 of 32×32 grey",
        "scikit-learn (UCI ML, Alpaydin, Kaynak)",
        "CC BY 4.0",
        "inside scikit-learn",
    ),
    "cifar10": Entry(
        _cifar10,
        "50,000 + 10,000 of 32×32 RGB, 10 classes",
        "https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky 2009)",
        "none stated",
        "cifar-10-batches-py/, or the archive cifar-10-python.tar.gz",
        places={"cifar-10-batches-py": Remote(CIFAR10_URL, "md5:c58f30108f718f92721af3b95e74349a")},
    ),
    "tf_flowers": Entry(
        partial(_folders, "tf_flowers", flip_axes=(1,)),
        "3,670 photos of 5 kinds of flowers, cut to squares, 80 % for training",
        "https://www.tensorflow.org/datasets/catalog/tf_flowers (The TensorFlow Team 2019)",
        "CC BY, by photographer in the archive's LICENSE.txt",
        "flower_photos/<class>/*.jpg, or the archive flower_photos.tgz",
        {"size": 128, "split_seed": 0},
        {"flower_photos": Remote(FLOWERS_URL, "md5:6f87fb78e9cc9ab41eff2015b380011d")},
    ),
    "faces": Entry(
        # Not mirrored: the window of the left eye would see the right one.
        partial(_folders, "faces", grey=True, classes="yaleB*", leave_out="_Ambient", regions=FACE_REGIONS),
        "Extended Yale B, cropped: 2,414 grey faces of 38 people in 64 lightings, 80 % for training",
        "http://vision.ucsd.edu/~leekc/ExtYaleDatabase/ExtYaleB.html (Georghiades et al. 2001, Lee et al. 2005)",
        "free for research, with acknowledgement",
        "CroppedYale/yaleB*/*.pgm, or the archive CroppedYale.zip",
        {"shape": (96, 84), "split_seed": 0},
        {"CroppedYale": None},
    ),
    "mosmed": Entry(
        partial(_folders, "mosmed", classes="CT-*", flip_axes=(0,)),
        "chest CT graded by lung damage: 1,110 studies, or the 200 of the Keras example; 80 % for training",
        "https://mosmed.ai/en/datasets/covid191110/ (Morozov et al. 2020)",
        "CC BY-NC-ND 3.0",
        "mosmed/, MosMedData/ or COVID19_1110/studies/ with CT-0/*.nii.gz, CT-1/ …, or CT-0/ and CT-23/",
        {"shape": (128, 128, 64), "split_seed": 0},
        {"mosmed": None, "MosMedData": None, "COVID19_1110/studies": None},
    ),
    "lidc_nodules": Entry(
        # A nodule cut out of its surroundings has no left and right, front and back, up and down.
        partial(_folders, "lidc_nodules", flip_axes=(0, 1, 2)),
        "994 lung nodules of 551 patients, cut from CT, benign or malignant, split by patient: a stand-in for the "
        "papers' chest CT",
        "https://www.cancerimagingarchive.net/collection/lidc-idri/ (Armato et al. 2011)",
        "CC BY 3.0",
        "lidc_nodules/{benign,malignant}/<patient>_R_<n>.nii.gz",
        {"shape": (32, 32, 16), "split_seed": 0},
        {"lidc_nodules": None},
    ),
    "adrenalmnist3d": _medmnist(
        "adrenalmnist3d",
        "shapes of adrenal glands, 1,188 + 298 volumes, 2 classes",
        "17721accfe9fb005146a47d33bc54b2f",
        "bbd3c5a5576322bc4cdfea780653b1ce",
    ),
    "nodulemnist3d": _medmnist(
        "nodulemnist3d",
        "lung nodules in CT, 1,158 + 310 volumes, 2 classes",
        "c47c5b7d457bf6332200d2ea6d64ecd8",
        "8755a7e9e05a4d9ce80a24c3e7a256f3",
        flip_axes=(0, 1, 2),
    ),
    "organmnist3d": _medmnist(
        "organmnist3d",  # not mirrored: left and right kidneys are classes
        "organs in CT, 971 + 610 volumes, 11 classes",
        "58a2205adf14a9d0a189cb06dc78bf10",
        "a0c5a1ff56af4f155c46d46fbb45a2fe",
    ),
    "image_folder": Entry(
        partial(_folders, "image_folder"),
        "photos of your own, cut to squares",
        "yours",
        "yours",
        "any folder with <class>/*, given as path=…",
        {"path": None, "size": 128, "grey": False, "flip_axes": (1,), **OWN},
    ),
    "volume_folder": Entry(
        partial(_folders, "volume_folder"),
        "NIfTI volumes of your own, clipped to a window and resampled",
        "yours",
        "yours",
        "any folder with <class>/*.nii.gz, given as path=…",
        {"path": None, "shape": (64, 64, 64), "window": readers.CT_WINDOW, "flip_axes": (), **OWN},
    ),
}
