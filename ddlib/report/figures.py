"""The pictures, drawn from decompositions, images and records; colours that colour-blind readers can tell apart."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from ..backbones import Backbone
from ..decomposition import Bounds, Decomposition
from ..images import Split
from ..model import CNNDNN
from ..study.stages import seconds
from ..training import predict
from .evaluation import interval

if TYPE_CHECKING:
    import pandas as pd

# Okabe and Ito's palette; the marker tells the strategies apart in grey print as well.
STYLE = {
    "global": ("#000000", "s"),
    "local": ("#999999", "."),
    "average": ("#56B4E9", "o"),
    "vote": ("#0072B2", "v"),
    "cnn-dnn": ("#D55E00", "D"),
    "coherent": ("#CC79A7", "X"),
    "transfer": ("#009E73", "P"),
    "sub-networks": ("#777777", "<"),
    "composed": ("#882255", "^"),
    "channels": ("#E69F00", "h"),
}
OTHER = ("#F0E442", "*")  # a strategy of one's own
WINDOWS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

# what figures and tables for print call data sets, backbones and strategies
NAMES = {
    **{"cifar10": "CIFAR-10", "tf_flowers": "TF-Flowers", "mosmed": "MosMedData", "lidc_nodules": "lung nodules"},
    **{"adrenalmnist3d": "adrenal glands", "nodulemnist3d": "NoduleMNIST3D", "organmnist3d": "OrganMNIST3D"},
    **{"vgg9": "VGG9", "resnet20": "ResNet20", "resnet32": "ResNet32", "mobilenet_v2": "MobileNetV2"},
    **{"cnn3d": "3-D CNN", "cnn-dnn": "CNN-DNN"},
}
PARTS = (("#D55E00", "o"), ("#0072B2", "^"), ("#009E73", "D"), ("#CC79A7", "v"))  # numbers of sub-networks


def use_style() -> None:
    """Quiet axes, readable sizes, for all figures of a notebook."""
    plt.rcParams.update(
        {
            "figure.dpi": 100,
            "savefig.dpi": 200,
            "savefig.bbox": "tight",
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "axes.grid": True,
            "axes.grid.axis": "y",
            "grid.alpha": 0.3,
            "legend.frameon": False,
        }
    )


def named(*words: str) -> str:
    """As they are called in print (`NAMES`; one's own as they are), with commas: "CIFAR-10, VGG9"."""
    return ", ".join(NAMES.get(word, word) for word in words)


def save(figure: Figure, folder: Path | None, name: str) -> None:
    """Write NAME.png and NAME.pdf below folder/figures; nothing where folder is None."""
    if folder is not None:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        for kind in ("png", "pdf"):
            figure.savefig(
                folder / "figures" / f"{name}.{kind}", metadata={"CreationDate": None} if kind == "pdf" else {}
            )


def one_legend(figure: Figure, axes: Sequence[Axes], columns: int) -> None:
    """The legends of several axes as one below them, each label once."""
    told = {text: line for ax in axes for line, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    for ax in axes:
        if ax.get_legend() is not None:
            ax.get_legend().remove()
    figure.legend(told.values(), told, loc="outside lower center", ncols=columns, fontsize=8)


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


def bare(ax: Axes) -> None:
    """No ticks, no grid: an image speaks for itself."""
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)


def windows(ax: Axes, decomposition: Decomposition, picture: Any = None, title: str = "", names: bool = False) -> None:
    """The windows of a decomposition drawn over an image; of a volume, the first two axes.

    Each window is inset a little more than the one before, so that coinciding edges can be told apart; names of
    windows that lie behind one another are listed from front to back.
    """
    if picture is not None:
        image(ax, picture, title)
    height, width = decomposition.image_shape[:2]
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), title=title)
    for i, (((top, bottom), (left, right)), behind) in enumerate(_flat(decomposition).items()):
        inset = 0.012 * min(height, width) * (i % 4)
        box = (left - 0.5 + inset, top - 0.5 + inset), right - left - 2 * inset, bottom - top - 2 * inset
        colour = WINDOWS[i % len(WINDOWS)]
        ax.add_patch(Rectangle(*box, fill=False, edgecolor="white", linewidth=3.2))
        ax.add_patch(Rectangle(*box, fill=False, edgecolor=colour, linewidth=1.8))
        if names:
            spot = (left + right) / 2 - 0.5, (top + bottom) / 2 - 0.5
            label = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": colour, "alpha": 0.85}
            text = "\n".join(decomposition.names[k] for k in behind)
            ax.text(*spot, text, ha="center", va="center", fontsize=8, bbox=label)
    bare(ax)


