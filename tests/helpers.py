"""What several test files need: small decompositions, a backbone of one's own, comparing weights, other processes."""

import os
import signal
import time

import numpy as np
import torch
from torch import Tensor, nn

import ddlib


def local_cnns(backbone, dec, *, seed=0, channels=1, classes=4, width=8, dtype=torch.float32) -> ddlib.LocalCNNs:
    torch.manual_seed(seed)
    return ddlib.LocalCNNs(backbone, dec, in_channels=channels, num_classes=classes, width=width).to(dtype)


def small_net(in_channels: int, num_classes: int, width: int, dims: int) -> nn.Module:
    """A backbone of one's own, a top-level function, so that it can be sent to another process."""
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims](in_channels, 2 * width, 3, padding=1)
    pool = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[dims](2)
    return nn.Sequential(conv, nn.ReLU(), pool, nn.Flatten(), nn.Linear(2**dims * 2 * width, num_classes))


class Scaled(nn.Module):
    """A network with a parameter that has no axis."""

    def __init__(self, in_channels: int, num_classes: int, width: int, dims: int):
        super().__init__()
        self.net = small_net(in_channels, num_classes, width, dims)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.net(x)


def apart(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest entry; entries below 1e-3 may be zeros but for rounding."""
    difference = (found.double() - expected.double()).abs().max().item()
    return difference / max(expected.double().abs().max().item(), 1e-3)


def assert_same_state(found: nn.Module, expected: nn.Module, tolerance: float = 0.0) -> None:
    """Weights and batch-norm statistics agree; bit for bit with tolerance 0."""
    a, b = found.state_dict(), expected.state_dict()
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].shape == b[key].shape
        assert a[key].dtype == b[key].dtype
        if tolerance:
            assert apart(a[key], b[key]) <= tolerance, f"{key}: {apart(a[key], b[key]):.2e} > {tolerance}"
        else:
            assert torch.equal(a[key], b[key]), key


def assert_other_state(found: nn.Module, expected: nn.Module) -> None:
    """Every weight of two or more axes differs."""
    a, b = found.state_dict(), expected.state_dict()
    assert all(not torch.equal(a[key], b[key]) for key in a if a[key].ndim > 1 and not key.endswith("_extra_state"))


# for a process that trains beside others
ALONE = {**os.environ, "OMP_NUM_THREADS": "1", "DDLIB_PROGRESS": "0"}


def wait_for(condition, seconds=120):
    """Until it holds; returns what it returned."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.005)
    raise TimeoutError(f"not within {seconds} seconds")


def hears_interrupts() -> None:
    """Before a child starts: a test that itself runs in the background of a shell hands down deaf ears."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


RECORDED = np.arange(200) % 4


def record_of(accuracies, seed=0, seconds_of=None, arrays=None, **parameters):
    """A record with as many right answers as asked, the wrong ones drawn by the seed."""
    parameters = ddlib.Experiment(seed=seed, **parameters).parameters
    generator, rows, kept = np.random.default_rng(seed), [], {"labels": RECORDED}
    point = {key: parameters[key] for key in ("dataset", "backbone", "width", "grid", "overlap", "seed", "epochs")}
    for strategy, accuracy in accuracies.items():
        wrong = generator.permutation(len(RECORDED))[: round(len(RECORDED) * (1 - accuracy))]
        predicted = RECORDED.copy()
        predicted[wrong] = (predicted[wrong] + 1) % 4
        kept[f"predicted/{strategy}"] = predicted[None]
        figures = {"subdomain": "", "train_accuracy": 1.0, "test_accuracy": accuracy, "parameters": 1, "seconds": 1.0}
        rows.append({**point, "strategy": strategy, **figures})
    for stage, columns in (seconds_of or {}).items():
        kept |= {f"history/{stage}/{name}": np.array(values, float) for name, values in columns.items()}
    return ddlib.Record(parameters, rows, kept | (arrays or {}), {"commit": ""})
