import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddlib import accuracy_table, epochs_to_reach, interval


@given(st.integers(1, 500), st.data())
def test_the_interval_contains_the_share(total, data):
    right = data.draw(st.integers(0, total))
    low, high = interval(right, total)
    assert 0 <= low <= right / total + 1e-12
    assert right / total - 1e-12 <= high <= 1
    wide = interval(right, total, confidence=0.99)
    assert wide[0] <= low + 1e-12
    assert wide[1] >= high - 1e-12
    mirrored = interval(total - right, total)
    assert (low, high) == pytest.approx((1 - mirrored[1], 1 - mirrored[0]))


@given(st.integers(1, 500), st.data())
def test_the_interval_is_wilsons(total, data):
    right, z = data.draw(st.integers(0, total)), 1.959963984540054
    share = right / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    reach = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    assert interval(right, total) == pytest.approx((centre - reach, centre + reach), abs=1e-9)


@pytest.mark.parametrize(
    ("right", "total", "expected"),
    [(50, 100, (0.4038, 0.5962)), (0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (8, 10, (0.4902, 0.9433))],
)
def test_known_intervals(right, total, expected):
    assert interval(right, total) == pytest.approx(expected, abs=1e-4)


def test_epochs_to_reach():
    assert epochs_to_reach([0.2, 0.5, 0.4, 0.9], 0.5) == 2
    assert epochs_to_reach([0.2, 0.5], 0.6) is None
    assert epochs_to_reach([0.7], 0.1) == 1
    assert epochs_to_reach([], 0.1) is None
    assert epochs_to_reach([0.5, 0.6], 0.5, first=0) == 0
    assert epochs_to_reach([float("nan"), 0.5], 0.5, first=0) == 1


def test_accuracy_table():
    point = {"dataset": "d", "backbone": "b", "width": 8, "overlap": 0, "epochs": 1}
    rows = [
        {**point, "grid": grid, "strategy": strategy, "subdomain": sub, "seed": seed, "test_accuracy": accuracy}
        for grid, strategy, sub, seed, accuracy in [
            ("2x2", "local", "0,0", 0, 0.2),
            ("2x2", "local", "0,1", 0, 0.4),
            ("2x2", "local", "0,0", 1, 0.4),
            ("2x2", "local", "0,1", 1, 0.6),
            ("2x2", "average", "", 0, 0.5),
            ("2x2", "average", "", 1, 0.7),
            ("1x2", "average", "", 0, 0.123),
            ("1x2", "local", "0,0", 0, 0.1),
        ]
    ]
    table = accuracy_table(pd.DataFrame(rows)).reset_index()
    assert list(table)[-2:] == ["local", "average"]
    cells = {(row["grid"], name): row[name] for _, row in table.iterrows() for name in ("local", "average")}
    assert cells == {
        ("2x2", "local"): "40.0 ± 14.1 (2)",
        ("2x2", "average"): "60.0 ± 14.1 (2)",
        ("1x2", "local"): "10.0",
        ("1x2", "average"): "12.3",
    }


def test_rows_of_the_accuracy_table_stand_in_the_order_of_the_frame():
    point = {"dataset": "d", "backbone": "b", "width": 8, "epochs": 1, "strategy": "vote", "seed": 0}
    places = [("2x2", 0), ("2x2", 4), ("4x4", 2), ("4x4", 4)]
    rows = [{**point, "grid": grid, "overlap": overlap, "test_accuracy": 0.5} for grid, overlap in places]
    assert accuracy_table(pd.DataFrame(rows)).reset_index()[["grid", "overlap"]].to_numpy().tolist() == [
        list(place) for place in places
    ]


def test_the_accuracy_table_names_epochs_and_augmentation():
    point = {"dataset": "d", "backbone": "b", "width": 8, "grid": "2x2", "overlap": 0, "strategy": "vote", "seed": 0}
    rows = [{**point, "epochs": e, "augment": a, "test_accuracy": 0.5} for e in (6, 12) for a in ("yes", "no")]
    table = accuracy_table(pd.DataFrame(rows)).reset_index()
    assert table[["epochs", "augment"]].to_numpy().tolist() == [[6, "yes"], [6, "no"], [12, "yes"], [12, "no"]]
