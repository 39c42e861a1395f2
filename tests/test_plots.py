"""What figures promise: no noise blown up, no text over text, nothing left out, a title that says what is shown."""

import itertools

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

import ddlib
from ddlib.report import curves
from ddlib.report import figures as plots
from ddlib.report import tables as report


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def frame(**accuracies: float) -> pd.DataFrame:
    rows = [{"grid": "2x2", "overlap": 0, "strategy": s, "test_accuracy": a} for s, a in accuracies.items()]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("accuracies", "span"), [([0.73, 0.731, 0.732, 0.729], 5), ([0.3, 0.5, 0.4, 0.6], 30)])
def test_colours_of_local_accuracy_span_five_points_at_least(accuracies, span):
    cuts = ddlib.Decomposition.grid((8, 8), 2)
    figure = plots.local_accuracy({"a": (cuts, accuracies), "b": (cuts, accuracies[::-1])}, 10_000)
    panels = [ax for ax in figure.axes if ax.texts]
    ((low, high),) = {ax.images[0].get_clim() for ax in panels}
    assert high - low == pytest.approx(span)
    assert low <= 100 * min(accuracies)
    assert high >= 100 * max(accuracies)
    assert len(panels) == len(figure.axes) - 1 == 2  # and one scale
    plt.close(figure)


def test_colours_of_local_accuracy_span_four_standard_errors_of_the_mean_over_seeds():
    cuts = ddlib.Decomposition.grid((8, 8), 2)
    figure = plots.local_accuracy({"a": (cuts, [[0.5] * 4, [0.46, 0.5, 0.5, 0.54]])}, 100)
    low, high = figure.axes[0].images[0].get_clim()
    assert high - low == pytest.approx(20)
    assert [text.get_text() for text in figure.axes[0].texts] == ["48.0", "50.0", "50.0", "52.0"]
    plt.close(figure)


@pytest.mark.parametrize("picture", [None, np.zeros((3, 8, 8), np.uint8)])
def test_panels_of_importance_share_a_scale_and_show_every_value(picture):
    two, four = (ddlib.Decomposition.grid((8, 8), parts) for parts in ((2, 1), 2))
    figure = plots.importance({"a": (two, [[0.1, 0], [0.3, 0]]), "b": (four, [-0.01, 0.1, 0.05, 0])}, picture)
    panels = [ax for ax in figure.axes if ax.texts]
    assert [[text.get_text() for text in ax.texts] for ax in panels] == [
        ["20.0", "0.0"],
        ["-1.0", "10.0", "5.0", "0.0"],
    ]
    assert {ax.images[-1].get_clim() for ax in panels} == {(-1, 20)}
    positive = plots.importance({"a": (two, [0.1, 0.2])}, picture)
    assert positive.axes[0].images[-1].get_clim() == (0, 20)
    assert [len(ax.images) for ax in panels] == [1 + (picture is not None)] * 2
    plt.close(figure)


@pytest.mark.parametrize("parts", [(2, 2), (2, 2, 2), (2, 2, 1)])
def test_windows_behind_one_another_share_one_text(ax, parts):
    decomposition = ddlib.Decomposition.grid((8,) * len(parts), parts, 1)
    figure = plots.local_accuracy({"": (decomposition, np.linspace(0.1, 0.9, len(decomposition)))}, 10_000)
    plots.windows(ax, decomposition, names=True)
    values, names = figure.axes[0].texts, ax.texts
    plt.close(figure)
    assert len(names) == len(values) == 4
    for texts in (values, names):
        assert len({text.get_position() for text in texts}) == 4
        assert sum(len(text.get_text().splitlines()) for text in texts) == len(decomposition)
    assert {name for text in names for name in text.get_text().splitlines()} == set(decomposition.names)


def test_every_strategy_is_drawn_and_the_highest_is_named(ax):
    table = frame(**{"global": 0.9, "vote": 0.7, "cnn-dnn": 0.8, "mine": 0.6})
    tie = frame(**{"vote": 0.7, "cnn-dnn": 0.8, "mine": 0.8}).assign(grid="4x4")
    other = frame(**{"vote": 0.7, "mine": 0.8}).assign(grid="3x3")
    plots.strategies(ax, pd.concat([table, tie, other]), 100, "A title")
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"global", "vote", "CNN-DNN", "mine"}
    first, second = ax.get_title(loc="left").splitlines() or ax.get_title().splitlines()
    assert first == "A title"
    assert second.endswith("CNN-DNN and mine, in 1 of 3 decompositions")  # where nothing else is as accurate
    assert plots.leader(tie) == ""


def test_the_worst_confusion_is_named(ax):
    plots.confusion(ax, [[8, 2, 0], [0, 9, 1], [0, 0, 10]], ("a", "b", "c"), "A title")
    title = ax.get_title(loc="left") or ax.get_title()
    assert "20 % of “a” are called “b”" in title


