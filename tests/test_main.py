"""The command line: what it prints, and exit codes that scripts can trust."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import record_of, small_net

import ddlib
from ddlib.__main__ import main
from ddlib.data.sets import DATASETS
from ddlib.study import rerun

ROOT = Path(__file__).parents[1]


def kept(folder: Path, accuracy: float) -> str:
    record_of({"vote": accuracy}).save(folder)
    return str(folder)


@pytest.mark.parametrize(("accuracy", "code"), [(0.88, 0), (0.7, 1)])
def test_compare(tmp_path, capsys, accuracy, code):
    assert main(["compare", kept(tmp_path / "run", accuracy), kept(tmp_path / "reference", 0.9)]) == code
    told = capsys.readouterr()
    assert ("agrees with" in told.out) == (code == 0)
    assert ("differs from" in told.err) == (code == 1)


def test_compare_needs_no_strategy_to_be_registered_here(tmp_path):
    record_of({"median": 0.9}).save(tmp_path)
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 0


@pytest.mark.parametrize("switch", ["-O", "-OO"])
def test_compare_disagrees_also_without_asserts_and_docstrings(tmp_path, switch):
    run, reference = kept(tmp_path / "run", 0.1), kept(tmp_path / "reference", 0.95)
    command = [sys.executable, switch, "-m", "ddlib", "compare", run, reference]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "differs from" in done.stderr


def test_compare_needs_records_on_both_sides(tmp_path, capsys):
    known, empty, missing = kept(tmp_path / "reference", 0.9), tmp_path / "empty", tmp_path / "missing"
    empty.mkdir()
    assert main(["compare", str(empty), known]) == 2
    assert "there are no records in" in capsys.readouterr().err
    assert main(["compare", known, str(empty)]) == 1
    assert "No reference for these" in capsys.readouterr().out
    for given in ([str(missing), known], [known, str(missing)]):
        assert main(["compare", *given]) == 2
        assert f"{missing}." in capsys.readouterr().err
    assert main(["compare", known, "results/quick/ties.csv"]) == 2
    assert "results/quick/ties.csv is no table of records: it has no column 'record'." in capsys.readouterr().err
    assert main(["rerun", str(missing)]) == 2
    assert f"there is no folder {missing}, neither here" in capsys.readouterr().err


def test_datasets_are_listed_with_source_and_licence(tmp_path, capsys, monkeypatch):
    (tmp_path / "MosMedData").mkdir()
    monkeypatch.setenv("DDLIB_DATA", str(tmp_path))
    assert main(["datasets"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n{name}: " in f"\n{printed}" for name in DATASETS)
    assert "cifar10: missing" in printed
    assert "digits: not needed" in printed
    assert f"mosmed: {tmp_path / 'MosMedData'}" in printed
    assert "python -m ddlib datasets fetch tf_flowers" in printed
    assert "python -m ddlib datasets fetch digits" not in printed
    for what in ("about", "source", "licence", "layout"):
        assert printed.count(f"\n  {what}: ") == len(DATASETS)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["datasets", "fetch"], "fetch needs the NAME"),
        (["datasets", "fetch", "cifar"], "Did you mean 'cifar10'"),
        (["datasets", "fetch", ""], "unknown data set ''"),
        (["sweep", "missing.yaml"], "missing.yaml"),
        (["rerun", "missing"], f"there is no folder missing, neither here nor below {ROOT}"),
        (["report", "missing"], "there is no folder"),
        (["report", "results/bench"], "there are no records of cifar10 with vgg9, but of nothing"),
        (["report", "results/quick", "--dataset", "digit"], "no records of digit with vgg9, but of digits with vgg9"),
        (["report", "results", "--dataset", "digits"], "results/report is the report of the committed records: give"),
        (["swep"], "No such command 'swep'"),
    ],
)
def test_what_cannot_be_carried_out_is_told_in_a_sentence(arguments, told, capsys, no_download):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error


def test_a_report_without_the_projects_notebooks_says_where_to_call_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ddlib.study.parameters.project_folder", lambda: tmp_path)
    assert main(["report"]) == 2
    assert f"there is no folder {tmp_path}/notebooks: pip does not install it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("output: out\nwidht: 3", "'widht'. Did you mean 'width'"),
        ("output: out\nstrategy: vote", "unknown strategy 'vote'"),
        ("output: out\nlocal_losses: true", "unknown key of config.yaml 'local_losses'"),
        ("width: 3", "a mapping with output"),
        ("output: out\nrate: 1e+x", "rate must be a number above 0, got '1e+x'"),
        ("!!python/object/apply:os.system ['touch hostile']", "is not YAML"),
    ],
)
def test_a_wrong_configuration_of_the_coherent_model_is_told_before_anything_runs(
    tmp_path, monkeypatch, capsys, content, told
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ddlib.study.parameters.project_folder", lambda: tmp_path)
    (tmp_path / "config.yaml").write_text(content)
    assert main(["coherent", "--config", "config.yaml"]) == 2
    assert told in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_a_coherent_training_that_diverges_is_told_in_a_sentence(tmp_path, capsys):
    given = f"output: {tmp_path}\nwidth: 4\nepochs: 1\nrate: 1e30\ntrain_size: 80\nbatch_size: 20\n"
    (tmp_path / "config.yaml").write_text(given)
    assert main(["coherent", "--config", str(tmp_path / "config.yaml")]) == 2
    assert "the training of coherent diverged: the loss of epoch 1 is nan" in capsys.readouterr().err


@pytest.mark.slow
def test_report_draws_tables_and_figures_from_records(tmp_path, capfd, monkeypatch):
    """Also of a folder with a space in its path, with a plan of its own or the project's."""
    records, output = tmp_path / "my records", tmp_path / "my report"
    shutil.copytree(ROOT / "results/quick", records)
    monkeypatch.chdir(tmp_path)
    plan = ["--plan", "notebooks/plans/quick.yaml", "--dataset", "digits"]
    assert main(["report", "my records", *plan, "--output", "my report"]) == 0
    claims = pd.read_csv(output / "claims.csv")
    assert {"C1", "C2", "C3", "C5", "C6"} <= set(claims["claim"])
    assert (output / "figures" / "accuracy_over_cost.png").exists()
    assert "the executed notebook" in capfd.readouterr().out


