"""What the README and its companions promise: links, commands and numbers."""

import itertools
import re
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ddlib
from ddlib.__main__ import commands
from ddlib.report import figures as plots

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for folder in (".", "docs", "notebooks", "results") for path in (ROOT / folder).glob("*.md"))
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "docs/results.md").read_text()
RECORDS = (ROOT / "results/README.md").read_text()
VERDICTS = (ROOT / "docs/verdicts.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path):
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_exist(page: Path):
    text = page.read_text()
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    for target in re.findall(r"(?:^|`)make ([a-z]+)", text, re.M):
        assert target in targets, target
    for command in re.findall(r"(?:^|`)(?:ddlib|python -m ddlib) ([a-z]+)", text, re.M):
        assert command in commands.commands, command
    for path in re.findall(r"(?:^|`)papermill (notebooks/\d\w+\.ipynb)", text, re.M):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"notebooks/(?:params|plans)/(?!NAME)\w+\.yaml", text):
        assert (ROOT / path).exists(), path


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub and the site make them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_to_headings_lead_to_one(page: Path):
    for link, anchor in re.findall(r"\]\(([^)#:]*\.md|)#([^)]+)\)", page.read_text()):
        assert anchor in anchors((page.parent / link) if link else page), f"{link}#{anchor}"


def test_the_readme_is_read_in_five_minutes():
    assert len(README.split()) <= 1500
    assert len(README.partition("\n| ")[0].split()) <= 120, "first table"
    assert len(README.partition("\nmake ")[0].split()) <= 200, "first command"
    code = re.sub(r"^```.*?^```$", "", README, flags=re.M | re.S)
    paragraphs = [part for part in re.split(r"\n\n|\n(?=- )", code) if not part.startswith("|")]
    assert max(len(paragraph.split()) for paragraph in paragraphs) <= 80


SHOWN = ["global", "local", "average", "vote", "cnn-dnn", "coherent", "transfer"]


def test_the_main_table_is_that_of_the_records():
    names = {shown: name for name, shown in plots.NAMES.items()}
    table = pd.read_csv(ROOT / "results/report/accuracy.csv", keep_default_na=False)
    table = table[(table["epochs"] == 150) & ~table["variant"].str.contains("log_probabilities")]
    lines = re.findall(r"^\| ([^,|\n]+), (\d×[\d×]+|regions)(?:, overlap (\d))? \| (.*) \|$", README, re.M)
    assert len(lines) == len(table) == 8
    for dataset, grid, overlap, values in lines:
        point = {"dataset": names.get(dataset, dataset), "grid": grid.replace("×", "x"), "overlap": int(overlap or 0)}
        known = table[np.logical_and.reduce([table[name] == value for name, value in point.items()])]
        expected = known[SHOWN].iloc[0].str.removesuffix(" (3)").tolist()  # with overlap one seed, as the page says
        assert values.split(" | ") == expected, point
        assert all("±" in value for value in expected) or overlap


def test_the_table_of_twelve_epochs_is_that_of_the_records():
    frame = ddlib.gather(ROOT / "results/cifar10")
    point = {"backbone": "vgg9", "width": 32, "epochs": 12, "variant": ""}
    frame = frame[np.logical_and.reduce([frame[name] == value for name, value in point.items()])]
    table = ddlib.accuracy_table(frame).reset_index()
    rows = re.findall(r"^\| ([\dx×]+), overlap (\d+) \| (.*) \|$", RESULTS, re.M)
    assert len(rows) == 6
    for grid, overlap, values in rows:
        known = table[(table["grid"] == grid.replace("×", "x")) & (table["overlap"] == int(overlap))]
        expected = known[SHOWN].iloc[0].str.removesuffix(" (3)").tolist()  # of overlap 2 one seed, as the page says
        assert values.split(" | ") == expected, (grid, overlap)
        assert all("±" in value for value in expected) or overlap == "2"


