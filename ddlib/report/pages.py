"""Verdicts as figures and pages: a forest plot a claim, and templates that are filled from the tables of a report."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..study.parameters import resolve
from .claims import COMPARED, VERDICTS, way
from .figures import COLOURS, OTHER, cut, named
from .tables import POINT, over_seeds

TEMPLATES = "docs/templates"  # NAME.md.j2 there makes docs/NAME.md, README.md.j2 the README
# regimes differ by marker, so that grey print tells them apart
REGIMES = {"short": ("o", "short training"), "long": ("s", "150 epochs or more")}


def problem(name: str) -> str:
    """A problem in words: "CIFAR-10 (20,000 images)"."""
    dataset, _, images = name.partition(", ")
    return named(dataset) + (f" ({int(images.split()[0]):,} images)" if images else "")


def place(row: Mapping[str, Any]) -> str:
    """A point in words: "CIFAR-10, VGG9 (32), 2×2, δ = 4, 12 epochs", its width in brackets."""
    split = re.search(r"channel_parts=(\d+)", row["variant"])
    parts = f"P = {split[1]}" if split else cut(row["grid"], row["overlap"])
    words = [problem(row["problem"]), f"{named(row['backbone'])} ({row['width']})", parts, f"{row['epochs']} epochs"]
    words += [way(row["variant"])] * bool(way(row["variant"]))
    return ", ".join(words)


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
    means = _shown(pooled)
    below = [*dict.fromkeys(zip(means["over"], means["scope"], strict=True))]
    height = 0.9 + 0.125 * (len(lines) + 1 + len(below)) + 0.3
    size, ratio = (5.9, height), {"wspace": 0.04}
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False, gridspec_kw=ratio)
    for ax, own in zip(axes[0], panels, strict=True):
        same = (means[COMPARED] == own.iloc[0][COMPARED].tolist()).all(axis=1)
        _rows(ax, own, lines)
        _diamonds(ax, means[same], below, len(lines) + 1)
        _scale(ax, own)
        a, b, training = own.iloc[0][["a", "b", "training"]]
        ax.set_title(f"{named(a)} −\n{named(b)}, {training}", fontsize=7)
    texts = [*lines, "", *(f"mean: {_scope(over, scope)}" for over, scope in below)]
    axes[0, 0].set_yticks(range(len(texts)), texts, fontsize=6)
    axes[0, 0].set_ylim(len(texts) - 0.4, -0.6)
    bent = ", logarithmic beyond ±5" if any(ax.get_xscale() == "symlog" for ax in axes[0]) else ""
    figure.supxlabel(f"difference in points of accuracy, or of AUC where there are two classes{bent}", fontsize=7)
    _legend(figure, judged)
    return figure


def _shown(pooled: pd.DataFrame) -> pd.DataFrame:
    """Of the means of a claim, those over all rows, by regime and problem, and by variant where there are several."""
    several = pooled.loc[pooled["over"] == "way", "scope"].nunique() > 1
    return pooled[pooled["over"].isin(["all", "regime", "problem", *["way"] * several])]


def _scope(over: str, scope: str) -> str:
    """What a mean is over, in words."""
    regimes = {"all": "all rows"} | {name: text for name, (_, text) in REGIMES.items()}
    return regimes.get(scope) or (problem(scope) if over == "problem" else scope)


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
    keys += [key("ahead or behind"), key("level or open", fill="white")]
    keys += [key("fewer than three seeds", marker="", line=":"), key("mean of rows", marker="D")]
    figure.legend(handles=keys, loc="outside upper left", ncols=5, fontsize=5.5, handletextpad=0.4, columnspacing=1)


def overview(pooled: pd.DataFrame) -> Figure:
    """The mean effects of all comparisons: a diamond over all rows, and points for the data sets."""
    pooled = pooled[~pooled["claim"].isin(["remedy"])]
    lines = [*dict.fromkeys(map(tuple, pooled[COMPARED].to_numpy()))]
    figure, ax = plt.subplots(figsize=(5.9, 0.9 + 0.3 * len(lines)))
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
    texts = [f"{line[0]}: {named(line[1])} − {named(line[2])}, {line[3]}" for line in lines]
    ax.set_yticks(range(len(lines)), texts, fontsize=6.5)
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


# ── pages ──


def number(value: float, digits: int = 1) -> str:
    """With a minus sign, and never below zero where it rounds to it: "−1.2"."""
    return f"{round(float(value), digits) + 0.0:,.{digits}f}".replace("-", "−")


def spoken(effect: Mapping[str, Any], signed: bool = False) -> str:
    """A difference with its interval, and verdict if not signed: "1.2 [0.3, 2.1] behind", "−0.4 [−1.7, 0.8] (open)"."""
    middle, low, high = effect["difference"], effect["low"], effect["high"]
    verdict = "" if signed else effect["verdict"]
    if verdict == "behind":
        middle, low, high = -middle, -high, -low
    end = f" {verdict}" if verdict in ("ahead", "behind") else f" ({verdict})"
    return f"{number(middle)} [{number(low)}, {number(high)}]" + ("" if signed else end)


def listed(words: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


class Report:
    """The tables of a report, as templates ask for them.

    Attributes:
        folder: of claims.csv and the others.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.rows, self.means = self.csv("claims"), self.csv("means")

    def csv(self, name: str) -> pd.DataFrame:
        """A table of the report, or one below the project's root: "results/precision/x.csv"."""
        path = resolve(name) if "/" in name else self.folder / f"{name}.csv"
        table = pd.read_csv(path)
        words = [name for name in table if table[name].dtype.kind not in "iufb" or table[name].isna().all()]
        return table.astype(dict.fromkeys(words, object)).fillna(dict.fromkeys(words, ""))

    def row(self, claim: str, b: str, **given: Any) -> dict[str, Any]:
        """The one row of claims.csv that has these values."""
        return self._one(self.rows, {"claim": claim, "b": b, **given})

    def mean(self, claim: str, b: str, scope: str = "all", **given: Any) -> dict[str, Any]:
        """The one row of means.csv that has these values; without `training`, of the first that was compared."""
        own = self.means[(self.means["claim"] == claim) & (self.means["b"] == b)]
        return self._one(own, {"scope": scope, "training": own["training"].iloc[0], **given})

    @staticmethod
    def _one(table: pd.DataFrame, given: Mapping[str, Any]) -> dict[str, Any]:
        for name, value in given.items():
            table = table[table[name] == value]
        if len(table) != 1:
            raise ValueError(f"{len(table)} rows have {given}")
        return table.iloc[0].to_dict()

    def find(self, claim: str, b: str, scope: str, training: str | None = None) -> dict[str, Any] | None:
        """As `mean`; None where there is no such row, as for a data set that a comparison was not made on."""
        try:
            return self.mean(claim, b, scope, **({"training": training} if training else {}))
        except ValueError:
            return None

    def settings(self, *names: str) -> str:
        """Tables of notebook 10, a row a setting without coarse window; accuracies in %, columns as in print."""
        table = pd.concat([self.csv(name).assign(set=Path(name).parent.name) for name in names]).query("~coarse")
        shown = ("global", "average", "cnn-dnn", "correction", "transfer")
        strategies = [name for name in shown if name in table]
        heads = ["", "local CNNs", "work", *map(named, strategies)]
        lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for row in table.to_dict("records"):
            cells = [row["set"], row["width"], number(row["work"], 2), *(number(row[s]) for s in strategies)]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def finding(self, claim: str, b: str, over: str = "problem", **given: Any) -> str:
        """Where the mean has which verdict: "ahead on CIFAR-10, level on faces"."""
        own = self.means[(self.means["claim"] == claim) & (self.means["b"] == b) & (self.means["over"] == over)]
        own = own[own["training"] == given.get("training", own["training"].iloc[0])]
        scopes = {verdict: own.loc[own["verdict"] == verdict, "scope"] for verdict in VERDICTS}
        return ", ".join(
            f"{verdict} on {listed([*map(problem, some)])}" for verdict, some in scopes.items() if len(some)
        )

    def effects(self, claim: str) -> str:
        """The mean effects of a claim as a table: a column a comparison, rows over all, regimes and problems."""
        own = _shown(self.means[self.means["claim"] == claim])
        asked = [*dict.fromkeys(map(tuple, own[COMPARED].to_numpy()))]
        heads = [f"{named(a)} − {named(b)}, {training}" for _, a, b, training, _ in asked]
        lines = ["| mean over | " + " | ".join(heads) + " |", "|---" * (len(asked) + 1) + "|"]
        for over, scope in dict.fromkeys(zip(own["over"], own["scope"], strict=True)):
            some = own[(own["over"] == over) & (own["scope"] == scope)]
            cells = {tuple(row[name] for name in COMPARED): _cell(row) for row in some.to_dict("records")}
            lines.append(f"| {_scope(over, scope)} | " + " | ".join(cells.get(each, "") for each in asked) + " |")
        return "\n".join(lines)

    def summary(self) -> str:
        """The mean and the counts of every comparison of the papers' claims as a table."""
        lines = [f"| claim | comparison | mean, 95 % interval | {'/'.join(VERDICTS)} |", "|---|---|---|---|"]
        for row in self.means.query("over == 'all' and claim.str.startswith('C')").to_dict("records"):
            what = f"{named(row['a'])} − {named(row['b'])}, {row['training']}"
            lines.append(f"| {row['claim']} | {what} | {spoken(row, signed=True)} | {counts(row)} |")
        return "\n".join(lines)

    def accuracies(self, query: str) -> str:
        """Test accuracy in %, and AUC beside it where there are two classes: the points of a pandas query."""
        table, scores = self.csv("accuracy"), self.csv("scores")
        strategies = [*table.columns[len(POINT) :]]
        areas = over_seeds(scores.set_index([*POINT, "strategy", "seed"])["AUC"], POINT, scores["strategy"].unique())
        order = {tuple(point): k for k, point in enumerate(table[[*POINT]].to_numpy())}
        both = pd.concat([table.assign(metric="accuracy"), areas.reset_index().assign(metric="AUC")]).fillna("")
        both["order"] = [order[tuple(point)] for point in both[[*POINT]].to_numpy()]
        asked = both.query(query).sort_values("order", kind="stable")
        strategies = [strategy for strategy in strategies if (asked[strategy] != "").any()]
        lines = [f"| point | metric, % | {' | '.join(map(named, strategies))} |", "|---" * (2 + len(strategies)) + "|"]
        for row in asked.to_dict("records"):
            cells = [place(row | {"problem": row["dataset"]}), row["metric"], *(row[name] for name in strategies)]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def cost(self, strategy: str, **given: Any) -> dict[str, float]:
        """Accuracy in %, seconds on one machine and with workers, means over seeds: CIFAR-10, VGG9, no options."""
        usual = {"dataset": "cifar10", "backbone": "vgg9", "width": 32, "variant": "", "strategy": strategy}
        table = self.csv("costs")
        for name, value in (usual | {"grid": "1x1", "overlap": 0, "epochs": 12} | given).items():
            table = table[table[name] == value]
        means = table[["test_accuracy", "one machine", "parallel"]].mean()
        return {"accuracy": 100 * means.iloc[0], "one": means.iloc[1], "workers": means.iloc[2], "seeds": len(table)}


