"""What is counted in a training on ranks is what the formulas say; the formulas by hand."""

import math

import pytest
from helpers import local_cnns

from ddlib import CNNDNN, Decomposition, DenseAggregator, Recipe
from ddlib.backbones import count_parameters
from ddlib.cost import scaling


def model():
    local = local_cnns("vgg9", Decomposition.grid((12, 12), (1, 3)), channels=3)
    return CNNDNN(local, DenseAggregator(3, 4))


def test_bytes_counted_in_both_ways_are_those_of_the_formulas(tiny):
    frame = scaling.communication(model(), tiny, Recipe(batch_size=16, precision="fp32", device="cpu"), [2])
    assert frame["way"].tolist() == ["by subdomain", "data-parallel"]
    # two ranks, three subdomains: messages have room for two of them; all parameters once there and back
    assert frame["sent"].tolist() == [16 * 2 * 4 * 4, count_parameters(model()) * 4]
    assert frame["expected"].tolist() == frame["sent"].tolist()
    assert (frame["seconds"] > 0).all()


def test_local_training_over_workers(tiny):
    recipe = Recipe(epochs=1, batch_size=16, precision="fp32", device="cpu")
    frame = scaling.local_training(model().local, tiny, recipe, [1])
    assert frame["workers"].tolist() == [1, 2, 3]
    assert frame["seconds"].notna().tolist() == [True, False, False]
    ideal = frame["ideal"].to_numpy()
    assert ideal == pytest.approx([3 * ideal[2], 2 * ideal[2], ideal[2]])


def test_on_paper_by_hand():
    local = model().local
    frame = scaling.on_paper(local, (64, 1024), batch_size=32, latency=1e-6, bandwidth=1e9)
    apart, whole = frame.iloc[0], frame.iloc[1]
    probabilities = 63 / 64 * 32 * 64 * 4 * 4
    assert (apart["ranks"], apart["sent"]) == (64, pytest.approx(probabilities))
    assert apart["seconds"] == pytest.approx(6e-6 + probabilities / 1e9)
    parameters = 64 * count_parameters(local) / 3 + count_parameters(DenseAggregator(64, 4))
    gradients = 2 * 31 / 32 * parameters * 4
    assert (whole["ranks"], whole["sent"]) == (32, pytest.approx(gradients, rel=1e-6))
    assert whole["seconds"] == pytest.approx(2 * math.log2(32) * 1e-6 + gradients / 1e9, rel=1e-6)
    assert frame.iloc[2]["ranks"] == 1024