def test_what_is_said_of_regimes_is_in_their_tables():
    means = pd.read_csv(ROOT / "results/regimes/cifar10/overfit.csv")
    means = means[means["record"].isin(r.stem for r in (ROOT / "results/regimes/cifar10").glob("*.json"))]
    means = means.groupby(["epochs", "augment"])[["C1", "local", "local, training"]].mean()
    c1 = {key: f"{value:.1f}".replace("-", "−") for key, value in means["C1"].items()}
    told = f"from {c1[12, 'yes']} points after 12 epochs to {c1[150, 'yes']} after 150, "
    assert told + f"without from {c1[12, 'no']} to {c1[150, 'no']}" in VERDICTS
    behind = [c1[150, augment].removeprefix("−") for augment in ("yes", "no")]
    assert "it is {} points behind, without augmentation {}, in part".format(*behind) in README
    assert means.loc[(150, "no"), "local, training"] > 99.9
    assert f"on {means.loc[(150, 'no'), 'local']:.0f} % of the others" in VERDICTS
    probe = pd.read_csv(ROOT / "results/regimes/cifar10/probe.csv", index_col="half")
    known, new = probe.loc["known"], probe.loc["not known"]
    assert f"it reaches {new.iloc[2]:.1f} % in place of {known.iloc[2]:.1f} (one seed" in VERDICTS
    shorter = "after 5 epochs in place of 20, so that it overfits less itself"
    assert f"{shorter}, {new.iloc[3]:.1f} in place of {known.iloc[3]:.1f}." in VERDICTS
    assert f"and has {known['average']:.1f}." in VERDICTS


def test_what_is_said_of_the_remedies_is_in_the_records():
    frame = pd.concat(ddlib.gather(ROOT / "results" / folder) for folder in ("regimes", "150_epochs"))
    frame = frame[frame["strategy"].isin(["average", "cnn-dnn"])].astype({"variant": str})
    frame["way"] = [" ".join(re.findall(r"out_of_fold|log_probabilities|dense_epochs", v)) for v in frame["variant"]]
    frame["images"] = frame["variant"].str.contains("train_size")
    place = ["dataset", "grid", "overlap", "width", "epochs", "augment", "images"]
    means = 100 * frame.groupby([*place, "way", "strategy"])["test_accuracy"].mean().unstack()
    ahead = (means["cnn-dnn"] - means["average"]).unstack("way").dropna(subset="log_probabilities")
    gain = ahead.sub(ahead[""], axis=0)

    folds = gain.xs((16, "no", True), level=("width", "augment", "images"))["out_of_fold"]
    assert len(folds) == 3
    behind = "it is {:.1f} behind after 12 epochs, {:.1f} ahead after 40 and {:.1f} after 150"
    assert behind.format(-folds.iloc[0], *folds.iloc[1:]) in VERDICTS
    left = -ahead.xs((16, 150, "no"), level=("width", "epochs", "augment"))["out_of_fold"].dropna()
    assert f"the average is still {left.item():.1f} ahead of it" in VERDICTS
    harm = -gain.xs((32, 150, "no"), level=("width", "epochs", "augment"))["log_probabilities"]
    assert f"without augmentation on 5,000 images {harm.item():.1f} behind" in VERDICTS
    shorter = gain.loc["cifar10"]["dense_epochs"]
    assert (
        f"cost at most {-shorter.min():.1f} in any regime of CIFAR-10, and gain up to {shorter.max():.1f}" in VERDICTS
    )
    best = ahead.drop(columns="").max(axis="columns")
    plain, augmented = (best.xs(augment, level="augment") for augment in ("no", "yes"))
    assert plain.max() < 0.1
    assert "Without augmentation none passes the average by 0.1;" in VERDICTS
    ways = augmented[ahead[""].xs("yes", level="augment") < 0]
    assert f"with it, one does in {(ways > 0).sum()} of the {len(ways)} regimes" in VERDICTS
    low, high = ways[ways > 0].min(), ways.max()
    assert f"in which the papers' way is behind, by {low:.1f} to {high:.1f}." in VERDICTS


