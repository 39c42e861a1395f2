"""Pages and tables for readers: points and verdicts in words, and templates that are filled from a report's tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..strategies import STRATEGIES
from ..study.parameters import resolve
from .claims import COMPARED, VERDICTS, WORDS, hangs_on, way
from .figures import named
from .tables import POINT, over_seeds
from .verdicts import mean_of, parts_of, place, problem, usual

REPORT = "results/report"  # of the committed records, whose tables the pages tell
TEMPLATES = "docs/templates"  # NAME.md.j2 there makes docs/NAME.md, README.md.j2 the README


# ── in words ──


def number(value: float, digits: int = 1) -> str:
    """With a minus sign, and never below zero where it rounds to it: "−1.2"; "–" where there is none (NaN)."""
    if value != value:
        return "–"
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


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A table with `POINT` as its rows and strategies as columns, for a narrow page.

    A row is called by what it alone has, with a star where training images were not augmented; what all rows have is in
    the corner.  No column is empty, and no cell NaN.  The number of seeds stands only where it is not three.
    """
    rows = table.index.to_frame(index=False).assign(**{} if "variant" in table.index.names else {"variant": ""})
    parts = [*map(parts_of, rows.to_dict("records"))]
    alike = {k for k, values in enumerate(zip(*parts, strict=True)) if len(set(values)) == 1} - {2}
    names = [", ".join(word for k, word in enumerate(words) if word and k not in alike) for words in parts]
    stars = ["" if augmented == "yes" else "*" for augmented in rows["augment"]]
    corner = ", ".join(word for k, word in enumerate(next(iter(parts), ())) if word and k in alike)
    shown = table.dropna(axis="columns", how="all").fillna("").replace({r" \(3\)$": "", " ± ": "±"}, regex=True)
    order = [name for name in STRATEGIES if name in shown] or [*shown]
    shown = shown[order].set_axis([name + star for name, star in zip(names, stars, strict=True)])
    return shown.rename(columns=named).rename_axis(columns=corner or None)


def markdown(table: pd.DataFrame) -> str:
    """A table of texts, its index left out, as Markdown: columns of words at the left."""
    lines = ["| " + " | ".join(table) + " |", "|:--" * table.shape[1] + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in table.astype(str).to_numpy())])


