import copy
import errno
import json
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import ddlib
from ddlib import Experiment, accuracy_table, gather, strategies
from ddlib._internal.files import DamagedFile
from ddlib.data.sets import DATASETS, Entry
from ddlib.images import prepare
from ddlib.model import BothLevels
from ddlib.networks.backbones import build
from ddlib.study import records
from ddlib.study import trainings as kept
from ddlib.training import cross_entropy, predict

SMALL = {"dataset": "tiny", "width": 8, "epochs": 2, "dense_epochs": 2, "batch_size": 16, "precision": "fp32"}
ALL = ("global", "local", "average", "vote", "cnn-dnn", "coherent", "transfer")
TRAININGS = {"fit": kept, "train_coherent": kept, "train_local": kept, "train_aggregator": strategies}


def made_up(data: ddlib.ImageSet, **more) -> Entry:
    halves = [(half.images, half.labels) for half in (data.train, data.test)]
    return Entry(lambda place, root, **options: (*halves, data.classes), "made up", "here", "none", "in memory", **more)


@pytest.fixture(scope="module", autouse=True)
def registered(tiny, tiny3d):
    """The made-up sets, by name."""
    with pytest.MonkeyPatch.context() as patch:
        for data in (tiny, tiny3d):
            name = "tiny" if data is tiny else "tiny3d"
            patch.setitem(DATASETS, name, made_up(data))
        yield


@pytest.fixture
def trainings(monkeypatch):
    """The names of the trainings that are called, in order."""
    called = []
    for name, where in TRAININGS.items():
        real = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *a, name=name, real=real, **o: (called.append(name), real(*a, **o))[1])
    return called


@pytest.fixture(scope="module")
def everything(registered):
    return Experiment(**SMALL).record(progress=False)


# ── figures ──


def test_a_row_a_strategy_and_for_local_one_a_subdomain(everything):
    frame = everything.frame()
    assert list(frame) == list(records.ROW)
    assert frame["strategy"].tolist() == ["global", *["local"] * 4, *ALL[2:]]
    assert frame["subdomain"].tolist() == ["", "0,0", "0,1", "1,0", "1,1", *[""] * 5]
    for name, value in (("dataset", "tiny"), ("backbone", "vgg9"), ("width", 8), ("grid", "2x2"), ("overlap", 0)):
        assert (frame[name] == value).all()
    assert (frame[["seed", "epochs"]] == [0, 2]).all(axis=None)
    assert frame[["train_accuracy", "test_accuracy"]].stack().between(0, 1).all()
    assert everything.strategies == list(ALL)


def test_accuracies_are_those_of_the_predictions_kept(everything, tiny):
    frame, labels = everything.frame(), everything.arrays["labels"]
    assert labels.tolist() == tiny.test.labels.tolist()
    for strategy in ALL:
        kept = frame[frame["strategy"] == strategy]["test_accuracy"].tolist()
        predicted = np.atleast_2d(everything.predicted(strategy))
        assert predicted.shape == ((4, 32) if strategy == "local" else (1, 32))
        assert kept == pytest.approx((predicted == labels).mean(1).tolist())


def test_what_a_strategy_costs(everything):
    frame = everything.frame().groupby("strategy").first()
    seconds, parameters = frame["seconds"], frame["parameters"]
    assert (seconds > 0).all()
    assert seconds["local"] == seconds["average"] == seconds["vote"] < seconds["cnn-dnn"] < seconds["transfer"]
    assert parameters["average"] == parameters["vote"] == 4 * parameters["local"]
    assert parameters["cnn-dnn"] == parameters["coherent"] == parameters["transfer"] > parameters["average"]
    assert parameters["global"] == ddlib.count_parameters(build("vgg9", in_channels=3, num_classes=4, width=8))


def test_history_of_every_training(everything):
    history = everything.history()
    assert set(history["stage"]) == {"global", "local", "dense network", "coherent", "transfer"}
    for stage, rows in history.groupby("stage"):
        assert rows["epoch"].tolist() == [1, 2]
        assert rows["loss"].notna().all()
        assert rows["test_accuracy"].notna().all() == (stage in ("global", "coherent", "transfer"))
    final = history[(history["stage"] == "transfer") & (history["epoch"] == 2)]["test_accuracy"].item()
    assert final == everything.frame().query("strategy == 'transfer'")["test_accuracy"].item()


