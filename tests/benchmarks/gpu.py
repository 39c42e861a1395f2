"""On a GPU: N local CNNs in each way that there is, a step as one CUDA graph and as usual, beside the global CNN.

    python tests/benchmarks/gpu.py results/bench/gpu

writes ways.csv and provenance.yaml: images per second of whole epochs but the first, in which the graph is made;
medians over rounds in turn, and the range.  "one local CNN" is what each of N cards would do; the ways below share
one card (claim C4).  With `--device cpu` the script can be tried: there are no graphs.

To see what a step waits for, train inside

    with torch.profiler.profile() as profile: ...
    profile.export_chrome_trace("trace.json")  # open it in chrome://tracing: gaps between kernels are Python
"""

import argparse
import os
from itertools import product
from pathlib import Path

import pandas as pd
import torch

from ddlib import fit, process_pool, train_local
from ddlib.cost.training_time import Setting, machine, save

WAYS = ("global", "one local CNN", "fused", "streams", "processes", "loop")


def seconds(way: str, s: Setting, graphs: bool, **recipe: object) -> float:
    """Of an epoch, the median over all but the first."""
    os.environ["DDLIB_CUDA_GRAPHS"] = str(int(graphs))  # for workers too
    data, recipe = s.data(), s.recipe(**recipe)
    if way == "processes":
        with process_pool(min(len(s.decomposition), 16)) as pool:
            taken = train_local(s.local(), data, recipe, engine=pool, progress=False)
        rounds = -(-len(s.decomposition) // 16)
        return rounds * taken["seconds_longest"][1:].median()
    if way in ("global", "one local CNN"):
        taken = fit(s.network() if way == "global" else s.local().part([0]), data, recipe, progress=False)
    else:
        taken = train_local(s.local(), data, recipe, engine=way, progress=False)
    return taken["seconds"][1:].median()


def speeds(s: Setting, rounds: int, **recipe: object) -> pd.DataFrame:
    """A row a way, with graphs and without: images/s, and how many times the usual step of "loop"."""
    kinds = list(product(WAYS, (True, False)))
    taken = pd.DataFrame([{kind: seconds(kind[0], s, kind[1], **recipe) for kind in kinds} for _ in range(rounds)])
    usual = taken["loop", False].median()
    return pd.DataFrame(
        {"images": "×".join(map(str, s.shape)), "width": s.width, "N": len(s.decomposition), "way": way}
        | {"graph": graphs, "images/s": s.images / times.median(), "lowest": s.images / times.max()}
        | {"highest": s.images / times.min(), "times the loop": usual / times.median(), "rounds": rounds}
        for (way, graphs), times in taken.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the table")
    parser.add_argument("--images", type=int, default=5120, help="random images an epoch (default 5120)")
    parser.add_argument("--epochs", type=int, default=4, help="timed but for the first (default 4)")
    parser.add_argument("--rounds", type=int, default=3, help="timings are medians over so many (default 3)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 96], help="pixels a side (default 32 64 96)")
    parser.add_argument("--grids", type=int, nargs="+", default=[2, 4, 8], help="k for k×k windows (default 2 4 8)")
    parser.add_argument("--device", default="cuda", help="default cuda")
    given = parser.parse_args()
    if given.device != "cpu" and not torch.cuda.is_available():
        parser.error("a GPU with CUDA is needed, none is there.")
    tables = []
    for size, k in product(given.sizes, given.grids):
        setting = Setting((size, size), (k, k), images=given.images, batch_size=256)
        tables.append(speeds(setting, given.rounds, device=given.device, epochs=given.epochs))
        print(tables[-1].to_string(index=False, float_format="{:.3g}".format), flush=True)
        save(given.output, machine(), ways=pd.concat(tables, ignore_index=True))  # what is done is kept


if __name__ == "__main__":
    main()