def test_the_lda_is_that_of_its_table():
    table = pd.read_csv(ROOT / "results/two_decompositions/cifar10/lda.csv", index_col="grid")
    dense, whole, average = table["dense network"].dropna(), table["local"].iloc[0], table["average"].dropna()
    assert (dense > whole).all()
    assert (average < whole).all()
    told = (
        "One LDA of the whole image has {:.1f} %; windows with the dense network have {:.1f} (2×2), {:.1f} (4×4) and "
    )
    told += "{:.1f} % (8×8), while their average falls from {:.1f} to {:.1f}"
    assert told.format(whole, *dense, average.iloc[0], average.iloc[-1]) in VERDICTS
    assert f"LDA in windows (C8): {dense.iloc[-1]:.1f}, whole {whole:.1f} %" in README
    table = pd.read_csv(ROOT / "results/two_decompositions/flowers/lda.csv", index_col="grid")
    ahead = (table - table["local"].iloc[0]).dropna()
    told = (
        "windows are ahead however combined, the dense network by {:.1f} (2×2) and {:.1f} points (4×4), the average by "
    )
    assert (told + "{:.1f} and {:.1f};").format(*ahead["dense network"], *ahead["average"]) in VERDICTS
    assert (ahead["vote"] > 0).all()


def test_decomposed_samples_are_those_of_their_table():
    table = pd.read_csv(ROOT / "results/two_decompositions/flowers/sides.csv").groupby("model")["test accuracy (%)"]
    mean, count = table.mean(), table.count()
    further = [f"{mean[f'channels, trained further{kind}']:.1f}" for kind in ("", " (windows)", " (shares)")]
    assert f"composed and trained further, reach {further[0]}, {further[1]} and {further[2]} %." in VERDICTS
    whole, image = mean["global CNN"], mean["image, trained further"]
    assert f"has {whole:.1f}, the image's decomposition with transfer {image:.1f}." in VERDICTS
    assert (count == 3).all()


def test_the_factors_on_a_gpu_are_those_of_its_table():
    times = pd.read_csv(ROOT / "results/training_time/gpu/training_time.csv")
    factors = times["parallel speed-up"]
    small, volumes = times["backbone"] == "vgg9", times["backbone"] == "cnn3d"
    assert f"the factor is {factors[small].min():.1f} to {factors[small].max():.1f}," in VERDICTS
    ranges = [factors[volumes & (times["width"] == width)] for width in (16, 64)]
    told = "{:.1f} to {:.1f} at width 16, {:.1f} to {:.1f} at width 64"
    assert told.format(*(f for some in ranges for f in (some.min(), some.max()))) in VERDICTS


def test_the_factors_at_the_papers_sizes_are_those_of_their_table():
    times = pd.read_csv(ROOT / "results/training_time/papers/training_time.csv").set_index(["width", "grid"])
    factors = times["parallel speed-up"].sort_index()
    images = factors[times.sort_index()["backbone"] == "vgg9"].groupby("width").agg(["min", "max"])
    told = "{:.1f} to {:.1f} at width 16, {:.1f} to {:.1f} at width 64"
    assert told.format(*images.loc[16], *images.loc[64]) in VERDICTS
    assert f"it is {factors[16, '4×4×2']:.1f} (width 16) and {factors[64, '4×4×2']:.1f} (width 64)." in VERDICTS


def test_the_longest_local_cnn_is_held_against_real_processes():
    times = pd.read_csv(ROOT / "results/training_time/processes/processes.csv").set_index("width")
    told = [f"{times.loc[w, f'speed-up, {way}']:.1f}" for w in (32, 64) for way in ("processes", "longest")]
    assert "make it {} in place of {} times (width 32) and {} in place of {} (width 64;".format(*told) in VERDICTS


