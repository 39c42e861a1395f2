"""The pictures, drawn from decompositions, images, records and tables; legible in grey and to the colour-blind."""

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
from matplotlib.ticker import LogFormatter, MaxNLocator

from ..decomposition import Bounds, Decomposition
from ..images import Split
from ..model import CNNDNN
from ..strategies import STRATEGIES, Strategy
from ..study.trainings import seconds
from ..training import predict
from .tables import interval, most_frequent, pareto

if TYPE_CHECKING:
    import pandas as pd

WINDOWS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

# what figures and tables for print call data sets, backbones and strategies
NAMES = {
    "cifar10": "CIFAR-10",
    "tf_flowers": "TF-Flowers",
    "lidc_nodules": "lung nodules",
    "adrenalmnist3d": "adrenal glands",
    "vgg9": "VGG9",
    "resnet20": "ResNet20",
    "resnet32": "ResNet32",
    "mobilenet_v2": "MobileNetV2",
    "cnn3d": "3-D CNN",
}


# ── any figure ──


def use_style() -> None:
    """Quiet axes, readable sizes, for all figures of a notebook."""
    plt.rcParams.update(
        {
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
    titles = NAMES | {name: row.title for name, row in STRATEGIES.items()}
    return ", ".join(titles.get(word, word) for word in words)


def style_of(strategy: str) -> tuple[str, str]:
    """Colour and marker of a strategy, the same in all figures."""
    row = STRATEGIES.get(strategy, Strategy)
    return row.colour, row.marker


def cut(grid: str, overlap: int) -> str:
    """A decomposition in words: "2×2, δ = 4"."""
    return grid.replace("x", "×") + (f", δ = {overlap}" if overlap else "")


def save(figure: Figure, folder: Path | None, name: str) -> None:
    """Write NAME.png and NAME.pdf below folder/figures; nothing where folder is None."""
    if folder is not None:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / "figures" / f"{name}.png")
        figure.savefig(folder / "figures" / f"{name}.pdf", metadata={"CreationDate": None})


def one_legend(figure: Figure, axes: Sequence[Axes], columns: int) -> None:
    """The legends of several axes as one below them, each label once."""
    lines = {text: line for ax in axes for line, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    for ax in axes:
        if ax.get_legend() is not None:
            ax.get_legend().remove()
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=columns, fontsize=8)


# ── images and windows ──


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
    """The windows of a decomposition drawn over an image; of a volume, the first two axes.

    Where windows overlap, each is inset a little more than the one before, so that coinciding edges can be told apart;
    names of windows that lie behind one another are listed from front to back.
    """
    if picture is not None:
        image(ax, picture, title)
    height, width = decomposition.image_shape[:2]
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), title=title)
    overlapping = sum((b - a) * (d - c) for (a, b), (c, d) in _flat(decomposition)) > height * width
    for i, ((top, bottom), (left, right)) in enumerate(_flat(decomposition)):
        inset = 0.012 * min(height, width) * (i % 4) * overlapping
        box = (left - 0.5 + inset, top - 0.5 + inset), right - left - 2 * inset, bottom - top - 2 * inset
        ax.add_patch(Rectangle(*box, fill=False, edgecolor="white", linewidth=3.2))
        ax.add_patch(Rectangle(*box, fill=False, edgecolor=WINDOWS[i % len(WINDOWS)], linewidth=1.8))
    if names:
        _write(ax, decomposition, decomposition.names)
    bare(ax)


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
        ax.set_title(title, fontsize=9)
        bare(ax)
        if len(_flat(decomposition)) <= 16:  # or they would not be legible
            _write(ax, decomposition, [f"{value:.1f}" for value in percent[title]])
    figure.colorbar(scale, ax=axes, label=label, shrink=0.8)
    return figure


def _flat(decomposition: Decomposition) -> dict[Bounds, list[int]]:
    """Bounds on the first two axes → the windows that have them, front to back."""
    found: dict[Bounds, list[int]] = {}
    for index, bounds in enumerate(decomposition.bounds):
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
        _bars(ax, local[i], classes if i == shown[-1] else [], title, WINDOWS[i % len(WINDOWS)])
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


# ── tables of records ──


def strategies(ax: Axes, frame: "pd.DataFrame", test_images: int, title: str = "") -> None:
    """Test accuracy in % over decompositions: a column each, a marker a strategy, every seed a point.

    Bars are Wilson's 95 % intervals of a single run over the test images.  Seeds stand side by side, with a line at
    their mean.
    """
    frame = frame[~frame["strategy"].isin([name for name, row in STRATEGIES.items() if row.several])]
    columns = list(dict.fromkeys(zip(frame["grid"], frame["overlap"], strict=True)))
    shown = sorted(dict.fromkeys(frame["strategy"]), key=lambda s: [*STRATEGIES, s].index(s))
    room = min(0.8 / len(shown), 0.2)  # of a strategy
    for k, strategy in enumerate(shown):
        (colour, marker), label = style_of(strategy), named(strategy)
        for place, rows in frame[frame["strategy"] == strategy].groupby(["grid", "overlap"], sort=False):
            middle = columns.index(place) + (k - (len(shown) - 1) / 2) * room
            x = middle + 0.8 * room * ((np.arange(len(rows)) + 0.5) / len(rows) - 0.5)
            y = rows["test_accuracy"].to_numpy()
            low, high = np.array([interval(round(a * test_images), test_images) for a in y]).T
            look = {"fmt": marker, "color": colour, "markersize": 7 if len(rows) == 1 else 4, "elinewidth": 1}
            ax.errorbar(x, 100 * y, 100 * np.array([y - low, high - y]), label=label, **look)
            label = None
            if len(rows) > 1:
                ax.hlines(100 * y.mean(), middle - 0.45 * room, middle + 0.45 * room, color=colour, linewidth=1.6)
    ax.set_xticks(range(len(columns)), [f"{grid.replace('x', '×')}\nδ = {overlap}" for grid, overlap in columns])
    ax.set(ylabel="test accuracy (%)", xlabel="subdomains and overlap δ (pixels)", xlim=(-0.5, len(columns) - 0.5))
    ax.set_title(title)
    line = "\nline: mean of seeds" if frame.groupby(["grid", "overlap", "strategy"]).size().max() > 1 else ""
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title=f"bars: 95 % of one run{line}", title_fontsize=8)


