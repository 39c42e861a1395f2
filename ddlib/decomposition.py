"""Windows on an image or a volume: grids with overlap, named regions, and cutting.

The image domain Ω is covered by N windows, one for each local CNN (P1, P2).  Two-dimensional images are
(H, W), volumes (H, W, D); everything here works for any number of axes.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ._internal import checks

Bounds = tuple[tuple[int, int], ...]  # (start, stop) for each axis


@dataclass(frozen=True)
class Decomposition:
    """N windows on an image of `image_shape`, in a fixed order (row-major for grids).

    Made by `Decomposition.grid` or `Decomposition.regions`.

    Attributes:
        image_shape: pixels for each axis.
        bounds: for each window, (start, stop) for each axis.
        names: for each window, its name: "0,1" on a grid, the given name for a region.
        parts: subdomains for each axis of a grid; None for regions and subsets.
        overlap: pixels for each axis of a grid.
        coarse: pixels for each axis of the coarse window, the last one, after averaging; None without one.
    """

    image_shape: tuple[int, ...]
    bounds: tuple[Bounds, ...]
    names: tuple[str, ...]
    parts: tuple[int, ...] | None = None
    overlap: tuple[int, ...] | None = None
    coarse: tuple[int, ...] | None = None

    @classmethod
    def grid(
        cls,
        shape: Sequence[int],
        parts: int | Sequence[int],
        overlap: int | Sequence[int] = 0,
        coarse: bool = False,
    ) -> "Decomposition":
        """Cut an image of `shape` into a grid of `parts` subdomains, each extended by `overlap` (P1, P2).

        `overlap` δ is the number of pixels by which a window reaches past its own subdomain on each interior
        side, clipped at the image's border, as in overlapping Schwarz methods.  `parts` and `overlap` are one
        value for all axes or one for each.  A grid that does not divide the image gives subdomains that differ
        by one pixel, the larger ones first (ours).

        `coarse` adds one more window, the last: the whole image, averaged down to the size of the largest window, so
        that its local CNN sees all of it and costs no more than another (ours; compare the coarse spaces of two-level
        Schwarz methods).

        Raises:
            ValueError: a grid finer than the image, a negative overlap, or one as large as the image.
        """
        shape = _per_axis("shape", shape, None, 1)
        parts = _per_axis("parts", parts, len(shape), 1)
        overlap = _per_axis("overlap", overlap, len(shape), 0)
        for axis, (length, count, reach) in enumerate(zip(shape, parts, overlap, strict=True)):
            if count > length:
                raise ValueError(f"grid {parts} is finer than the image {shape}: {count} > {length} on axis {axis}.")
            if reach >= length:
                raise ValueError(f"overlap {reach} must be smaller than the image, {length} pixels on axis {axis}.")
        axes = [_intervals(*axis) for axis in zip(shape, parts, overlap, strict=True)]
        windows = cls(
            image_shape=shape,
            bounds=tuple(itertools.product(*axes)),
            names=tuple(",".join(map(str, place)) for place in itertools.product(*map(range, parts))),
            parts=parts,
            overlap=overlap,
        )
        return windows._with_coarse() if checks.flag("coarse", coarse) else windows

    @classmethod
    def regions(
        cls, shape: Sequence[int], regions: Mapping[str, Sequence[Sequence[int]]], coarse: bool = False
    ) -> "Decomposition":
        """Named windows, e.g. `{"eyes": ((20, 50), (8, 76))}`: (start, stop) for each axis (ours).

        Regions may overlap and need not cover the image; `coarse` as in `grid`.

        Raises:
            ValueError: no region, or one that is empty or reaches outside the image.
        """
        shape = _per_axis("shape", shape, None, 1)
        if not regions:
            raise ValueError("regions must name at least one window, got none.")
        for name, window in regions.items():
            if len(window) != len(shape) or any(len(side) != 2 for side in window):
                raise ValueError(f"region {name!r} must give (start, stop) for {len(shape)} axes, got {window!r}.")
            for axis, ((start, stop), length) in enumerate(zip(window, shape, strict=True)):
                start, stop = (checks.integer(f"region {name!r}", edge, -length) for edge in (start, stop))
                if not 0 <= start < stop <= length:
                    raise ValueError(
                        f"region {name!r} reaches outside the image or is empty: ({start}, {stop}) on axis {axis}, "
                        f"allowed 0 ≤ start < stop ≤ {length}."
                    )
        bounds = tuple(tuple((int(a), int(b)) for a, b in window) for window in regions.values())
        windows = cls(image_shape=shape, bounds=bounds, names=tuple(map(str, regions)))
        return windows._with_coarse() if checks.flag("coarse", coarse) else windows

    def _with_coarse(self) -> "Decomposition":
        if "coarse" in self.names or len(self.image_shape) > 3:
            raise ValueError(f"a coarse window needs 1 to 3 axes and no region called 'coarse', got {self!r}.")
        whole = tuple((0, length) for length in self.image_shape)
        largest = max(self.window_shapes, key=math.prod)
        return replace(self, bounds=(*self.bounds, whole), names=(*self.names, "coarse"), coarse=largest)

    def __len__(self) -> int:
        return len(self.bounds)

    @property
    def num_subdomains(self) -> int:
        """Windows but the coarse one."""
        return len(self) - (self.coarse is not None)

    def __repr__(self) -> str:
        image = "×".join(map(str, self.image_shape))
        if self.parts is not None:
            reach = self.overlap if len(set(self.overlap)) > 1 else self.overlap[0]
            what = f"grid {'×'.join(map(str, self.parts))}, overlap {reach}"
        else:
            what = f"windows {', '.join(self.names)}"
        sizes = sorted({"×".join(map(str, s)) for s in self.window_shapes})
        coarse = ", the last one coarse" if self.coarse else ""
        return f"Decomposition({image} image, {what}: {len(self)} windows of {', '.join(sizes)}{coarse})"

    @property
    def windows(self) -> tuple[tuple[slice, ...], ...]:
        """N tuples of slices, one slice for each axis; those of the coarse window are the whole image."""
        return tuple(tuple(slice(a, b) for a, b in window) for window in self.bounds)

    @property
    def window_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Pixels for each axis of each window, of the coarse one after averaging: what a local CNN sees."""
        shapes = tuple(tuple(b - a for a, b in window) for window in self.bounds)
        return shapes if self.coarse is None else (*shapes[:-1], self.coarse)

    def families(self) -> list[list[int]]:
        """Indices of windows of equal shape, together: each family can be one grouped network."""
        together: dict[tuple[int, ...], list[int]] = {}
        for index, shape in enumerate(self.window_shapes):
            together.setdefault(shape, []).append(index)
        return list(together.values())

    def subset(self, indices: Sequence[int]) -> "Decomposition":
        """Only the windows `indices`, in that order: what one worker holds.

        Raises:
            ValueError: the coarse window is among them, and not the last.
        """
        has_coarse = self.coarse is not None and len(self) - 1 in indices
        if has_coarse and indices[-1] != len(self) - 1:
            raise ValueError(f"the coarse window, {len(self) - 1}, must be the last one, got {list(indices)}.")
        return Decomposition(
            self.image_shape,
            tuple(self.bounds[i] for i in indices),
            tuple(self.names[i] for i in indices),
            coarse=self.coarse if has_coarse else None,
        )

    def cut(self, x: Tensor) -> list[Tensor]:
        """Cut images (..., *image_shape) into N tensors (..., *window); views, but for the coarse window's average."""
        if tuple(x.shape[-len(self.image_shape) :]) != self.image_shape:
            raise ValueError(f"images must end in shape {self.image_shape}, got a tensor of shape {tuple(x.shape)}.")
        return [*self._views(x), *([] if self.coarse is None else [_averaged(x, self.coarse)])]

    def _views(self, x: Tensor) -> list[Tensor]:
        """What lies in each window but the coarse one."""
        return [x[(..., *window)] for window in self.windows[: -1 if self.coarse else None]]

    def multiplicity(self) -> Tensor:
        """How many windows, but the coarse one, cover each pixel: an int64 tensor of `image_shape`."""
        count = torch.zeros(self.image_shape, dtype=torch.int64)
        for part in self._views(count):
            part += 1
        return count

    def paint(self, values: Sequence[float]) -> Tensor:
        """One value for each window, drawn on the image: the mean over the windows that cover a pixel.

        The coarse window has a value, which is not drawn.  Returns a float64 tensor of `image_shape`, NaN where no
        window lies.

        Raises:
            ValueError: not as many values as windows.
        """
        if len(values) != len(self):
            raise ValueError(f"paint needs a value for each of {len(self)} windows, got {len(values)}.")
        total = torch.zeros(self.image_shape, dtype=torch.float64)
        for part, value in zip(self._views(total), values, strict=False):
            part += float(value)
        return total / self.multiplicity()  # 0 / 0 = NaN


