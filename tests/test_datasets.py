import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddlib import checks, files, image_set, load_dataset
from ddlib.data import sets as datasets
from ddlib.images import augment, draw_moves, move, prepare

# ── sets of one's own ──


def half(n=6, shape=(1, 4, 4), classes=3, image_type=torch.uint8, label_type=torch.int64):
    return torch.zeros((n, *shape), dtype=image_type), (torch.arange(n) % classes).to(label_type)


def test_an_image_set_knows_its_sizes():
    data = image_set("mine", half(shape=(2, 4, 6)), half(4, shape=(2, 4, 6)), ("a", "b", "c"), flip_axes=[1])
    assert (data.name, data.num_classes, data.channels, data.image_shape) == ("mine", 3, 2, (4, 6))
    assert (len(data.train), len(data.test)) == (6, 4)
    assert data.train.flip_axes == data.test.flip_axes == (1,)
    assert data.source is None
    assert image_set("mine", half(shape=(1, 4, 6, 2)), half(shape=(1, 4, 6, 2)), "abc").image_shape == (4, 6, 2)


@pytest.mark.parametrize(
    ("train", "test", "told"),
    [
        (half(image_type=torch.float32), half(), r"train images must be uint8.*float32"),
        (half(shape=(4, 4)), half(), r"train images.*\(6, 4, 4\)"),
        (half(label_type=torch.float32), half(), r"train labels must be integers.*float32"),
        (half(classes=2), half(), r"train has no image of class 'c'"),
        (half(shape=(28, 28, 3)), half(), r"channels.*images\.permute\(0, 3, 1, 2\)"),
        ((half()[0].permute(1, 2, 3, 0), half()[1]), half(), r"images\.permute\(3, 0, 1, 2\)"),
        (half(shape=(8, 8, 8)), half(), r"volumes without.*images\[:, None\]"),
        (half(), (half()[0], half(5)[1]), r"test labels.*\(6,\).*\(5,\)"),
        (half(n=0), half(), r"at least one image"),
        (half(classes=4), half(), r"train labels must lie in 0 … 2, got 0 … 3"),
        (half(), half(shape=(1, 4, 5)), r"same shape.*\(1, 4, 4\) and \(1, 4, 5\)"),
    ],
)
def test_what_is_no_image_set_is_refused(train, test, told):
    with pytest.raises(ValueError, match=f"mine.*{told}"):
        image_set("mine", train, test, ("a", "b", "c"))


def test_labels_without_names_of_classes_are_integers_too():
    wrong = (half()[0], torch.full((6,), torch.nan))
    with pytest.raises(ValueError, match="mine train labels must be integers"):
        image_set("mine", wrong, half())


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, torch.uint16, torch.uint64])
def test_a_split_takes_labels_of_any_kind_of_integers(tiny, kind):
    found = replace(tiny.train, labels=tiny.train.labels.to(kind)).labels
    assert found.dtype == torch.int64
    assert torch.equal(found, tiny.train.labels)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"mean": torch.zeros(1)}, r"mean and std of a Split must be of its 3 channels, got \(1,\) and \(3,\)"),
        ({"labels": torch.full((64,), -100)}, "labels of a Split must be numbers of classes, from 0, got -100"),
        ({"labels": torch.zeros(64)}, "labels of a Split must be integers"),
        ({"labels": torch.zeros(64, 1, dtype=torch.int64)}, r"as many labels, got .* and labels \(64, 1\)"),
    ],
)
def test_a_split_whose_parts_do_not_fit_is_refused(tiny, given, told):
    with pytest.raises(ValueError, match=told):
        replace(tiny.train, **given)


def test_images_that_were_changed_or_replaced_are_not_those_of_the_name():
    data = load_dataset("digits")
    assert data.by_name
    assert not replace(data, train=replace(data.train, labels=data.train.labels.flip(0))).by_name
    before = data.digest
    data.train.labels[:2] = 9 - data.train.labels[:2]
    assert data.digest != before
    assert not data.by_name


