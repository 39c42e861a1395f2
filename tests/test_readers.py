"""Files → tensors: every layout, the cache, the split by patient, and files that cannot be read."""

import errno
import gzip
import json
import os
import pickle
import re
import shutil
import struct
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

import ddlib
from ddlib import files
from ddlib.data import folders, readers, splits
from ddlib.data import sets as datasets
from ddlib.data.fetch import Remote

nibabel = pytest.importorskip("nibabel")
RANDOM = np.random.default_rng(0)


# ── made-up files ──


def write_photo(path: Path, shape=(24, 30), mode="RGB", **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RANDOM.integers(0, 256, (*shape, 3) if mode == "RGB" else shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def write_volume(path: Path, voxels=None, affine=None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = RANDOM.integers(-1000, 400, (8, 6, 4)).astype(np.int16) if voxels is None else voxels
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)


def flowers(root: Path, each: int = 5) -> Path:
    folder = root / "flower_photos"
    for kind in ("daisy", "dandelion", "roses", "sunflowers", "tulips"):
        for n in range(each):
            write_photo(folder / kind / f"{n}.jpg", shape=(20 + n, 30 - n))
    (folder / "LICENSE.txt").write_text("CC BY")
    return folder


def scans(folder: Path, classes=("CT-0", "CT-23"), each: int = 5) -> Path:
    for name in classes:
        for n in range(each):
            write_volume(folder / name / f"study_{n:04d}.nii.gz")
    return folder


# ── one photo ──


def photo(path: Path, shape=(8, 8), **how) -> torch.Tensor:
    return readers.photo(path, shape, **how)


def test_photo_is_cut_about_its_centre(tmp_path):
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = (255, 0, 128)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    found = photo(tmp_path / "wide.png", (10, 10))
    assert found.shape == (3, 10, 10)
    assert found.dtype == torch.uint8
    assert found.flatten(1).float().mean(1).tolist() == [255, 0, 128]
    assert photo(tmp_path / "wide.png", (5, 15), grey=True).shape == (1, 5, 15)


def test_large_jpegs_and_turned_ones(tmp_path):
    ramp = np.broadcast_to(np.linspace(0, 255, 800)[None, :, None], (600, 800, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side: to be turned by 90°
    Image.fromarray(ramp).save(tmp_path / "level.jpg", quality=95)
    Image.fromarray(ramp).save(tmp_path / "turned.jpg", quality=95, exif=exif)
    level, turned = (photo(tmp_path / f"{n}.jpg", (32, 32)).float() for n in ("level", "turned"))
    assert (level - torch.linspace(36, 219, 32)).abs().max() < 8
    assert (turned - level.mT).abs().max() < 8


RAMP = np.broadcast_to(np.linspace(0, 65535, 32).astype(np.uint16), (32, 32)).copy()
COLOURS = np.stack([RAMP, RAMP[::-1].copy(), 65535 - RAMP], -1)


def tiff(path: Path, pixels: np.ndarray, order="<", **tags) -> None:
    """A TIFF of one strip, by hand: Pillow writes few of its kinds."""
    height, width, *colours = pixels.shape
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    values = {256: width, 257: height, 258: 8 * pixels.dtype.itemsize, 259: 1, 262: 2 if colours else 1, 273: 8}
    values |= {277: 3 if colours else 1, 278: height, 279: len(data), 284: 1, 339: kind}
    values |= {int(tag[1:]): value for tag, value in tags.items()}
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in sorted(values.items()))
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(data))
    path.write_bytes(head + data + struct.pack(order + "H", len(values)) + entries + bytes(4))


def twelve_bits(pixels: np.ndarray) -> np.ndarray:
    """Two pixels in three bytes."""
    a, b = pixels[:, ::2], pixels[:, 1::2]
    return np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], -1).astype(np.uint8).reshape(len(pixels), -1)


DEEP = {
    "png": lambda path: Image.fromarray(RAMP).save(path, "PNG"),
    "pgm": lambda path: Image.fromarray(RAMP).save(path, "PPM"),
    "pgm of 12 bits": lambda path: path.write_bytes(b"P5 32 32 4095\n" + (RAMP >> 4).astype(">u2").tobytes()),
    "tiff": lambda path: tiff(path, RAMP),
    "tiff of 12 bits": lambda path: tiff(path, twelve_bits(RAMP >> 4), t256=32, t258=12),
    "tiff whose white is zero": lambda path: tiff(path, 65535 - RAMP, t262=0),
    "colour tiff": lambda path: tiff(path, np.stack([RAMP] * 3, -1), ">"),
    "colour ppm": lambda path: path.write_bytes(b"P6 32 32 65535\n" + np.stack([RAMP] * 3, -1).astype(">u2").tobytes()),
}


@pytest.mark.parametrize("kind", DEEP)
def test_sixteen_bits_are_scaled(tmp_path, kind):
    DEEP[kind](tmp_path / "deep.tif")
    for grey in (True, False):
        found = photo(tmp_path / "deep.tif", (32, 32), grey=grey).float()
        assert (found - torch.tensor(RAMP / 257)).abs().max() <= 1


def cut_short(path: Path, kind: str) -> None:
    write_photo(path, (60, 60), format=kind)
    path.write_bytes(path.read_bytes()[:-500])