def test_the_table_of_all_data_sets_is_that_of_the_report():
    names = {shown: name for name, shown in plots.NAMES.items()}
    strategies = SHOWN
    table = pd.read_csv(ROOT / "results/report/accuracy.csv", keep_default_na=False)
    areas = pd.read_csv(ROOT / "results/report/scores.csv", keep_default_na=False)
    table, areas = (frame[frame["epochs"] < 150] for frame in (table, areas))
    part = RESULTS.partition("\n## ")[2].partition("\n## ")[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines() if line.startswith("|")]
    checked = 0
    for (dataset, backbone, place, *cells), following in itertools.pairwise([*lines[2:], ["", "", ""]]):
        if not place:
            continue
        grid, _, overlap = place.partition(", overlap ")
        point = {"dataset": names.get(dataset, dataset), "backbone": names[backbone]}
        point |= {"grid": grid.replace("×", "x"), "overlap": int(overlap or 0)}

        def own(frame, point=point):
            return frame[np.logical_and.reduce([frame[name] == value for name, value in point.items()])]

        known = own(table)
        assert cells in known[strategies].to_numpy().tolist(), point
        if len(own(areas)):
            assert following[0] == "… AUC", point
            mean = own(areas).groupby("strategy")["AUC"].mean()
            expected = [f"{mean[s]:.1f}" if s in mean else "" for s in strategies]
            assert [cell.partition(" ±")[0] for cell in following[3:]] == expected, point
        checked += 1
    assert checked >= len(table[["dataset", "backbone"]].drop_duplicates()) - 1 > 5


def test_the_verdicts_are_those_of_the_report():
    known = pd.read_csv(ROOT / "results/report/summary.csv", keep_default_na=False)
    expected = []
    for row in known[known["claim"] != "remedy"].to_dict("records"):
        more = f", or at most {row['margin']:g} point behind" if row["margin"] else ""
        more += ", in time" if row["claim"] == "C4" else ""
        counts = f"{row['holds']} / {row['does not hold']} / {row['undecided']}"
        expected.append(
            (row["claim"], f"{plots.named(row['a'])} over {plots.named(row['b'])}{more}", row["training"], counts)
        )
    assert re.findall(r"^\| (C\d) \| (.*) \| (.*) \| (\d+ / \d+ / \d+) \|$", VERDICTS, re.M) == expected


def test_the_readme_counts_the_same_verdicts():
    told = re.findall(r"^\| \[?(C\d)(?:\]\(\S+\))? \| (.*) \| (\d+) \| (\d+) \| (\d+) \| (.*) \|$", README, re.M)
    known = re.findall(r"^\| (C\d) \| (.*) \| .* \| (\d+) / (\d+) / (\d+) \|$", VERDICTS, re.M)
    assert [(claim, *counts) for claim, _, *counts, _ in told] == [(claim, *counts) for claim, _, *counts in known]
    for claim, *_, when in told:  # its numbers are those of verdicts.md, which are held to the tables
        for number in re.findall(r"\d+\.\d", when):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", chapters()[claim]), (claim, number)


def rows_of(claim: str) -> pd.DataFrame:
    judged = pd.read_csv(ROOT / "results/report/claims.csv", keep_default_na=False, na_values={"low": "", "high": ""})
    return judged[judged["claim"] == claim]


def chapters() -> dict[str, str]:
    """Claim → what docs/verdicts.md says of it."""
    _, *parts = re.split(r"^## (C\d|Remedies)", VERDICTS, flags=re.M)
    return {"remedy" if name == "Remedies" else name: text for name, text in zip(parts[::2], parts[1::2], strict=True)}


def test_every_interval_is_one_of_its_claim():
    """As in: by 5.7 [4.5, 6.9], of a − b or of b − a."""
    number = r"(−?\d+\.\d)"
    count = 0
    for claim, text in chapters().items():
        rows = rows_of(claim)[["difference", "low", "high"]].astype(float).to_numpy()
        both = np.vstack([rows, -rows[:, [0, 2, 1]]])
        known = {tuple(re.sub(r"^-", "−", f"{x:.1f}").replace("−0.0", "0.0") for x in row) for row in both}
        for words in re.findall(rf"{number} \[{number}, {number}\]", text):
            assert words in known, (claim, words)
            count += 1
    assert count > 20


