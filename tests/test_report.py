"""Tables, claims and costs are what the records say."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddlib import Experiment, Record, files, gather, paired_test, report, sweep, verdict
from ddlib.stages import seconds

LABELS = np.arange(200) % 4


def record(accuracies, seed=0, seconds_of=None, arrays=None, **parameters):
    """A record with as many right answers as asked, the wrong ones drawn by the seed."""
    parameters = Experiment(seed=seed, **parameters).parameters
    generator, rows, kept = np.random.default_rng(seed), [], {"labels": LABELS}
    point = {key: parameters[key] for key in ("dataset", "backbone", "width", "grid", "overlap", "seed", "epochs")}
    for strategy, accuracy in accuracies.items():
        wrong = generator.permutation(len(LABELS))[: round(len(LABELS) * (1 - accuracy))]
        predicted = LABELS.copy()
        predicted[wrong] = (predicted[wrong] + 1) % 4
        kept[f"predicted/{strategy}"] = predicted[None]
        figures = {"subdomain": "", "train_accuracy": 1.0, "test_accuracy": accuracy, "parameters": 1, "seconds": 1.0}
        rows.append({**point, "strategy": strategy, **figures})
    for stage, columns in (seconds_of or {}).items():
        kept |= {f"history/{stage}/{name}": np.array(values, float) for name, values in columns.items()}
    return Record(parameters, rows, kept | (arrays or {}), {"commit": "", "code": ""})


def test_a_claim_is_judged_by_the_differences_of_its_seeds():
    found = [record({"cnn-dnn": 0.8 + 0.01 * seed, "average": 0.7, "vote": 0.9}, seed) for seed in range(3)]
    table = report.claims(found).set_index("b")
    assert set(table["claim"]) == {"C1"}
    assert table["n"].tolist() == [3, 3]
    tests = [paired_test(LABELS, r.predicted("cnn-dnn")[0], r.predicted("average")[0]) for r in found]
    expected = verdict([10, 11, 12], error=100 * sum(test.error for test in tests) / 3)
    row = table.loc["average"]
    assert (row["difference"], row["low"], row["high"]) == pytest.approx((11, expected.low, expected.high))
    assert row["verdict"] == "holds"
    assert table.loc["vote", "verdict"] == "does not hold"
    tests = [paired_test(LABELS, r.predicted("cnn-dnn")[0], r.predicted("vote")[0]).p_value for r in found]
    assert table.loc["vote", "McNemar"] == max(tests)


def test_seeds_of_other_settings_are_judged_apart_in_any_order():
    """Learning rates are not in a table's columns: they must neither replace one another nor be mixed."""
    many = [record({"cnn-dnn": 0.9, "average": 0.5}, seed) for seed in range(3)]
    few = [record({"cnn-dnn": 0.1, "average": 0.9}, rate=0.05)]
    for found in (many + few, few + many):
        table = report.claims(found).set_index("n")
        assert table.loc[3, "difference"] == pytest.approx(40)
        assert table.loc[1, "difference"] == pytest.approx(-80)
    longer = [record({"cnn-dnn": 0.5}, epochs=24, rate=0.05)]
    assert report.equal_budget([record({"transfer": 0.9}), *longer]).empty
    assert len(report.equal_budget([record({"transfer": 0.9}, rate=0.05), *longer])) == 1


def test_a_part_of_the_training_images_decides_nothing():
    found = [record({"cnn-dnn": 0.9, "average": 0.5}, seed, train_size=500) for seed in range(3)]
    assert report.claims(found)["verdict"].tolist() == ["undecided (subset)"]


def test_p_is_one_where_seeds_differ_in_sign():
    found = [record({"cnn-dnn": 0.7 + 0.2 * (-1) ** seed, "average": 0.7}, seed) for seed in range(3)]
    assert report.claims(found)["McNemar"].item() == 1


def test_points_of_other_parameters_are_apart_and_one_seed_is_undecided():
    found = [record({"cnn-dnn": 0.9, "average": 0.5}, overlap=overlap) for overlap in (0, 2)]
    found.append(record({"cnn-dnn": 0.9, "average": 0.5}, train_size=500))
    found.append(record({"global": 0.9}, overlap=4))  # has nothing to compare
    table = report.claims(found)
    assert len(table) == 3
    assert table["variant"].tolist() == ["", "", "train_size=500"]
    assert table["verdict"].tolist() == ["undecided", "undecided", "undecided (subset)"]


def test_the_equal_budget_pairs_a_point_with_one_of_twice_its_epochs():
    found = [record({"transfer": 0.9}, seed, epochs=6) for seed in range(2)]
    assert report.equal_budget(found).empty
    found += [record({"cnn-dnn": 0.8, "coherent": 0.95}, seed, epochs=12) for seed in range(2)]
    found += [record({"cnn-dnn": 0.1}, seed, epochs=24) for seed in range(2)]  # no transfer with 12 epochs
    table = report.equal_budget(found).set_index("b")
    assert table["difference"].to_dict() == pytest.approx({"cnn-dnn": 10, "coherent": -5})
    assert table["n"].tolist() == [2, 2]
    assert table["epochs of b"].tolist() == [12, 12]


