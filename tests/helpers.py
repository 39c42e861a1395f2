"""What several test files need: small decompositions, a backbone of one's own, comparing weights."""

import signal

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
    assert all(not torch.equal(a[key], b[key]) for key in a if a[key].ndim > 1)


def hears_interrupts() -> None:
    """Before a child starts: a test that itself runs in the background of a shell hands down deaf ears."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
