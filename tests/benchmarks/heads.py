"""Which dense network?  One form for all data sets, chosen on images that the local CNNs did not see.

    python tests/benchmarks/heads.py results/heads --seeds 0 1 2

writes heads.csv, a row a head, data set and seed; summary.csv, the best ones by their mean rank on held-out images and
the named ones beside them; options.csv, what each option is worth.  Test images are shown, and decide nothing.

Local CNNs are trained on nine tenths of the training images, dense networks on what they say of the very same images.
Local probabilities are kept in runs/heads, beside the checkpoints: a head is then a matter of seconds, and a run that
was stopped goes on.
"""

import argparse
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from ddlib import CNNDNN, Experiment, accuracy, predict, train_aggregator
from ddlib._internal.files import writable_folder, write_atomically
from ddlib.strategies import Trainings
from ddlib.study.parameters import resolve
from ddlib.study.settings import hidden_layers

# those of results/what_pays, overlap a quarter of a window; the adrenal glands of results/adrenal, but for 20 epochs
SETS = {
    e.dataset: e
    for e in (
        Experiment("faces", overlap=5, options="shape=[48,42]", augment=False, width=16, batch_size=64),
        Experiment("lidc_nodules", "cnn3d", "2x2x1", overlap=4, width=16, epochs=20, batch_size=32),
        Experiment("tf_flowers", overlap=8, options="size=64", width=16, batch_size=64),
        Experiment("cifar10", overlap=4, train_size=10_000),
        Experiment("adrenalmnist3d", "cnn3d", "2x2x1", options="size=64", width=8, epochs=20, batch_size=32),
    )
}
HEAD = ["hidden", "input", "start", "decay", "epochs"]
OPTIONS = [*product(("none", "64", "128 128 128"), ("p", "log p"), ("random", "average", "geometric"), (0.0, 5e-4))]
EPOCHS = (1, 5, 20)
NAMED = {  # after no epoch, a network that starts as an aggregate is it
    ("128 128 128", "p", "random", 0.0, 20): "CNN-DNN",
    ("none", "log p", "geometric", 0.0, 20): "coarse correction",
    ("none", "p", "average", 0.0, 0): "average",
    ("none", "p", "geometric", 0.0, 0): "geometric mean",
}
Said = dict[str, tuple[Tensor, Tensor]]  # half of the images → their local probabilities (n, N, K), labels (n,)


def local_probabilities(e: Experiment, folder: Path) -> Said:
    """What the local CNNs say of the images that they were trained on, of those held out, and of the test images."""
    path = folder / f"{e.name}.npz"
    if not path.exists():
        local, data, whole = e.model("local", folder, progress=False), e.data(), replace(e, validation=None).data()
        arrays = {}
        for half, split in {"train": data.train, "held-out": data.test, "test": whole.test}.items():
            arrays[half], arrays[f"{half} labels"] = predict(local, split, precision=e.precision), split.labels
        np.savez(path, **arrays)
    kept = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    return {half: (kept[half], kept[f"{half} labels"]) for half in ("train", "held-out", "test")}


@torch.no_grad()
def scores(head: nn.Module, said: Said) -> dict[str, float]:
    """Accuracy in %; of two classes the area under the ROC curve (AUC) too."""
    row = {}
    for half, (p, labels) in said.items():
        found = head(p).softmax(-1)
        row[half] = 100 * accuracy(found, labels)
        if found.shape[1] == 2:
            row[f"{half}, AUC"] = 100 * roc_auc_score(labels, found[:, 1])
    return row


def heads(e: Experiment, said: Said) -> list[dict[str, Any]]:
    """A row a head.  At a constant rate, a training of 20 epochs is one of 1 and one of 5 on its way."""
    data, rows = e.data(), []
    run = Trainings(e.backbone, e.decomposition(data), data, **e.trainings())
    local = run.local_cnns()  # in the place of the trained ones, whose probabilities are here

    def note(form: tuple, model: CNNDNN, history: dict[str, float]) -> None:
        spent.append(history["seconds"])
        settings = dict(zip(HEAD, (*form, int(history["epoch"])), strict=True))
        if settings["epochs"] in EPOCHS or tuple(settings.values()) in NAMED:
            rows.append(settings | scores(model.head, said) | {"seconds": sum(spent)})

    for form in OPTIONS:
        hidden, shown, start, decay = form
        options = {
            "hidden": tuple(map(int, hidden_layers("hidden", hidden).split())),
            "log_probabilities": shown == "log p",
            "start": start,
        }
        model, spent = CNNDNN(local, run.new(partial(run.dense_network, **options))), []
        note(form, model, {"epoch": 0, "seconds": 0.0})
        recipe = replace(e.recipe("dense network"), epochs=max(EPOCHS), weight_decay=decay)
        given = {"probabilities": said["train"][0], "after_epoch": partial(note, form, model), "progress": False}
        train_aggregator(model, data, recipe, **given)
    return rows


def means(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a head, by its mean rank over the data sets on held-out images (1 is the best); means over seeds.

    In %, accuracy; of two classes AUC.
    """
    judged = {half: frame.get(f"{half}, AUC", frame[half]).fillna(frame[half]) for half in ("held-out", "test")}
    own = frame.assign(**judged).groupby(["data set", *HEAD])[["held-out", "test"]].mean().unstack("data set")
    ranks = own["held-out"].rank(ascending=False).mean(axis=1)
    table = pd.DataFrame({"rank": ranks, "held-out": own["held-out"].mean(axis=1), "test": own["test"].mean(axis=1)})
    table = table.join(own["test"].add_prefix("test, ")).sort_values("rank").reset_index()
    table.insert(0, "name", [NAMED.get(form, "") for form in table[HEAD].itertuples(index=False, name=None)])
    return table


def worth(table: pd.DataFrame) -> pd.DataFrame:
    """A row a value of each option: means over all other options, of heads that were trained."""
    trained = table[table["epochs"] > 0]
    parts = {option: trained.groupby(option)[["rank", "held-out", "test"]].mean() for option in HEAD}
    return pd.concat(parts, names=["option", "value"])


def write(output: Path, frame: pd.DataFrame) -> str:
    """The three tables, as far as they are; the summary is returned as text too."""
    table = means(frame)
    best = table[(table.index < 5) | (table["name"] > "")]
    best = best.round(dict.fromkeys(best.columns[6:], 2))
    write_atomically(output / "heads.csv", frame.round(dict.fromkeys(frame.columns[7:], 3)).to_csv(index=False))
    write_atomically(output / "summary.csv", best.to_csv(index=False))
    write_atomically(output / "options.csv", worth(table).round(2).to_csv())
    return best.to_string(index=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the tables")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS, help="data sets (default: all)")
    given = parser.parse_args()
    kept, path = writable_folder(resolve("runs/heads")), writable_folder(given.output) / "heads.csv"
    frame = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["data set", "seed"])
    for name, seed in product(given.sets, given.seeds):
        if ((frame["data set"] == name) & (frame["seed"] == seed)).any():
            continue
        e = replace(SETS[name], seed=seed, validation=0.1, strategies=("local",))
        rows = pd.DataFrame(heads(e, local_probabilities(e, kept)))
        rows.insert(0, "data set", name)
        rows.insert(1, "seed", seed)
        frame = pd.concat([frame, rows]) if len(frame) else rows
        print(f"{name}, seed {seed}\n{write(given.output, frame)}", flush=True)


if __name__ == "__main__":
    main()
