"""The pictures, drawn from decompositions, images and records; colours that colour-blind readers can tell apart."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogFormatter, MaxNLocator

from .backbones import Backbone
from .decomposition import Decomposition
from .evaluation import interval
from .images import Split
from .model import CNNDNN
from .training import predict

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
    "sub-networks": ("#999999", "."),
    "composed": ("#882255", "^"),
    "channels": ("#E69F00", "h"),
}
WINDOWS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

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


def save(figure: Figure, folder: Path | None, name: str) -> None:
    """Write NAME.png and NAME.pdf below folder/figures; nothing where folder is None."""
    if folder is not None:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        for kind in ("png", "pdf"):
            figure.savefig(
                folder / "figures" / f"{name}.{kind}", metadata={"CreationDate": None} if kind == "pdf" else {}
            )


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

    Each window is inset a little more than the one before, so that coinciding edges can be told apart.
    """
    if picture is not None:
        image(ax, picture, title)
    height, width = decomposition.image_shape[:2]
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), title=title)
    flat = list(dict.fromkeys(bounds[:2] for bounds in decomposition.bounds))
    for i, ((top, bottom), (left, right)) in enumerate(flat):
        inset = 0.012 * min(height, width) * (i % 4)
        box = (left - 0.5 + inset, top - 0.5 + inset), right - left - 2 * inset, bottom - top - 2 * inset
        colour = WINDOWS[i % len(WINDOWS)]
        ax.add_patch(Rectangle(*box, fill=False, edgecolor="white", linewidth=3.2))
        ax.add_patch(Rectangle(*box, fill=False, edgecolor=colour, linewidth=1.8))
        if names:
            spot = (left + right) / 2 - 0.5, (top + bottom) / 2 - 0.5
            label = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": colour, "alpha": 0.85}
            ax.text(*spot, decomposition.names[i], ha="center", va="center", fontsize=8, bbox=label)
    bare(ax)


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


def local_accuracy(ax: Axes, decomposition: Decomposition, accuracies: Sequence[float], title: str = "") -> None:
    """Test accuracy of each local CNN, in %, drawn on its window (mean where windows overlap)."""
    percent = [100 * a for a in accuracies]
    field(ax, decomposition.paint(percent), "test accuracy of the local CNN (%)", title)
    if len(decomposition) <= 16:
        for (rows, columns, *_), value in zip(decomposition.bounds, percent, strict=True):
            label = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.7}
            ax.text(sum(columns) / 2 - 0.5, sum(rows) / 2 - 0.5, f"{value:.0f}", ha="center", va="center", bbox=label)


def strategies(ax: Axes, frame: "pd.DataFrame", test_images: int, title: str = "") -> None:
    """Test accuracy in % over decompositions: a column each, a marker a strategy, every seed a point.

    Bars are Wilson's 95 % intervals of a single run over the test images.
    """
    frame = frame[~frame["strategy"].isin(["local", "sub-networks"])]
    columns = list(dict.fromkeys(zip(frame["grid"], frame["overlap"], strict=True)))
    shown = [s for s in STYLE if s in set(frame["strategy"])]
    for k, strategy in enumerate(shown):
        colour, marker = STYLE[strategy]
        some = frame[frame["strategy"] == strategy]
        x = [columns.index(c) for c in zip(some["grid"], some["overlap"], strict=True)]
        x = np.array(x) + (k - (len(shown) - 1) / 2) * 0.09
        y = some["test_accuracy"].to_numpy()
        low, high = np.array([interval(round(a * test_images), test_images) for a in y]).T
        bars = 100 * np.array([y - low, high - y])
        ax.errorbar(x, 100 * y, bars, fmt=marker, color=colour, label=strategy, markersize=7, elinewidth=1)
    ax.set_xticks(range(len(columns)), [f"{grid.replace('x', '×')}\nδ = {overlap}" for grid, overlap in columns])
    ax.set(ylabel="test accuracy (%)", xlabel="subdomains and overlap δ (pixels)", title=title)
    ax.set_xlim(-0.5, len(columns) - 0.5)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def over(ax: Axes, frame: "pd.DataFrame", by: str, title: str = "") -> None:
    """Test accuracy in % of each strategy over "subdomains" (a column of their number) or "overlap" (P1, P2).

    Mean over seeds, every seed a point.
    """
    for strategy, rows in frame.groupby("strategy", sort=False):
        colour, marker = STYLE[strategy]
        each = rows.groupby([by, "seed"])["test_accuracy"].mean().reset_index()  # over the local CNNs
        mean = 100 * each.groupby(by)["test_accuracy"].mean()
        ax.plot(each[by], 100 * each["test_accuracy"], marker, color=colour, alpha=0.35, markersize=5)
        ax.plot(mean.index, mean, color=colour, marker=marker, label=strategy, markersize=7, linewidth=1.2)
    label = "number of subdomains N" if by == "subdomains" else "overlap δ (pixels)"
    ax.set(xlabel=label, ylabel="test accuracy (%)", title=title)
    ax.set_xticks(sorted(frame[by].unique()))


