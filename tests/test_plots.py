"""What figures promise: no noise blown up, no text over text, nothing left out, a title that says what is shown."""

import matplotlib
from matplotlib.colors import to_hex, to_rgb

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import ddlib
from ddlib.report import figures as plots


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
    figure = plots.by_window({"a": (cuts, accuracies), "b": (cuts, accuracies[::-1])}, "%", 10_000)
    panels = [ax for ax in figure.axes if ax.texts]
    ((low, high),) = {ax.images[0].get_clim() for ax in panels}
    assert high - low == pytest.approx(span)
    assert low <= 100 * min(accuracies)
    assert high >= 100 * max(accuracies)
    assert len(panels) == len(figure.axes) - 1 == 2  # and one scale
    plt.close(figure)


def test_panels_of_importance_share_a_scale_from_zero_and_show_every_value():
    two, four = (ddlib.Decomposition.grid((8, 8), parts) for parts in ((2, 1), 2))
    figure = plots.by_window({"a": (two, [[0.1, 0], [0.3, 0]]), "b": (four, [-0.01, 0.1, 0.05, 0])}, "points")
    panels = [ax for ax in figure.axes if ax.texts]
    texts = [["20.0", "0.0"], ["-1.0", "10.0", "5.0", "0.0"]]
    assert [[text.get_text() for text in ax.texts] for ax in panels] == texts
    assert {ax.images[0].get_clim() for ax in panels} == {(-1, 20)}
    positive = plots.by_window({"a": (two, [0.1, 0.2])}, "points")
    assert positive.axes[0].images[0].get_clim() == (0, 20)
    plt.close("all")


@pytest.mark.parametrize("parts", [(2, 2), (2, 2, 2)])
def test_windows_behind_one_another_share_one_text(ax, parts):
    decomposition = ddlib.Decomposition.grid((8,) * len(parts), parts, 1)
    figure = plots.by_window({"": (decomposition, np.linspace(0.1, 0.9, len(decomposition)))}, "%", 10_000)
    plots.windows(ax, decomposition, names=True)
    values, names = figure.axes[0].texts, ax.texts
    plt.close(figure)
    assert len(names) == len(values) == 4
    for texts in (values, names):
        assert len({text.get_position() for text in texts}) == 4
        assert sum(len(text.get_text().splitlines()) for text in texts) == len(decomposition)
    assert {name for text in names for name in text.get_text().splitlines()} == set(decomposition.names)


def test_every_strategy_is_drawn(ax):
    table = frame(**{"global": 0.9, "vote": 0.7, "cnn-dnn": 0.8, "mine": 0.6, "local": 0.4})
    plots.strategies(ax, table, 100, "A title")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["global", "vote", "CNN-DNN", "mine"]
    assert "A title" in (ax.get_title(loc="left"), ax.get_title())


def test_points_that_differ_in_an_option_have_columns_of_their_own(ax):
    variants = ["train_size=600", "train_size=600 local_width=full", "train_size=600 local_width=full coarse=True"]
    rows = [frame(vote=0.5 + 0.1 * k).assign(variant=variant) for k, variant in enumerate(variants)]
    table = pd.concat([*rows, frame(vote=0.9).assign(variant=variants[0], overlap=2)])
    words = ["2×2", "2×2, local width full", "2×2, local width full, coarse", "2×2, δ = 2"]
    assert list(plots.places(table)["place"]) == words
    plots.strategies(ax, table, 100)
    assert len({round(float(c.lines[0].get_xdata()[0])) for c in ax.containers}) == 4
    texts = [label.get_text() for label in ax.get_xticklabels()]
    assert texts[1:] == ["2×2\nδ = 0\nlocal width full", "2×2\nδ = 0\nlocal width full,\ncoarse", "2×2\nδ = 2"]
    assert list(plots.places(rows[1])["place"]) == ["2×2"]  # what all have is in the caption


def test_strategies_differ_in_grey_by_their_markers():
    assert len({row.marker for row in ddlib.STRATEGIES.values()}) == len(ddlib.STRATEGIES)
    assert len({to_rgb(row.colour) for row in ddlib.STRATEGIES.values()}) == len(ddlib.STRATEGIES)


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
    plots.convergence(ax, trainings(), results, "second")
    transfer = [line for line in ax.lines if line.get_marker() == plots.style_of("transfer")[1]]
    before = 2 * (2.0 + 1.0 + 0.5)
    assert [list(line.get_xdata()) for line in transfer] == [[before, before + 1, before + 2]]
    assert [line.get_ydata()[0] for line in transfer] == [50]  # the mean of 40, 50 and 60, which the band spans
    assert any({(before, 40), (before, 60)} <= {*map(tuple, b.get_paths()[0].vertices)} for b in ax.collections)
    others = [line for line in ax.lines if line.get_marker() == plots.style_of("global")[1]]
    assert [list(line.get_xdata()) for line in others] == [[4, 8]]


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
    assert ax.get_legend().get_title().get_text() == "bars: 95 % of one run\nline: mean of seeds"


