"""The pictures that are drawn from tables: accuracy over time, speed-up, scaling, what travels, bounds, verdicts."""

from textwrap import fill
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from matplotlib.transforms import Bbox

from .figures import NAMES, OTHER, PARTS, STYLE, WINDOWS, named

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.text import Annotation

# of a label beside its point: horizontal and vertical alignment, offset in points; the first are preferred
SIDES = (
    *(("left", "bottom", 4, 4), ("left", "top", 4, -3), ("right", "bottom", -4, 4), ("right", "top", -4, -3)),
    *(("center", "bottom", 0, 6), ("center", "top", 0, -6), ("left", "center", 7, 0), ("right", "center", -7, 0)),
)


def over(ax: Axes, frame: "pd.DataFrame", by: str, title: str = "") -> None:
    """Test accuracy in % of each strategy over "subdomains" (a column of their number) or "overlap" (P1, P2).

    Mean over seeds, with bars from the lowest to the highest; hollow where there is one seed alone.  Strategies are
    drawn a little beside one another; the global CNN, which has neither, is a line across.
    """
    whole = frame["strategy"] == "global"
    if whole.any():
        label, colour = named("global"), STYLE["global"][0]
        ax.axhline(
            100 * frame.loc[whole, "test_accuracy"].mean(), color=colour, linestyle="--", linewidth=1, label=label
        )
    frame = frame[~whole]
    values = np.array(sorted(frame[by].unique()))
    places = np.log2(values) if by == "subdomains" else values  # or few subdomains would be crowded
    step = 0.016 * max(1, np.ptp(places)) if len(places) else 0
    shown = frame.groupby("strategy", sort=False)
    for k, (strategy, rows) in enumerate(shown):
        colour, marker = STYLE.get(strategy, OTHER)
        each = 100 * rows.groupby([by, "seed"])["test_accuracy"].mean()  # over the local CNNs
        y = each.groupby(by).agg(["mean", "min", "max", "size"])
        x = places[np.searchsorted(values, y.index)] + step * (k - (len(shown) - 1) / 2)
        options = {"color": colour, "marker": marker, "markersize": 6}
        ax.plot(x, y["mean"], label=named(strategy), linewidth=1, **options)
        ax.vlines(x, y["min"], y["max"], color=colour, linewidth=2)
        one = (y["size"] == 1).to_numpy()
        ax.plot(x[one], y["mean"][one], linestyle="none", markerfacecolor="white", **options)
    if (frame.groupby(["strategy", by])["seed"].nunique() == 1).any():
        ax.plot([], [], "o", color="#777777", markerfacecolor="white", markersize=6, label="hollow: one seed")
    label = "number of subdomains N" if by == "subdomains" else "overlap δ (pixels)"
    ax.set(xlabel=label, ylabel="test accuracy (%)", title=title)
    ax.set_xticks(places, [f"{value:g}" for value in values])


def accuracy_over_cost(ax: Axes, costs: "pd.DataFrame", pareto: "pd.DataFrame", by: str, title: str = "") -> None:
    """Test accuracy in % over seconds of training: means over the seeds (faint), with their Pareto front.

    `costs`, with their columns `by`, and `pareto` are those of `report`.  Hollow: points of another width, number of
    epochs or options than most.  The most accurate strategy of each decomposition and setting is named, in
    all and on the front.
    """
    kind = ["width", "epochs", "variant"]
    cut = costs[costs["strategy"] != "global"]
    usual = [*(cut if len(cut) else costs)[kind].value_counts().index[0]]
    same = [name for name in costs if name not in ("seed", "test_accuracy", "one machine", "parallel")]
    shown = costs.dropna(subset=[by])
    means = shown.groupby(same, sort=False)[[by, "test_accuracy"]].mean().reset_index()
    for strategy, rows in shown.groupby("strategy", sort=False):
        colour, marker = STYLE.get(strategy, OTHER)
        look = {"linestyle": "none", "marker": marker, "color": colour}
        ax.plot(rows[by], 100 * rows["test_accuracy"], alpha=0.25, markersize=3.5, **look)
        own = means[means["strategy"] == strategy]
        most = (own[kind] == usual).all(axis=1)
        for some, filled in ((own[most], "full"), (own[~most], "none")):
            ax.plot(some[by], 100 * some["test_accuracy"], fillstyle=filled, markersize=7, **look)
        ax.plot([], [], label=named(strategy), markersize=7, **look)
    if (shown[kind] != usual).any(axis=None):
        ax.plot([], [], "o", color="black", fillstyle="none", markersize=7, label="other width, epochs, options")
    front = {"where": "post", "color": "#999999", "linewidth": 1, "zorder": 0}
    ax.step(pareto[by], 100 * pareto["test_accuracy"], label="Pareto front", **front)
    workers = "a worker for each local CNN,\ncoherent training on one" if by == "parallel" else "on one machine"
    ax.set(xscale="log", xlabel=f"seconds of training, {workers}", ylabel="test accuracy (%)", title=title)
    for axis in (ax.xaxis.set_major_formatter, ax.xaxis.set_minor_formatter):
        axis(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.6)))
    places, spots = _places(means, usual), means[[by, "test_accuracy"]].to_numpy() * (1, 100)
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in ax.transData.transform(spots)]  # the markers
    highest = means.groupby(places, sort=False)["test_accuracy"].idxmax()
    front = means[means[by].isin(pareto[by])]
    for index in dict.fromkeys([*highest, *front.groupby(places, sort=False)["test_accuracy"].idxmax()]):
        _beside(ax, fill(places[index], 18), spots[index], taken)