def test_labels_of_many_classes_leave_some_out(ax):
    plots.confusion(ax, np.eye(38), [f"person {k}" for k in range(38)])
    for axis in (ax.xaxis, ax.yaxis):
        told = [label.get_text() for label in axis.get_ticklabels()]
        assert told == [f"person {k}" for k in range(0, 38, 2)]
        assert axis.get_ticklocs().tolist() == list(range(0, 38, 2))


def test_strategies_differ_in_grey_by_their_markers():
    assert len({marker for _, marker in plots.STYLE.values()}) == len(plots.STYLE)
    assert len({to_rgb(colour) for colour, _ in plots.STYLE.values()}) == len(plots.STYLE)


def test_verdicts_are_a_panel_a_comparison_and_a_row_a_point():
    common = {"dataset": "digits", "backbone": "vgg9", "overlap": 0, "variant": "", "low": -1.0, "high": 3.0}
    common |= {"metric": "accuracy", "width": 16, "what": "a beats b"}
    first = common | {"claim": "C1", "a": "cnn-dnn", "b": "vote", "difference": 1.0, "epochs": 12, "epochs of b": 12}
    other = {"what": "a beats b (not claimed)", "claim": "C2"}
    second = common | other | {"a": "transfer", "b": "cnn-dnn", "difference": -0.5, "grid": "4x4"}
    rows = [
        first | {"grid": "2x2", "verdict": "holds"},
        first | {"grid": "4x4", "verdict": "does not hold"},
        second | {"epochs": 12, "epochs of b": 24, "verdict": "undecided"},
        second | {"epochs": 24, "epochs of b": 24, "verdict": "undecided"},  # told apart by its epochs
        first | {"grid": "8x8", "metric": "AUC", "b": "average", "verdict": "holds"},
    ]
    figure = curves.verdicts(pd.DataFrame(rows))
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    twice = "digits, VGG9, 4×4, 12 + 12 against 24 epochs"
    own = ["digits, VGG9, 2×2", "digits, VGG9, 4×4, 12 epochs", twice, "digits, VGG9, 4×4, 24 epochs"]
    assert names == [*own, "digits, VGG9, 8×8"]
    drawn = [[line for line in ax.lines if len(line.get_xdata()) == 1] for ax in figure.axes]
    assert [[marker.get_ydata()[0] for marker in panel] for panel in drawn if panel] == [[0, 1], [2, 3], [4]]
    assert [marker.get_fillstyle() for panel in drawn for marker in panel] == ["full", "full", "none", "none", "full"]
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes]  # whichever the style has it
    assert titles == ["C1: CNN-DNN\n− vote", "C2 (not claimed): transfer\n− CNN-DNN", "C1: CNN-DNN\n− average"]
    assert "AUC" in figure.get_supxlabel()
    plt.close(figure)


def test_speed_up_has_a_line_a_size_and_backbone_without_overlap(ax):
    kinds = [("32×32", "vgg9", 0), ("32×32", "resnet20", 0), ("32×32", "vgg9", 4)]
    rows = [
        {"images": i, "backbone": b, "overlap": o, "N": n, "parallel speed-up": n, "one-machine speed-up": n / 2}
        for i, b, o in kinds
        for n in (4, 16)
    ]
    curves.speed_up(ax, pd.DataFrame(rows))
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert [label for label in labels if "N workers" in label and "ideal" not in label] == [
        "32×32, VGG9, N workers",
        "32×32, ResNet20, N workers",
    ]


def trainings() -> pd.DataFrame:
    lengths = {"global": 4.0, "local": 2.0, "local, fold 1": 1.0, "dense network": 0.5, "transfer": 1.0}
    rows = [
        {"seed": seed, "stage": stage, "epoch": epoch, "seconds": seconds, "train_accuracy": 0.5, "test_accuracy": 0.6}
        for seed in (0, 1)
        for stage, seconds in lengths.items()
        for epoch in (1, 2)
    ]
    rows += [row | {"seed": 2, "seconds": 3 * row["seconds"]} for row in rows if not row["seed"]]  # a busy machine
    return pd.DataFrame(rows)


def test_transfer_starts_after_what_it_needs_and_as_the_cnn_dnn(ax):
    results = pd.DataFrame(
        {
            "strategy": ["cnn-dnn", "cnn-dnn", "cnn-dnn", "vote"],
            "seed": [0, 1, 2, 0],
            "test_accuracy": [0.4, 0.5, 0.6, 0],
        }
    )
    plots.convergence(ax, trainings(), "second", results=results)
    transfer = [line for line in ax.lines if line.get_marker() == plots.STYLE["transfer"][1]]
    before = 2 * (2.0 + 1.0 + 0.5)
    assert [list(line.get_xdata()) for line in transfer] == [[before, before + 1, before + 2]] * 3
    assert [line.get_ydata()[0] for line in transfer] == [40, 50, 60]
    others = [line for line in ax.lines if line.get_marker() == plots.STYLE["global"][1]]
    assert [list(line.get_xdata()) for line in others] == [[4, 8]] * 3


