"""A claim is judged by what the records predicted, image by image and seed by seed."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers import RECORDED, record_of
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from ddlib import paired_test, verdict
from ddlib.report import claims
from ddlib.report import tables as report
from ddlib.study import sweep
from ddlib.study.parameters import resolve

TIMES = "results/training_time/training_time.csv"


def judge(found, claim=None, what=""):
    table = claims.judge(found)
    return table[(table["claim"] == claim if claim else True) & table["what"].str.contains(what, regex=False)]


def word_of(summary, claim, what=""):
    return summary[(summary["claim"] == claim) & summary["what"].str.contains(what, regex=False)].iloc[0]["verdict"]


def equal_budget(found):
    return judge(found, what="(E + E epochs) beats")


def test_a_claim_is_judged_by_the_differences_of_its_seeds():
    found = [record_of({"cnn-dnn": 0.8 + 0.01 * seed, "average": 0.7, "vote": 0.9}, seed) for seed in range(3)]
    table = judge(found).set_index("b")
    assert set(table["claim"]) == {"C1"}
    assert table["n"].tolist() == [3, 3]
    right = [[r.predicted(name)[0] == RECORDED for name in ("cnn-dnn", "average")] for r in found]
    gaps = np.array([a.astype(float) - b for a, b in right])
    expected = verdict([10, 11, 12], 0, *(100 * error for error in claims._shares(gaps)[1]))
    row = table.loc["average"]
    assert (row["difference"], row["low"], row["high"]) == pytest.approx((11, expected.low, expected.high))
    assert row["verdict"] == "holds"
    assert table.loc["vote", "verdict"] == "does not hold"
    tests = [paired_test(RECORDED, r.predicted("cnn-dnn")[0], r.predicted("vote")[0]).p_value for r in found]
    assert table.loc["vote", "McNemar"] == max(tests)


def test_seeds_of_other_settings_are_judged_apart_in_any_order():
    """Learning rates are not in a table's columns: they must neither replace one another nor be mixed."""
    many = [record_of({"cnn-dnn": 0.9, "average": 0.5}, seed) for seed in range(3)]
    few = [record_of({"cnn-dnn": 0.1, "average": 0.9}, rate=0.05)]
    for found in (many + few, few + many):
        table = judge(found).set_index("n")
        assert table.loc[3, "difference"] == pytest.approx(40)
        assert table.loc[1, "difference"] == pytest.approx(-80)
    longer = [record_of({"cnn-dnn": 0.5}, epochs=24, rate=0.05)]
    assert equal_budget([record_of({"transfer": 0.9}), *longer]).empty
    assert len(equal_budget([record_of({"transfer": 0.9}, rate=0.05), *longer])) == 1


def test_a_part_of_the_training_images_decides_nothing():
    found = [record_of({"cnn-dnn": 0.9, "average": 0.5}, seed, train_size=500) for seed in range(3)]
    table = judge(found)
    assert table["verdict"].tolist() == ["undecided"]
    assert table["subset"].tolist() == [True]
    assert word_of(claims.summary(table), "C1") == "not run"


def test_p_is_one_where_seeds_differ_in_sign():
    found = [record_of({"cnn-dnn": 0.7 + 0.2 * (-1) ** seed, "average": 0.7}, seed) for seed in range(3)]
    assert judge(found)["McNemar"].item() == 1


def test_points_of_other_parameters_are_apart_and_one_seed_is_undecided():
    found = [record_of({"cnn-dnn": 0.9, "average": 0.5}, overlap=overlap) for overlap in (0, 2)]
    found.append(record_of({"cnn-dnn": 0.9, "average": 0.5}, train_size=500))
    found.append(record_of({"global": 0.9}, overlap=4))  # has nothing to compare
    table = judge(found)
    assert table["variant"].tolist() == ["", "", "train_size=500"]
    assert set(table["verdict"]) == {"undecided"}


def test_the_equal_budget_pairs_a_point_with_one_of_twice_its_epochs():
    found = [record_of({"transfer": 0.9}, seed, epochs=6) for seed in range(2)]
    assert equal_budget(found).empty
    found += [record_of({"cnn-dnn": 0.8, "coherent": 0.95}, seed, epochs=12) for seed in range(2)]
    found += [record_of({"cnn-dnn": 0.1}, seed, epochs=24) for seed in range(2)]  # no transfer with 12 epochs
    table = equal_budget(found).set_index("b")
    assert table["difference"].to_dict() == pytest.approx({"cnn-dnn": 10, "coherent": -5})
    assert table["n"].tolist() == [2, 2]
    assert table["epochs of b"].tolist() == [12, 12]


