"""Files → tensors: every layout, the cache, the split by patient, and files that cannot be read."""

import gzip
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import ddlib
from ddlib import files
from ddlib.data import readers
from ddlib.data import sets as datasets

nibabel = pytest.importorskip("nibabel")
RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def user_folder(tmp_path_factory, monkeypatch) -> Path:
    """The per-user cache folder is a fresh one."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home / "ddlib"


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


def test_photo_is_cut_about_its_centre(tmp_path):
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = (255, 0, 128)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    found = readers.photo(tmp_path / "wide.png", (10, 10))
    assert found.shape == (3, 10, 10)
    assert found.dtype == torch.uint8
    assert found.flatten(1).float().mean(1).tolist() == [255, 0, 128]
    assert readers.photo(tmp_path / "wide.png", (5, 15), grey=True).shape == (1, 5, 15)


def test_photo_of_the_right_size_is_left_alone(tmp_path):
    write_photo(tmp_path / "face.pgm", (96, 84), "L")
    found = readers.photo(tmp_path / "face.pgm", (96, 84), grey=True)
    assert np.array_equal(found[0].numpy(), np.array(Image.open(tmp_path / "face.pgm")))


def test_large_jpegs_and_turned_ones(tmp_path):
    ramp = np.broadcast_to(np.linspace(0, 255, 800)[None, :, None], (600, 800, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side: to be turned by 90°
    Image.fromarray(ramp).save(tmp_path / "level.jpg", quality=95)
    Image.fromarray(ramp).save(tmp_path / "turned.jpg", quality=95, exif=exif)
    level, turned = (readers.photo(tmp_path / f"{n}.jpg", (32, 32)).float() for n in ("level", "turned"))
    assert (level - torch.linspace(36, 219, 32)).abs().max() < 8
    assert (turned - level.mT).abs().max() < 8


@pytest.mark.parametrize("name", ["photo.jpg", "photo.png", "photo.pgm"])
def test_damaged_photo_is_named(tmp_path, name):
    path = tmp_path / name
    write_photo(path, (60, 60), "L" if name.endswith("pgm") else "RGB")
    for data in (path.read_bytes()[:-500], b"", b"no picture at all"):
        path.write_bytes(data)
        with pytest.raises(files.DamagedFile, match=f"{re.escape(str(path))} cannot be decoded as an image"):
            readers.photo(path, (8, 8))


# ── one volume ──


def test_volume_window(tmp_path):
    voxels = np.array([-2000, -1000, -300, 400, 3000, np.nan, 0, np.inf], np.float32).reshape(2, 2, 2)
    write_volume(tmp_path / "v.nii.gz", voxels)
    found = readers.volume(tmp_path / "v.nii.gz", (2, 2, 2))
    assert found.shape == (1, 2, 2, 2)
    assert found.flatten().tolist() == [0, 0, 128, 255, 255, 0, 182, 255]
    assert readers.volume(tmp_path / "v.nii.gz", (2, 2, 2), (0.0, 3000.0)).flatten().tolist()[3:5] == [34, 255]


def test_volume_axes_and_resampling(tmp_path):
    ramp = np.linspace(-1000, 400, 12)
    for axis in range(3):
        shape = [4, 6, 8]
        shape[axis] = 12
        view = [1, 1, 1]
        view[axis] = 12
        write_volume(tmp_path / f"{axis}.nii", np.broadcast_to(ramp.reshape(view), shape).astype(np.int16))
        found = readers.volume(tmp_path / f"{axis}.nii", (6, 6, 6))[0].movedim(axis, 0).flatten(1).float()
        assert (found - found[:, :1]).abs().max() == 0
        assert (found[:, 0] - torch.linspace(11.6, 243.4, 6)).abs().max() <= 1


def test_volumes_of_different_orientation_lie_alike(tmp_path):
    voxels = RANDOM.integers(-1000, 400, (4, 5, 6)).astype(np.float32)
    write_volume(tmp_path / "ras.nii.gz", voxels)
    write_volume(tmp_path / "lps.nii.gz", voxels[::-1, ::-1], np.diag([-1.0, -1, 1, 1]))
    expected = readers.volume(tmp_path / "ras.nii.gz", (4, 5, 6))
    assert torch.equal(readers.volume(tmp_path / "lps.nii.gz", (4, 5, 6)), expected)


@pytest.mark.parametrize("name", ["v.nii.gz", "v.nii"])
def test_damaged_volume_is_named(tmp_path, name):
    path = tmp_path / name
    write_volume(path)
    data = path.read_bytes()
    damaged = [data[:-20], b"", b"nothing of the kind" * 50]
    if name.endswith("gz"):
        damaged.append(data[:-150] + bytes([data[-150] ^ 1]) + data[-149:])
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(files.DamagedFile, match=f"{re.escape(str(path))} cannot be decoded as a NIfTI volume"):
            readers.volume(path, (4, 4, 4))


def test_volume_of_four_axes_is_refused(tmp_path):
    write_volume(tmp_path / "v.nii", np.zeros((3, 3, 3, 2), np.int16))
    with pytest.raises(files.DamagedFile, match=r"three axes, this has shape \(3, 3, 3, 2\)"):
        readers.volume(tmp_path / "v.nii", (4, 4, 4))


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    with pytest.raises(ImportError, match=r"needs nibabel: pip install 'ddlib\[data\]'"):
        readers.optional("nibabel")


# ── class folders ──


def test_listing(tmp_path):
    for name in ("b/2.jpg", "b/10.JPG", "b/.hidden.jpg", "a/1.jpeg", "a/notes.txt", "a/x_Ambient.jpg", ".cache/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    listing = readers.list_classes(tmp_path, (".jpg", ".jpeg"), leave_out="_Ambient")
    assert [p.relative_to(tmp_path).as_posix() for p in listing.paths] == ["a/1.jpeg", "b/10.JPG", "b/2.jpg"]
    assert listing.labels.tolist() == [0, 1, 1]
    assert listing.classes == ("a", "b")


def test_listing_of_what_is_incomplete(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} must hold a sub-folder for each class.*none"):
        readers.list_classes(tmp_path, (".jpg",))
    with pytest.raises(FileNotFoundError, match="found: none"):
        readers.list_classes(tmp_path / "nowhere", (".jpg",))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_text("")
    with pytest.raises(FileNotFoundError, match="two or more; found: a"):
        readers.list_classes(tmp_path, (".jpg",))
    (tmp_path / "b").mkdir()
    with pytest.raises(FileNotFoundError, match=r"b holds no file of the kinds \.jpg"):
        readers.list_classes(tmp_path, (".jpg",))


# ── two sides ──


def listing_of(labels) -> readers.Listing:
    return readers.Listing([], torch.tensor(labels), tuple(map(str, range(max(labels) + 1))))


def test_patients():
    names = ["LIDC-IDRI-0012_R_10.nii.gz", "LIDC-IDRI-0012_R_2.nii.gz", "P_R_1_R_2.png", "study_0001.nii.gz"]
    found = readers.patients([Path("CT-0") / name for name in names])
    assert found == ["LIDC-IDRI-0012", "LIDC-IDRI-0012", "P_R_1", "CT-0/study_0001.nii.gz"]


def test_split_without_patients_is_stratified():
    labels = [0] * 50 + [1] * 25 + [2] * 10
    train, test = readers.split(listing_of(labels), list(map(str, range(85))), 0.2, seed=0)
    assert torch.tensor(labels)[test].bincount().tolist() == [10, 5, 2]
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(85))
    again = readers.split(listing_of(labels), list(map(str, range(85))), 0.2, seed=0)
    other = readers.split(listing_of(labels), list(map(str, range(85))), 0.2, seed=1)
    assert torch.equal(again[1], test)
    assert not torch.equal(other[1], test)


@given(st.integers(0, 1000), st.integers(40, 200), st.sampled_from([0.1, 0.2, 0.5]))
def test_no_patient_is_on_both_sides(seed, count, fraction):
    random = np.random.default_rng(seed)
    labels = random.choice(3, 300, p=[0.5, 0.3, 0.2])
    whose = [f"P{n}" for n in random.integers(0, count, 300)]
    train, test = readers.split(listing_of(labels.tolist()), whose, fraction, seed)
    assert not {whose[i] for i in train} & {whose[i] for i in test}
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(300))
    shares = np.bincount(labels[test], minlength=3) / np.bincount(labels)
    largest = max(whose.count(patient) for patient in whose)
    assert abs(shares - fraction).max() < largest / np.bincount(labels).min()


def test_split_of_too_few():
    with pytest.raises(ValueError, match=r"class '1' has too few patients.*test share of 0\.2: 1"):
        readers.split(listing_of([0] * 10 + [1] * 3), [*map(str, range(10)), "a", "a", "a"], 0.2, 0)


# ── the cache ──


@pytest.fixture
def counted(monkeypatch):
    """How many photos have been read."""
    calls = []
    read = readers.photo
    monkeypatch.setattr(readers, "photo", lambda path, **how: (calls.append(path), read(path, **how))[1])
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


def test_a_damaged_cache_is_set_aside_and_made_anew(tmp_path, counted):
    flowers(tmp_path)
    first = ddlib.load_dataset("tf_flowers", tmp_path, size=16)
    (cache,) = (tmp_path / ".cache").iterdir()
    data = bytearray(cache.read_bytes())
    data[len(data) // 2] ^= 1
    cache.write_bytes(data)
    second = ddlib.load_dataset("tf_flowers", tmp_path, size=16)
    assert len(counted) == 50
    assert torch.equal(first.train.images, second.train.images)
    assert sorted(p.suffix[:8] for p in cache.parent.iterdir()) == [".damaged", ".pt"]
    ddlib.load_dataset("tf_flowers", tmp_path, size=16)
    assert len(counted) == 50


def test_a_folder_that_cannot_be_written_is_cached_per_user(tmp_path, counted, user_folder):
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        flowers(root)
        (root / ".cache").write_text("in the way, as permissions would be")
    for _ in range(2):
        a, b = (ddlib.load_dataset("tf_flowers", root, size=16) for root in (one, two))
        assert not torch.equal(a.train.images, b.train.images)
        assert len(counted) == 50
    assert len(list((user_folder / ".cache").iterdir())) == 2


def test_nothing_can_be_written(tmp_path, counted, user_folder):
    flowers(tmp_path)
    (tmp_path / ".cache").write_text("")
    user_folder.write_text("")
    for _ in range(2):
        ddlib.load_dataset("tf_flowers", tmp_path, size=16)
    assert len(counted) == 50


def test_one_damaged_photo_leaves_no_cache(tmp_path):
    bad = flowers(tmp_path) / "tulips" / "2.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    with pytest.raises(files.DamagedFile, match=re.escape(str(bad))):
        ddlib.load_dataset("tf_flowers", tmp_path)
    assert not (tmp_path / ".cache").exists()


# ── every layout ──


def test_tf_flowers(tmp_path):
    flowers(tmp_path, each=10)
    data = ddlib.load_dataset("tf_flowers", tmp_path)
    assert data.train.images.shape == (40, 3, 128, 128)
    assert data.test.labels.bincount().tolist() == [2] * 5
    assert data.classes == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    assert data.train.flip_axes == (1,)
    assert data.source == {"name": "tf_flowers", "size": 128, "split_seed": 0, "root": str(tmp_path)}


def test_tf_flowers_from_the_archive(tmp_path):
    folder = flowers(tmp_path / "elsewhere")
    shutil.make_archive(str(tmp_path / "flower_photos"), "gztar", folder.parent, "flower_photos")
    (tmp_path / "flower_photos.tar.gz").rename(tmp_path / "flower_photos.tgz")
    data = ddlib.load_dataset("tf_flowers", tmp_path, size=16)
    expected = ddlib.load_dataset("tf_flowers", tmp_path / "elsewhere", size=16)
    assert torch.equal(data.train.images, expected.train.images)


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


@pytest.mark.parametrize("layout", ["mosmed", "MosMedData", "COVID19_1110/studies"])
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
    known = {readers.volume(p, shape).numpy().tobytes(): p.name.split("_R_")[0] for p in folder.rglob("*.nii.gz")}
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
    volumes = ddlib.load_dataset("volume_folder", tmp_path, path="volumes", shape=(8, 6, 4), window=[-500, 0])
    assert volumes.channels == 1
    usual = ddlib.load_dataset("volume_folder", tmp_path, path="volumes", shape=(8, 6, 4))
    assert volumes.train.mean != usual.train.mean
    train, test = sides(usual, tmp_path / "volumes")
    assert not train & test
    for data in (photos, volumes, usual):
        again = ddlib.load_dataset(**json.loads(json.dumps(data.source)))
        assert torch.equal(again.train.images, data.train.images)
        assert again.source == data.source
        hash(tuple(sorted(data.source.items())))  # executors keep loaded sets by it
    assert len(list((tmp_path / ".cache").iterdir())) == 3


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("tf_flowers", {"sise": 64}, "Did you mean 'size'"),
        ("tf_flowers", {"size": 0}, "size must be a whole number ≥ 1, got 0"),
        ("tf_flowers", {"split_seed": -1}, "split_seed must be a whole number from 0"),
        ("faces", {"shape": 96}, r"shape must be a list of numbers, like \[96, 84\], got 96"),
        ("faces", {"shape": (96, 84, 1)}, "shape must be a list of numbers"),
        ("mosmed", {"shape": (64, 64)}, r"like \[128, 128, 64\]"),
        ("mosmed", {"shape": (64, 64, 0.5)}, "shape must be a whole number ≥ 1, got 0.5"),
        ("adrenalmnist3d", {"size": 32}, "size must be one of 64, 28, got 32"),
        ("image_folder", {}, "image_folder needs path=…"),
        ("image_folder", {"path": "x", "grey": 1}, "grey must be True or False"),
        ("image_folder", {"path": "x", "test_fraction": 0}, "test_fraction must be a number above 0"),
        ("volume_folder", {"path": "x", "window": (400, -1000)}, "low < high"),
        ("volume_folder", {"path": "x", "flip_axes": 1}, "flip_axes must be a list"),
        ("digits", {"size": 64}, "unknown option of digits 'size'"),
    ],
)
def test_wrong_options(tmp_path, name, options, told):
    with pytest.raises(ValueError, match=told):
        ddlib.load_dataset(name, tmp_path, **options)


def test_flip_axis_that_is_not_there(tmp_path):
    flowers(tmp_path)
    with pytest.raises(ValueError, match="flip_axes must be spatial axes from 0 to 1"):
        ddlib.load_dataset("image_folder", tmp_path, path="flower_photos", size=8, flip_axes=(2,))


# ── MedMNIST ──


@pytest.fixture
def small_medmnist(tmp_path, monkeypatch):
    """`organmnist3d.npz` with a few volumes, and its MD5 as the published one."""
    medmnist = pytest.importorskip("medmnist")
    sizes = {"train": 22, "val": 11, "test": 11}
    arrays = {f"{half}_images": RANDOM.integers(0, 256, (n, 28, 28, 28), dtype=np.uint8) for half, n in sizes.items()}
    arrays |= {f"{half}_labels": (np.arange(n) % 11)[:, None].astype(np.uint8) for half, n in sizes.items()}
    np.savez_compressed(tmp_path / "organmnist3d.npz", **arrays)
    md5 = files.checksum(tmp_path / "organmnist3d.npz", "md5")
    monkeypatch.setitem(medmnist.INFO, "organmnist3d", {**medmnist.INFO["organmnist3d"], "MD5": md5})
    return arrays


def test_medmnist(tmp_path, small_medmnist, monkeypatch):
    first = ddlib.load_dataset("organmnist3d", tmp_path, size=28)
    monkeypatch.setattr(readers, "optional", None)  # the second start does without the package
    data = ddlib.load_dataset("organmnist3d", tmp_path, size=28)
    assert np.array_equal(data.train.images[:, 0].numpy(), small_medmnist["train_images"])
    assert np.array_equal(data.test.labels.numpy(), small_medmnist["test_labels"].ravel())
    assert data.classes == first.classes
    assert data.classes[:3] == ("liver", "kidney-right", "kidney-left")
    assert data.train.flip_axes == ()


def test_damaged_medmnist_is_named(tmp_path, small_medmnist):
    path = tmp_path / "organmnist3d.npz"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(files.DamagedFile, match=r"organmnist3d\.npz is damaged: its MD5 should be"):
        ddlib.load_dataset("organmnist3d", tmp_path, size=28)


def test_nibabel_reads_what_gzip_wrote(tmp_path):
    write_volume(tmp_path / "v.nii")
    (tmp_path / "w.NII.GZ").write_bytes(gzip.compress((tmp_path / "v.nii").read_bytes()))
    one, two = (readers.volume(tmp_path / name, (4, 4, 4)) for name in ("v.nii", "w.NII.GZ"))
    assert torch.equal(one, two)


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
    listing = readers.list_classes(place, readers.VOLUMES)
    whose = np.array(readers.patients(listing.paths))
    assert len(set(whose)) == 551
    for seed in range(5):
        train, test = readers.split(listing, list(whose), 0.2, seed)
        assert not set(whose[train]) & set(whose[test])
        shares = listing.labels[test].bincount() / listing.labels.bincount()
        assert (shares - 0.2).abs().max() < 0.015


@pytest.mark.real_data
def test_second_start_of_real_sets(monkeypatch):
    for name in ("tf_flowers", "faces", "lidc_nodules"):
        ddlib.load_dataset(name)
    monkeypatch.setattr(readers, "read_all", None)
    for name in ("tf_flowers", "faces", "lidc_nodules"):
        ddlib.load_dataset(name)
