"""ddlib against what one would use instead, and what data-parallel training would cost on more workers, on paper.

    python tests/benchmarks/alternatives.py results/bench/alternatives          # about six minutes on two quiet cores
    python tests/benchmarks/alternatives.py results/bench/alternatives --paper  # only the paper, from what was timed

writes alternatives.csv (seconds for 1,000 images: medians over repeats in turn after a warm-up, and their extremes),
on_paper.csv, a figure and provenance.yaml.  On the CPU: VGG9, random images of 32×32.  Whatever is timed has a process
of its own, and its images, networks and optimisers are made before.

The alternatives are those of `plain.py`.  Lightning is timed where it is installed (`pip install lightning`).  HFTA is
not in the package index; its way, grouped convolutions and batched products, is timed as written there.
"""

import argparse
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from tempfile import mkdtemp
from timeit import timeit
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from matplotlib.ticker import LogLocator
from plain import K, Step, batches, grouped, lightning, one_by_one, single, vmapped
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from ddlib import LocalCNNs, Split, checks, fit, process_pool, train_local
from ddlib._internal.devices import choose_precision
from ddlib._internal.files import write_atomically
from ddlib.cost.training_time import Setting, machine, save
from ddlib.report import figures

CPU = torch.device("cpu")
TOTAL, EPOCH = 512, 50_000  # on paper: images a step of all workers together, and an epoch
LINKS = {1: 50e-6, 10: 20e-6, 100: 2e-6}  # Gbit/s → seconds that a message takes at least: assumed, not measured
SIDES = (2, 4, 8, 16)  # of the grids, a worker for each window
WIDTHS = ("proportional", "full")

# ── what is timed: a task a way, made once in the process that carries it out ─────────────────────────────────

LOCAL = {  # way → how its step is made (None: ddlib's own engine), and whether in the best precision (else fp32)
    "plain loop": (one_by_one, False),
    "plain loop, channels-last": (one_by_one, True),
    "torch.func.vmap": (vmapped, False),
    "torch.func.vmap, norms in fp32": (vmapped, True),
    "HFTA's way": (grouped, False),
    "HFTA's way, channels-last": (grouped, True),
    "ddlib, fused in fp32": (None, False),
    "ddlib, fused": (None, True),
}
GLOBAL = {
    "PyTorch script, channels-last": True,
    "PyTorch script": False,
    "Lightning": False,
    "Lightning, channels-last": True,
    "ddlib.fit in fp32": False,
    "ddlib.fit": True,
}


@cache
def local_epoch(s: Setting, way: str) -> Callable[[], Any]:
    (make, best), local, split = LOCAL[way], s.local(), s.data()
    if make is None:
        recipe = s.recipe(precision="auto" if best else "fp32")
        return lambda: train_local(local, split, recipe, engine="fused", progress=False)
    return epoch_of(make(local, best and bf16()), split, s.batch_size)


@cache
def global_epoch(s: Setting, way: str) -> Callable[[], Any]:
    best, split = GLOBAL[way], s.data()
    if way.startswith("Lightning"):
        return lightning(s, best and bf16())
    if way.startswith("PyTorch"):
        return epoch_of(single(s.width, best and bf16()), split, s.batch_size)
    network, recipe = s.network(), s.recipe(precision="auto" if best else "fp32")
    return lambda: fit(network, split, recipe, progress=False)


def epoch_of(step: Step, split: Split, size: int) -> Callable[[], Any]:
    return lambda: [step(x, y) for x, y in batches(split, size)]


def bf16() -> bool:
    return choose_precision("auto", CPU) == "bf16"


