import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddlib import Decomposition, parse_grid


@st.composite
def grids(draw, most_overlap=None):
    """(shape, parts, overlap), with one value for all axes or one for each."""
    axes = draw(st.integers(2, 3))
    shape = tuple(draw(st.lists(st.integers(1, 11), min_size=axes, max_size=axes)))
    if draw(st.booleans()):
        parts = tuple(draw(st.integers(1, min(n, 5))) for n in shape)
    else:
        parts = draw(st.integers(1, min(*shape, 3)))
    if most_overlap == 0:
        return shape, parts, 0
    if draw(st.booleans()):
        return shape, parts, tuple(draw(st.integers(0, n - 1)) for n in shape)
    return shape, parts, draw(st.integers(0, min(shape) - 1))


def numbered(shape):
    return torch.arange(torch.Size(shape).numel()).view(1, 1, *shape)


def per_axis(value, shape):
    return value if isinstance(value, tuple) else (value,) * len(shape)


@given(grids())
def test_cut_is_plain_slicing_in_row_major_order(case):
    shape, parts, overlap = case
    dec = Decomposition.grid(shape, parts, overlap)
    assert len(dec) == torch.Size(per_axis(parts, shape)).numel() == len(dec.windows) == len(dec.names)
    x = numbered(shape)
    pieces = dec.cut(x)
    assert all(piece.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for piece in pieces)  # views
    for piece, window, bounds, size in zip(pieces, dec.windows, dec.bounds, dec.window_shapes, strict=True):
        assert torch.equal(piece, x[(slice(None), slice(None), *window)])
        assert tuple(piece.shape) == (1, 1, *size)
        assert all((s.start, s.stop) == b for s, b in zip(window, bounds, strict=True))
        assert all(0 <= a < b <= n for (a, b), n in zip(bounds, shape, strict=True))
    places = list(itertools.product(*(range(p) for p in per_axis(parts, shape))))
    assert dec.names == tuple(",".join(map(str, place)) for place in places)
    starts = {place: [a for a, _ in bounds] for place, bounds in zip(places, dec.bounds, strict=True)}
    for place, axis in itertools.product(places, range(len(shape))):
        after = tuple(p + (a == axis) for a, p in enumerate(place))
        if after in starts:  # one step along an axis: the window never starts earlier, and elsewhere it stays
            assert starts[after][axis] >= starts[place][axis]
            assert all(starts[after][a] == starts[place][a] for a in range(len(shape)) if a != axis)


