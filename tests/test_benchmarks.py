"""Each benchmark says what it takes; what they count and judge is right."""

import runpy
import sys
from pathlib import Path

import pytest
from helpers import local_cnns

from ddlib import CNNDNN, Decomposition, DenseAggregator, Experiment, Recipe, accuracy, average_probability
from ddlib.networks.backbones import count_parameters

sys.path.append(str(Path(__file__).parent / "benchmarks"))
import heads
import scaling

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_says_what_it_takes(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    if "__main__" in path.read_text():
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(path), run_name="__main__")
        assert end.value.code == 0
        assert "output" in capsys.readouterr().out


def test_heads_that_start_as_the_average_are_it_before_they_are_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(heads, "OPTIONS", [("none", "p", "average", 0.0), ("64", "log p", "random", 5e-4)])
    e = Experiment("digits", width=4, epochs=1, batch_size=32, train_size=100, validation=0.1, strategies=("local",))
    said = heads.local_probabilities(e, tmp_path)
    rows = heads.heads(e, said)
    assert [row["epochs"] for row in rows] == [0, 1, 5, 20, 1, 5, 20]
    for half, (p, labels) in said.items():
        assert rows[0][half] == pytest.approx(100 * accuracy(average_probability(p), labels))


def model():
    local = local_cnns("vgg9", Decomposition.grid((12, 12), (1, 3)), channels=3)
    return CNNDNN(local, DenseAggregator(3, 4))


@pytest.mark.slow
def test_bytes_counted_in_both_ways_are_those_of_the_formulas(tiny):
    frame = scaling.communication(model(), tiny, Recipe(batch_size=16, precision="fp32", device="cpu"), [2])
    assert frame["way"].tolist() == ["by subdomain", "data-parallel"]
    # two ranks, three subdomains: messages have room for two of them; all parameters once there and back
    assert frame["sent"].tolist() == [16 * 2 * 4 * 4, count_parameters(model()) * 4]


def test_ranks_that_cannot_train_are_refused(tiny):
    for ranks, size, told in (([2, 4], 16, "4 ranks cannot share 3 subdomains"), ([3], 4, "batch_size .* ≥ 6, got 4")):
        with pytest.raises(ValueError, match=told):
            scaling.communication(model(), tiny, Recipe(batch_size=size), ranks)
