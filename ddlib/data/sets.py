"""Image sets as tensors, uint8 images and int64 labels, by name: the registry, `DATASETS`, is at the end."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import checks
from ..images import ImageSet, Window, image_set
from . import readers
from .fetch import Remote, bring

if TYPE_CHECKING:
    import pandas as pd

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
FLOWERS_URL = "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz"


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
    elif "path" in options and not options["path"]:
        raise ValueError(f"{name} needs path=…, the folder that holds a sub-folder for each class.")
    else:
        place = folder / Path(options.get("path", "")).expanduser()
    how = {option: value for option, value in options.items() if option not in ("path", "flip_axes")}
    train, test, classes = entry.read(place, folder, **how)
    source = partial(load_dataset, name, str(folder.resolve()) if root else None, **options)
    data = image_set(name, train, test, classes, options.get("flip_axes", entry.flip_axes), source)
    return replace(data, regions=entry.regions and _scaled(entry.regions, entry.options["shape"], data.image_shape))


def check_options(name: str, options: Mapping[str, Any] | str) -> dict[str, Any]:
    """The options of a data set, checked without loading it, as JSON can write them.

    Args:
        options: by name; or as text, "size=64 split_seed=1", each value as YAML.

    Raises:
        ValueError: an unknown data set, option (the nearest is named) or value.
    """
    import yaml

    entry = DATASETS[checks.one_of("data set", name, DATASETS)]
    if isinstance(options, str):
        pairs = [pair.partition("=") for pair in options.split()]
        try:
            options = {option: yaml.safe_load(value) for option, _, value in pairs}
        except yaml.YAMLError:
            raise ValueError(f"options of {name} must be like 'size=64 shape=[48,42]', got {options!r}.") from None
    return {
        checks.one_of(f"option of {name}", option, entry.options): _checked(option, value, entry)
        for option, value in options.items()
    }


def data_folder(root: str | Path | None = None) -> Path:
    """`root`, else `$DDLIB_DATA`, else the per-user cache folder."""
    return Path(root or os.environ.get("DDLIB_DATA") or readers.user_folder()).expanduser()


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
        files.DamagedFile: the download or the archive is damaged or hostile.
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


def _checked(option: str, value: Any, entry: "Entry") -> Any:
    """The value of an option, as JSON can write it (a list as a tuple)."""
    match option:
        case "path":
            return str(value) if value else None
        case "size" if entry.sizes and value not in entry.sizes:
            raise ValueError(f"size must be one of {', '.join(map(str, entry.sizes))}, got {value!r}.")
        case "size":
            return checks.whole(option, value, 1)
        case "split_seed":
            return checks.whole(option, value, 0, 2**31 - 1)
        case "test_fraction":
            return checks.real(option, value, 0, 1, open_low=True)
        case "grey":
            return checks.flag(option, value)
    usual = entry.options[option]
    if not isinstance(value, (list, tuple)) or (option != "flip_axes" and len(value) != len(usual)):
        raise ValueError(f"{option} must be a list of numbers, like {list(usual)}, got {value!r}.")
    if option != "window":
        return tuple(checks.whole(option, v, int(option == "shape")) for v in value)
    low, high = (checks.real(option, v, -1e6) for v in value)
    if low >= high:
        raise ValueError(f"window must be (low, high) with low < high, got {value!r}.")
    return low, high


def _scaled(regions: Mapping[str, Window], usual: Sequence[int], shape: Sequence[int]) -> dict[str, Window]:
    """Windows on images of the `usual` shape → on images of another."""
    scaled = {name: zip(window, shape, usual, strict=True) for name, window in regions.items()}
    return {name: tuple((round(a * n / u), round(b * n / u)) for (a, b), n, u in w) for name, w in scaled.items()}


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


@dataclass(frozen=True)
class Entry:
    """A row of the registry.

    Attributes:
        read: one of `readers`: its place, the data folder, options → (train, test, classes).
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


def _medmnist(name: str, about: str, md5_64: str, md5_28: str, flip_axes: tuple[int, ...] = ()) -> Entry:
    sums, url = {f"{name}_64.npz": md5_64, f"{name}.npz": md5_28}, "https://zenodo.org/records/10519652/files"
    return Entry(
        partial(readers.medmnist3d, name=name),
        f"{about} (MedMNIST's training and test volumes; its validation volumes are left out)",
        "https://medmnist.com (Yang et al. 2023)",
        "CC BY 4.0",
        f"{name}_64.npz, or {name}.npz for size=28",
        {"size": 64},
        {file: Remote(f"{url}/{file}?download=1", f"md5:{md5}") for file, md5 in sums.items()},
        sizes=dict(zip((64, 28), sums, strict=True)),
        flip_axes=flip_axes,
    )


