"""Class folders, `<class>/<file>` → image sets: listed, read once and kept in a cache.

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
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import numpy as np
import torch
from torch import Tensor

from .._internal import files
from .._internal.progress import progress_bar
from .readers import CT_WINDOW, PHOTOS, VOLUMES, Halves, levels, photo, voxels
from .splits import patients, split, together

READING = 3  # raised when the same files would be read differently: caches of another number are made anew
TRAINING = ("train", "training")  # names of the halves of a folder that is split already
TEST = ("test", "testing", "val", "valid", "validation")
MASK = re.compile(r"[_-](seg|mask|gt|label)[_-]?\d*\.", re.IGNORECASE)
BLOCK = 256  # images at a time, where all would not fit into memory
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

    In a folder of one's `own`, images that are the same stay on one side, and a warning says what a reader may not
    expect.
    """
    shape = shape or (size, size)
    photos = len(shape) == 2
    how = {"shape": shape} | ({"grey": grey} if photos else {"window": window, "area": area})
    how |= {"to_srgb": True} if photos and own else {}
    listing = list_classes(place, PHOTOS if photos else VOLUMES, classes, leave_out or "")
    whose = patients(place, listing.paths, patient)
    halves = listing.training and torch.arange(len(whose)).tensor_split([listing.training])
    sides = halves or split(listing.labels, listing.classes, whose, test_fraction, split_seed)
    read_one = partial(photo, **how) if photos else lambda path: levels(voxels(path), **how)
    images = cached(place, root, how, listing.paths, read_one)
    if own:
        pictures = zip(images, listing.paths, strict=True)
        prints = [files.digest(image) if image.min() < image.max() else str(path) for image, path in pictures]
        sides = halves or split(listing.labels, listing.classes, together(whose, prints), test_fraction, split_seed)
        notes = [*_left_out(place, listing.paths, leave_out or ""), *_both_sides(listing, sides, whose, prints)]
        notes += [] if photos else [*_beside_window(listing, window), *_voxel_sizes(listing)]
        if notes:
            warnings.warn(f"{place}: {'; '.join(notes)}.", stacklevel=3)
    train, test = ((_picked(images, side, root / ".cache"), listing.labels[side]) for side in sides)
    return train, test, listing.classes


def _picked(images: Tensor, side: Tensor, folder: Path) -> Tensor:
    """The images of one side of the split, where there is room for them."""
    return torch.index_select(images, 0, side, out=files.room((len(side), *images.shape[1:]), folder))


def cached(place: Path, root: Path, how: dict, paths: Sequence[Path], read_one: Callable[[Path], Tensor]) -> Tensor:
    """Each file read, a few at a time: (n, *shape of one); kept in `root/.cache` where that can be written.

    Reading that was interrupted goes on from where it was.  What is kept is made anew when a file has another name,
    size or time of change, or when it is damaged.
    """
    stats = [(str(path.relative_to(place)), path.stat()) for path in _sources(paths)]
    state = json.dumps([READING, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]])
    key = files.checksum(json.dumps([str(place.resolve()), how]).encode())[:16]
    cache = root / ".cache" / f"{place.name}-{key}.pt"
    images, read = _kept(cache, state)
    if read == len(paths):
        return images
    if read:
        images = files.room((len(paths), *images.shape[1:]), cache.parent).copy_(images)
    try:
        with (
            ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
            progress_bar(f"reading {place.name}", len(paths), read, unit="file") as bar,
        ):
            for start in range(read, len(paths), BLOCK):
                for index, image in enumerate(pool.map(read_one, paths[start : start + BLOCK]), start):
                    images = files.room((len(paths), *image.shape), cache.parent) if images is None else images
                    images[index] = image
                    bar.update()
                read = index + 1
    finally:  # what an interrupted reading has goes on from there
        with suppress(OSError):
            if read:
                files.save_tensors(cache, {"images": images, "state": state, "read": read})
    return images


def _kept(cache: Path, state: str) -> tuple[Tensor | None, int]:
    """Images of the same files that an earlier reading kept, and how many of them it had read."""
    with suppress(OSError, files.DamagedFile):
        content = files.load_tensors(cache, mapped=True)
        if content.get("state") == state:
            return content["images"], content.get("read", len(content["images"]))
    return None, 0


# ── which files ───────────────────────────────────────────────────────────────────────────────────────────────