NO_PHOTO = {
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "html": (lambda path: path.write_text("<html>not found</html>" * 99), "it is not an image"),
    "float": (lambda path: tiff(path, RAMP.astype(np.float32)), "no known range: scale them to 0"),
    "int16": (lambda path: tiff(path, (RAMP // 2).astype(np.int16)), "no known range: scale them to 0"),
    "float colours": (lambda path: tiff(path, COLOURS.astype(np.float32)), "it is not an image.*float colours"),
    "planes": (lambda path: tiff(path, COLOURS, t284=2), "separate planes of 16 bits"),
    "pages": (
        lambda path: Image.fromarray(RAMP).save(path, "TIFF", save_all=True, append_images=[Image.fromarray(RAMP)] * 4),
        "it holds 5 pages: save the one that counts",
    ),
    "too large": (lambda path: Image.new("1", (14_000, 13_000)).save(path, "PNG"), "too many pixels.*scale it down"),
    "cut png": (lambda path: cut_short(path, "PNG"), "cannot be decoded as an image"),
    "cut jpeg": (lambda path: cut_short(path, "JPEG"), "cannot be decoded as an image"),
}


@pytest.mark.parametrize("kind", NO_PHOTO)
def test_what_is_no_photo_is_refused_in_a_sentence(tmp_path, kind):
    write, words = NO_PHOTO[kind]
    write(tmp_path / "photo.png")
    with pytest.raises(files.DamagedFile, match=f"{re.escape(str(tmp_path / 'photo.png'))}.*{words}") as caught:
        photo(tmp_path / "photo.png")
    assert " at 0x" not in str(caught.value)


def square(mode: str, inside, outside) -> Image.Image:
    """A square of 8 pixels in the middle of a picture of 16."""
    picture = Image.new(mode, (16, 16), outside)
    picture.paste(inside, (4, 4, 12, 12))
    return picture


def palette() -> Image.Image:
    picture = square("P", 1, 0)
    picture.putpalette([9, 9, 9, 9, 9, 9])
    picture.info["transparency"] = 0
    return picture


CLEAR = {
    "RGBA": (square("RGBA", (0, 0, 0, 255), (0, 0, 0, 0)), {}, 0, 255),
    "white on nothing": (square("RGBA", (255, 255, 255, 255), (255, 255, 255, 0)), {}, 255, 0),
    "half": (square("RGBA", (0, 0, 0, 128), (0, 0, 0, 0)), {}, 127, 255),
    "LA": (square("LA", (40, 255), (40, 0)), {}, 40, 255),
    "palette": (palette(), {"transparency": 0}, 9, 255),
    "RGB and a clear colour": (square("RGB", (10, 10, 10), (11, 11, 11)), {"transparency": (11, 11, 11)}, 10, 255),
    "16 bits and a clear level": (square("I;16", 10 * 257, 11), {"transparency": 11}, 10, 255),
}


@pytest.mark.parametrize("kind", CLEAR)
def test_what_is_transparent_shows_a_ground(tmp_path, kind):
    picture, how, inside, outside = CLEAR[kind]
    picture.save(tmp_path / "clear.png", **how)
    for grey in (True, False):
        found = photo(tmp_path / "clear.png", (16, 16), grey=grey).int()
        assert (found[:, 8, 8] - inside).abs().max() <= 1
        assert (found[:, 0, 0] - outside).abs().max() <= 1


def test_colours_of_an_embedded_profile_become_those_of_srgb(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "grbG".encode("utf-16-be"))  # of its description
    for kind, profile in {"with": swapped, "srgb": srgb, "without": None, "damaged": b"no profile"}.items():
        Image.new("RGB", (9, 9), (200, 40, 10)).save(tmp_path / f"{kind}.png", icc_profile=profile)
        found = photo(tmp_path / f"{kind}.png", to_srgb=True)[:, 0, 0].int()
        expected = [40, 200, 10] if kind == "with" else [200, 40, 10]
        assert (found - torch.tensor(expected)).abs().max() <= (1 if kind == "with" else 0), kind
        assert photo(tmp_path / f"{kind}.png")[:, 0, 0].tolist() == [200, 40, 10]


# ── one volume ──


def volume(path: Path, shape=(4, 4, 4), *how, **options) -> torch.Tensor:
    return readers.levels(readers.voxels(path), shape, *how, **options)


def test_volume_window(tmp_path):
    voxels = np.array([-2000, -1000, -300, 400, 3000, np.nan, 0, np.inf], np.float32).reshape(2, 2, 2)
    write_volume(tmp_path / "v.nii.gz", voxels)
    found = volume(tmp_path / "v.nii.gz", (2, 2, 2))
    assert found.shape == (1, 2, 2, 2)
    assert found.flatten().tolist() == [0, 0, 128, 255, 255, 0, 182, 255]
    assert volume(tmp_path / "v.nii.gz", (2, 2, 2), (0.0, 3000.0)).flatten().tolist()[3:5] == [34, 255]


def test_volume_axes_and_resampling(tmp_path):
    ramp = np.linspace(-1000, 400, 12)
    for axis in range(3):
        shape = [4, 6, 8]
        shape[axis] = 12
        view = [1, 1, 1]
        view[axis] = 12
        write_volume(tmp_path / f"{axis}.nii", np.broadcast_to(ramp.reshape(view), shape).astype(np.int16))
        for area in (True, False):
            found = volume(tmp_path / f"{axis}.nii", (6, 6, 6), area=area)[0].movedim(axis, 0).flatten(1).float()
            assert (found - found[:, :1]).abs().max() == 0
            assert (found[:, 0] - torch.linspace(11.6, 243.4, 6)).abs().max() <= 1


def test_what_lies_between_samples_does_not_vanish(tmp_path):
    voxels = np.full((16, 16, 160), -1000, np.int16)
    voxels[..., 41:44] = 400
    write_volume(tmp_path / "v.nii", voxels)
    assert volume(tmp_path / "v.nii", (16, 16, 16)).float().mean().item() == pytest.approx(4.78, abs=0.05)
    assert volume(tmp_path / "v.nii", (16, 16, 16), area=False).max() == 0


@given(st.lists(st.integers(1, 9), min_size=3, max_size=3), st.lists(st.integers(1, 9), min_size=3, max_size=3))
def test_smaller_volumes_keep_their_mean_and_equal_ones_their_values(old, new):
    new = [min(a, b) for a, b in zip(old, new, strict=True)]
    voxels = torch.rand(old, generator=torch.Generator().manual_seed(sum(old)))
    found = readers.levels(voxels, new, (0.0, 1.0))[0]
    assert list(found.shape) == new
    assert abs(found.float().mean() / 255 - voxels.mean()) < 0.5 / 255 + 1e-6
    assert torch.equal(readers.levels(voxels, old, (0.0, 1.0))[0], (voxels * 255).round().byte())
    assert readers.levels(torch.full(old, 0.2), [9, 1, 4], (0.0, 1.0)).unique().tolist() == [51]


def test_volumes_of_different_orientation_lie_alike(tmp_path):
    voxels = RANDOM.integers(-1000, 400, (4, 5, 6)).astype(np.float32)
    write_volume(tmp_path / "ras.nii.gz", voxels)
    write_volume(tmp_path / "lps.nii.gz", voxels[::-1, ::-1], np.diag([-1.0, -1, 1, 1]))
    expected = volume(tmp_path / "ras.nii.gz", (4, 5, 6))
    assert torch.equal(volume(tmp_path / "lps.nii.gz", (4, 5, 6)), expected)


VOXELS = RANDOM.integers(-1000, 400, (4, 5, 6)).astype(np.int16)
KINDS = {
    "v.nii": lambda v, path: nibabel.save(nibabel.Nifti1Image(v, np.eye(4)), path),
    "v.nii.gz": lambda v, path: nibabel.save(nibabel.Nifti2Image(v, np.eye(4)), path),
    "v.hdr": lambda v, path: nibabel.save(nibabel.Nifti1Pair(v, np.eye(4)), path),
    "big.nii": lambda v, path: nibabel.save(
        nibabel.Nifti1Image(v, np.eye(4), nibabel.Nifti1Header(endianness=">")), path
    ),
    "one.nii": lambda v, path: nibabel.save(nibabel.Nifti1Image(v[..., None], np.eye(4)), path),
    "v.NII.GZ": lambda v, path: path.write_bytes(gzip.compress(nibabel.Nifti1Image(v, np.eye(4)).to_bytes())),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_volumes(tmp_path, name):
    KINDS[name](VOXELS, tmp_path / name)
    write_volume(tmp_path / "plain.nii", VOXELS)
    assert torch.equal(volume(tmp_path / name, (4, 5, 6)), volume(tmp_path / "plain.nii", (4, 5, 6)))


WHOLE = nibabel.Nifti1Image(VOXELS, np.eye(4)).to_bytes()
UNPLACED = [WHOLE[:280] + np.full(12, row, "<f4").tobytes() + WHOLE[328:] for row in (0, np.nan)]  # its sform
NO_VOLUME = {
    "four axes": ("v.nii", np.zeros((3, 3, 3, 2), np.int16), r"three axes, this has shape \(3, 3, 3, 2\)"),
    "two axes": ("v.nii", np.zeros((3, 3), np.int16), r"three axes, this has shape \(3, 3\)"),
    "colours": ("v.nii", np.zeros((3, 3, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "colours"),
    "complex": ("v.nii", np.zeros((3, 3, 3), np.complex64), "complex"),
    "zeros for axes": ("v.nii", UNPLACED[0], "its sform or qform.* does not say how it lies"),
    "NaN for axes": ("v.nii", UNPLACED[1], "its sform or qform.* does not say how it lies"),
    "cut": ("v.nii", WHOLE[:-20], ""),
    "cut gzip": ("v.nii.gz", gzip.compress(WHOLE)[:-20], ""),
    "no .img": ("v.hdr", nibabel.Nifti1Pair(VOXELS, np.eye(4)).header.binaryblock, ""),
}


@pytest.mark.parametrize("kind", NO_VOLUME)
def test_what_is_no_volume_is_refused_in_a_sentence(tmp_path, kind):
    name, content, words = NO_VOLUME[kind]
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else write_volume(path, content)
    told = f"{re.escape(str(path))} cannot be decoded as a NIfTI volume: .*{words}"
    with pytest.raises(files.DamagedFile, match=told):
        volume(path)


def test_volumes_do_not_depend_on_the_default_dtype(tmp_path):
    write_volume(tmp_path / "v.nii", VOXELS)
    usual = volume(tmp_path / "v.nii", (8, 3, 6))
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(volume(tmp_path / "v.nii", (8, 3, 6)), usual)
    finally:
        torch.set_default_dtype(torch.float32)


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    with pytest.raises(ImportError, match=r"needs nibabel: pip install 'ddlib\[data\]'"):
        volume(Path("v.nii"))


def test_a_file_that_could_not_be_read_is_not_a_damaged_one(tmp_path, monkeypatch):
    def fail(path):
        raise OSError(errno.EMFILE, "too many open files")

    write_volume(tmp_path / "v.nii.gz", VOXELS)
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OSError, match="too many open files"):
        volume(tmp_path / "v.nii.gz")


# ── class folders ──


def test_listing(tmp_path):
    for name in ("b/2.jpg", "b/10.JPG", "b/.hidden.jpg", "a/1.jpeg", "a/notes.txt", "a/x_Ambient.jpg", ".cache/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    listing = folders.list_classes(tmp_path, (".jpg", ".jpeg"), leave_out="*_Ambient*")
    assert [p.relative_to(tmp_path).as_posix() for p in listing.paths] == ["a/1.jpeg", "b/10.JPG", "b/2.jpg"]
    assert listing.labels.tolist() == [0, 1, 1]
    assert listing.classes == ("a", "b")


def test_listing_of_what_is_incomplete(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} must hold a sub-folder for each class.*none"):
        folders.list_classes(tmp_path, (".jpg",))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_text("")
    with pytest.raises(FileNotFoundError, match="two or more; found: a"):
        folders.list_classes(tmp_path, (".jpg",))
    (tmp_path / "b").mkdir()
    with pytest.raises(FileNotFoundError, match=r"b holds no file of the kinds \.jpg"):
        folders.list_classes(tmp_path, (".jpg",))


# ── two sides ──


def split_of(labels, whose, fraction, seed):
    return splits.split(torch.tensor(labels), list(map(str, range(max(labels) + 1))), whose, fraction, seed)


def test_patients():
    names = ["LIDC-IDRI-0012_R_10.nii.gz", "LIDC-IDRI-0012_R_2.nii.gz", "P_R_1_R_2.png", "study_0001.nii.gz"]
    found = splits.patients(Path("/data"), [Path("/data/CT-0") / name for name in names])
    assert found == ["LIDC-IDRI-0012", "LIDC-IDRI-0012", "P_R_1", "CT-0/study_0001.nii.gz"]


@given(st.integers(0, 1000), st.integers(40, 200), st.sampled_from([0.1, 0.2, 0.5]))
def test_no_patient_is_on_both_sides(seed, count, fraction):
    random = np.random.default_rng(seed)
    labels = random.choice(3, 300, p=[0.5, 0.3, 0.2])
    whose = [f"P{n}" for n in random.integers(0, count, 300)]
    train, test = split_of(labels.tolist(), whose, fraction, seed)
    assert not {whose[i] for i in train} & {whose[i] for i in test}
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(300))
    shares = np.bincount(labels[test], minlength=3) / np.bincount(labels)
    largest = max(whose.count(patient) for patient in whose)
    assert abs(shares - fraction).max() < largest / np.bincount(labels).min()


@pytest.mark.parametrize("fraction", [0.01, 0.99])
@given(counts=st.lists(st.integers(2, 6), min_size=2, max_size=5), seed=st.integers(0, 99))
def test_two_files_of_a_class_are_one_and_one(fraction, counts, seed):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    train, test = split_of(labels, list(map(str, range(len(labels)))), fraction, seed)
    for side in (train, test):
        assert set(torch.tensor(labels)[side].tolist()) == set(range(len(counts)))
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(len(labels)))


def test_split_of_too_few():
    with pytest.raises(ValueError, match=r"class '1' has too few patients.*test share of 0\.2: 1"):
        split_of([0] * 10 + [1] * 3, [*map(str, range(10)), "a", "a", "a"], 0.2, 0)
    shared = ["a", "b", "a", "b"]  # either patient has both classes
    assert [len(side) for side in split_of([0, 0, 1, 1], shared, 0.2, 0)] == [2, 2]


def test_who_shares_an_image_is_together():
    found = splits.together(["a", "b", "c", "d", "e", "c"], ["1", "2", "1", "3", "2", "4"])
    assert found == ["a", "b", "a", "d", "b", "a"]
    names = [f"P{n}" for n in (5, 3, 9, 3)]
    assert splits.together(names, list("abcd")) == names


# ── the cache ──


@pytest.fixture
def counted(monkeypatch):
    """How many photos have been read."""
    calls = []
    read = readers.photo
    monkeypatch.setattr(folders, "photo", lambda path, **how: (calls.append(path), read(path, **how))[1])
    return calls


def test_second_start_reads_no_photo(tmp_path, counted):
    flowers(tmp_path)
    first = ddlib.load_dataset("tf_flowers", tmp_path, size=16)
    assert len(counted) == 25
    second = ddlib.load_dataset("tf_flowers", tmp_path, size=16)
    other = ddlib.load_dataset("tf_flowers", tmp_path, size=16, split_seed=1)
    assert len(counted) == 25
    assert torch.equal(first.train.images, second.train.images)
    assert torch.equal(first.train.mean, second.train.mean)
    assert not torch.equal(first.test.images, other.test.images)
    assert len(list((tmp_path / ".cache").iterdir())) == 1
    ddlib.load_dataset("tf_flowers", tmp_path, size=8)
    assert len(counted) == 50


@pytest.mark.parametrize("change", ["more", "fewer", "other", "touched"])
def test_a_changed_folder_is_read_anew(tmp_path, counted, change):
    folder = flowers(tmp_path)
    before = ddlib.load_dataset("tf_flowers", tmp_path, size=16)
    photo = folder / "roses" / "3.jpg"
    match change:
        case "more":
            write_photo(folder / "roses" / "5.jpg")
        case "fewer":
            photo.unlink()
        case "other":
            write_photo(photo)
        case "touched":
            os.utime(photo, ns=(0, 0))
    after = ddlib.load_dataset("tf_flowers", tmp_path, size=16)
    assert len(counted) == 25 + {"more": 26, "fewer": 24}.get(change, 25)
    sizes = [len(data.train) + len(data.test) for data in (before, after)]
    assert sizes[1] - sizes[0] == {"more": 1, "fewer": -1}.get(change, 0)
    assert len(list((tmp_path / ".cache").iterdir())) == 1


def test_a_damaged_cache_is_made_anew(tmp_path, counted):
    flowers(tmp_path)
    first = ddlib.load_dataset("tf_flowers", tmp_path, size=16)
    (cache,) = (tmp_path / ".cache").iterdir()
    cache.write_bytes(cache.read_bytes()[:-100])
    for _ in range(2):
        second = ddlib.load_dataset("tf_flowers", tmp_path, size=16)
        assert len(counted) == 50
        assert torch.equal(first.train.images, second.train.images)
    assert list((tmp_path / ".cache").iterdir()) == [cache]


def test_without_a_cache_that_can_be_written_files_are_read_each_time(tmp_path, counted):
    flowers(tmp_path)
    (tmp_path / ".cache").write_text("in the way, as permissions would be")
    for _ in range(2):
        ddlib.load_dataset("tf_flowers", tmp_path, size=16)
    assert len(counted) == 50


# ── every layout ──


def test_tf_flowers(tmp_path):
    flowers(tmp_path, each=10)
    data = ddlib.load_dataset("tf_flowers", tmp_path)
    assert data.train.images.shape == (40, 3, 128, 128)
    assert data.test.labels.bincount().tolist() == [2] * 5
    assert data.classes == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    assert data.train.flip_axes == (1,)


def test_faces(tmp_path):
    for person in ("yaleB01", "yaleB02", "yaleB39"):
        for n in range(5):
            write_photo(tmp_path / "CroppedYale" / person / f"{person}_P00A+000E+{n:02d}.pgm", (192, 168), "L")
        write_photo(tmp_path / "CroppedYale" / person / f"{person}_P00_Ambient.pgm", (480, 640), "L")
        (tmp_path / "CroppedYale" / person / f"{person}_P00A+050E-40.pgm.bad").write_text("")
        (tmp_path / "CroppedYale" / person / f"{person}_P00.info").write_text("")
    data = ddlib.load_dataset("faces", tmp_path)
    assert data.train.images.shape == (12, 1, 96, 84)
    assert len(data.test) == 3
    assert data.train.flip_axes == ()
    whole = ddlib.Decomposition.regions(data.image_shape, data.regions)
    assert {"left eye", "right eye", "nose", "mouth"} <= set(whole.names)
    double = ddlib.load_dataset("faces", tmp_path, shape=(192, 168))
    twice = ddlib.Decomposition.regions(double.image_shape, double.regions)
    assert [[2 * v for v in side] for window in whole.bounds for side in window] == [
        list(side) for window in twice.bounds for side in window
    ]
    eyes = [data.regions[f"{side} eye"] for side in ("left", "right")]
    assert [eyes[1][1], eyes[1][0]] == [tuple(84 - v for v in eyes[0][1][::-1]), eyes[0][0]]  # mirror images
    assert data.few(6).regions == data.regions


@pytest.mark.parametrize("layout", ["mosmed", "COVID19_1110/studies"])
def test_mosmed(tmp_path, layout):
    scans(tmp_path / layout)
    write_volume(tmp_path / layout / "masks" / "study_0001_mask.nii.gz")
    data = ddlib.load_dataset("mosmed", tmp_path, shape=[8, 8, 4])
    assert data.train.images.shape == (8, 1, 8, 8, 4)
    assert data.classes == ("CT-0", "CT-23")
    assert data.train.flip_axes == (0,)


def nodules(folder: Path) -> None:
    for patient in range(12):
        for n in range(1 + patient % 3):
            kind = ("benign", "malignant")[(patient + n) % 2]
            write_volume(folder / kind / f"LIDC-IDRI-{patient:04d}_R_{n}.nii.gz")


def sides(data: ddlib.ImageSet, folder: Path) -> list[set[str]]:
    """The patients of the training and the test volumes, found again by their content."""
    shape = data.image_shape
    known = {volume(p, shape).numpy().tobytes(): p.name.split("_R_")[0] for p in folder.rglob("*.nii.gz")}
    return [{known[image.numpy().tobytes()] for image in half.images} for half in (data.train, data.test)]


def test_lidc_nodules_are_split_by_patient(tmp_path):
    nodules(tmp_path / "lidc_nodules")
    for seed in range(3):
        data = ddlib.load_dataset("lidc_nodules", tmp_path, shape=(8, 6, 4), split_seed=seed)
        train, test = sides(data, tmp_path / "lidc_nodules")
        assert train
        assert test
        assert not train & test
    assert "stand-in" in datasets.DATASETS["lidc_nodules"].about


def test_own_folders(tmp_path):
    for kind in ("cats", "dogs"):
        for n in range(4):
            write_photo(tmp_path / "mine" / kind / f"{n}.png")
    nodules(tmp_path / "volumes")
    photos = ddlib.load_dataset(
        "image_folder", path=tmp_path / "mine", root=tmp_path, size=12, grey=True, test_fraction=0.5, flip_axes=[]
    )
    assert photos.train.images.shape == photos.test.images.shape == (4, 1, 12, 12)
    assert (photos.classes, photos.train.flip_axes) == (("cats", "dogs"), ())
    volumes = ddlib.load_dataset("volume_folder", tmp_path, path="volumes", shape=(8, 6, 4), window=[-900, 300])
    assert volumes.channels == 1
    usual = ddlib.load_dataset("volume_folder", tmp_path, path="volumes", shape=(8, 6, 4))
    assert volumes.train.mean != usual.train.mean
    train, test = sides(usual, tmp_path / "volumes")
    assert not train & test
    for data in (photos, volumes, usual):
        again = pickle.loads(pickle.dumps(data.source))()
        assert torch.equal(again.train.images, data.train.images)
        json.dumps(data.source.keywords)  # for a record's provenance
    assert len(list((tmp_path / ".cache").iterdir())) == 3


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("tf_flowers", {"size": 0}, "size must be a whole number ≥ 1, got 0"),
        ("faces", {"shape": 96}, r"shape must be a list of numbers, like \[96, 84\], got 96"),
        ("mosmed", {"shape": (64, 64)}, r"like \[128, 128, 64\]"),
        ("image_folder", {}, "image_folder needs path=…"),
        ("image_folder", {"path": "x", "test_fraction": 1}, "must be a number above 0 and at most 0.99, got 1"),
        ("image_folder", {"path": "x", "flip_axes": 1}, r"flip_axes must be a list of numbers, like \[1\], got 1"),
        ("image_folder", {"path": "x", "patient": "("}, "patient must be a regular expression"),
        ("volume_folder", {"path": "x", "window": (400, -1000)}, "end of the window must be .* above 400.0, got -1000"),
    ],
)
def test_wrong_options(tmp_path, name, options, told):
    with pytest.raises(ValueError, match=told):
        ddlib.load_dataset(name, tmp_path, **options)


# ── folders of one's own: what is found there, and what is said of it ──


def fill(folder: Path, **counts: int) -> Path:
    """Photos in class folders; `__` is a separator of folders."""
    for name, count in counts.items():
        for n in range(count):
            write_photo(folder / name.replace("__", "/") / f"{n}.png")
    return folder


def load(folder: Path, name: str = "image_folder", **options) -> tuple[ddlib.ImageSet, str]:
    """The photos or volumes of a folder, and what was said about it."""
    how = {"size": 8} if name == "image_folder" else {"shape": (4, 5, 6)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = ddlib.load_dataset(name, folder.parent, path=folder.name, **how | options)
    assert len(caught) <= 1
    return data, str(caught[0].message) if caught else ""


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("Training", "valid")])
def test_a_split_that_is_there_is_used(tmp_path, train, test):
    halves = {f"{train}__cat": 7, f"{train}__dog": 5, f"{test}__cat": 2, f"{test}__dog": 3}
    data, said = load(fill(tmp_path / "pets", **halves, **{train: 3, test: 3}))
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [0] * 7 + [1] * 5
    assert data.test.labels.tolist() == [0] * 2 + [1] * 3
    assert torch.equal(data.test.images[4], photo(tmp_path / "pets" / test / "dog" / "2.png"))
    assert f"{train}/ (12 files) and {test}/ (5 files) are the two halves" in said
    assert "patients" not in said  # of files that are called the same
    assert f"3 .png in {train}/" in said
    assert f"3 .png in {test}/" in said


def test_of_three_halves_the_test_half_is_taken_and_the_third_is_counted(tmp_path):
    counts = {f"{half}__{kind}": 2 for half in ("train", "val", "test") for kind in ("cat", "dog")}
    data, said = load(fill(tmp_path / "pets", **counts))
    assert len(data.train) == len(data.test) == 4
    assert "2 .png in val/cat/, 2 .png in val/dog/" in said
    fill(tmp_path / "other", train__cat=2, train__dog=2, test__cat=2, test__cow=2)
    with pytest.raises(FileNotFoundError, match=r"same classes, got .*dog.* and .*cow"):
        load(tmp_path / "other")
    fill(tmp_path / "flat", train__cat=2, train__dog=2, test=2)
    for left_out, words in {"": r"and \(\); to split one of them instead, give ", "test": r"found: train \("}.items():
        with pytest.raises(FileNotFoundError, match=f"{words}path={tmp_path}/flat/train"):
            load(tmp_path / "flat", leave_out=left_out)
    data, said = load(fill(tmp_path / "traffic", train=4, bus=4, test=4))  # three classes that are called so
    assert (data.classes, said) == (("bus", "test", "train"), "")


def test_what_is_left_out_is_counted(tmp_path):
    folder = fill(tmp_path / "pets", cat=4, dog=4, cat__persian=3)
    for name in ("a.gif", "b.gif", "c.avif", "d.tga", "README"):
        (folder / "cat" / name).write_bytes(b"x")
    (folder / "notes.txt").write_text("")
    (folder / ".hidden").write_text("")
    for suffix in ("jfif", "JPE"):
        write_photo(folder / "dog" / f"x.{suffix}", format="JPEG")
    data, said = load(folder, test_fraction=0.5)
    assert len(data.train) + len(data.test) == 10
    found = "1 .avif in cat/, 2 .gif in cat/, 3 .png in cat/persian/, 1 .tga in cat/, 1 .txt in ./, 1 nameless in cat/"
    assert f"left out are {found} (" in said
    assert load(folder, leave_out="*.gif,*.avif,*.tga,README,persian,*.txt")[1] == ""
    fewer = load(folder, leave_out="dog/1.*")[0]
    assert len(fewer.train) + len(fewer.test) == 9


def test_masks_are_told_and_can_be_left_out(tmp_path):
    for kind in ("benign", "malignant"):
        for n in range(4):
            for part in ("0000", "seg"):
                write_volume(tmp_path / "ct" / kind / f"case{n}_{part}.nii.gz")
    assert "8 files may be masks, such as case0_seg.nii.gz (leave_out=" in load(tmp_path / "ct", "volume_folder")[1]
    data, said = load(tmp_path / "ct", "volume_folder", leave_out="*_seg.*")
    assert (len(data.train) + len(data.test), said) == (8, "")


@pytest.mark.parametrize("case", [str.lower, str.upper])
def test_pairs_are_one_volume_each(tmp_path, case):
    def pair(voxels, path):
        KINDS["v.hdr"](voxels, path.with_suffix(".hdr"))
        for end in (".hdr", ".img"):
            path.with_suffix(end).rename(path.with_suffix(case(end)))

    for kind in ("a", "b"):
        (tmp_path / "ct" / kind).mkdir(parents=True)
        for n in range(3):
            pair(RANDOM.integers(-1000, 400, (4, 5, 6)).astype(np.int16), tmp_path / "ct" / kind / str(n))
    before, said = load(tmp_path / "ct", "volume_folder")
    assert (len(before.train) + len(before.test), said) == (6, "")
    pair(VOXELS, tmp_path / "other")
    os.replace(tmp_path / case("other.img").replace("OTHER", "other"), tmp_path / "ct" / "a" / case("0.img"))
    assert load(tmp_path / "ct", "volume_folder")[0].digest != before.digest


def test_voxels_of_other_sizes_are_told(tmp_path):
    for number, edge in enumerate((1, 1.5, 1, 5)):
        write_volume(tmp_path / "ct" / "ab"[number % 2] / f"{number}.nii", affine=np.diag([edge, 1, 1, 1]))
    assert "ct: voxels measure from 1×1×1 to 1×1×5 mm, and all" in load(tmp_path / "ct", "volume_folder")[1]
    write_volume(tmp_path / "ct" / "b" / "3.nii", affine=np.diag([1, 1, 2, 1]))
    assert load(tmp_path / "ct", "volume_folder")[1] == ""


def test_names_of_classes_are_the_same_in_either_form_of_unicode(tmp_path):
    one, other = "caf\u00e9", "cafe\u0301"
    folder = fill(tmp_path / "cups", **{f"train__{one}": 2, "train__tea": 2, f"test__{other}": 1, "test__tea": 1})
    data = load(folder)[0]
    assert data.classes == (one, "tea")
    assert len(data.test) == 2
    fill(folder, **{f"train__{other}": 2})
    with pytest.raises(FileNotFoundError, match="is there twice, its letters written in two ways: make one folder"):
        load(folder)


def test_mirroring_is_told_where_nobody_asked_for_it(tmp_path, capsys):
    folder = fill(tmp_path / "turns", left=3, right=3)
    data = load(folder)[0]
    assert capsys.readouterr().out.count("mirrors images left-right; where sides matter, switch it off: options") == 1
    data.source()
    load(folder, flip_axes=[])
    load(folder, flip_axes=[1])
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("low", "high", "window", "words"),
    [
        ((0, 0.4), (0.6, 1), (-1000, 400), r"values from .* to (1|0\.9).*leaves 1 of 256 grey levels: set window"),
        ((0, 500), (3000, 4000), (-1000, 400), r"values from .* to [34].*clips \d\d% of them"),
        ((-900, 0), (0, 400), (-1000, 400), ""),
    ],
)
def test_a_window_that_is_not_of_the_values(tmp_path, low, high, window, words):
    for kind, ends in {"a": low, "b": high}.items():
        for n in range(3):
            write_volume(tmp_path / "mri" / kind / f"{n}.nii", RANDOM.uniform(*ends, (6, 6, 6)).astype(np.float32))
    for _ in range(2):  # the second time from the cache
        said = load(tmp_path / "mri", "volume_folder", window=window)[1]
        assert bool(said) == bool(words)
        assert re.search(words, said)


