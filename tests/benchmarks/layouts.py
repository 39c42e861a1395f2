"""One grouped 3×3 convolution, forward and backward, in each precision and layout: which is fastest for which shape?

    python tests/benchmarks/layouts.py results/bench/layouts

writes layouts.csv and provenance.yaml: milliseconds, medians of rounds in turn after a warm-up, at 128 images a step.
The shapes are those of VGG9 of width 64 on 32×32 images, cut 2×2 (4 groups) and 4×4 (16).
"""

import argparse
from itertools import product
from pathlib import Path
from statistics import median
from timeit import timeit

import pandas as pd
import torch
from torch import nn

from ddlib.cost.training_time import machine, save
from ddlib.networks.convolution import CONV

SHAPES = [
    (64, 16, 4),
    (128, 8, 4),
    (256, 4, 4),
    (64, 8, 16),
    (128, 4, 16),
    (256, 2, 16),
    (512, 2, 16),
]  # channels, window, groups
BATCH = 128


def step(channels: int, window: int, groups: int, layer: type[nn.Conv2d], bf16: bool, last: bool):
    """A forward and backward pass."""
    layout = torch.channels_last if last else torch.contiguous_format
    own = layer(channels, channels, 3, padding=1, groups=groups).to(memory_format=layout)
    x = torch.randn(BATCH, channels, window, window).contiguous(memory_format=layout).requires_grad_()
    inputs = x.detach().bfloat16().requires_grad_() if bf16 else x
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        upstream = torch.randn_like(own(inputs))

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = own(inputs)
        torch.autograd.grad(y, [inputs, own.weight], upstream)

    return run


def layouts(rounds: int) -> pd.DataFrame:
    rows = []
    for channels, window, groups in SHAPES:
        kinds = {
            f"{'bf16' if bf16 else 'fp32'}, {'channels-last' if last else 'plain'}": step(
                channels, window, groups, nn.Conv2d, bf16, last
            )
            for bf16, last in product((True, False), (True, False))
        }
        kinds["ddlib"] = step(channels, window, groups, CONV[2], True, True)
        taken = [{name: timeit(run, number=5) / 5 for name, run in kinds.items()} for _ in range(1 + rounds)][1:]
        row = {"channels": channels, "window": f"{window}×{window}", "groups": groups}
        rows.append(row | {name: round(1000 * median(t[name] for t in taken), 2) for name in kinds})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the table")
    parser.add_argument("--rounds", type=int, default=9, help="timings are medians over so many (default 9)")
    given = parser.parse_args()
    table = layouts(given.rounds)
    print(table.to_string(index=False))
    save(given.output, machine() | {"rounds": given.rounds, "batch_size": BATCH}, layouts=table)


if __name__ == "__main__":
    main()
