"""The notebooks as papermill and nbval see them."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
import yaml
from helpers import ALONE
from nbclient import NotebookClient
from PIL import Image

import ddlib
from ddlib.study import parameters as nb
from ddlib.study.records import ROW

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PARAMS = sorted((ROOT / "notebooks" / "params").glob("*.yaml"))


def named(path: Path) -> str:
    return path.stem


def notebooks_of(params: Path) -> list[Path]:
    """The notebooks that a params file names in its first lines."""
    return [ROOT / found for found in re.findall(r"papermill (notebooks/\w+\.ipynb)", params.read_text())]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_skeleton(path: Path):
    cells = nbformat.read(path, 4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    ran = [cell for cell in code if "skip-execution" not in cell.metadata.get("tags", [])]
    assert all(cell.execution_count for cell in ran), "committed after a run of all cells"
    assert not any(cell.outputs for cell in code if cell not in ran), "widgets are for a running kernel alone"
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error" or o.get("name") == "stderr"]
    for link in re.findall(
        r"\]\(([^)#:]+)(?:#[^)]*)?\)", "\n".join(c.source for c in cells if c.cell_type == "markdown")
    ):
        assert (path.parent / link).exists(), link
    first_compared_text(nbformat.read(path, 4))  # nbval compares a text of every notebook


@pytest.mark.parametrize("path", NOTEBOOKS[:4], ids=named)
def test_a_cell_fits_on_a_screen(path: Path):
    """At most 20 cells, of at most 25 lines, and no call with more than eight arguments."""
    cells = nbformat.read(path, 4).cells
    code = {cell.id: cell.source for cell in cells if cell.cell_type == "code"}
    assert len(cells) <= 20
    assert not {name: text for name, text in code.items() if len(text.splitlines()) > 25}
    calls = [node for text in code.values() for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    assert not [ast.unparse(call) for call in calls if len(call.args) + len(call.keywords) > 8]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_parameters_have_help_and_are_read_by_papermill(path: Path):
    inferred = papermill.inspect_notebook(str(path))
    source = next(c.source for c in nbformat.read(path, 4).cells if "parameters" in c.metadata.get("tags", []))
    assert set(inferred) == set(nb.ASSIGNED.findall(source))
    assert all(parameter["help"] for parameter in inferred.values())
    assert "output" in inferred


@pytest.mark.parametrize("path", PARAMS, ids=named)
def test_params_files_set_what_their_notebook_has(path: Path):
    given = yaml.safe_load(path.read_text())
    assert notebooks_of(path)
    for notebook in notebooks_of(path):
        inferred = papermill.inspect_notebook(str(notebook))
        assert set(given) <= set(inferred)
        assert f"-f {path.relative_to(ROOT)}" in path.read_text()


def first_compared_text(notebook: nbformat.NotebookNode) -> tuple[int, nbformat.NotebookNode]:
    """The first cell with a text that nbval compares, and that output."""
    for k, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and "nbval-ignore-output" not in cell.metadata.get("tags", []):
            for output in cell.outputs:
                if "text" in output:
                    return k, output
    raise AssertionError("nbval compares no text")


@pytest.mark.slow
def test_nbval_fails_when_a_committed_output_is_changed(tmp_path: Path):
    """It alone fails, and what comes before it passes."""
    path = next(path for path in NOTEBOOKS if path.stem == "01_decompositions")
    whole = nbformat.read(path, 4)
    k, output = first_compared_text(whole)
    whole.cells = whole.cells[: k + 1]  # the rest would only take time
    output["text"] = output["text"].replace(output["text"].strip()[0], "changed", 1)
    nbformat.write(whole, tmp_path / path.name)
    command = [sys.executable, "-m", "pytest", "--nbval", "-q", "-p", "no:cacheprovider", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=ALONE)
    assert re.findall(r"^FAILED (\S+)::", done.stdout, re.M) == [path.name], done.stdout[-3000:]


@pytest.mark.slow
def test_an_unknown_parameter_stops_the_notebook(tmp_path: Path):
    with pytest.raises(
        papermill.PapermillExecutionError, match=r"unknown notebook parameter 'epoch'\. Did you mean 'epochs'"
    ):
        papermill.execute_notebook(
            str(ROOT / "notebooks/02_aggregation.ipynb"), str(tmp_path / "out.ipynb"), {"epoch": 3}, progress_bar=False
        )
    executed = [
        c for c in nbformat.read(tmp_path / "out.ipynb", 4).cells if c.cell_type == "code" and c.execution_count
    ]
    assert len(executed) == 4  # imports, parameters, injected parameters, the check: nothing has been trained


def until_the_check(path: Path, monkeypatch: pytest.MonkeyPatch, injected: str) -> str:
    """Run a notebook's cells up to the one after its parameters, as papermill would with these injected; that cell."""
    code = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    code = [c for c in code if "skip-execution" not in c.metadata.get("tags", [])]
    at = next(k for k, c in enumerate(code) if "parameters" in c.metadata.get("tags", [])) + 1
    sources = [c.source + "\n" for c in code[:at]] + [f"# Parameters\n{injected}\n"]
    monkeypatch.setattr(nb, "_executed_cells", lambda: sources)
    names: dict = {}
    for source in [*sources, code[at].source]:
        exec(source, names)
    return code[at].source