def test_the_same_image_stays_on_one_side(tmp_path):
    folder = fill(tmp_path / "pets", cat=10, dog=10)
    for path in list(folder.rglob("*.png")):
        Image.open(path).save(path.with_name(f"{path.stem} (copy).png"), compress_level=1)
    for seed in range(3):
        data, said = load(folder, split_seed=seed)
        sides = [{image.numpy().tobytes() for image in half.images} for half in (data.train, data.test)]
        assert not sides[0] & sides[1]
        assert "20 images are the same as another" in said
        assert data.test.labels.bincount().tolist() == [4, 4]
    shutil.move(folder, tmp_path / "train")
    shutil.copytree(tmp_path / "train", tmp_path / "mine" / "test")
    shutil.move(tmp_path / "train", tmp_path / "mine" / "train")
    assert "20 images are in both halves" in load(tmp_path / "mine")[1]


def test_a_pattern_names_the_patients(tmp_path):
    for patient in range(8):
        for n in range(3):
            write_photo(tmp_path / "xray" / "ab"[patient % 2] / f"patient{patient:03d}_{n:05d}.png")
    data, _ = load(tmp_path / "xray", patient="patient[0-9]+")
    whose = {photo(path).numpy().tobytes(): path.name[:10] for path in tmp_path.rglob("*.png")}
    sides = [{whose[image.numpy().tobytes()] for image in half.images} for half in (data.train, data.test)]
    assert len(sides[0]) + len(sides[1]) == 8
    assert load(tmp_path / "xray", patient=r"(.+)_\d+")[0].digest == data.digest
    with pytest.raises(ValueError, match=r"patient='person' is in no name of a file, such as 'patient000_00000\.png'"):
        load(tmp_path / "xray", patient="person")


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=rf"{tmp_path}/nowhere is no folder; a relative path is below .*{tmp_path}\."
    ):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("path=/data/my photos size=64", {"path": "/data/my photos", "size": 64}),
        ('path="/data/a b=c" size=64', {"path": "/data/a b=c", "size": 64}),
        ("path=0012 size=64", {"path": "0012", "size": 64}),
        ("size=64 path=~", {"size": 64, "path": "~"}),
        ("path=C:\\data\\x grey=true", {"path": "C:\\data\\x", "grey": True}),
        ("path=/data/John's", {"path": "/data/John's"}),
        ("path=x test_fraction=2e-1", {"path": "x", "test_fraction": 0.2}),
        ("path=x flip_axes=[0, 1]", {"path": "x", "flip_axes": (0, 1)}),
    ],
)
def test_options_as_text(text, options):
    assert datasets.check_options("image_folder", text) == options