def test_transfer_by_epoch_starts_at_none(ax):
    plots.convergence(ax, trainings(), results=frame(**{"cnn-dnn": 0.4}))
    transfer = [line for line in ax.lines if line.get_marker() == plots.STYLE["transfer"][1]]
    assert [list(line.get_xdata()) for line in transfer] == [[0, 1, 2]] * 3
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert len(labels) == len(set(labels)) == 4


def test_seeds_of_a_strategy_stand_side_by_side_with_a_line_at_their_mean(ax):
    rows = [
        {"grid": grid, "overlap": 0, "strategy": strategy, "seed": seed, "test_accuracy": 0.6 + 0.1 * seed}
        for grid in ("2x2", "4x4")
        for strategy in ("vote", "cnn-dnn")
        for seed in ((0, 1, 2) if grid == "2x2" else (0,))
    ]
    plots.strategies(ax, pd.DataFrame(rows), 100)
    x = np.concatenate([container.lines[0].get_xdata() for container in ax.containers]).astype(float)
    assert len(set(x.round(6))) == len(rows)
    assert sorted(x.round()) == [0] * 6 + [1] * 2
    bars = [lines for container in ax.containers for lines in container.lines[2]]
    means = [line for lines in ax.collections if lines not in bars for line in lines.get_segments()]
    np.testing.assert_allclose([line[:, 1] for line in means], 70)
    assert {float(line[:, 0].mean().round()) for line in means} == {0}
    assert ax.get_legend().get_title().get_text() == "– mean of seeds"


@pytest.mark.parametrize("by", ["subdomains", "overlap"])
def test_over_draws_the_range_of_seeds_and_one_seed_hollow(ax, by):
    rows = [
        {by: value, "strategy": strategy, "seed": seed, "test_accuracy": 0.6 + 0.1 * seed}
        for strategy in ("vote", "cnn-dnn")
        for value, seeds in ((4, (0, 1, 2)), (16, (0,)))
        for seed in seeds
    ]
    rows.append({by: np.nan, "strategy": "global", "seed": 0, "test_accuracy": 0.9})
    curves.over(ax, pd.DataFrame(rows), by)
    ranges = [[tuple(segment[:, 1]) for segment in bars.get_segments()] for bars in ax.collections]
    np.testing.assert_allclose(ranges, [[(60, 80), (60, 60)]] * 2)
    hollow = [line.get_ydata() for line in ax.lines if line.get_markerfacecolor() == "white" and len(line.get_ydata())]
    np.testing.assert_allclose(hollow, [[60], [60]])
    labels = [text.get_text() for text in ax.get_xticklabels()]
    assert labels == ["4", "16"]
    assert ax.get_legend_handles_labels()[1] == ["global", "vote", "CNN-DNN", "hollow: one seed"]
    assert list(ax.lines[0].get_ydata()) == [90, 90]  # across


def test_the_best_of_each_decomposition_and_the_front_are_named_beside_one_another(ax):
    common = {"width": 32, "epochs": 12, "variant": "", "overlap": 0, "settings": "a", "seed": 0}
    points = [
        ("1x1", "global", 1000, 0.9),
        ("2x2", "vote", 390, 0.7),
        ("2x2", "cnn-dnn", 400, 0.8),  # on the front
        ("2x2", "transfer", 1010, 0.895),  # the best of its decomposition
        ("4x4", "cnn-dnn", 395, 0.79),
        ("4x4", "transfer", 1005, 0.85),
    ]
    names = ("grid", "strategy", "one machine", "test_accuracy")
    costs = pd.DataFrame([common | dict(zip(names, point, strict=True)) for point in points])
    curves.accuracy_over_cost(ax, costs, report.pareto(costs), "one machine")
    assert sorted(text.get_text() for text in ax.texts) == ["2×2", "2×2", "4×4", "4×4", "global"]
    boxes = [text.get_window_extent() for text in ax.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_the_global_cnn_alone_can_be_drawn(ax):
    row = {"strategy": "global", "grid": "1x1", "overlap": 0, "seed": 0, "test_accuracy": 0.9}
    row |= {"width": 32, "epochs": 12, "variant": "", "settings": "", "one machine": 10.0}
    alone = pd.DataFrame([row])
    curves.over(ax, alone.assign(subdomains=np.nan), "subdomains")
    curves.accuracy_over_cost(ax, alone, report.pareto(alone), "one machine")
    assert [text.get_text() for text in ax.texts] == ["global"]


def test_one_legend_has_each_label_once():
    figure, axes = plt.subplots(1, 2)
    for ax, labels in zip(axes, (("a", "b"), ("b", "c")), strict=True):
        for label in labels:
            ax.plot([0, 1], label=label)
        ax.legend()
    plots.one_legend(figure, axes, columns=3)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]
    assert [ax.get_legend() for ax in axes] == [None, None]
    plt.close(figure)
