"""Files → uint8 tensors: photos, NIfTI volumes, MedMNIST; kept in one checked cache file; split by patient.

Files are in the order of their names, so that a split by a seed is the same on every machine.
"""

import gzip
import io
import json
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import files
from ..images import stratified
from ..training import progress_bar

PHOTOS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
VOLUMES = (".nii.gz", ".nii")
READING = 1  # raised when the same files would be read differently: caches of another number are made anew
CT_WINDOW = (-1000.0, 400.0)  # Hounsfield units, from air to bone, as in the Keras CT example

Halves = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[str, ...]]  # train, test, names of the classes


class Listing(NamedTuple):
    """Files in class folders: n paths, their labels (n,) int64, the names of the classes."""

    paths: list[Path]
    labels: Tensor
    classes: tuple[str, ...]


def folders(
    place: Path,
    root: Path,
    *,
    split_seed: int,
    size: int = 0,
    shape: tuple[int, ...] = (),
    grey: bool = False,
    window: tuple[float, float] = CT_WINDOW,
    classes: str = "*",
    leave_out: str = "",
    test_fraction: float = 0.2,
) -> Halves:
    """Photos (a shape of two axes, or a square `size`) or NIfTI volumes (of three), `<place>/<class>/<file>`.

    They are split by patient where the names of the files carry one, see `patients` and `split`; the cache keeps them
    unsplit.
    """
    shape = shape or (size, size)
    kind, read = ("photo", photo) if len(shape) == 2 else ("volume", volume)
    how = {"shape": shape} | ({"grey": grey} if kind == "photo" else {"window": window})
    listing = list_classes(place, PHOTOS if kind == "photo" else VOLUMES, classes, leave_out)
    sides = split(listing, patients(listing.paths), test_fraction, split_seed)

    def make() -> dict[str, Any]:
        return {"images": read_all(listing.paths, partial(read, **how), place.name)}

    images = cached(place, root, how, listing.paths, make)["images"]
    train, test = ((images[side], listing.labels[side]) for side in sides)
    return train, test, listing.classes


def medmnist3d(place: Path, root: Path, *, size: int, name: str) -> Halves:
    """A three-dimensional MedMNIST set (Yang et al. 2023), read by MedMNIST's own package.

    Volumes are (n, 1, size, size, size) with the axes as stored.  MedMNIST's validation split is left out: nothing
    here is chosen on it.
    """

    def make() -> dict[str, Any]:
        medmnist = optional("medmnist")
        info, content = medmnist.INFO[name], {}
        _check_md5(place, info["MD5" if size == 28 else f"MD5_{size}"])
        for half in ("train", "test"):
            part = getattr(medmnist, info["python_class"])(split=half, root=str(place.parent), size=size)
            content[half] = (torch.from_numpy(part.imgs)[:, None], torch.from_numpy(part.labels).flatten().long())
        return {**content, "classes": list(info["label"].values())}

    content = cached(place, root, {}, [place], make)
    return content["train"], content["test"], tuple(content["classes"])


def cifar10(place: Path, root: Path) -> Halves:
    """CIFAR-10's seven files; they are pickles, which only bytes with the published checksum may be."""
    from torchvision.datasets import CIFAR10

    for name, md5 in [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]:
        if not (place / name).exists():
            raise FileNotFoundError(f"{place / name} is missing: {place} is incomplete; delete it to fetch it again.")
        _check_md5(place / name, md5)
    halves = [CIFAR10(place.parent, train=is_train) for is_train in (True, False)]
    images = [torch.from_numpy(half.data).permute(0, 3, 1, 2).contiguous() for half in halves]
    train, test = [(x, torch.tensor(half.targets)) for x, half in zip(images, halves, strict=True)]
    return train, test, tuple(halves[0].classes)


