"""The pictures, drawn from decompositions, images, records and tables; legible in grey and to the colour-blind."""

import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from ..strategies import STRATEGIES, Strategy
from ..study.trainings import seconds
from .pictures import by_window, field, image, method, windows  # noqa: F401
from .tables import interval, most_frequent, pareto

if TYPE_CHECKING:
    import pandas as pd

# what figures and tables for print call data sets, backbones and strategies
NAMES = {
    "cifar10": "CIFAR-10",
    "tf_flowers": "TF-Flowers",
    "lidc_nodules": "lung nodules",
    "adrenalmnist3d": "adrenal glands",
    "vgg9": "VGG9",
    "vgg9_plain": "plain VGG9",
    "resnet20": "ResNet20",
    "resnet32": "ResNet32",
    "mobilenet_v2": "MobileNetV2",
    "cnn3d": "3-D CNN",
}
# a colour a data set (Okabe and Ito's), grey for others
COLOURS = {
    "cifar10": "#0072B2",
    "tf_flowers": "#D55E00",
    "lidc_nodules": "#009E73",
    "adrenalmnist3d": "#CC79A7",
    "faces": "#B8860B",
}
OTHER = "#777777"


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


def places(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Rows of `gather` with `place`, the decomposition in words, and `differs`, options that not all of them have.

    "2×2, δ = 4, coarse": points that differ in the width of their local CNNs, say, are not at one place.
    """
    variants = frame["variant"] if "variant" in frame else frame["grid"].map(lambda _: "")
    options = variants.map(lambda text: dict.fromkeys(part for part in re.split(r" (?=\w+=)", text) if part))
    common = set.intersection(*map(set, options))
    words = options.map(lambda own: ", ".join(_option(part) for part in own if part not in common))
    cuts = [cut(grid, overlap) for grid, overlap in zip(frame["grid"], frame["overlap"], strict=True)]
    return frame.assign(differs=words, place=[f"{own}, {word}" if word else own for own, word in zip(cuts, words)])


def _option(part: str) -> str:
    """ "local_width=full" → "local width full", "coarse=True" → "coarse"."""
    return part.removesuffix("=True").replace("_", " ").replace("=", " ")


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


# ── tables of records ──


def strategies(ax: Axes, frame: "pd.DataFrame", test_images: int, title: str = "") -> None:
    """Test accuracy in % over decompositions: a column each, a marker a strategy, every seed a point.

    Bars are Wilson's 95 % intervals of a single run over the test images.  Seeds stand side by side, with a line at
    their mean.
    """
    frame = places(frame[~frame["strategy"].isin([name for name, row in STRATEGIES.items() if row.several])])
    columns = list(dict.fromkeys(frame[["grid", "overlap", "differs"]].itertuples(index=False, name=None)))
    shown = sorted(dict.fromkeys(frame["strategy"]), key=lambda s: [*STRATEGIES, s].index(s))
    room = min(0.8 / len(shown), 0.2)  # of a strategy
    for k, strategy in enumerate(shown):
        (colour, marker), label = style_of(strategy), named(strategy)
        own = frame[frame["strategy"] == strategy]
        for place, rows in own.groupby(["grid", "overlap", "differs"], sort=False):
            middle = columns.index(place) + (k - (len(shown) - 1) / 2) * room
            x = middle + 0.8 * room * ((np.arange(len(rows)) + 0.5) / len(rows) - 0.5)
            y = rows["test_accuracy"].to_numpy()
            low, high = np.array([interval(round(a * test_images), test_images) for a in y]).T
            look = {"fmt": marker, "color": colour, "markersize": 7 if len(rows) == 1 else 4, "elinewidth": 1}
            ax.errorbar(x, 100 * y, 100 * np.array([y - low, high - y]), label=label, **look)
            label = None
            if len(rows) > 1:
                ax.hlines(100 * y.mean(), middle - 0.45 * room, middle + 0.45 * room, color=colour, linewidth=1.6)
    texts = [f"{grid.replace('x', '×')}\nδ = {overlap}\n{words}".rstrip() for grid, overlap, words in columns]
    ax.set_xticks(range(len(columns)), [text.replace(", ", ",\n") for text in texts])
    if frame["differs"].any():  # or they would meet
        ax.tick_params(axis="x", labelsize=8)
    ax.set(ylabel="test accuracy (%)", xlabel="subdomains and overlap δ (pixels)", xlim=(-0.5, len(columns) - 0.5))
    ax.set_title(title)
    line = "\nline: mean of seeds" if frame.groupby(["place", "strategy"]).size().max() > 1 else ""
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
    line: what else the same time can buy.  In parallel it has dashed copies, data-parallel training on as many workers
    as there are windows in which nothing is lost.  Up to six points that no other beats in both are named.
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
    curve = whole.groupby("epochs")[[by, "test_accuracy"]].mean().sort_values(by)
    shared = {prod(map(int, grid.split("x"))) for grid in usual["grid"] if grid != "regions"}
    for workers in sorted(shared) if by == "parallel" and len(curve) else ():
        x, y = curve[by] / workers, 100 * curve["test_accuracy"]
        ax.plot(x, y, "--", color=style_of("global")[0], linewidth=1)
        spot = {"xytext": (-3, -3), "textcoords": "offset points", "ha": "right", "va": "top", "fontsize": 8}
        ax.annotate(f"on {workers}", (x.iloc[0], y.iloc[0]), **spot)
    front = pareto(shown, by).drop_duplicates(["grid", "overlap", "epochs"])  # above and to the left there is nothing
    for row in front.tail(6).to_dict("records"):
        text = f"global, {row['epochs']} epochs" if row["strategy"] == "global" else cut(row["grid"], row["overlap"])
        spot = {"xytext": (-5, 5), "textcoords": "offset points", "ha": "right", "va": "bottom", "fontsize": 8}
        ax.annotate(text, (row[by], 100 * row["test_accuracy"]), **spot)
    workers = "a worker for each local CNN,\ncoherent training on one" if by == "parallel" else "on one machine"
    ax.set(xlabel=f"seconds of training, {workers}", ylabel="test accuracy (%)", title=title)
    ax.margins(x=0.12)
    _log_x(ax)


def time_bought(ax: Axes, times: "pd.DataFrame", curves: Mapping[str, "pd.Series"], workers: int) -> None:
    """Accuracy, or AUC, in % over the work of one worker: decomposed models, and global CNNs after several lengths.

    Args:
        times: a row a run: strategy, seed, coarse, value, "epochs of the global CNN", and what else tells settings.
        curves: by a name, that of a global CNN over its work: a line, and dashed, the best so far, over `workers`.
    """
    work = "epochs of the global CNN"
    settings = [column for column in times if column not in ("strategy", "seed", "value", work)]
    for (name, curve), colour in zip(curves.items(), (style_of("global")[0], "#999999"), strict=False):
        ax.plot(curve.index, curve, marker=style_of("global")[1], color=colour, label=f"{name}, one worker")
        label = f"data-parallel on {workers},\nnothing lost"
        ax.plot(curve.index / workers, curve.cummax(), "--", color=colour, label=label)
    for strategy, runs in times.groupby("strategy", sort=False):
        colour, marker = style_of(strategy)
        if runs["seed"].nunique() > 1:
            ax.plot(runs[work], runs["value"], marker, color=colour, alpha=0.25, markersize=3)
        means = runs.groupby(settings)[[work, "value"]].mean().reset_index()
        for coarse, some in means.groupby("coarse"):
            fill = {"fillstyle": "full" if coarse else "none", "label": None if coarse else named(strategy)}
            ax.plot(some[work], some["value"], marker, color=colour, markersize=6, **fill)
    best = next(iter(curves.values())).nlargest(2)  # of a barely trained global CNN the rest of the line would hide all
    low, high = min(times["value"].min(), best.min()), max(times["value"].max(), best.max())
    ax.set(xlabel=f"work of one worker,\nin {work}", ylim=(low - 0.2 * (high - low), high + 0.08 * (high - low)))
    _log_x(ax)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _log_x(ax: Axes) -> None:
    """A logarithmic axis whose ticks are 1, 2, 5, 10, …, as plain numbers."""
    ax.set_xscale("log")
    first, last = ax.get_xlim()
    ticks = [digit * 10.0**power for power in range(-3, 6) for digit in (1, 2, 5)]
    ticks = [tick for tick in ticks if first <= tick <= last]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.xaxis.set_minor_formatter(NullFormatter())


# what a regime looks like: a marker, and whether it is filled
LOOKS = {
    "short, augmented": ("o", True),
    "short, not augmented": ("o", False),
    "150 epochs, augmented": ("s", True),
    "150 epochs, not augmented": ("s", False),
    "textbook": ("*", True),
}
SQUEEZE = 5.0  # points of overfit: the axis is linear below, logarithmic above


def regimes(shown: "pd.DataFrame") -> Figure:
    """C1 and C7 over the overfit of the local CNNs: colour by data set, marker by regime; 15 cm wide.

    A point is the mean over the seeds of one place.  Those of 4×4 have black edges; the line is the `trend` of all
    others.

    Args:
        shown: a row a record: dataset, backbone, width, grid, overlap, epochs, augment ("yes" or "no"), variant,
            seed; overfit, C1 and C7 in points, NaN where there is none.
    """
    place = ["dataset", "backbone", "width", "grid", "overlap", "epochs", "augment", "variant"]
    means = shown.groupby(place, as_index=False)[["overfit", "C1", "C7"]].mean()
    means["regime"], means["fine"] = means.apply(regime_of, axis=1), means["grid"].str.startswith("4x4")
    titles = {"C1": "C1: CNN-DNN − average", "C7": "C7: transfer − global CNN"}
    titles = {claim: title for claim, title in titles.items() if means[claim].notna().any()}
    figure, axes = plt.subplots(1, len(titles), figsize=(5.9, 4.2), squeeze=False)
    for ax, (claim, title) in zip(axes[0], titles.items(), strict=True):
        rows = means.dropna(subset=[claim])
        for (dataset, regime, fine), own in rows.groupby(["dataset", "regime", "fine"]):
            colour, (marker, filled) = COLOURS.get(dataset, OTHER), LOOKS[regime]
            look = {"color": colour, "fillstyle": "full" if filled else "none", "alpha": 0.85, "markeredgewidth": 0.9}
            look |= {"markeredgecolor": "black" if fine else colour, "markersize": 8 if marker == "*" else 4.5}
            ax.plot(own["overfit"], own[claim], marker, **look)
        if len(others := rows[~rows["fine"]]) > 2:
            at = np.linspace(others["overfit"].min(), others["overfit"].max(), 300)
            line = trend(others["overfit"].to_numpy(), others[claim].to_numpy(), at)
            ax.plot(at, line, color="black", linewidth=1.2)
        ax.axhline(0, color="black", linewidth=0.6)
        ax.set(title=title, xlabel="overfit of the local CNNs (points)", ylabel="difference (points)")
        ax.set_xscale("asinh", linear_width=SQUEEZE)
        ax.set_xticks([0, 5, 10, 20, 50], [0, 5, 10, 20, 50])
        ax.minorticks_off()
        ax.margins(x=0.06)
    _key(figure, list(dict.fromkeys(means["dataset"])), [name for name in LOOKS if name in set(means["regime"])])
    return figure


def _key(figure: Figure, datasets: Sequence[str], found: Sequence[str]) -> None:
    """What colours, markers, edges and the line of `regimes` are."""
    looks = {named(name): {"color": COLOURS.get(name, OTHER)} for name in datasets}
    for name in found:
        marker, filled = LOOKS[name]
        looks[name] = {"color": OTHER, "marker": marker, "fillstyle": "full" if filled else "none"}
    looks["4×4"] = {"color": OTHER, "markeredgecolor": "black"}
    looks["trend without 4×4"] = {"color": "black", "marker": "", "linestyle": "-"}
    usual = {"linestyle": "", "marker": "o", "markersize": 5}
    keys = [plt.Line2D([], [], **usual | {"label": label} | look) for label, look in looks.items()]
    figure.legend(handles=keys, loc="outside lower center", ncols=3, fontsize=8)


def regime_of(row: "Mapping[str, Any] | pd.Series") -> str:
    """Which of `LOOKS` a point is of."""
    if row["backbone"] == "vgg9_plain":
        return "textbook"
    length = "150 epochs" if row["epochs"] >= 150 else "short"
    return f"{length}, {'augmented' if row['augment'] == 'yes' else 'not augmented'}"


def trend(x: np.ndarray, y: np.ndarray, at: np.ndarray, width: float = 0.7) -> np.ndarray:
    """A smooth line through points, at places `at`: straight lines fitted around each, with Gaussian weights (loess).

    x is squeezed as in the figure of the regimes; `width` is the standard deviation of the weights there.
    """
    x, at = np.arcsinh(x / SQUEEZE), np.arcsinh(at / SQUEEZE)
    found = []
    for place in at:
        root = np.exp(-0.25 * ((x - place) / width) ** 2)  # of the weight
        line = np.stack([root, root * (x - place)], 1)
        found.append(np.linalg.lstsq(line, root * y, rcond=None)[0][0])
    return np.array(found)