def test_a_remedy_is_a_point_with_an_option_against_the_same_without():
    plain = [record({"coherent": 0.3, "transfer": 0.9, "cnn-dnn": 0.8}, seed) for seed in range(3)]
    both = [record({"coherent": 0.8, "transfer": 0.9}, seed, local_losses=True) for seed in range(3)]
    folds = [record({"cnn-dnn": 0.7}, seed, out_of_fold=3) for seed in range(2)]
    alone = [record({"cnn-dnn": 0.7}, 0, out_of_fold=3, overlap=2)]  # its twin is not on record
    assert report.remedies(plain).empty
    table = report.remedies(plain + both + folds + alone).set_index("what")
    assert table["difference"].to_dict() == pytest.approx(
        {
            "out_of_fold makes cnn-dnn more accurate": -10,
            "local_losses makes coherent more accurate": 50,
            "local_losses makes transfer more accurate": 0,
        }
    )
    assert table["n"].tolist() == [2, 3, 3]


def test_a_remedy_is_not_the_papers_claim():
    found = [record({"transfer": 0.9, "cnn-dnn": 0.8}, seed, out_of_fold=3) for seed in range(3)]
    found += [record({"cnn-dnn": 0.8}, seed, out_of_fold=3, epochs=24) for seed in range(3)]
    assert report.claims(found).empty
    assert report.equal_budget(found).empty


def test_many_comparisons_of_a_claim_are_allowed_for():
    """One that barely holds alone does not among many of the same claim; p-values only grow, and keep their order."""
    judged = report.claims([record({"cnn-dnn": 0.8, "average": 0.7})])
    rows = [judged.assign(p=p, verdict="holds" if p < 0.05 else "undecided") for p in (0.04, 0.5, 0.6, 0.001, np.nan)]
    rows.append(judged.assign(p=1e-9, verdict="undecided (subset)"))
    rows.append(judged.assign(p=0.04, verdict="holds", claim="C2"))  # a family of its own
    table = report.adjusted(pd.concat(rows, ignore_index=True))
    assert table["verdict"].tolist() == [*["undecided"] * 3, "holds", "undecided", "undecided (subset)", "holds"]
    assert table["adjusted p"].tolist()[:4] == pytest.approx([0.08, 0.6, 0.6, 0.004])
    assert table["adjusted p"].isna().tolist() == [False] * 4 + [True] * 2 + [False]
    nothing = report.adjusted(report.claims([record({"global": 0.9})]))
    assert nothing.empty
    assert set(table) == set(nothing)


def test_published_values_stand_beside_ours(tmp_path):
    found = [record({"transfer": 0.8 + 0.01 * seed, "vote": 0.5, "global": 0.9}, seed) for seed in range(2)]
    frame = gather(found + [record({"vote": 0.6, "global": 0.9}, epochs=24)])
    file = tmp_path / "published.csv"
    head = "# copied by hand\ndataset,backbone,grid,overlap,strategy,test_accuracy,source\n"
    rows = [
        "digits,vgg9,2x2,0,transfer,83.1,P1 #2",
        "digits,vgg9,8x8,0,vote,70,P1",
        'digits,vgg9,2X2,0,vote,70,"P1, 3"',
    ]
    file.write_text(head + "\n".join([*rows, "digits,vgg9,1x1,0,global,95,P1"]) + "\n")
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


def test_the_committed_report_is_that_of_the_committed_records():
    """Of every folder that the plan writes to, too, where it is there."""
    planned = {p.output for p in sweep.read_plan(files.resolve("notebooks/plans/cpu.yaml"))}
    there = {folder for folder in planned if folder.is_dir() and any(folder.glob("*.json"))}
    assert there <= {files.resolve(folder) for folder in report.FOLDERS}
    found = report.read(report.FOLDERS)
    judged = [report.claims(found), report.equal_budget(found), report.remedies(found)]
    table = report.adjusted(pd.concat([part for part in judged if len(part)], ignore_index=True))
    committed = pd.read_csv(files.resolve("results/report/claims.csv"), keep_default_na=False)
    for column in ("claim", "dataset", "grid", "variant", "a", "b", "n", "verdict"):
        assert committed[column].tolist() == table[column].tolist(), column
    assert committed["difference"].tolist() == pytest.approx(table["difference"].tolist())


