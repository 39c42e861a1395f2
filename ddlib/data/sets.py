"""Image sets as tensors, uint8 images and int64 labels, by name; the sets themselves are listed in sets.yaml."""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import yaml

from .. import checks
from ..images import ImageSet, Window, image_set
from . import folders, readers
from .fetch import Remote, bring

if TYPE_CHECKING:
    import pandas as pd

TEXTS = ("path", "leave_out", "patient")  # options that are text, as typed
PAIR = r"""(?:^|\s)(\w+)=("[^"]*"|'[^']*'|.*?)(?=\s+\w+=|\s*$)"""  # an option and its value, which may have spaces


@dataclass(frozen=True)
class Entry:
    """A registered image set.

    Attributes:
        read: its place, the data folder, options → (train, test, classes).
        options: what it takes, with the usual values.
        places: where it lies below the data folder → what to download for that; None where only a person can.
        sizes: for each value of the option size its place, where they have files of their own.
        flip_axes: spatial axes along which a mirrored image is as good an example.
        regions: named windows on images of the usual shape.
    """

    read: Callable[..., readers.Halves]
    about: str
    source: str
    licence: str
    layout: str
    options: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, Remote | None] = field(default_factory=dict)
    sizes: Mapping[int, str] = field(default_factory=dict)
    flip_axes: tuple[int, ...] = ()
    regions: Mapping[str, Window] | None = None


def _registered() -> dict[str, Entry]:
    read = {"class folders": folders.read} | {
        name: getattr(readers, name) for name in ("digits", "cifar10", "medmnist3d")
    }
    rows = yaml.safe_load(Path(__file__).with_name("sets.yaml").read_text(encoding="utf-8"))
    for row in rows.values():
        row["read"] = partial(read[row.pop("reader")], **row.pop("arguments", {}))
        row["places"] = {place: Remote(*at) if at else None for place, at in row.get("places", {}).items()}
        row["options"] = {option: _as_tuple(value) for option, value in row.get("options", {}).items()}
        row["flip_axes"] = tuple(row.get("flip_axes", ()))
    return {name: Entry(**row) for name, row in rows.items()}


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


DATASETS = _registered()


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
    options = check_options(name, options)
    entry, folder = DATASETS[name], data_folder(root)
    options = {**entry.options, **options}
    if entry.places:
        place = fetch(name, root, entry.sizes.get(options.get("size")))
    else:
        place = folder / Path(options.get("path") or "").expanduser()
    if "path" in options and not options["path"]:
        raise ValueError(f"{name} needs path=…, the folder that holds a sub-folder for each class.")
    if "path" in options and not place.is_dir():
        raise FileNotFoundError(
            f"{place} is no folder that exists; a relative path is below the data folder, {folder}."
        )
    how = {option: value for option, value in options.items() if option not in ("path", "flip_axes")}
    train, test, classes = entry.read(place, folder, **how)
    source = partial(load_dataset, name, str(folder.resolve()) if root else None, **options)
    data = image_set(name, train, test, classes, options.get("flip_axes", entry.flip_axes), source)
    return replace(data, regions=entry.regions and _scaled(entry.regions, entry.options["shape"], data.image_shape))


def _scaled(regions: Mapping[str, Window], usual: Sequence[int], shape: Sequence[int]) -> dict[str, Window]:
    """Windows on images of the `usual` shape → on images of another."""
    scaled = {name: zip(window, shape, usual, strict=True) for name, window in regions.items()}
    return {name: tuple((round(a * n / u), round(b * n / u)) for (a, b), n, u in w) for name, w in scaled.items()}


# ── options ──


def check_options(name: str, options: Mapping[str, Any] | str) -> dict[str, Any]:
    """The options of a data set, checked without loading it, as JSON can write them.

    Args:
        options: by name; or as text, 'size=64 path="/data/my photos"': numbers and lists as in YAML, and path,
            leave_out and patient as typed, in quotes where a word in them ends in "=".

    Raises:
        ValueError: an unknown data set, option (the nearest is named) or value.
    """
    entry = DATASETS[checks.one_of("data set", name, DATASETS)]
    if isinstance(options, str):
        if re.sub(PAIR, "", options).strip():
            raise ValueError(f"options of {name} must be like 'size=64 shape=[48,42]', got {options!r}.")
        options = {pair[1]: _typed(pair[1], pair[2]) for pair in re.finditer(PAIR, options)}
    return {
        checks.one_of(f"option of {name}", option, entry.options): _checked(option, value, entry)
        for option, value in options.items()
    }


