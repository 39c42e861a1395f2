"""The quick profile of all notebooks, their defaults, held against the committed tables, and one page to look at.

    python notebooks/reproduce.py runs/again

runs the notebooks, a kernel each, and writes tables, figures and executed notebooks to that folder, which must be new.
Exit code: 0 all agrees with results/quick, 1 something disagrees or failed, 130 interrupted.
"""

import base64
import html
import io
import itertools
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import nbformat
import pandas as pd
import torch
from joblib import cpu_count
from latex2mathml.converter import convert
from nbconvert import HTMLExporter

import ddlib
from ddlib.__main__ import main as command
from ddlib.cost.training_time import machine
from ddlib.report import pages
from ddlib.study.sweep import execute, read_plan

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
PLAN = HERE / "plans" / "quick.yaml"  # the points of the main table
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


STYLE = """<style>
main { max-width: 1160px; margin: auto; font-family: var(--jp-content-font-family); }
.result { display: flex; flex-wrap: wrap; gap: 1.5em; align-items: start; }
.result img { max-width: 480px; }
details { border-top: 1px solid #ccc; } summary { cursor: pointer; padding: 0.5em; font-size: 1.1em; }
.skip a { white-space: nowrap; margin-right: 1em; color: #0b5394; }
</style>"""


def page(notebooks: Iterable[Path], title: str, result: str = "") -> str:
    """Executed notebooks as one page of HTML that loads nothing from elsewhere: figures within, formulas as MathML.

    `result` (HTML) comes first, then a list of the notebooks, each of them folded; a link to one opens it.
    """
    exporter = HTMLExporter(embed_images=True, exclude_input_prompt=True, exclude_output_prompt=True)
    heads, links, parts = [], [], []
    for path in notebooks:
        name, notebook, made = path.stem, nbformat.read(path, as_version=4), []
        heading = re.sub(r"^#+ |[*`$]", "", notebook.cells[0].source.splitlines()[0])
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = linked(formulas(cell.source, made))
        whole, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}})
        whole = re.sub(r"<script.*?</script>", "", whole, flags=re.S)  # of libraries that would be fetched
        head, body = re.fullmatch(r"(.*?)<main>(.*)</main>.*", whole, flags=re.S).groups()
        body = re.sub(r' id="([^"]+)"', rf' id="{name}-\1"', body)  # those of the notebooks are the same in several
        for own in re.findall(r' id="[^"]*?-([^"]+)"', body):
            body = body.replace(f'href="#{own}"', f'href="#{name}-{own}"')
        body = re.sub(r"<[^>]*>|MATHML(\d+)X", lambda found, m=made: m[int(found[1])] if found[1] else found[0], body)
        heads.append(head)
        links.append(f'<a href="#{name}">{name}</a>')
        # the target is within, so that a browser unfolds what a link leads to
        summary = f"<summary><b>{name[:2]}</b> {html.escape(heading)}</summary>"
        parts.append(f'<details>{summary}<a id="{name}"></a>{body}</details>')
    top = f"<h1>{html.escape(title)}</h1>{result}<p class=skip>{' '.join(links)}</p>"
    return "\n".join([heads[0], STYLE, "<main>", top, *parts, "</main>", "</body>", "</html>"])


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


def main_table(folder: Path) -> pd.DataFrame:
    """Test accuracy in %: a column a strategy, a row a point of notebooks 02 and 03."""
    frame = ddlib.gather(folder)
    return pages.readable(ddlib.accuracy_table(frame[frame["record"].isin({point.name for point in read_plan(PLAN)})]))


def result(folder: Path, told: str, agrees: bool) -> str:
    """The first screen, as HTML: whether all agrees, the main table, the ladder of notebook 00, and the machine."""
    facts = machine()
    versions = [f"Python {facts['python']}", *(f"{name} {number}" for name, number in facts["versions"].items())]
    where = f"{facts['device']}, {facts['cores']} cores; {', '.join(versions)}; commit {facts['commit'][:10]}"
    table = main_table(folder).to_html(border=0)
    ladder = folder / "figures" / "ladder.png"
    image = base64.b64encode(ladder.read_bytes()).decode() if ladder.exists() else ""
    return f"""<p>{time.strftime("%d %B %Y, %H:%M")}. {html.escape(where)}{"*" * bool(facts["dirty"])}.</p>
<p><b>{"All agrees with results/quick." if agrees else "Not all agrees with results/quick."}</b></p>
<pre>{html.escape(told)}</pre>
<div class=result><div class=jp-RenderedHTMLCommon><p>Handwritten digits: test accuracy (%)</p>{table}</div>
<img alt="Test accuracy of local CNNs, average, vote, CNN-DNN, transfer and global CNN, step by step"
 src="data:image/png;base64,{image}"></div>"""


def main(folder: str) -> int:
    output = Path(folder)
    output.mkdir(parents=True)
    if not run(output):
        return 1
    print(f"[report] {'':24} about {REPORT} s left", flush=True)
    plan = str(PLAN)
    if code := command(["report", folder, "--plan", plan, "--dataset", "digits", "--output", f"{folder}/report"]):
        return code
    shutil.copy(output / "report" / "report.ipynb", output / "05_report.ipynb")
    told = io.StringIO()
    with redirect_stdout(told), redirect_stderr(told):
        code = command(["compare", folder, str(HERE.parent / "results" / "quick")])
    print(told.getvalue(), end="")
    whole, first = output / "notebooks.html", result(output, told.getvalue(), code == 0)
    whole.write_text(page(sorted(output.glob("[0-9]*.ipynb")), "What was reproduced", first), encoding="utf-8")
    print(f"\nHandwritten digits: test accuracy (%)\n{main_table(output).to_string()}\n")
    print(f"the ladder, step by step:  {output / 'figures' / 'ladder.png'}")
    print(f"all notebooks as one page: {whole}")
    return code


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        print("\ninterrupted; what was finished is kept", file=sys.stderr, flush=True)
        os._exit(130)  # at once: threads would wait for their kernels, which end with this process
