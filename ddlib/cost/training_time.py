"""What training costs: local CNNs against the global CNN (claim C4, P2), all in one run on one machine.

Seconds are medians over repeats after a warm-up, of whole epochs, with batching, augmenting and cutting included.
Pixels do not matter to a clock: the images are random.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from timeit import timeit
from typing import Any

import pandas as pd
import torch
import yaml
from torch import nn

from .._internal import checks
from .._internal.devices import choose_device, choose_precision
from .._internal.files import write_atomically
from .._internal.loop import eval_mode
from ..aggregation import DenseAggregator
from ..decomposition import Decomposition
from ..images import Split
from ..local import LocalCNNs
from ..model import CNNDNN
from ..networks.backbones import BACKBONES, GroupedLinear, build
from ..parallel.executors import process_pool, train_local
from ..study.records import provenance
from ..training import RECIPES, Recipe, fit, train_aggregator


@dataclass(frozen=True)
class Setting:
    """What is timed: random images of one shape and ten classes, a backbone of one total width, a grid."""

    shape: tuple[int, ...] = (32, 32)
    parts: tuple[int, ...] = (2, 2)
    overlap: int = 0
    backbone: str = "vgg9"
    width: int = 32  # of the global CNN
    channels: int = 3
    images: int = 1536  # an epoch
    batch_size: int = 128
    local_width: str | int = "proportional"  # of a local CNN, as `LocalCNNs` takes it

    def __post_init__(self) -> None:
        checks.one_of("backbone", self.backbone, BACKBONES)
        for name, least in (("width", 1), ("channels", 1), ("batch_size", 2), ("images", self.batch_size)):
            checks.integer(name, getattr(self, name), least)
        _ = self.decomposition

    @property
    def decomposition(self) -> Decomposition:
        return Decomposition.grid(self.shape, self.parts, self.overlap)

    def data(self) -> Split:
        generator, size = torch.Generator().manual_seed(0), (self.images, self.channels, *self.shape)
        images = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 10, (self.images,), generator=generator)
        half = torch.full((self.channels,), 0.5)
        return Split(images, labels, mean=half, std=half, flip_axes=(1,) if len(self.shape) == 2 else ())

    def local(self) -> LocalCNNs:
        size = {"in_channels": self.channels, "num_classes": 10, "width": self.width}
        return LocalCNNs(self.backbone, self.decomposition, **size, local_width=self.local_width)

    def network(self) -> nn.Module:
        return build(self.backbone, self.channels, 10, self.width, len(self.shape), window_shape=self.shape)

    def recipe(self, stage: str = "local", **changed: Any) -> Recipe:
        """An epoch of a stage."""
        return replace(RECIPES[stage], **{"epochs": 1, "batch_size": self.batch_size, **changed})


def settings(profile: str = "full", images: int = 1536) -> list[Setting]:
    """What the table is measured on.

    "quick" is 2×2 and 4×4 on `images` images of 32×32; "full" adds 8×8, images of 160×160, volumes of 32×32×16, and on
    the small images overlap and ResNet20; "papers" has 32×32, 160×160 and 128×128×64, at widths 16 and 64.
    """
    checks.one_of("profile", profile, ("quick", "full", "papers"))
    small = [Setting((32, 32), (k, k), images=images) for k in (2, 4, 8)]
    large = [Setting((160, 160), (k, k), images=96, batch_size=16) for k in (2, 4, 8)]
    volume = Setting((32, 32, 16), (2, 2, 1), backbone="cnn3d", channels=1, images=128, batch_size=16)
    if profile == "papers":  # the size of the Keras example on CT, from which P2's network comes
        volume = replace(volume, shape=(128, 128, 64), images=16, batch_size=8)
    volumes = [replace(volume, parts=parts) for parts in ((2, 2, 1), (4, 4, 1), (4, 4, 2))]
    if profile == "papers":
        return [replace(s, width=width) for width in (16, 64) for s in small + large + volumes]
    overlapping = [replace(s, overlap=4) for s in small[:2]]
    deeper = [replace(s, backbone="resnet20", width=8) for s in small[:2]]
    return small[:2] if profile == "quick" else small + large + volumes + overlapping + deeper


@torch.no_grad()
def operations(network: nn.Module, *image: int) -> int:
    """Floating-point operations of one training step per image: forward, and twice as much backward.

    A multiplication and an addition count as two; convolutions and linear layers count, padded as they are
    written, whichever way they are computed.  `image` is (C, *shape).
    """
    counted: list[int] = []

    def count(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
        counted.append(2 * output.numel() * layer.weight[0].numel())

    kinds = (nn.Conv2d, nn.Conv3d, nn.Linear, GroupedLinear)
    hooks = [layer.register_forward_hook(count) for layer in network.modules() if isinstance(layer, kinds)]
    with eval_mode(network):
        network(torch.zeros(1, *image))
    for hook in hooks:
        hook.remove()
    return 3 * sum(counted)


def compare(tasks: Mapping[str, Callable[[], Any]], repeats: int = 3) -> dict[str, float]:
    """Median seconds of each task: one warm-up, then `repeats` rounds in turn, so that drift hits all alike."""
    rounds = [{name: timeit(task, number=1) for name, task in tasks.items()} for _ in range(1 + repeats)]
    return {name: median(seconds[name] for seconds in rounds[1:]) for name in tasks}


def epochs(s: Setting) -> dict[str, partial]:
    """An epoch of each training of the table, its model first: "local 0", … are one local CNN for each window shape."""
    data, local, recipe = s.data(), s.local(), s.recipe()
    model, p = CNNDNN(local, DenseAggregator(len(local), 10)), torch.rand(s.images, len(local), 10).softmax(2)
    dense = s.recipe("dense network")
    tasks = {
        "global": partial(fit, s.network(), data, recipe, progress=False),
        "fused": partial(train_local, local, data, recipe, engine="fused", progress=False),
        "dense network": partial(train_aggregator, model, data, dense, probabilities=p, progress=False),
    }
    for k, family in enumerate(s.decomposition.families()):
        tasks[f"local {k}"] = partial(fit, local.part(family[:1]), data, recipe, progress=False)
    return tasks


def training_time(settings: Iterable[Setting], repeats: int = 3) -> pd.DataFrame:
    """Claim C4: seconds for 1,000 images of the global CNN, of one local CNN, of all, fused, and of the dense network.

    The global CNN is trained by the same engine in the same precision.  `longest local` is what N workers need,
    one for each local CNN; from it comes the parallel speed-up, from `fused` that of one machine.
    """
    return pd.DataFrame([_row(s, repeats) for s in settings])


def _seconds(s: Setting, tasks: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Of each task, for 1,000 images."""
    return {name: 1000 / s.images * seconds for name, seconds in compare(tasks, repeats).items()}


