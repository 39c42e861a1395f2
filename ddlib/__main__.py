"""The command line: `python -m ddlib COMMAND`, also installed as `ddlib`.

Exit codes: 0 all went well, 1 something failed or disagrees, 2 the command cannot be carried out, 130 interrupted.
"""

import os
import platform
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import click


@click.group(epilog=(__doc__ or "").partition("\n\n")[2])  # python -OO keeps none
def commands() -> None:
    """Train CNNs by domain decomposition, and gather what was trained; examples are in the help of each command."""


@commands.command()
@click.argument("action", type=click.Choice(["list", "fetch"]), default="list")
@click.argument("name", required=False)
def datasets(action: str, name: str | None) -> None:
    """List the data sets, or fetch one into $DDLIB_DATA: ddlib datasets fetch cifar10"""
    from .data import sets

    if (action == "fetch") != (name is not None):
        raise ValueError("fetch needs the NAME of a data set.")
    if name is not None:
        print(sets.fetch(name))
        return
    for name, entry in sets.DATASETS.items():
        print(f"{name}: {sets.present(name) or 'missing' if entry.places else 'not needed'}")
        print(*(f"  {what}: {getattr(entry, what)}" for what in ("about", "source", "licence", "layout")), sep="\n")
        print(*(f"  checksum: {remote.checksum}\n" for remote in entry.places.values() if remote), sep="", end="")
        print(f"  fetch: python -m ddlib datasets fetch {name}\n" if entry.places else "", end="")


@commands.command()
@click.argument("plan")
@click.option("--jobs", default=1, help="Points at a time, sharing the cores (default 1).")
@click.option("--dask", metavar="ADDRESS", help="Run on a Dask cluster: its scheduler's address, or 'local'.")
@click.option("--dry-run", is_flag=True, help="Only list the points and what is on record.")
@click.option("--force", is_flag=True, help="Run points that are on record as well.")
@click.option("--only", metavar="EXPR", help="A pandas query over the points, e.g. \"grid == '2x2'\".")
@click.option("--without-notebooks", is_flag=True, help="Keep records alone: no kernels to start, for a GPU.")
@click.option("--minutes", default=0.0, help="Stop after so many; called again, it goes on.")
def sweep(
    plan: str,
    jobs: int,
    dask: str | None,
    dry_run: bool,
    force: bool,
    only: str | None,
    without_notebooks: bool,
    minutes: float,
) -> int:
    """Run the points of a plan that are not on record: ddlib sweep notebooks/plans/quick.yaml --jobs 2"""
    from .study import sweep

    points = sweep.read_plan(plan)
    points = sweep.select(points, only) if only is not None else points
    if dry_run:
        print(sweep.table(points)[["point", "status", "notebook"]].to_string(index=False))
        return 0
    with sweep.dask_executor(dask, jobs) if dask else nullcontext() as executor:
        how = {"jobs": jobs, "force": force, "notebooks": not without_notebooks, "minutes": minutes}
        results = sweep.run(points, executor, **how)
    print(results.to_string(index=False, max_colwidth=100))
    print(results["result"].value_counts().to_string())
    return int("failed" in set(results["result"]))


@commands.command()
@click.option("--config", required=True, help="A YAML file, see docs/coherent_digits.yaml.")
def coherent(config: str) -> None:
    """Train the coherent model over many processes: torchrun --nproc-per-node 2 -m ddlib coherent --config FILE"""
    from ._internal import files
    from .parallel import ranks
    from .study.parameters import read_point
    from .study.trainings import KeptTrainings

    experiment, output = read_point(config)
    with ranks.process_group() as rank:
        run = KeptTrainings(experiment, experiment.data(), files.writable_folder(output), progress=rank == 0)
        ranks.assign(len(run.decomposition), ranks.world_size())  # too many are refused now
        run.model(*experiment.strategies)
    if rank == 0:  # the checkpoint is that of a single process: its table is made from it
        print(experiment.run(output).to_string(index=False))