def digits(place: Path, root: Path) -> Halves:
    """scikit-learn's 1,797 handwritten digits, 8×8, scaled to 32×32; the 20 % test half is drawn with seed 0."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    small = torch.from_numpy(raw.images).float()[:, None] * (255 / 16)
    images = F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False).round().to(torch.uint8)
    labels = torch.from_numpy(raw.target).long()
    train, test = ((images[half], labels[half]) for half in stratified(labels, 1437, seed=0))
    return train, test, tuple(map(str, raw.target_names))


def _check_md5(path: Path, expected: str) -> None:
    if (found := files.checksum(path, "md5")) != expected:
        raise files.DamagedFile(f"{path} is damaged: its MD5 should be {expected}, it is {found}.")


# ── one file after another ────────────────────────────────────────────────────────────────────────────────────


def list_classes(folder: Path, suffixes: tuple[str, ...], classes: str = "*", leave_out: str = "") -> Listing:
    """The files `<folder>/<class>/*` with one of the suffixes; nothing hidden.

    Args:
        classes: pattern of the class folders' names.
        leave_out: leave out the files with this in their name.

    Raises:
        FileNotFoundError: fewer than two class folders, or one without such files; it is named.
    """

    def wanted(name: str) -> bool:
        return name.lower().endswith(suffixes) and not name.startswith(".") and not (leave_out and leave_out in name)

    places = [place for place in folder.glob(classes) if place.is_dir() and not place.name.startswith(".")]
    found = {
        place.name: sorted((path for path in place.iterdir() if wanted(path.name)), key=lambda path: path.name)
        for place in sorted(places, key=lambda place: place.name)
    }
    if len(found) < 2:
        told = ", ".join(found) or "none"
        raise FileNotFoundError(f"{folder} must hold a sub-folder for each class, two or more; found: {told}.")
    if empty := [name for name, paths in found.items() if not paths]:
        raise FileNotFoundError(f"{folder / empty[0]} holds no file of the kinds {', '.join(suffixes)}.")
    labels = [label for label, paths in enumerate(found.values()) for _ in paths]
    return Listing([path for paths in found.values() for path in paths], torch.tensor(labels), tuple(found))


def photo(path: Path, shape: tuple[int, int], grey: bool = False) -> Tensor:
    """A photo, scaled and cropped about its centre to `shape` (H, W): uint8 (3, H, W), or (1, H, W) in grey.

    Raises:
        files.DamagedFile: it cannot be decoded, to its last byte.
    """
    from PIL import Image, ImageOps

    data, mode = path.read_bytes(), "L" if grey else "RGB"
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.draft(mode, (2 * max(shape),) * 2)  # a JPEG far too large is decoded at a half, a quarter, …
            upright = ImageOps.exif_transpose(picture).convert(mode)
        pixels = np.array(ImageOps.fit(upright, shape[::-1], Image.Resampling.BICUBIC))
    except Exception as error:  # on damaged data, decoders raise whatever they stumble upon
        raise files.DamagedFile(f"{path} cannot be decoded as an image: {error}.") from error
    return torch.from_numpy(pixels).view(*shape, -1).permute(2, 0, 1)


def volume(path: Path, shape: tuple[int, int, int], window: tuple[float, float] = CT_WINDOW) -> Tensor:
    """A NIfTI volume: values clipped to `window`, resampled trilinearly to `shape`: uint8 (1, H, W, D).

    H, W and D are the volume's own axes, turned to point to the patient's right, front and head, so that volumes
    from different scanners lie alike.

    Raises:
        files.DamagedFile: it cannot be decoded, fails the checksum in its .gz, or has not three axes.
        ImportError: nibabel is not installed.
    """
    nibabel = optional("nibabel")
    data, (low, high) = path.read_bytes(), window
    try:
        data = gzip.decompress(data) if path.name.lower().endswith(".gz") else data  # checks the CRC; nibabel does not
        image = nibabel.as_closest_canonical(nibabel.Nifti1Image.from_bytes(data))
        voxels = torch.from_numpy(np.ascontiguousarray(image.dataobj, dtype=np.float32))
        if voxels.ndim != 3:
            raise ValueError(f"a volume has three axes, this has shape {tuple(voxels.shape)}")
        levels = (voxels.nan_to_num(low).clamp(low, high) - low) * (255 / (high - low))
        return F.interpolate(levels[None, None], shape, mode="trilinear", align_corners=False)[0].round().byte()
    except Exception as error:
        raise files.DamagedFile(f"{path} cannot be decoded as a NIfTI volume: {error}.") from error


def read_all(paths: Sequence[Path], read: Callable[[Path], Tensor], title: str) -> Tensor:
    """`read` each file, a few at a time, with a progress bar: (n, *shape of one)."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        items = progress_bar(f"reading {title}", len(paths), iterable=pool.map(read, paths), unit="file")
        together = torch.empty(0, dtype=torch.uint8)
        for index, item in enumerate(items):
            together = together if index else torch.empty((len(paths), *item.shape), dtype=torch.uint8)
            together[index] = item
    return together


