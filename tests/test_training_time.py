"""What the training-time table counts, what it times, and what it refuses; a timing itself is no test."""

import math
from dataclasses import replace

import pytest
import torch

from ddlib.cost import training_time as bench
from ddlib.networks.backbones import build

SMALL = bench.Setting(shape=(8, 8), width=4, channels=1, images=32, batch_size=16)


def test_operations_of_a_convolution_by_hand():
    net = build("vgg9", 1, 2, 4)
    first = 2 * 4 * 9 * 1 * 8 * 8  # two a multiplication: 4 filters of 3×3 on 8×8 pixels
    rest = 2 * (4 * 9 * 4 * 64 + 8 * 9 * 4 * 16 + 8 * 9 * 8 * 16 + 16 * 9 * 8 * 4 + 2 * 16 * 9 * 16 * 4 + 2 * 16)
    assert bench.operations(net, 1, 8, 8) == 3 * (first + rest)
    assert net.training  # as before


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


@pytest.mark.slow
def test_as_many_processes_as_local_cnns_train_them_and_leave_the_threads_alone():
    threads = torch.get_num_threads()
    row = bench.with_processes(replace(SMALL, parts=(1, 2)), repeats=1).iloc[0]
    assert row["N"] == 2
    assert row["speed-up, longest"] == pytest.approx(row["global"] / row["longest local"])
    assert row["speed-up, processes"] == pytest.approx(row["global"] / row["N processes"])
    assert torch.get_num_threads() == threads


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
        ({"images": 64}, "images must be a whole number ≥ 128, got 64"),
        ({"parts": (64, 1)}, "grid .* is finer than the image"),
    ],
)
def test_a_setting_refuses_what_cannot_be_timed(given, message):
    with pytest.raises(ValueError, match=message):
        bench.Setting(**given)
    with pytest.raises(ValueError, match="Did you mean 'quick'"):
        bench.settings("quik")