# ── MedMNIST ──


@pytest.fixture
def small_medmnist(tmp_path, monkeypatch):
    """`organmnist3d_64.npz` with a few volumes, and its MD5 as the published one."""
    sizes = {"train": 22, "val": 11, "test": 11}
    arrays = {f"{half}_images": RANDOM.integers(0, 256, (n, 64, 64, 64), dtype=np.uint8) for half, n in sizes.items()}
    arrays |= {f"{half}_labels": (np.arange(n) % 11)[:, None].astype(np.uint8) for half, n in sizes.items()}
    np.savez_compressed(tmp_path / "organmnist3d_64.npz", **arrays)
    entry = datasets.DATASETS["organmnist3d"]
    here = Remote("https://example.org", "md5:" + files.checksum(tmp_path / "organmnist3d_64.npz", "md5"))
    entry = replace(entry, places={**entry.places, "organmnist3d_64.npz": here})
    monkeypatch.setitem(datasets.DATASETS, "organmnist3d", entry)
    return arrays


def test_medmnist(tmp_path, small_medmnist):
    data = ddlib.load_dataset("organmnist3d", tmp_path)
    assert np.array_equal(data.train.images[:, 0].numpy(), small_medmnist["train_images"])
    assert np.array_equal(data.test.labels.numpy(), small_medmnist["test_labels"].ravel())
    assert data.classes[:3] == ("liver", "kidney-right", "kidney-left")
    assert len(data.classes) == 11
    assert data.train.flip_axes == ()
    with pytest.raises(ValueError, match=r"size of organmnist3d_64\.npz must be 64, got 28"):
        ddlib.load_dataset("organmnist3d", tmp_path, size=28)