def _row(s: Setting, repeats: int) -> dict[str, Any]:
    taken = _seconds(s, epochs(s), repeats)
    families = s.decomposition.families()
    single = [taken[f"local {k}"] for k in range(len(families))]
    whole, together = (operations(network, s.channels, *s.shape) for network in (s.network(), s.local()))
    return {
        "images": "×".join(map(str, s.shape)),
        "grid": "×".join(map(str, s.parts)),
        "overlap": s.overlap,
        "backbone": s.backbone,
        "width": s.width,
        "N": len(s.decomposition),
        "global": taken["global"],
        "longest local": max(single),
        "sum of locals": sum(len(family) * t for family, t in zip(families, single, strict=True)),
        "fused": taken["fused"],
        "dense network": taken["dense network"],
        "parallel speed-up": taken["global"] / max(single),
        "one-machine speed-up": taken["global"] / taken["fused"],
        "operations, global / local": whole * len(s.decomposition) / together,
        "operations, global / all": whole / together,
    }


def with_processes(s: Setting, repeats: int = 3) -> pd.DataFrame:
    """Is the longest local CNN, timed alone, what N workers take?  N processes of this machine, a thread for each.

    Returns:
        A row: seconds for 1,000 images of the global CNN, of the longest local CNN and of all on N processes, sending
        and starting of tasks included; and the speed-up with either.
    """
    tasks, threads = epochs(s), torch.get_num_threads()
    timed = {name: task for name, task in tasks.items() if name.startswith(("global", "local"))}
    torch.set_num_threads(1)
    try:
        with process_pool(len(s.decomposition)) as pool:
            taken = _seconds(s, timed | {"processes": partial(tasks["fused"], engine=pool)}, repeats)
    finally:
        torch.set_num_threads(threads)
    whole, together = taken.pop("global"), taken.pop("processes")
    longest, images = max(taken.values()), "×".join(map(str, s.shape))
    row = {"images": images, "N": len(s.decomposition), "global": whole, "longest local": longest}
    row |= {"N processes": together, "speed-up, longest": whole / longest, "speed-up, processes": whole / together}
    return pd.DataFrame([row])


def machine() -> dict[str, Any]:
    """Where the seconds are taken: commit, versions, device, threads, precision."""
    device = choose_device()
    return provenance(device.type, choose_precision("auto", device), time.time())


def save(folder: Path, facts: dict[str, Any], **tables: pd.DataFrame) -> None:
    """Write NAME.csv for each table, and provenance.yaml: the machine, the commit, the repeats."""
    for name, table in tables.items():
        write_atomically(folder / f"{name}.csv", table.to_csv(index=False))
    write_atomically(folder / "provenance.yaml", yaml.safe_dump(facts))