def test_where_the_figures_come_from(everything):
    told = everything.provenance
    assert (told["results"], told["precision"]) == (records.RESULTS, "fp32")
    assert {"commit", "dirty", "device", "threads", "cores", "started", "python", "versions"} <= told.keys()


def test_strategies_do_not_depend_on_one_another(everything):
    """Alone, each gives the figures that it gives beside the others."""
    frame = everything.frame().drop(columns="seconds")
    for strategy in ("vote", "coherent", "transfer"):
        alone = Experiment(**SMALL, strategies=(strategy,)).run(progress=False).drop(columns="seconds")
        assert alone.equals(frame[frame["strategy"] == strategy].reset_index(drop=True))


def test_volumes():
    small = SMALL | {"dataset": "tiny3d", "backbone": "cnn3d", "grid": (2, 2, 1), "overlap": 1, "epochs": 1}
    frame = Experiment(**small).run(progress=False)
    assert len(frame) == 10
    assert (frame["grid"] == "2x2x1").all()


def test_named_regions(tiny, monkeypatch):
    """Windows by name, of the set; on images of another size they are scaled."""
    regions = {"top": ((0, 10), (0, 24)), "eye": ((4, 12), (8, 16))}
    monkeypatch.setitem(DATASETS, "tiny regions", made_up(tiny, options={"shape": (24, 24)}, regions=regions))
    point = Experiment(**SMALL | {"dataset": "tiny regions", "grid": "regions", "strategies": ("local", "cnn-dnn")})
    frame = point.run(progress=False)
    assert frame["subdomain"].tolist() == ["top", "eye", ""]
    assert (frame["grid"] == "regions").all()
    with pytest.raises(ValueError, match=r"overlap.*regions.*got 1"):
        Experiment(**SMALL | {"grid": "regions", "overlap": 1})


def test_the_recipe_of_each_stage():
    point = Experiment(**SMALL | {"epochs": 7, "dense_epochs": 5}, rate=0.2, augment=False, seed=3)
    for stage in ("global", "local", "coherent", "transfer", "dense network"):
        recipe = point.recipe(stage)
        assert (recipe.batch_size, recipe.precision, recipe.seed, recipe.augment) == (16, "fp32", 3, False)
        assert recipe.epochs == (5 if stage == "dense network" else 7)
    assert point.recipe("global").rate == point.recipe("local").rate == point.recipe("coherent").rate == 0.2
    assert point.recipe("transfer").rate == pytest.approx(0.04)  # a fifth: it starts near its goal
    assert point.recipe("dense network").rate == Experiment(**SMALL).recipe("dense network").rate


# ── what is shared ──


@pytest.mark.parametrize(
    ("strategies", "needed"),
    [
        ("global", ["fit"]),
        ("coherent", ["train_coherent"]),
        ("vote cnn-dnn transfer", ["train_local", "train_aggregator", "train_coherent"]),
    ],
)
def test_nothing_is_trained_twice_or_without_need(trainings, strategies, needed):
    Experiment(**SMALL, strategies=tuple(strategies.split())).run(progress=False)
    assert trainings == needed


def test_the_transfer_model_starts_as_the_cnn_dnn(tiny, monkeypatch):
    """Before its first step it gives the logits of the two trained parts, and its training leaves those alone."""
    found, real = {}, kept.train_coherent

    def fit(model, data, recipe, **options):
        x = prepare(data.test.images, data.test)
        with torch.no_grad():
            found["transfer"] = model.eval()(x)
        found["before"] = predict(runs[0].model("cnn-dnn"), data.test, precision="fp32")
        return real(model, data, recipe, **options)

    runs, make = [], kept.KeptTrainings.__init__
    monkeypatch.setattr(kept.KeptTrainings, "__init__", lambda self, *a: (runs.append(self), make(self, *a))[1])
    monkeypatch.setattr(kept, "train_coherent", fit)
    Experiment(**SMALL, strategies=("transfer", "cnn-dnn")).run(progress=False)
    two_steps = runs[0].model("cnn-dnn")
    with torch.no_grad():
        p = predict(two_steps.local, runs[0].data.test, precision="fp32")
        assert (found["transfer"] - two_steps.head(p)).abs().max() < 1e-6
    assert torch.equal(predict(two_steps, runs[0].data.test, precision="fp32"), found["before"])


# ── records ──


@pytest.fixture
def saved(everything, tmp_path):
    """A record on disk, in a folder of its own."""
    return everything.save(tmp_path / "saved")


