"""On a GPU: local CNNs fused against one after another, each as it is and with CUDA graphs.

    python tests/benchmarks/gpu.py results/bench/gpu

writes speeds.csv and provenance.yaml: images per second of whole epochs, medians over repeats in turn after a warm-up.

A small network leaves a GPU waiting for Python: a step of VGG9 launches some 300 kernels of a few microseconds each.
Nothing else makes it wait: the images, an epoch's order and its moves lie on the card, losses are read once an epoch.
To see it, train a few epochs inside

    with torch.profiler.profile() as profile: ...
    profile.export_chrome_trace("trace.json")  # open it in chrome://tracing: gaps between kernels are Python

Fusing hands one kernel the work of N networks; a CUDA graph launches a whole pass at once.
"""

import argparse
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from ddlib import LocalCNNs, fit, train_local
from ddlib._internal.devices import choose_device
from ddlib.cost.training_time import Setting, compare, machine, save
from ddlib.images import memory_format, prepare


def graphed(s: Setting, local: LocalCNNs) -> torch.nn.Module:
    """Local CNNs whose forward and backward passes are a CUDA graph each."""
    split, device = s.data(), choose_device("cuda")
    local.to(device, memory_format=memory_format(len(s.shape))).train()
    sample = prepare(split.images[: s.batch_size].to(device), split)
    with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):  # a graph cannot keep copies of the weights
        return torch.cuda.make_graphed_callables(local, (sample,))


def speeds(s: Setting, repeats: int) -> pd.DataFrame:
    """A row a way: images/s, and the ratio to one after another."""
    data, recipe = s.data(), s.recipe()
    tasks = {
        "one after another": partial(train_local, s.local(), data, recipe, engine="loop", progress=False),
        "fused": partial(train_local, s.local(), data, recipe, engine="fused", progress=False),
        "fused, CUDA graphs": partial(fit, graphed(s, s.local()), data, recipe, progress=False),
        "global": partial(fit, s.network(), data, recipe, progress=False),
    }
    taken = compare(tasks, repeats)
    return pd.DataFrame(
        {"images": "×".join(map(str, s.shape)), "width": s.width, "N": len(s.decomposition), "way": way}
        | {"images/s": s.images / seconds, "ratio": taken["one after another"] / seconds}
        for way, seconds in taken.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the table")
    parser.add_argument("--images", type=int, default=2560, help="random images of 64×64 an epoch (default 2560)")
    parser.add_argument("--repeats", type=int, default=3, help="timings are medians over so many (default 3)")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("a GPU with CUDA is needed, none is there.")
    timed = [Setting((64, 64), (k, k), width=64, images=given.images) for k in (2, 4, 8)]
    table = pd.concat([speeds(s, given.repeats) for s in timed], ignore_index=True)
    print(table.to_string(index=False, float_format="{:.3g}".format))
    save(given.output, machine() | {"repeats": given.repeats}, speeds=table)


if __name__ == "__main__":
    main()