def test_numbers_of_numpy_become_pythons_own():
    found = [
        checks.integer("n", np.int64(3), 0),
        checks.integer("n", np.float32(3), 0, 3),
        checks.real("r", np.float64(0.5), 0),
        checks.real("r", np.array(2), 0),
        checks.flag("f", np.True_),
        checks.one_of("name", np.str_("a"), "ab"),
    ]
    assert repr(found) == "[3, 3, 0.5, 2.0, True, 'a']"
    for wrong in (np.nan, np.True_, "1", None, np.arange(2), -(10**400)):
        for check in (checks.integer, checks.real):
            with pytest.raises(ValueError, match="n must be a"):
                check("n", wrong, 0)
    options = {np.str_("shape"): np.array([8, 6]), "split_seed": np.int64(1)}
    assert repr(datasets.check_options("faces", options)) == "{'shape': (8, 6), 'split_seed': 1}"
    data = image_set("mine", half(), half(), np.array(["a", "b", "c"]), flip_axes=np.array([1]))
    assert repr((data.classes, data.train.flip_axes)) == "(('a', 'b', 'c'), (1,))"
    assert len(data.few(np.int64(4), np.int64(1)).train) == 4


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"classes": ("a",)}, "mine must have two classes or more, each name once, got"),
        ({"classes": ("a", "b", "a")}, "mine must have two classes or more, each name once, got"),
        ({"flip_axes": (2,)}, "flip_axes must be a list of spatial axes from 0 to 1"),
        ({"flip_axes": (-1,)}, "flip_axes must be a list of spatial axes from 0 to 1"),
    ],
)
def test_classes_are_two_or_more_and_differ_and_axes_to_flip_are_spatial(given, told):
    with pytest.raises(ValueError, match=told):
        image_set("mine", half(), half(), **{"classes": "abc"} | given)


@pytest.mark.parametrize("kind", ["<i4", ">i8", "u1", "u2", "u4", "u8"])
def test_arrays_of_numpy_are_taken(kind):
    images, labels = half(shape=(3, 8, 9))
    images[:, 1] = 7
    arrays = (images.numpy()[..., ::-1], labels.numpy().astype(kind))
    arrays[0].setflags(write=False)
    data = image_set("mine", arrays, arrays)
    assert torch.equal(data.train.images, images.flip(-1))
    assert torch.equal(data.test.labels, labels)
    assert data.train.labels.dtype == torch.int64
    with pytest.raises(ValueError, match=r"mine train images must be uint8.*float64"):
        image_set("mine", (arrays[0] / 255, arrays[1]), arrays, "abc")
    with pytest.raises(ValueError, match="arrays of numbers"):
        image_set("mine", (arrays[0], list("abcabc")), arrays, "abc")


# ── normalising ──


