"""The examples of extending.md run as they stand there."""

import re
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pytest

from ddlib.data.sets import DATASETS
from ddlib.networks.backbones import BACKBONES
from ddlib.strategies import STRATEGIES
from ddlib.training import RECIPES

PAGE = Path(__file__).parents[1] / "extending.md"
README = Path(__file__).parents[1] / "README.md"


def test_examples_run():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) >= 7
    names: dict = {}
    with ExitStack() as stack:
        for registry in (STRATEGIES, RECIPES, BACKBONES, DATASETS):
            stack.enter_context(patch.dict(registry))  # as before afterwards
        for block in blocks:
            needed = re.search(r"(?:from|import) (\w+).*# pip install", block)
            if not needed or find_spec(needed[1]):
                exec(block, names)
    assert set(names["first"]["strategy"]) == {"global", "local", "average", "vote", "cnn-dnn", "coherent", "transfer"}
    assert len(names["local"]) == 4
    assert names["p"].shape == names["q"]["test"].shape == (30, 4, 3)
    assert list(names["table"].columns) == ["local", "vote", "median"]
    assert [row[3:5] for row in names["table"].index] == [("2x2", 0), ("2x2", 2)]


@pytest.mark.slow
def test_the_lines_of_the_readme_run(capsys):
    (block,) = re.findall(r"## The library in five lines\n\n```python\n(.*?)```", README.read_text(), re.S)
    exec(block, {})
    assert float(capsys.readouterr().out.split()[-1]) > 0.9