RANGES = [  # claim, b, training, data sets and what else names the rows, sign of the difference, words
    ("C1", "average", "E : E", "dataset == 'lidc_nodules'", -1, "by {low} to {high} (all undecided)"),
    ("C2", "cnn-dnn", "E + E : E", "dataset == 'cifar10' and n == 3", 1, "by {low} to {high} points"),
    ("C3", "cnn-dnn", "E : E", "dataset == 'cifar10' and n == 3 and epochs < 24", -1, "by {low} to {high} points"),
    ("C5", "global", "E : E", "dataset == 'cifar10' and n == 3", -1, "by {low} to {high} points"),
    ("C5", "global", "E : E", "dataset == 'lidc_nodules' and epochs < 150", -1, "by {low} to {high}. On faces"),
    ("C6", "global", "E + E : E", "n == 3", 1, "in all 12 rows, by {low} to {high} points"),
    ("C6", "global", "E + E : 2E", "n == 3", -1, "in all 6, by {low} to {high};"),
    ("C7", "global", "E + E : E", "dataset == 'cifar10' and n == 3", -1, "by {low} to {high} points"),
    ("C7", "global", "E + E : E", "dataset == 'faces'", 1, "by {low} to {high} (undecided)"),
]


@pytest.mark.parametrize(("claim", "b", "training", "query", "sign", "words"), RANGES)
def test_every_range_is_that_of_its_rows(claim, b, training, query, sign, words):
    rows = rows_of(claim).query(f"b == @b and training == @training and ({query})")
    found = sign * rows["difference"]
    assert (found > 0).all()
    assert words.format(low=f"{found.min():.1f}", high=f"{found.max():.1f}") in chapters()[claim]


def test_the_factors_of_training_time_are_those_of_the_table():
    times = pd.read_csv(ROOT / "results/training_time/training_time.csv")
    for column in ("parallel speed-up", "one-machine speed-up"):
        assert f"{times[column].min():.1f} to {times[column].max():.1f}" in chapters()["C4"]
    assert f"in all {len(times)} rows" in chapters()["C4"]


@pytest.mark.parametrize(
    ("page", "heading", "count"), [(README, "Does it pay?", 4), (RESULTS, "Accuracy against cost", 8)]
)
def test_every_cost_is_one_of_the_report(page: str, heading: str, count: int):
    """As in: 79.2 % after 453 s, means over seeds of a strategy at a point."""
    part = page.partition(f"## {heading}")[2].partition("\n## ")[0]
    told = re.findall(r"(\d+\.\d) % (?:\(\w+ seeds\) )?after (?:\d+ epochs and )?([\d,]+) s", part)
    costs = pd.read_csv(ROOT / "results/report/costs.csv", keep_default_na=False)
    costs = costs[(costs["dataset"] == "cifar10") & (costs["backbone"] == "vgg9") & (costs["width"] == 32)]
    known = set()
    for way in ("one machine", "parallel"):
        costs[way] = pd.to_numeric(costs[way])
        means = costs.groupby(["grid", "overlap", "epochs", "variant", "strategy"])[["test_accuracy", way]].mean()
        known |= {(f"{100 * a:.1f}", f"{t:,.0f}") for a, t in means.dropna().to_numpy()}
    assert len(told) == count
    assert set(told) <= known


def test_the_factors_of_workers_are_those_of_the_training_times():
    times = pd.read_csv(ROOT / "results/training_time/training_time.csv")
    names = {plots.NAMES[name]: name for name in ("vgg9", "resnet20", "cnn3d")}
    said = re.findall(
        r"^\| \w+ of ([\d×]+)(?:, overlap (\d))? \| (.*) \| ([\d.]+) \D*(?:\(2×2\) )?to ([\d.]+) times", RESULTS, re.M
    )
    assert len(said) == 5
    for images, overlap, backbone, low, high in said:
        rows = times[(times["images"] == images) & (times["overlap"] == int(overlap or 0))]
        factors = rows.loc[rows["backbone"] == names[backbone], "parallel speed-up"]
        for word, factor in ((low, factors.min()), (high, factors.max())):
            assert word == f"{factor:.{len(word.partition('.')[2])}f}"
    both = [
        (row["parallel speed-up"], 12 * row["global"] / (12 * row["longest local"] + 20 * row["dense network"]))
        for row in times.to_dict("records")
    ]
    told = re.search(r"after 12 of the local CNNs, (.*)\.", RESULTS).group(1)
    pairs = re.findall(r"(\d+) becomes (\d+)", told)
    assert len(pairs) == 3
    assert {*pairs} <= {(f"{alone:.0f}", f"{dense:.0f}") for alone, dense in both}