@pytest.mark.slow
def test_records_of_channels_alone_and_of_own_images_are_reported_in_their_folder(tmp_path):
    """No committed page is written."""
    shutil.copytree(ROOT / "results/channels", tmp_path / "channels")
    own = replace(ddlib.load_dataset("digits").few(80), name="mine")
    point = ddlib.Experiment(own, width=4, epochs=1, batch_size=20, strategies=("global", "local", "average"))
    point.record(tmp_path / "own", progress=False)
    before = (ROOT / "README.md").stat().st_mtime_ns
    for folder, given, plotted in (("channels", [], False), ("own", ["--dataset", "mine"], True)):
        assert main(["report", str(tmp_path / folder), *given]) == 0
        assert (tmp_path / folder / "report/figures/subdomains_and_overlap.png").exists() == plotted
    assert (ROOT / "README.md").stat().st_mtime_ns == before


def test_doctor_says_what_a_bug_report_needs(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DDLIB_DATA", str(tmp_path / "new"))
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for word in ("torch", "python: 3", "threads", "precision", f"data folder: {tmp_path / 'new'} (not there yet)"):
        assert word in printed
    assert "wrong: nothing found" in printed
    assert not (tmp_path / "new").exists()


def test_doctor_needs_no_home_folder(capsys, monkeypatch):
    for name in ("DDLIB_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as it does where there is none
    assert main(["doctor"]) == 0
    assert "wrong: nothing found" in capsys.readouterr().out


def test_doctor_says_what_is_wrong(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DDLIB_DATA", str(tmp_path / "file"))
    assert main(["doctor"]) == 1
    assert f"wrong: the data folder {tmp_path / 'file'} cannot be written" in capsys.readouterr().out


def test_a_recorded_point_comes_out_again(tmp_path, monkeypatch, capsys):
    """The folder is named from the current one."""
    monkeypatch.chdir(tmp_path.parent)
    strategies = ("global", "average")
    point = ddlib.Experiment("digits", width=4, epochs=1, train_size=80, batch_size=20, strategies=strategies)
    record = point.record(tmp_path, progress=False)
    assert main(["rerun", tmp_path.name]) == 0
    assert re.search(r"global +\d+\.\d+ .* True", capsys.readouterr().out)
    for row in record.rows:
        row["test_accuracy"] = 1.0
    record.save(tmp_path)
    assert main(["rerun", str(tmp_path)]) == 1
    assert main(["rerun", str(tmp_path), "--points", "2"]) == 2
    assert "points must be from 1 to the 1 records" in capsys.readouterr().err


@pytest.mark.parametrize("own", ["image set 'made up'", "backbone 'helpers.small_net'"])
def test_what_has_no_name_to_load_it_by_is_not_trained_anew(tmp_path, tiny, own, capsys):
    given = {"dataset": tiny} if "image" in own else {"backbone": small_net}
    record_of({"global": 0.9}, **given).save(tmp_path)
    assert main(["rerun", str(tmp_path)]) == 2
    assert f"cannot be trained anew: its {own} cannot be loaded by name." in capsys.readouterr().err


def test_a_point_comes_out_again_in_the_precision_that_was_recorded(tmp_path, monkeypatch):
    asked = []
    point = ddlib.Experiment("digits", width=4, epochs=1, train_size=80, batch_size=20, strategies=("global",))
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # "auto" is fp32 here
    point.record(tmp_path, progress=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(rerun, "Experiment", lambda **given: asked.append(given["precision"]) or point)
    next(rerun.again(tmp_path))
    assert asked == ["fp32"]
