"""Image sets as tensors, uint8 images and int64 labels, by name; the sets themselves are listed in sets.yaml."""

import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .._internal import checks
from ..decomposition import Bounds
from ..images import ImageSet, image_set
from . import folders, readers
from .fetch import Remote, bring

PAIR = r"""(?:^|\s)(\w+)=("[^"]*"|'[^']*'|.*?)(?=\s+\w+=|\s*$)"""  # an option and its value, which may have spaces


@dataclass(frozen=True)
class Entry:
    """A registered image set.

    Attributes:
        read: its place, the data folder, options → (train, test, classes).
        options: what it takes, with the usual values; None where that is text.
        places: where it lies below the data folder → what to download for that; None where only a person can.
        flip_axes: spatial axes along which a mirrored image is as good an example.
        regions: named windows on images of the usual shape, that of the option `shape` where there is one.
        exact: `read` gives the same values on every processor; False where it interpolates, say, and rounds.
    """

    read: Callable[..., readers.Halves]
    about: str
    source: str
    licence: str
    layout: str
    options: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, Remote | None] = field(default_factory=dict)
    flip_axes: Sequence[int] = ()
    regions: Mapping[str, Bounds] | None = None
    exact: bool = True

    @property
    def published(self) -> bool:
        """Whether its files have published checksums."""
        return bool(self.places) and all(self.places.values())


def _registered() -> dict[str, Entry]:
    rows = yaml.safe_load(Path(__file__).with_name("sets.yaml").read_text(encoding="utf-8"))
    for row in rows.values():
        reader = row.pop("reader")
        read = folders.read if reader == "class folders" else getattr(readers, reader)
        row["read"] = partial(read, **row.pop("arguments", {}))
        row["places"] = {place: Remote(*at) if at else None for place, at in row.get("places", {}).items()}
        options = row.get("options", {}).items()
        row["options"] = {option: tuple(usual) if isinstance(usual, list) else usual for option, usual in options}
    return {name: Entry(**row) for name, row in rows.items()}


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
    given = check_options(name, options)
    entry, folder = DATASETS[name], data_folder(root)
    options = {**entry.options, **given}
    place = fetch(name, root) if entry.places else folder / Path(options.get("path") or "").expanduser()
    if "path" in options and not options["path"]:
        raise ValueError(f"{name} needs path=…, the folder that holds a sub-folder for each class.")
    if "path" in options and not place.is_dir():
        raise FileNotFoundError(f"{place} is no folder; a relative path is below the data folder, {folder}.")
    if "path" in options and options.get("flip_axes") and "flip_axes" not in given:
        print(f"{name}: training mirrors images left-right; where sides matter, switch it off: options 'flip_axes=[]'.")
    how = {option: value for option, value in options.items() if option not in ("path", "flip_axes")}
    train, test, classes = entry.read(place, folder, **how)
    source = partial(load_dataset, name, str(folder.resolve()) if root else None, **options)
    data = image_set(name, train, test, classes, options.get("flip_axes", entry.flip_axes), source)
    usual = entry.options.get("shape", data.image_shape)
    return replace(data, regions=entry.regions and _scaled(entry.regions, usual, data.image_shape))


def _scaled(regions: Mapping[str, Bounds], usual: Sequence[int], shape: Sequence[int]) -> dict[str, Bounds]:
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
    usual = DATASETS[checks.one_of("data set", name, DATASETS)].options
    if isinstance(options, str):
        if re.sub(PAIR, "", options).strip():
            raise ValueError(f"options of {name} must be like 'size=64 shape=[48,42]', got {options!r}.")
        options = {option: _typed(text, usual.get(option, "")) for option, text in re.findall(PAIR, options)}
    axes = len(usual.get("shape", ("height", "width")))
    options = {checks.one_of(f"option of {name}", option, usual): value for option, value in options.items()}
    return {option: _checked(option, value, usual[option], axes) for option, value in options.items()}


def written(name: str, options: Mapping[str, Any]) -> str:
    """Options as text that `check_options` reads, without those that have their usual values, in a fixed order."""
    usual = DATASETS[name].options
    unusual = {k: options[k] for k in usual if k in options and options[k] != usual[k]}
    return " ".join(f"{option}={_written(value)}" for option, value in unusual.items())


def _written(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"' if re.search(r"[\s=]", value) else value
    return json.dumps(value, separators=(",", ":"))


def _typed(text: str, usual: Any) -> Any:
    """The value that was given as text."""
    text = text[1:-1] if len(text) > 1 and text[0] == text[-1] in "\"'" else text
    for read in () if usual is None else (json.loads, yaml.safe_load):  # JSON knows 1e-2, YAML all the rest
        with suppress(ValueError, yaml.YAMLError):
            return read(text)
    return text


def _checked(option: str, value: Any, usual: Any, axes: int) -> Any:
    """A value that must be of the kind of the usual one; lists as tuples, paths as text."""
    match usual:
        case None:
            return _text(option, value)
        case bool():
            return checks.flag(option, value)
        case int():
            return checks.integer(option, value, 0 if option == "split_seed" else 1)
        case float():
            return checks.real(option, value, 0, 0.99, open_low=True)
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(value, (list, tuple)) or (len(value) != len(usual) and option != "flip_axes"):
        raise ValueError(f"{option} must be a list of numbers, like {list(usual)}, got {value!r}.")
    if option == "window":
        low = checks.real("the start of the window", value[0], -1e6)
        return low, checks.real("the end of the window", value[1], low, open_low=True)
    low, high = (0, axes - 1) if option == "flip_axes" else (1, None)
    return tuple(checks.integer(option, number, low, high) for number in value)


def _text(option: str, value: Any) -> str | None:
    if not isinstance(value, str | os.PathLike | None):
        raise ValueError(f"{option} must be text, got {value!r}.")
    try:
        re.compile(value if option == "patient" and value else "")
    except re.error as error:
        raise ValueError(f"patient must be a regular expression, like '(.+)_', got {value!r} ({error}).") from None
    return str(value) if value else None


# ── files ──


def data_folder(root: str | Path | None = None) -> Path:
    """`root`, else `$DDLIB_DATA`, else the per-user cache folder, `$XDG_CACHE_HOME/ddlib` or `~/.cache/ddlib`."""
    home = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    home = tempfile.gettempdir() if home.startswith("~") else home  # of a user who has no home folder
    return Path(root or os.environ.get("DDLIB_DATA") or os.path.join(home, "ddlib")).expanduser()


def present(name: str, root: str | Path | None = None) -> Path | None:
    """Where the files of a data set are below the data folder; None where they are not."""
    places = DATASETS[checks.one_of("data set", name, DATASETS)].places
    return next((there for place in places if (there := data_folder(root) / place).exists()), None)


def fetch(name: str, root: str | Path | None = None) -> Path:
    """Where the files of a data set are; unpacked from an archive beside, or downloaded, where they are not there.

    Raises:
        ValueError: an unknown name, or a set that has no place of its own.
        FileNotFoundError: it cannot be downloaded (no network, or its source asks for a form); says what to do.
        files.DamagedFile: the file, the download or the archive is damaged or hostile.
    """
    entry, folder = DATASETS[checks.one_of("data set", name, DATASETS)], data_folder(root)
    if not entry.places:
        raise ValueError(f"{name} is not fetched: it is {entry.layout}.")
    try:
        return bring(folder, entry.places)
    except OSError as error:
        raise FileNotFoundError(
            f"{name} is not at {folder / next(iter(entry.places))}: {error} Its source: {entry.source}; its layout: "
            f"{entry.layout}. The environment variable DDLIB_DATA can name the folder that holds it."
        ) from error