def test_the_factors_of_the_engine_are_those_of_the_benchmark():
    table = pd.read_csv(ROOT / "results/bench/engines.csv").set_index(["grid", "engine"])["ratio"]
    bf16, fp32 = ([table[grid, f"local, fused{end}"] for grid in ("2×2", "4×4")] for end in ("", ", fp32"))
    told = f"in bf16 is {bf16[0]:.1f} (2×2) and {bf16[1]:.1f} times (4×4) as fast as a plain loop in fp32, in fp32 "
    told += f"{fp32[0]:.1f} and {fp32[1]:.1f} times, and {bf16[1] / table['4×4', 'local, DataLoader']:.0f} times"
    assert told in RESULTS


def test_the_factors_of_the_engine_on_a_gpu_are_those_of_the_benchmark():
    table = pd.read_csv(ROOT / "results/bench/gpu/speeds.csv").pivot(index="N", columns="way", values="ratio")
    four, sixteen, many = table["fused"]
    assert f"of 4, 16 and 64 local CNNs is {four:.0f}, {sixteen:.0f} and {many:.0f} times as fast" in RESULTS
    four, sixteen, many = table["fused, CUDA graphs"]
    assert f"with CUDA graphs {four:.0f}, {sixteen:.0f} and {many:.0f} times" in RESULTS


def test_what_images_larger_than_memory_take_is_that_of_the_benchmark():
    folder = ROOT / "results/bench/memory"
    first = pd.read_csv(folder / "reading.csv").query("reading == 'first'").set_index("way")
    memory, seconds = first["GiB"], first["seconds"]
    assert f"takes {memory['files']:.2f} GiB of memory in place of {memory['memory']:.1f}" in RESULTS
    assert f"{seconds['files']:.0f} s in place of {seconds['memory']:.0f}" in RESULTS
    ratio = pd.read_csv(folder / "training.csv").set_index("way")["ratio"]["files"]
    assert f"at {ratio:.2f} of the speed in memory" in RESULTS


def test_what_executors_take_is_that_of_the_benchmark():
    page, folder = (ROOT / "docs/cluster.md").read_text(), ROOT / "results/bench/executors"
    table, mpi = (pd.read_csv(path / "executors.csv").query("per_task == 1") for path in (folder, folder / "mpi"))
    table = table[table["executor"] != "threads"]  # with two threads each, as the caller has
    named = table[table["images"] == "by name"]["ratio"]
    assert f"{named.min():.2f} to {named.max():.2f} of the time of the loop" in page
    assert f"MPI {mpi[mpi['images'] == 'by name']['ratio'].item():.2f} (" in page
    assert (pd.concat([table, mpi])["difference to the loop"] == 0).all()
    carried = mpi.set_index("images")["bytes a task"] / 1e6
    assert (
        f"{carried['by name']:.2f} MB; images without a name travel with every task, {carried['as tensors']:.1f} MB"
        in page
    )


def test_bf16_moves_accuracies_as_little_as_is_said():
    frame = ddlib.gather(ROOT / "results/precision")
    frame["precision"] = frame["computed"].str.split(", ").str[-1]
    mean = frame.groupby(["grid", "precision", "strategy", "seed"])["test_accuracy"].mean()
    mean = 100 * mean.groupby(["grid", "strategy", "precision"]).mean().round(6)
    for grid in ("2x2", "4x4"):
        cells = [[mean[grid, name, p] for p in ("bf16", "fp32")] for name in ("local", "average", "vote", "cnn-dnn")]
        line = " | ".join(f"{a:.1f} / {b:.1f}" for a, b in cells)
        assert f"| {grid.replace('x', '×')} | {line} |" in RECORDS