# ── the sets themselves ──

REAL = {  # name → shape of an image, training and test images, classes
    "cifar10": ((3, 32, 32), 50_000, 10_000, 10),
    "tf_flowers": ((3, 128, 128), 2_935, 735, 5),
    "faces": ((1, 96, 84), 1_924, 490, 38),
    "lidc_nodules": ((1, 32, 32, 16), 793, 201, 2),
    "adrenalmnist3d": ((1, 64, 64, 64), 1_188, 298, 2),
}


@pytest.mark.real_data
@pytest.mark.parametrize("name", REAL)
def test_real(name):
    shape, train, test, classes = REAL[name]
    data = ddlib.load_dataset(name)
    assert data.train.images.shape == (train, *shape)
    assert data.test.images.shape == (test, *shape)
    assert data.num_classes == classes
    shares = data.test.labels.bincount(minlength=classes) / (data.train.labels.bincount() + data.test.labels.bincount())
    assert (shares - test / (train + test)).abs().max() < 0.02
    assert 0.01 < data.train.mean.min() <= data.train.mean.max() < 0.6
    assert datasets.present(name)


@pytest.mark.real_data
def test_real_nodules_are_split_by_patient():
    place = datasets.present("lidc_nodules")
    listing = folders.list_classes(place, readers.VOLUMES)
    whose = np.array(splits.patients(place, listing.paths))
    assert len(set(whose)) == 551
    for seed in range(5):
        train, test = splits.split(listing.labels, listing.classes, list(whose), 0.2, seed)
        assert not set(whose[train]) & set(whose[test])
        shares = listing.labels[test].bincount() / listing.labels.bincount()
        assert (shares - 0.2).abs().max() < 0.015