def _flat(decomposition: Decomposition) -> dict[Bounds, list[int]]:
    """Bounds on the first two axes → the windows that have them, front to back."""
    found: dict[Bounds, list[int]] = {}
    for index, bounds in enumerate(decomposition.bounds):
        found.setdefault(bounds[:2], []).append(index)
    return found


def field(ax: Axes, values: Any, label: str, title: str = "", cmap: str = "cividis", **limits: float) -> None:
    """A number for each pixel (H, W), with a colour bar; of a volume, its middle slice."""
    values = np.asarray(values)
    values = values[..., values.shape[-1] // 2] if values.ndim == 3 else values
    shown = ax.imshow(values, cmap=cmap, interpolation="nearest", **limits)
    bar = ax.figure.colorbar(shown, ax=ax, label=label, shrink=0.8)
    if np.issubdtype(values.dtype, np.integer):
        bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_title(title)
    bare(ax)


def local_accuracy(shown: Mapping[str, tuple[Decomposition, Any]], test_images: int) -> Figure:
    """Test accuracy of each local CNN, in %, drawn on its window; `shown` as in `importance`.

    The colours span five points and four standard errors of a single accuracy over the test images at the least, so
    that noise does not look like a finding.
    """
    figure, scale = _by_window(shown, "test accuracy (%)")
    low, high = scale.get_clim()
    share = np.concatenate([np.atleast_2d(values).mean(0) for _, values in shown.values()]).mean()
    wider = max(0.0, max(5, 400 * np.sqrt(share * (1 - share) / test_images)) - (high - low)) / 2
    scale.set_clim(low - wider, high + wider)
    return figure


def importance(shown: Mapping[str, tuple[Decomposition, Any]], picture: Any = None) -> Figure:
    """Test accuracy, in points, that the dense network loses without a subdomain; a panel each, one scale for all.

    Title → decomposition and shares (N,) or (seeds, N), of which the mean is drawn: of a volume, along the depth, and
    the numbers from front to back.  Over a test image (C, *shape), where one is given.
    """
    figure, scale = _by_window(shown, "points of test accuracy", picture)
    scale.set_clim(vmin=min(0, scale.get_clim()[0]))
    return figure


def _by_window(
    shown: Mapping[str, tuple[Decomposition, Any]], label: str, picture: Any = None
) -> tuple[Figure, ScalarMappable]:
    """The figure of `importance`, with the scale of colours that its panels share, from the lowest to the highest."""
    percent = {title: 100 * np.atleast_2d(shares).mean(0) for title, (_, shares) in shown.items()}
    painted = {title: _painted(cuts, percent[title]) for title, (cuts, _) in shown.items()}
    ends = min(np.nanmin(x) for x in painted.values()), max(np.nanmax(x) for x in painted.values())
    scale = ScalarMappable(Normalize(*ends), cmap="cividis")
    columns = 2 if len(shown) == 4 else min(len(shown), 3)
    rows = -(-len(shown) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.1 * columns + 0.8, 2.4 * rows), squeeze=False)
    for ax in axes.flat[len(shown) :]:
        ax.axis("off")
    for ax, (title, (cuts, _)) in zip(axes.flat, shown.items(), strict=False):
        if picture is not None:
            grey = np.asarray(picture).mean(0, keepdims=True)  # and light: colour and its depth are for the values
            image(ax, grey)
            ax.images[0].set_clim(2 * grey.min() - grey.max(), grey.max())
        ax.imshow(painted[title], norm=scale.norm, cmap=scale.cmap, alpha=1 if picture is None else 0.5)
        ax.set_title(title, fontsize=9)
        bare(ax)
        _numbers(ax, cuts, [f"{one:.1f}" for one in percent[title]])
    figure.colorbar(scale, ax=axes, label=label, shrink=0.8)
    return figure, scale


