"""Tables, claims and costs are what the records say."""

import base64
import math
import re
import runpy
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import record_of
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from ddlib import Experiment, accuracy_table, epochs_to_reach, gather, interval
from ddlib._internal.files import DamagedFile
from ddlib.cost.training_time import machine
from ddlib.report import claims, pages, verdicts
from ddlib.report import tables as report
from ddlib.study import records
from ddlib.study.parameters import resolve
from ddlib.study.trainings import seconds

# ── accuracies ──


@given(st.integers(1, 500), st.data())
def test_the_interval_contains_the_share(total, data):
    right = data.draw(st.integers(0, total))
    low, high = interval(right, total)
    assert 0 <= low <= right / total + 1e-12
    assert right / total - 1e-12 <= high <= 1
    wide = interval(right, total, confidence=0.99)
    assert wide[0] <= low + 1e-12
    assert wide[1] >= high - 1e-12
    mirrored = interval(total - right, total)
    assert (low, high) == pytest.approx((1 - mirrored[1], 1 - mirrored[0]))


@given(st.integers(1, 500), st.data())
def test_the_interval_is_wilsons(total, data):
    right, z = data.draw(st.integers(0, total)), 1.959963984540054
    share = right / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    reach = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    assert interval(right, total) == pytest.approx((centre - reach, centre + reach), abs=1e-9)


def test_the_interval_takes_whole_numbers_as_they_come_from_shares():
    assert interval(0.29 * 100, 100) == interval(29, 100)  # 28.999999999999996
    with pytest.raises(ValueError, match=r"right must be a whole number from 0 to 100, got 28\.5"):
        interval(28.5, 100)


def test_epochs_to_reach():
    assert epochs_to_reach([0.2, 0.5, 0.4, 0.9], 0.5) == 2
    assert epochs_to_reach([0.2, 0.5], 0.6) is None
    assert epochs_to_reach([0.7], 0.1) == 1
    assert epochs_to_reach([], 0.1) is None
    assert epochs_to_reach([0.5, 0.6], 0.5, first=0) == 0
    assert epochs_to_reach([float("nan"), 0.5], 0.5, first=0) == 1


def test_accuracy_table():
    point = {"dataset": "d", "backbone": "b", "width": 8, "overlap": 0, "epochs": 1}
    rows = [
        {**point, "grid": grid, "strategy": strategy, "subdomain": sub, "seed": seed, "test_accuracy": accuracy}
        for grid, strategy, sub, seed, accuracy in [
            ("2x2", "local", "0,0", 0, 0.2),
            ("2x2", "local", "0,1", 0, 0.4),
            ("2x2", "local", "0,0", 1, 0.4),
            ("2x2", "local", "0,1", 1, 0.6),
            ("2x2", "average", "", 0, 0.5),
            ("2x2", "average", "", 1, 0.7),
            ("1x2", "average", "", 0, 0.123),
            ("1x2", "local", "0,0", 0, 0.1),
        ]
    ]
    table = accuracy_table(pd.DataFrame(rows)).reset_index()
    assert list(table)[-2:] == ["local", "average"]
    cells = {(row["grid"], name): row[name] for _, row in table.iterrows() for name in ("local", "average")}
    assert cells == {
        ("2x2", "local"): "40.0 ± 14.1 (2)",
        ("2x2", "average"): "60.0 ± 14.1 (2)",
        ("1x2", "local"): "10.0",
        ("1x2", "average"): "12.3",
    }


def test_the_accuracy_table_names_epochs_and_augmentation():
    point = {"dataset": "d", "backbone": "b", "width": 8, "grid": "2x2", "overlap": 0, "strategy": "vote", "seed": 0}
    rows = [{**point, "epochs": e, "augment": a, "test_accuracy": 0.5} for e in (6, 12) for a in ("yes", "no")]
    table = accuracy_table(pd.DataFrame(rows)).reset_index()
    assert table[["epochs", "augment"]].to_numpy().tolist() == [[6, "yes"], [6, "no"], [12, "yes"], [12, "no"]]


