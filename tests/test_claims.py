"""A claim is judged by what the records predicted, image by image and seed by seed."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers import RECORDED, record_of
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, norm, t
from sklearn.metrics import roc_auc_score

from ddlib.report import claims
from ddlib.report import tables as report
from ddlib.study import sweep
from ddlib.study.parameters import resolve

TIMES = "results/training_time/training_time.csv"


def judge(found, claim=None, training=None):
    table = claims.judge(found)
    table = table[table["claim"] == claim] if claim else table
    return table[table["training"] == training] if training else table


def test_a_claim_is_judged_by_the_differences_of_its_seeds():
    found = [record_of({"cnn-dnn": 0.8 + 0.01 * seed, "average": 0.7, "vote": 0.95}, seed) for seed in range(3)]
    table = judge(found).set_index("b")
    assert set(table["claim"]) == {"C1"}
    assert table["n"].tolist() == [3, 3]
    right = [[r.predicted(name)[0] == RECORDED for name in ("cnn-dnn", "average")] for r in found]
    expected = claims.difference(np.array([a.astype(float) - b for a, b in right]))
    row = table.loc["average"]
    assert row["difference"] == pytest.approx(11)
    assert row[["difference", "low", "high"]].tolist() == pytest.approx(
        [expected[k] for k in ("difference", "low", "high")]
    )
    assert row["verdict"] == "holds"
    assert table.loc["vote", "verdict"] == "does not hold"


def test_a_row_names_its_regime():
    found = [record_of({"cnn-dnn": 0.9, "average": 0.5}, augment=False, epochs=6)]
    found.append(record_of({"cnn-dnn": 0.9, "average": 0.5}, train_size=500))
    columns = ["epochs", "augment", "train_size", "training"]
    assert judge(found)[columns].to_numpy().tolist() == [[6, "no", "all", "E : E"], [12, "yes", 500, "E : E"]]


def test_seeds_of_other_settings_are_judged_apart_in_any_order():
    """Learning rates are not in a table's columns: they must neither replace one another nor be mixed."""
    many = [record_of({"cnn-dnn": 0.9, "average": 0.5}, seed) for seed in range(3)]
    few = [record_of({"cnn-dnn": 0.1, "average": 0.9}, rate=0.05)]
    for found in (many + few, few + many):
        table = judge(found).set_index("n")
        assert table.loc[3, "difference"] == pytest.approx(40)
        assert table.loc[1, "difference"] == pytest.approx(-80)
    longer = [record_of({"cnn-dnn": 0.5}, epochs=24, rate=0.05)]
    assert judge([record_of({"transfer": 0.9}), *longer]).empty
    assert len(judge([record_of({"transfer": 0.9}, rate=0.05), *longer])) == 1


def test_few_seeds_and_a_part_of_the_training_images_are_undecided():
    found = [record_of({"cnn-dnn": 0.9, "average": 0.5}, seed, train_size=500) for seed in range(3)]
    found += [record_of({"cnn-dnn": 0.9, "average": 0.5}, seed) for seed in range(2)]
    table = judge(found)
    assert table["verdict"].tolist() == ["undecided"] * 2
    assert table["low"].notna().tolist() == [True, False]
    assert table["p"].isna().all()


def test_the_equal_budget_pairs_a_point_with_one_of_twice_its_epochs():
    found = [record_of({"transfer": 0.9}, seed, epochs=6) for seed in range(2)]
    assert judge(found).empty
    found += [record_of({"cnn-dnn": 0.8, "coherent": 0.95}, seed, epochs=12) for seed in range(2)]
    found += [record_of({"cnn-dnn": 0.1}, seed, epochs=24) for seed in range(2)]  # no transfer with 12 epochs
    table = judge(found, training="E + E : 2E").set_index("b")
    assert table["difference"].to_dict() == pytest.approx({"cnn-dnn": 10, "coherent": -5})
    assert table["n"].tolist() == [2, 2]
    assert table["epochs"].tolist() == [6, 6]


def test_channels_may_be_a_point_behind_at_equal_epochs():
    short = [record_of({"channels": 0.88 + 0.02 * seed}, seed, epochs=6) for seed in range(3)]
    for accuracy, word in ((0.5, "holds"), (0.91, "undecided"), (1.0, "does not hold")):
        long = [record_of({"global": accuracy}, seed, epochs=12) for seed in range(3)]
        assert judge(short + long, "C6", "E + E : 2E")["verdict"].tolist() == [word]


def test_a_remedy_is_a_point_with_an_option_against_the_same_without():
    plain = [record_of({"coherent": 0.3, "transfer": 0.9, "cnn-dnn": 0.8}, seed) for seed in range(3)]
    both = [record_of({"coherent": 0.8, "transfer": 0.9}, seed, local_losses=True) for seed in range(3)]
    folds = [record_of({"cnn-dnn": 0.7}, seed, out_of_fold=3) for seed in range(2)]
    alone = [record_of({"cnn-dnn": 0.7}, 0, out_of_fold=3, overlap=2)]  # its twin is not on record
    assert judge(plain, "remedy").empty
    table = judge(plain + both + folds + alone, "remedy").set_index(["option", "a"])
    expected = {("out_of_fold", "cnn-dnn"): -10, ("local_losses", "coherent"): 50, ("local_losses", "transfer"): 0}
    assert table["difference"].to_dict() == pytest.approx(expected)
    assert table["n"].tolist() == [2, 3, 3]