def test_a_control_does_not_weigh_on_the_points_of_its_claim():
    """Points that are there for the equal budget are judged, but in a family of their own."""
    found = [record_of({"cnn-dnn": 0.8, "average": 0.7, "transfer": 0.9}, seed) for seed in range(3)]
    alone = judge(found, "C1")
    control = [record_of({"cnn-dnn": 0.8, "average": 0.8}, seed, epochs=24) for seed in range(3)]
    both = judge(found + control, "C1").set_index("epochs")
    assert both.loc[24, "what"].endswith("both after 2E epochs")
    assert both.loc[12, "adjusted p"] == alone["adjusted p"].item()


def test_channels_may_be_a_point_behind_at_equal_epochs():
    short = [record_of({"channels": 0.88 + 0.02 * seed}, seed, epochs=6) for seed in range(3)]
    for accuracy, word in ((0.7, "holds"), (0.91, "undecided"), (1.0, "does not hold")):
        long = [record_of({"global": accuracy}, seed, epochs=12) for seed in range(3)]
        assert judge(short + long, "C6", "at most 1 point behind")["verdict"].tolist() == [word]


def test_whether_the_backbone_matters_is_the_difference_of_two_differences():
    def both(coherent, **given):
        return [record_of({"coherent": coherent, "cnn-dnn": 0.7, "transfer": 0.8}, seed, **given) for seed in range(3)]

    found = both(0.9) + both(0.5, backbone="resnet20", width=8) + both(0.9, grid="4x4")
    row = judge(found, what=claims.DEPENDS).squeeze()
    assert row["difference"] == pytest.approx(40)
    assert (row["backbone"], row["grid"]) == ("vgg9 (w 32) − resnet20 (w 8)", "2x2")
    assert row["verdict"] == "holds"
    turned = both(0.5) + both(0.9, backbone="resnet20", width=8)
    row = judge(turned, what=claims.DEPENDS).squeeze()
    assert row["difference"] == pytest.approx(-40)
    assert row["verdict"] == "holds"  # it depends, whichever is ahead
    for more in ({"rate": 0.01}, {"epochs": 6}):  # they differ in more than the backbone
        other = both(0.9, **more) + both(0.5, backbone="resnet20", width=8)
        assert judge(other, what=claims.DEPENDS).empty
    same = both(0.7) + both(0.7, backbone="resnet20", width=8)
    assert judge(same, what=claims.DEPENDS)["verdict"].tolist() == ["undecided"]


def test_whether_the_backbone_matters_is_judged_by_the_area_on_data_of_two_classes():
    """Every image is put into the second class, whatever its score, so that accuracies do not differ."""
    rng = np.random.default_rng(3)
    truth = np.arange(60) % 2
    found = []
    for seed in range(3):
        noise = {name: 9 + rng.normal(size=60) for name in ("coherent", "cnn-dnn")}
        found.append(two_classes(noise, seed))
        found.append(two_classes(noise | {"coherent": 9 + 9 * truth}, seed, backbone="resnet20", width=8))
    judged = judge(found, what=claims.DEPENDS).set_index("metric")
    ours, theirs = (
        np.mean(
            [
                roc_auc_score(truth, r.arrays["score/coherent"][0]) - roc_auc_score(truth, r.arrays["score/cnn-dnn"][0])
                for r in some
            ]
        )
        for some in (found[::2], found[1::2])
    )
    assert judged.loc["accuracy", "difference"] == 0
    assert judged.loc["AUC", "difference"] == pytest.approx(100 * (ours - theirs))
    assert judged.loc["AUC", "verdict"] == "holds"
    assert claims.decisive(judged.reset_index())["metric"].tolist() == ["AUC"]