def accuracy_over_cost(ax: Axes, costs: "pd.DataFrame", pareto: "pd.DataFrame", by: str, title: str = "") -> None:
    """Test accuracy in % over seconds of training, a point a strategy and decomposition, with the Pareto front.

    `costs`, with their columns `by`, and `pareto` are those of `report`.
    """
    shown = costs.dropna(subset=[by])
    for strategy, rows in shown.groupby("strategy", sort=False):
        colour, marker = STYLE[strategy]
        filled = {"linestyle": "none", "marker": marker, "color": colour, "markersize": 7}
        ax.plot(rows[by], 100 * rows["test_accuracy"], label=strategy, **filled)
    front = {"where": "post", "color": "#999999", "linewidth": 1, "zorder": 0}
    ax.step(pareto[by], 100 * pareto["test_accuracy"], label="Pareto front", **front)
    for _, row in pareto.drop_duplicates(["grid", "overlap"], keep="last").iterrows():
        label = f"{row['grid'].replace('x', '×')}, δ={row['overlap']}" if row["strategy"] != "global" else "global"
        ax.annotate(label, (row[by], 100 * row["test_accuracy"]), (3, 5), textcoords="offset points", fontsize=7)
    workers = "a worker for each local CNN" if by == "parallel" else "on one machine"
    ax.set(xscale="log", xlabel=f"seconds of training, {workers}", ylabel="test accuracy (%)", title=title)
    for axis in (ax.xaxis.set_major_formatter, ax.xaxis.set_minor_formatter):
        axis(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.6)))


def confusion(ax: Axes, counts: Any, classes: Sequence[str], title: str = "") -> None:
    """Confusion matrix (K, K) as shares of each true class, in %."""
    share = 100 * np.asarray(counts) / np.maximum(np.sum(counts, 1, keepdims=True), 1)
    shown = ax.imshow(share, cmap="cividis", vmin=0, vmax=100)
    ax.figure.colorbar(shown, ax=ax, label="share of the true class (%)", shrink=0.8)
    ax.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    ax.set_yticks(range(len(classes)), classes)
    ax.grid(False)
    ax.set(xlabel="predicted class", ylabel="true class", title=title)
    if len(classes) <= 12:
        for (i, j), value in np.ndenumerate(share):
            if value >= 0.5:
                ax.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=7, color="k" if value > 60 else "w")


