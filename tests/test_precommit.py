"""The pre-commit hooks: they need no network, pass on what is committed, and refuse what they should."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
HOOKS = {
    hook["id"]: hook
    for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    for hook in repo["hooks"]
}


def run(hook: str, *files: Path) -> int:
    program, *arguments = shlex.split(HOOKS[hook]["entry"])
    program = {"python": sys.executable, "ruff": str(Path(sys.executable).with_name("ruff"))}[program]
    return subprocess.run([program, *arguments, *map(str, files)], capture_output=True, cwd=ROOT).returncode


def test_hooks_are_local():
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    assert {hook["language"] for hook in HOOKS.values()} == {"system"}


def test_what_is_committed_passes():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    if not files:
        pytest.skip("not a git checkout")
    assert run("size", *files) == 0
    assert run("nbformat", *[path for path in files if path.suffix == ".ipynb"]) == 0


def test_what_should_not_be_committed_is_refused(tmp_path: Path):
    (tmp_path / "large").write_bytes(bytes(2_000_001))
    (tmp_path / "bad.ipynb").write_text('{"cells": [{"cell_type": "code"}], "metadata": {}, "nbformat": 4}')
    (tmp_path / "bad.py").write_text("undefined_name\n")
    assert run("size", tmp_path / "large") == 1
    assert run("nbformat", tmp_path / "bad.ipynb") == 1
    assert run("ruff-check", tmp_path / "bad.py") == 1