def test_a_remedy_is_a_point_with_an_option_against_the_same_without():
    plain = [record_of({"coherent": 0.3, "transfer": 0.9, "cnn-dnn": 0.8}, seed) for seed in range(3)]
    both = [record_of({"coherent": 0.8, "transfer": 0.9}, seed, local_losses=True) for seed in range(3)]
    folds = [record_of({"cnn-dnn": 0.7}, seed, out_of_fold=3) for seed in range(2)]
    alone = [record_of({"cnn-dnn": 0.7}, 0, out_of_fold=3, overlap=2)]  # its twin is not on record
    assert judge(plain, "remedy").empty
    table = judge(plain + both + folds + alone, "remedy").set_index("what")
    assert table["difference"].to_dict() == pytest.approx(
        {
            "out_of_fold makes cnn-dnn more accurate": -10,
            "local_losses makes coherent more accurate": 50,
            "local_losses makes transfer more accurate": 0,
        }
    )
    assert table["n"].tolist() == [2, 3, 3]


def test_a_remedy_is_not_the_papers_claim():
    found = [record_of({"transfer": 0.9, "cnn-dnn": 0.8}, seed, out_of_fold=3) for seed in range(3)]
    found += [record_of({"cnn-dnn": 0.8}, seed, out_of_fold=3, epochs=24) for seed in range(3)]
    assert judge(found).empty


def test_many_comparisons_of_a_claim_are_allowed_for():
    """One that barely holds alone does not among many of the same claim; p-values only grow, and keep their order."""
    judged = judge([record_of({"cnn-dnn": 0.8, "average": 0.7})])
    rows = [judged.assign(p=p, verdict="holds" if p < 0.05 else "undecided") for p in (0.04, 0.5, 0.6, 0.001, np.nan)]
    rows.append(judged.assign(p=1e-9, subset=True, verdict="undecided"))
    rows.append(judged.assign(p=0.04, verdict="holds", claim="C2"))  # a family of its own
    table = claims._adjusted(pd.concat(rows, ignore_index=True))
    assert table["verdict"].tolist() == [*["undecided"] * 3, "holds", "undecided", "undecided", "holds"]
    assert table["adjusted p"].tolist()[:4] == pytest.approx([0.08, 0.6, 0.6, 0.004])
    assert table["adjusted p"].isna().tolist() == [False] * 4 + [True] * 2 + [False]
    nothing = claims.judge([record_of({"global": 0.9})])
    assert nothing.empty
    assert set(table) == set(nothing)


def test_one_row_among_many_is_enough_only_where_chance_would_not_give_it():
    """A row may hold, with 5 % of such rows expected to be false, and yet be the one of twenty that chance gives."""
    common = {
        "claim": "C5",
        "what": "w",
        "n": 3,
        "subset": False,
        "metric": "accuracy",
        "a": "a",
        "b": "b",
        "difference": 1,
    }
    common |= dict.fromkeys(claims.POINT, 0)
    rows = [common | {"grid": k, "p": 1e-4, "verdict": "does not hold"} for k in range(15)]
    for p, word in ((0.01, "undecided"), (0.003, "holds")):
        table = claims._adjusted(pd.DataFrame([*rows, common | {"grid": 15, "p": p, "verdict": "holds"}]))
        found = claims.summary(table).set_index("what").loc["w"]
        assert (found["holds"], found["verdict"]) == (1, word)


def test_strategies_that_agree_on_every_image_may_differ_on_others():
    found = [record_of({"cnn-dnn": 0.9, "average": 0.9}, seed) for seed in range(3)]
    row = judge(
        [replace(r, arrays=r.arrays | {"predicted/average": r.arrays["predicted/cnn-dnn"]}) for r in found]
    ).squeeze()
    assert row["difference"] == 0
    n = len(RECORDED)
    assert row["high"] == pytest.approx(196 * (2 / (n + 1) / (n + 2)) ** 0.5, rel=1e-3)  # two images, one for each


def two_classes(scores, seed=0, **given):
    """A record of two classes with scores; accuracies do not matter."""
    labels = np.arange(60) % 2
    arrays = {"labels": labels} | {f"score/{name}": score[None] for name, score in scores.items()}
    arrays |= {f"predicted/{name}": (score > 0.5)[None].astype(int) for name, score in scores.items()}
    return record_of(dict.fromkeys(scores, 0.5), seed, arrays=arrays, **given)