def assert_same_record(found, expected):
    assert replace(found, arrays={}) == replace(expected, arrays={})
    assert found.arrays.keys() == expected.arrays.keys()
    for name, values in expected.arrays.items():
        assert np.array_equal(found.arrays[name], values)


def test_a_record_comes_back(everything, saved):
    assert saved.name == f"{everything.name}.json"
    assert sorted(p.suffix for p in saved.parent.iterdir()) == [".json", ".npz"]
    assert_same_record(records.load(saved), everything)
    only = records.load(saved).only(["vote", "average"])
    assert only.frame()["strategy"].tolist() == ["vote", "average"]


def rewrite(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(schema=99),
        lambda c: c.pop("provenance"),
        lambda c: c.update(arrays_sha256="0" * 64),
        lambda c: c["rows"][0].update(extra=1),
        lambda c: c["rows"][0].update(test_accuracy="0.5"),
        lambda c: c.update(rows=[1]),
    ],
)
def test_a_record_that_does_not_fit_the_schema_is_refused(saved, change):
    rewrite(saved, change)
    with pytest.raises(DamagedFile, match=f"{saved} is damaged"):
        gather(saved.parent)


@pytest.fixture
def other(everything):
    """The same record of another seed."""
    rows = [row | {"seed": 7} for row in everything.rows]
    return replace(everything, parameters=everything.parameters | {"seed": 7}, rows=rows)


def test_gather_follows_the_records(everything, saved, tmp_path, other):
    other.save(tmp_path / "deeper" / "down")
    frame = gather(tmp_path)
    assert list(frame) == [*records.ROW, "augment", "variant", "settings", "record", "outdated", "computed", "commit"]
    assert len(frame) == 20
    assert set(frame["record"]) == {everything.name, other.name}
    assert not frame["outdated"].any()
    assert gather([other]).equals(frame[frame["seed"] == 7].reset_index(drop=True))
    row = frame[(frame["seed"] == 0) & (frame["strategy"] == "vote")]
    assert row["test_accuracy"].item() == everything.frame().query("strategy == 'vote'")["test_accuracy"].item()

    def by_hand(content):
        next(r for r in content["rows"] if r["strategy"] == "vote")["test_accuracy"] = 0.123

    rewrite(saved, by_hand)
    after = gather(tmp_path)
    changed = after[after["test_accuracy"] != frame["test_accuracy"]]
    assert changed[["seed", "strategy", "test_accuracy"]].to_numpy().tolist() == [[0, "vote", 0.123]]


