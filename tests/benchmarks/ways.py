"""Ways to train N local CNNs at once that ddlib does not take, timed against the one it takes, and where time goes.

    python tests/benchmarks/ways.py results/bench

writes ways.csv and profile.csv.  A step is forward, backward and plain SGD on a batch that is there already; processes
are timed on whole epochs, since they share nothing.  Rates are medians over repeats in turn, ratios are to the first
of the same kind.
"""

import argparse
import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddlib import LocalCNNs, process_pool, train_local
from ddlib._internal.devices import autocast, choose_device
from ddlib._internal.files import writable_folder, write_atomically
from ddlib.cost.training_time import Setting, compare
from ddlib.images import prepare
from ddlib.training import cross_entropy

REPEATS, STEPS, EPOCHS = 5, 12, 3


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


def vmapped(nets: list[nn.Module], windows: list[Tensor], labels: Tensor) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """The sum of all losses, and the stacked weights that it depends on."""
    parameters, buffers = torch.func.stack_module_state(nets)
    base, x = copy.deepcopy(nets[0]).train(), torch.stack(windows)

    def loss(own: dict, kept: dict, image: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(base, (own, kept), (image,)).float(), labels)

    together = torch.func.vmap(loss, randomness="different")
    return lambda: together(parameters, buffers, x).sum(), list(parameters.values())


def steps(loss: Callable[[], Tensor], weights: list[Tensor], fast: bool = True) -> Callable[[], None]:
    """What is timed: so many steps, in bf16 where the device is fast at it."""
    device = choose_device()

    def run() -> None:
        for _ in range(STEPS):
            with autocast(device, "auto", torch.float32) if fast else nullcontext():
                value = loss()
            for gradient, w in zip(torch.autograd.grad(value, weights), weights, strict=True):
                w.data.add_(gradient, alpha=-0.01)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def ways(s: Setting) -> pd.DataFrame:
    split, device = s.data(), choose_device()
    local = s.local().to(device, memory_format=torch.channels_last).train()
    x, labels = prepare(split.images[: s.batch_size].to(device), split), split.labels[: s.batch_size].to(device)
    nets, windows = [local.subnet(i).train() for i in range(len(local))], local.decomposition.cut(x)

    def together(model: nn.Module) -> tuple[Callable[[], Tensor], list[Tensor]]:
        return lambda: cross_entropy(model(x), labels), list(model.parameters())

    def separate() -> Tensor:
        return sum(F.cross_entropy(net(w).float(), labels) for net, w in zip(nets, windows, strict=True))

    of_steps = {
        "grouped convolutions (ddlib)": steps(*together(local)),
        "one after another": steps(separate, [p for net in nets for p in net.parameters()]),
        "im2col and batched matrix product": steps(*together(unfolded(local))),
        "grouped, torch.compile": steps(*together(torch.compile(copy.deepcopy(local)))),
        "torch.func.vmap": steps(*vmapped(nets, windows, labels)),
        "torch.func.vmap, fp32": steps(*vmapped(nets, windows, labels), fast=False),
    }
    tables = [compared(of_steps, STEPS * s.batch_size)]
    if device.type == "cpu":
        recipe, threads = replace(s.recipe(), epochs=EPOCHS), torch.get_num_threads()
        with process_pool(1, threads) as own, process_pool(threads) as several:

            def epochs(engine: object, per_task: int = 1) -> Callable[[], object]:
                fresh = copy.deepcopy(local)
                return lambda: train_local(fresh, split, recipe, engine=engine, per_task=per_task, progress=False)

            of_epochs = {
                "grouped convolutions (ddlib), epochs": epochs("fused"),
                "in a process of its own, epochs": epochs(own, len(local)),
                f"{threads} processes with a thread each, epochs": epochs(several),
            }
            tables.append(compared(of_epochs, EPOCHS * len(split)))
    return pd.concat(tables).assign(parts="x".join(map(str, s.parts)))


def compared(tasks: dict[str, Callable[[], object]], images: int) -> pd.DataFrame:
    """Images per second of each, and its ratio to the first."""
    notes = {}
    for name, task in tasks.items():
        try:
            task()
        except Exception as error:  # no compiler, say: that is a result as well
            notes[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
    taken = compare({name: task for name, task in tasks.items() if name not in notes}, REPEATS)
    table = pd.DataFrame({"way": list(tasks)})
    rates = images / table["way"].map(taken)  # NaN where it failed
    return table.assign(
        images_per_second=rates.round(), ratio=(rates / rates[0]).round(2), note=table["way"].map(notes)
    )


def profiled(s: Setting) -> pd.DataFrame:
    """An epoch of fused training, after one to warm up: operators by their share of the time, those of 1 % and more."""
    local, split = s.local(), s.data()
    train_local(local, split, s.recipe(), engine="fused", progress=False)
    with torch.profiler.profile() as profile:
        train_local(local, split, s.recipe(), engine="fused", progress=False)
    spent = pd.Series({event.key: event.self_cpu_time_total for event in profile.key_averages()})
    shares = (100 * spent / spent.sum()).sort_values(ascending=False)
    parts = "x".join(map(str, s.parts))
    return shares[shares >= 1].round(1).rename_axis("operator").reset_index(name="share, %").assign(parts=parts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the tables")
    output = writable_folder(parser.parse_args().output)
    settings = [Setting(parts=parts) for parts in ((2, 2), (4, 4))]
    for name, table in {"profile": pd.concat(map(profiled, settings)), "ways": pd.concat(map(ways, settings))}.items():
        print(table.to_string(index=False))
        write_atomically(output / f"{name}.csv", table.to_csv(index=False))