# ── costs, coverage, scores ──


def test_the_training_time_table_says_what_a_local_cnn_takes_alone():
    together = {"local": {"seconds": [8, 12], "epoch": [1, 2]}, "global": {"seconds": [50], "epoch": [1]}}
    kept = record_of({"global": 0.9, "average": 0.7}, seconds_of=together)
    kept.provenance["image_shape"] = [32, 32]
    times = pd.DataFrame(
        {
            "images": "32×32",
            "grid": "2×2",
            "backbone": "vgg9",
            "width": [32, 16],
            "overlap": 0,
            "longest local": [2.0, 9],
        }
    ).assign(fused=8.0)
    table = report.costs([kept], times).set_index("strategy")
    assert table["parallel"].to_dict() == {"global": 50, "average": 5}
    assert table["one machine"].to_dict() == {"global": 50, "average": 20}
    assert np.isnan(report.costs([kept], times[times["width"] == 16]).set_index("strategy").loc["average", "parallel"])
    timed = {"local": {"seconds": [8], "seconds_longest": [3], "epoch": [1]}}
    alone = record_of({"average": 0.7}, 1, seconds_of=timed)
    alone.provenance["image_shape"] = [32, 32]
    assert report.costs([alone], times)["parallel"].tolist() == [3]  # what was measured stays


def test_the_global_cnn_is_one_point_for_all_grids():
    took = {"2x2": 50, "4x4": 60}
    history = {
        g: {"global": {"seconds": [s], "epoch": [1]}, "local": {"seconds": [8], "epoch": [1]}} for g, s in took.items()
    }
    found = [record_of({"global": 0.9, "vote": 0.7}, grid=grid, seconds_of=history[grid]) for grid in took]
    table = report.costs(found)
    assert table["one machine"].tolist() == [55, 8, 8]
    assert table["strategy"].tolist() == ["global", "vote", "vote"]
    assert table["grid"].tolist() == ["1x1", "2x2", "4x4"]


def test_the_training_time_table_has_what_costs_need():
    assert {*report.TIMED, "longest local", "fused"} < set(
        pd.read_csv(resolve("results/training_time/training_time.csv"))
    )


def test_costs_on_one_machine_and_in_parallel():
    history = {
        "local": {"seconds": [10, 20], "seconds_longest": [4, 6], "epoch": [1, 2]},
        "dense network": {"seconds": [1], "epoch": [1]},
        "global": {"seconds": [50], "epoch": [1]},
    }
    together = {"local": {"seconds": [8, 9], "epoch": [1, 2]}, "global": {"seconds": [50], "epoch": [1]}}
    found = [record_of({"global": 0.9, "average": 0.7, "cnn-dnn": 0.8}, seconds_of=history)]
    found.append(record_of({"global": 0.9, "average": 0.7}, 1, seconds_of=together))
    table = report.costs(found).set_index(["seed", "strategy"])
    assert table["one machine"].to_dict() == {
        (0, "global"): 50,
        (0, "average"): 30,
        (0, "cnn-dnn"): 31,
        (1, "global"): 50,
        (1, "average"): 17,
    }
    assert table["parallel"].iloc[:4].tolist() == [50, 10, 11, 50]
    assert np.isnan(table.loc[(1, "average"), "parallel"])
    found[1].provenance["shared"] = "with other trainings"  # tells no time
    assert set(report.costs(found)["seed"]) == {0}
    folded = pd.DataFrame(
        [("local", 10), ("local, fold 1", 5), ("local, fold 2", 6), ("dense network", 1)], columns=["stage", "seconds"]
    )
    assert (seconds(folded, "average"), seconds(folded, "cnn-dnn")) == (10, 22)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=12))