@cache
def replica_epoch(s: Setting, rank: int, ranks: int, store: str) -> Callable[[], float]:
    """An epoch of the global CNN on one rank: bytes of gradients that it hands to the all-reduce, a step."""
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
    handed, share = [], s.batch_size // ranks

    def counted(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        handed.append(bucket.buffer().nbytes)
        return allreduce_hook(state, bucket)

    warnings.simplefilter("ignore", FutureWarning)  # of a name that is not in all versions yet
    replica = DistributedDataParallel(s.network().to(memory_format=torch.channels_last), broadcast_buffers=False)
    replica.register_comm_hook(None, counted)
    recipe, steps = replace(s.recipe(), batch_size=share), s.images // s.batch_size
    own = s.data().some(torch.arange(rank, s.images, ranks)[: steps * share])

    def epoch() -> float:
        handed.clear()
        fit(replica, own, recipe, progress=False)
        return sum(handed) / steps

    return epoch


@cache
def part_epoch(s: Setting, width: str) -> Callable[[], Any]:
    """An epoch of the first local CNN, which sends nothing."""
    local = LocalCNNs("vgg9", s.decomposition, in_channels=3, num_classes=K, width=s.width, local_width=width)
    part, split, recipe = local.part([0]), s.data(), s.recipe()
    return lambda: fit(part, split, recipe, progress=False)


@cache
def share_epoch(s: Setting) -> Callable[[], Any]:
    """The global CNN on the images that one of many ranks has of a batch."""
    network, split, recipe = s.network(), s.data(), s.recipe()
    return lambda: fit(network, split, recipe, progress=False)


def call(make: Callable[..., Callable[[], Any]], *given: Any) -> float | None:
    """In a worker, which keeps what `make` gives: an epoch, and the bytes that it has counted."""
    counted = make(*given)()
    return counted if isinstance(counted, float) else None


Row = tuple[dict[str, str], list[tuple[Any, ...]]]  # what it is called, and for each process `call`'s arguments


def table(s: Setting, rows: list[Row], repeats: int, threads: int = 1, shared: bool = False) -> pd.DataFrame:
    """Seconds for 1,000 images of each row, and how many times as fast as the first.

    Each call has a process of its own with so many threads, or all rows have one (`shared`; they are not compared);
    the calls of a row run at the same time.
    """
    tasks, sent, notes = {}, {}, {}
    with ExitStack() as stack:
        fresh = lambda: stack.enter_context(process_pool(1, threads))  # noqa: E731
        one = fresh() if shared else None
        for row, (_, calls) in enumerate(rows):
            pools = [one or fresh() for _ in calls]
            tasks[row] = partial(together, pools, calls)
            try:
                (sent[row], *_) = tasks[row]()  # warms up
            except Exception as error:  # what is not installed, or cannot be computed: that is a result as well
                notes[row] = f"not run: {type(error).__name__}: {str(error).splitlines()[0][:90]}"
                del tasks[row]
        taken = [{row: timeit(task, number=1) for row, task in tasks.items()} for _ in range(repeats)]
    frame, seconds = pd.DataFrame([named for named, _ in rows]), pd.DataFrame(taken) * 1000 / s.images
    frame = frame.assign(seconds=seconds.median(), low=seconds.min(), high=seconds.max())
    frame["ratio"] = np.nan if shared else frame["seconds"][0] / frame["seconds"]
    frame["bytes a step"] = pd.Series(sent, dtype=float)
    note = pd.Series(notes, dtype=object)
    return frame.assign(processes=[len(calls) for _, calls in rows], threads=threads, n=repeats, note=note)


def together(pools: list[Executor], calls: list[tuple[Any, ...]]) -> list[float | None]:
    futures = [pool.submit(call, *given) for pool, given in zip(pools, calls, strict=True)]
    return [future.result() for future in futures]


def tables(images: int, repeats: int) -> Iterator[pd.DataFrame]:
    """Every comparison in turn."""
    s, threads = Setting(images=images), torch.get_num_threads()

    def named(comparison: str, way: str, own: Setting, best: bool = True) -> dict[str, str]:
        sizes = {"images": times(own.shape), "grid": times(own.parts)}
        return {"comparison": comparison, **sizes, "way": way, "precision": "bf16" if best and bf16() else "fp32"}

    for own in (replace(s, parts=(2, 2)), replace(s, parts=(4, 4))):
        rows = [(named("local CNNs", way, own, best), [(local_epoch, own, way)]) for way, (_, best) in LOCAL.items()]
        yield table(s, rows, repeats, threads)
    whole = replace(s, parts=(1, 1))
    rows = [(named("global CNN", way, whole, best), [(global_epoch, s, way)]) for way, best in GLOBAL.items()]
    yield table(s, rows, repeats, threads)
    store, two = (Path(mkdtemp()) / "store").as_uri(), replace(s, parts=(1, 2))
    ranks = [(replica_epoch, s, rank, 2, store) for rank in range(2)]
    rows = [(named("two processes", "data-parallel, global CNN", whole), ranks)]
    rows += [(named("two processes", f"local CNNs, {width}", two), [(part_epoch, two, width)] * 2) for width in WIDTHS]
    yield table(s, rows, repeats)
    for side, some in ((32, TOTAL), (160, TOTAL // 4)):
        one, rows = replace(s, shape=(side, side), images=some), []
        for k in SIDES:
            own, share = replace(one, parts=(k, k)), replace(one, batch_size=TOTAL // k**2)
            rows.append((named("a worker", "global CNN", own), [(share_epoch, share)]))
            rows += [(named("a worker", f"local CNN, {width}", own), [(part_epoch, own, width)]) for width in WIDTHS]
        yield table(one, rows, repeats, shared=True)


def times(sizes: tuple[int, ...]) -> str:
    return "×".join(map(str, sizes))


# ── on paper ──────────────────────────────────────────────────────────────────────────────────────────────────


def on_paper(measured: pd.DataFrame) -> pd.DataFrame:
    """Seconds of an epoch with a worker for each window: data-parallel over three links, and local CNNs.

    A worker is one core of the machine that was timed.  A ring of R ranks all-reduces s bytes in 2 (R − 1) messages
    of s / R; the gradients travel after the backward pass, or, `overlapped`, all of them behind it: the bound.
    """
    sent = measured.set_index("way")["bytes a step"]["data-parallel, global CNN"]
    alone = measured[measured["comparison"] == "a worker"]
    timed = alone.set_index(["images", "grid", "way"])["seconds"].sort_index()
    rows = []
    for images, k in product(alone["images"].unique(), SIDES):
        own, ranks, steps = timed[images, times((k, k))], k**2, EPOCH // TOTAL
        step = TOTAL / ranks * own["global CNN"] / 1000
        locals_ = {way: EPOCH / 1000 * own[way] for way in own.index if way.startswith("local")}
        for link, latency in LINKS.items():
            reduce = 2 * (ranks - 1) * (latency + sent / ranks / (link * 1e9 / 8))
            both = {"data-parallel": steps * (step + reduce), "data-parallel, overlapped": steps * max(step, reduce)}
            sizes = {"images": images, "workers": ranks, "Gbit/s": link, "latency": latency}
            rows.append({**sizes, "step": step, "all-reduce": reduce, **both, **locals_})
    return pd.DataFrame(rows)


def drawn(paper: pd.DataFrame) -> plt.Figure:
    """A panel a size of images: data-parallel training as a band for each link, from the bound to no overlap at all."""
    figures.use_style()
    kinds = paper["images"].unique()
    figure, axes = plt.subplots(1, len(kinds), figsize=(3.5 * len(kinds), 3.8), squeeze=False)
    for ax, images in zip(axes[0], kinds, strict=True):
        own = paper[paper["images"] == images]
        for (link, some), line in zip(own.groupby("Gbit/s"), (":", "--", "-"), strict=True):
            bound, colour = some["data-parallel, overlapped"], figures.style_of("global")[0]
            ax.plot(some["workers"], bound, line, color=colour, label=f"data-parallel, {link} Gbit/s")
            ax.fill_between(some["workers"], bound, some["data-parallel"], color=colour, alpha=0.12, linewidth=0)
        for width, stage in zip(WIDTHS, ("local", "transfer"), strict=True):
            colour, marker = figures.style_of(stage)
            label = f"local CNNs, {width} width"
            ax.plot(some["workers"], some[f"local CNN, {width}"], marker=marker, color=colour, label=label)
        ax.set(xscale="log", yscale="log", xlabel="workers, a core each", title=f"images of {images}")
        ax.set_xticks(some["workers"], some["workers"])
        ax.minorticks_off()
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:,g}")
        ax.legend()
    axes[0, 0].set_ylabel(f"seconds, {EPOCH:,} images")
    figures.one_legend(figure, axes[0], 3)
    return figure


def timed(images: int, repeats: int, note: str, folder: Path) -> pd.DataFrame:
    """All tables as one, written after each."""
    facts, parts = machine() | {"images": images, "repeats": repeats, "note": note}, []
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning") if find_spec(name))
    for part in tables(images, repeats):
        print(part.to_string(index=False, float_format="{:.3g}".format), flush=True)
        parts.append(part.assign(note=part["note"].fillna(note), machine=facts["device"], versions=versions))
        found = pd.concat(parts, ignore_index=True)
        save(folder, facts, alternatives=found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the tables")
    parser.add_argument("--images", type=int, default=3072, help="random images of 32×32 an epoch (default 3072)")
    parser.add_argument("--repeats", type=int, default=3, help="timings are medians over so many (default 3)")
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--paper", action="store_true", help="time nothing: take alternatives.csv as it is")
    given = parser.parse_args()
    checks.integer("repeats", given.repeats, 1)
    if given.paper:
        measured = pd.read_csv(given.output / "alternatives.csv")
    else:
        measured = timed(given.images, given.repeats, given.note, given.output)
    paper = on_paper(measured)
    write_atomically(given.output / "on_paper.csv", paper.to_csv(index=False))
    print(paper.to_string(index=False, float_format="{:.3g}".format))
    figures.save(drawn(paper), given.output, "on_paper")


if __name__ == "__main__":
    main()