DATASETS: dict[str, Entry] = {
    "digits": Entry(
        readers.digits,
        "handwritten digits, 1,437 + 360 of 32×32 grey",
        "scikit-learn (UCI ML, Alpaydin, Kaynak)",
        "CC BY 4.0",
        "inside scikit-learn",
    ),
    "cifar10": Entry(
        readers.cifar10,
        "50,000 + 10,000 of 32×32 RGB, 10 classes",
        "https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky 2009)",
        "none stated",
        "cifar-10-batches-py/, or the archive cifar-10-python.tar.gz",
        places={"cifar-10-batches-py": Remote(CIFAR10_URL, "md5:c58f30108f718f92721af3b95e74349a")},
        flip_axes=(1,),
    ),
    "tf_flowers": Entry(
        readers.folders,
        "3,670 photos of 5 kinds of flowers, cut to squares, 80 % for training",
        "https://www.tensorflow.org/datasets/catalog/tf_flowers (The TensorFlow Team 2019)",
        "CC BY, by photographer in the archive's LICENSE.txt",
        "flower_photos/<class>/*.jpg, or the archive flower_photos.tgz",
        {"size": 128, "split_seed": 0},
        {"flower_photos": Remote(FLOWERS_URL, "md5:6f87fb78e9cc9ab41eff2015b380011d")},
        flip_axes=(1,),
    ),
    "faces": Entry(
        partial(readers.folders, grey=True, classes="yaleB*", leave_out="_Ambient"),
        "Extended Yale B, cropped: 2,414 grey faces of 38 people in 64 lightings, 80 % for training",
        "http://vision.ucsd.edu/~leekc/ExtYaleDatabase/ExtYaleB.html (Georghiades et al. 2001, Lee et al. 2005)",
        "free for research, with acknowledgement",
        "CroppedYale/yaleB*/*.pgm, or the archive CroppedYale.zip",
        {"shape": (96, 84), "split_seed": 0},
        {"CroppedYale": None},
        regions=FACE_REGIONS,  # and no axis to flip: the left eye's window would see the right eye
    ),
    "mosmed": Entry(
        partial(readers.folders, classes="CT-*"),
        "chest CT graded by lung damage: 1,110 studies, or the 200 of the Keras example; 80 % for training",
        "https://mosmed.ai/en/datasets/covid191110/ (Morozov et al. 2020)",
        "CC BY-NC-ND 3.0",
        "mosmed/, MosMedData/ or COVID19_1110/studies/ with CT-0/*.nii.gz, CT-1/ …, or CT-0/ and CT-23/",
        {"shape": (128, 128, 64), "split_seed": 0},
        {"mosmed": None, "MosMedData": None, "COVID19_1110/studies": None},
        flip_axes=(0,),
    ),
    "lidc_nodules": Entry(
        readers.folders,
        "994 lung nodules of 551 patients, cut from CT, benign or malignant, split by patient: a stand-in for the "
        "papers' chest CT",
        "https://www.cancerimagingarchive.net/collection/lidc-idri/ (Armato et al. 2011)",
        "CC BY 3.0",
        "lidc_nodules/{benign,malignant}/<patient>_R_<n>.nii.gz",
        {"shape": (32, 32, 16), "split_seed": 0},
        {"lidc_nodules": None},
        flip_axes=(0, 1, 2),  # cut out of its surroundings, a nodule has no left, front or top
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
        readers.folders,
        "photos of your own, cut to squares",
        "yours",
        "yours",
        "any folder with <class>/*, given as path=…; files <patient>_R_<n>.* of a patient stay on one side",
        {"path": None, "size": 128, "grey": False, "test_fraction": 0.2, "split_seed": 0, "flip_axes": (1,)},
    ),
    "volume_folder": Entry(
        readers.folders,
        "NIfTI volumes of your own, clipped to a window and resampled",
        "yours",
        "yours",
        "any folder with <class>/*.nii.gz, given as path=…; files <patient>_R_<n>.* of a patient stay on one side",
        {
            "path": None,
            "shape": (64, 64, 64),
            "window": (-1000.0, 400.0),
            "test_fraction": 0.2,
            "split_seed": 0,
            "flip_axes": (),
        },
    ),
}
