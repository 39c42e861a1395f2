"""What is counted in a training on ranks is what the formulas say; ranks that cannot train are refused before it."""

import sys
from pathlib import Path

import pytest
from helpers import local_cnns

from ddlib import CNNDNN, Decomposition, DenseAggregator, Recipe
from ddlib.networks.backbones import count_parameters

sys.path.append(str(Path(__file__).parent / "benchmarks"))
import scaling


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