def test_the_area_under_the_curve_is_judged_too():
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 2
    found = [
        two_classes(
            {
                "cnn-dnn": labels + generator.normal(size=60).round(1),  # rounded: some are equal
                "average": generator.normal(size=60).round(1),
                "vote": generator.normal(size=60),
            },
            seed,
        )
        for seed in range(3)
    ]
    row = claims.judge(found).query("metric == 'AUC'").squeeze()
    areas = [[roc_auc_score(labels, r.arrays[f"score/{name}"][0]) for name in ("cnn-dnn", "average")] for r in found]
    assert row["difference"] == pytest.approx(100 * np.mean([a - b for a, b in areas]))
    assert row["b"] == "average"  # a vote has no score of its own
    assert np.isnan(row["McNemar"])


def test_the_error_of_an_area_is_that_of_drawing_other_images():
    generator = np.random.default_rng(1)
    labels = np.arange(60) % 2

    def draw():
        common = labels + generator.normal(size=60)
        return two_classes({"cnn-dnn": common, "average": common + generator.normal(size=60)})

    drawn = [claims._areas(claims._gaps([(r, r)], "cnn-dnn", "average", "AUC")) for r in (draw() for _ in range(400))]
    differences = [by_seed.item() for by_seed, _ in drawn]
    shared, alone = zip(*(errors for _, errors in drawn), strict=True)
    assert shared == alone  # a single seed
    assert np.mean(alone) == pytest.approx(np.std(differences), rel=0.1)


def test_an_interval_allows_for_other_test_images_however_alike_the_seeds_are():
    right = np.random.default_rng(0).permutation(200)
    gaps = np.zeros((3, 200))
    for seed, row in enumerate(gaps):
        row[right[40 * seed : 40 * seed + 40]] = np.repeat([1, -1], [25, 15])  # 5 points in each seed, by other images
    shared, alone = claims._image_errors(gaps)
    assert shared == 0
    assert alone == pytest.approx((gaps.mean(0).var(ddof=1) / 200) ** 0.5)
    found = verdict(gaps.mean(1), 0, shared, alone)
    assert found.high - found.mean == pytest.approx(1.96 * alone, rel=1e-3)


def test_the_summary_goes_by_the_area_where_there_is_one():
    rng = np.random.default_rng(2)
    truth = np.arange(60) % 2
    found = []
    for seed in range(3):
        noise = 9 + rng.normal(size=60)  # every image is put into the second class
        found.append(two_classes({"cnn-dnn": 9 * truth + noise, "average": noise}, seed))
    judged = claims.judge(found)
    assert (judged["verdict"] == "holds").tolist() == (judged["metric"] == "AUC").tolist()
    own = claims.summary(judged).set_index("what").loc["CNN-DNN beats the average"]
    assert (own["holds"], own["undecided"], own["ahead"], own["verdict"]) == (1, 0, 1, "holds")


def test_the_summary_says_a_word_for_each_comparison():
    found = [
        record_of({"cnn-dnn": 0.8, "average": 0.6, "vote": 0.6, "global": 0.95, "coherent": 0.5}, seed)
        for seed in range(3)
    ]
    table = claims.summary(claims.judge(found), report.training_times(TIMES))
    words = {claim: word_of(table, claim) for claim in ("C1", "C2", "C4", "C5", "C6")}
    assert words == {
        "C1": "holds",
        "C2": "not run",
        "C4": "holds",
        "C5": "does not hold",
        "C6": "not run",
    }
    assert word_of(table, "C1", "CNN-DNN beats the vote") == "holds"
    assert table.set_index("what").loc["CNN-DNN beats the global CNN", "ahead"] == 0
    assert word_of(table, "C3", "coherent from scratch beats") == "does not hold"
    assert word_of(table, "C3", claims.DEPENDS) == "not run"  # one backbone alone
    better = [record_of({"cnn-dnn": 0.97, "global": 0.7}, seed, grid="4x4") for seed in range(3)]
    assert word_of(claims.summary(claims.judge(found + better)), "C5") == "holds"  # that it can is enough
    other = [record_of({"cnn-dnn": 0.5, "transfer": 0.97, "global": 0.7}, seed, grid="4x4") for seed in range(3)]
    table = claims.summary(claims.judge(found + other))
    assert word_of(table, "C5", "CNN-DNN beats") == "does not hold"  # transfer is another matter
    assert word_of(table, "C5", "transfer (E + E epochs) beats the global CNN (E epochs; ours)") == "holds"
    worse = [record_of({"cnn-dnn": 0.5, "average": 0.9}, seed, grid="4x4") for seed in range(3)]
    assert word_of(claims.summary(claims.judge(found + worse)), "C1") == "undecided"  # here it does, there the contrary


