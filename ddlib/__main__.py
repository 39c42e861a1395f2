"""The command line: `python -m ddlib COMMAND`, also installed as `ddlib`."""

import argparse
import sys
from collections.abc import Sequence


def compare(folder: str, reference: str, tolerance: float) -> int:
    """Hold the tables of a run against committed ones of the same name: 0 when all agree."""
    from pathlib import Path

    import pandas as pd

    from .notebook import agrees

    failed = 0
    tables = [path for path in sorted(Path(reference).glob("*.csv")) if (Path(folder) / path.name).exists()]
    if not tables:
        print(f"No table of {reference} has a namesake in {folder}.", file=sys.stderr)
        return 2
    for path in tables:
        frame = pd.read_csv(Path(folder) / path.name, dtype={"subdomain": str}, keep_default_na=False)
        try:
            agrees(frame, path.absolute(), tolerance)
        except AssertionError as error:
            print(error, file=sys.stderr)
            failed = 1
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ddlib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser("compare", help="hold the tables of a run against committed ones")
    command.add_argument("folder", help="what a run wrote, e.g. runs/reproduce-20261120-120000")
    command.add_argument("reference", help="committed tables, e.g. results/quick")
    command.add_argument("--tolerance", type=float, default=0.06, help="in shares of the test images (default 0.06)")
    command.set_defaults(run=lambda a: compare(a.folder, a.reference, a.tolerance))
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"ddlib {options.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