def test_nothing_on_the_pareto_front_is_beaten_and_all_else_is(pairs):
    table = pd.DataFrame(pairs, columns=["one machine", "test_accuracy"], dtype=float)
    front = report.pareto(table.assign(strategy=[f"{k}" for k in table.index]))[list(table)]
    for index, row in table.iterrows():
        better = (table["one machine"] <= row["one machine"]) & (table["test_accuracy"] >= row["test_accuracy"])
        beaten = better & (
            (table["one machine"] < row["one machine"]) | (table["test_accuracy"] > row["test_accuracy"])
        )
        twin = ((front - row).abs().sum(axis=1) == 0).any()
        assert twin != beaten.any(), (index, row)


def test_coverage_counts_the_seeds_that_are_on_record():
    planned = [
        Experiment(grid=grid, seed=seed, strategies=("global",)) for grid in ("2x2", "4x4", "3x3") for seed in range(2)
    ]
    found = [record_of({"global": 0.9}, seed) for seed in range(2)] + [record_of({"global": 0.9}, grid="4x4")]
    table = report.coverage(found, planned).set_index("grid")
    assert table["state"].to_dict() == {"2x2": "complete", "4x4": "partly", "3x3": "not run"}
    assert not report.coverage([record_of({"global": 0.9}, rate=0.05)], planned)[
        "on record"
    ].any()  # not the point asked
    more = [replace(point, strategies=("global", "vote")) for point in planned]
    assert set(report.coverage(found, more)["state"]) == {"not run"}  # a strategy lacks


def test_scores_of_two_classes():
    labels = np.array([0, 0, 1, 1])
    arrays = {
        "labels": labels,
        "score/global": np.array([0.1, 0.6, 0.5, 0.9]),
        "predicted/global": np.array([[0, 1, 0, 1]]),
    }
    table = report.scores([record_of({"global": 0.5}, arrays=arrays)])
    assert table[["AUC", "accuracy", "larger class"]].to_numpy().tolist() == [[75.0, 50.0, 50.0]]
    assert report.scores([record_of({"global": 0.5})]).empty


def test_a_training_that_ran_twice_is_one_record_of_all_its_strategies():
    runs = [{"global": 0.9, "vote": 0.7}, {"global": 0.9, "average": 0.8}, {"global": 0.8, "average": 0.8}]
    one, more, other = map(record_of, runs)
    more.rows[0]["seconds"] = 1 + one.rows[0]["seconds"]  # a clock tells no training apart
    (both,) = records.once([one, more])
    assert both.frame().set_index("strategy")["test_accuracy"].to_dict() == {"global": 0.9, "vote": 0.7, "average": 0.8}
    with pytest.raises(ValueError, match="two different records are called"):
        records.once([one, more, other])


def test_folders_that_are_not_there(tmp_path):
    one = record_of({"global": 0.9}).save(tmp_path / "one")
    record_of({"global": 0.9}).save(tmp_path / "same")
    assert len(report.read(f"{tmp_path} {tmp_path}")) == 1  # read twice, counted once
    assert len(gather(tmp_path)) == 1
    other = record_of({"global": 0.1}).save(tmp_path / "two" / "other")
    for read in (report.read, gather, lambda folder: report.read([f"{folder}/one", f"{folder}/two"])):
        with pytest.raises(ValueError, match=f"two different records are called .*: {one} and {other}; move one"):
            read(tmp_path if read is gather else str(tmp_path))
    with pytest.raises(ValueError, match="two different records are called digits-"):
        accuracy_table(gather([records.load(one), records.load(other)]))
    with pytest.raises(FileNotFoundError, match="no folder"):
        report.read(str(tmp_path / "missing"))


def committed(*names: str) -> list:
    paths = [path for folder in report.FOLDERS for path in resolve(folder).rglob("*.csv") if path.stem in names]
    return [pytest.param(path, id=f"{path.parent.name}/{path.name}") for path in sorted(paths)]