def _painted(decomposition: Decomposition, values: Any) -> np.ndarray:
    """(H, W): the mean over the windows that cover a pixel; of a volume, along the depth as well."""
    painted = np.asarray(decomposition.paint(values))
    return painted.mean(-1) if painted.ndim == 3 else painted


def _numbers(ax: Axes, decomposition: Decomposition, texts: Sequence[str]) -> None:
    """A text in each window, those behind one another from front to back; none where they would not be legible."""
    flat = _flat(decomposition)
    if len(flat) <= 16:
        for (rows, columns), behind in flat.items():
            label = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.7}
            spot = sum(columns) / 2 - 0.5, sum(rows) / 2 - 0.5
            text = "\n".join(texts[k] for k in behind)
            ax.text(*spot, text, ha="center", va="center", fontsize=8, bbox=label)


def strategies(ax: Axes, frame: "pd.DataFrame", test_images: int, title: str = "") -> None:
    """Test accuracy in % over decompositions: a column each, a marker a strategy, every seed a point.

    Bars are Wilson's 95 % intervals of a single run over the test images.  Seeds stand side by side, with a line at
    their mean.
    """
    frame = frame[~frame["strategy"].isin(["local", "sub-networks"])]
    columns = list(dict.fromkeys(zip(frame["grid"], frame["overlap"], strict=True)))
    there = dict.fromkeys(frame["strategy"])
    shown = [s for s in STYLE if s in there] + [s for s in there if s not in STYLE]
    room = min(0.8 / len(shown), 0.2)  # of a strategy
    for k, strategy in enumerate(shown):
        colour, marker = STYLE.get(strategy, OTHER)
        some = frame[frame["strategy"] == strategy]
        seeds = some.groupby(["grid", "overlap"], sort=False)
        middle = np.array([columns.index(c) for c in zip(some["grid"], some["overlap"], strict=True)])
        middle = middle + (k - (len(shown) - 1) / 2) * room
        count = seeds["strategy"].transform("size")
        x = middle + 0.8 * room * ((seeds.cumcount() + 0.5) / count - 0.5)
        y = some["test_accuracy"].to_numpy()
        low, high = np.array([interval(round(a * test_images), test_images) for a in y]).T
        bars = 100 * np.array([y - low, high - y])
        size = 7 if count.max() == 1 else 4
        ax.errorbar(x, 100 * y, bars, fmt=marker, color=colour, label=named(strategy), markersize=size, elinewidth=1)
        several, mean = (count > 1).to_numpy(), 100 * seeds["test_accuracy"].transform("mean").to_numpy()
        ends = middle[several] - 0.45 * room, middle[several] + 0.45 * room
        ax.hlines(mean[several], *ends, color=colour, linewidth=1.6)
    ax.set_xticks(range(len(columns)), [f"{grid.replace('x', '×')}\nδ = {overlap}" for grid, overlap in columns])
    ax.set(ylabel="test accuracy (%)", xlabel="subdomains and overlap δ (pixels)")
    ax.set_title("\n".join(filter(None, (title, leader(frame)))))
    ax.set_xlim(-0.5, len(columns) - 0.5)
    lines = "– mean of seeds" if frame.groupby(["grid", "overlap", "strategy"]).size().max() > 1 else None
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title=lines)