def _beside(ax: Axes, text: str, at: tuple[float, float], taken: list[Bbox]) -> None:
    """A label beside a point, on the side where it covers least of what is there; `taken` gets its box."""

    def drawn(ha: str, va: str, dx: float, dy: float) -> "tuple[float, Annotation]":
        told = ax.annotate(text, at, (dx, dy), textcoords="offset points", fontsize=7, ha=ha, va=va)
        own = told.get_window_extent()
        within = Bbox.intersection(own, ax.bbox)
        shared = [Bbox.intersection(own, other) for other in taken]
        covered = sum(box.width * box.height for box in shared if box)
        return covered + own.width * own.height - (within.width * within.height if within else 0), told

    tried = [drawn(*side) for side in SIDES]
    best = min(tried, key=lambda one: one[0])
    for one in tried:
        if one is not best:
            one[1].remove()
    taken.append(best[1].get_window_extent())


def _cut(table: "pd.DataFrame") -> "pd.Series":
    """Decomposition and overlap in words."""
    overlap = table["overlap"].map(lambda overlap: f", δ = {overlap}" if overlap else "")
    return table["grid"].str.replace("x", "×") + overlap


def _places(costs: "pd.DataFrame", usual: list) -> "pd.Series":
    """`_cut`, and what of width, epochs and options is not as usual."""
    width, epochs, variant = usual
    told = _cut(costs).mask(costs["strategy"] == "global", "global")
    told = told + (", width " + costs["width"].astype(str)).where(costs["width"] != width, "")
    told = told + (", " + costs["epochs"].astype(str) + " epochs").where(costs["epochs"] != epochs, "")
    options = costs["variant"].map(lambda told: " ".join(o for o in told.split() if o not in variant.split()))
    for option, words in ((r"train_size=(\d+)", r"\1 images"), (r"out_of_fold=(\d+)", r"out-of-fold, \1 folds")):
        options = options.str.replace(option, words, regex=True)
    return told + (", " + options).where(options != "", "")


def speed_up(ax: Axes, times: "pd.DataFrame") -> None:
    """Training speed-up over the global CNN against the number of subdomains, with the ideals N² and N.

    Columns of `times`: those of `bench.training_time`; decompositions with overlap are left out.
    """
    times = times[times["overlap"] == 0]
    for k, ((images, backbone), rows) in enumerate(times.groupby(["images", "backbone"], sort=False)):
        options = {"color": WINDOWS[k % len(WINDOWS)], "marker": "osD^"[k % 4], "markersize": 7}
        label = f"{images}, {named(backbone)}"
        ax.plot(rows["N"], rows["parallel speed-up"], "-", label=f"{label}, N workers", **options)
        options |= {"label": f"{label}, one machine", "fillstyle": "none"}
        ax.plot(rows["N"], rows["one-machine speed-up"], "--", **options)
    n = np.array([times["N"].min(), times["N"].max()])
    ax.plot(n, n**2, color="black", linewidth=1, label="ideal with N workers: N²")
    ax.plot(n, n, "--", color="black", linewidth=1, label="ideal on one machine: N")
    if (times["N"] == 32).any():
        ax.plot([32], [31], "k*", markersize=11, label="31, stated by the follow-up (4×4×2)")
    ax.set(xscale="log", yscale="log", xlabel="number of subdomains N", ylabel="speed-up over the global CNN (×)")
    ax.set_xticks(sorted(set(times["N"])), sorted(set(times["N"])), minor=False)
    ax.minorticks_off()
    best = times.loc[times["parallel speed-up"].idxmax()]
    told = f"highest: {best['parallel speed-up']:.1f} with N = {best['N']} workers (ideal {best['N'] ** 2})"
    ax.set_title(f"Training time of local CNNs against the global CNN\n{told}")
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


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