def test_records_in_the_home_folder_are_found_and_a_folder_that_is_not_there_is_told(
    everything, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = everything.save("~/records")
    assert path.parent == tmp_path / "records"
    assert len(gather("~/records")) == len(everything.rows)
    point = Experiment(**everything.parameters, strategies=("vote",))
    ddlib.records_of([point], "~/records", progress=False)
    assert "1 of 1 points came from records." in capsys.readouterr().out
    for read in (gather, lambda folder: ddlib.agrees(everything.frame(), folder, 0.1)):
        with pytest.raises(FileNotFoundError, match=r"there is no .*recrods\.$"):
            read("~/recrods")


def test_a_record_that_could_not_be_read_stays(everything, saved, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(errno.EMFILE, "too many open files")

    for name in ("read_text", "read_bytes"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, fail)
            with pytest.raises(OSError, match="too many open files"):
                records.find(saved.parent, everything.name)
    assert records.find(saved.parent, everything.name).rows == everything.rows
    saved.with_suffix(".npz").unlink()
    with pytest.warns(UserWarning, match="damaged.*set aside"):
        assert records.find(saved.parent, everything.name) is None


def test_what_is_hidden_or_no_record_is_left_out(saved):
    hidden = saved.parent / ".ipynb_checkpoints" / f"{saved.stem}-checkpoint.json"
    hidden.parent.mkdir()
    hidden.write_text(saved.read_text())
    assert len(gather(saved.parent)) == 10
    (saved.parent / "settings.json").write_text('{"theme": "dark"}')
    with pytest.warns(UserWarning, match=r"settings\.json is no record, and is left out\."):
        assert len(gather(saved.parent)) == 10


def test_the_commit_is_that_of_the_projects_own_repository(tmp_path, monkeypatch):
    git = partial(subprocess.run, cwd=tmp_path, check=True, capture_output=True)
    git(["git", "init", "-q"])
    git(["git", "-c", "user.name=a", "-c", "user.email=b", "commit", "-q", "--allow-empty", "-m", "another project"])
    place = tmp_path / "env" / "site-packages" / "ddlib" / "study" / "records.py"
    for path in (place, tmp_path / "ddlib" / "study" / "records.py"):  # further down, and not tracked
        path.parent.mkdir(parents=True)
        path.write_text("")
        monkeypatch.setattr(records, "__file__", str(path))
        assert records.provenance("cpu", "fp32", 0.0)["commit"] == "unknown"
    git(["git", "add", "ddlib"])
    assert len(records.provenance("cpu", "fp32", 0.0)["commit"]) == 40
    assert records.provenance("cpu", "fp32", 0.0)["versions"]["ddlib"] == ddlib.__version__


def test_a_record_of_a_lower_number_is_outdated_and_none_is_one(saved, monkeypatch):
    assert not records.load(saved).outdated
    rewrite(saved, lambda content: content["provenance"].pop("results"))
    assert records.load(saved).outdated == (records.RESULTS != 1)
    monkeypatch.setattr(records, "RESULTS", records.RESULTS + 1)
    assert records.load(saved).outdated
    assert gather(saved.parent)["outdated"].all()


def test_rows_that_mix_threads_are_told(everything, other):
    """Seeds of one row on other numbers of threads: their figures differ by more than the seeds do."""
    accuracy_table(gather([everything, other]))  # no warning
    other.provenance = other.provenance | {"threads": 99}
    with pytest.warns(UserWarning, match="mixes .* with .*99 threads"):
        accuracy_table(gather([everything, other]))


# ── keeping and using again ──


def test_a_point_on_record_is_not_trained_again(tmp_path, trainings):
    point = Experiment(**SMALL, strategies=("average", "global"))
    first = point.record(tmp_path, progress=False)
    assert sorted(trainings) == ["fit", "train_local"]
    trainings.clear()
    assert_same_record(point.record(tmp_path, progress=False), first)
    assert trainings == []
    for again in (False, "False"):  # the latter from `papermill -r`
        trainings.clear()
        point.record(tmp_path, reuse=again, progress=False)
        assert sorted(trainings) == ["fit", "train_local"]


def test_a_strategy_more_trains_what_is_missing(tmp_path, trainings, monkeypatch):
    Experiment(**SMALL, strategies=("average",)).record(tmp_path, progress=False)
    frame = Experiment(**SMALL, strategies=("vote", "cnn-dnn")).run(tmp_path, progress=False)
    assert frame["strategy"].tolist() == ["vote", "cnn-dnn"]
    assert len(list(tmp_path.glob("*.json"))) == 1
    (kept,) = records.load_all(tmp_path)
    assert kept.strategies == ["average", "vote", "cnn-dnn"]
    local = [p for p in (tmp_path / "checkpoints").iterdir() if p.name.startswith("local-")]
    assert len(local) == 1  # the local CNNs were taken from there: see the seconds
    assert frame.groupby("strategy")["seconds"].first()["vote"] == kept.frame()["seconds"].iloc[0]


def test_an_interrupted_point_goes_on(tmp_path, trainings, monkeypatch):
    def fail(*arguments, **options):
        raise KeyboardInterrupt

    point = Experiment(**SMALL, strategies=("cnn-dnn",))
    expected = point.record(progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(strategies, "train_aggregator", fail)
        with pytest.raises(KeyboardInterrupt):
            point.record(tmp_path, progress=False)
    assert list(tmp_path.glob("*.json")) == []
    steps = []
    real = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda *a, **o: (steps.append(None), real(*a, **o))[1])
    found = point.record(tmp_path, progress=False)
    assert steps == []  # the dense network trains with Adam: the local CNNs were not trained again
    assert np.array_equal(found.predicted("cnn-dnn"), expected.predicted("cnn-dnn"))


OTHER = [{"seed": 1}, {"rate": 0.05}, {"augment": False}, {"train_size": 40}, {"dataset": "digits"}, {"coarse": True}]
OTHER += [{"local_width": "full"}, {"dense_hidden": "8"}, {"dense_start": "average"}, {"ties": "first"}]
OTHER += [{"optimizer": "adam"}, {"schedule": "constant"}, {"weight_decay": 0.0}]
SAME = [{"grid": [2, 2]}, {"strategies": ("vote",)}, {"epochs": np.int64(2)}, {"width": 8.0}]
SAME += [{"ties": "average"}, {"local_width": "proportional"}, {"dense_start": "random"}, {"coarse": False}]
SAME += [{"optimizer": "sgd"}, {"schedule": "one-cycle"}, {"weight_decay": "5e-4"}]


@pytest.mark.parametrize(("given", "same"), [*((o, False) for o in OTHER), *((s, True) for s in SAME)], ids=str)
def test_other_parameters_have_another_record_and_the_same_have_the_same(given, same):
    assert (Experiment(**SMALL | given).name == Experiment(**SMALL).name) == same


def other_images(data):
    splits = [replace(half, images=half.images.view(*half.images.shape[:2], 9, 16)) for half in (data.train, data.test)]
    return replace(data, train=splits[0], test=splits[1])


SETS = {  # another image set of the same name
    "regions": lambda data: replace(data, regions={"one": ((0, 8), (0, 8))}),
    "their order": lambda data: replace(data, regions=dict(reversed(data.regions.items()))),
    "classes": lambda data: replace(data, classes=data.classes[::-1]),
    "shape": other_images,
}


@pytest.mark.parametrize("change", SETS.values(), ids=SETS)
def test_image_sets_of_one_name_have_records_and_trainings_of_their_own(tiny, tmp_path, change):
    data = replace(tiny, regions={"one": ((0, 6), (0, 8)), "two": ((0, 8), (0, 9))})
    sets, small = (data, change(data)), SMALL | {"grid": "regions", "strategies": ("local", "global"), "epochs": 1}
    first, other = (Experiment(**small | {"dataset": given}) for given in sets)
    assert first.name == Experiment(**small | {"dataset": replace(data)}).name != other.name
    first.run(tmp_path, progress=False)
    found, alone = (other.run(folder, progress=False).drop(columns="seconds") for folder in (tmp_path, None))
    assert found.equals(alone)
    if change is other_images:
        assert data.identity != sets[1].identity
        assert data.digest == sets[1].digest


def test_points_side_by_side_do_not_touch_each_other(tmp_path):
    small = SMALL | {"epochs": 1, "strategies": ("global", "average")}
    first = Experiment(**small).record(tmp_path, progress=False)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    Experiment(**small, overlap=1).record(tmp_path, progress=False)
    Experiment(**small, seed=1).record(tmp_path, progress=False)
    assert {p: p.read_bytes() for p in before} == before
    assert len(gather(tmp_path)["record"].unique()) == 3
    (other,) = [r for r in records.load_all(tmp_path) if r.parameters["overlap"] == 1]
    assert np.array_equal(other.predicted("global"), first.predicted("global"))


@pytest.mark.parametrize(
    ("suffix", "harm"), [(".json", lambda data: data[:-20]), (".npz", lambda data: data[:-9] + bytes(9))]
)
def test_a_damaged_record_is_set_aside_and_made_again(tmp_path, suffix, harm):
    point = Experiment(**SMALL, strategies=("average",))
    first = point.record(tmp_path, progress=False)
    path = (tmp_path / f"{first.name}.json").with_suffix(suffix)
    harmed = harm(path.read_bytes())
    path.write_bytes(harmed)
    with pytest.warns(UserWarning, match=r"damaged.*set aside as .*damaged-"):
        again = point.record(tmp_path, progress=False)
    (away,) = tmp_path.glob(f"{path.name}.damaged-*")
    assert away.read_bytes() == harmed
    assert np.array_equal(again.predicted("average"), first.predicted("average"))
    assert records.load(path.with_suffix(".json")).strategies == ["average"]


# ── refused before any training ──


@pytest.fixture
def untrained(monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("something was trained")

    for name, where in TRAININGS.items():
        monkeypatch.setattr(where, name, never)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"dataset": "cifar11"}, r"data set 'cifar11'.*Did you mean 'cifar10'"),
        ({"backbone": "vgg8"}, r"backbone 'vgg8'.*Did you mean 'vgg9'"),
        ({"strategies": ("global", "avrage")}, r"strategy 'avrage'.*Did you mean 'average'"),
        ({"strategies": ()}, r"at least one of global"),
        ({"grid": "2,2"}, r"'2,2'"),
        ({"overlap": -1}, r"overlap.*-1"),
        ({"dense_epochs": 0}, r"epochs.*0"),
        ({"rate": -1}, r"rate.*-1"),
        ({"engine": "fusion"}, r"engine 'fusion'.*Did you mean 'fused'"),
        ({"engine": "fused", "samples": "shares", "strategies": ("global", "composed")}, r"'fused' needs the same"),
        ({"train_size": 1}, r"train_size.*1"),
    ],
)
def test_a_bad_parameter_is_refused_by_its_value(wrong, told):
    with pytest.raises(ValueError, match=told):
        Experiment(**SMALL | wrong)