def list_classes(folder: Path, suffixes: tuple[str, ...], classes: str = "*", leave_out: str = "") -> Listing:
    """The files `<folder>/<class>/*` with one of the suffixes, or `<folder>/{train,test}/<class>/*`; nothing hidden.

    `classes` is a pattern of the class folders' names; `leave_out` has patterns, with commas between, of names or
    `<class>/<name>`.

    Raises:
        FileNotFoundError: fewer than two class folders, others in train/ than in test/, or one without such files.
    """
    halves = _halves(folder, leave_out)
    places = [[p for p in _visible(half, leave_out) if p.is_dir() and p.match(classes)] for half in halves]
    named = [{normalize("NFC", place.name): place for place in half} for half in places]  # one é for all systems
    names, *others = map(tuple, named)
    if len(names) < 2:
        found = ", ".join(names) or "none"
        below = [f" (path={place} has some)" for place in places[0] if any(p.is_dir() for p in _visible(place))]
        raise FileNotFoundError(
            f"{halves[0]} must hold a sub-folder for each class, two or more; found: {found}{''.join(below[:1])}."
        )
    if twice := [p for half, kept in zip(places, named, strict=True) for p in half if p not in kept.values()]:
        raise FileNotFoundError(f"{twice[0]} is there twice, its letters written in two ways: make one folder of both.")
    if others and {*names} != {*others[0]}:
        both = f"{names} and {others[0]}; to split one of them instead, give path={halves[0]}"
        raise FileNotFoundError(f"the halves of {folder} must have the same classes, got {both}.")
    folders = [half[name] for half in named for name in names]
    found = [[p for p in _visible(f, leave_out) if p.name.lower().endswith(suffixes) and p.is_file()] for f in folders]
    if not all(found):
        empty = next(place for place, paths in zip(folders, found, strict=True) if not paths)
        raise FileNotFoundError(f"{empty} holds no file of the kinds {', '.join(suffixes)}.")
    labels = [index % len(names) for index, paths in enumerate(found) for _ in paths]
    training = sum(map(len, found[: len(names)])) if others else 0
    return Listing([path for paths in found for path in paths], torch.tensor(labels), names, training)


def _halves(folder: Path, leave_out: str) -> list[Path]:
    """The training and the test folder of one that is split already; else the folder itself."""
    inside = {path.name.lower(): path for path in _visible(folder, leave_out) if path.is_dir()}
    train, test = ([inside[name] for name in names if name in inside] for names in (TRAINING, TEST))
    if train and test and any(path.is_dir() for path in _visible(train[0])):
        return [train[0], test[0]]
    return [folder]


def _visible(folder: Path, leave_out: str = "") -> list[Path]:
    """What is in a folder, in the order of names, except what is hidden or meant to be left out."""
    patterns = [pattern.strip() for pattern in leave_out.split(",") if pattern.strip()]
    inside = (path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX")))
    return sorted(path for path in inside if not any(path.match(pattern) for pattern in patterns))


def _sources(paths: Sequence[Path]) -> list[Path]:
    """The files, each .hdr with its .img, or .HDR with its .IMG."""
    pairs = [p.with_suffix(".IMG" if p.suffix.isupper() else ".img") for p in paths if p.suffix.lower() == ".hdr"]
    return [*paths, *filter(Path.exists, pairs)]


# ── what a reader may not expect ──────────────────────────────────────────────────────────────────────────────


def _files(folder: Path, leave_out: str, above: Sequence[Path] = ()) -> Iterator[Path]:
    """All visible files below a folder; a link to a folder above itself is not followed."""
    if (real := folder.resolve()) not in above:
        for path in _visible(folder, leave_out):
            yield from _files(path, leave_out, (*above, real)) if path.is_dir() else [path]


def _left_out(place: Path, taken: Sequence[Path], leave_out: str) -> Iterator[str]:
    """The visible files that are not taken, counted by suffix and folder; masks that are."""
    count: Counter[str] = Counter()
    for path in {*_files(place, leave_out)} - {*_sources(taken)}:
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


def _voxel_sizes(listing: Listing) -> Iterator[str]:
    import nibabel

    sizes = np.array([sorted(nibabel.load(path).header.get_zooms()[:3]) for path in listing.paths])
    if (sizes.max(0) > 2 * sizes.min(0)).any():
        low, high = ("×".join(f"{edge:g}" for edge in edges) for edges in (sizes.min(0), sizes.max(0)))
        yield f"voxels measure from {low} to {high} mm, and all volumes are brought to one shape"


def _beside_window(listing: Listing, window: tuple[float, float]) -> list[str]:
    """Do the values of the first volume of each class fit the window?"""
    firsts = np.unique(listing.labels, return_index=True)[1]
    values = torch.cat([voxels(listing.paths[index]).flatten() for index in firsts])
    values = values[values.isfinite()]
    if not len(values):
        return ["the first volumes hold no number"]
    inside = values.clamp(*window)
    outside = (inside != values).float().mean().item()
    reached = 256 * (inside.max() - inside.min()).item() / (window[1] - window[0])
    if outside <= 0.5 and reached >= FEW:
        return []
    what = f"clips {outside:.0%} of them" if outside > 0.5 else f"leaves {max(reached, 1):.0f} of 256 grey levels"
    there = f"the first volumes have values from {values.min():.4g} to {values.max():.4g}"
    return [f"{there}, of which the window {window} {what}: set window=[low,high]"]
