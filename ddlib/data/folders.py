"""Class folders, `<class>/<file>` → image sets: listed, read once and kept in a cache, split by patient.

Files are in the order of their names, so that a split by a seed is the same on every machine.
"""

import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import files
from ..training import progress_bar
from .readers import CT_WINDOW, PHOTOS, VOLUMES, Halves, photo, volume

READING = 2  # raised when the same files would be read differently: caches of another number are made anew
TRAINING = ("train", "training")  # names of the halves of a folder that is split already
TEST = ("test", "testing", "val", "valid", "validation")
PATIENT = r"(.+)_R_\d+\."
MASK = re.compile(r"[_-](seg|mask|gt|label)[_-]?\d*\.", re.IGNORECASE)
FEW = 64  # grey levels of 256: where values reach fewer, the window is not theirs


class Listing(NamedTuple):
    """Files in class folders: n paths, their labels (n,) int64, the names of the classes.

    The first `training` of them are the training half of a folder that is split already; 0 where it is not.
    """

    paths: list[Path]
    labels: Tensor
    classes: tuple[str, ...]
    training: int = 0


def read(
    place: Path,
    root: Path,
    *,
    split_seed: int,
    size: int = 0,
    shape: tuple[int, ...] = (),
    grey: bool = False,
    window: tuple[float, float] = CT_WINDOW,
    area: bool = False,
    classes: str = "*",
    leave_out: str | None = None,
    patient: str | None = None,
    test_fraction: float = 0.2,
    own: bool = False,
) -> Halves:
    """Photos (a shape of two axes, or a square `size`) or NIfTI volumes (of three), `<place>/<class>/<file>`.

    They are split by patient where the names of the files carry one, see `patients` and `split`; the cache keeps them
    unsplit.  In a folder of one's `own`, images that are the same stay on one side, and a warning says what a reader
    may not expect.
    """
    shape = shape or (size, size)
    photos = len(shape) == 2
    how = {"shape": shape} | ({"grey": grey} if photos else {"window": window, "area": area})
    listing = list_classes(place, PHOTOS if photos else VOLUMES, classes, leave_out or "")
    whose = patients(listing.paths, patient)
    sides = split(listing, whose, test_fraction, split_seed)
    images, seen = cached(place, root, how, listing.paths, partial(photo if photos else volume, **how))
    if own:
        prints = [_fingerprint(image, path) for image, path in zip(images, listing.paths, strict=True)]
        sides = split(listing, together(whose, prints), test_fraction, split_seed)
        notes = [*_left_out(place, listing.paths, leave_out or ""), *_both_sides(listing, sides, whose, prints)]
        if notes := notes + ([] if photos else _beside_window(seen, window)):
            warnings.warn(f"{place}: {'; '.join(notes)}.", stacklevel=3)
    train, test = ((images[side], listing.labels[side]) for side in sides)
    return train, test, listing.classes