def too_deep(in_channels: int, num_classes: int, width: int, dims: int) -> torch.nn.Module:
    """Three halvings: of 12 pixels one is left, of 6 none."""
    pools = [torch.nn.MaxPool2d(2) for _ in range(3)]
    return torch.nn.Sequential(*pools, torch.nn.Flatten(), torch.nn.Linear(in_channels, num_classes))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"grid": "13x2"}, r"finer than the image.*13 > 12"),
        ({"grid": "regions"}, r"'tiny' has no named regions"),
        ({"overlap": 12}, r"overlap 12 must be smaller than the image, 12"),
        ({"train_size": 65}, r"train_size.*65"),
        ({"train_size": 8}, r"batch_size 16 is larger than the data: 8"),
        ({"batch_size": 40, "out_of_fold": 2}, "batch_size 40 is larger than what 2 folds leave to train on: 32"),
        ({"backbone": "cnn3d"}, r"cnn3d.*dims=3.*dims=2"),
        ({"out_of_fold": 65}, "out_of_fold must be a whole number from 2 to 64, got 65"),
        ({"backbone": too_deep, "strategies": ("global", "average")}, r"cannot take images \(2, 3, 6, 6\)"),
        ({"backbone": too_deep, "strategies": ("global", "coherent")}, r"cannot take images \(2, 3, 6, 6\)"),
    ],
)
def test_what_does_not_fit_the_images_is_refused_before_training(untrained, tmp_path, wrong, told):
    with pytest.raises(ValueError, match=told):
        Experiment(**SMALL | wrong).run(tmp_path / "out", progress=False)
    assert list(tmp_path.glob("out/*")) == []


