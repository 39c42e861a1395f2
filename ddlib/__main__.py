"""The command line: `python -m ddlib COMMAND`, also installed as `ddlib`.

Exit codes: 0 all went well, 1 something failed or disagrees, 2 the command cannot be carried out, 130 interrupted.
"""

import argparse
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

EXAMPLES = """examples:
  ddlib datasets                                     what there is, and what is present
  ddlib datasets fetch cifar10
  ddlib sweep notebooks/plans/quick.yaml --dry-run   the points of a plan
  ddlib sweep notebooks/plans/cpu.yaml --only "backbone == 'vgg9' and seed == 0"
  ddlib sweep notebooks/plans/cpu.yaml --dask tcp://10.0.0.1:8786
  torchrun --standalone --nproc-per-node 2 -m ddlib coherent --config docs/coherent_digits.yaml
  ddlib report                                       verdicts on the claims, from committed records
  ddlib compare runs/reproduce-20261120-120000 results/quick
  ddlib doctor                                       for a bug report
"""


def datasets(options: argparse.Namespace) -> int:
    from .data import sets

    if (options.action == "fetch") != (options.name is not None):
        raise ValueError("fetch needs the NAME of a data set.")
    if options.name is not None:
        print(sets.fetch(options.name, options.root))
        return 0
    for name, row in sets.table(options.root).iterrows():
        print(f"{name}: {row.pop('present') or 'missing'}")
        print("".join(f"  {what}: {text}\n" for what, text in row.items() if text), end="")
    return 0


def sweep(options: argparse.Namespace) -> int:
    from .study import sweep as sweeping
    from .study.sweep import dask_executor

    plan = sweeping.read_plan(options.plan)
    if options.only:
        plan = sweeping.select(plan, options.only)
    if options.dry_run:
        print(sweeping.table(plan)[["point", "status", "notebook"]].to_string(index=False))
        return 0
    with dask_executor(options.dask, options.jobs) if options.dask else nullcontext() as executor:
        results = sweeping.run(plan, executor, jobs=options.jobs, force=options.force)
    print(results.to_string(index=False, max_colwidth=100))
    print(results["result"].value_counts().reindex(["done", "skipped", "failed"], fill_value=0).to_string())
    return int((results["result"] == "failed").any())


def coherent(options: argparse.Namespace) -> int:
    from . import files, ranks
    from .study.parameters import read_point
    from .study.stages import Stages

    experiment, output = read_point(options.config)
    (strategy,) = experiment.strategies
    with ranks.ranks() as rank:
        stages = Stages(experiment, experiment.data(), files.writable_folder(output), progress=rank == 0)
        ranks.share(len(stages.decomposition), ranks.count(), rank)  # too many are refused now
        stages.model(strategy)
        if rank == 0:
            seen = stages.histories[strategy].drop(columns="rate")
            print(seen.to_string(index=False, float_format="{:.4g}".format))
    if rank == 0:  # the checkpoint is that of a single process: its table is made from it
        print(experiment.run(output).to_string(index=False))
    return 0


def report(options: argparse.Namespace) -> int:
    from . import backbones, checks, files
    from .data import sets
    from .report import tables
    from .study import parameters
    from .study.sweep import execute

    checks.one_of("data set", options.dataset, sets.DATASETS)
    checks.one_of("backbone", options.backbone, backbones.BACKBONES)
    folders = [str(Path(folder).absolute()) for folder in options.folders] or list(tables.FOLDERS)
    found = tables.read(folders)
    if not found:
        raise ValueError(f"there are no records in {', '.join(folders)}.")
    output = files.writable_folder(options.output).absolute()
    given = {"folders": folders, "dataset": options.dataset, "backbone": options.backbone, "output": str(output)}
    given["plan"] = str(parameters.read_yaml(options.plan)[0])
    notebook = parameters.project_folder() / "notebooks" / "05_report.ipynb"
    if reason := execute(notebook, output / "report.ipynb", given):
        raise RuntimeError(f"{reason} (see {output / 'report.ipynb'})")
    print(f"{len(found)} records; tables, figures and the executed notebook: {output}")
    return 0