def read_all(paths: Sequence[Path], read_one: Callable[[Path], tuple[Tensor, Tensor]], title: str) -> list[Tensor]:
    """Each file read, a few at a time, with a progress bar: images (n, *shape of one), and what was seen (n, 3)."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        items = progress_bar(f"reading {title}", len(paths), iterable=pool.map(read_one, paths), unit="file")
        images, seen = torch.empty(0), torch.empty(len(paths), 3)
        for index, (image, seen[index]) in enumerate(items):
            images = images if index else torch.empty((len(paths), *image.shape), dtype=torch.uint8)
            images[index] = image
    return [images, seen]


# ── which files ───────────────────────────────────────────────────────────────────────────────────────────────


def list_classes(folder: Path, suffixes: tuple[str, ...], classes: str = "*", leave_out: str = "") -> Listing:
    """The files `<folder>/<class>/*` with one of the suffixes, or `<folder>/{train,test}/<class>/*`; nothing hidden.

    Args:
        classes: pattern of the class folders' names.
        leave_out: patterns of names, or of `<class>/<name>`, with commas between: what is left out.

    Raises:
        FileNotFoundError: fewer than two class folders, others in train/ than in test/, or one without such files.
    """
    found = [_in_classes(half, suffixes, classes, leave_out) for half in _halves(folder)]
    names = tuple(found[0])
    if any(tuple(half) != names for half in found):
        raise FileNotFoundError(
            f"the halves of {folder} must have the same classes, got {' and '.join(map(str, found))}."
        )
    paths = [path for half in found for paths in half.values() for path in paths]
    labels = [label for half in found for label, paths in enumerate(half.values()) for _ in paths]
    training = sum(map(len, found[0].values())) if len(found) > 1 else 0
    return Listing(paths, torch.tensor(labels), names, training)


def _halves(folder: Path) -> list[Path]:
    """The training and the test folder of one that is split already; else the folder itself."""
    inside = {path.name.lower(): path for path in _visible(folder) if path.is_dir()}
    train, test = ([inside[name] for name in names if name in inside] for names in (TRAINING, TEST))
    if train and test and any(path.is_dir() for path in _visible(train[0])):
        return [train[0], test[0]]
    return [folder]


def _visible(folder: Path) -> list[Path]:
    return sorted((p for p in folder.iterdir() if not p.name.startswith((".", "__MACOSX"))), key=lambda p: p.name)


def _matches(path: Path, patterns: str) -> bool:
    names = (path.name, f"{path.parent.name}/{path.name}")
    return any(fnmatchcase(name, pattern.strip()) for name in names for pattern in patterns.split(","))


def _in_classes(folder: Path, suffixes: tuple[str, ...], classes: str, leave_out: str) -> dict[str, list[Path]]:
    places = [p for p in _visible(folder) if p.is_dir() and fnmatchcase(p.name, classes) and not _matches(p, leave_out)]
    found = {
        place.name: [
            path
            for path in _visible(place)
            if path.name.lower().endswith(suffixes) and path.is_file() and not _matches(path, leave_out)
        ]
        for place in places
    }
    if len(found) < 2:
        there = ", ".join(found) or "none"
        raise FileNotFoundError(f"{folder} must hold a sub-folder for each class, two or more; found: {there}.")
    if empty := [name for name, paths in found.items() if not paths]:
        raise FileNotFoundError(f"{folder / empty[0]} holds no file of the kinds {', '.join(suffixes)}.")
    return found


# ── what a reader may not expect ──


def _left_out(place: Path, taken: Sequence[Path], leave_out: str) -> Iterator[str]:
    """The visible files that are not taken, counted by suffix and folder; masks that are."""
    known = {*taken, *(path.with_suffix(".img") for path in taken if path.suffix == ".hdr")}
    count: Counter[str] = Counter()
    waiting, been = [place], set()  # folders; one that is linked to in a circle is looked into once
    while waiting:
        for path in _visible(waiting.pop()):
            if _matches(path, leave_out) or path in known or path.resolve() in been:
                continue
            if path.is_dir():
                waiting.append(path)
                been.add(path.resolve())
            else:
                suffix = ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix or "nameless"
                count[f"{suffix} in {path.parent.relative_to(place)}/"] += 1
    if count:
        listed = ", ".join(f"{number} {where}" for where, number in sorted(count.items()))
        yield f"left out are {listed} (leave_out='PATTERN' names what is meant to be)"
    masks = [path.name for path in taken if MASK.search(path.name)]
    if 0 < len(masks) < len(taken):
        yield f"{len(masks)} files may be masks, such as {masks[0]} (leave_out='PATTERN' leaves them out)"


def _both_sides(
    listing: Listing, sides: Sequence[Tensor], whose: Sequence[str], prints: Sequence[str]
) -> Iterator[str]:
    if listing.training:
        folders = " and ".join(f"{listing.paths[side[0]].parent.parent.name}/ ({len(side)} files)" for side in sides)
        yield f"{folders} are the two halves, split already: test_fraction and split_seed are not used"
    elif same := len(prints) - len({*prints}):
        yield f"{same} images are the same as another; such are on one side of the split"
    for what, keys in {"images": prints, "patients": whose}.items():
        train, test = ({keys[index] for index in side} for side in sides)
        if train & test:
            yield f"{len(train & test)} {what} are in both halves"


def _beside_window(seen: Tensor, window: tuple[float, float]) -> list[str]:
    """Do the lowest values, the highest and the shares outside, each (n,), fit the window?"""
    low, high, outside = seen[:, 0].min().item(), seen[:, 1].max().item(), seen[:, 2].mean().item()
    levels = 256 * (min(high, window[1]) - max(low, window[0])) / (window[1] - window[0])
    if outside <= 0.5 and levels >= FEW:
        return []
    what = f"clips {outside:.0%} of them" if outside > 0.5 else f"leaves {max(levels, 1):.0f} of 256 grey levels"
    return [f"values from {low:.4g} to {high:.4g}, of which the window {window} {what}: set window=[low,high]"]


# ── the cache ─────────────────────────────────────────────────────────────────────────────────────────────────


def cached(place: Path, root: Path, options: dict, paths: Sequence[Path], read_one: Callable) -> list[Tensor]:
    """What `read_all` gives, or gave before for the same files and options.

    It is kept in one file in `root/.cache`, or in the per-user folder where `root` cannot be written; where neither
    can, it is not kept.  The file holds a fingerprint of the sources (names, sizes, times of change, `READING`), and
    is made anew when they change, or when it is damaged.
    """
    pairs = [path.with_suffix(".img") for path in paths if path.suffix == ".hdr"]
    states = [(str(path.relative_to(place)), path.stat()) for path in (*paths, *filter(Path.exists, pairs))]
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
            return content["read"]
    tensors = read_all(paths, read_one, place.name)
    with suppress(OSError):
        files.save_tensors(path, {"read": tensors, "fingerprint": fingerprint})
    return tensors


def user_folder() -> Path:
    """The per-user cache folder: `$XDG_CACHE_HOME/ddlib`, by default `~/.cache/ddlib`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddlib"