def test_trying_whether_networks_fit_draws_no_random_number():
    point = Experiment(**SMALL, channel_parts=2, strategies=("global", "coherent", "transfer", "channels"))
    before = torch.get_rng_state()
    kept.KeptTrainings(point, point.data(), None, False)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_folder_that_cannot_be_written_is_told_before_training(untrained, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="output folder cannot be written") as caught:
        Experiment(**SMALL).run(tmp_path / "file" / "below", progress=False)
    assert str(tmp_path / "file" / "below") in str(caught.value)


@pytest.mark.parametrize("switch", ["reuse", "progress"])
def test_a_switch_is_true_or_false(untrained, tmp_path, switch):
    for call in (Experiment(**SMALL).record, partial(ddlib.records_of, [Experiment(**SMALL)])):
        with pytest.raises(ValueError, match=f"{switch} must be True or False, got 'no'"):
            call(tmp_path, **{switch: "no"})
    with pytest.raises(ValueError, match="balanced must be True or False, got 'False'"):
        strategies.Trainings("vgg9", ddlib.Decomposition.grid((12, 12), 2), None, width=4, balanced="False")


# ── remedies ──


def test_the_dense_network_learns_from_folds_that_the_local_cnns_did_not_see():
    """Each image's probabilities come from local CNNs trained on the other folds; the default is otherwise."""
    options = {**SMALL, "strategies": ("local", "cnn-dnn")}
    usual, folded = (Experiment(**options, out_of_fold=folds).record(progress=False) for folds in (None, 2))
    assert np.array_equal(usual.predicted("local"), folded.predicted("local"))  # the local CNNs are the same
    assert "out_of_fold" not in usual.parameters
    assert folded.parameters["out_of_fold"] == 2
    names = {name.split("/")[1] for name in folded.arrays if name.startswith("history")}
    assert names == {"local", "dense network", "local, fold 1", "local, fold 2"}
    cost = {s: rows["seconds"].iloc[0] for s, rows in folded.frame().groupby("strategy")}
    own = {name: folded.arrays[f"history/{name}/seconds"].sum() for name in names}
    assert cost["cnn-dnn"] == pytest.approx(sum(own.values()), abs=1e-3)
    first, second = (record.arrays["history/dense network/loss"] for record in (usual, folded))
    assert not np.allclose(first, second, atol=1e-6)


def test_other_folds_train_beside_them_in_the_same_folder(tmp_path):
    points = [Experiment(**SMALL, strategies=("cnn-dnn",), out_of_fold=folds) for folds in (2, 3)]
    for point in points:
        assert (
            point.run(tmp_path, progress=False)
            .drop(columns="seconds")
            .equals(point.run(progress=False).drop(columns="seconds"))
        )
    names = [path.name.rpartition("-")[0] for path in (tmp_path / "checkpoints").iterdir()]
    assert [names.count(f"local,-fold-{k}") for k in (1, 2, 3)] == [2, 2, 1]
    assert names.count("local") == 1  # which both share