def test_every_folder_of_results_is_explained():
    folders = [path for path in (ROOT / "results").iterdir() if path.is_dir()]
    lines = [line for line in RECORDS.splitlines() if line.startswith("| [")]
    assert {f"[{path.name}]({path.name})" for path in folders} == set(
        re.findall(r"\[\w+\]\(\w+\)", " ".join(line.split(" | ")[0] for line in lines))
    )
    assert "None is outdated." in RECORDS
    for path in folders:
        if any(path.rglob("*.npz")):
            assert not any(ddlib.gather(folder)["outdated"].any() for folder in {p.parent for p in path.rglob("*.npz")})


def test_the_time_that_local_training_saves_is_that_of_the_tables():
    folders = ("cifar10", "cifar10_resnet20")
    saved = pd.concat([pd.read_csv(ROOT / f"results/{folder}/epochs_saved.csv") for folder in folders])
    assert (saved["transfer, epochs"] == 0).all()  # the CNN-DNN is ahead before transfer begins
    ratio = (saved["transfer, seconds"] / saved["coherent, seconds"]).median()
    assert f"median ratio {ratio:.1f};" in VERDICTS


def test_the_lead_of_sub_networks_at_equal_time_is_that_of_the_tables():
    """Over the straight line between trainings of E and 2E epochs from random weights, by seed; E + E epochs of P3."""
    leads = {True: [], False: []}
    for path in sorted(ROOT.glob("results/channels/*/time_to_accuracy.csv")):
        table = pd.read_csv(path)
        shortest, longest = sorted(set(table["epochs"]))
        line = table[table["channel_parts"] == 0].groupby(["seed", "epochs"])[["seconds", "test_accuracy"]].mean()
        some = table[(table["channel_parts"] > 0) & (table["epochs"] == shortest)]
        for (_, workers), rows in some.groupby(["channel_parts", "workers"]):
            over = [
                row["test_accuracy"]
                - np.interp(row["seconds"], *line.loc[row["seed"]].loc[[shortest, longest]].to_numpy().T)
                for _, row in rows.iterrows()
            ]
            leads[bool(workers)].append(100 * np.mean(over))
    told = f"they are {min(leads[True]):.1f} to {max(leads[True]):.1f} above the straight line"
    assert told in VERDICTS
    assert len(leads[True]) == len(leads[False]) == 6
    assert max(leads[False]) < 0  # "on one machine below it"


def test_every_notebook_is_in_the_map():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert f"notebooks/{path.name}" in README, path.name
        assert path.name in (ROOT / "notebooks/README.md").read_text(), path.name


def test_the_page_of_all_notebooks_opens_offline():
    """What `make reproduce` ends with: figures within, formulas as MathML, and links from part to part."""
    paths = sorted((ROOT / "notebooks").glob("0[01]_*.ipynb"))
    html = runpy.run_path(str(ROOT / "notebooks/reproduce.py"))["page"](paths, "All notebooks")
    assert "<script" not in html
    assert not re.findall(r"(?:src|srcset)=\"(?!data:)|<link [^>]*href|@import|url\(\s*[\"']?http", html)
    assert 'src="data:image/png' in html
    assert "<math" in html
    assert "<mi>w</mi><mo>&#x0002F;</mo><msqrt><mi>N</mi></msqrt>" in html  # the width of a local CNN
    assert not re.search(r"<math[^>]*></math>|<m[a-z]+></m|MATHML", html), "a formula is empty"
    assert not re.search(r"\$[^$<>\n]{1,40}\$", re.sub(r"<pre>.*?</pre>", "", html, flags=re.S)), "a formula is left"
    for path in paths:
        assert f'id="{path.stem}"' in html
        assert f'href="#{path.stem}"' in html
