"""Verdicts as figures: the rows of a claim with their intervals, the means of all claims, and what a clock says."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .claims import COMPARED, WORDS, source, way
from .figures import COLOURS, OTHER, cut, named

# regimes differ by marker, so that grey print tells them apart
REGIMES = {"short": ("o", "short training"), "long": ("s", "150 epochs or more")}


def problem(name: str) -> str:
    """A problem in words: "CIFAR-10 (20,000 images)"; a folder of images by its name: "image_folder photos"."""
    found = re.fullmatch(r'(.*?)(?: path="?(.*?)"?)?(?:, (\d+) images)?', name, re.DOTALL)
    dataset, folder, images = found.groups()
    words = named(dataset) + (f" {Path(folder).name}" if folder else "")
    return words + (f" ({int(images):,} images)" if images else "")


def parts_of(row: Mapping[str, Any]) -> list[str]:
    """The pieces of `place`: problem, backbone, decomposition, epochs, and how the method was varied."""
    named_there = ("channel_parts", "train_size", "size")
    split, images, pixels = (re.search(rf"\b{name}=(\d+)", row["variant"]) for name in named_there)
    parts = f"P = {split[1]}" if split else cut(row["grid"], row["overlap"])
    words = problem(source(row) + (f", {images[1]} images" if images else "")) + (f" {pixels[1]} px" if pixels else "")
    return [words, f"{named(row['backbone'])} ({row['width']})", parts, f"{row['epochs']} epochs", way(row["variant"])]


def place(row: Mapping[str, Any]) -> str:
    """A point in words: "CIFAR-10, VGG9 (32), 2×2, δ = 4, 12 epochs", its width in brackets."""
    return ", ".join(filter(None, parts_of(row)))


# ── figures ──


def forest(judged: pd.DataFrame, pooled: pd.DataFrame) -> Figure:
    """The rows of a claim with their 95 % intervals, ordered by effect, and mean effects as diamonds; 15 cm wide.

    A column a comparison.  Full markers are ahead or behind, hollow ones level or open; intervals of fewer than three
    seeds are dotted.

    Args:
        judged: rows of one claim, of `claims.judge`.
        pooled: of `claims.pool`, of the same claim.
    """
    judged = judged.assign(place=judged.apply(place, axis=1))
    panels = [own for _, own in judged.groupby(COMPARED, sort=False)]
    order = judged.sort_values("difference", kind="stable").drop_duplicates("place", keep="last")
    first = panels[0].sort_values("difference", kind="stable")["place"]
    lines = [*dict.fromkeys([*(p for p in order["place"] if p not in set(first)), *first])][::-1]
    means = usual(pooled)
    below = [*dict.fromkeys(zip(means["over"], means["scope"], strict=True))]
    height = 1.0 + 0.125 * (len(lines) + 1 + len(below)) + 0.3
    size, ratio = (5.9, height), {"wspace": 0.04}
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False, gridspec_kw=ratio)
    for ax, own in zip(axes[0], panels, strict=True):
        same = (means[COMPARED] == own.iloc[0][COMPARED].tolist()).all(axis=1)
        _rows(ax, own, lines)
        _diamonds(ax, means[same], below, len(lines) + 1)
        _scale(ax, own)
        a, b, training = own.iloc[0][["a", "b", "training"]]
        ax.set_title("\n".join([*textwrap.wrap(f"{named(a)} − {named(b)},", 15), training]), fontsize=7)
    texts = [*lines, "", *(f"mean: {mean_of(over, scope)}" for over, scope in below)]
    axes[0, 0].set_yticks(range(len(texts)), texts, fontsize=6)
    axes[0, 0].set_ylim(len(texts) - 0.4, -0.6)
    bent = ", logarithmic beyond ±5" if any(ax.get_xscale() == "symlog" for ax in axes[0]) else ""
    figure.supxlabel(f"difference in points of accuracy, or of AUC where there are two classes{bent}", fontsize=7)
    _legend(figure, judged)
    return figure


def usual(pooled: pd.DataFrame) -> pd.DataFrame:
    """Of the means of a claim, those over all rows, by regime and problem, and by variant where there are several."""
    several = pooled.loc[pooled["over"] == "way", "scope"].nunique() > 1
    return pooled[pooled["over"].isin(["all", "regime", "problem", *["way"] * several])]


def mean_of(over: str, scope: str) -> str:
    """What a mean is over, in words."""
    regimes = {"all": "all rows"} | {name: text for name, (_, text) in REGIMES.items()}
    return regimes.get(scope) or (problem(scope) if over == "problem" else scope)


def headed(claim: str) -> str:
    """ "C2: transfer is more accurate than the CNN-DNN": the claim in words."""
    return f"{claim}: {WORDS[claim]}" if claim in WORDS else f"ours: {named(claim)}"


def _rows(ax: Axes, own: pd.DataFrame, lines: Sequence[str]) -> None:
    for row in own.to_dict("records"):
        y, colour = lines.index(row["place"]), COLOURS.get(row["dataset"], OTHER)
        few = row["n"] < 3
        ax.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=0.9, linestyle=":" if few else "-")
        fill = colour if row["verdict"] in ("ahead", "behind") else "white"
        look = {"markersize": 3.2, "markeredgewidth": 0.8, "color": colour, "markerfacecolor": fill}
        ax.plot(row["difference"], y, REGIMES[row["regime"]][0], **look)


def _diamonds(ax: Axes, means: pd.DataFrame, below: Sequence[tuple[str, str]], start: int) -> None:
    """Mean effects: the width of a diamond is its interval."""
    ax.axhspan(start - 0.5, start + len(below), color="#F2F2F2", zorder=0)
    for row in means.to_dict("records"):
        y = start + below.index((row["over"], row["scope"]))
        colour = COLOURS.get(row["scope"].partition(",")[0], "black" if row["over"] != "problem" else OTHER)
        corners = [(row["low"], y), (row["difference"], y - 0.4), (row["high"], y), (row["difference"], y + 0.4)]
        ax.add_patch(plt.Polygon(corners, facecolor=colour, edgecolor=colour, linewidth=0.8))


def _scale(ax: Axes, own: pd.DataFrame) -> None:
    """Logarithmic beyond ±5 points, where a few rows would hide the others."""
    ax.axvline(0, color="black", linewidth=0.6)
    low, high = min(0, own[["low", "difference"]].min(axis=None)), max(0, own[["high", "difference"]].max(axis=None))
    ax.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    if high - low > 25:
        ax.set_xscale("symlog", linthresh=5, linscale=1.2)
        ticks = [tick for tick in (-80, -20, -5, 0, 5, 20, 80) if low <= tick <= high]
        ax.set_xticks(ticks, [str(tick).replace("-", "−") for tick in ticks])
        ax.set_xticks([], minor=True)
    ax.tick_params(axis="x", labelsize=6)
    ax.tick_params(axis="y", length=0)
    ax.grid(True, axis="x", alpha=0.3)
    ax.grid(False, axis="y")


def _legend(figure: Figure, judged: pd.DataFrame) -> None:
    def key(text: str, marker: str = "o", colour: str = "black", fill: str = "", line: str = "") -> plt.Line2D:
        look = {"markersize": 3.5, "markerfacecolor": fill or colour, "linestyle": line, "linewidth": 1}
        return plt.Line2D([], [], marker=marker, color=colour, label=text, **look)

    keys = [key(named(name), colour=COLOURS.get(name, OTHER)) for name in dict.fromkeys(judged["dataset"])]
    keys += [key(text, marker) for name, (marker, text) in REGIMES.items() if name in set(judged["regime"])]
    keys += [key("filled: ahead or behind"), key("hollow: level or open", fill="white")]
    keys += [key("fewer than three seeds", marker="", line=":"), key("mean of rows", marker="D")]
    look = {"fontsize": 5.5, "handletextpad": 0.4, "columnspacing": 1, "title_fontsize": 8, "alignment": "left"}
    title = headed(judged["claim"].iloc[0])
    figure.legend(handles=keys, loc="outside upper left", ncols=5, title=title, **look)


def overview(pooled: pd.DataFrame) -> Figure:
    """The mean effects of all comparisons: a diamond over all rows, and points for the data sets."""
    pooled = pooled[~pooled["claim"].isin(["remedy"])]
    lines: list[Any] = []  # a claim in words, or a comparison
    for claim, own in pooled.groupby("claim", sort=False):
        lines += [claim, *dict.fromkeys(map(tuple, own[COMPARED].to_numpy()))]
    figure, ax = plt.subplots(figsize=(5.9, 0.9 + 0.25 * len(lines)))
    for row in pooled[pooled["over"].isin(["all", "problem"])].to_dict("records"):
        y = lines.index(tuple(row[name] for name in COMPARED))
        if row["over"] == "all":
            corners = [(row["low"], y), (row["difference"], y - 0.3), (row["high"], y), (row["difference"], y + 0.3)]
            ax.add_patch(plt.Polygon(corners, facecolor="#BBBBBB", edgecolor="black", linewidth=0.8))
            continue
        names = [*COLOURS]
        dataset = row["scope"].partition(",")[0]
        y += 0.12 * (names.index(dataset) - 2) if dataset in names else 0
        colour = COLOURS.get(dataset, OTHER)
        ax.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=0.8)
        ax.plot(row["difference"], y, "o", color=colour, markersize=2.8)
    heads = {y: headed(line) for y, line in enumerate(lines) if isinstance(line, str)}
    pairs = {y: f"{named(line[1])} − {named(line[2])}, {line[3]}" for y, line in enumerate(lines) if y not in heads}
    ax.set_yticks([*pairs], pairs.values(), fontsize=6.5)
    for y, text in heads.items():
        ax.axhspan(y - 0.4, y + 0.4, color="#F2F2F2", zorder=0)
        ax.text(0.01, y, text, transform=ax.get_yaxis_transform(), fontsize=6.5, va="center")
    ax.set_ylim(len(lines) - 0.4, -0.6)
    _scale(ax, pooled[pooled["over"].isin(["all", "problem"])])
    ax.set_xlabel(
        "mean difference in points of accuracy or AUC, with its 95 % interval; logarithmic beyond ±5", fontsize=7
    )
    keys = [
        plt.Line2D([], [], marker="o", linestyle="", color=c, markersize=4, label=named(n)) for n, c in COLOURS.items()
    ]
    keys.append(
        plt.Line2D([], [], marker="D", linestyle="", color="#BBBBBB", markeredgecolor="black", label="all rows")
    )
    figure.legend(handles=keys, loc="outside upper left", ncols=6, fontsize=6, handletextpad=0.2, columnspacing=1)
    return figure


def speed_ups(clocks: pd.DataFrame) -> Figure:
    """C4: how many times faster than the global CNN the longest local CNN trains, over N; a marker a machine.

    Args:
        clocks: training-time tables (04_training_time) with their machine.
    """
    colours = {"vgg9": "#0072B2", "resnet20": "#CC79A7", "cnn3d": "#009E73"}
    figure, ax = plt.subplots(figsize=(5.9, 3))
    for k, (machine, own) in enumerate(clocks.groupby("machine", sort=False)):
        look = {"markersize": 4.5, "linestyle": "", "markerfacecolor": "none", "marker": "os^vD"[k % 5]}
        side = 1 + 0.07 * (k - 1)  # or the points of two machines would hide one another
        for backbone, rows in own.groupby("backbone"):
            ax.plot(side * rows["N"], rows["parallel speed-up"], color=colours.get(backbone, OTHER), **look)
        ax.plot([], [], color="black", label=machine, **look)
    for backbone in clocks["backbone"].unique():
        ax.plot([], [], "o", color=colours.get(backbone, OTHER), label=named(backbone))
    least, *_, most = ticks = np.unique(clocks["N"])
    ax.plot([least, most], [least**2, most**2], ":", color="grey", label="N²")
    ax.axhline(1, color="black", linewidth=0.8)
    ax.set(xscale="log", yscale="log")
    ax.set_xlabel("number of local CNNs N", fontsize=7)
    ax.set_ylabel("times faster than the global CNN", fontsize=7)
    ax.set_title(headed("C4"), fontsize=8)
    ax.tick_params(labelsize=7)
    ax.set_xticks(ticks, map(str, ticks))
    ax.set_xticks([], minor=True)
    ax.legend(fontsize=6.5, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