def leader(frame: "pd.DataFrame") -> str:
    """What a table of strategies shows, in a line: the highest mean over seeds, however small its lead."""
    decomposed = frame[~frame["strategy"].isin(["global", "local", "sub-networks"])]
    means = decomposed.groupby(["grid", "overlap", "strategy"])["test_accuracy"].mean().unstack("strategy")
    highest = means.ge(means.max(axis=1) - 1e-9, axis=0)
    times = highest[highest.sum(axis=1) == 1].sum()  # ahead of all others
    first = " and ".join(named(s) for s in times.index if times[s] == times.max())
    told = f"highest mean without the global CNN: {first}, in {times.max()} of {len(means)} decompositions"
    return told if times.max() else ""


def confusion(ax: Axes, counts: Any, classes: Sequence[str], title: str = "") -> None:
    """Confusion matrix (K, K) as shares of each true class, in %."""
    share = 100 * np.asarray(counts) / np.maximum(np.sum(counts, 1, keepdims=True), 1)
    shown = ax.imshow(share, cmap="cividis", vmin=0, vmax=100)
    ax.figure.colorbar(shown, ax=ax, label="share of the true class (%)", shrink=0.8)
    every = slice(None, None, -(-len(classes) // 20))  # or labels would cover one another
    ax.set_xticks(range(len(classes))[every], classes[every], rotation=45, ha="right")
    ax.set_yticks(range(len(classes))[every], classes[every])
    ax.grid(False)
    wrong = np.where(np.eye(len(share), dtype=bool), 0, share)
    true, called = np.unravel_index(wrong.argmax(), wrong.shape)
    worst = f"worst: {wrong.max():.0f} % of “{classes[true]}” are called “{classes[called]}”" if wrong.any() else ""
    ax.set(xlabel="predicted class", ylabel="true class", title="\n".join(filter(None, (title, worst))))
    if len(classes) <= 12:
        for (i, j), value in np.ndenumerate(share):
            if value >= 0.5:
                ax.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=7, color="k" if value > 60 else "w")


def convergence(
    ax: Axes, history: "pd.DataFrame", by: str = "epoch", title: str = "", results: "pd.DataFrame | None" = None
) -> None:
    """Test (full line) and training accuracy (dashed) in % of whole models in training, by "epoch" or by "second".

    Columns of `history`: stage, epoch, seconds, train_accuracy, test_accuracy, with all stages of a record; one curve
    a seed.  By second, every seed at the median pace of all, since the load of a machine is no result; transfer starts
    after the trainings that it needs.  With the rows of `results` (of `gather`) of the same records, its curve starts
    at the accuracy of the CNN-DNN, which it is before its first step.
    """
    pace = history.groupby(["stage", "epoch"], sort=False, as_index=False).median(numeric_only=True)
    seeds = history.groupby("seed") if "seed" in history else [(0, history)]
    for later, (seed, one) in enumerate(seeds):
        curves = one[one["stage"].isin(["global", "coherent", "transfer"])]
        for stage, rows in curves.groupby("stage", sort=False):
            colour, marker = STYLE[stage]
            before = seconds(pace, "cnn-dnn") if stage == "transfer" and by == "second" else 0.0
            x = rows["epoch"] if by == "epoch" else before + pace.loc[pace["stage"] == stage, "seconds"].cumsum()
            test, options = 100 * rows["test_accuracy"], {"color": colour, "linewidth": 1.2}
            ax.plot(x, 100 * rows["train_accuracy"], "--", **(options | {"linewidth": 0.8}))
            if stage == "transfer" and results is not None:
                start = 100 * _reached(results, "cnn-dnn", seed)
                x, test = [before, *x], [start, *test]
            ax.plot(x, test, label=None if later else stage, marker=marker, markersize=4, **options)
            if stage == "transfer" and results is not None:
                colour, marker = STYLE["cnn-dnn"]
                label = None if later else f"{named('cnn-dnn')}, start of transfer"
                ax.plot(before, start, marker, color=colour, label=label, markersize=6, zorder=3)
    ax.plot([], [], "--", color="#777777", linewidth=0.8, label="on training images, as they pass")
    told = "epoch (transfer: after the local ones)" if by == "epoch" else "seconds of training, all stages"
    ax.set(ylabel="accuracy (%)", xlabel=told, title=title)
    if by == "epoch":
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize=8)


