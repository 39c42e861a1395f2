"""One file → a uint8 tensor: a photo, a NIfTI volume; and the sets that come in files of their own."""

import gzip
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .._internal import files
from ..images import stratified
from .fetch import check

if TYPE_CHECKING:
    from PIL import Image

PHOTOS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
VOLUMES = (".nii.gz", ".nii", ".hdr")  # a .hdr with its .img
CT_WINDOW = (-1000.0, 400.0)  # Hounsfield units, from air to bone, as in the Keras CT example
BITS, PHOTOMETRIC, PLANES, SAMPLE_FORMAT = 258, 262, 284, 339  # numbers of TIFF tags
UNPLACED = "its sform or qform, zeros or no numbers, does not say how it lies: correct its header"

Halves = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[str, ...]]  # train, test, names of the classes


@contextmanager
def _decoding(path: Path, kind: str) -> Iterator[None]:
    """What decoders stumble upon becomes a sentence that names the file."""
    if not path.stat().st_size:
        raise files.DamagedFile(f"{path} is empty.")
    try:
        yield
    except Exception as error:  # on damaged data, decoders raise anything
        if files.reading_failed(error) and not isinstance(error, FileNotFoundError):  # a .hdr without its .img
            raise
        reason = {
            "UnidentifiedImageError": "it is not an image, or of a kind (float colours, say) that Pillow does not know",
            "DecompressionBombError": "it has too many pixels (179 million are the most): scale it down first",
            "OrientationError": UNPLACED,
            "LinAlgError": UNPLACED,
        }.get(type(error).__name__, str(error))
        raise files.DamagedFile(f"{path} cannot be decoded as {kind}: {reason}.") from error


def photo(path: Path, shape: tuple[int, int], grey: bool = False, to_srgb: bool = False) -> Tensor:
    """A photo, scaled and cropped about its centre to `shape` (H, W): uint8 (3, H, W), or (1, H, W) in grey.

    Values of 16 bits are scaled to 8, and what is transparent shows a white ground.  With `to_srgb` the colours of
    an embedded profile become those of sRGB.

    Raises:
        files.DamagedFile: it cannot be decoded, to its last byte; has several pages, or values without a known range.
    """
    from PIL import Image, ImageOps

    mode = "L" if grey else "RGB"
    with _decoding(path, "an image"), Image.open(io.BytesIO(path.read_bytes())) as picture:
        if picture.format != "MPO" and (pages := getattr(picture, "n_frames", 1)) > 1:  # MPO: a photo and its preview
            raise ValueError(f"it holds {pages} pages: save the one that counts as a file of its own")
        picture.draft(mode, (2 * max(shape),) * 2)  # a JPEG far too large is decoded at a half, a quarter, …
        upright = _opaque(_eight_bits(ImageOps.exif_transpose(picture), picture))
        upright = _srgb(upright, picture.info.get("icc_profile")) if to_srgb else upright
        pixels = np.array(ImageOps.fit(upright.convert(mode), shape[::-1], Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels).view(*shape, -1).permute(2, 0, 1)


def _eight_bits(upright: "Image.Image", picture: "Image.Image") -> "Image.Image":
    """A turned picture, its values scaled to 0 … 255 where the file says what white is; Pillow would clip them."""
    from PIL import Image

    tags = getattr(picture, "tag_v2", {})
    bits = max(tags.get(BITS, (16,)))
    deep = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM"))
    if tags.get(SAMPLE_FORMAT, (1,))[0] not in (1, 4) or (picture.mode in ("I", "F") and not deep):
        raise ValueError("its values have no known range: scale them to 0 … 255 and save it with 8 bits")
    if tags.get(PLANES) == 2 and bits > 8:
        raise ValueError("its colours lie in separate planes of 16 bits, which Pillow cannot read; save it interleaved")
    if not deep:
        return upright
    raw = np.asarray(upright).astype(np.float32)
    levels = np.round(raw * (255 / (2**bits - 1))).astype(np.uint8)
    grey = Image.fromarray(255 - levels if tags.get(PHOTOMETRIC) == 0 else levels)  # 0: white is zero
    if (clear := picture.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(raw == clear, 0, 255).astype(np.uint8)))
    return grey