def test_folds_are_disjoint_and_keep_the_classes(monkeypatch):
    seen, real = [], kept.predict
    monkeypatch.setattr(kept, "predict", lambda model, split, **o: (seen.append(split), real(model, split, **o))[1])
    run = kept.KeptTrainings(point := Experiment(**SMALL, out_of_fold=4), point.data(), None, False)
    p = run._out_of_fold()
    assert sorted(len(split) for split in seen) == [16] * 4
    assert all(torch.bincount(split.labels).tolist() == [4] * 4 for split in seen)
    assert torch.allclose(p.sum(-1), torch.ones(64, 4))


def test_local_losses_reach_the_local_cnns_also_where_the_dense_network_says_nothing():
    """With a head of zeros no gradient passes through it; the added local losses are those of local training."""
    torch.manual_seed(0)
    point = Experiment(**SMALL)
    run = kept.KeptTrainings(point, point.data(), None, False)
    model = run.new(run.cnn_dnn).double()
    for p in model.head.parameters():
        torch.nn.init.zeros_(p)
    x, y = prepare(run.data.train.images[:8], run.data.train, torch.float64), run.data.train.labels[:8]
    alone = copy.deepcopy(model.local)
    cross_entropy(alone(x), y).backward()
    cross_entropy(model(x), y).backward()
    assert all(p.grad is None or not p.grad.any() for p in model.local.parameters())
    cross_entropy(BothLevels(model)(x), y).backward()
    for found, expected in zip(model.local.parameters(), alone.parameters(), strict=True):
        assert torch.allclose(found.grad, expected.grad, rtol=1e-9, atol=1e-14)


def test_log_probabilities_are_an_option_of_the_dense_network_alone(tmp_path):
    """The local CNNs are the same, and are trained once."""
    points = [Experiment(**SMALL, strategies=("cnn-dnn", "coherent"), log_probabilities=on) for on in (False, True)]
    usual, logs = (point.record(tmp_path, progress=False) for point in points)
    assert usual.name == Experiment(**SMALL).name != logs.name
    assert logs.variant == "log_probabilities=True dense_epochs=2"
    kept = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["coherent", "coherent", "dense-network", "dense-network", "local"]
    for stage in ("dense network", "coherent"):
        assert logs.arrays[f"history/{stage}/loss"][0] != usual.arrays[f"history/{stage}/loss"][0]


def test_the_regime_of_a_textbook_is_a_point_like_any_other(tmp_path):
    """Adam at a constant rate, for all but the dense network; what was trained is found again."""
    regime = {"backbone": "vgg9_plain", "optimizer": "adam", "schedule": "constant", "rate": 1e-3, "weight_decay": 0.0}
    point = Experiment(**SMALL | regime, strategies=("global", "cnn-dnn", "transfer"))
    assert [(r := point.recipe(stage)).optimizer for stage in ("global", "transfer", "dense network")] == ["adam"] * 3
    assert (r.schedule, point.recipe("local").schedule, point.recipe("local").weight_decay) == ("constant",) * 2 + (0,)
    assert point.recipe("transfer").rate == pytest.approx(2e-4)
    first = point.record(tmp_path, progress=False)
    assert first.variant.endswith("optimizer=adam schedule=constant weight_decay=0.0 dense_epochs=2")
    for name in tmp_path.glob("*.json"):
        name.unlink()
    again = point.record(tmp_path, progress=False)  # from checkpoints
    assert np.array_equal(again.predicted("transfer"), first.predicted("transfer"))


@pytest.mark.parametrize(
    ("given", "told"), [({"optimizer": "adan"}, "optimizer 'adan'.*adam"), ({"weight_decay": -1}, "weight_decay.*-1")]
)
def test_a_wrong_recipe_is_refused(given, told):
    with pytest.raises(ValueError, match=told):
        Experiment(**SMALL | given)