@pytest.mark.parametrize("noise", [0.0, 1.0, 3.0])
def test_of_equal_strategies_about_one_in_twenty_is_told_apart(noise):
    """Whichever is larger: the spread of the seeds, of the images, or of single images in single seeds (then fewer)."""
    generator, images, seeds = np.random.default_rng(0), 300, 3
    for spread in (0.0, 0.1):
        wrong = 0
        for _ in range(600):
            gaps = generator.normal(size=images) + spread * generator.normal(size=(seeds, 1))
            gaps = gaps + noise * generator.normal(size=(seeds, images))
            wrong += verdict(gaps.mean(1), 0, *claims._image_errors(gaps)).word != "undecided"
        assert 0.01 < wrong / 600 < 0.08, (spread, wrong)


def test_a_record_speaks_of_the_strategies_that_it_was_asked_for():
    found = [two_classes({"cnn-dnn": np.arange(60) / 60, "average": np.ones(60)}, seed) for seed in range(3)]
    assert set(claims.judge(found)["metric"]) == {"accuracy", "AUC"}
    assert claims.judge([r.only(["cnn-dnn"]) for r in found]).empty


def test_the_committed_report_is_that_of_the_committed_records():
    """Of every folder that the plan writes to, too, where it is there."""
    planned = {p.output for p in sweep.read_plan(resolve("notebooks/plans/cpu.yaml"))}
    there = {folder for folder in planned if folder.is_dir() and any(folder.glob("*.json"))}
    assert there <= {resolve(folder) for folder in report.FOLDERS}
    found = report.read(report.FOLDERS)
    table = claims.judge(found)
    committed = pd.read_csv(resolve("results/report/claims.csv"), keep_default_na=False)
    for column in ("claim", "what", "metric", "dataset", "grid", "variant", "a", "b", "n", "verdict"):
        assert committed[column].tolist() == table[column].tolist(), column
    assert committed["difference"].tolist() == pytest.approx(table["difference"].tolist())


@given(st.lists(st.floats(-20, 20), min_size=3, max_size=8), st.floats(0, 2))
def test_verdicts(differences, margin):
    found = verdict(differences, margin)
    assert found.low <= found.mean <= found.high
    assert found.mean == pytest.approx(np.mean(differences))
    assert (found.word == "holds") == (found.low > -margin)
    assert (found.p_value < 0.05) == (not found.low <= -margin <= found.high) or found.p_value == pytest.approx(0.05)
    opposite = verdict([-d for d in differences])
    assert (found.low, found.high) == pytest.approx((-opposite.high, -opposite.low))


def test_known_verdicts():
    assert verdict([1.0, 2.0, 3.0])[2:] == pytest.approx(
        (2.0, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5, 0.0742), abs=1e-3
    )
    assert verdict([5.0]).word == "undecided"
    assert verdict([5.0, 5.0]).word == "undecided"
    assert verdict([0.0] * 3).word == "undecided"
    assert verdict([-0.1] * 3).word == "does not hold"
    assert verdict([0.0] * 3, margin=0.5).word == "holds"
    assert verdict([0.3] * 3).word == "holds"
    for wide in (verdict([0.3] * 3, error=0.2), verdict([0.3] * 3, least=0.2)):
        assert wide.word == "undecided"
        assert (wide.low, wide.high, wide.p_value) == pytest.approx((0.3 - 0.392, 0.3 + 0.392, 0.1336), abs=1e-3)
    assert np.isnan(verdict([5.0]).p_value)
    for wrong in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="finite differences"):
            verdict(wrong)


def test_a_changed_record_changes_the_table():
    usual = record_of({"cnn-dnn": 0.9, "average": 0.5})
    other = replace(usual, arrays=usual.arrays | {"predicted/average": RECORDED[None]})
    assert judge([other])["difference"].item() == pytest.approx(-10)