def test_cost_shows_one_regime_and_the_global_cnn_of_every_length_and_names_what_is_not_beaten(ax):
    names = ("grid", "strategy", "epochs", "one machine", "test_accuracy")
    points = [
        ("1x1", "global", 3, 300, 0.75),
        ("1x1", "global", 12, 1000, 0.9),
        ("2x2", "vote", 12, 390, 0.7),
        ("2x2", "cnn-dnn", 12, 400, 0.8),
        ("2x2", "transfer", 12, 1010, 0.895),
        ("4x4", "cnn-dnn", 12, 395, 0.79),
        ("4x4", "cnn-dnn", 24, 700, 0.85),  # another regime
    ]
    common = {"width": 32, "augment": "yes", "variant": "", "overlap": 0, "settings": "a", "seed": 0}
    costs = pd.DataFrame([common | dict(zip(names, point, strict=True)) for point in points])
    plots.accuracy_over_cost(ax, costs, "one machine")
    assert [text.get_text() for text in ax.texts] == ["global, 3 epochs", "4×4", "2×2", "global, 12 epochs"]
    drawn = np.concatenate([line.get_ydata() for line in ax.lines])
    assert drawn.max() == pytest.approx(90)
    assert 85 not in drawn.round(6)


CUTS = {
    "2×2 of 64×64, δ = 10": ddlib.Decomposition.grid((64, 64), 2, 10),
    "6×6, no overlap": ddlib.Decomposition.grid((50, 64), 6),
    "3×5, coarse": ddlib.Decomposition.grid((30, 40), (3, 5), 4, coarse=True),
    "a volume": ddlib.Decomposition.grid((16, 16, 8), (2, 2, 2), 2),
    "regions": ddlib.Decomposition.regions((9, 9), {"a": ((0, 5), (1, 6)), "b": ((3, 9), (4, 9))}, coarse=True),
}


def edges(ax) -> dict[tuple[int, ...], str]:
    """(top, bottom, left, right) of the windows as drawn → their colour; a tint has no edge."""
    drawn = [box for box in ax.patches if box.get_linewidth()]
    assert len({box.get_bbox().bounds for box in drawn}) == len(drawn)
    ends = {box: np.array(box.get_bbox().extents)[[1, 3, 0, 2]] + 0.5 for box in drawn}
    return {tuple(each.tolist()): to_hex(box.get_edgecolor()) for box, each in ends.items()}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_windows_are_drawn_at_their_edges_and_neighbours_told_apart(ax, cut):
    """Overlapping ones overlap, those at the border reach it, and the coarse one is named instead."""
    plots.windows(ax, cut)
    own = cut.windows[: -1 if cut.coarse else None]
    assert set(edges(ax)) == {tuple(edge for side in w[:2] for edge in (side.start, side.stop)) for w in own}
    found = list(edges(ax).items())
    for k, ((a, b, c, d), colour) in enumerate(found):
        for (e, f, g, h), other in found[:k]:
            assert colour != other or f < a or b < e or h < c or d < g  # or they neither touch nor overlap
    assert ("coarse" in ax.get_xlabel()) == bool(cut.coarse)
    assert {colour.upper() for _, colour in found}.isdisjoint(row.colour for row in ddlib.STRATEGIES.values())


def test_the_number_of_a_coarse_window_stands_below_its_panel():
    cut = CUTS["3×5, coarse"]
    figure = plots.by_window({"a": (cut, np.linspace(0.1, 0.85, len(cut)))}, "%", 10_000)
    assert figure.axes[0].get_xlabel() == "coarse window: 85.0"
    assert "85.0" not in {text.get_text() for text in figure.axes[0].texts}
    assert len(figure.axes[0].texts) == len(cut) - 1
    plt.close(figure)


@pytest.fixture
def places():
    """Two seeds of three places: means of seeds are (1, 2), (9, −2) and, of 4×4, (0, 9)."""
    rows = []
    for seed in (-1, 1):
        common = {"dataset": "cifar10", "backbone": "vgg9", "width": 8, "overlap": 0, "variant": "", "seed": seed}
        for x, y, grid, epochs in ((1, 2, "2x2", 12), (5, 0, "2x2", 24), (9, -2, "2x2", 150), (0, 9, "4x4", 12)):
            row = {"grid": grid, "epochs": epochs, "augment": "no" if epochs == 24 else "yes"}
            rows.append(common | row | {"overfit": x + 0.1 * seed, "C1": y + 0.1 * seed, "C7": np.nan})
    return pd.DataFrame(rows)


def test_regimes_are_told_apart_by_marker_and_seeds_are_one_point(places):
    figure = plots.regimes(places)
    (ax,) = figure.axes  # there is no C7
    drawn = {(tuple(x), tuple(y)): line for line in ax.lines for x, y in [line.get_data()] if line.get_marker() in "os"}
    points = {(round(x[0], 6), round(y[0], 6)): line for (x, y), line in drawn.items()}
    assert set(points) == {(1, 2), (5, 0), (9, -2), (0, 9)}
    looks = {at: (line.get_marker(), line.get_fillstyle()) for at, line in points.items()}
    assert looks == {(1, 2): ("o", "full"), (5, 0): ("o", "none"), (9, -2): ("s", "full"), (0, 9): ("o", "full")}
    assert [line.get_markeredgecolor() for at, line in points.items() if at == (0, 9)] == ["black"]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[:4] == ["CIFAR-10", "short, augmented", "short, not augmented", "150 epochs, augmented"]


def test_a_trend_is_a_straight_line_where_points_are_on_one():
    x = np.array([-3.0, 0, 2, 8, 30, 60])
    at = np.linspace(-3, 60, 9)
    y, expected = (2 - 3 * np.arcsinh(v / plots.SQUEEZE) for v in (x, at))
    np.testing.assert_allclose(plots.trend(x, y, at), expected, atol=1e-6)
    assert plots.trend(x, y + 10 * (x == 60), at)[-1] > expected[-1] + 1  # and bends where they do