# ── two sides ─────────────────────────────────────────────────────────────────────────────────────────────────


def patients(paths: Sequence[Path], pattern: str | None = None) -> list[str]:
    """For each file the patient that its name carries, else the file itself.

    `pattern` is a regular expression that finds the patient in a name, as its first group or all of it; by default
    `<patient>_R_<n>.*`.

    Raises:
        ValueError: the pattern is in no name.
    """
    found = [re.search(pattern or PATIENT, path.name) for path in paths]
    if pattern and not any(found):
        raise ValueError(f"patient={pattern!r} is in no name of a file, such as {paths[0].name!r}.")
    return [
        match[match.re.groups and 1] if match else f"{path.parent.name}/{path.name}"
        for path, match in zip(paths, found, strict=True)
    ]


def _fingerprint(image: Tensor, path: Path) -> str:
    """The same for the same pixels; but one grey all over is no picture that two files could share."""
    return str(path) if image.min() == image.max() else blake2b(image.numpy().tobytes()).hexdigest()


def together(whose: Sequence[str], prints: Sequence[str]) -> list[int]:
    """A number for each image: patients who share an image, by its fingerprint, have the same."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    patient, image = (np.unique(keys, return_inverse=True)[1] for keys in (whose, prints))
    image = image + patient.max() + 1
    graph = coo_matrix((np.ones(len(image)), (patient, image)), shape=(image.max() + 1,) * 2)
    return connected_components(graph, directed=False)[1][patient].tolist()


def split(listing: Listing, whose: Sequence, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of training and test files, both sorted; the test side gets about `fraction` of each class.

    A patient is on one side with all that is theirs.  Patients come in random order, and each goes to the test side
    if that brings the shares of the classes there nearer to `fraction` (ours); where each has one file, this is the
    usual stratified split.  A class that is then missing on a side gets its first patient who is not missed on the
    other.  What is split already stays so.

    Raises:
        ValueError: a class has too few patients to be on both sides.
    """
    if listing.training:
        return torch.arange(listing.training), torch.arange(listing.training, len(listing.paths))
    names, index = np.unique(np.asarray(whose), return_inverse=True)
    shares = np.zeros((len(names), len(listing.classes)))  # of each class, that a patient has
    np.add.at(shares, (index, listing.labels.numpy()), 1)
    shares /= shares.sum(0)
    lacking, test = np.full(len(listing.classes), fraction), np.zeros(len(names), dtype=bool)
    order = np.random.default_rng(seed).permutation(len(names))
    for patient in order:
        if np.square(lacking - shares[patient]).sum() < np.square(lacking).sum():
            lacking -= shares[patient]
            test[patient] = True
    for side in (True, False):
        for label in range(len(listing.classes)):
            if shares[test == side, label].any():
                continue
            counts = (shares[test != side] > 0).sum(0)  # of patients on the other side, for each class
            can = [p for p in order if shares[p, label] and (counts[shares[p] > 0] > 1).all()]
            if not can:
                raise ValueError(
                    f"class {listing.classes[label]!r} has too few patients, or files, to be on both sides of a split "
                    f"with a test share of {fraction}: {(shares[:, label] > 0).sum()} (equal images count once)."
                )
            test[can[0]] = side
    return torch.from_numpy(np.flatnonzero(~test[index])), torch.from_numpy(np.flatnonzero(test[index]))
