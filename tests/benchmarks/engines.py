"""The engines against the straightforward way, which is what a careful user would write, and the machine's ceiling.

    python tests/benchmarks/engines.py results/bench

writes engines.csv and provenance.yaml: images per second of whole epochs, medians over repeats in turn after a warm-up.
Each engine trains in a process of its own, as users have it: what one does to the memory is not the next one's.

The C library (glibc) hands freed memory back to the system.  What that costs: run it in turn as it is, and after

    export MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=2146435072

which keeps the memory; provenance.yaml says what was set.
"""

import argparse
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache, partial
from multiprocessing import get_all_start_methods
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.benchmark import Timer
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image

from ddlib import CNNDNN, DenseAggregator, LocalCNNs, Split, checks, fit, process_pool, train_local
from ddlib._internal.devices import choose_device
from ddlib.cost.training_time import Setting, compare, machine, operations, save, settings

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

# ── the straightforward way ───────────────────────────────────────────────────────────────────────────────────


def straightforward(nets: Sequence[nn.Module], windows: Sequence[Any], split: Split, size: int) -> None:
    """One epoch of each network on its window, one after another: fp32, default memory format, tensors in memory."""
    for net, window in zip(nets, windows, strict=True):
        train(net, augmented(split, window, size))


def train(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    net.train()
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()


def augmented(split: Split, window: Any, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of windows, cut from images that were mirrored and shifted by up to an eighth."""
    shape = split.images.shape[2:]
    mean, std = (values.view(-1, *(1,) * len(shape)) for values in (split.mean, split.std))
    reach = [length // 8 for length in shape]
    order = torch.randperm(len(split))
    for start in range(0, len(split) - size + 1, size):
        chosen = order[start : start + size]
        x = split.images[chosen]
        for axis in split.flip_axes:
            mirrored = torch.rand(size, *(1,) * (x.ndim - 1)) < 0.5
            x = torch.where(mirrored, x.flip(2 + axis), x)
        x = F.pad(x, [r for r in reversed(reach) for _ in range(2)])
        corners = torch.stack([torch.randint(0, 2 * r + 1, (size,)) for r in reach], 1).tolist()
        crops = [[slice(c, c + n) for c, n in zip(corner, shape, strict=True)] for corner in corners]
        x = torch.stack([image[(slice(None), *crop)] for image, crop in zip(x, crops, strict=True)])
        yield (x[(..., *window)].float() / 255 - mean) / std, split.labels[chosen]


class Photos(Dataset):
    """The same image by image, with torchvision's transforms (2-D)."""

    def __init__(self, photos: Sequence[tuple[Any, int]], split: Split, window: Any):
        shape = split.images.shape[2:]
        steps = [
            transforms.RandomHorizontalFlip(),
            transforms.RandomCrop(shape, padding=[length // 8 for length in reversed(shape)]),
            transforms.ToTensor(),
            transforms.Normalize(split.mean.tolist(), split.std.tolist()),
        ]
        self.photos, self.transform, self.window = photos, transforms.Compose(steps), window

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        photo, label = self.photos[index]
        return self.transform(photo)[(..., *self.window)], label


def loaders(split: Split, windows: Sequence[Any], size: int) -> list[DataLoader]:
    """A `DataLoader` with two workers for each window."""
    fork = "fork" if "fork" in get_all_start_methods() else None  # the start that costs it least
    options = {"shuffle": True, "drop_last": True, "num_workers": 2, "multiprocessing_context": fork}
    photos = [(to_pil_image(x), int(y)) for x, y in zip(split.images, split.labels, strict=True)]
    return [DataLoader(Photos(photos, split, window), size, **options) for window in windows]


class PlainCoherent(nn.Module):
    """A coherent model of stand-alone local CNNs."""

    def __init__(self, local: LocalCNNs):
        super().__init__()
        self.nets = nn.ModuleList(local.subnet(i) for i in range(len(local)))
        self.windows, self.head = local.decomposition.windows, DenseAggregator(len(local), local.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        p = [net(x[(..., *window)]).softmax(1) for net, window in zip(self.nets, self.windows, strict=True)]
        return self.head(torch.stack(p, 1))


# ── what is timed ─────────────────────────────────────────────────────────────────────────────────────────────


@cache
def epoch_of(s: Setting, engine: str) -> tuple[list[nn.Module], Callable[[], Any]]:
    """The networks of an engine, and what trains them for an epoch; a process keeps what it needs."""
    (model, best), split, local = ENGINES[engine], s.data(), s.local()
    recipe = s.recipe(precision="auto" if best else "fp32")
    if engine in ("local, fused", "local, fused, fp32", "local, loop"):
        return [local], partial(train_local, local, split, recipe, engine=engine.split(", ")[1], progress=False)
    if engine in ("global", "coherent"):
        network = s.network() if model == "global" else CNNDNN(local, DenseAggregator(len(local), 10))
        return [network], partial(fit, network, split, recipe, progress=False)
    if model == "local":
        nets, windows = [local.subnet(i) for i in range(len(local))], local.decomposition.windows
    else:
        nets, windows = [s.network() if model == "global" else PlainCoherent(local)], [(slice(None),) * len(s.shape)]
    if engine == "local, DataLoader":
        own = loaders(split, windows, s.batch_size)
        return nets, lambda: [train(net, loader) for net, loader in zip(nets, own, strict=True)]
    return nets, partial(straightforward, nets, windows, split, s.batch_size)


def run(s: Setting, engine: str) -> None:
    epoch_of(s, engine)[1]()


def ceiling(precision: str, size: int = 1024) -> float:
    """The measured speed of a large matrix product on this device, in GFLOP/s."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(size, size, device=choose_device(), dtype=dtype)
    timer = Timer("a @ a", globals={"a": a}, num_threads=torch.get_num_threads())
    return 2 * size**3 / 1e9 / min(timer.blocked_autorange(min_run_time=1).times)


def engines(s: Setting, best: str, ceilings: dict[str, float], repeats: int = 3) -> pd.DataFrame:
    """A row an engine: images/s, ratio (to the straightforward way of its model), GFLOP/s, share of the ceiling."""
    threads = torch.get_num_threads()
    with ExitStack() as stack:
        pools = {engine: stack.enter_context(process_pool(1, threads)) for engine in ENGINES}
        tasks = {engine: lambda e=engine: pools[e].submit(run, s, e).result() for engine in ENGINES}
        taken = compare(tasks, repeats)
    work = {"local": operations(s.local(), s.channels, *s.shape)}
    work |= {"coherent": work["local"], "global": operations(s.network(), s.channels, *s.shape)}
    rows = []
    for engine, (model, fast) in ENGINES.items():
        precision, speed = best if fast else "fp32", s.images / taken[engine] * work[model] / 1e9
        rows.append(
            {
                "images": "×".join(map(str, s.shape)),
                "grid": "×".join(map(str, s.parts)),
                "engine": engine,
                "precision": precision,
                "images/s": s.images / taken[engine],
                "ratio": taken[f"{model}, straightforward"] / taken[engine],
                "GFLOP/s": speed,
                "share of ceiling": speed / ceilings[precision],
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the table")
    parser.add_argument("--images", type=int, default=6144, help="random images of 32×32 an epoch (default 6144)")
    parser.add_argument("--repeats", type=int, default=3, help="timings are medians over so many (default 3)")
    given = parser.parse_args()
    checks.integer("repeats", given.repeats, 1)
    timed = settings("quick", given.images)
    facts = machine()
    ceilings = {precision: ceiling(precision) for precision in dict.fromkeys(("fp32", facts["precision"]))}
    malloc = {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}
    facts |= {"images": given.images, "repeats": given.repeats, "ceiling": ceilings, "malloc": malloc}
    table = pd.concat([engines(s, facts["precision"], ceilings, given.repeats) for s in timed], ignore_index=True)
    print(table.to_string(index=False, float_format="{:.3g}".format))
    save(given.output, facts, engines=table)


if __name__ == "__main__":
    main()
