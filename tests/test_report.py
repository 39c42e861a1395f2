"""Tables, claims and costs are what the records say."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers import record_of
from hypothesis import given
from hypothesis import strategies as st

from ddlib import Experiment, gather
from ddlib.report import claims
from ddlib.report import tables as report
from ddlib.study.parameters import resolve
from ddlib.study.stages import seconds


def test_published_values_stand_beside_ours(tmp_path):
    found = [record_of({"transfer": 0.8 + 0.01 * seed, "vote": 0.5, "global": 0.9}, seed) for seed in range(2)]
    file = tmp_path / "published.csv"
    head = "# copied by hand\ndataset,backbone,grid,overlap,strategy,test_accuracy,source\n"
    rows = [
        "digits,vgg9,2x2,0,transfer,83.1,P1 #2",
        "digits,vgg9,8x8,0,vote,70,P1",
        'digits,vgg9,2X2,0,vote,70,"P1, 3"',
    ]
    more = record_of({"global": 0.5}, channel_parts=2, grid="1x1", train_size=100)
    frame = gather([*found, record_of({"vote": 0.6, "global": 0.9}, epochs=24), more])  # P3's networks are others
    file.write_text(
        "\ufeff" + head + "\n".join([*rows, "digits,vgg9,,,global,95,P1"]) + "\n"
    )  # with the mark that spreadsheets write
    table = report.published(file, frame)
    assert table["published, %"].tolist() == [83.1, 70, 70, 70, 95, 95]
    ours = ["80.5 ± 0.7 (2)", "not run", "50.0 ± 0.0 (2)", "60.0", "90.0 ± 0.0 (2)", "90.0"]
    assert table["ours, %"].tolist() == ours
    assert table["source"].tolist() == ["P1 #2", "P1", "P1, 3", "P1, 3", "P1", "P1"]
    for row, told in {
        "digits,vgg9,2x2,0,transfer,183,P1": r"row 1: test_accuracy must be .* at most 100, got 183",
        "digits,vgg9,2x2,0,transfer,,P1": "row 1: test_accuracy must be a number, got ''",
        "digit,vgg9,2x2,0,transfer,83,P1": "unknown data set 'digit'",
        "digits,vgg,2x2,0,transfer,83,P1": "unknown backbone 'vgg'",
        "digits,vgg9,two,0,transfer,83,P1": "a grid is written like '2x2'",
        "digits,vgg9,2x2,0.5,transfer,83,P1": "overlap must be a whole number ≥ 0, got 0.5",
        "digits,vgg9,2x2,0,transfer,0.83,P1": r"test_accuracy is in %, got 0.83",
        "digits,vgg9,2x2,0,ensemble,83,P1": "unknown strategy 'ensemble'",
        "digits,vgg9,2x2,0,transfer,83,P1, table 2": "7 fields are needed, got 8; quote a field",
    }.items():
        file.write_text(head + row + "\n")
        with pytest.raises(ValueError, match=told):
            report.published(file, frame)
    for wrong in ("dataset,accuracy\n", ""):
        file.write_text(wrong)
        with pytest.raises(ValueError, match="must have the columns dataset, backbone"):
            report.published(file, frame)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        report.published(tmp_path / "missing.csv", frame)
    assert report.published("results/published.csv", frame).empty


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
    history = {"global": {"seconds": [50], "epoch": [1]}, "local": {"seconds": [8], "epoch": [1]}}
    found = [record_of({"global": 0.9, "vote": 0.7}, grid=grid, seconds_of=history) for grid in ("2x2", "4x4")]
    table = report.costs(found)
    assert table["strategy"].tolist() == ["global", "vote", "vote"]
    assert table["grid"].tolist() == ["1x1", "2x2", "4x4"]


def test_the_training_time_table_is_checked_when_it_is_read(tmp_path):
    assert set(report.TIMED) < set(report.training_times("results/training_time/training_time.csv"))
    (tmp_path / "old.csv").write_text("images,grid,backbone,fused\n")
    with pytest.raises(ValueError, match="no column overlap, width, longest local: make it anew"):
        report.training_times(tmp_path / "old.csv")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        report.training_times(tmp_path / "missing.csv")


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


def test_folders_that_are_not_there(tmp_path):
    record_of({"global": 0.9}).save(tmp_path)
    assert len(report.read(f"{tmp_path} {tmp_path}")) == 1  # read twice, counted once
    record_of({"global": 0.8}).save(tmp_path / "other")
    with pytest.raises(ValueError, match="two different records are called"):
        report.read(str(tmp_path))
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


@pytest.mark.parametrize("path", committed("differences"))
def test_committed_differences_are_those_of_the_records_beside_them(path):
    columns = ["difference", "low", "high"]
    judged = claims.judge(report.read([path.parent]))
    judged, table = judged.loc[judged["claim"] == "C6", columns], pd.read_csv(path)[columns]
    one, other = (t.sort_values(columns, ignore_index=True) for t in (table, judged))
    pd.testing.assert_frame_equal(one, other)