# ── the cache ─────────────────────────────────────────────────────────────────────────────────────────────────


def cached(
    place: Path, root: Path, options: dict[str, Any], sources: Sequence[Path], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What `make()` gives, or gave before for the same place, options and files.

    It is kept in one file with its checksum in `root/.cache`, or in the per-user cache folder where `root` cannot be
    written; where neither can, it is not kept.  The file is named by place and options.  It holds a fingerprint of the
    sources (names, sizes, times of change, `READING`), and is made anew when they change, or when it is damaged; then
    it is set aside.
    """
    states = [path.stat() for path in sources]
    told = [(p.parent.name, p.name, s.st_size, s.st_mtime_ns) for p, s in zip(sources, states, strict=True)]
    fingerprint = files.checksum(json.dumps([READING, told]).encode())
    key = json.dumps([str(place).removeprefix(str(root)), options])
    name = f"{place.name}-{files.checksum(key.encode())[:16]}"
    where = files.checksum(str(root.resolve()).encode())[:8]  # two folders must not take turns in one file
    places = (root / ".cache" / f"{name}.pt", user_folder() / ".cache" / f"{name}-{where}.pt")
    for path in places:
        with suppress(OSError):
            try:
                content = files.load_tensors(path)
            except files.DamagedFile:
                files.set_aside(path)
                continue
            if content["fingerprint"] == fingerprint:
                return content
    content = {**make(), "fingerprint": fingerprint}
    for path in places:
        with suppress(OSError):
            files.writable_folder(path.parent)
            files.save_tensors(path, content)
            break
    return content


def user_folder() -> Path:
    """The per-user cache folder: `$XDG_CACHE_HOME/ddlib`, by default `~/.cache/ddlib`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddlib"


# ── two sides ─────────────────────────────────────────────────────────────────────────────────────────────────


def patients(paths: Sequence[Path]) -> list[str]:
    """For each file the patient that its name carries, `<patient>_R_<n>.*`, else the file itself."""
    found = [(path, re.match(r"(.+)_R_\d+\.", path.name)) for path in paths]
    return [match[1] if match else f"{path.parent.name}/{path.name}" for path, match in found]


def split(listing: Listing, patients: Sequence[str], fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of training and test files, both sorted; the test side gets about `fraction` of each class.

    A patient is on one side with all that is theirs.  Patients come in random order, and each goes to the test side
    if that brings the shares of the classes there nearer to `fraction` (ours); where each has one file, this is the
    usual stratified split.

    Raises:
        ValueError: a class has too few patients to be on both sides.
    """
    names, whose = np.unique(np.asarray(patients), return_inverse=True)
    shares = np.zeros((len(names), len(listing.classes)))  # of each class, that a patient has
    np.add.at(shares, (whose, listing.labels.numpy()), 1)
    shares /= shares.sum(0)
    lacking, test = np.full(len(listing.classes), fraction), np.zeros(len(names), dtype=bool)
    for patient in np.random.default_rng(seed).permutation(len(names)):
        if np.square(lacking - shares[patient]).sum() < np.square(lacking).sum():
            lacking -= shares[patient]
            test[patient] = True
    for side in (test, ~test):
        for label in np.flatnonzero(shares[side].sum(0) == 0):
            raise ValueError(
                f"class {listing.classes[label]!r} has too few patients, or files, to be on both sides of a split "
                f"with a test share of {fraction}: {(shares[:, label] > 0).sum()}."
            )
    return torch.from_numpy(np.flatnonzero(~test[whose])), torch.from_numpy(np.flatnonzero(test[whose]))


def optional(package: str) -> Any:
    """Import a package that only some data sets need.

    Raises:
        ImportError: it is not installed; says how to install it.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(f"this data set needs {package}: pip install 'ddlib[data]' ({error}).") from error