def in_words(means: pd.DataFrame, speeds: pd.DataFrame, lda: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What the papers claim, in words, and what was found: a row a comparison, C1 to C8.

    Args:
        means: of `claims.pool`.
        speeds: C4, a row a machine: geometric mean, least and most, in times faster; faster and slower are rows.
        lda: C8, accuracies by grid and aggregate, of 09_two_decompositions, by data set.
    """
    rows = []
    for row in means[(means["over"] == "all") & means["claim"].isin(WORDS)].to_dict("records"):
        what = f"{named(row['a'])} − {named(row['b'])}, {row['training']}"
        rows.append((row["claim"], what, spoken(row, signed=True), counts(row)))
    for machine, row in speeds.iterrows():
        range_ = f"{number(row['geometric mean'])} times [{number(row['least'])} to {number(row['most'])}]"
        rows.append(("C4", machine, range_, f"{row['faster']:.0f}/0/{row['slower']:.0f}/0"))
    for dataset, table in lda.items():
        one, finest = table.loc["1×1", "local"], table.iloc[-1]
        what = f"{named(dataset)}, {finest.name}, dense network − one LDA"
        rows.append(("C8", what, number(finest["dense network"] - one), "one run"))
    table = pd.DataFrame(rows, columns=["claim", "compared", "found", "rows"]).sort_values("claim", kind="stable")
    first = ~table["claim"].duplicated()
    table.insert(1, "the papers claim", table["claim"].map(WORDS).where(first, ""))
    return table.assign(claim=table["claim"].where(first, ""))


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

    def settings(self, **folders: str) -> str:
        """What notebook 10 left in folders, by a name: a row a setting with overlap and no coarse window, in %.

        Of two classes the area under the ROC curve, which the row says.  The last columns are differences to
        data-parallel training of the global CNN for as much work, by operations and in brackets by the clock.
        """
        shown = ("global", "average", "cnn-dnn", "correction", "transfer")
        judged = ("cnn-dnn", "transfer")
        differences = [f"{named(name)} − data-parallel" for name in judged]
        heads = ["", "local width (operations)", *map(named, shown), *differences]
        lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for name, folder in folders.items():
            table, times = (self.csv(f"{folder}/{file}.csv") for file in ("what_pays_table", "times"))
            place = ["grid", "overlap", "width", "coarse"]
            gains = {where: own.set_index("strategy") for where, own in times.groupby(place)}
            for row in table.query("overlap > 0 and not coarse").to_dict("records"):
                own = gains[tuple(row[column] for column in place)]
                label = name + (" (AUC)" if row["metric"] == "AUC" else "")
                cells = [label, f"{row['width']} ({number(row['work'], 2)})", *(number(row[key]) for key in shown)]
                cells += [f"{above(own.loc[key])} ({above(own.loc[key], ', clock')})" for key in judged]
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
        own = usual(self.means[self.means["claim"] == claim])
        asked = [*dict.fromkeys(map(tuple, own[COMPARED].to_numpy()))]
        heads = [f"{named(a)} − {named(b)}, {training}" for _, a, b, training, _ in asked]
        lines = ["| mean over | " + " | ".join(heads) + " |", "|---" * (len(asked) + 1) + "|"]
        for over, scope in dict.fromkeys(zip(own["over"], own["scope"], strict=True)):
            some = own[(own["over"] == over) & (own["scope"] == scope)]
            cells = {tuple(row[name] for name in COMPARED): _cell(row) for row in some.to_dict("records")}
            lines.append(f"| {mean_of(over, scope)} | " + " | ".join(cells.get(each, "") for each in asked) + " |")
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
            cells = [place(row), row["metric"], *(row[name] for name in strategies)]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def hangs_on(self) -> str:
        """How comparisons change with each choice of the method, as a table: mean (pairs: least to greatest)."""
        found = hangs_on(self.rows)
        found = found[found["training"].isin(("E : E", "E + E : E")) & found["claim"].str.match("C|average")]
        asked = [*dict.fromkeys(zip(found["a"], found["b"], strict=True))]
        lines = [f"| | {' | '.join(f'{named(a)} − {named(b)}' for a, b in asked)} |", "|---" * (1 + len(asked)) + "|"]
        for choice, rows in found.groupby("choice", sort=False):
            cells = {}
            for a, b, pairs, mean, low, high in rows[["a", "b", "pairs", "mean", "min", "max"]].itertuples(index=False):
                cells[a, b] = f"{number(mean)} ({pairs}: {number(low)} to {number(high)})"
            lines.append(f"| {choice} | {' | '.join(cells.get(pair, '') for pair in asked)} |")
        return "\n".join(lines)

    def cost(self, strategy: str, **given: Any) -> dict[str, float]:
        """Accuracy in %, seconds on one machine and with workers, means over seeds: CIFAR-10, VGG9, no options."""
        usual = {"dataset": "cifar10", "backbone": "vgg9", "width": 32, "variant": "", "strategy": strategy}
        table = self.csv("costs")
        for name, value in (usual | {"grid": "1x1", "overlap": 0, "epochs": 12} | given).items():
            table = table[table[name] == value]
        means = table[["test_accuracy", "one machine", "parallel"]].mean()
        return {"accuracy": 100 * means.iloc[0], "one": means.iloc[1], "workers": means.iloc[2], "seeds": len(table)}


def above(row: Mapping[str, Any], by: str = "") -> str:
    """How far a row of notebook 10's times lies above data-parallel training: "0.6", or "≤−0.9", or "–".

    By operations, or `by` ", clock".  More than ten points are of a global CNN that has hardly learnt.
    """
    found = row[f"above{by}"]
    return ">10" if found > 10 else ("≤" if row[f"at most{by}"] and found == found else "") + number(found)


def counts(row: Mapping[str, Any]) -> str:
    """How many rows have each verdict: "3/1/0/2"."""
    return "/".join(str(int(row[verdict])) for verdict in VERDICTS)


def _cell(row: Mapping[str, Any]) -> str:
    metrics = {"AUC": f" AUC (in accuracy {number(row['in accuracy'])})", "accuracy": ""}
    return f"{spoken(row, signed=True)}{metrics.get(row['metric'], ' of both metrics')}; {counts(row)}"


def render(name: str, folder: Path) -> str:
    """The page NAME.md, from its template and the tables in `folder`.

    Raises:
        ValueError: the template asks for what is not there.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError

    options = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    env = Environment(loader=FileSystemLoader(resolve(TEMPLATES)), **options)
    env.filters |= {"number": number, "above": above, "spoken": spoken, "named": named, "counts": counts, "way": way}
    try:
        return env.get_template(f"{name}.md.j2").render(report=Report(folder))
    except TemplateError as error:  # whose traceback a notebook cannot show
        raise ValueError(f"{TEMPLATES}/{name}.md.j2: {error}") from None


def page_of(name: str) -> Path:
    """Where a page lies: README.md at the top, all others in docs/."""
    return resolve("README.md" if name == "README" else f"docs/{name}.md")


def write(folder: Path) -> list[Path]:
    """Render every page of `TEMPLATES`, and then write them: all, or none where one cannot be rendered."""
    names = [template.name.removesuffix(".md.j2") for template in sorted(resolve(TEMPLATES).glob("*.md.j2"))]
    pages = {page_of(name): render(name, folder) for name in names}
    for page, text in pages.items():
        page.write_text(text, encoding="utf-8")
    return [*pages]
