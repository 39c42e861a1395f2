"""How fast training is, measured against the straightforward way, all in one run on one machine.

Timings are medians over repeats after a warm-up, in images per second of whole training epochs, with batching,
augmenting and cutting included.  Pixels do not matter to a clock: the images are random.
"""

import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from .. import checks
from ..aggregation import DenseAggregator
from ..backbones import Backbone, GroupedLinear, build
from ..decomposition import Decomposition
from ..devices import choose_device, choose_precision
from ..engines import train_local
from ..files import write_atomically
from ..images import ImageSet, image_set
from ..local import LocalCNNs
from ..model import CNNDNN
from ..study.records import provenance
from ..study.workers import Workers
from ..training import RECIPES, Recipe, fit, train_aggregator

if TYPE_CHECKING:
    import pandas as pd

FP32 = Recipe(epochs=1, precision="fp32")
BEST = Recipe(epochs=1)
DENSE = replace(RECIPES["dense network"], epochs=1)


@dataclass(frozen=True)
class Setting:
    """What is timed: random images of one shape, a backbone of one total width, a decomposition."""

    shape: tuple[int, ...] = (32, 32)
    parts: tuple[int, ...] = (2, 2)
    overlap: int = 0
    backbone: str = "vgg9"
    width: int = 32
    channels: int = 3
    images: int = 1536
    batch_size: int = 128

    def data(self) -> ImageSet:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(
            0, 256, (self.images, self.channels, *self.shape), dtype=torch.uint8, generator=generator
        )
        labels = torch.arange(self.images) % 10
        flips = (1,) if len(self.shape) == 2 else ()
        return image_set("random", (images, labels), (images[:10], labels[:10]), tuple("abcdefghij"), flips)

    def local(self) -> LocalCNNs:
        decomposition = Decomposition.grid(self.shape, self.parts, self.overlap)
        return LocalCNNs(self.backbone, decomposition, in_channels=self.channels, num_classes=10, width=self.width)

    def network(self) -> nn.Module:
        return build(self.backbone, self.channels, 10, self.width, len(self.shape))

    def recipe(self, base: Recipe) -> Recipe:
        return replace(base, batch_size=self.batch_size)


# ── the straightforward way, what a careful user would write ──────────────────────────────────────────────────