WRONG = {
    "dataset": ("'cifar1'", "Did you mean 'cifar10'"),
    "grid": ("'2y2'", "'2y2'"),
    "grids": ("'2x2 2y2'", "'2y2'"),
    "epochs": ("0", "epochs must be a whole number ≥ 1, got 0"),
    "profile": ("'quik'", "Did you mean 'quick'"),
    "beside": ("'no/folder'", "there is no folder"),
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_a_wrong_name_or_value_stops_a_notebook_in_its_check(path: Path, monkeypatch):
    known = list(papermill.inspect_notebook(str(path)))
    with pytest.raises(nb.ParameterError, match=f"'{known[0]}z'. Did you mean '{known[0]}'"):
        until_the_check(path, monkeypatch, f"{known[0]}z = 1")
    check = until_the_check(path, monkeypatch, "output = None")
    trains = "points(" in check or "checking(" in check
    for name in [name for name in WRONG if name in known and trains]:
        value, told = WRONG[name]
        with pytest.raises(nb.ParameterError, match=re.escape(told)):
            until_the_check(path, monkeypatch, f"{name} = {value}")


def told_of(monkeypatch: pytest.MonkeyPatch, *cells: str) -> None:
    monkeypatch.setattr(nb, "_executed_cells", lambda: [f"{cell}\n" for cell in cells])
    with nb.checking("epochs", "width"):
        pass


def test_injected_parameters_are_held_to_the_notebooks_own(monkeypatch: pytest.MonkeyPatch):
    """Also where that cell is edited and run again."""
    cells = "import ddlib", "epochs = 3\noutput: str = ''", "# Parameters\nepochs = 4\noutput = 'x'"
    told_of(monkeypatch, *cells)
    told_of(monkeypatch, *cells, "points", "# Parameters\nepochs = 5\noutput = 'y'")
    told_of(monkeypatch, *cells[:2], "# Parameters\nPAPERMILL_INPUT_PATH = 'a'\nPAPERMILL_OUTPUT_PATH = 'b'")
    for before in (cells[:2], cells):
        with pytest.raises(nb.ParameterError, match=r"'widht'\. Did you mean 'width'"):
            told_of(monkeypatch, *before, "points", "# Parameters\nwidht = 5")


@pytest.mark.parametrize(
    ("grids", "seeds"),
    [("2x2 4x4", "0 1"), ("2x2, 4x4", [0, 1]), (["2x2", "4x4"], ["0", 1]), ([(2, 2), [4, 4]], [0, 1])],
)
def test_points_are_the_product_of_lists_or_texts(grids, seeds):
    found = ddlib.points(["local", "vote"], grids=grids, overlaps=0, seeds=seeds)
    assert found == ddlib.points("local vote", grids="2x2 4x4", overlaps="0", seeds="0 1")
    assert [(p.grid, p.seed) for p in found] == [("2x2", 0), ("2x2", 1), ("4x4", 0), ("4x4", 1)]


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("output: out\nrate: 1e-2\nepochs: 1e1\n")
    experiment, output = nb.read_point(tmp_path / "config.yaml")
    assert (experiment.rate, experiment.epochs, output) == (0.01, 10, ROOT / "out")
    assert experiment.name == ddlib.Experiment(rate=0.01, epochs=10).name
    assert nb.whole_numbers("ranks", "1 2") == nb.whole_numbers("ranks", [1, 2.0]) == [1, 2]
    with pytest.raises(nb.ParameterError, match="ranks must be a whole number ≥ 1, got 'two'"):
        nb.whole_numbers("ranks", "two")


def test_a_grid_can_have_an_overlap_of_its_own():
    found = ddlib.points("local", grids="2x2 2x2+4 4x4", overlaps="0 2", seeds="0")
    assert [(p.grid, p.overlap) for p in found] == [("2x2", 0), ("2x2", 2), ("2x2", 4), ("4x4", 0), ("4x4", 2)]


SPELT = [
    ("01_decompositions", "grids = '2x2 3x3'", "grid = '2x2 3x3'"),
    ("01_decompositions", "overlaps = 2", "overlap = [2]"),
    ("02_aggregation", "grids = '2x2'", "grid = (2, 2)"),
    ("02_aggregation", "seeds = [0, 1]", "seed = '0 1'"),
    ("06_scaling", "grid = '2x3'", "grids = '2x3'"),
    ("08_regimes", "seeds = [0, 1]", "seed = [0, 1]"),
    ("07_channel_decomposition", "seeds = [0, 1]", "seed = [0, 1]"),
    ("10_what_pays", "local_widths = 'full'", "local_width = 'full'"),
]


@pytest.mark.parametrize(("name", "usual", "other"), SPELT)
def test_a_parameter_means_the_same_under_both_names(name: str, usual: str, other: str, monkeypatch):
    """As papermill injects it, in a notebook that has the first."""
    path = ROOT / f"notebooks/{name}.ipynb"
    asked = points_of(path, monkeypatch, usual)
    assert asked == points_of(path, monkeypatch, other)
    assert asked != points_of(path, monkeypatch, "output = None")


def points_of(path: Path, monkeypatch: pytest.MonkeyPatch, injected: str) -> list[ddlib.Experiment]:
    found: list[list[ddlib.Experiment]] = []
    make = ddlib.points
    with monkeypatch.context() as patch:
        for place in (ddlib, nb):
            patch.setattr(place, "points", lambda *a, **k: found.append(make(*a, **k)) or found[-1])
        until_the_check(path, patch, injected)
    return found[0]


def test_a_notebook_of_one_point_takes_lists_of_one(monkeypatch: pytest.MonkeyPatch):
    path = ROOT / "notebooks/00_quickstart.ipynb"
    for injected in ("grids = '2x2'", "grid = ['2x2']", "grids = ['2x2']\nseeds = 0"):
        assert [point.grid for point in points_of(path, monkeypatch, injected)] == ["2x2"]
    for injected in ("grids = '2x2 4x4'", "grid = ['2x2', '4x4']"):
        with pytest.raises(nb.ParameterError, match=r"this notebook takes one grid, got \['2x2', '4x4'\]"):
            until_the_check(path, monkeypatch, injected)
    with pytest.raises(nb.ParameterError, match="unknown notebook parameter 'grids'"):
        until_the_check(path, monkeypatch, "grid = '2x2'\ngrids = '4x4'")


def test_a_parameter_under_both_names_is_refused():
    for one, other in (("grids", "grid"), ("lengths", "epochs"), ("parts", "channel_parts")):
        with pytest.raises(nb.ParameterError, match=f"{one} and {other} are the same parameter"):
            ddlib.points("local", **{one: "4", other: 2})


def test_each_card_shows_a_figure_of_its_own_notebook():
    cards = re.findall(r'src="\.\./(\S+?)".*\]\((\w+\.ipynb)\)', (ROOT / "notebooks/README.md").read_text())
    assert [name for _, name in cards] == [path.name for path in NOTEBOOKS]
    for figure, name in cards:
        code = "\n".join(cell.source for cell in nbformat.read(ROOT / "notebooks" / name, 4).cells)
        assert f'"{Path(figure).stem}")' in code
        assert (ROOT / figure).exists()


def test_a_needed_strategy_may_be_one_of_several():
    (point,) = ddlib.points("local vote cnn-dnn", needs="local cnn-dnn average|vote", grids="2x2")
    assert point.strategies == ("local", "vote", "cnn-dnn")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"grids": "2x"}, "'2x'"),
        ({"grids": "2x2+x"}, "'x'"),
        ({"overlaps": "two"}, "'two'"),
        ({"seeds": ""}, "seeds"),
        ({"epochs": "three"}, "'three'"),
        ({"dataset": "digit"}, "Did you mean 'digits'"),
        ({"strategies": "local averag", "needs": "cnn-dnn"}, "Did you mean 'average'"),
        (
            {"needs": "local cnn-dnn average|vote"},
            "this notebook needs cnn-dnn and average or vote among its strategies",
        ),
        ({"precision": "fp16"}, "Allowed: 'auto', 'fp32', 'bf16'"),
    ],
)
def test_a_wrong_value_is_told_in_one_sentence(given: dict, told: str):
    with pytest.raises(nb.ParameterError, match=re.escape(told)) as caught:
        ddlib.points(**{"strategies": "local", **given})
    assert caught.value._render_traceback_() == [f"ParameterError: {caught.value}"]