@pytest.mark.parametrize("name", ["tiny", "tiny3d"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prepared_training_images_have_mean_zero_and_deviation_one(request, name, dtype):
    data = request.getfixturevalue(name)
    x = prepare(data.train.images, data.train, dtype)
    axes = [0, *range(2, x.ndim)]
    assert x.dtype == dtype
    assert x.shape == data.train.images.shape
    assert x.mean(axes).abs().max() < 1e-4
    assert (x.std(axes, correction=0) - 1).abs().max() < 1e-4
    assert x.is_contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


def test_test_images_are_prepared_with_the_statistics_of_the_training_images(tiny):
    shape = (1, 3, 1, 1)
    expected = (tiny.test.images / 255 - tiny.train.mean.view(shape)) / tiny.train.std.view(shape)
    assert torch.allclose(prepare(tiny.test.images, tiny.test), expected, atol=1e-5)
    scaled = tiny.train.images.double() / 255
    assert torch.allclose(tiny.train.mean.double(), scaled.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(tiny.train.std.double(), scaled.std((0, 2, 3), correction=0), atol=1e-6)


def test_a_channel_without_contrast_is_no_division_by_zero():
    data = image_set("flat", half(), half(), "abc")
    assert torch.equal(prepare(data.train.images, data.train), torch.zeros(6, 1, 4, 4))


# ── augmentation ──


def shifted(image, shift):
    """`image` (C, *shape) with pixel p taken from p + shift; black from outside."""
    moved = torch.zeros_like(image)
    here, there = [slice(None)], [slice(None)]
    for s, n in zip(shift, image.shape[1:], strict=True):
        here.append(slice(max(0, -s), min(n, n - s)))
        there.append(slice(max(0, s), min(n, n + s)))
    moved[tuple(here)] = image[tuple(there)]
    return moved


@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=3),
    st.integers(1, 3),
    st.sampled_from([0, 1 / 8, 1 / 4, 0.5]),
    st.integers(0, 10**6),
    st.data(),
)
def test_an_augmented_image_is_a_mirrored_and_shifted_one(shape, channels, reach, seed, data):
    flips = tuple(data.draw(st.sets(st.integers(0, len(shape) - 1))))
    images = torch.randint(1, 256, (3, channels, *shape), generator=torch.Generator().manual_seed(seed))
    images = images.to(torch.uint8)
    found = augment(images, flips, torch.Generator().manual_seed(seed), reach)
    assert found.shape == images.shape
    assert found.dtype == torch.uint8
    reaches = [int(n * reach) for n in shape]
    for image, result in zip(images, found, strict=True):
        mirrored = [image.flip([a + 1 for a in axes]) for axes in powerset(flips)]
        moves = itertools.product(*(range(-r, r + 1) for r in reaches))
        assert any(torch.equal(result, shifted(m, move)) for move in moves for m in mirrored)
    again = augment(images, flips, torch.Generator().manual_seed(seed), reach)
    assert torch.equal(again, found)


def powerset(items):
    return itertools.chain.from_iterable(itertools.combinations(items, n) for n in range(len(items) + 1))


def test_every_shift_and_mirror_is_drawn_and_images_are_independent():
    count, shape, flips = 4000, (16, 8, 8), (0, 2)
    image = torch.randint(1, 256, (1, 1, *shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found = augment(image.expand(count, -1, *shape), flips, torch.Generator().manual_seed(1))
    kinds = found.flatten(1).unique(dim=0, return_counts=True)[1]
    assert len(kinds) == 2**2 * 5 * 3 * 3
    share = count / len(kinds)
    assert (kinds - share).abs().max() < 6 * share**0.5  # each is as likely as the others


def test_an_epochs_moves_are_those_of_its_steps_drawn_one_by_one():
    """And PyTorch's own integers and floats, so that trainings on record come out again."""
    images, flips = torch.arange(240).view(6, 1, 5, 8).to(torch.uint8), (1,)
    at_once, by_step, plainly = (torch.Generator().manual_seed(3) for _ in range(3))
    shifts, mirrored = draw_moves(4, 6, (5, 8), flips, at_once, reach=1 / 3)
    for step in range(4):
        alone = augment(images, flips, by_step, reach=1 / 3)
        assert torch.equal(move(images, shifts[step], mirrored[step]), alone)
        for axis, most in enumerate((1, 2)):
            assert torch.equal(shifts[step, axis], torch.randint(-most, most + 1, (6,), generator=plainly))
            drawn = torch.rand(6, generator=plainly) < 0.5 if axis in flips else torch.zeros(6, dtype=torch.bool)
            assert torch.equal(mirrored[step, axis], drawn)
    assert torch.equal(at_once.get_state(), by_step.get_state())
    assert torch.equal(at_once.get_state(), plainly.get_state())


# ── digits ──


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def test_digits(digits):
    for split, size in ((digits.train, 1437), (digits.test, 360)):
        assert split.images.shape == (size, 1, 32, 32)
        assert split.images.max() > 250
        assert (torch.bincount(split.labels, minlength=10) / size - 0.1).abs().max() < 0.01
    assert digits.classes == tuple("0123456789")
    assert digits.train.flip_axes == ()  # a mirrored 2 is no 2


def test_digits_are_the_same_each_time_and_no_image_is_on_both_sides(digits):
    again = digits.source()
    assert torch.equal(again.train.images, digits.train.images)
    assert torch.equal(again.test.labels, digits.test.labels)
    train, test = (torch.unique(s.images.flatten(1), dim=0) for s in (digits.train, digits.test))
    both = torch.cat([train, test])
    assert len(torch.unique(both, dim=0)) == len(both)


# ── fewer images ──


@pytest.mark.parametrize("size", [10, 11, 192, 1436])
def test_few_draws_just_so_many_in_proportion(digits, size):
    few = digits.few(size)
    assert len(few.train) == len(few.train.images) == size
    counts = torch.bincount(few.train.labels, minlength=10)
    expected = torch.bincount(digits.train.labels, minlength=10) * size / len(digits.train)
    assert (counts - expected).abs().max() < 1 + 1e-9
    assert few.test is digits.test
    assert few.source is None
    assert torch.equal(few.train.mean, digits.train.mean)


def test_a_class_of_one_image_cannot_be_drawn_in_proportion():
    halves = [(torch.zeros(6, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 0, 0, 0, 0, 1]))] * 2
    with pytest.raises(ValueError, match="class 1 has a single image"):
        image_set("mine", *halves).few(3)


@pytest.mark.parametrize("draw", [lambda data: data.few(10), lambda data: data.hold_out(0.9)])
def test_no_class_is_left_without_images(draw):
    labels = torch.tensor([0] * 97 + [1] * 3)
    data = image_set("mine", *[(torch.zeros(100, 1, 4, 4, dtype=torch.uint8), labels)] * 2)
    assert data.few(40).train.labels.tolist() == [0] * 39 + [1]
    with pytest.raises(ValueError, match=r"leaves no image of class '1'|leaves a class without images"):
        draw(data)


def test_few_is_a_draw_by_seed(digits):
    images = {tuple(image.flatten().tolist()) for image in digits.train.images}
    first, again, other = digits.few(40, seed=1), digits.few(40, seed=1), digits.few(40, seed=2)
    assert torch.equal(first.train.images, again.train.images)
    assert not torch.equal(first.train.images, other.train.images)
    drawn = {tuple(image.flatten().tolist()) for image in first.train.images}
    assert len(drawn) == 40
    assert drawn <= images


@pytest.mark.parametrize("size", [9, 1438, 2.5, "all"])
def test_few_of_none_or_too_many_is_refused(digits, size):
    with pytest.raises(ValueError, match=r"train_size must be a whole number from 10 to 1437") as caught:
        digits.few(size)
    assert repr(size) in str(caught.value)


# ── by name ──


@pytest.mark.parametrize(
    ("name", "told"), [("digit", "Did you mean 'digits'"), ("CIFAR10", "Allowed: .*'cifar10'"), (None, "None")]
)
def test_an_unknown_data_set_is_refused(name, told):
    with pytest.raises(ValueError, match=f"unknown data set.*{told}"):
        load_dataset(name)


def test_an_unknown_option_is_refused():
    with pytest.raises(ValueError, match=r"unknown option of tf_flowers 'sise'.*Did you mean 'size'"):
        load_dataset("tf_flowers", sise=8)


def test_where_data_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("DDLIB_DATA", str(tmp_path / "by variable"))
    assert datasets.data_folder() == tmp_path / "by variable"
    assert datasets.data_folder(tmp_path) == tmp_path
    monkeypatch.delenv("DDLIB_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert datasets.data_folder() == tmp_path / "cache" / "ddlib"


def test_a_missing_data_set_says_where_it_was_looked_for(tmp_path, no_download):
    with pytest.raises(FileNotFoundError, match="DDLIB_DATA") as caught:
        load_dataset("cifar10", root=tmp_path / "data")
    assert str(tmp_path / "data" / "cifar-10-batches-py") in str(caught.value)
    assert "c58f30108f718f92721af3b95e74349a" in str(caught.value)
    assert "cs.toronto.edu" in str(caught.value)
    assert not (tmp_path / "data" / "cifar-10-batches-py").exists()


def test_a_damaged_file_is_named_with_its_checksum(tmp_path, no_download):
    from torchvision.datasets import CIFAR10

    place = tmp_path / "cifar-10-batches-py"
    place.mkdir()
    for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list, ("batches.meta", None)]:
        (place / name).write_bytes(b"something else")
    found = files.checksum(b"something else", "md5")
    with pytest.raises(files.DamagedFile, match=f"c99cafc152244af753f735de768cd75f, it is {found}") as caught:
        load_dataset("cifar10", root=tmp_path)
    assert str(place / "data_batch_1") in str(caught.value)


def test_an_incomplete_data_set_is_told(tmp_path, no_download):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(FileNotFoundError, match=r"data_batch_1 is missing.*incomplete"):
        load_dataset("cifar10", root=tmp_path)


@pytest.mark.real_data
def test_cifar10(no_download):
    data = load_dataset("cifar10")  # its sizes are in test_readers
    assert data.train.images.is_contiguous()
    assert data.classes[:3] == ("airplane", "automobile", "bird")
    assert data.train.flip_axes == (1,)
    assert data.train.labels[:5].tolist() == [6, 9, 9, 4, 1]
    assert data.train.mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
    assert data.train.std.tolist() == pytest.approx([0.2470, 0.2435, 0.2616], abs=1e-4)