def _typed(option: str, text: str) -> Any:
    """The value of an option that was given as text."""
    text = text[1:-1] if len(text) > 1 and text[0] == text[-1] in "\"'" else text
    for read in () if option in TEXTS else (json.loads, yaml.safe_load):  # JSON knows 1e-2, YAML all the rest
        with suppress(ValueError, yaml.YAMLError):
            return read(text)
    return text


def _checked(option: str, value: Any, entry: Entry) -> Any:
    """The value of an option, as JSON can write it (a list as a tuple)."""
    usual = entry.options[option]
    match option:
        case option if option in TEXTS:
            return _text(option, value)
        case "size" if entry.sizes and value not in entry.sizes:
            raise ValueError(f"size must be one of {', '.join(map(str, entry.sizes))}, got {value!r}.")
        case "size":
            return checks.whole(option, value, 1)
        case "split_seed":
            return checks.whole(option, value, 0, 2**31 - 1)
        case "test_fraction":
            if checks.real(option, value, 0, 1, open_low=True) == 1:
                raise ValueError("test_fraction must be a number above 0 and below 1, got 1: nothing is left to train.")
            return float(value)
        case "grey":
            return checks.flag(option, value)
        case "flip_axes":
            axes = len(entry.options.get("shape", (0, 0)))
            if not isinstance(value, (list, tuple)) or any(type(v) is not int or v not in range(axes) for v in value):
                raise ValueError(f"flip_axes must be a list of axes from 0 to {axes - 1}, like [1], got {value!r}.")
            return tuple(value)
    if not isinstance(value, (list, tuple)) or len(value) != len(usual):
        raise ValueError(f"{option} must be a list of numbers, like {list(usual)}, got {value!r}.")
    if option == "shape":
        return tuple(checks.whole(option, v, 1) for v in value)
    low, high = (checks.real(option, v, -1e6) for v in value)
    if low >= high:
        raise ValueError(f"window must be (low, high) with low < high, got {value!r}.")
    return low, high


def _text(option: str, value: Any) -> str | None:
    if not isinstance(value, (str, os.PathLike, NoneType)):
        raise ValueError(f"{option} must be text, got {value!r}.")
    if option == "patient" and value:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"patient must be a regular expression, like '(.+)_', got {value!r} ({error}).") from None
    return str(value) if value else None


# ── files ──


def data_folder(root: str | Path | None = None) -> Path:
    """`root`, else `$DDLIB_DATA`, else the per-user cache folder."""
    return Path(root or os.environ.get("DDLIB_DATA") or folders.user_folder()).expanduser()


def present(name: str, root: str | Path | None = None) -> Path | None:
    """Where the files of a data set are below the data folder; None where they are not."""
    entry, folder = DATASETS[checks.one_of("data set", name, DATASETS)], data_folder(root)
    return next((folder / place for place in entry.places if (folder / place).exists()), None)


def fetch(name: str, root: str | Path | None = None, place: str | None = None) -> Path:
    """Where the files of a data set are; unpacked from an archive beside, or downloaded, where they are not there.

    `place` is one of the entry's `places`, where it has several.

    Raises:
        ValueError: an unknown name, or a set that has no place of its own.
        FileNotFoundError: it cannot be downloaded (no network, or its source asks for a form); says what to do.
        files.DamagedFile: the file, the download or the archive is damaged or hostile.
    """
    entry, folder = DATASETS[checks.one_of("data set", name, DATASETS)], data_folder(root)
    if not entry.places:
        raise ValueError(f"{name} is not fetched: it is {entry.layout}.")
    places = {place: entry.places[place]} if place else entry.places
    try:
        return bring(folder, places)
    except OSError as error:
        raise FileNotFoundError(
            f"{name} is not at {folder / next(iter(places))}: {error} Its source: {entry.source}; its layout: "
            f"{entry.layout}. The environment variable DDLIB_DATA can name the folder that holds it."
        ) from error


def table(root: str | Path | None = None) -> "pd.DataFrame":
    """A row a registered set: about, source, licence, checksum, layout, present (where), fetch (the command)."""
    import pandas as pd

    frame = pd.DataFrame({name: vars(entry) for name, entry in DATASETS.items()}).T.rename_axis("name")
    frame["checksum"] = [", ".join(r.checksum for r in places.values() if r) for places in frame["places"]]
    frame["present"] = [str(present(name, root) or "") for name in frame.index]
    frame["fetch"] = [f"python -m ddlib datasets fetch {name}" for name in frame.index]
    frame.loc[~frame["places"].astype(bool), ["present", "fetch"]] = "not needed"
    return frame[["about", "source", "licence", "checksum", "layout", "present", "fetch"]]
