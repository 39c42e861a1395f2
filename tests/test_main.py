"""The command line: what it prints, and exit codes that scripts can trust."""

import pandas as pd
import pytest

from ddlib.__main__ import main
from ddlib.datasets import DATASETS
from ddlib.records import ROW


def table(folder, accuracy):
    folder.mkdir()
    pd.DataFrame([{"grid": "2x2", "epochs saved": 3}]).to_csv(folder / "other.csv", index=False)
    row = dict.fromkeys(ROW, 0) | {"strategy": "vote", "subdomain": "", "record": "r", "test_accuracy": accuracy}
    pd.DataFrame([row]).to_csv(folder / "aggregation.csv", index=False)
    return str(folder)


@pytest.mark.parametrize(("accuracy", "code"), [(0.88, 0), (0.7, 1)])
def test_compare(tmp_path, capsys, accuracy, code):
    assert main(["compare", table(tmp_path / "run", accuracy), table(tmp_path / "reference", 0.9)]) == code
    told = capsys.readouterr()
    assert ("agrees with" in told.out) == (code == 0)
    assert ("differs from" in told.err) == (code == 1)


def test_compare_needs_a_table_on_both_sides(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    assert main(["compare", str(tmp_path / "run"), table(tmp_path / "reference", 0.9)]) == 2
    assert "has a namesake" in capsys.readouterr().err


def test_datasets_are_listed_with_source_and_licence(tmp_path, capsys):
    assert main(["datasets", "--root", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n{name}: " in f"\n{printed}" for name in DATASETS)
    assert "cifar10: missing" in printed
    assert "digits: no files needed" in printed
    assert "python -m ddlib datasets fetch tf_flowers" in printed


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["datasets", "fetch"], "fetch needs the NAME"),
        (["datasets", "fetch", "cifar"], "Did you mean 'cifar10'"),
        (["datasets", "fetch", "digits"], "is not fetched"),
        (["sweep", "missing.yaml"], "missing.yaml"),
    ],
)
def test_what_cannot_be_carried_out_is_told_in_a_sentence(arguments, told, capsys, no_download):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("output: out\nwidht: 3", "'widht'. Did you mean 'width'"),
        ("output: out\nepochs: 0", "epochs must be a whole number ≥ 1, got 0"),
        ("output: out\nstrategy: vote", "unknown strategy 'vote'"),
        ("output: out\nlocal_losses: true", "local_losses are for one process"),
        ("width: 3", "a mapping with output"),
        ("- width", "a mapping with output"),
        ("!!python/object/apply:os.system ['touch hostile']", "is not YAML"),
    ],
)
def test_a_wrong_configuration_of_the_coherent_model_is_told_before_anything_runs(
    tmp_path, monkeypatch, capsys, content, told
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ddlib.files.project_folder", lambda: tmp_path)
    (tmp_path / "config.yaml").write_text(content)
    assert main(["coherent", "--config", "config.yaml"]) == 2
    assert told in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["swep"])
    assert caught.value.code == 2
    assert "sweep" in capsys.readouterr().err


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "examples:" in capsys.readouterr().out


def test_doctor_says_what_a_bug_report_needs(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for word in ("torch", "Python", "threads", "precision that pays", "data folder", "GiB free"):
        assert word in printed


def test_interrupted(monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ddlib.__main__.doctor", interrupt)
    monkeypatch.setattr("ddlib.__main__.signal.signal", lambda *_: None)
    assert main(["doctor"]) == 130
    assert "interrupted" in capsys.readouterr().err
