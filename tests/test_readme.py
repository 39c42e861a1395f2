"""What the README and its companions promise: links, commands and numbers."""

import re
from pathlib import Path

import numpy as np
import pytest

import ddlib
from ddlib.__main__ import parser

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("results/*.md")])
README = (ROOT / "README.md").read_text()


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
    commands = parser()._subparsers._group_actions[0].choices
    for command in re.findall(r"(?:^|`)(?:ddlib|python -m ddlib) ([a-z]+)", text, re.M):
        assert command in commands, command
    for path in re.findall(r"(?:^|`)papermill (notebooks/\d\w+\.ipynb)", text, re.M):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"notebooks/(?:params|plans)/\w+\.yaml", text):
        assert (ROOT / path).exists(), path


def test_the_main_table_is_that_of_the_records():
    frame = ddlib.gather(ROOT / "results/cifar10")
    point = {"backbone": "vgg9", "width": 32, "epochs": 12, "variant": ""}
    frame = frame[np.logical_and.reduce([frame[name] == value for name, value in point.items()])]
    table = ddlib.accuracy_table(frame).reset_index()
    heads = re.search(r"^\| test accuracy, %(.*)\|$", README, re.M).group(1).split("|")[1:]
    columns = [{"global CNN": "global", "local (mean)": "local"}.get(h.strip(), h.strip().lower()) for h in heads]
    rows = re.findall(r"^\| ([\dx×]+), overlap (\d+) \|(.*)\|$", README, re.M)
    assert len(rows) >= 3
    for grid, overlap, values in rows:
        known = table[(table["grid"] == grid.replace("×", "x")) & (table["overlap"] == int(overlap))]
        assert [v.strip() for v in values.split("|")] == known[columns].iloc[0].tolist(), (grid, overlap)


def test_every_notebook_is_in_the_map():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert f"notebooks/{path.name}" in README, path.name