def reference(tmp_path: Path) -> tuple[pd.DataFrame, Path]:
    row = dict.fromkeys(ROW, 0) | {"strategy": "vote", "subdomain": "", "record": "r", "test_accuracy": 0.9}
    frame = pd.DataFrame([row])
    frame.to_csv(tmp_path / "reference.csv", index=False)
    return frame, tmp_path / "reference.csv"


def test_agrees_holds_a_table_to_its_reference(tmp_path: Path, capsys: pytest.CaptureFixture):
    frame, path = reference(tmp_path)
    nb.agrees(frame.assign(test_accuracy=0.94), path, 0.05)
    assert "Every test accuracy agrees with" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="vote"):
        nb.agrees(frame.assign(test_accuracy=0.84), path, 0.05)
    with pytest.raises(AssertionError):
        nb.agrees(frame.assign(test_accuracy=float("nan")), path, 0.05)
    coherent = frame.assign(strategy="coherent", test_accuracy=0.1)
    nb.agrees(pd.concat([frame, coherent]), path, 0.05)
    assert "Every test accuracy but those of the coherent model agrees with" in capsys.readouterr().out
    more = pd.concat([frame, frame.assign(strategy="average", test_accuracy=0.1)])
    assert nb.agrees(more, path, 0.05)
    assert "No reference for average in" in capsys.readouterr().out
    nb.agrees(frame.assign(record="another"), path, 0.05)
    assert "No reference" in capsys.readouterr().out