def convergence(ax: Axes, history: "pd.DataFrame", by: str = "epoch", title: str = "") -> None:
    """Test (full line) and training accuracy (dashed) in % of each stage, by "epoch" or by "second".

    Columns of `history`: stage, epoch, seconds, train_accuracy, test_accuracy; one curve a seed.
    """
    seeds = history.groupby("seed") if "seed" in history else [(0, history)]
    for first, (_, one) in enumerate(seeds):
        for stage, rows in one.groupby("stage", sort=False):
            colour, marker = STYLE[stage]
            x = rows["epoch"] if by == "epoch" else rows["seconds"].cumsum()
            options = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.4}
            ax.plot(x, 100 * rows["test_accuracy"], label=None if first else f"{stage}, test", **options)
            options |= {"markersize": 0, "linewidth": 1}
            ax.plot(x, 100 * rows["train_accuracy"], "--", label=None if first else f"{stage}, train", **options)
    ax.set(ylabel="accuracy (%)", xlabel="epoch" if by == "epoch" else "seconds of training", title=title)
    ax.legend(fontsize=8)


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
    figure = plt.figure(figsize=(9, 0.9 * shown + 0.8))
    grid = figure.add_gridspec(shown, 4, width_ratios=(1.5, 0.5, 1.2, 1.5))
    windows(figure.add_subplot(grid[:, 0]), decomposition, one.images[0], f"image and {len(decomposition)} windows")
    for i, part in enumerate(decomposition.cut(one.images[0])[:shown]):
        image(figure.add_subplot(grid[i, 1]), part, "" if i else "windows")
        ax = figure.add_subplot(grid[i, 2])
        colour = WINDOWS[i % len(WINDOWS)]
        probabilities(ax, local[i], classes, "" if i else "local CNNs: probabilities", colour)
        if i < shown - 1:
            ax.set_xticklabels([])
    best = classes[int(final.argmax())]
    probabilities(figure.add_subplot(grid[:, 3]), final, classes, f"dense network: “{best}”", "#444444")
    return figure


def speed_up(ax: Axes, times: "pd.DataFrame") -> None:
    """Training speed-up over the global CNN against the number of subdomains, with the ideals N² and N."""
    for k, (images, rows) in enumerate(times.groupby("images", sort=False)):
        colour, marker = WINDOWS[k % len(WINDOWS)], "osD^"[k % 4]
        options = {"color": colour, "marker": marker, "markersize": 7}
        ax.plot(rows["N"], rows["parallel speed-up"], "-", label=f"{images}, N workers", **options)
        ax.plot(
            rows["N"], rows["one-machine speed-up"], "--", label=f"{images}, one machine", fillstyle="none", **options
        )
    n = np.array([times["N"].min(), times["N"].max()])
    ax.plot(n, n**2, color="black", linewidth=1, label="ideal with N workers: N²")
    ax.plot(n, n, "--", color="black", linewidth=1, label="ideal on one machine: N")
    if (times["N"] == 32).any():
        ax.plot([32], [31], "k*", markersize=11, label="31, stated by the follow-up (4×4×2)")
    ax.set(xscale="log", yscale="log", xlabel="number of subdomains N", ylabel="speed-up over the global CNN")
    ax.set_xticks(sorted(set(times["N"])), sorted(set(times["N"])), minor=False)
    ax.minorticks_off()
    ax.set_title("Training time of local CNNs against the global CNN")
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def composition(ax: Axes, network: Backbone, layer: str, title: str = "") -> None:
    """The kernels of a convolution (out, in) as their norms: block diagonal where sub-networks were composed (P3)."""
    weight = network.get_submodule(layer).weight.detach()
    field(ax, weight.flatten(2).norm(dim=2).numpy(), "norm of the kernel", title, vmin=0)
    ax.set(xlabel="input channel", ylabel="output channel")


def bounds(ax: Axes, found: "pd.DataFrame", figure: str, title: str = "") -> None:
    """A figure of composed networks between its bounds (P3; ours), a row each.

    Columns of `found`: name, FIGURE, FIGURE_low, FIGURE_high; accuracies as shares, drawn in %.
    """
    scale, unit = (100, " (%)") if figure == "accuracy" else (1, "")
    for y, row in enumerate(found.to_dict("records")):
        low, value, high = (scale * row[f"{figure}{end}"] for end in ("_low", "", "_high"))
        ax.plot(
            [low, high], [y, y], color="#999999", linewidth=6, solid_capstyle="butt", label="bounds" if y == 0 else None
        )
        options = {"color": STYLE["composed"][0], "marker": STYLE["composed"][1], "linestyle": "none", "markersize": 8}
        ax.plot([value], [y], label="composed network" if y == 0 else None, **options)
    ax.set_yticks(range(len(found)), found["name"])
    ax.set(xlabel=f"test {figure.replace('_', '-')}{unit}", title=title, ylim=(len(found) - 0.5, -0.5))
    ax.grid(True, axis="x", alpha=0.3)
    ax.grid(False, axis="y")