def verdicts(judged: "pd.DataFrame") -> Figure:
    """Mean differences in test accuracy, or AUC, with their 95 % intervals: a panel a comparison, a row a point.

    Columns: those of `claims.decisive`, of which rows at a single backbone are shown.  Filled where the claim holds,
    crossed where it does not, empty if undecided.
    """
    judged = judged[judged["width"].notna()]
    kinds = judged[["claim", "a", "b"]].drop_duplicates().to_dict("records")
    names = _point_names(judged)
    places = judged.groupby(["dataset", "backbone", "grid", "overlap"], sort=False).ngroup()
    rows = {name: y for y, name in enumerate(dict.fromkeys(names[places.sort_values(kind="stable").index]))}
    across, down = min(len(kinds), 4), -(-len(kinds) // 4)
    size = (7.1, 0.7 + down * (0.75 + 0.17 * len(rows)))
    figure, grid = plt.subplots(down, across, figsize=size, squeeze=False, sharey=True)
    looks = {"holds": ("#009E73", "o", "full"), "does not hold": ("#D55E00", "X", "full")}
    looks["undecided"] = ("#777777", "o", "none")
    for ax, kind in zip(grid.flat, kinds, strict=False):
        shown = judged[(judged[list(kind)] == list(kind.values())).all(axis=1)]
        for index, row in shown.iterrows():
            colour, marker, filled = looks[row["verdict"]]
            y = rows[names[index]]
            ax.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=1.2)
            ax.plot(row["difference"], y, marker=marker, color=colour, fillstyle=filled, markersize=5)
        ax.axvline(0, color="black", linewidth=0.8)
        reached = shown["low"].min(), shown["high"].max()
        if max(map(abs, reached)) > 40:  # or one point hides the others
            ax.set_xscale("symlog", linthresh=10)
            far = 80 if max(map(abs, reached)) >= 80 else 30
            ticks = [tick for tick in (-far, -10, 0, 10, far) if reached[0] <= tick <= reached[1]]
            ax.set_xticks(ticks, ticks)
            ax.margins(x=0.1)
            ax.set_xlabel("logarithmic beyond ±10", fontsize=7)
        claimed = " (not claimed)" if shown["what"].str.contains("not claimed").any() else ""
        ax.set_title(f"{kind['claim']}{claimed}: {named(kind['a'])}\n− {named(kind['b'])}", fontsize=8)
        ax.tick_params(labelsize=7)
        ax.grid(True, axis="x", alpha=0.3)
    for ax in grid.flat[len(kinds) :]:
        ax.set_visible(False)
    for ax in grid[:, 0]:
        ax.set_yticks(range(len(rows)), rows)
    grid[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    keys = [
        plt.Line2D([], [], color=colour, marker=marker, fillstyle=filled, markersize=5, label=word)
        for word, (colour, marker, filled) in looks.items()
    ]
    figure.legend(handles=keys, loc="outside upper left", ncols=3, fontsize=8)
    areas = judged.loc[judged["metric"] == "AUC", "dataset"].unique()
    told = f"\n{named(*areas)}: in AUC, except against the vote" if len(areas) else ""
    figure.supxlabel(f"difference in test accuracy, in points{told}", fontsize=8)
    return figure


def _point_names(judged: "pd.DataFrame") -> "pd.Series":
    """What tells the rows apart, in words: width, epochs and options only where points differ in them alone."""
    place = ["dataset", "backbone", "grid", "overlap"]
    told = judged["dataset"].replace(NAMES) + ", " + judged["backbone"].replace(NAMES) + ", " + _cut(judged)
    epochs = judged["epochs"].astype(str)
    longer = epochs + " + " + epochs + " against " + judged["epochs of b"].astype(str)
    words = {
        "width": "width " + judged["width"].astype(str),
        "epochs": epochs.mask(judged["epochs of b"] > judged["epochs"], longer) + " epochs",
        "variant": judged["variant"],
    }
    several = judged.groupby(place)[[*words]].transform("nunique") > 1
    several["epochs"] |= judged["epochs of b"] > judged["epochs"]
    for name, word in words.items():
        told = told + (", " + word).where(several[name] & (word != ""), "")
    return told
