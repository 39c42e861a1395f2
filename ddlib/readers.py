"""Files → uint8 tensors: photos, faces, NIfTI volumes, MedMNIST; kept in one checked cache file.

Every set of files is listed in the order of its names, so that a split by a seed is the same on every machine.
"""

import gzip
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from . import files

PHOTOS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
VOLUMES = (".nii.gz", ".nii")
CT_WINDOW = (-1000.0, 400.0)  # Hounsfield units, from air to bone, as in the Keras CT example
PATIENT = r"(.+)_R_\d+"  # file names `<patient>_R_<n>.nii.gz`


class Listing(NamedTuple):
    """Files in class folders: n paths, their labels (n,) int64, the names of the classes."""

    paths: list[Path]
    labels: Tensor
    classes: tuple[str, ...]


def list_classes(folder: Path, suffixes: Sequence[str], classes: str = "*", leave_out: str | None = None) -> Listing:
    """The files `<folder>/<class>/*` with one of the suffixes; hidden files and folders are no part of it.

    Args:
        classes: pattern of the class folders' names.
        leave_out: leave out the files with this in their name.

    Raises:
        FileNotFoundError: fewer than two class folders, or one without such files; it is named.
    """
    found = {
        place.name: [
            path
            for path in sorted(place.iterdir(), key=lambda path: path.name)
            if path.name.lower().endswith(tuple(suffixes))
            and not path.name.startswith(".")
            and (leave_out is None or leave_out not in path.name)
        ]
        for place in sorted(folder.glob(classes), key=lambda path: path.name)
        if place.is_dir() and not place.name.startswith(".")
    }
    if len(found) < 2:
        raise FileNotFoundError(
            f"{folder} must hold a sub-folder for each class, two or more; found {', '.join(found) or 'none'}."
        )
    for name, paths in found.items():
        if not paths:
            raise FileNotFoundError(f"{folder / name} holds no file of the kinds {', '.join(suffixes)}.")
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


def patients(paths: Sequence[Path], pattern: str = PATIENT) -> list[str]:
    """For each file the patient that its name carries (the pattern's first group), else the file itself."""
    found = [(path, re.match(pattern, path.name)) for path in paths]
    return [match[1] if match else f"{path.parent.name}/{path.name}" for path, match in found]


def medmnist3d(path: Path, name: str, size: int) -> dict[str, Any]:
    """A three-dimensional MedMNIST set, read by MedMNIST's own package (Yang et al. 2023).

    Returns:
        images and labels of "train" and "test", volumes (n, 1, size, size, size) uint8 with the axes as stored, and
        the names of the classes.  MedMNIST's validation split is left out: nothing here is chosen on it.

    Raises:
        files.DamagedFile: the file is not a whole npz of this kind.
        ImportError: medmnist is not installed.
    """
    medmnist = optional("medmnist")
    info = medmnist.INFO[name]
    content: dict[str, Any] = {"classes": list(info["label"].values())}
    try:
        for half in ("train", "test"):
            kind = getattr(medmnist, info["python_class"])
            part = kind(split=half, root=str(path.parent), size=size, download=False)
            content[half] = torch.from_numpy(part.imgs)[:, None], torch.from_numpy(part.labels).flatten().long()
    except Exception as error:
        raise files.DamagedFile(f"{path} cannot be read as a MedMNIST file: {error}.") from error
    return content


def read_all(paths: Sequence[Path], read: Callable[[Path], Tensor], title: str) -> Tensor:
    """`read` each file, a few at a time, with a progress bar: (n, *shape of one)."""
    from tqdm import tqdm

    quiet = os.environ.get("DDLIB_PROGRESS") == "0"
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        items = tqdm(pool.map(read, paths), desc=f"reading {title}", total=len(paths), disable=quiet, unit="file")
        together = torch.empty(0, dtype=torch.uint8)
        for index, item in enumerate(items):
            together = together if index else torch.empty((len(paths), *item.shape), dtype=torch.uint8)
            together[index] = item
    return together


# ── the cache ─────────────────────────────────────────────────────────────────────────────────────────────────


def cached(root: Path, key: dict[str, Any], sources: Sequence[Path], make: Callable[[], dict[str, Any]]) -> dict:
    """What `make()` gives, or gave before for the same key and the same files.

    The cache is one file with its checksum in `root/.cache`, or in the per-user cache folder where `root` cannot be
    written, named by the key and by this very file's code.  It holds the fingerprint of the sources, so that it is
    made anew when they change; a damaged one is set aside.  Where neither folder can be written, nothing is kept.

    Args:
        key: "name" and the options that determine the content, as JSON can write them.
    """
    mark = fingerprint(sources)
    code = files.checksum(Path(__file__))
    places = list(_cache_files(root, f"{key['name']}-{files.checksum(json.dumps([key, code]).encode())[:16]}"))
    for path in places:
        with suppress(OSError):
            try:
                content = files.load_tensors(path)
                if content["fingerprint"] == mark:
                    return content
            except files.DamagedFile:
                files.set_aside(path)
    content = {**make(), "fingerprint": mark}
    for path in places:
        with suppress(OSError):
            files.writable_folder(path.parent)
            files.save_tensors(path, content)
            break
    return content


def fingerprint(paths: Sequence[Path]) -> str:
    """A hash of the names, sizes and times of change of files."""
    states = [path.stat() for path in paths]
    told = [(p.parent.name, p.name, s.st_size, s.st_mtime_ns) for p, s in zip(paths, states, strict=True)]
    return files.checksum(json.dumps(told).encode())


def _cache_files(root: Path, name: str) -> Iterator[Path]:
    yield root / ".cache" / f"{name}.pt"
    where = files.checksum(str(root.resolve()).encode())[:8]  # two folders must not take turns in one file
    yield user_folder() / ".cache" / f"{name}-{where}.pt"


def user_folder() -> Path:
    """The per-user cache folder: `$XDG_CACHE_HOME/ddlib`, by default `~/.cache/ddlib`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddlib"


def optional(package: str) -> Any:
    """Import a package that only some data sets need.

    Raises:
        ImportError: it is not installed; says how to install it.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(f"this data set needs {package}: pip install 'ddlib[data]' ({error}).") from error