@pytest.mark.parametrize("path", committed("aggregation", "transfer", "channels"))
def test_committed_tables_are_those_of_the_records_beside_them(path):
    rows, figures = ["record", "strategy", "subdomain"], ["seed", "train_accuracy", "test_accuracy", "parameters"]
    table = pd.read_csv(path).fillna({"subdomain": ""}).astype({"subdomain": str})
    frame = gather(path.parent)
    frame = frame[frame["record"].isin(table["record"]) & frame["strategy"].isin(table["strategy"])]
    one, other = (t.set_index(rows)[figures].sort_index() for t in (table, frame))
    pd.testing.assert_frame_equal(one, other, check_index_type=False)


@pytest.mark.parametrize("path", sorted(resolve("results/what_pays").glob("*/times.csv")), ids=lambda p: p.parent.name)
def test_what_pays_is_judged_by_accuracy_or_of_two_classes_by_auc(path):
    """Each value of the committed table again, from the records beside it; a vote has no AUC."""
    table = pd.read_csv(path)
    epochs = yaml.safe_load(resolve(f"notebooks/params/what_pays_{path.parent.name}.yaml").read_text())["epochs"]
    found = [record for record in records.load_all(path.parent) if record.parameters["epochs"] == epochs]
    assert set(table["metric"]) == {"AUC" if "nodules" in path.parent.name else "accuracy"}
    for row in table.to_dict("records"):
        place = (row["grid"], row["overlap"], row["width"].replace("proportional", ""), row["coarse"])
        values = []
        for record in found:
            given, labels = record.parameters, record.arrays["labels"]
            own = (given["grid"], given["overlap"], given.get("local_width", ""), bool(given.get("coarse")))
            if own == place and row["strategy"] in record.strategies:
                if row["metric"] == "AUC":
                    values.append(roc_auc_score(labels, record.arrays[f"score/{row['strategy']}"].squeeze()))
                else:
                    values.append((record.predicted(row["strategy"]).squeeze() == labels).mean())
        assert row["value"] == pytest.approx(100 * np.mean(values), abs=1e-4), row


def test_a_difference_that_is_only_a_limit_is_told_as_one():
    row = {"above": -0.94, "at most": True, "above, clock": math.nan, "at most, clock": True}
    assert (pages.above(row), pages.above(row, ", clock")) == ("≤−0.9", "–")
    assert pages.above({"above": 0.62, "at most": False}) == "0.6"
    assert pages.above({"above": 39.5, "at most": False}) == ">10"


def test_a_table_of_numbers_can_be_sorted():
    kept = [record_of({"global": share, "vote": 0.5}, seed=seed) for seed, share in enumerate((0.6, 0.7))]
    table = accuracy_table(gather(kept), numbers=True)
    assert table["global"].round(3).to_numpy().tolist() == [[65.0, 7.071, 2.0]]
    assert len(table.sort_values([("vote", "mean")])) == 1


def test_a_record_of_a_training_that_diverged_is_named(tmp_path):
    record = record_of({"global": 0.5}, arrays={"score/global": np.full(200, np.nan)})
    path = record.save(tmp_path)
    with pytest.raises(DamagedFile, match=f"{path.name} is damaged: .*score/global is NaN"):
        gather(tmp_path)


# ── tables for readers ──


def test_a_readable_table_is_narrow_and_has_every_row():
    kept = [record_of({"global": 0.6, "vote": 0.5}, seed) for seed in range(3)]
    kept += [record_of({"vote": 0.4}, grid="4x4", overlap=2, augment=False, epochs=24)]
    table = pages.readable(accuracy_table(gather(kept)))
    assert table.columns.name == "digits, VGG9 (32)"  # what all have
    assert table.to_dict() == {
        "global": {"2×2, 12 epochs": "60.0±0.0", "4×4, δ = 2, 24 epochs*": ""},
        "vote": {"2×2, 12 epochs": "50.0±0.0", "4×4, δ = 2, 24 epochs*": "40.0"},
    }