def _opaque(picture: "Image.Image") -> "Image.Image":
    """A picture on a white ground where it is transparent, on black where all of it would be white."""
    from PIL import Image

    if not picture.has_transparency_data:
        return picture
    picture = picture.convert("RGBA")
    pages = (Image.alpha_composite(Image.new("RGBA", picture.size, ground), picture) for ground in ("white", "black"))
    white = next(pages)
    return white if any(high - low > 8 for low, high in white.convert("RGB").getextrema()) else next(pages)


def _srgb(picture: "Image.Image", profile: bytes | None) -> "Image.Image":
    """A picture in the colours of sRGB; as it is where it has no profile, or one that cannot be used."""
    from PIL import ImageCms

    with suppress(ImageCms.PyCMSError, OSError, ImportError):
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile or b""))
        if "sRGB" not in ImageCms.getProfileDescription(own):
            picture = picture if picture.mode in ("L", "CMYK", "LAB") else picture.convert("RGB")
            return ImageCms.profileToProfile(picture, own, ImageCms.createProfile("sRGB"), outputMode="RGB")
    return picture


def voxels(path: Path) -> Tensor:
    """The values of a NIfTI volume (one file, or .hdr and .img): float32 (H, W, D).

    H, W and D are the volume's own axes, turned to point to the patient's right, front and head, so that volumes
    from different scanners lie alike.

    Raises:
        files.DamagedFile: it cannot be decoded, fails the checksum in its .gz, has not three axes, or colours.
        ImportError: nibabel is not installed.
    """
    try:
        import nibabel
    except ImportError as error:
        raise ImportError(f"this data set needs nibabel: pip install 'ddlib[data]' ({error}).") from error
    with _decoding(path, "a NIfTI volume"):
        if path.suffix.lower() == ".gz":
            gzip.decompress(path.read_bytes())  # holds it to its checksum, which nibabel does not
        image = nibabel.as_closest_canonical(nibabel.load(path))
        if image.get_data_dtype().kind not in "iuf":
            raise ValueError("its voxels are colours or complex numbers; a volume has one real number each")
        values = torch.from_numpy(np.ascontiguousarray(image.dataobj, dtype=np.float32))
        if values.ndim < 3 or values.shape[:3].numel() != values.numel():
            raise ValueError(f"a volume has three axes, this has shape {tuple(values.shape)}")
        return values.flatten(2)


def levels(
    voxels: Tensor, shape: tuple[int, int, int], window: tuple[float, float] = CT_WINDOW, area: bool = True
) -> Tensor:
    """Values (H, W, D) clipped to `window` and resampled to `shape`: uint8 (1, *shape).

    An axis that grows is interpolated linearly; one that shrinks is averaged, so that nothing vanishes between two
    samples.  Without `area` it is sampled, as the records of the registered sets were made.
    """
    low, high = window
    grey = (voxels.nan_to_num(low).clamp(low, high) - low) * (255 / (high - low))
    if not area:
        return F.interpolate(grey[None, None], shape, mode="trilinear", align_corners=False)[0].round().byte()
    for length, size in zip(grey.shape, shape, strict=True):  # each time the first axis, which becomes the last
        grey = torch.tensordot(grey, _weights(length, size), dims=([0], [0]))
    return grey.round().byte()[None]


def _weights(length: int, size: int) -> Tensor:
    """How much of each old sample is in each new one, (length, size)."""
    if size >= length:
        each = torch.eye(length, dtype=torch.float32)[None]
        return F.interpolate(each, size, mode="linear", align_corners=False)[0]
    edges = torch.arange(size + 1, dtype=torch.float64) * (length / size)
    old = torch.arange(length, dtype=torch.float64)[:, None]
    overlap = torch.minimum(edges[1:], old + 1) - torch.maximum(edges[:-1], old)
    return (overlap.clamp_min(0) * (size / length)).float()


# ── sets in files of their own ──


def medmnist3d(place: Path, root: Path, *, size: int, classes: Sequence[str]) -> Halves:
    """A three-dimensional MedMNIST set (Yang et al. 2023): volumes (n, 1, size, size, size) with the axes as stored.

    Its validation split is left out: nothing here is chosen on it.
    """
    with np.load(place) as arrays:
        images = [torch.from_numpy(arrays[f"{half}_images"])[:, None] for half in ("train", "test")]
        labels = [torch.from_numpy(arrays[f"{half}_labels"]).flatten().long() for half in ("train", "test")]
    if images[0].shape[-1] != size:
        raise ValueError(f"size of {place.name} must be {images[0].shape[-1]}, got {size}.")
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