def test_options_of_the_method_work_together(everything):
    options = {"coarse": True, "local_width": "full", "ties": "first"}
    options |= {"dense_hidden": "none", "dense_start": "geometric"}
    point = Experiment(**SMALL, **options, strategies=("local", "vote", "geometric", "cnn-dnn", "correction"))
    frame = point.run(progress=False)
    assert frame["subdomain"].tolist() == ["0,0", "0,1", "1,0", "1,1", "coarse", *[""] * 4]
    sizes = frame.groupby("strategy")["parameters"].first()
    assert sizes["local"] == everything.frame()["parameters"].iloc[0]  # of the global CNN
    assert sizes["cnn-dnn"] == sizes["correction"] == sizes["geometric"] + 5 * 4 * 4 + 4


def test_images_that_changed_behind_their_path_are_noticed(tmp_path):
    """Neither the record nor the weights of other images are taken for those of these."""
    from PIL import Image

    def photos(shade):
        for kind in ("a", "b"):
            (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
            for k in range(20):
                Image.new("L", (8, 8), shade + k + 100 * (kind == "b")).save(tmp_path / "data" / kind / f"{k}.png")

    small = SMALL | {"dataset": "image_folder", "strategies": ("average",), "batch_size": 8}
    point = Experiment(options=f"path={tmp_path / 'data'} size=8 grey=true", **small)
    photos(10)
    first = point.record(tmp_path / "out", progress=False)
    stages_of = {p.name for p in (tmp_path / "out" / "checkpoints").iterdir()}
    assert point.record(tmp_path / "out", progress=False).rows == first.rows
    photos(50)
    assert point.data().digest != first.provenance["images"]
    with pytest.raises(ValueError, match="images of image_folder have changed since"):
        point.record(tmp_path / "out", progress=False)
    (tmp_path / "out" / f"{point.name}.json").unlink()
    again = point.record(tmp_path / "out", progress=False)
    assert not np.array_equal(again.arrays["history/local/loss"], first.arrays["history/local/loss"])
    assert stages_of < {p.name for p in (tmp_path / "out" / "checkpoints").iterdir()}


def test_images_that_changed_behind_a_registered_name_are_noticed_where_they_are_at_hand(tiny, tmp_path, monkeypatch):
    """They are read once for all points; those that another processor rounds otherwise are a warning."""
    read, halves = [], [(half.images, half.labels) for half in (tiny.train, tiny.test)]

    def register(halves, **more):
        def reader(place, root):
            read.append(place)
            if not halves:
                raise FileNotFoundError("nothing is there")
            return *halves, tiny.classes

        monkeypatch.setitem(DATASETS, "mine", replace(made_up(tiny), read=reader, **more))

    register(halves)
    small = SMALL | {"dataset": "mine", "strategies": ("local",), "epochs": 1}
    points = [Experiment(**small, seed=seed) for seed in (0, 1)]
    kept = [record.rows for record in ddlib.records_of(points, tmp_path, progress=False)]
    read.clear()
    again = partial(ddlib.records_of, points, tmp_path, progress=False)
    assert [record.rows for record in again()] == kept
    assert len(read) == 1
    changed = [(images.flip(0), labels) for images, labels in halves]
    for other in (changed, [(images.view(-1, 3, 9, 16), labels) for images, labels in halves]):
        register(other)
        with pytest.raises(ValueError, match="the images of mine have changed since"):
            again()
    register(halves, flip_axes=[0])
    with pytest.raises(ValueError, match=r"the images of mine have changed .* \(flip_axes \[\], now \[0\]\)"):
        again()
    register(changed, exact=False)
    with pytest.warns(UserWarning, match="other rounding") as told:
        assert [record.rows for record in again()] == kept
    assert len(told) == 1
    for elsewhere in ({"halves": None}, {"halves": changed, "places": {"nowhere": None}}):
        register(**elsewhere)
        assert [record.rows for record in again()] == kept


def test_regions_that_changed_behind_a_registered_name_are_noticed_by_what_is_cut_by_them(tiny, tmp_path, monkeypatch):
    def register(middle):
        regions = {"left": ((0, 12), (0, middle)), "right": ((0, 12), (middle, 12))}
        monkeypatch.setitem(DATASETS, "mine", made_up(tiny, regions=regions))

    small = SMALL | {"dataset": "mine", "strategies": ("local",), "epochs": 1, "overlap": 0}
    register(6)
    in_regions, in_windows = (Experiment(**small | {"grid": grid}) for grid in ("regions", "1x2"))
    kept = [point.record(tmp_path, progress=False).rows for point in (in_regions, in_windows)]
    register(5)
    assert in_windows.record(tmp_path, progress=False).rows == kept[1]
    with pytest.raises(ValueError, match=r"the images of mine have changed .* \(regions .*, now "):
        in_regions.record(tmp_path, progress=False)