def straightforward(nets: Sequence[nn.Module], windows: Sequence[Any], data: ImageSet, recipe: Recipe) -> None:
    """One epoch of each network on its window, one after another: fp32, default memory format, tensors in memory."""
    images, labels, size = data.train.images, data.train.labels, recipe.batch_size
    mean, std = (v.view(-1, *(1,) * len(data.image_shape)) for v in (data.train.mean, data.train.std))
    reach = [length // 8 for length in data.image_shape]
    padding = [r for r in reversed(reach) for _ in (0, 1)]
    for net, window in zip(nets, windows, strict=True):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        net.train()
        order = torch.randperm(len(labels))
        for start in range(0, len(labels) - size + 1, size):
            x, y = images[order[start : start + size]], labels[order[start : start + size]]
            for axis in data.train.flip_axes:
                mirrored = torch.rand(size, *(1,) * (x.ndim - 1)) < 0.5
                x = torch.where(mirrored, x.flip(2 + axis), x)
            x = F.pad(x, padding)
            corners = [torch.randint(0, 2 * r + 1, (size,)).tolist() for r in reach]
            crops = [
                [slice(c, c + n) for c, n in zip(corner, data.image_shape, strict=True)]
                for corner in zip(*corners, strict=True)
            ]
            x = torch.stack([one[(slice(None), *crop)] for one, crop in zip(x, crops, strict=True)])
            x = (x[(..., *window)].float() / 255 - mean) / std
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()


def with_dataloader(nets: Sequence[nn.Module], windows: Sequence[Any], data: ImageSet, recipe: Recipe) -> None:
    """The same with `DataLoader` (two workers) and torchvision's transforms, image by image (2-D)."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.transforms.functional import to_pil_image

    photos = [(to_pil_image(x), int(y)) for x, y in zip(data.train.images, data.train.labels, strict=True)]
    transform = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.RandomCrop(data.image_shape, padding=[n // 8 for n in reversed(data.image_shape)]),
            transforms.ToTensor(),
            transforms.Normalize(data.train.mean.tolist(), data.train.std.tolist()),
        ]
    )
    fork = "fork" if "fork" in multiprocessing.get_all_start_methods() else None  # the start that costs it least
    for net, window in zip(nets, windows, strict=True):
        loader = DataLoader(
            _Photos(photos, transform, window),
            recipe.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=2,
            multiprocessing_context=fork,
        )
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        net.train()
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()


class _Photos(torch.utils.data.Dataset):
    def __init__(self, photos: list[tuple[Any, int]], transform: Callable[[Any], torch.Tensor], window: Any):
        self.photos, self.transform, self.window = photos, transform, window

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        photo, label = self.photos[index]
        return self.transform(photo)[(..., *self.window)], label


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────────────────


def operations(network: nn.Module, *image: int) -> int:
    """Floating-point operations of one training step per image: forward, and twice as much backward.

    A multiplication and an addition count as two; convolutions and linear layers count, padded as they are
    written, whichever way they are computed.  `image` is (C, *shape).
    """
    counted = []

    def count(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
        counted.append(2 * output.numel() * layer.weight[0].numel())

    kinds = (nn.Conv2d, nn.Conv3d, nn.Linear, GroupedLinear)
    hooks = [layer.register_forward_hook(count) for layer in network.modules() if isinstance(layer, kinds)]
    with torch.no_grad():
        network.eval()(torch.zeros(1, *image, device=next(network.parameters()).device))
    for hook in hooks:
        hook.remove()
    return 3 * sum(counted)


def ceiling(precision: str, size: int = 1024, repeats: int = 20) -> float:
    """The measured speed of a large matrix product on this device, in GFLOP/s."""
    device = choose_device()
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    return 2 * size**3 / 1e9 / min(_seconds(lambda: a @ a, device) for _ in range(repeats))


def compare(tasks: dict[str, Callable[[], Any]], repeats: int = 3) -> dict[str, float]:
    """Median seconds of each task: one warm-up, then `repeats` rounds in turn, so that drift hits all alike."""
    device = choose_device()
    return _medians({name: partial(_seconds, task, device) for name, task in tasks.items()}, repeats)


def _medians(timed: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    rounds = [{name: seconds() for name, seconds in timed.items()} for _ in range(1 + repeats)]
    return {name: statistics.median(one[name] for one in rounds[1:]) for name in timed}


def _seconds(task: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    task()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


# ── the tables ────────────────────────────────────────────────────────────────────────────────────────────────


# engine → the model that it trains, and whether it computes in the best precision (else fp32)
ENGINES = {
    "local, straightforward": ("local", False),
    "local, fused": ("local", True),
    "local, fused, fp32": ("local", False),
    "local, loop": ("local", True),
    "coherent, straightforward": ("coherent", False),
    "coherent": ("coherent", True),
    "global, straightforward": ("global", False),
    "global": ("global", True),
    "local, DataLoader": ("local", False),
}


def engines(settings: Sequence[Setting], repeats: int = 3, names: Sequence[str] = tuple(ENGINES)) -> "pd.DataFrame":
    """Engines against the straightforward way of the same model: a row an engine, for each setting.

    Columns: images/s, ratio (to the straightforward way), GFLOP/s, share of the matrix-product ceiling of the
    precision that it computes in.  Each trains in a process of its own, as users have it.
    """
    import pandas as pd

    for name in names:
        checks.one_of("engine", name, ENGINES)
    best = choose_precision("auto", choose_device())
    top = {precision: ceiling(precision) for precision in {"fp32", best}}
    return pd.DataFrame([row for s in settings for row in _engines(s, best, top, repeats, names)])


@cache
def _task(s: Setting, engine: str) -> Callable[[], Any]:
    """An epoch of one of `ENGINES`; a process keeps what it needs."""
    data, whole, (model, best) = s.data(), [(slice(None),) * len(s.shape)], ENGINES[engine]
    recipe, plain = s.recipe(BEST if best else FP32), engine.endswith("straightforward")
    if model == "local":
        local = s.local()
        if engine in ("local, straightforward", "local, DataLoader"):
            way = straightforward if plain else with_dataloader
            nets = [local.subnet(i) for i in range(len(local))]
            return lambda: way(nets, local.decomposition.windows, data, recipe)
        return lambda: train_local(local, data, recipe, engine=engine.split(", ")[1], progress=False)
    network = s.network() if model == "global" else CNNDNN(s.local(), DenseAggregator(math.prod(s.parts), 10))
    if plain:
        nets = [network if model == "global" else _plain_coherent(network)]
        return lambda: straightforward(nets, whole, data, recipe)
    return lambda: fit(network, data, recipe, progress=False)


def _timed(s: Setting, engine: str) -> float:
    return _seconds(_task(s, engine), choose_device())


def _apart(s: Setting, engines: Sequence[str], repeats: int) -> dict[str, float]:
    """`compare` with a process for each engine: what one does to the memory is not the next one's."""
    with ExitStack() as stack:
        workers = partial(Workers, 1, torch.set_num_threads, torch.get_num_threads())
        own = {engine: stack.enter_context(workers()) for engine in engines}
        return _medians({engine: partial(_elsewhere, pool, s, engine) for engine, pool in own.items()}, repeats)


def _elsewhere(pool: Executor, s: Setting, engine: str) -> float:
    return pool.submit(_timed, s, engine).result()


def _engines(s: Setting, best: str, top: dict[str, float], repeats: int, names: Sequence[str]) -> list[dict[str, Any]]:
    flat = [name for name in names if name != "local, DataLoader" or len(s.shape) == 2]
    reference = {name: f"{ENGINES[name][0]}, straightforward" for name in flat}
    taken = _apart(s, list(dict.fromkeys([*reference.values(), *flat])), repeats)
    work = {
        "local": operations(s.local(), s.channels, *s.shape),
        "global": operations(s.network(), s.channels, *s.shape),
    }
    work["coherent"] = work["local"]
    rows = []
    for name in flat:
        model, precision = ENGINES[name][0], best if ENGINES[name][1] else "fp32"
        speed = s.images / taken[name] * work[model] / 1e9
        rows.append(
            {
                "images": "×".join(map(str, s.shape)),
                "grid": "×".join(map(str, s.parts)),
                "engine": name,
                "precision": precision,
                "images/s": s.images / taken[name],
                "ratio": taken[reference[name]] / taken[name],
                "GFLOP/s": speed,
                "share of ceiling": speed / top[precision],
            }
        )
    return rows


def training_time(settings: Sequence[Setting], repeats: int = 3) -> "pd.DataFrame":
    """Claim C4: seconds for 1,000 images of the global CNN, of one local CNN, of all, fused, and of the dense network.

    The global CNN is trained by the same engine in the same precision.  `longest local` is what N workers need,
    one for each local CNN; from it comes the parallel speed-up, from `fused` that of one machine.
    """
    import pandas as pd

    return pd.DataFrame([_training_time(s, repeats) for s in settings])


def _training_time(s: Setting, repeats: int) -> dict[str, Any]:
    data, network, local, recipe = s.data(), s.network(), s.local(), s.recipe(BEST)
    families = local.decomposition.families()
    model, p = CNNDNN(local, DenseAggregator(len(local), 10)), torch.rand(s.images, len(local), 10).softmax(-1)
    dense = replace(DENSE, batch_size=s.batch_size)

    def alone(index: int) -> Callable[[], Any]:
        one = local.part([index])
        return lambda: fit(one, data, recipe, progress=False)

    tasks: dict[str, Callable[[], Any]] = {
        "global": lambda: fit(network, data, recipe, progress=False),
        "fused": lambda: train_local(local, data, recipe, engine="fused", progress=False),
        "dense network": lambda: train_aggregator(model, data, dense, probabilities=p, progress=False),
    }
    tasks |= {f"local {k}": alone(family[0]) for k, family in enumerate(families)}
    taken = {name: seconds * 1000 / s.images for name, seconds in compare(tasks, repeats).items()}
    apart = [taken[f"local {k}"] for k in range(len(families))]
    work = operations(network, s.channels, *s.shape), operations(local, s.channels, *s.shape)
    return {
        "images": "×".join(map(str, s.shape)),
        "grid": "×".join(map(str, s.parts)),
        "overlap": s.overlap,
        "backbone": s.backbone,
        "width": s.width,
        "N": len(local),
        "global": taken["global"],
        "longest local": max(apart),
        "sum of locals": sum(len(family) * t for family, t in zip(families, apart, strict=True)),
        "fused": taken["fused"],
        "dense network": taken["dense network"],
        "parallel speed-up": taken["global"] / max(apart),
        "one-machine speed-up": taken["global"] / taken["fused"],
        "operations, global / local": work[0] * len(local) / work[1],
        "operations, global / all": work[0] / work[1],
    }


def machine() -> dict[str, Any]:
    """Provenance of a benchmark, and the matrix-product ceilings in GFLOP/s."""
    device = choose_device()
    facts = provenance(device.type, choose_precision("auto", device), time.time())
    return facts | {"ceiling": {p: round(ceiling(p), 1) for p in ("fp32", "bf16")}}


def save(folder: Path, facts: dict[str, Any], **tables: "pd.DataFrame") -> None:
    """Write NAME.csv for each table, and provenance.yaml: the machine, the commit, the repeats."""
    import yaml

    for name, table in tables.items():
        write_atomically(folder / f"{name}.csv", table.to_csv(index=False))
    write_atomically(folder / "provenance.yaml", yaml.safe_dump(facts))


def _plain_coherent(model: CNNDNN) -> nn.Module:
    """A plain coherent model of stand-alone local CNNs, as a careful user would write it."""
    return _PlainCoherent([model.local.subnet(i) for i in range(len(model.local))], model.local.decomposition.windows)


class _PlainCoherent(nn.Module):
    def __init__(self, nets: Sequence[Backbone], windows: Sequence[Any]):
        super().__init__()
        self.nets, self.windows = nn.ModuleList(nets), windows
        self.head = DenseAggregator(len(nets), nets[0].num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p = [net(x[(..., *window)]).softmax(1) for net, window in zip(self.nets, self.windows, strict=True)]
        return self.head(torch.stack(p, 1))


def settings(profile: str = "full", images: int = 1536) -> list[Setting]:
    """What the training-time table is measured on.

    "quick" is 2×2 and 4×4 on CIFAR-10-sized images, `images` of them; "full" adds 8×8, images of 160×160, volumes of
    32×32×16, and on the small images overlap and ResNet20.
    """
    checks.one_of("profile", profile, ("quick", "full"))
    checks.whole("images", images, 128)
    small = [Setting((32, 32), (k, k), images=images) for k in (2, 4, 8)]
    if profile == "quick":
        return small[:2]
    large = [Setting((160, 160), (k, k), images=96, batch_size=16) for k in (2, 4, 8)]
    thirds = [(2, 2, 1), (4, 4, 1), (4, 4, 2)]
    volume = Setting((32, 32, 16), backbone="cnn3d", channels=1, images=128, batch_size=16)
    volumes = [replace(volume, parts=parts) for parts in thirds]
    wider = [replace(s, overlap=4) for s in small[:2]]
    deeper = [replace(s, backbone="resnet20", width=8) for s in small[:2]]
    return small + large + volumes + wider + deeper