def counts(row: Mapping[str, Any]) -> str:
    """How many rows have each verdict: "3/1/0/2"."""
    return "/".join(str(int(row[verdict])) for verdict in VERDICTS)


def _cell(row: Mapping[str, Any]) -> str:
    metrics = {"AUC": f" AUC (in accuracy {number(row['in accuracy'])})", "accuracy": ""}
    return f"{spoken(row, signed=True)}{metrics.get(row['metric'], ' of both metrics')}; {counts(row)}"


def render(name: str, folder: Path) -> str:
    """The page NAME.md, from its template and the tables in `folder`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    options = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    env = Environment(loader=FileSystemLoader(resolve(TEMPLATES)), **options)
    env.filters |= {"number": number, "spoken": spoken, "named": named, "counts": counts}
    return env.get_template(f"{name}.md.j2").render(report=Report(folder))


def page_of(name: str) -> Path:
    """Where a page lies: README.md at the top, all others in docs/."""
    return resolve("README.md" if name == "README" else f"docs/{name}.md")


def write(folder: Path) -> list[Path]:
    """Render every page of `TEMPLATES`."""
    written = []
    for template in sorted(resolve(TEMPLATES).glob("*.md.j2")):
        name = template.name.removesuffix(".md.j2")
        written.append(page_of(name))
        written[-1].write_text(render(name, folder), encoding="utf-8")
    return written