def shown_in(notebook: str, kind: str) -> list[str]:
    """The outputs of one kind of a committed notebook."""
    cells = nbformat.read(resolve(f"notebooks/{notebook}.ipynb"), 4).cells
    found = [output.get("data", {}).get(kind, "") for cell in cells for output in cell.get("outputs", ())]
    return [text for text in found if text]


def cells_of(html: str) -> list[list[str]]:
    """The rows of a table as a browser reads them."""
    rows = re.findall(r"<tr.*?</tr>", html, re.S)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in rows]


def test_the_report_begins_with_the_main_table_of_the_readme_and_drops_no_row_of_the_others():
    main, *others = map(cells_of, shown_in("05_report", "text/html"))
    lines = resolve("README.md").read_text().partition("## Accuracies after")[2].split("\n\n")[1].splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert main[0][1:] == head[1:]
    assert [row[0].rstrip("*") for row in main[1:]] == [row[0] for row in rows]
    assert [row[1:] for row in main[1:]] == [[cell.replace(" ", "") for cell in row[1:]] for row in rows]
    assert not {"NaN", "nan", "None"} & {cell for table in others for row in table for cell in row}
    told = {frozenset(f"{t[0][0]}, {row[0].rstrip('*')}".strip(", ").split(", ")) for t in [main, *others] for row in t}
    table = pd.read_csv(resolve("results/report/accuracy.csv")).fillna("")
    for row in table.to_dict("records"):
        assert {piece for words in verdicts.parts_of(row) if words for piece in words.split(", ")} in told, row


def test_every_claim_is_told_in_words():
    (table,) = [t for t in shown_in("05_report", "text/markdown") if "the papers claim" in t]
    for claim, words in claims.WORDS.items():
        assert f"| {claim} | {words} |" in table
    for row in pd.read_csv(resolve("results/report/means.csv")).query("over == 'all'").to_dict("records"):
        told = f"| {pages.spoken(row, signed=True)} | {pages.counts(row)} |"
        assert (told in table) == (row["claim"] in claims.WORDS), row["claim"]


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory) -> str:
    """The page that `make reproduce` ends with, of the committed notebooks (less outputs, to be quick) and records."""
    made, folder = runpy.run_path(str(resolve("notebooks/reproduce.py"))), tmp_path_factory.mktemp("page")
    for path in resolve("notebooks").glob("[0-9]*.ipynb"):
        notebook = nbformat.read(path, 4)
        for cell in notebook.cells:
            cell.update(outputs=[]) if cell.cell_type == "code" else None
        nbformat.write(notebook, folder / path.name)
    first = made["result"](resolve("results/quick"), "all agrees", True)
    return made["page"](sorted(folder.glob("*.ipynb")), "What was reproduced", first)


def test_links_within_the_page_of_make_reproduce_have_their_target(reproduced):
    ids, links = re.findall(r'\bid="([^"]+)"', reproduced), re.findall(r'href="#([^"]*)"', reproduced)
    assert len(ids) == len(set(ids))
    assert {path.stem for path in resolve("notebooks").glob("[0-9]*.ipynb")} <= {*links}
    assert {*links} <= {*ids}
    for link in re.findall(r'href="file://([^"#]+)', reproduced):
        assert Path(unquote(link)).exists(), link


def test_the_page_of_make_reproduce_begins_with_the_result(reproduced):
    first = reproduced[reproduced.index("<main>") : reproduced.index("<details")]
    facts, (table,) = machine(), [cells_of(found) for found in re.findall(r"<table.*?</table>", first, re.S)]
    assert all(fact in first for fact in (facts["device"], facts["versions"]["torch"], "All agrees with results/quick"))
    quick = pd.read_csv(resolve("results/quick/transfer.csv"))
    transfer = 100 * quick.loc[quick["strategy"] == "transfer", "test_accuracy"].item()
    assert table[-1][table[0].index("transfer")] == f"{transfer:.1f}"
    assert base64.b64encode(resolve("results/quick/figures/ladder.png").read_bytes()).decode() in first
    assert "<details open" not in reproduced