@commands.command()
@click.argument("folders", nargs=-1)
@click.option("--output", help="Default: results/report, or of FOLDERS of your own, report in the first of them.")
@click.option("--plan", help="What was to be run, to say what is missing; by default the committed plans.")
@click.option("--dataset", default="cifar10", help="Of the plots (default cifar10).")
@click.option("--backbone", default="vgg9", help="Of the plots (default vgg9).")
def report(folders: Sequence[str], output: str | None, plan: str | None, dataset: str, backbone: str) -> None:
    """Tables, figures and verdicts from the records below FOLDERS, by default the committed ones: ddlib report"""
    from ._internal import files
    from .report import pages, tables
    from .study import parameters, sweep

    notebook = parameters.notebooks_folder() / "05_report.ipynb"
    own = [str(parameters.here_or_below(folder)) for folder in folders] or None
    place = Path(output or (own and Path(own[0]) / "report") or pages.REPORT)
    if own and place.resolve() == parameters.resolve(pages.REPORT).resolve():
        raise ValueError(f"{place} is the report of the committed records: give another --output for those of FOLDERS.")
    found = tables.read(own or tables.FOLDERS)
    there = sorted({f"{r.parameters['dataset']} with {r.parameters['backbone']}" for r in found})
    if f"{dataset} with {backbone}" not in there:
        raise ValueError(f"there are no records of {dataset} with {backbone}, but of {', '.join(there) or 'nothing'}.")
    place = files.writable_folder(place).absolute()
    given = {"folders": own, "dataset": dataset, "backbone": backbone, "output": str(place)}
    given |= {"plan": [str(parameters.read_yaml(plan)[0])]} if plan else {}
    if reason := sweep.execute(notebook, place / "report.ipynb", given):
        raise RuntimeError(f"{reason} (see {place / 'report.ipynb'})")
    print(f"tables, figures and the executed notebook: {place}")


@commands.command()
@click.argument("folder")
@click.argument("reference")
@click.option("--tolerance", default=0.06, help="In shares of the test images (default 0.06).")
def compare(folder: str, reference: str, tolerance: float) -> int:
    """Hold the records of a run against committed ones: ddlib compare runs/mine results/quick"""
    from .study.parameters import agrees, here_or_below
    from .study.records import gather

    frame = gather(here_or_below(folder))
    if frame.empty:
        raise ValueError(f"there are no records in {folder}.")
    try:
        return int(not agrees(frame, here_or_below(reference), tolerance))
    except AssertionError as error:
        print(error, file=sys.stderr)
        return 1


@commands.command()
@click.argument("folder")
@click.option("--points", default=1, help="How many, drawn at random (default 1).")
@click.option("--seed", default=0, help="Of the draw (default 0).")
def rerun(folder: str, points: int, seed: int) -> int:
    """Train recorded points anew, and hold new accuracies against the recorded: ddlib rerun results/flowers"""
    from .study import rerun

    tables = [table for table in rerun.again(folder, points, seed)]
    return int(not all(table["agrees"].all() for table in tables))


@commands.command()
def doctor() -> int:
    """Versions, device, data, and what is wrong, for a bug report: ddlib doctor"""
    from .cost.training_time import machine
    from .data.sets import data_folder

    folder, facts = data_folder(), {"system": platform.platform(), **machine()}
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    facts["data folder"] = f"{folder}{'' if there == folder else ' (not there yet)'}"
    print(*(f"{name}: {fact}" for name, fact in facts.items()), sep="\n")
    datasets.callback("list", None)
    wrong = not (there.is_dir() and os.access(there, os.W_OK))
    print(f"wrong: the data folder {folder} cannot be written; set DDLIB_DATA" if wrong else "wrong: nothing found")
    return int(wrong)


def main(arguments: Sequence[str] | None = None) -> int:
    from ._internal.files import DamagedFile

    try:
        return commands.main(arguments, prog_name="ddlib", standalone_mode=False) or 0
    except (KeyboardInterrupt, click.Abort):
        print("\ninterrupted; what was finished is kept", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(130)  # at once: threads of a sweep would wait for their kernels, which end with this process
    except click.ClickException as error:
        error.show()
    except (ValueError, OSError, RuntimeError, FloatingPointError, ImportError, DamagedFile) as error:  # or Diverged
        print(f"ddlib: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