def test_a_remedy_is_not_the_papers_claim():
    found = [record_of({"transfer": 0.9, "cnn-dnn": 0.8}, seed, out_of_fold=3) for seed in range(3)]
    found += [record_of({"cnn-dnn": 0.8}, seed, out_of_fold=3, epochs=24) for seed in range(3)]
    assert judge(found).empty


def test_p_values_are_corrected_once_within_a_claim():
    """Rows of both comparisons of C1 are one family; those of C2, of few seeds and of a subset are not in it."""
    found = [record_of({"cnn-dnn": 0.8, "average": 0.72, "vote": 0.75, "transfer": 0.9}, seed) for seed in range(3)]
    found += [record_of({"cnn-dnn": 0.8, "average": 0.7}, seed, grid="4x4") for seed in range(3)]
    found += [record_of({"cnn-dnn": 0.8, "average": 0.2}, grid="3x3")]
    found += [record_of({"cnn-dnn": 0.8, "average": 0.2}, seed, train_size=500) for seed in range(3)]
    table = judge(found)
    for claim, size in (("C1", 3), ("C2", 1)):
        family = table[(table["claim"] == claim) & table["p"].notna()]
        assert len(family) == size
        np.testing.assert_allclose(family["adjusted p"], false_discovery_control(family["p"]))
    assert ((table["verdict"] == "undecided") == ~(table["adjusted p"] <= 0.05)).all()
    nothing = claims.judge([record_of({"global": 0.9})])
    assert nothing.empty
    assert set(table) == set(nothing)


def test_strategies_that_agree_on_every_image_may_differ_on_others():
    found = [record_of({"cnn-dnn": 0.9, "average": 0.9}, seed) for seed in range(3)]
    same = [replace(r, arrays=r.arrays | {"predicted/average": r.arrays["predicted/cnn-dnn"]}) for r in found]
    row = judge(same).squeeze()
    assert row["difference"] == 0
    n = len(RECORDED)
    assert row["high"] == pytest.approx(196 * (2 / (n + 1) / (n + 2)) ** 0.5, rel=1e-3)  # two images, one for each


def test_a_changed_record_changes_the_table():
    usual = record_of({"cnn-dnn": 0.9, "average": 0.5})
    other = replace(usual, arrays=usual.arrays | {"predicted/average": RECORDED[None]})
    assert judge([other])["difference"].item() == pytest.approx(-10)


def test_a_record_speaks_of_the_strategies_that_it_was_asked_for():
    found = [record_of({"cnn-dnn": 0.9, "average": 0.5}, seed) for seed in range(3)]
    assert claims.judge([record.only(["cnn-dnn"]) for record in found]).empty


# ── two classes ──


def two_classes(scores, seed=0, **given):
    """A record of two classes with scores; accuracies do not matter."""
    labels = np.arange(60) % 2
    arrays = {"labels": labels} | {f"score/{name}": score[None] for name, score in scores.items()}
    arrays |= {f"predicted/{name}": (score > 0.5)[None].astype(int) for name, score in scores.items()}
    return record_of(dict.fromkeys(scores, 0.5), seed, arrays=arrays, **given)


def test_two_classes_are_judged_by_the_area_under_the_curve_but_the_vote():
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 2
    found = []
    for seed in range(3):
        scores = {name: generator.normal(size=60).round(1) for name in ("average", "vote")}  # rounded: some are equal
        found.append(two_classes(scores | {"cnn-dnn": labels + generator.normal(size=60).round(1)}, seed))
    table = claims.judge(found).set_index("b")
    assert table["metric"].to_dict() == {"average": "AUC", "vote": "accuracy"}  # it has no score of its own
    areas = [[roc_auc_score(labels, r.arrays[f"score/{name}"][0]) for name in ("cnn-dnn", "average")] for r in found]
    assert table.loc["average", "difference"] == pytest.approx(100 * np.mean([a - b for a, b in areas]))


def test_the_error_of_an_area_is_that_of_drawing_other_images():
    generator = np.random.default_rng(1)
    labels = np.arange(60) % 2

    def draw():
        common = labels + generator.normal(size=60)
        record = two_classes({"cnn-dnn": common, "average": common + generator.normal(size=60)})
        return (claims._ranks(record, "cnn-dnn") - claims._ranks(record, "average"))[None]

    drawn = [draw() for _ in range(400)]
    assert np.mean([claims._image_error(gaps) for gaps in drawn]) == pytest.approx(
        np.std([gaps.mean() for gaps in drawn]), rel=0.1
    )


# ── intervals ──


def gaps_of(shares):
    """(seeds, 400) in 0 and 1 with these means, in points."""
    return np.array([np.arange(400) < round(4 * share) for share in shares], float)