def test_output_folders_do_not_depend_on_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    assert nb.resolve("results") == ROOT / "results"
    assert nb.resolve(tmp_path / "x") == tmp_path / "x"
    assert nb.output_folder(str(tmp_path / "new" / "folder")).is_dir()
    assert nb.output_folder(None) is nb.output_folder("None") is None
    with pytest.raises(nb.ParameterError, match="output must name a folder, or be None, got ''"):
        nb.output_folder("")
    monkeypatch.setattr(nb, "project_folder", lambda: tmp_path)
    nb.output_folder("runs/mine")
    assert f"output: {tmp_path / 'runs/mine'}\n" in capsys.readouterr().out


def test_a_table_is_replaced_only_by_one_that_has_all_its_records(tmp_path: Path):
    one, both, other = (pd.DataFrame({"record": names}) for names in (["a"], ["a", "b"], ["c"]))
    assert nb.tables_folder(None, "transfer", one) is None
    assert nb.tables_folder(tmp_path, "transfer", one) == tmp_path
    one.to_csv(tmp_path / "transfer.csv")
    assert nb.tables_folder(tmp_path, "transfer", both) == tmp_path
    both.to_csv(tmp_path / "transfer.csv")
    apart = {nb.tables_folder(tmp_path, "transfer", table) for table in (one, other)}
    assert len(apart) == 2
    assert {folder.parent for folder in apart} == {tmp_path / "tables"}
    assert all(folder.is_dir() for folder in apart)
    assert nb.tables_folder(tmp_path, "aggregation", other) == tmp_path


