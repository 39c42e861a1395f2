"""Class folders, `<class>/<file>` → image sets: listed, read once and kept in a cache, split by patient.

Files are in the order of their names, so that a split by a seed is the same on every machine.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import files
from ..training import progress_bar
from .readers import CT_WINDOW, PHOTOS, VOLUMES, Halves, photo, volume

READING = 1  # raised when the same files would be read differently: caches of another number are made anew


class Listing(NamedTuple):
    """Files in class folders: n paths, their labels (n,) int64, the names of the classes."""

    paths: list[Path]
    labels: Tensor
    classes: tuple[str, ...]


def read(
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
    photos = len(shape) == 2
    how = {"shape": shape} | ({"grey": grey} if photos else {"window": window})
    listing = list_classes(place, PHOTOS if photos else VOLUMES, classes, leave_out)
    sides = split(listing, patients(listing.paths), test_fraction, split_seed)
    images = cached(place, root, how, listing.paths, partial(photo if photos else volume, **how))
    train, test = ((images[side], listing.labels[side]) for side in sides)
    return train, test, listing.classes


def list_classes(folder: Path, suffixes: tuple[str, ...], classes: str = "*", leave_out: str = "") -> Listing:
    """The files `<folder>/<class>/*` with one of the suffixes; nothing hidden.

    Args:
        classes: pattern of the class folders' names.
        leave_out: pattern of the names of files that are left out.

    Raises:
        FileNotFoundError: fewer than two class folders, or one without such files; it is named.
    """

    def wanted(name: str) -> bool:
        return name.lower().endswith(suffixes) and not name.startswith(".") and not fnmatchcase(name, leave_out)

    places = [place for place in folder.glob(classes) if place.is_dir() and not place.name.startswith(".")]
    found = {
        place.name: sorted((path for path in place.iterdir() if wanted(path.name)), key=lambda path: path.name)
        for place in sorted(places, key=lambda place: place.name)
    }
    if len(found) < 2:
        there = ", ".join(found) or "none"
        raise FileNotFoundError(f"{folder} must hold a sub-folder for each class, two or more; found: {there}.")
    if empty := [name for name, paths in found.items() if not paths]:
        raise FileNotFoundError(f"{folder / empty[0]} holds no file of the kinds {', '.join(suffixes)}.")
    labels = [label for label, paths in enumerate(found.values()) for _ in paths]
    return Listing([path for paths in found.values() for path in paths], torch.tensor(labels), tuple(found))


def read_all(paths: Sequence[Path], read_one: Callable[[Path], Tensor], title: str) -> Tensor:
    """Each file read, a few at a time, with a progress bar: (n, *shape of one)."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        items = progress_bar(f"reading {title}", len(paths), iterable=pool.map(read_one, paths), unit="file")
        together = torch.empty(0, dtype=torch.uint8)
        for index, item in enumerate(items):
            together = together if index else torch.empty((len(paths), *item.shape), dtype=torch.uint8)
            together[index] = item
    return together


# ── the cache ─────────────────────────────────────────────────────────────────────────────────────────────────


def cached(place: Path, root: Path, options: dict, paths: Sequence[Path], read_one: Callable[[Path], Tensor]) -> Tensor:
    """The images of `paths`, read now, or before from the same files with the same options.

    They are kept in one file in `root/.cache`, or in the per-user folder where `root` cannot be written; where neither
    can, they are not kept.  The file holds a fingerprint of the sources (names, sizes, times of change, `READING`),
    and is made anew when they change, or when it is damaged.
    """
    states = [(str(path.relative_to(place)), path.stat()) for path in paths]
    fingerprint = json.dumps([READING, [(name, state.st_size, state.st_mtime_ns) for name, state in states]])
    fingerprint = files.checksum(fingerprint.encode())
    key = files.checksum(json.dumps([str(place.resolve()), options]).encode())[:16]
    try:
        folder = files.writable_folder(root / ".cache")
    except OSError:
        folder = user_folder() / ".cache"
    path = folder / f"{place.name}-{key}.pt"
    with suppress(OSError, files.DamagedFile):
        content = files.load_tensors(path)
        if content["fingerprint"] == fingerprint:
            return content["images"]
    images = read_all(paths, read_one, place.name)
    with suppress(OSError):
        files.save_tensors(path, {"images": images, "fingerprint": fingerprint})
    return images


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
