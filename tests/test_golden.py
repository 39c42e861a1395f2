"""Does an accuracy come out as before?  Losses of short trainings, in float64, are held to `golden.json`.

In single precision trainings drift apart from one processor to the next; in double precision they agree to many
digits.  Where the losses move, every record is outdated: raise `RESULTS`, say so in CHANGELOG.md, and write the file
anew with `python tests/test_golden.py`.
"""

import json
from pathlib import Path

import pytest
import torch

from ddlib import Experiment
from ddlib.study import records
from ddlib.study.trainings import KeptTrainings

GOLDEN = Path(__file__).parent / "golden.json"
SMALL = {"dataset": "digits", "train_size": 144, "width": 8, "epochs": 2, "dense_epochs": 2, "batch_size": 48}
POINTS = {
    "2x2, overlap 3": {"overlap": 3, "strategies": ("global", "cnn-dnn", "coherent", "transfer")},
    "2x2, remedies": {"out_of_fold": 2, "local_losses": True, "strategies": ("cnn-dnn", "transfer")},
    "resnet20, 2x3": {"backbone": "resnet20", "grid": "2x3", "epochs": 1, "strategies": ("cnn-dnn",)},
    "mobilenet_v2, 1x2": {"backbone": "mobilenet_v2", "grid": "1x2", "epochs": 1, "strategies": ("average",)},
    "channels": {"grid": "1x1", "channel_parts": 2, "samples": "shares", "engine": "loop", "strategies": ("channels",)},
}


def losses(point: dict) -> dict[str, list[float]]:
    """{stage: its loss after each epoch}, computed in float64."""
    torch.set_default_dtype(torch.float64)
    try:
        experiment = Experiment(**{**SMALL, **point}, precision="fp32")
        run = KeptTrainings(experiment, experiment.data(), None, progress=False)
        for strategy in experiment.strategies:
            run.probabilities(strategy, "test")
        return {stage: history["loss"].tolist() for stage, history in run.histories.items()}
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", POINTS)
def test_losses_are_as_before(name):
    golden = json.loads(GOLDEN.read_text())
    assert golden["results"] == records.RESULTS, (
        "RESULTS was raised: write golden.json anew, python tests/test_golden.py"
    )
    found = losses(POINTS[name])
    assert found.keys() == golden["losses"][name].keys()
    for stage, expected in golden["losses"][name].items():
        assert found[stage] == pytest.approx(expected, rel=1e-7), f"{stage} moved: raise records.RESULTS"


if __name__ == "__main__":
    found = {name: losses(point) for name, point in POINTS.items()}
    GOLDEN.write_text(json.dumps({"results": records.RESULTS, "losses": found}, indent=1) + "\n")
