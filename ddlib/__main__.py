"""The command line: `python -m ddlib COMMAND`, also installed as `ddlib`.

Exit codes: 0 all went well, 1 something failed or disagrees, 2 the command cannot be carried out, 130 interrupted.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

EXAMPLES = """examples:
  ddlib datasets                                     what there is, and what is present
  ddlib datasets fetch cifar10
  ddlib sweep notebooks/plans/quick.yaml --dry-run   the points of a plan
  ddlib sweep notebooks/plans/cpu.yaml --only "backbone == 'vgg9' and seed == 0"
  ddlib sweep notebooks/plans/cpu.yaml --dask tcp://10.0.0.1:8786
  torchrun --standalone --nproc-per-node 2 -m ddlib coherent --config docs/coherent_digits.yaml
  ddlib bench --output results/bench
  ddlib report                                       verdicts on the claims, from committed records
  ddlib compare runs/reproduce-20261120-120000 results/quick
  ddlib doctor                                       for a bug report
"""


def print_datasets(root: str | None) -> None:
    from .data import sets

    for name, row in sets.table(root).iterrows():
        there = {"": "missing", "not needed": "no files needed"}.get(row["present"], row["present"])
        print(f"{name}: {there}\n  {row['about']}\n  source {row['source']}; licence: {row['licence']}")
        print(f"  layout: {row['layout']}" + (f"\n  checksum: {row['checksum']}" if row["checksum"] else ""))
        if not row["present"]:
            print(f"  fetch: {row['fetch']}")


def datasets(options: argparse.Namespace) -> int:
    from .data import sets

    if options.fetch is None:
        print_datasets(options.root)
        return 0
    print(sets.fetch(options.fetch, options.root))
    return 0


def sweep(options: argparse.Namespace) -> int:
    import pandas as pd

    from .engines import dask_executor
    from .study import sweep as sweeping

    plan = sweeping.read_plan(options.plan)
    if options.only:
        frame = sweeping.table(plan)
        try:
            kept = set(frame.query(options.only)["point"])
        except Exception as error:
            raise ValueError(
                f"--only {options.only!r} cannot be evaluated ({error}); columns: {', '.join(frame)}."
            ) from None
        plan = [point for point in plan if point.name in kept]
    if options.dry_run:
        print(sweeping.table(plan)[["point", "status", "notebook"]].to_string(index=False))
        return 0
    place = dask_executor(options.dask, options.jobs) if options.dask else nullcontext()
    with place as executor:
        results = sweeping.run(plan, executor, jobs=options.jobs, force=options.force)
    with pd.option_context("display.max_colwidth", 100):
        print(results.to_string(index=False))
    print(results["result"].value_counts().reindex(["done", "skipped", "failed"], fill_value=0).to_string())
    return int((results["result"] == "failed").any())


def coherent(options: argparse.Namespace) -> int:
    from . import files
    from . import ranks as distributed
    from .study.experiment import Experiment
    from .study.stages import Stages

    given = read_config(options.config)
    output, strategy = given.pop("output"), given.pop("strategy", "coherent")
    experiment = Experiment(**given, strategies=(strategy,))
    if experiment.local_losses:
        raise ValueError("local_losses are for one process, got True; leave them out.")
    with distributed.ranks() as rank:
        stages = Stages(experiment, experiment.data(), files.writable_folder(output), progress=rank == 0)
        distributed.share(len(stages.decomposition), distributed.count(), rank)  # too many are refused now
        getattr(stages, strategy)
        if rank == 0:
            seen = stages.histories[strategy].drop(columns="rate")
            print(seen.to_string(index=False, float_format="{:.4g}".format))
    if rank == 0:  # the checkpoint is that of a single process: its table is made from it
        print(experiment.run(output).to_string(index=False))
    return 0


def read_config(path: str) -> dict[str, Any]:
    """The fields of an `Experiment`, a strategy and an output folder."""
    import yaml

    from . import checks, files
    from .study.experiment import Experiment

    try:
        given = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    known = [name for name in Experiment.__dataclass_fields__ if name != "strategies"]
    if not isinstance(given, dict) or "output" not in given:
        raise ValueError(f"{path}: a mapping with output, strategy and fields of an experiment is needed.")
    for key in given:
        checks.one_of(f"key of {path}", key, ["output", "strategy", *known])
    checks.one_of("strategy", given.get("strategy", "coherent"), ("coherent", "transfer"))
    return {**given, "output": files.resolve(given["output"])}


def bench(options: argparse.Namespace) -> int:
    import pandas as pd

    from . import files
    from .cost import training_time as benching

    quick = benching.settings("quick", options.images)
    folder = files.writable_folder(options.output) if options.output else None
    facts = benching.machine() | {"images": options.images, "repeats": options.repeats}
    print(f"{facts['device']}, {facts['threads']} threads; matrix products reach {facts['ceiling']} GFLOP/s")
    tables = {"engines": benching.engines(quick, options.repeats)}
    if options.training_time:
        tables["training_time"] = benching.training_time(benching.settings("full", options.images), options.repeats)
    for name, table in tables.items():
        with pd.option_context("display.width", 200, "display.max_columns", 20, "display.precision", 3):
            print(f"\n{name}\n{table.to_string(index=False)}")
    if folder:
        benching.save(folder, facts, **tables)
    return 0


def report(options: argparse.Namespace) -> int:
    import papermill

    from . import backbones, checks, files
    from .data import sets
    from .report import tables as reporting

    checks.one_of("data set", options.dataset, sets.DATASETS)
    checks.one_of("backbone", options.backbone, backbones.BACKBONES)
    folders = [str(Path(f).absolute()) for f in options.folders] or list(reporting.FOLDERS)
    if any(" " in folder for folder in folders):
        raise ValueError(f"a folder of records cannot have a space in its path, got {folders}.")
    found = reporting.read(folders)
    if not found:
        raise ValueError(f"there are no records in {', '.join(folders)}.")
    output = files.writable_folder(options.output)
    notebook = files.project_folder() / "notebooks" / "05_report.ipynb"
    given = {
        "folders": " ".join(folders),
        "plan": options.plan,
        "dataset": options.dataset,
        "backbone": options.backbone,
    }
    executed = output / "report.ipynb"
    try:
        papermill.execute_notebook(
            str(notebook),
            str(executed),
            {**given, "output": str(output.absolute())},
            progress_bar=False,
            extra_arguments=["--log-level=ERROR"],  # of the kernel, which else warns of TCP
        )
    except papermill.PapermillExecutionError as error:
        raise RuntimeError(f"{error.ename}: {error.evalue} (see {executed})") from None
    print(f"{len(found)} records; tables, figures and the executed notebook: {output}")
    return 0


def compare(options: argparse.Namespace) -> int:
    import pandas as pd

    from .report.tables import accuracy_table
    from .study.parameters import agrees

    def read(path: Path) -> pd.DataFrame:
        return pd.read_csv(path, dtype={"subdomain": str}, keep_default_na=False)

    paths = [path for path in sorted(Path(options.folder).glob("*.csv")) if "record" in read(path)]
    paths = [path for path in paths if (Path(options.reference) / path.name).exists()]
    if not paths:
        raise ValueError(f"no table of records in {options.folder} has a namesake in {options.reference}.")
    failed = 0
    for path in paths:
        frame = read(path)
        print(f"\n{path.stem}: test accuracy (%)")
        print(accuracy_table(frame).reset_index().to_string(index=False))
        try:
            failed |= not agrees(frame, Path(options.reference).absolute() / path.name, options.tolerance)
        except AssertionError as error:
            print(error, file=sys.stderr)
            failed = 1
    return failed


def doctor(_: argparse.Namespace) -> int:
    from .study import doctor as health

    for line in health.facts():
        print(line)
    print_datasets(None)
    wrong, missing = health.wrong(), health.missing()
    print("\nwrong: " + ("nothing found" if not wrong else ""))
    for line in wrong:
        print(f"  {line}")
    for line in missing:
        print(f"worth knowing: {line}")
    return int(bool(wrong))


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="ddlib", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("datasets", help="list the data sets, or fetch one")
    command.add_argument("action", nargs="?", choices=("list", "fetch"), default="list")
    command.add_argument("fetch", nargs="?", metavar="NAME", help="the data set to fetch")
    command.add_argument("--root", help="the data folder (default: $DDLIB_DATA, else a per-user cache folder)")
    command.set_defaults(run=datasets)

    command = commands.add_parser("sweep", help="run the points of a plan that are not on record")
    command.add_argument("plan", help="a YAML file, see notebooks/plans/")
    command.add_argument("--jobs", type=int, default=1, help="points at a time, sharing the cores (default 1)")
    command.add_argument("--dask", metavar="ADDRESS", help="run on a Dask cluster: its scheduler's address, or 'local'")
    command.add_argument("--dry-run", action="store_true", help="only list the points and what is on record")
    command.add_argument("--force", action="store_true", help="run points that are on record as well")
    command.add_argument("--only", metavar="EXPR", help="a pandas query over the points, e.g. \"grid == '2x2'\"")
    command.set_defaults(run=sweep)

    command = commands.add_parser("coherent", help="train the coherent model, under torchrun over many processes")
    command.add_argument("--config", required=True, help="a YAML file, see docs/coherent_digits.yaml")
    command.set_defaults(run=coherent)

    command = commands.add_parser("bench", help="time the engines against the straightforward way")
    command.add_argument("--output", help="folder for the records")
    command.add_argument("--images", type=int, default=3072, help="an epoch's images of 32×32 (default: 3072)")
    command.add_argument("--repeats", type=int, default=3, help="default: 3")
    command.add_argument("--training-time", action="store_true", help="also the training-time table (claim C4)")
    command.set_defaults(run=bench)

    command = commands.add_parser("report", help="tables, figures and verdicts on the claims, from the records")
    command.add_argument("folders", nargs="*", help="folders of records (default: the committed ones of real data)")
    command.add_argument("--output", default="results/report", help="default: results/report")
    command.add_argument(
        "--plan", default="notebooks/plans/cpu.yaml", help="what was to be run, to say what is missing"
    )
    command.add_argument("--dataset", default="cifar10", help="of the plots (default cifar10)")
    command.add_argument("--backbone", default="vgg9", help="of the plots (default vgg9)")
    command.set_defaults(run=report)

    command = commands.add_parser("compare", help="hold the tables of a run against committed ones")
    command.add_argument("folder", help="what a run wrote, e.g. runs/reproduce-20261120-120000")
    command.add_argument("reference", help="committed tables, e.g. results/quick")
    command.add_argument("--tolerance", type=float, default=0.06, help="in shares of the test images (default 0.06)")
    command.set_defaults(run=compare)

    command = commands.add_parser("doctor", help="versions, device, data, and what is wrong: for a bug report")
    command.set_defaults(run=doctor)
    for name, command in commands.choices.items():
        lines = [line for line in EXAMPLES.splitlines() if f"ddlib {name}" in line]
        command.epilog, command.formatter_class = "\n".join(["examples:", *lines]), top.formatter_class
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    from .files import DamagedFile

    options = parser().parse_args(arguments)
    if options.command == "datasets" and (options.action == "fetch") != (options.fetch is not None):
        print("ddlib datasets: fetch needs the NAME of a data set.", file=sys.stderr)
        return 2
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