def _averaged(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Images (..., *image_shape) averaged down to (..., *shape); whole numbers are rounded."""
    lead, axes = x.shape[: -len(shape)], x.shape[-len(shape) :]
    batch = x if len(lead) == 2 else x.reshape(1, -1, *axes)
    mean = interpolate(batch if x.is_floating_point() else batch.float(), shape, mode="area")
    mean = mean if x.is_floating_point() else mean.round().to(x.dtype)
    return mean if len(lead) == 2 else mean.reshape(*lead, *shape)


def parse_grid(text: str | Sequence[int]) -> tuple[int, ...]:
    """ "2x2" or "4x4x1" → (2, 2) or (4, 4, 1); a sequence passes through."""
    try:
        given = [int(n) for n in text.lower().split("x")] if isinstance(text, str) else text
        parts = tuple(checks.integer("a part", n, 1) for n in given)
    except (TypeError, ValueError):
        parts = ()
    if not parts or min(parts) < 1:
        raise ValueError(f"a grid is written like '2x2' or '4x4x1', got {text!r}.")
    return parts


def near_even(total: int, parts: int) -> list[tuple[int, int]]:
    """(start, stop) of each part of `total` things dealt as evenly as possible, the larger parts first."""
    size, rest = divmod(total, parts)
    edges = [k * size + min(k, rest) for k in range(parts + 1)]
    return list(itertools.pairwise(edges))


def _intervals(length: int, count: int, overlap: int) -> list[tuple[int, int]]:
    return [(max(a - overlap, 0), min(b + overlap, length)) for a, b in near_even(length, count)]


def _per_axis(what: str, value: int | Sequence[int], axes: int | None, low: int) -> tuple[int, ...]:
    given = tuple(value) if hasattr(value, "__len__") and not isinstance(value, str) else (value,) * (axes or 1)
    if not given:
        raise ValueError(f"{what} must give a value for each axis, got {value!r}.")
    if axes is not None and len(given) != axes:
        raise ValueError(f"{what} must give one value or {axes} values, one for each axis, got {value!r}.")
    return tuple(checks.integer(what, v, low) for v in given)