def test_parameters_of_a_notebook_are_those_of_its_own_cell(monkeypatch: pytest.MonkeyPatch):
    """Not what later cells assign; outside IPython, all that `points` takes."""
    names = {"epochs": 3, "grids": "2x2", "output": None, "rate": 7.0, "other": 1}
    assert ddlib.parameters(names) == {"epochs": 3, "grids": "2x2", "rate": 7.0}
    monkeypatch.setattr(nb, "_executed_cells", lambda: ["epochs = 3\ngrids = '2x2'\noutput = None\n", "rate = 7.0\n"])
    assert ddlib.parameters(names) == {"epochs": 3, "grids": "2x2"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["02_aggregation", "03_transfer_learning"])
def test_a_table_on_record_needs_no_data_set(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DDLIB_DATA", str(tmp_path / "empty"))
    (tmp_path / "empty").mkdir()
    given = yaml.safe_load((ROOT / "notebooks/params/cifar10_vgg9.yaml").read_text())
    shutil.copytree(ROOT / given["output"], tmp_path / "records")
    given["output"] = str(tmp_path / "records")
    executed = tmp_path / "out.ipynb"
    papermill.execute_notebook(str(ROOT / f"notebooks/{name}.ipynb"), str(executed), given, progress_bar=False)
    assert "test_accuracy" in pd.read_csv(next((tmp_path / "records").glob("*.csv")))


SMALL = {  # what is set after a notebook's own parameters
    "00_quickstart": "",
    "01_decompositions": "",
    "02_aggregation": "grids, epochs, dense_epochs, train_size = '2x2', 1, 2, 200",
    "03_transfer_learning": "grids, overlaps, epochs, dense_epochs, train_size = '2x2', 0, 1, 2, 200",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_cell_can_be_run_again(name: str):
    """In place, twice: what nbval compares stays the same, and so do the accuracies."""
    notebook = nbformat.read(ROOT / f"notebooks/{name}.ipynb", 4)
    code = [c for c in notebook.cells if c.cell_type == "code" and "skip-execution" not in c.metadata.get("tags", [])]
    own = next(cell for cell in code if "parameters" in cell.metadata.get("tags", []))
    own.source += f"\n{SMALL[name]}"
    notebook.cells = code
    client = NotebookClient(notebook, timeout=300, kernel_name="python3")

    def told(cell: nbformat.NotebookNode) -> str:
        client.execute_cell(cell, code.index(cell))
        return SECONDS.sub("", "".join(map(text_of, cell.outputs)))

    with client.setup_kernel():
        for cell in code:
            assert told(cell) == told(cell), cell.id
        for cell in [cell for cell in code if cell.id == "accuracies"]:  # after transfer, too
            before = "".join(map(text_of, cell.outputs))
            assert told(cell) == before


SECONDS = re.compile(r"[\d.]+ s\b")  # a clock is no result


def text_of(output: nbformat.NotebookNode) -> str:
    """What is printed, and tables as text, but not those that are styled, which are known by their address."""
    shown = output.get("data", {}).get("text/plain", "")
    return output.get("text", "" if re.match("<.* at 0x", shown) else shown)


def test_the_batch_follows_a_small_folder_of_images(tmp_path: Path, capsys: pytest.CaptureFixture):
    for number in range(60):
        folder = tmp_path / "photos" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (point,) = ddlib.points("local", dataset="image_folder", options=f"path={tmp_path / 'photos'} size=16", grids="2x2")
    images = len(point.data().train)
    assert point.batch_size == images // 4
    assert f"batch_size 128 → {images // 4}: there are {images} training images\n" in capsys.readouterr().out