@given(grids(most_overlap=0))
def test_no_overlap_is_a_partition_into_nearly_equal_subdomains(case):
    shape, parts, _ = case
    dec = Decomposition.grid(shape, parts)
    assert torch.equal(dec.multiplicity(), torch.ones(shape, dtype=torch.int64))
    pixels = torch.cat([piece.flatten() for piece in dec.cut(numbered(shape))])
    assert torch.equal(pixels.sort().values, numbered(shape).flatten())
    for axis in range(len(shape)):
        lengths = [size[axis] for size in dec.window_shapes]
        assert max(lengths) - min(lengths) <= 1
        along = sorted({bounds[axis] for bounds in dec.bounds})
        assert [b - a for a, b in along] == sorted(lengths, reverse=True)[:: len(lengths) // len(along)]


@given(grids())
def test_a_window_reaches_past_its_subdomain_by_the_overlap(case):
    shape, parts, overlap = case
    plain = Decomposition.grid(shape, parts)
    dec = Decomposition.grid(shape, parts, overlap)
    for small, large in zip(plain.bounds, dec.bounds, strict=True):
        for (a, b), (c, d), n, reach in zip(small, large, shape, per_axis(overlap, shape), strict=True):
            assert (c, d) == (max(0, a - reach), min(n, b + reach))


@given(grids())
def test_multiplicity_counts_the_windows_over_each_pixel(case):
    shape, parts, overlap = case
    dec = Decomposition.grid(shape, parts, overlap)
    count = dec.multiplicity()
    assert count.dtype == torch.int64
    assert count.min() >= 1
    for pixel in itertools.product(*map(range, shape)):
        over = sum(all(a <= i < b for i, (a, b) in zip(pixel, bounds, strict=True)) for bounds in dec.bounds)
        assert count[pixel] == over


@given(grids(), st.integers(0, 2**20))
def test_paint_is_the_mean_over_the_windows_that_cover_a_pixel(case, seed):
    dec = Decomposition.grid(*case)
    values = torch.rand(len(dec), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    total = torch.zeros(dec.image_shape, dtype=torch.float64)
    for window, value in zip(dec.windows, values, strict=True):
        total[window] += value
    assert torch.allclose(dec.paint(values.tolist()), total / dec.multiplicity(), rtol=1e-12)
    assert torch.allclose(dec.paint([3.0] * len(dec)), torch.full(dec.image_shape, 3.0, dtype=torch.float64))


def test_paint_leaves_nan_where_no_window_lies_and_wants_a_value_a_window():
    dec = Decomposition.regions((4, 4), {"a": ((0, 2), (0, 4)), "b": ((1, 2), (0, 1))})
    painted = dec.paint([1, 3])
    assert painted[:2].tolist() == [[1, 1, 1, 1], [2, 1, 1, 1]]
    assert painted[2:].isnan().all()
    with pytest.raises(ValueError, match="each of 2 windows, got 1"):
        dec.paint([1])


@given(grids())
def test_families_gather_equal_windows_and_miss_none(case):
    dec = Decomposition.grid(*case)
    families = dec.families()
    assert sorted(i for family in families for i in family) == list(range(len(dec)))
    shapes = [{dec.window_shapes[i] for i in family} for family in families]
    assert all(len(s) == 1 for s in shapes)
    assert len(set().union(*shapes)) == len(families)
    assert all(family == sorted(family) for family in families)


@given(grids(), st.data())
def test_subset_keeps_windows_and_names_in_the_order_asked(case, data):
    dec = Decomposition.grid(*case)
    chosen = data.draw(st.lists(st.integers(0, len(dec) - 1), min_size=1, unique=True))
    few = dec.subset(chosen)
    assert few.image_shape == dec.image_shape
    assert few.windows == tuple(dec.windows[i] for i in chosen)
    assert few.names == tuple(dec.names[i] for i in chosen)


def test_the_coarse_window_is_the_whole_image_averaged_down():
    """To the size of the largest window; the others are as without it."""
    plain, dec = (Decomposition.grid((8, 8), 2, coarse=on) for on in (False, True))
    x = torch.rand(2, 3, 8, 8)
    *pieces, last = dec.cut(x)
    assert all(map(torch.equal, pieces, plain.cut(x)))
    assert torch.allclose(last, x.view(2, 3, 4, 2, 4, 2).mean((3, 5)))
    assert (len(dec), dec.names[-1]) == (5, "coarse")
    assert torch.equal(dec.multiplicity(), plain.multiplicity())
    assert dec.subset([0, 4]).window_shapes == ((4, 4), (4, 4))
    with pytest.raises(ValueError, match=r"the coarse window, 4, must be the last one, got \[4, 0\]"):
        dec.subset([4, 0])


def test_regions_are_the_named_windows():
    dec = Decomposition.regions((96, 84), {"eyes": ((20, 50), (8, 76)), "mouth": ((60, 90), (20, 64))})
    x = torch.rand(2, 1, 96, 84)
    eyes, mouth = dec.cut(x)
    assert dec.names == ("eyes", "mouth")
    assert torch.equal(eyes, x[:, :, 20:50, 8:76])
    assert torch.equal(mouth, x[:, :, 60:90, 20:64])
    volume = Decomposition.regions((4, 4, 4), {"core": ((1, 3), (1, 3), (0, 4))})
    assert volume.window_shapes == ((2, 2, 4),)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (((8, 8), (9, 2)), r"finer than the image.*9 > 8 on axis 0"),
        (((8, 8), 2, -1), r"overlap.*-1"),
        (((8, 4, 4), 2, (0, 0, 5)), r"overlap 5 must be smaller than the image, 4 pixels on axis 2"),
        (((8, 8), (2, 2, 2)), r"parts.*2.*\(2, 2, 2\)"),
        (((8, 8), 2, (1,)), r"overlap.*\(1,\)"),
        (((8, 8), 0), r"parts.*0"),
        (((8, 8), True), r"parts.*True"),
        (((8, 0), 1), r"shape.*0"),
        (((), 1), r"shape.*\(\)"),
    ],
)
def test_a_bad_grid_is_refused_by_its_value(arguments, told):
    with pytest.raises(ValueError, match=told):
        Decomposition.grid(*arguments)


@pytest.mark.parametrize(
    ("regions", "told"),
    [
        ({}, r"none"),
        ({"nose": ((0, 4), (0, 9))}, r"'nose'.*\(0, 9\) on axis 1.*8"),
        ({"nose": ((-1, 4), (0, 8))}, r"'nose'.*\(-1, 4\) on axis 0"),
        ({"nose": ((4, 4), (0, 8))}, r"'nose'.*empty.*\(4, 4\)"),
        ({"ear": ((0, 4), (0, 8)), "nose": ((0, 4),)}, r"'nose'.*2 axes"),
        ({"nose": ((0.5, 4), (0, 8))}, r"0\.5"),
    ],
)
def test_a_bad_region_is_refused_by_its_name(regions, told):
    with pytest.raises(ValueError, match=told):
        Decomposition.regions((8, 8), regions)


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(8, 8\).*\(1, 1, 8, 7\)"):
        Decomposition.grid((8, 8), 2).cut(torch.zeros(1, 1, 8, 7))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_parse_grid_reads_what_it_writes(parts):
    assert parse_grid("x".join(map(str, parts))) == tuple(parts) == parse_grid(parts) == parse_grid(tuple(parts))


@pytest.mark.parametrize("text", ["", "2x", "2xx2", "2,2", "0x2", "-1x2", "2x1.5", None, (), (2, 0)])
def test_parse_grid_refuses_by_the_value(text):
    with pytest.raises(ValueError, match=r"grid is written like '2x2'") as caught:
        parse_grid(text)
    assert repr(text) in str(caught.value)