def compare(options: argparse.Namespace) -> int:
    import pandas as pd

    from .report.tables import accuracy_table
    from .study.parameters import agrees

    tables = {}
    for path in sorted(Path(options.folder).glob("*.csv")):
        table, reference = pd.read_csv(path, keep_default_na=False), Path(options.reference).absolute() / path.name
        if "record" in table and reference.exists():
            tables[reference] = table
    if not tables:
        raise ValueError(f"no table of records in {options.folder} has a namesake in {options.reference}.")
    failed = 0
    for reference, table in tables.items():
        print(f"\n{reference.stem}: test accuracy (%)\n{accuracy_table(table).reset_index().to_string(index=False)}")
        try:
            failed |= not agrees(table, reference, options.tolerance)
        except AssertionError as error:
            print(error, file=sys.stderr)
            failed = 1
    return failed


def doctor(options: argparse.Namespace) -> int:
    from .data.sets import data_folder
    from .study.records import provenance
    from .training import choose_device, choose_precision

    device, folder = choose_device(), data_folder()
    facts = {"system": platform.platform(), **provenance(device.type, choose_precision("auto", device), time.time())}
    print(*(f"{name}: {fact}" for name, fact in facts.items()), sep="\n")
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    print(f"data folder: {folder}{'' if there == folder else ' (not there yet)'}")
    datasets(argparse.Namespace(action="list", name=None, root=None))
    wrong = not (there.is_dir() and os.access(there, os.W_OK))
    print(f"wrong: the data folder {folder} cannot be written; set DDLIB_DATA" if wrong else "wrong: nothing found")
    return int(wrong)


def parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("ddlib", description=__doc__, epilog=EXAMPLES, formatter_class=plain)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], int], about: str) -> Callable[..., argparse.Action]:
        lines = [line for line in EXAMPLES.splitlines() if f"ddlib {run.__name__}" in line]
        examples = "\n".join(["examples:", *lines])
        added = commands.add_parser(run.__name__, help=about, epilog=examples, formatter_class=plain)
        added.set_defaults(run=run)
        return added.add_argument

    add = command(datasets, "list the data sets, or fetch one")
    add("action", nargs="?", choices=("list", "fetch"), default="list")
    add("name", nargs="?", metavar="NAME", help="the data set to fetch")
    add("--root", help="the data folder (default: $DDLIB_DATA, else a per-user cache folder)")

    add = command(sweep, "run the points of a plan that are not on record")
    add("plan", help="a YAML file, see notebooks/plans/")
    add("--jobs", type=int, default=1, help="points at a time, sharing the cores (default 1)")
    add("--dask", metavar="ADDRESS", help="run on a Dask cluster: its scheduler's address, or 'local'")
    add("--dry-run", action="store_true", help="only list the points and what is on record")
    add("--force", action="store_true", help="run points that are on record as well")
    add("--only", metavar="EXPR", help="a pandas query over the points, e.g. \"grid == '2x2'\"")

    add = command(coherent, "train the coherent model, under torchrun over many processes")
    add("--config", required=True, help="a YAML file, see docs/coherent_digits.yaml")

    add = command(report, "tables, figures and verdicts on the claims, from the records")
    add("folders", nargs="*", help="folders of records (default: the committed ones of real data)")
    add("--output", default="results/report", help="default: results/report")
    add("--plan", default="notebooks/plans/cpu.yaml", help="what was to be run, to say what is missing")
    add("--dataset", default="cifar10", help="of the plots (default cifar10)")
    add("--backbone", default="vgg9", help="of the plots (default vgg9)")

    add = command(compare, "hold the tables of a run against committed ones")
    add("folder", help="what a run wrote, e.g. runs/reproduce-20261120-120000")
    add("reference", help="committed tables, e.g. results/quick")
    add("--tolerance", type=float, default=0.06, help="in shares of the test images (default 0.06)")

    command(doctor, "versions, device, data, and what is wrong: for a bug report")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    from .files import DamagedFile

    options = parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would interrupt the tidying up
        print("\ninterrupted; what was finished is kept", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, ImportError, DamagedFile) as error:
        print(f"ddlib {options.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
