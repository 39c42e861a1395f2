"""Images, windows on them, and numbers by window; `figures` has these too."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import MaxNLocator

from ..decomposition import Bounds, Decomposition
from ..images import Split
from ..model import CNNDNN
from ..training import predict

# of windows, by row and column modulo three (Tol's light colours); none is a strategy's
WINDOWS = (
    *("#EE8866", "#77AADD", "#BBCC33", "#FFAABB", "#99DDFF", "#44BB99"),
    *("#EEDD88", "#AA77DD", "#AAAA00"),
)


def bare(ax: Axes) -> None:
    """No ticks, no grid: an image speaks for itself."""
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)


def image(ax: Axes, picture: Any, title: str = "") -> None:
    """Show an image (C, H, W) or (H, W), uint8 or in [0, 1]; of a volume (C, H, W, D), its middle slice."""
    x = np.asarray(picture)
    if x.ndim == 4:
        x = x[..., x.shape[-1] // 2]
    if x.ndim == 3:
        x = x[0] if x.shape[0] == 1 else np.moveaxis(x, 0, -1)
    ax.imshow(x, cmap="gray" if x.ndim == 2 else None, interpolation="nearest")
    ax.set_title(title)
    bare(ax)


def field(ax: Axes, values: Any, label: str, title: str = "", **limits: float) -> None:
    """A number for each pixel (H, W), with a colour bar; of a volume, its middle slice."""
    values = np.asarray(values)
    values = values[..., values.shape[-1] // 2] if values.ndim == 3 else values
    shown = ax.imshow(values, cmap="cividis", interpolation="nearest", **limits)
    bar = ax.figure.colorbar(shown, ax=ax, label=label, shrink=0.8)
    if np.issubdtype(values.dtype, np.integer):
        bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_title(title)
    bare(ax)


def windows(ax: Axes, decomposition: Decomposition, picture: Any = None, title: str = "", names: bool = False) -> None:
    """The windows of a decomposition drawn over an image, at their true edges; of a volume, the first two axes.

    Neighbours differ in colour and by a full or dashed line, so that edges that coincide show both; windows that
    overlap are tinted, more where more of them lie.  A coarse window is told below.  Names of windows behind one
    another are listed from front to back.
    """
    if picture is not None:
        image(ax, picture, title)
    height, width = decomposition.image_shape[:2]
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), title=title, aspect="equal")
    flat, colours = _flat(decomposition), _colours(decomposition)
    tint = 0.25 if sum((b - a) * (d - c) for (a, b), (c, d) in flat) > height * width else 0.0
    edge = {
        "facecolor": "none",
        "clip_on": False,
        "path_effects": [Stroke(linewidth=3.4, foreground="black"), Normal()],
    }
    for ((top, bottom), (left, right)), behind in flat.items():
        box, colour = ((left - 0.5, top - 0.5), right - left, bottom - top), colours[behind[0]]
        dashed = {"linestyle": (0, (3, 3)), "zorder": 3} if WINDOWS.index(colour) % 2 else {"zorder": 2}
        ax.add_patch(Rectangle(*box, color=colour, alpha=tint, linewidth=0))
        ax.add_patch(Rectangle(*box, edgecolor=colour, linewidth=1.8, **edge | dashed))
    if names:
        _write(ax, decomposition, decomposition.names)
    bare(ax)
    if decomposition.coarse:
        ax.set_xlabel(f"and the whole as {'×'.join(map(str, decomposition.coarse))} (coarse)", fontsize=8)


def _colours(decomposition: Decomposition) -> list[str]:
    """A colour for each window: windows up to two rows and columns apart differ.  The coarse one is grey."""
    depth, row = (decomposition.parts or (1,))[2:], (decomposition.parts or (1, 3))[1]
    places = [divmod(i // math.prod(depth), row) for i in range(len(decomposition))]
    colours = [WINDOWS[3 * (r % 3) + c % 3] for r, c in places]
    return [*colours[:-1], "#DDDDDD"] if decomposition.coarse else colours


def by_window(shown: Mapping[str, tuple[Decomposition, Any]], label: str, test_images: int | None = None) -> Figure:
    """A number a window, in %, drawn there and as colour; a panel each, one scale of colours for all.

    Args:
        shown: title → decomposition and shares (N,) or (seeds, N), of which the mean is drawn: of a volume, along the
            depth, and the numbers from front to back.
        label: of the colour bar.
        test_images: of which the shares are accuracies: the colours then span five points and four standard errors of
            a single accuracy at the least, so that noise does not look like a finding; else they begin at 0.
    """
    percent = {title: 100 * np.atleast_2d(shares).mean(0) for title, (_, shares) in shown.items()}
    painted = {title: np.asarray(dec.paint(percent[title])) for title, (dec, _) in shown.items()}
    painted = {title: values.mean(-1) if values.ndim == 3 else values for title, values in painted.items()}
    low, high = min(np.nanmin(x) for x in painted.values()), max(np.nanmax(x) for x in painted.values())
    if test_images is None:
        low = min(low, 0)
    else:
        share = np.concatenate([*percent.values()]).mean() / 100
        missing = max(5, 400 * np.sqrt(share * (1 - share) / test_images)) - (high - low)
        low, high = low - max(missing, 0) / 2, high + max(missing, 0) / 2
    scale = ScalarMappable(Normalize(low, high), cmap="cividis")
    columns = 2 if len(shown) == 4 else min(len(shown), 3)
    rows = -(-len(shown) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.1 * columns + 0.8, 2.4 * rows), squeeze=False)
    for ax in axes.flat[len(shown) :]:
        ax.axis("off")
    for ax, (title, (decomposition, _)) in zip(axes.flat, shown.items(), strict=False):
        ax.imshow(painted[title], norm=scale.norm, cmap=scale.cmap)
        ax.set_title(fill(title, 27), fontsize=9)  # as wide as its panel
        bare(ax)
        if len(_flat(decomposition)) <= 16:  # or they would not be legible
            _write(ax, decomposition, [f"{value:.1f}" for value in percent[title]])
        if decomposition.coarse:
            ax.set_xlabel(f"coarse window: {percent[title][-1]:.1f}", fontsize=8)
    figure.colorbar(scale, ax=axes, label=label, shrink=0.8)
    return figure


def _flat(decomposition: Decomposition) -> dict[Bounds, list[int]]:
    """Bounds on the first two axes → the windows that have them, front to back; without the coarse window."""
    found: dict[Bounds, list[int]] = {}
    for index, bounds in enumerate(decomposition.bounds[: -1 if decomposition.coarse else None]):
        found.setdefault(bounds[:2], []).append(index)
    return found


def _write(ax: Axes, decomposition: Decomposition, texts: Sequence[str]) -> None:
    """A text in each window, those behind one another from front to back."""
    for (rows, columns), behind in _flat(decomposition).items():
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
        spot = sum(columns) / 2 - 0.5, sum(rows) / 2 - 0.5
        ax.text(*spot, "\n".join(texts[k] for k in behind), ha="center", va="center", fontsize=8, bbox=box)


def method(model: CNNDNN, split: Split, index: int, classes: Sequence[str]) -> Figure:
    """One test image on its way: windows (the four with the most contrast), probabilities, dense network, class."""
    one = replace(split, images=split.images[index : index + 1], labels=split.labels[index : index + 1])
    local, final = predict(model.local, one)[0], predict(model, one)[0]
    decomposition = model.local.decomposition
    parts, number = decomposition.cut(one.images[0]), len(decomposition)
    shown = sorted(sorted(range(number), key=lambda i: -float(parts[i].float().std()))[:4])
    figure = plt.figure(figsize=(10, 0.9 * len(shown) + 0.9))
    grid = figure.add_gridspec(len(shown), 6, width_ratios=(1.7, 0.6, 0.55, 1.5, 0.55, 1.5))
    whole = figure.add_subplot(grid[:, 0])
    windows(whole, decomposition, one.images[0], f"image Ω, N = {number} windows")
    _write(whole, decomposition, [f"Ω$_{{{i + 1}}}$" if i in shown else "" for i in range(number)])
    for row, i in enumerate(shown):
        ax = figure.add_subplot(grid[row, 1])
        image(ax, parts[i], "" if row else "windows" if number == len(shown) else f"{len(shown)} of {number}")
        ax.set_ylabel(f"Ω$_{{{i + 1}}}$", rotation=0, ha="right", va="center")
        _arrow(figure.add_subplot(grid[row, 2]), f"CNN$_{{{i + 1}}}$")
        ax = figure.add_subplot(grid[row, 3])
        title = "" if row else "N · K probabilities"
        _bars(ax, local[i], classes if i == shown[-1] else [], title, _colours(decomposition)[i])
    _arrow(figure.add_subplot(grid[:, 4]), "DNN")
    best, true = classes[int(final.argmax())], classes[int(one.labels)]
    _bars(figure.add_subplot(grid[:, 5]), final, classes, f"class “{best}” (true: “{true}”)", "#444444")
    return figure


def _bars(ax: Axes, p: Any, classes: Sequence[str], title: str, colour: str) -> None:
    """One class distribution (K,); without classes, its axis has no labels."""
    ax.bar(range(len(p)), np.asarray(p), color=colour)
    ax.set_xticks(range(len(classes)), classes, fontsize=7, rotation=90 if max(map(len, classes), default=0) > 2 else 0)
    ax.set(ylim=(0, 1), title=title, yticks=[0, 1], xlabel="class" if classes else "")


def _arrow(ax: Axes, text: str) -> None:
    ax.annotate("", (1, 0.5), (0, 0.5), arrowprops={"arrowstyle": "-|>", "color": "black"})
    ax.annotate(text, (0.45, 0.5), (0, 4), textcoords="offset points", ha="center", va="bottom")
    ax.axis("off")
