"""One bar over several trainings, and what came from records."""

import sys

import pytest

import ddlib
from ddlib._internal import progress

SMALL = {"dataset": "digits", "grids": "1x2 2x2", "width": 4, "epochs": 2, "train_size": 128, "batch_size": 32}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str]]:
    """Where the whole bar was, as a share of all, and what it said, in the order of time."""
    monkeypatch.delenv("DDLIB_PROGRESS")
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)  # or bars go to stdout
    found, to = [], progress.Whole._to

    def moved(whole: progress.Whole, place: float) -> None:
        to(whole, place)
        if not whole.bar.disable:
            found.append((whole.bar.n / whole.bar.total, whole.bar.desc.strip(": ")))

    monkeypatch.setattr(progress.Whole, "_to", moved)
    return found


def test_one_bar_goes_over_all_points_and_ends_with_the_last(seen, tmp_path, capsys):
    points = ddlib.points("global local cnn-dnn transfer", **SMALL)
    kept = [record.rows for record in ddlib.records_of(points, tmp_path)]
    places, words = zip(*seen, strict=True)
    assert list(places) == sorted(places)
    assert places[-1] == pytest.approx(1)
    assert len(set(places)) > 12  # within trainings, too: the global CNN has 8 steps
    trainings = ("global", "local", "dense network", "transfer")
    assert list(dict.fromkeys(words))[1:] == [f"{point} of 2, {name}" for point in (1, 2) for name in trainings]
    told = capsys.readouterr()
    assert "<00:" in told.err  # the time left
    assert told.out == ""
    seen.clear()
    assert [record.rows for record in ddlib.records_of(points, tmp_path)] == kept
    assert capsys.readouterr() == ("2 of 2 points came from records.\n", "")  # and no bar


def test_what_is_there_already_takes_no_time_of_the_whole_bar(seen, tmp_path, capsys):
    """Neither points that are on record, nor trainings that they share with others."""
    ddlib.records_of(ddlib.points("global local", **SMALL), tmp_path, progress=False)
    assert seen == []
    assert capsys.readouterr() == ("", "")
    more = ddlib.points("global local", **SMALL | {"grids": "1x2 2x1"})
    ddlib.records_of(more, tmp_path)
    assert {words for _, words in seen} == {"points", "2 of 2, global", "2 of 2, local"}
    assert (0.5, "2 of 2, global") in [(pytest.approx(place), words) for place, words in seen]
    assert seen[-1][0] == pytest.approx(1)
    assert capsys.readouterr().out == "1 of 2 points came from records.\n"


def test_no_bar_where_the_environment_says_so(tmp_path, capsys):
    ddlib.records_of(ddlib.points("local", **SMALL), tmp_path)  # conftest.py sets DDLIB_PROGRESS=0
    assert capsys.readouterr() == ("", "")
    with progress.progress_bar("alone", 3) as bar:
        assert bar.disable