def test_the_training_time_table_says_what_a_local_cnn_takes_alone():
    together = {"local": {"seconds": [8, 12], "epoch": [1, 2]}, "global": {"seconds": [50], "epoch": [1]}}
    kept = record({"global": 0.9, "average": 0.7}, seconds_of=together)
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
    alone = record({"average": 0.7}, 1, seconds_of=timed)
    alone.provenance["image_shape"] = [32, 32]
    assert report.costs([alone], times)["parallel"].tolist() == [3]  # what was measured stays


def test_the_global_cnn_is_one_point_for_all_grids():
    history = {"global": {"seconds": [50], "epoch": [1]}, "local": {"seconds": [8], "epoch": [1]}}
    found = [record({"global": 0.9, "vote": 0.7}, grid=grid, seconds_of=history) for grid in ("2x2", "4x4")]
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
    found = [record({"global": 0.9, "average": 0.7, "cnn-dnn": 0.8}, seconds_of=history)]
    found.append(record({"global": 0.9, "average": 0.7}, 1, seconds_of=together))
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
    found = [record({"global": 0.9}, seed) for seed in range(2)] + [record({"global": 0.9}, grid="4x4")]
    table = report.coverage(found, planned).set_index("grid")
    assert table["state"].to_dict() == {"2x2": "complete", "4x4": "partly", "3x3": "not run"}
    assert not report.coverage([record({"global": 0.9}, rate=0.05)], planned)["on record"].any()  # not the point asked
    more = [replace(point, strategies=("global", "vote")) for point in planned]
    assert set(report.coverage(found, more)["state"]) == {"not run"}  # a strategy lacks


def test_scores_of_two_classes():
    labels = np.array([0, 0, 1, 1])
    arrays = {
        "labels": labels,
        "score/global": np.array([0.1, 0.6, 0.5, 0.9]),
        "predicted/global": np.array([[0, 1, 0, 1]]),
    }
    table = report.scores([record({"global": 0.5}, arrays=arrays)])
    assert table[["AUC", "accuracy", "larger class"]].to_numpy().tolist() == [[75.0, 50.0, 50.0]]
    assert report.scores([record({"global": 0.5})]).empty


@given(st.lists(st.floats(-20, 20), min_size=3, max_size=8), st.floats(0, 2))
def test_verdicts(differences, margin):
    found = verdict(differences, margin)
    assert found.low <= found.mean <= found.high
    assert found.mean == pytest.approx(np.mean(differences))
    assert (found.word == "holds") == (found.low > -margin)
    assert (found.p_value < 0.05) == (not found.low <= -margin <= found.high) or found.p_value == pytest.approx(0.05)
    opposite = verdict([-d for d in differences])
    assert (found.low, found.high) == pytest.approx((-opposite.high, -opposite.low))


@pytest.mark.parametrize("seeds", [3, 5])
def test_of_equal_strategies_about_one_in_twenty_is_told_apart(seeds):
    """Whichever of the seeds and the test images leaves the larger error."""
    generator = np.random.default_rng(0)
    for spread in (0.0, 1.0, 10.0):  # of the seeds, over the error of the test images, which all seeds share
        trials = generator.normal(size=(1000, 1)) + spread * generator.normal(size=(1000, seeds))
        wrong = sum(verdict(differences, error=1.0).word != "undecided" for differences in trials)
        assert 0.03 < wrong / 1000 < 0.07, (spread, wrong)


def test_known_verdicts():
    assert verdict([1.0, 2.0, 3.0])[2:] == pytest.approx(
        (2.0, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5, 0.0742), abs=1e-3
    )
    assert verdict([5.0]).word == "undecided"
    assert verdict([5.0, 5.0]).word == "undecided"
    assert verdict([0.0] * 3).word == "does not hold"
    assert verdict([0.0] * 3, margin=0.5).word == "holds"
    assert verdict([0.3] * 3).word == "holds"
    wide = verdict([0.3] * 3, error=0.2)
    assert wide.word == "undecided"
    assert (wide.low, wide.high, wide.p_value) == pytest.approx((0.3 - 0.392, 0.3 + 0.392, 0.1336), abs=1e-3)
    assert np.isnan(verdict([5.0]).p_value)
    for wrong in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="finite differences"):
            verdict(wrong)


def test_folders_that_are_not_there(tmp_path):
    record({"global": 0.9}).save(tmp_path)
    assert len(report.read(f"{tmp_path} {tmp_path}")) == 1  # read twice, counted once
    record({"global": 0.8}).save(tmp_path / "other")
    with pytest.raises(ValueError, match="two different records are called"):
        report.read(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no folder"):
        report.read(str(tmp_path / "missing"))


def test_a_changed_record_changes_the_table():
    usual = record({"cnn-dnn": 0.9, "average": 0.5})
    other = replace(usual, arrays=usual.arrays | {"predicted/average": LABELS[None]})
    assert report.claims([other])["difference"].item() == pytest.approx(-10)
