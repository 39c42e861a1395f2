"""A claim is judged by what the records predicted, image by image and seed by seed."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers import RECORDED, record_of
from scipy.stats import false_discovery_control, t
from sklearn.metrics import roc_auc_score

from ddlib.data import sets
from ddlib.report import claims, effects, pages, verdicts
from ddlib.report import tables as report
from ddlib.study import sweep
from ddlib.study.parameters import resolve


def judge(found, claim=None, training=None):
    table = claims.judge(found)
    table = table[table["claim"] == claim] if claim else table
    return table[table["training"] == training] if training else table


def test_a_claim_is_judged_by_the_differences_of_its_seeds():
    found = [record_of({"cnn-dnn": 0.8 + 0.01 * seed, "average": 0.7, "vote": 0.95}, seed) for seed in range(3)]
    table = judge(found).set_index("b")
    assert set(table["claim"]) == {"C1"}
    assert table["n"].tolist() == [3, 3]
    assert table["difference"].tolist() == pytest.approx([11, -14])
    assert table["in accuracy"].tolist() == pytest.approx([11, -14])
    assert table["verdict"].tolist() == ["ahead", "behind"]


def test_a_row_names_its_regime():
    found = [record_of({"cnn-dnn": 0.9, "average": 0.5}, augment=False, epochs=6)]
    found.append(record_of({"cnn-dnn": 0.9, "average": 0.5}, train_size=500))
    columns = ["epochs", "augment", "problem", "training"]
    assert judge(found)[columns].to_numpy().tolist() == [
        [6, "no", "digits", "E : E"],
        [12, "yes", "digits, 500 images", "E : E"],
    ]


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


def test_few_seeds_are_open_and_a_part_of_the_training_images_is_a_problem_of_its_own():
    part = [record_of({"cnn-dnn": 0.9, "average": 0.5}, seed, train_size=500) for seed in range(3)]
    few = [record_of({"cnn-dnn": 0.9, "average": 0.5}, seed) for seed in range(2)]
    table = judge(part + few)
    assert table["verdict"].tolist() == ["ahead", "open"]
    assert table["problem"].tolist() == ["digits, 500 images", "digits"]
    assert table["low"].notna().all()
    assert table["adjusted p"].notna().tolist() == [True, False]
    alone = judge([record_of({"cnn-dnn": 0.9, "average": 0.5})]).squeeze()
    assert alone["verdict"] == "open"
    assert np.isnan(alone["low"])  # nobody knows how seeds differ
    with_others = judge([*few, record_of({"cnn-dnn": 0.9, "average": 0.5}, overlap=2)])
    assert with_others["low"].notna().all()


def test_two_folders_of_images_are_two_problems_that_share_no_test_image():
    """Also where the folders have one name."""
    paths = ("/data/a b/photos", "/data/c/photos")
    options = [sets.written("image_folder", {"path": path, "size": 16}) for path in paths]
    given = [{"dataset": "image_folder", "options": text, "seed": seed} for text in options for seed in range(3)]
    rows = claims.compare([record_of({"cnn-dnn": 0.9, "average": 0.8}, **point) for point in given])
    table = claims.as_table(rows)
    assert table["problem"].tolist() == ['image_folder path="/data/a b/photos"', "image_folder path=/data/c/photos"]
    one, both = effects.effect(rows[:1])["image error"], effects.effect(rows)["image error"]
    assert both == pytest.approx(one / 2**0.5)
    assert [verdicts.parts_of(row)[0] for row in table.to_dict("records")] == 2 * ["image_folder photos 16 px"]
    assert verdicts.problem("image_folder path=/x/eyes, 2000 images") == "image_folder eyes (2,000 images)"


def test_what_is_within_a_point_is_level_but_for_what_is_decidedly_ahead_or_behind():
    """Half a point behind on 20,000 images, and no difference; on 200 images that is less than their error."""
    for images, expected in ((20000, ["behind", "level"]), (200, ["open", "open"])):
        labels = np.arange(images) % 4
        near = np.where(np.arange(images) % 200, labels, labels + 1)
        arrays = {"labels": labels, "predicted/cnn-dnn": near[None], "predicted/average": labels[None]}
        arrays["predicted/vote"] = near[None]
        found = [record_of({"cnn-dnn": 1.0, "average": 1.0, "vote": 1.0}, s, arrays=arrays) for s in range(3)]
        table = judge(found).set_index("b")
        assert table["difference"].tolist() == pytest.approx([-0.5, 0])
        assert table["verdict"].tolist() == expected


def test_the_equal_budget_pairs_a_point_with_one_of_twice_its_epochs():
    found = [record_of({"transfer": 0.9}, seed, epochs=6) for seed in range(2)]
    assert judge(found).empty
    found += [record_of({"cnn-dnn": 0.8, "coherent": 0.95}, seed, epochs=12) for seed in range(2)]
    found += [record_of({"cnn-dnn": 0.1}, seed, epochs=24) for seed in range(2)]  # no transfer with 12 epochs
    table = judge(found, training="E + E : 2E").set_index("b")
    assert table["difference"].to_dict() == pytest.approx({"cnn-dnn": 10, "coherent": -5})
    assert table["n"].tolist() == [2, 2]
    assert table["epochs"].tolist() == [6, 6]


def test_a_choice_is_told_by_pairs_of_rows_that_agree_in_all_else(tmp_path):
    gains = {(0, None): 10, (4, None): 13, (2, None): 40, (4, "full"): 11}  # CNN-DNN − average, in points
    found = [
        record_of(
            {"cnn-dnn": 0.5 + gain / 100, "average": 0.5}, overlap=overlap, **{"local_width": width} if width else {}
        )
        for (overlap, width), gain in gains.items()
    ]
    found.append(record_of({"cnn-dnn": 0.9, "average": 0.5}, grid="4x4", overlap=4, epochs=24))  # no partner
    judged = judge(found)
    changes = claims.hangs_on(judged).set_index("choice")
    assert changes["mean"].to_dict() == pytest.approx(
        {"no overlap → 4 pixels or more": 3, "local CNNs of width w/√N → w": -2}
    )
    assert set(changes["pairs"]) == {1}
    judged.to_csv(tmp_path / "claims.csv")
    assert claims.hangs_on(pd.read_csv(tmp_path / "claims.csv")).set_index("choice").equals(changes)


def test_variants_are_rows_of_the_papers_claims():
    """A wider local CNN, or a coarse window, is another decomposition; only remedies stay apart."""
    found = [record_of({"cnn-dnn": 0.9, "average": 0.5}, s, local_width="full", coarse=True) for s in range(3)]
    found += [record_of({"geometric": 0.6, "correction": 0.8, "average": 0.5, "global": 0.9}, s) for s in range(3)]
    table = judge(found)
    assert table.loc[table["claim"] == "C1", "variant"].tolist() == ["local_width=full coarse=True"]
    assert table.loc[table["claim"] == "C1", "way"].tolist() == ["local width full, coarse"]
    own = table[table["claim"].isin(["average", "geometric", "correction"])].set_index(["a", "b"])["difference"]
    expected = {("average", "global"): -40, ("geometric", "average"): 10, ("geometric", "global"): -30}
    expected |= {("correction", "average"): 30, ("correction", "global"): -10}
    assert own.to_dict() == pytest.approx(expected)


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


def test_a_variant_in_words():
    assert claims.way("options=shape=[48,42] train_size=500") == ""
    assert claims.way("options=size=64 dense_hidden=128 64 coarse=True") == "dense hidden 128 64, coarse"


def test_p_values_are_corrected_once_within_a_claim():
    """Rows of both comparisons of C1 are one family; those of C2 and of few seeds are not in it."""
    found = [record_of({"cnn-dnn": 0.8, "average": 0.72, "vote": 0.75, "transfer": 0.9}, seed) for seed in range(3)]
    found += [record_of({"cnn-dnn": 0.8, "average": 0.7}, seed, grid="4x4") for seed in range(3)]
    found += [record_of({"cnn-dnn": 0.8, "average": 0.2}, grid="3x3")]
    table = judge(found)
    for claim, size in (("C1", 3), ("C2", 1)):
        family = table[(table["claim"] == claim) & (table["n"] >= 3)]
        assert len(family) == size
        np.testing.assert_allclose(family["adjusted p"], false_discovery_control(family["p"]))
    assert (table["verdict"].isin(["ahead", "behind"]) == (table["adjusted p"] <= 0.05)).all()
    nothing = claims.judge([record_of({"global": 0.9})])
    assert nothing.empty
    assert set(table) == set(nothing)
    assert claims.pool([], nothing).empty


def test_strategies_that_agree_on_every_image_may_differ_on_others():
    found = [record_of({"cnn-dnn": 0.9, "average": 0.9}, seed) for seed in range(3)]
    same = [replace(r, arrays=r.arrays | {"predicted/average": r.arrays["predicted/cnn-dnn"]}) for r in found]
    row = judge(same).squeeze()
    assert row["difference"] == 0
    n = len(RECORDED)
    assert row["image error"] == pytest.approx(100 * (2 / (n + 1) / (n + 2)) ** 0.5)  # two images, one for each


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
        return claims._pairwise_wins(record, "cnn-dnn") - claims._pairwise_wins(record, "average")

    drawn = [draw() for _ in range(400)]
    added = np.array([effects.influence(gap, labels) for gap in drawn])
    expected = 100 * np.std([gap.mean() for gap in drawn])
    assert np.mean(np.sqrt((added**2).sum(1) / 60 / 59)) == pytest.approx(expected, rel=0.1)


# ── statistics ──


def row_of(by_seed, images=400, error=0.0, generator=None, **about):
    """A row with these differences, in points, and images that leave this error."""
    shared = (generator or np.random.default_rng(0)).normal(size=images)
    shared *= error * images / np.sqrt((shared**2).sum())
    about = {"comparison": "C1", "problem": "a", "source": "a", "epochs": 1, "backbone": "", "width": 1} | about
    return effects.Row({"augment": "yes"} | about, np.array(by_seed, float), shared, 0.0)


def test_a_row_alone_has_students_interval():
    row = row_of([1.0, 2.0, 4.5], error=1e-9)
    effects.moderate([row])
    found, by_seed = effects.effect([row]), row.by_seed
    reach = t(2).isf(0.025) * by_seed.std(ddof=1) / 3**0.5
    assert found["difference"] == by_seed.mean()
    assert found["high"] - found["difference"] == pytest.approx(reach, rel=1e-6)
    assert found["p"] == pytest.approx(2 * t(2).sf(by_seed.mean() / by_seed.std(ddof=1) * 3**0.5))


def test_moderated_variances_are_those_of_smyths_prior():
    """With many rows s0² and d0 are found again, and the posterior is their average by degrees of freedom."""
    generator, d0, s0 = np.random.default_rng(0), 6.0, 0.5
    spread = np.sqrt(s0**2 * d0 / generator.chisquare(d0, size=4000))
    about, images = row_of([0]).about, np.broadcast_to(0.0, 10**6)  # so many that shares are not rounded
    own = [about | {"epochs": k} for k in range(4000)]
    rows = [effects.Row(a, sd * generator.normal(size=3), images, 0.0) for a, sd in zip(own, spread, strict=True)]
    effects.moderate(rows)
    assert effects._strength([rows]) == pytest.approx(d0, rel=0.3)
    assert effects._usual(rows, d0) == pytest.approx(s0**2, rel=0.05)
    freedom = rows[0].freedom - 2
    for row in rows[:20]:
        own = row.by_seed.var(ddof=1)
        expected = (freedom * effects._usual(rows, freedom) + 2 * own) / (freedom + 2)
        assert row.variance == pytest.approx(expected, rel=0.01)


def test_rows_of_the_same_global_cnns_count_as_one_set():
    seeds = [0.0, 1.0, 2.0]
    same, apart = [[row_of(seeds, epochs=k * change, error=1e-9) for k in range(4)] for change in (0, 1)]
    errors = []
    for rows in (same, apart):
        effects.moderate(rows)
        errors.append(effects.effect(rows)["seed error"])
    assert errors[0] == pytest.approx((1 / 3) ** 0.5)
    assert errors[1] == pytest.approx((1 / 12) ** 0.5)
    assert [rows[0].freedom for rows in (same, apart)] == [2, 8]


def test_images_are_shared_within_a_data_set():
    same = [row_of([0, 0.1, 0.2], error=1.0, epochs=k) for k in range(4)]
    other = [row_of([0, 0.1, 0.2], error=1.0, epochs=k, source=str(k)) for k in range(4)]
    for rows, error in ((same, 1.0), (other, 0.5)):
        effects.moderate(rows)
        assert effects.effect(rows)["image error"] == pytest.approx(error, rel=0.01)


@pytest.mark.parametrize(("seeds", "noise"), [(0.0, 0.3), (0.01, 0.25), (0.03, 0.0)])
def test_of_equal_strategies_one_row_in_twenty_is_told_apart_before_the_correction(seeds, noise):
    """Whichever is larger: the spread of the seeds, of the images, or of single images in single seeds."""
    generator, wrong, over = np.random.default_rng(0), [], []
    about = {"comparison": "C1", "problem": "a", "source": "a", "backbone": "", "width": 1, "augment": "yes"}
    for _ in range(200):
        images, rows = 0.2 * generator.normal(size=300), []
        for k in range(6):
            gaps = images + seeds * generator.normal(size=(3, 1)) + noise * generator.normal(size=(3, 300))
            rows.append(effects.Row.of(about | {"epochs": k}, list(gaps), None))
        effects.moderate(rows)
        wrong += [effects.effect([row])["p"] <= 0.05 for row in rows]
        over.append(effects.effect(rows)["p"] <= 0.05)
    assert np.mean(wrong) < 0.075
    assert np.mean(over) < 0.075


@pytest.fixture(scope="module")
def compared():
    return claims.compare(report.read(report.FOLDERS))


def test_rates_of_the_rule(compared):
    """False positives, and power for a true effect of a point in every row, with the spreads of the committed rows.

    Seeds of a row have half of its own variance and half of its group's, as truth; `pytest -k rates -s` prints both.
    """
    generator, rounds = np.random.default_rng(0), 20
    rows = [row for row in compared if len(row.by_seed) >= 3 and row.about["claim"].startswith("C")]
    groups = effects.grouped(rows, lambda row: (row.about["comparison"], row.about["problem"]))
    usual = {key: np.mean([effects._variance(row) for row in group]) for key, group in groups.items()}
    errors = [effects.effect([row])["image error"] for row in rows]
    family = np.array([row.about["claim"] for row in rows])
    dataset = np.array([row.about["dataset"] for row in rows])

    def decided(true: float) -> np.ndarray:
        images, drawn = {}, []  # (rows,): is the corrected p at most 0.05?
        for row, error in zip(rows, errors, strict=True):
            common = images.setdefault((row.about["dataset"], len(row.images)), generator.normal(size=len(row.images)))
            direction = common @ row.images / np.linalg.norm(row.images)
            truth = 0.5 * usual[row.about["comparison"], row.about["problem"]] + 0.5 * effects._variance(row)
            by_seed = true + error * direction + np.sqrt(truth) * generator.normal(size=len(row.by_seed))
            drawn.append(replace(row, by_seed=by_seed))
        effects.moderate(drawn)
        p = np.array([effects.effect([row])["p"] for row in drawn])
        for claim in set(family):
            p[family == claim] = false_discovery_control(p[family == claim])
        return p <= 0.05

    false, power = (np.mean([decided(true) for _ in range(rounds)], axis=0) for true in (0.0, 1.0))
    print(f"\nfalse positives {false.mean():.1%}, power for one point {power.mean():.0%}:")
    for name, keys in (("claim", family), ("dataset", dataset)):
        for key in sorted({*keys}):
            print(f"  {name} {key}: {false[keys == key].mean():.1%}, {power[keys == key].mean():.0%}")
    assert false.mean() < 0.01
    tells = np.isin(dataset, ["cifar10", "faces"])  # hundreds of flowers and nodules cannot tell one point
    assert power[tells].mean() > 0.45


# ── means, figures, report ──


def test_means_are_over_all_rows_and_by_problem_regime_and_parts():
    found = [record_of({"cnn-dnn": 0.8, "average": 0.6, "global": 0.95}, seed) for seed in range(3)]
    found += [record_of({"cnn-dnn": 0.9, "average": 0.8}, grid="4x4")]
    found += [record_of({"cnn-dnn": 0.9, "average": 0.8}, seed, epochs=150) for seed in range(3)]
    found += [record_of({"cnn-dnn": 0.9, "average": 0.5}, seed, train_size=500) for seed in range(3)]
    rows = claims.compare(found)
    table = claims.pool(rows, claims.as_table(rows))
    own = table[(table["claim"] == "C1")].set_index(["over", "scope"])
    assert own.loc[("all", "all"), ["rows", "ahead", "open"]].tolist() == [4, 3, 1]
    expected = {"all": 20, "short": 70 / 3, "long": 10, "digits": 40 / 3, "digits, 500 images": 40}
    assert own.loc[["all", "regime", "problem"]].droplevel(0)["difference"].to_dict() == pytest.approx(expected)
    assert own.loc[("parts", "16 windows"), "verdict"] == "open"  # a single seed
    assert table.loc[(table["claim"] == "C5") & (table["over"] == "all"), "behind"].item() == 1


def test_a_new_problem_has_the_interval_of_one_more_draw():
    rows = [row_of([x, x, x + 0.1], error=0.1, problem=x, dataset=x) for x in (1.0, 2.0, 6.0)]
    names = {"claim": "C1", "a": "x", "b": "y", "training": "", "option": "", "metric": "AUC", "regime": "short"}
    names |= {"parts": "", "n": 3, "in accuracy": 0.0, "grid": "", "overlap": 0, "variant": ""}
    for row in rows:
        row.about = row.about | names | {"problem": str(row.about["problem"])}
    effects.moderate(rows)
    own = claims.pool(rows, claims.as_table(rows)).set_index("over").loc["another problem"]
    means = [row.by_seed.mean() for row in rows]
    reach = t(2).isf(0.025) * np.std(means, ddof=1) * (4 / 3) ** 0.5
    assert own[["low", "high"]].tolist() == pytest.approx([np.mean(means) - reach, np.mean(means) + reach])


def test_a_forest_has_a_line_a_point_ordered_by_effect_and_a_diamond_a_mean():
    accuracies = {"cnn-dnn": 0.9, "average": 0.6, "vote": 0.6}
    found = [record_of(accuracies, s, grid="2x2") for s in range(3)]
    found += [record_of(accuracies | {"average": 0.5}, s, grid="4x4") for s in range(3)]
    found += [record_of({"cnn-dnn": 0.9, "vote": 0.5}, backbone="mobilenet_v2")]
    rows = claims.compare(found)
    judged = claims.as_table(rows)
    figure = verdicts.forest(judged, claims.pool(rows, judged))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[:2] == ["digits, VGG9 (32), 4×4, 12 epochs", "digits, VGG9 (32), 2×2, 12 epochs"]
    assert labels[2] == "digits, MobileNetV2 (32), 2×2, 12 epochs"  # not in the first column
    assert labels[4:] == ["mean: all rows", "mean: short training", "mean: digits"]
    marks = [[line for line in ax.lines if len(line.get_xdata()) == 1] for ax in figure.axes]
    assert [len(panel) for panel in marks] == [2, 3]
    assert [len(ax.patches) for ax in figure.axes] == [1 + 3, 1 + 3]  # the grey ground, and diamonds


def test_the_committed_report_is_that_of_the_committed_records(compared):
    """Of every folder that the plan writes to, too, where it is there."""
    plans = [resolve(f"notebooks/plans/{name}.yaml") for name in ("cpu", "150_epochs", "what_pays")]
    planned = {point.output for plan in plans for point in sweep.read_plan(plan)}
    there = {folder for folder in planned if folder.is_dir() and any(folder.glob("*.json"))}
    kept = {resolve(folder) for folder in report.FOLDERS}
    assert all(kept & {folder, folder.parent} for folder in there)
    table = claims.as_table(compared)
    for name, made in (("claims", table), ("means", claims.pool(compared, table))):
        committed = pd.read_csv(resolve(f"results/report/{name}.csv"), keep_default_na=False)
        for column in [*claims.COMPARED, "metric", "verdict"]:
            assert committed[column].tolist() == made[column].tolist(), column
        assert committed["difference"].tolist() == pytest.approx(made["difference"].tolist())


def test_differences_in_words():
    ends = {"difference": -1.24, "low": -2.06, "high": -0.04}
    assert pages.spoken(ends | {"verdict": "behind"}) == "1.2 [0.0, 2.1] behind"
    assert pages.spoken(ends | {"verdict": "open"}) == "−1.2 [−2.1, 0.0] (open)"
    assert pages.spoken(ends, signed=True) == "−1.2 [−2.1, 0.0]"
    assert pages.listed(["a", "b", "c"]) == "a, b and c"


def test_no_page_is_written_where_one_cannot_be_rendered(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "resolve", lambda path: tmp_path / path)
    monkeypatch.setattr(pages, "Report", lambda folder: None)
    (tmp_path / pages.TEMPLATES).mkdir(parents=True)
    (tmp_path / pages.TEMPLATES / "a.md.j2").write_text("a")
    (tmp_path / pages.TEMPLATES / "b.md.j2").write_text("{{ unknown }}")
    with pytest.raises(ValueError, match=r"b\.md\.j2: 'unknown' is undefined"):
        pages.write(tmp_path)
    assert not (tmp_path / "docs/a.md").exists()


def test_the_pages_are_those_that_the_report_renders():
    folder = resolve("results/report")
    names = [path.name.removesuffix(".md.j2") for path in resolve(pages.TEMPLATES).glob("*.md.j2")]
    assert names
    for name in names:
        assert pages.page_of(name).read_text() == pages.render(name, folder), f"{name}: run `ddlib report`"