def convergence(ax: Axes, history: "pd.DataFrame", results: "pd.DataFrame", by: str = "epoch") -> None:
    """Test (full line) and training accuracy (dashed) in % of whole models in training, by "epoch" or by "second".

    Test accuracy is the mean of the seeds, in a band from lowest to highest; training accuracy and seconds are medians,
    since a machine's load is no result.  Transfer starts after the trainings that it needs, as the CNN-DNN.

    Args:
        history: stage, epoch, seconds, train_accuracy, test_accuracy, seed, with all stages of the records.
        results: rows of `gather` of the same records.
    """
    pace = history.groupby(["stage", "epoch"], sort=False, as_index=False).median(numeric_only=True)
    start = results[results["strategy"] == "cnn-dnn"].set_index("seed")["test_accuracy"]
    for stage, rows in history.groupby("stage", sort=False):
        if stage not in ("global", "coherent", "transfer"):
            continue
        colour, marker = style_of(stage)
        before = seconds(pace, "cnn-dnn") if stage == "transfer" and by == "second" else 0.0
        steps = pace[pace["stage"] == stage]
        x = [*(steps["epoch"] if by == "epoch" else before + steps["seconds"].cumsum())]
        ax.plot(x, 100 * steps["train_accuracy"], "--", color=colour, linewidth=0.8)
        test = rows.pivot(index="epoch", columns="seed", values="test_accuracy")
        if stage == "transfer":
            x, (own, sign) = [before, *x], style_of("cnn-dnn")
            test.loc[0] = start
            test = test.sort_index()
            ax.plot(
                before, 100 * start.mean(), sign, color=own, label="CNN-DNN, start of transfer", markersize=6, zorder=3
            )
        ax.fill_between(x, 100 * test.min(axis=1), 100 * test.max(axis=1), color=colour, alpha=0.2, linewidth=0)
        ax.plot(x, 100 * test.mean(axis=1), label=stage, marker=marker, markersize=4, color=colour, linewidth=1.2)
    ax.plot([], [], "--", color="#777777", linewidth=0.8, label="on training images, as they pass")
    ax.set(xlabel="epoch (transfer: after the local ones)" if by == "epoch" else "seconds of training, all stages")
    ax.set_ylabel("accuracy (%)")
    ax.legend(fontsize=8)


def accuracy_over_cost(ax: Axes, costs: "pd.DataFrame", by: str, title: str = "") -> None:
    """Test accuracy in % over seconds of training, `by` "one machine" or "parallel"; columns as in `tables.costs`.

    Means over the seeds (faint) of the most frequent regime; of the global CNN after all numbers of epochs, as a
    line: what else the same time can buy.  Up to six points that no other beats in both are named.
    """
    import pandas as pd

    usual, whole = most_frequent(costs[costs["strategy"] != "global"]), costs[costs["strategy"] == "global"]
    if len(usual):
        regime = ["width", "augment", "variant"]
        whole = whole[(whole[regime] == usual[regime].iloc[0]).all(axis=1)]
    shown = pd.concat([whole, usual]).dropna(subset=[by])
    for strategy, rows in shown.groupby("strategy", sort=False):
        colour, marker = style_of(strategy)
        ax.plot(rows[by], 100 * rows["test_accuracy"], marker, color=colour, alpha=0.25, markersize=3.5)
        means = rows.groupby(["grid", "overlap", "epochs"])[[by, "test_accuracy"]].mean().sort_values(by)
        line = {"linestyle": "-" if strategy == "global" else "none", "linewidth": 1, "markersize": 7}
        ax.plot(means[by], 100 * means["test_accuracy"], marker=marker, color=colour, label=named(strategy), **line)
    front = pareto(shown, by).drop_duplicates(["grid", "overlap", "epochs"])  # above and to the left there is nothing
    for row in front.tail(6).to_dict("records"):
        text = f"global, {row['epochs']} epochs" if row["strategy"] == "global" else cut(row["grid"], row["overlap"])
        spot = {"xytext": (-5, 5), "textcoords": "offset points", "ha": "right", "va": "bottom", "fontsize": 8}
        ax.annotate(text, (row[by], 100 * row["test_accuracy"]), **spot)
    workers = "a worker for each local CNN,\ncoherent training on one" if by == "parallel" else "on one machine"
    ax.set(xscale="log", xlabel=f"seconds of training, {workers}", ylabel="test accuracy (%)", title=title)
    ax.margins(x=0.12)
    for axis in (ax.xaxis.set_major_formatter, ax.xaxis.set_minor_formatter):
        axis(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.6)))