def further_training(ax: Axes, history: "pd.DataFrame", by: str = "epoch") -> None:
    """Test accuracy in % of composed networks in training, and from random weights, by "epoch" or "second" (P3).

    Columns of `history`: those of records, and channel_parts.  By second, the curve of a composed network starts
    where its sub-networks were trained: the longest of them, or all where they were trained together.
    """
    for k, (parts, one) in enumerate(history.groupby("channel_parts", sort=False)):
        stages = dict(list(one.groupby("stage")))
        apart = stages["sub-networks"]
        alone = apart.get("seconds_longest", apart["seconds"])
        before = (alone if alone.notna().all() else apart["seconds"]).sum()
        colour, marker = PARTS[k % len(PARTS)]
        curves = [("channels", f"composed of {parts}", colour, marker, before)]
        curves += [("global", "random weights", *STYLE["global"], 0)] if not k else []
        for stage, label, colour, marker, offset in curves:
            rows = stages[stage]
            x = rows["epoch"] if by == "epoch" else rows["seconds"].cumsum() + offset
            ax.plot(x, 100 * rows["test_accuracy"], marker=marker, color=colour, label=label)
    seconds = "seconds of training, a worker for each sub-network"
    ax.set(xlabel="epoch of the global network" if by == "epoch" else seconds, ylabel="test accuracy (%)")
    ax.legend(fontsize=8)


def time_to_accuracy(ax: Axes, costs: "pd.DataFrame", title: str = "") -> None:
    """Test accuracy in % over seconds of training: a line a method, its points trainings of several lengths (P3).

    Columns of `costs`: method, workers, epochs, seconds, test_accuracy, channel_parts (0: random weights); the mean
    over seeds, every seed a faint point.  Full lines: a worker for each sub-network; dashed: one machine for all.
    """
    parts = [p for p in dict.fromkeys(costs["channel_parts"]) if p]
    for method, rows in costs.groupby("method", sort=False):
        p, workers = rows["channel_parts"].iloc[0], rows["workers"].iloc[0]
        colour, marker = PARTS[parts.index(p) % len(PARTS)] if p else STYLE["global"]
        options = {"marker": marker, "color": colour, "fillstyle": "full" if workers or not p else "none"}
        ax.plot(rows["seconds"], 100 * rows["test_accuracy"], linestyle="none", alpha=0.35, markersize=4, **options)
        mean = rows.groupby("epochs")[["seconds", "test_accuracy"]].mean().sort_values("seconds")
        line = "-" if workers or not p else "--"
        ax.plot(mean["seconds"], 100 * mean["test_accuracy"], line, markersize=8, label=method, **options)
    ax.set(xlabel="seconds of training, sub-networks included", ylabel="test accuracy (%)", title=title)
    ax.legend(fontsize=8)


def strong_scaling(ax: Axes, times: "pd.DataFrame", title: str = "") -> None:
    """Seconds of local training over workers, columns as in `scaling.local_training`; both axes logarithmic."""
    ax.plot(times["workers"], times["ideal"], "--", color=STYLE["local"][0], label="ideal, from single local CNNs")
    ax.plot(times["workers"], times["seconds"], "o", color=STYLE["cnn-dnn"][0], label="measured")
    ax.set(xlabel="workers", ylabel="seconds", title=title, xscale="log", yscale="log")
    ax.set_xticks(times["workers"], times["workers"])
    ax.minorticks_off()
    ax.legend(fontsize=8)


def communication(ax: Axes, traffic: "pd.DataFrame", title: str = "") -> None:
    """Megabytes that one rank sends a step over subdomains, a line a way; columns as in `scaling.on_paper`."""
    for (way, rows), stage in zip(traffic.groupby("way"), ("coherent", "global"), strict=True):
        colour, marker = STYLE[stage]
        ax.plot(rows["subdomains"], rows["sent"] / 1e6, marker=marker, color=colour, label=way)
    counts = sorted(set(traffic["subdomains"]))
    ax.set(xlabel="subdomains N", ylabel="MB a step", title=title, xscale="log", yscale="log")
    ax.set_xticks(counts, counts)
    ax.minorticks_off()
    ax.legend(fontsize=8)