@given(st.lists(st.integers(0, 20), min_size=3, max_size=8), st.floats(0, 2))
def test_an_interval_excludes_what_its_p_value_refutes(shares, margin):
    gaps = gaps_of(shares)
    found = claims.difference(gaps, margin)
    assert found["difference"] == pytest.approx(np.mean(shares))
    assert found["low"] < found["difference"] < found["high"]
    outside = not found["low"] <= -margin <= found["high"]
    assert (found["p"] < 0.05) == outside or found["p"] == pytest.approx(0.05)
    opposite = claims.difference(-gaps)
    assert (found["low"], found["high"]) == pytest.approx((-opposite["high"], -opposite["low"]))


def test_an_interval_adds_the_errors_of_seeds_and_images_in_squares():
    gaps = gaps_of([8, 10, 15])
    found = claims.difference(gaps)
    seeds = t(2).isf(0.025) * np.std([8, 10, 15], ddof=1) / 3**0.5
    images = norm.isf(0.025) * 100 * np.append(gaps.mean(0), [1, -1]).std(ddof=1) / 402**0.5
    assert found["high"] - found["difference"] == pytest.approx((seeds**2 + images**2) ** 0.5)


def test_fewer_than_three_seeds_have_no_interval():
    assert np.isnan([claims.difference(gaps_of([5, 5]))[name] for name in ("low", "high", "p")]).all()


@pytest.mark.parametrize("noise", [0.0, 1.0, 3.0])
def test_of_equal_strategies_at_most_one_in_twenty_is_told_apart(noise):
    """Whichever is larger: the spread of the seeds, of the images, or of single images in single seeds."""
    generator, images, seeds = np.random.default_rng(0), 300, 3
    for spread in (0.0, 0.1, 0.5):
        wrong = 0
        for _ in range(300):
            gaps = generator.normal(size=images) + spread * generator.normal(size=(seeds, 1))
            gaps = gaps + noise * generator.normal(size=(seeds, images))
            wrong += claims.difference(gaps)["p"] <= 0.05
        assert wrong / 300 < 0.08, (spread, wrong)


# ── counts, picture, report ──


def test_the_summary_counts_the_rows_of_each_comparison():
    found = [record_of({"cnn-dnn": 0.8, "average": 0.6, "global": 0.95}, seed) for seed in range(3)]
    found += [record_of({"cnn-dnn": 0.8, "average": 0.6}, grid="4x4")]
    times = pd.read_csv(resolve(TIMES))
    table = claims.summary(claims.judge(found), times).set_index(["claim", "b", "training"])[claims.VERDICTS]
    assert table.loc[("C1", "average", "E : E")].tolist() == [1, 0, 1]
    assert table.loc[("C5", "global", "E : E")].tolist() == [0, 1, 0]
    assert table.loc[("C7", "global", "E + E : 2E")].tolist() == [0, 0, 0]
    assert table.loc[("C4", "global", "E : E")].tolist() == [(times["parallel speed-up"] > 1).sum(), 0, 0]


def test_the_picture_has_a_panel_a_claim_and_a_line_a_point_below_its_data_set():
    accuracies = {"cnn-dnn": 0.9, "average": 0.6, "vote": 0.6, "global": 0.97}
    found = [record_of(accuracies, seed, grid=grid) for seed in range(3) for grid in ("2x2", "4x4")]
    found += [record_of({"cnn-dnn": 0.9, "vote": 0.9}, seed, backbone="resnet20") for seed in range(3)]
    found += [record_of({"cnn-dnn": 0.9, "vote": 0.5}, backbone="mobilenet_v2")]  # one seed has no interval
    figure = claims.drawn(claims.judge(found))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    first = ["digits, VGG9", "2×2, 12 epochs", "4×4, 12 epochs"]
    assert labels == [*first, "digits, ResNet20", "2×2, 12 epochs"]
    assert [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes] == ["C1", "C5"]
    marks = [[line for line in ax.lines if len(line.get_xdata()) == 1] for ax in figure.axes]
    assert [len(panel) for panel in marks] == [5, 2]
    small = [line.get_markersize() for line in marks[0] if line.get_color() == claims.LOOKS["undecided"][0]]
    assert small == [claims.LOOKS["undecided"][1]]
    assert {line.get_color() for line in marks[1]} == {claims.LOOKS["does not hold"][0]}


def test_the_committed_report_is_that_of_the_committed_records():
    """Of every folder that the plan writes to, too, where it is there."""
    plans = [resolve(f"notebooks/plans/{name}.yaml") for name in ("cpu", "150_epochs")]
    planned = {point.output for plan in plans for point in sweep.read_plan(plan)}
    there = {folder for folder in planned if folder.is_dir() and any(folder.glob("*.json"))}
    kept = {resolve(folder) for folder in report.FOLDERS}
    assert all(kept & {folder, folder.parent} for folder in there)
    table = claims.judge(report.read(report.FOLDERS))
    committed = pd.read_csv(resolve("results/report/claims.csv"), keep_default_na=False)
    for column in ("claim", "a", "b", "training", "metric", "dataset", "grid", "variant", "n", "verdict"):
        assert committed[column].tolist() == table[column].tolist(), column
    assert committed["difference"].tolist() == pytest.approx(table["difference"].tolist())
