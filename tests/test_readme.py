"""What the README and its companions promise: links, commands and numbers."""

import re
import runpy
from pathlib import Path

import pandas as pd
import pytest

import ddlib
from ddlib.__main__ import commands

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for folder in (".", "docs", "notebooks", "results") for path in (ROOT / folder).glob("*.md"))
README = (ROOT / "README.md").read_text()
RECORDS = (ROOT / "results/README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path):
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_exist(page: Path):
    text = page.read_text()
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    for target in re.findall(r"(?:^|`)make ([a-z]+)", text, re.M):
        assert target in targets, target
    for command in re.findall(r"(?:^|`)(?:ddlib|python -m ddlib) ([a-z]+)", text, re.M):
        assert command in commands.commands, command
    for path in re.findall(r"(?:^|`)papermill (notebooks/\d\w+\.ipynb)", text, re.M):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"notebooks/(?:params|plans)/(?!NAME)\w+\.yaml", text):
        assert (ROOT / path).exists(), path


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub and the site make them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_to_headings_lead_to_one(page: Path):
    for link, anchor in re.findall(r"\]\(([^)#:]*\.md|)#([^)]+)\)", page.read_text()):
        assert anchor in anchors((page.parent / link) if link else page), f"{link}#{anchor}"


def test_the_readme_is_read_in_five_minutes():
    def words(text):
        return sum(any(map(str.isalnum, word)) for word in text.split())

    assert words(README) <= 1200
    assert len(README.split()) <= 1500
    assert words(README.partition("\n| ")[0]) <= 170, "first table"
    assert words(README.partition("\nmake ")[0]) <= 340, "first command"
    code = re.sub(r"^```.*?^```$", "", README, flags=re.M | re.S)
    paragraphs = [part for part in re.split(r"\n\n|\n(?=- )", code) if not part.startswith("|")]
    assert max(len(paragraph.split()) for paragraph in paragraphs) <= 80


def test_what_executors_take_is_that_of_the_benchmark():
    page, folder = (ROOT / "docs/cluster.md").read_text(), ROOT / "results/bench/executors"
    table, mpi = (pd.read_csv(path / "executors.csv").query("per_task == 1") for path in (folder, folder / "mpi"))
    table = table[table["executor"] != "threads"]  # with two threads each, as the caller has
    named = table[table["images"] == "by name"]["ratio"]
    assert f"{named.min():.2f} to {named.max():.2f} of the time of the loop" in page
    assert f"MPI {mpi[mpi['images'] == 'by name']['ratio'].item():.2f} (" in page
    assert (pd.concat([table, mpi])["difference to the loop"] == 0).all()
    carried = mpi.set_index("images")["bytes a task"] / 1e6
    assert (
        f"{carried['by name']:.2f} MB; images without a name travel with every task, {carried['as tensors']:.1f} MB"
        in page
    )


def test_bf16_moves_accuracies_as_little_as_is_said():
    frame = ddlib.gather(ROOT / "results/precision")
    frame["precision"] = frame["computed"].str.split(", ").str[-1]
    mean = frame.groupby(["grid", "precision", "strategy", "seed"])["test_accuracy"].mean()
    mean = 100 * mean.groupby(["grid", "strategy", "precision"]).mean().round(6)
    for grid in ("2x2", "4x4"):
        cells = [[mean[grid, name, p] for p in ("bf16", "fp32")] for name in ("local", "average", "vote", "cnn-dnn")]
        line = " | ".join(f"{a:.1f} / {b:.1f}" for a, b in cells)
        assert f"| {grid.replace('x', '×')} | {line} |" in RECORDS


def test_every_folder_of_results_is_explained():
    folders = [path for path in (ROOT / "results").iterdir() if path.is_dir()]
    lines = [line for line in RECORDS.splitlines() if line.startswith("| [")]
    assert {f"[{path.name}]({path.name})" for path in folders} == set(
        re.findall(r"\[\w+\]\(\w+\)", " ".join(line.split(" | ")[0] for line in lines))
    )
    assert "None is outdated." in RECORDS
    for path in folders:
        if any(path.rglob("*.npz")):
            assert not any(ddlib.gather(folder)["outdated"].any() for folder in {p.parent for p in path.rglob("*.npz")})


def test_every_notebook_is_in_the_map():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert f"notebooks/{path.name}" in README, path.name
        assert path.name in (ROOT / "notebooks/README.md").read_text(), path.name


def test_the_page_of_all_notebooks_opens_offline():
    """What `make reproduce` ends with: figures within, formulas as MathML, and links from part to part."""
    paths = sorted((ROOT / "notebooks").glob("0[01]_*.ipynb"))
    html = runpy.run_path(str(ROOT / "notebooks/reproduce.py"))["page"](paths, "All notebooks")
    assert "<script" not in html
    assert not re.findall(r"(?:src|srcset)=\"(?!data:)|<link [^>]*href|@import|url\(\s*[\"']?http", html)
    assert 'src="data:image/png' in html
    assert "<math" in html
    assert "<mi>w</mi><mo>&#x0002F;</mo><msqrt><mi>N</mi></msqrt>" in html  # the width of a local CNN
    assert not re.search(r"<math[^>]*></math>|<m[a-z]+></m|MATHML", html), "a formula is empty"
    assert not re.search(r"\$[^$<>\n]{1,40}\$", re.sub(r"<pre>.*?</pre>", "", html, flags=re.S)), "a formula is left"
    for path in paths:
        assert f'id="{path.stem}"' in html
        assert f'href="#{path.stem}"' in html
