"""What the training-time table counts, what it times, and what it refuses; a timing itself is no test."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
import yaml

from ddlib.cost import training_time as bench
from ddlib.networks.backbones import build

SMALL = bench.Setting(shape=(8, 8), width=4, channels=1, images=32, batch_size=16)


def test_operations_of_a_convolution_by_hand():
    net = build("vgg9", 1, 2, 4)
    first = 2 * 4 * 9 * 1 * 8 * 8  # two a multiplication: 4 filters of 3×3 on 8×8 pixels
    rest = 2 * (4 * 9 * 4 * 64 + 8 * 9 * 4 * 16 + 8 * 9 * 8 * 16 + 16 * 9 * 8 * 4 + 2 * 16 * 9 * 16 * 4 + 2 * 16)
    assert bench.operations(net, 1, 8, 8) == 3 * (first + rest)


def test_grouping_does_not_change_the_count():
    local = bench.Setting().local()
    apart = sum(bench.operations(local.subnet(i), 3, 16, 16) for i in range(len(local)))
    assert bench.operations(local, 3, 32, 32) == apart


@pytest.mark.parametrize("setting", bench.settings("full"), ids=str)
def test_without_overlap_a_local_cnn_costs_about_one_over_n_squared(setting):
    """Of the whole table, which is not timed in tests; notebook 04 demands the same."""
    image = (setting.channels, *setting.shape)
    whole, together = (bench.operations(network, *image) for network in (setting.network(), setting.local()))
    share = whole / together / math.prod(setting.parts)
    assert (0.4 if not setting.overlap else 0.2) < share < 1.1


def test_the_table_follows_from_what_was_timed():
    times = bench.training_time([SMALL], repeats=1).iloc[0]
    assert times["sum of locals"] == pytest.approx(4 * times["longest local"])
    assert times["parallel speed-up"] == pytest.approx(times["global"] / times["longest local"])
    assert times["one-machine speed-up"] == pytest.approx(times["global"] / times["fused"])
    assert times["N"] == 4
    assert times["dense network"] > 0


def test_as_many_processes_as_local_cnns_train_them_and_leave_the_threads_alone():
    threads = torch.get_num_threads()
    row = bench.with_processes(replace(SMALL, parts=(1, 2)), repeats=1).iloc[0]
    assert row["N"] == 2
    assert row["speed-up, longest"] == pytest.approx(row["global"] / row["longest local"])
    assert row["speed-up, processes"] == pytest.approx(row["global"] / row["N processes"])
    assert torch.get_num_threads() == threads


def test_the_median_leaves_out_the_warm_up_and_tasks_take_turns():
    ran = []
    taken = bench.compare({"a": lambda: ran.append("a"), "b": lambda: ran.append("b")}, repeats=2)
    assert ran == ["a", "b"] * 3
    assert taken.keys() == {"a", "b"}


def test_what_is_timed_trains_and_each_window_shape_is_timed():
    tasks = bench.epochs(bench.Setting(shape=(12, 8), parts=(3, 1), overlap=1, width=4, images=32, batch_size=16))
    assert list(tasks) == ["global", "fused", "dense network", "local 0", "local 1"]  # at the border, and within
    for name, task in tasks.items():
        model = task.args[0]
        before = [p.detach().clone() for p in model.parameters()]
        task()
        changed = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True) if a.ndim > 1]
        assert any(changed) if name == "dense network" else all(changed), name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backbone": "vgg"}, "Did you mean 'vgg9'"),
        ({"width": 0}, "width must be a whole number ≥ 1, got 0"),
        ({"images": 64}, "images must be a whole number ≥ 128, got 64"),
        ({"parts": (64, 1)}, "grid .* is finer than the image"),
        ({"overlap": -1}, "overlap"),
    ],
)
def test_a_setting_refuses_what_cannot_be_timed(given, message):
    with pytest.raises(ValueError, match=message):
        bench.Setting(**given)


@pytest.mark.parametrize(
    ("profile", "message"), [("fast", "Allowed: 'quick', 'full', 'papers'"), ("quik", "Did you mean 'quick'")]
)
def test_an_unknown_profile_is_refused(profile, message):
    with pytest.raises(ValueError, match=message):
        bench.settings(profile)


def test_the_papers_sizes_are_three_at_two_widths():
    found = {(s.shape, s.width) for s in bench.settings("papers")}
    assert found == {(shape, width) for shape in ((32, 32), (160, 160), (128, 128, 64)) for width in (16, 64)}


def test_tables_are_kept_with_their_provenance(tmp_path):
    table = pd.DataFrame({"N": [4, 16], "global": [1.0, 0.5]})
    bench.save(tmp_path, {"device": "CPU", "repeats": 3}, training_time=table)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "training_time.csv"), table)
    assert yaml.safe_load((tmp_path / "provenance.yaml").read_text()) == {"device": "CPU", "repeats": 3}
