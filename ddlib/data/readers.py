"""One file → a uint8 tensor: a photo, a NIfTI volume; and the sets that come in files of their own."""

import gzip
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import files
from ..images import stratified
from .fetch import check

PHOTOS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
VOLUMES = (".nii.gz", ".nii")
CT_WINDOW = (-1000.0, 400.0)  # Hounsfield units, from air to bone, as in the Keras CT example

Halves = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[str, ...]]  # train, test, names of the classes


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
    try:
        import nibabel
    except ImportError as error:
        raise ImportError(f"this data set needs nibabel: pip install 'ddlib[data]' ({error}).") from error
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


# ── sets in files of their own ──


def medmnist3d(place: Path, root: Path, *, size: int, classes: Sequence[str]) -> Halves:
    """A three-dimensional MedMNIST set (Yang et al. 2023): volumes (n, 1, size, size, size) with the axes as stored.

    Its validation split is left out: nothing here is chosen on it.
    """
    with np.load(place) as arrays:
        images = [torch.from_numpy(arrays[f"{half}_images"])[:, None] for half in ("train", "test")]
        labels = [torch.from_numpy(arrays[f"{half}_labels"]).flatten().long() for half in ("train", "test")]
    return (images[0], labels[0]), (images[1], labels[1]), tuple(classes)


def cifar10(place: Path, root: Path) -> Halves:
    """CIFAR-10's seven files; they are pickles, which only bytes with the published checksum may be."""
    from torchvision.datasets import CIFAR10

    for name, md5 in [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]:
        if not (place / name).exists():
            raise FileNotFoundError(f"{place / name} is missing: {place} is incomplete; delete it to fetch it again.")
        check(place / name, f"md5:{md5}")
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