# ── larger than memory ──


@pytest.fixture
def twelve(tmp_path):
    """What `load` is to be given, and what it gives where there is room; no cache is left."""
    folder = fill(tmp_path / "photos", a=6, b=6)
    usual = load(folder, size=16)[0]
    shutil.rmtree(tmp_path / ".cache")
    return folder, usual


def test_images_that_memory_has_no_room_for_are_the_same_from_files(tmp_path, monkeypatch, twelve):
    """Read, read again from the cache, and trained on: bit for bit."""
    folder, usual = twelve
    monkeypatch.setattr(files, "SHARE", 0)
    networks = []
    for found in (usual, *(load(folder, size=16)[0] for _ in range(2))):
        assert found.digest == usual.digest
        assert torch.equal(found.train.mean, usual.train.mean)
        torch.manual_seed(0)
        networks.append(ddlib.backbones.build("vgg9", 3, 2, 4))
        ddlib.fit(networks[-1], found, ddlib.Recipe(epochs=1, batch_size=4), progress=False)
    for network in networks[1:]:
        assert all(map(torch.equal, networks[0].state_dict().values(), network.state_dict().values()))
    assert sorted(path.suffix for path in (tmp_path / ".cache").iterdir()) == [".pt"]  # nothing else is left


@pytest.mark.parametrize("share", [0, 1], ids=["files", "memory"])
def test_reading_that_is_interrupted_goes_on_from_where_it_was(tmp_path, monkeypatch, twelve, share):
    folder, usual = twelve
    monkeypatch.setattr(files, "SHARE", share)
    monkeypatch.setattr(folders, "BLOCK", 4)
    read = []

    def photo(path, **how):
        if len(read) == 9:
            raise KeyboardInterrupt
        read.append(path)
        return readers.photo(path, **how)

    monkeypatch.setattr(folders, "photo", photo)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # one after another
    with pytest.raises(KeyboardInterrupt):
        load(folder, size=16)
    monkeypatch.setattr(folders, "photo", lambda path, **how: read.append(path) or readers.photo(path, **how))
    assert load(folder, size=16)[0].digest == usual.digest
    assert len(read) == 9 + 4  # eight were kept, in two blocks of four


def test_images_for_which_there_is_no_room_at_all_are_refused_in_a_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "SHARE", 0)
    told = r"0\.0 GiB of images fit neither into the free memory nor here \(No space left"
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=told):
        files.room((4, 3, 8, 8), tmp_path / "cache")
    monkeypatch.delattr(os, "posix_fallocate")  # as on macOS
    assert files.room((4, 3, 8, 8), tmp_path / "cache").shape == (4, 3, 8, 8)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=767))
    with pytest.raises(OSError, match=told):
        files.room((4, 3, 8, 8), tmp_path / "cache")
    assert not [*(tmp_path / "cache").iterdir()]
