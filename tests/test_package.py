"""What holds for the package as a whole: its floors, its size, what it imports, its two lists of requirements."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import ddlib

pytest_plugins = ("pytester",)

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(ddlib.__file__).parent
FILES = sorted(path.relative_to(HERE) for path in HERE.rglob("*.py"))
# What the files of a folder may import: the method stands on `networks` and `_internal`, all else on the method.
BELOW = {"_internal", "networks"}
METHOD = BELOW | {""}
WINGS = {
    "_internal": {"_internal"},
    "networks": BELOW,
    "": METHOD,
    "parallel": METHOD | {"parallel"},
    "data": METHOD | {"parallel", "data"},
    "study": METHOD | {"parallel", "data", "study"},
    "report": METHOD | {"parallel", "data", "study", "report"},
    "cost": METHOD | {"parallel", "data", "study", "cost"},
}


def imported(path):
    """Modules of ddlib that a file imports anywhere, also in functions and for type checkers: ("wing", "module")."""
    package = ("ddlib", *path.parts[:-1])
    for node in ast.walk(ast.parse((HERE / path).read_text())):
        if isinstance(node, ast.ImportFrom):
            base = (*package[: len(package) + 1 - node.level], *filter(None, [node.module])) if node.level else ()
            base = base or tuple((node.module or "").split("."))
            names = [(*base, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        else:
            continue
        for _, *parts in (name for name in names if name[0] == "ddlib"):
            if len(parts) > 1 and (HERE / parts[0]).is_dir():
                yield parts[0], parts[1]
            elif (HERE / f"{parts[0]}.py").is_file():
                yield "", parts[0]


@pytest.mark.parametrize("path", [p for p in FILES if p.name not in ("__init__.py", "__main__.py")], ids=str)
def test_a_file_imports_from_its_own_wing_or_those_below(path):
    wing = path.parts[0] if len(path.parts) > 1 else ""
    assert {other for other, _ in imported(path)} <= WINGS[wing]


def test_nothing_goes_in_circles():
    graph = {(p.parts[0] if len(p.parts) > 1 else "", p.stem): {*imported(p)} for p in FILES if p.stem != "__init__"}
    while graph:
        free = [name for name, needs in graph.items() if not needs & graph.keys()]
        assert free, f"circular imports among {sorted(graph)}"
        for name in free:
            del graph[name]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_and_its_functions_can_be_read_to_their_end(path):
    text = (HERE / path).read_text()
    assert len(text.splitlines()) <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 55, node.name


def test_every_public_name_says_what_it_is():
    for name in ddlib.__all__:
        thing = getattr(ddlib, name)
        assert name in dir(ddlib)
        assert not callable(thing) or (thing.__doc__ or "").strip(), name


def test_importing_is_light():
    """Neither the package nor the names that every training needs pull in the slow libraries."""
    code = (
        "import sys, ddlib\n"
        "heavy = ('pandas', 'matplotlib', 'torchvision', 'sklearn', 'scipy')\n"
        "print([name for name in heavy if name in sys.modules])\n"
        "ddlib.Decomposition, ddlib.LocalCNNs, ddlib.Recipe, ddlib.train_local, ddlib.Experiment, ddlib.load_dataset\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[]"]


# ── requirements ──

CONDA = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


def split(line):
    name, bound = re.fullmatch(r"([A-Za-z0-9_.-]+)\s*(.*)", line).groups()
    return CONDA.get(name, name), bound.replace(" ", "")


def test_conda_and_pip_are_told_the_same():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = dict(map(split, [*project["dependencies"], *(line for lines in extras.values() for line in lines)]))
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    lines = [line for line in conda["dependencies"] if isinstance(line, str)]
    for section in conda["dependencies"]:
        if isinstance(section, dict):
            lines += [line for line in section["pip"] if not line.startswith("-e")]
    given = dict(map(split, lines))
    assert given.pop("python") == project["requires-python"] == ">=3.11"
    given.pop("pip", None)
    assert given == asked
    assert all(bound.startswith(">=") for bound in asked.values())
    assert conda["channels"] == ["conda-forge"]


def third_party():
    for path in HERE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from [(alias.name.split(".")[0], path.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield node.module.split(".")[0], path.name


def test_whatever_is_imported_is_required():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    known = {re.match(r"[\w-]+", line)[0].replace("-", "_") for line in lines} | {"ddlib"}
    names = {
        "sklearn": "scikit_learn",
        "yaml": "pyyaml",
        "IPython": "jupyterlab",
        "PIL": "torchvision",
        "joblib": "scikit_learn",
        "packaging": "matplotlib",
    }
    for name, where in third_party():
        if name not in sys.stdlib_module_names:
            assert names.get(name, name) in known, f"{where} imports {name}"


# ── the rule for tests on real data ──


@pytest.mark.parametrize(("folder", "outcomes"), [(None, {"skipped": 2}), ("somewhere", {"passed": 1, "failed": 1})])
def test_a_skipped_test_on_real_data_fails_where_there_are_data(pytester, monkeypatch, folder, outcomes):
    if folder is None:
        monkeypatch.delenv("DDLIB_DATA", raising=False)
    else:
        monkeypatch.setenv("DDLIB_DATA", folder)
    pytester.makeconftest((Path(__file__).parent / "conftest.py").read_text())
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.real_data
        def test_one():
            pass

        @pytest.mark.real_data
        def test_two():
            pytest.skip("not now")
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-rs", "--strict-markers")
    result.assert_outcomes(**outcomes)
    if folder is None:
        result.stdout.fnmatch_lines(["*set DDLIB_DATA*"])
    else:
        result.stdout.fnmatch_lines(["*was skipped although DDLIB_DATA is set*"])
