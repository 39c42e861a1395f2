"""Ways to train N local CNNs at once that ddlib does not take, timed against the one it takes, and where time goes.

    python tests/bench_ways.py results/bench

writes ways.csv and profile.csv.  A step is forward, backward and plain SGD on a batch that is there already; processes
are timed on whole epochs, since they share nothing.  Rates are medians over repeats in turn, ratios are to the first
of the same kind.
"""

import copy
import os
import sys
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch
from ddlib.allocator import memory_kept
from torch import Tensor, nn
from torch.nn import functional as F

from ddlib.cost import training_time as bench
from ddlib.devices import autocast, choose_device
from ddlib.engines import process_pool, train_local
from ddlib.files import write_atomically
from ddlib.images import prepare
from ddlib.local import LocalCNNs
from ddlib.training import cross_entropy

REPEATS, STEPS = 5, 12
RATE = 0.01


def steps(forward: Callable[[], Tensor], weights: list[Tensor]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(STEPS):
            for gradient, w in zip(torch.autograd.grad(forward(), weights), weights, strict=True):
                w.data.add_(gradient, alpha=-RATE)

    return run


class Unfolded(nn.Module):
    """A grouped convolution as im2col and one batched matrix product."""

    def __init__(self, layer: nn.Conv2d):
        super().__init__()
        self.weight, self.groups = layer.weight, layer.groups

    def forward(self, x: Tensor) -> Tensor:
        columns = F.unfold(x.contiguous(), 3, padding=1).unflatten(1, (self.groups, -1))  # (B, G, c·9, pixels)
        weight = self.weight.to(columns.dtype).flatten(1).unflatten(0, (self.groups, -1))  # (G, o, c·9)
        y = torch.bmm(weight, columns.permute(1, 2, 0, 3).flatten(2))  # (G, o, B · pixels)
        return y.unflatten(2, (len(x), -1)).permute(2, 0, 1, 3).flatten(1, 2).unflatten(2, x.shape[2:])


def unfolded(local: LocalCNNs) -> LocalCNNs:
    local = copy.deepcopy(local)
    for module in list(local.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, nn.Conv2d) and set(layer.kernel_size) == {3}:
                setattr(module, name, Unfolded(layer))
    return local


def vmapped(local: LocalCNNs, windows: list[Tensor], labels: Tensor) -> Callable[[], None]:
    nets = [local.subnet(i) for i in range(len(local))]
    parameters, buffers = torch.func.stack_module_state(nets)
    base = copy.deepcopy(nets[0]).train()
    x = torch.stack(windows)

    def one(own: dict, kept: dict, image: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(base, (own, kept), (image,)).float(), labels)

    def loss() -> Tensor:
        return torch.func.vmap(one, randomness="different")(parameters, buffers, x).sum()

    return steps(loss, list(parameters.values()))


def ways(setting: bench.Setting) -> pd.DataFrame:
    data, device = setting.data(), choose_device()
    local = setting.local().to(device, memory_format=torch.channels_last).train()
    x = prepare(data.train.images[: setting.batch_size].to(device), data.train)
    labels = data.train.labels[: setting.batch_size].to(device)
    nets, windows = [local.subnet(i).train() for i in range(len(local))], local.decomposition.cut(x)
    cast = autocast(device, "auto", torch.float32)
    matrix, compiled = unfolded(local), torch.compile(copy.deepcopy(local))

    def within(loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with cast:
                return loss()

        return run

    def loss_of(model: nn.Module) -> Callable[[], Tensor]:
        return within(lambda: cross_entropy(model(x), labels))

    def one_by_one() -> Tensor:
        return sum(F.cross_entropy(net(w).float(), labels) for net, w in zip(nets, windows, strict=True))

    def in_bf16(run: Callable[[], None]) -> Callable[[], None]:
        def run_so() -> None:
            with cast:
                run()

        return run_so

    own = [p for net in nets for p in net.parameters()]
    tried = {
        "grouped convolutions (ddlib)": steps(loss_of(local), list(local.parameters())),
        "one after another": steps(within(one_by_one), own),
        "im2col and batched matrix product": steps(loss_of(matrix), list(matrix.parameters())),
        "grouped, torch.compile": steps(loss_of(compiled), list(compiled.parameters())),
        "torch.func.vmap": in_bf16(vmapped(local, windows, labels)),
        "torch.func.vmap, fp32": vmapped(local, windows, labels),
    }
    with memory_kept():
        of_steps = compared(tried, STEPS * setting.batch_size)
    recipe = replace(setting.recipe(bench.BEST), epochs=3)

    def epochs(engine: str | Executor, per_task: int = 1) -> Callable[[], None]:
        return lambda: train_local(
            copy.deepcopy(local).cpu(), data, recipe, engine=engine, per_task=per_task, progress=False
        )

    whole, threads = {"grouped convolutions (ddlib), epochs": epochs("fused")}, torch.get_num_threads()
    if device.type == "cpu":
        usual = ProcessPoolExecutor(1, get_context("spawn"), usual_allocator, (threads,))
        whole["in a process of its own, epochs"] = epochs(process_pool(1, threads), len(local))
        whole["in a process of its own, without allocator.py, epochs"] = epochs(usual, len(local))
        whole[f"{threads} processes with a thread each, epochs"] = epochs(process_pool(threads))
    return pd.concat([of_steps, compared(whole, recipe.epochs * len(data.train))]).assign(
        parts="x".join(map(str, setting.parts))
    )


def usual_allocator(threads: int) -> None:
    os.environ["MALLOC_ARENA_MAX"] = "8"  # ddlib leaves the allocator alone where any of these is set
    torch.set_num_threads(threads)


def compared(tasks: dict[str, Callable[[], None]], images: int) -> pd.DataFrame:
    """Images per second of each, and its ratio to the first."""
    notes = {}
    for name, task in tasks.items():
        try:
            task()
        except Exception as error:  # no compiler, say: that is a result as well
            notes[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
    taken = bench.compare({name: task for name, task in tasks.items() if name not in notes}, REPEATS)
    rates = {name: images / seconds for name, seconds in taken.items()}
    first = rates[next(iter(tasks))]
    rows = [
        {"way": name, "images_per_second": round(rates[name]), "ratio": round(rates[name] / first, 2)}
        if name in rates
        else {"way": name, "note": notes[name]}
        for name in tasks
    ]
    return pd.DataFrame(rows)


def profiled(setting: bench.Setting) -> pd.DataFrame:
    """An epoch of fused training, after one to warm up: operators by their share of the time, those of 1 % and more."""
    local, data, recipe = setting.local(), setting.data(), setting.recipe(bench.BEST)
    train_local(local, data, recipe, engine="fused", progress=False)
    with torch.profiler.profile() as profile:
        train_local(local, data, recipe, engine="fused", progress=False)
    spent = pd.Series({event.key: event.self_cpu_time_total for event in profile.key_averages()})
    shares = (100 * spent / spent.sum()).sort_values(ascending=False)
    parts = "x".join(map(str, setting.parts))
    return shares[shares >= 1].round(1).rename_axis("operator").reset_index(name="share, %").assign(parts=parts)


if __name__ == "__main__":
    settings = [bench.Setting(parts=parts) for parts in ((2, 2), (4, 4))]
    tables = {"profile": pd.concat(map(profiled, settings)), "ways": pd.concat(map(ways, settings))}
    for name, table in tables.items():
        print(table.to_string(index=False))
        if len(sys.argv) > 1:
            write_atomically(Path(sys.argv[1]) / f"{name}.csv", table.to_csv(index=False))