def _reached(results: "pd.DataFrame", strategy: str, seed: int) -> float:
    rows = results[results["strategy"] == strategy]
    return float(rows.loc[rows["seed"] == seed if "seed" in rows else slice(None), "test_accuracy"].mean())


def probabilities(ax: Axes, p: Any, classes: Sequence[str], title: str = "", colour: str = "#0072B2") -> None:
    """One class distribution (K,) as bars."""
    ax.bar(range(len(classes)), np.asarray(p), color=colour)
    ax.set_xticks(range(len(classes)), classes, fontsize=7, rotation=90 if max(map(len, classes)) > 2 else 0)
    ax.set(ylim=(0, 1), title=title, yticks=[0, 1])


def method(model: CNNDNN, split: Split, index: int, classes: Sequence[str]) -> Figure:
    """One test image on its way: image → windows → local CNNs → probabilities → dense network → class."""
    one = replace(split, images=split.images[index : index + 1], labels=split.labels[index : index + 1])
    local, final = predict(model.local, one)[0], predict(model, one)[0]
    decomposition = model.local.decomposition
    shown = min(len(decomposition), 4)
    figure = plt.figure(figsize=(10, 0.9 * shown + 0.9))
    grid = figure.add_gridspec(shown, 6, width_ratios=(1.7, 0.6, 0.55, 1.5, 0.55, 1.5))
    whole = figure.add_subplot(grid[:, 0])
    windows(whole, decomposition, one.images[0], f"image Ω, N = {len(decomposition)} windows")
    for i, part in enumerate(decomposition.cut(one.images[0])[:shown]):
        (top, bottom), (left, right) = decomposition.bounds[i][:2]
        place = left + 0.18 * (right - left), top + 0.18 * (bottom - top)
        label = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
        whole.text(*place, f"Ω$_{{{i + 1}}}$", ha="center", va="center", bbox=label)
        image(figure.add_subplot(grid[i, 1]), part, "" if i else "windows")
        figure.axes[-1].set_ylabel(f"Ω$_{{{i + 1}}}$", rotation=0, ha="right", va="center")
        _arrow(figure.add_subplot(grid[i, 2]), f"CNN$_{{{i + 1}}}$")
        ax = figure.add_subplot(grid[i, 3])
        colour = WINDOWS[i % len(WINDOWS)]
        probabilities(ax, local[i], classes, "" if i else "N · K probabilities", colour)
        if i < shown - 1:
            ax.set_xticklabels([])
    ax.set_xlabel("class")
    _arrow(figure.add_subplot(grid[:, 4]), "DNN")
    best, true = classes[int(final.argmax())], classes[int(one.labels)]
    answer = figure.add_subplot(grid[:, 5])
    probabilities(answer, final, classes, f"class “{best}” (true: “{true}”)", "#444444")
    answer.set_xlabel("class")
    return figure


def _arrow(ax: Axes, text: str) -> None:
    ax.annotate("", (1, 0.5), (0, 0.5), arrowprops={"arrowstyle": "-|>", "color": "black"})
    ax.annotate(text, (0.45, 0.5), (0, 4), textcoords="offset points", ha="center", va="bottom")
    ax.axis("off")


def composition(ax: Axes, network: Backbone, layer: str, title: str = "") -> None:
    """The kernels of a convolution (out, in) as their norms: block diagonal where sub-networks were composed (P3)."""
    weight = network.get_submodule(layer).weight.detach()
    field(ax, weight.flatten(2).norm(dim=2).numpy(), "norm of the kernel", title, vmin=0)
    ax.set(xlabel="input channel", ylabel="output channel")
