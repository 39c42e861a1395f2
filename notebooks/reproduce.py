"""The quick profile of all notebooks, their defaults, held against the committed tables, and one page to look at.

    python notebooks/reproduce.py runs/again

runs the notebooks, a kernel each, and writes tables, figures and executed notebooks to that folder, which must be new.
Exit code: 0 all agrees with results/quick, 1 something disagrees or failed, 130 interrupted.
"""

import itertools
import os
import re
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import torch
from joblib import cpu_count
from latex2mathml.converter import convert
from nbconvert import HTMLExporter

import ddlib
from ddlib.__main__ import main as command
from ddlib.study.sweep import execute

HERE = Path(__file__).resolve().parent
SECONDS = {  # on one core; what has run says how much slower this machine is
    "00_quickstart": 55,
    "01_decompositions": 10,
    "02_aggregation": 40,
    "03_transfer_learning": 50,
    "07_channel_decomposition": 40,
    "08_regimes": 60,
    "09_two_decompositions": 60,
    "10_what_pays": 35,
}
TIMED = {"04_training_time": 30, "06_scaling": 50}  # alone, on all cores
REPORT = 20
JOBS = min(4, cpu_count())  # kernels at a time, within 4 GB


def run(folder: Path) -> bool:
    """Run the notebooks, several at a time, with a line for each as it starts; False where one failed.

    With a thread each: the layers are so small here that a second thread hardly helps a kernel.
    """
    begun, done, start = itertools.count(1), set(), time.monotonic()

    def ahead() -> float:
        """Seconds on a machine like the one that was timed."""
        shares = {name: seconds / JOBS for name, seconds in SECONDS.items()} | TIMED
        return REPORT + sum(seconds for name, seconds in shares.items() if name not in done)

    def one(name: str) -> str:
        behind = whole - ahead()
        pace = (time.monotonic() - start) / behind if behind > 30 else 1.0
        place = f"[{next(begun)}/{len(SECONDS | TIMED)}]"
        line = f"{place} {name:25} about {minutes(pace * ahead())} left in all\n"
        print(line, end="", flush=True)  # in one piece, since others print beside it
        executed = folder / f"{name}.ipynb"
        reason = execute(HERE / f"{name}.ipynb", executed, {"output": str(folder.resolve())})
        done.add(name)
        return reason and f"{name} failed: {reason}\nwhere it stopped: {executed}"

    whole = ahead()
    for names, jobs, threads in ((SECONDS, JOBS, 1), (TIMED, 1, min(torch.get_num_threads(), cpu_count()))):
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of the kernels
        pool = ThreadPoolExecutor(jobs)
        for reason in pool.map(one, names):
            if reason:
                print(reason, file=sys.stderr)
                pool.shutdown(cancel_futures=True)
                return False
    return True


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{max(10, round(seconds, -1)):.0f} s"


# ── one page ──


def page(notebooks: Iterable[Path], title: str) -> str:
    """Executed notebooks as one page of HTML that loads nothing from elsewhere: figures within, formulas as MathML."""
    parts = {path.stem: nbformat.read(path, as_version=4) for path in notebooks}
    merged = nbformat.v4.new_notebook(metadata=next(iter(parts.values())).metadata)
    names, made = [f"- [{name}](#{name})" for name in parts], []
    merged.cells.append(nbformat.v4.new_markdown_cell("\n".join([f"# {title}", "", *names])))
    for name, notebook in parts.items():
        notebook.cells[0].source = f'<a id="{name}"></a>\n\n{notebook.cells[0].source}'
        merged.cells += notebook.cells
    for number, cell in enumerate(merged.cells):
        cell.id = f"cell-{number}"  # those of the notebooks are the same in several
        if cell.cell_type == "markdown":
            cell.source = linked(formulas(cell.source, made))
    exporter = HTMLExporter(embed_images=True, exclude_input_prompt=True, exclude_output_prompt=True)
    html, _ = exporter.from_notebook_node(merged, {"metadata": {"name": title}})
    html = re.sub(r"<script.*?</script>", "", html, flags=re.S)  # of libraries that would be fetched
    return re.sub(r"<[^>]*>|MATHML(\d+)X", lambda found: made[int(found[1])] if found[1] else found[0], html)


def formulas(text: str, made: list[str]) -> str:
    """$…$ and $$…$$ go to `made` as MathML, which browsers set by themselves; a mark stays, which nbconvert keeps."""

    def mark(found: re.Match[str], display: str = "inline") -> str:
        made.append(convert(found[1], display=display))
        return f"MATHML{len(made) - 1}X"

    text = re.sub(r"\$\$(.+?)\$\$", lambda found: mark(found, "block"), text, flags=re.S)
    return re.sub(r"\$([^$\n]+)\$", mark, text)


def linked(text: str) -> str:
    """Links to a notebook lead to its part of the page, those above the notebooks to the project's files."""
    text = re.sub(r"\]\((\d\d_\w+)\.ipynb(?:#[^)]*)?\)", r"](#\1)", text)
    return text.replace("](../", f"]({HERE.parent.as_uri()}/")


# ── what one sees at the end ──


def summary(folder: Path) -> str:
    """The main table: strategies in %, a row a decomposition."""
    frame = ddlib.gather(folder)
    table = ddlib.accuracy_table(frame[frame["variant"] == ""]).dropna(axis="columns", how="all")
    shown = ["grid", "overlap", "epochs", *table.columns]
    return table.fillna("").reset_index()[shown].to_string(index=False)


def main(folder: str) -> int:
    output = Path(folder)
    output.mkdir(parents=True)
    if not run(output):
        return 1
    print(f"[report] {'':24} about {REPORT} s left", flush=True)
    plan = str(HERE / "plans" / "quick.yaml")
    if code := command(["report", folder, "--plan", plan, "--dataset", "digits", "--output", f"{folder}/report"]):
        return code
    code = command(["compare", folder, str(HERE.parent / "results" / "quick")])
    html, executed = output / "notebooks.html", [*sorted(output.glob("[0-9]*.ipynb")), output / "report/report.ipynb"]
    html.write_text(page(executed, "What was reproduced"), encoding="utf-8")
    print(f"\nHandwritten digits, VGG9: test accuracy (%)\n{summary(output)}\n")
    print(f"the ladder, step by step:  {output / 'figures' / 'ladder.png'}")
    print(f"all notebooks as one page: {html}")
    return code


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        print("\ninterrupted; what was finished is kept", file=sys.stderr, flush=True)
        os._exit(130)  # at once: threads would wait for their kernels, which end with this process
