"""JupyterLab in a real browser: a notebook is opened and run from its menu, and what a reader then sees is checked.

One of them, with figures, a slider, tables and formulas, since nbval runs them all; with DDLIB_BROWSER=all all of them.
It needs a Chromium (or Chrome) on the PATH, or named by DDLIB_CHROMIUM.  DDLIB_SCREENSHOTS=FOLDER keeps pictures.
"""

import json
import os
import re
import runpy
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

import nbformat
import pytest
from nbconvert import HTMLExporter

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
SEEN = "*" if os.environ.get("DDLIB_BROWSER") == "all" else "01_*"
NOTEBOOKS = sorted((ROOT / "notebooks").glob(f"{SEEN}.ipynb"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = os.environ.get("DDLIB_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
LONGEST = 900  # seconds for one notebook, on a slow machine

try:
    from playwright.sync_api import sync_playwright
except ImportError:
    pytest.skip("needs playwright: pip install 'ddlib[test]'", allow_module_level=True)
if CHROMIUM is None:
    pytest.skip("needs Chromium: apt-get install chromium, or set DDLIB_CHROMIUM", allow_module_level=True)


# What a reader sees in the page, as plain data.
LOOK = r"""() => {
  const visible = e => { const r = e.getBoundingClientRect(); return r.width > 0 && r.height > 0; };
  const panel = document.querySelector(".jp-NotebookPanel");
  const all = (css, within = panel) => [...within.querySelectorAll(css)];
  const text = mime => all(`[data-mime-type="application/vnd.jupyter.${mime}"]`).map(e => e.innerText.trim());
  return {
    status: panel.querySelector(".jp-Notebook-ExecutionIndicator")?.dataset.status,
    prompts: all(".jp-CodeCell .jp-InputArea-prompt").map(e => e.innerText.trim()),
    stderr: text("stderr").filter(text => text),
    bars: all(".jp-OutputArea-output").map(e => e.innerText).filter(t => /\d+%\s*\|/.test(t)),
    figures: all(".jp-OutputArea-output img").filter(e => visible(e) && e.naturalWidth > 0).length,
    broken: all(".jp-OutputArea-output img").filter(e => e.complete && !e.naturalWidth).length,
    tables: all(".jp-OutputArea-output table").filter(e => visible(e) && e.rows.length > 1).length,
    headings: all(".jp-MarkdownOutput h1, .jp-MarkdownOutput h2").filter(visible).length,
    formulas: all(".jp-MarkdownOutput mjx-container").filter(visible).length,
    badFormulas: all("mjx-merror, [data-mjx-error]").length,
    sliders: all(".jp-OutputArea-output .widget-slider, .jp-OutputArea-output .jupyter-widgets input").length,
  };
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address of a JupyterLab on a copy of the notebooks, with the settings of `make lab`, and that copy's folder."""
    home = tmp_path_factory.mktemp("lab")
    folder = shutil.copytree(ROOT / "notebooks", home / "notebooks")
    for path in folder.glob("*.ipynb"):  # without outputs, so that what is seen is what the run made
        notebook = nbformat.read(path, 4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.update(outputs=[], execution_count=None)
        nbformat.write(notebook, path)
    for name, settings in {
        "notebook-extension/tracker": {"windowingMode": "none"},  # all cells are in the page at once
    }.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    places |= {
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    environment = {name: value for name, value in os.environ.items() if name != "DDLIB_PROGRESS"}
    environment |= {name: str(home / place) for name, place in places.items()}
    environment["JUPYTER_CONFIG_PATH"] = str(folder / ".lab")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--ip=127.0.0.1", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"]
    with (home / "log.txt").open("w") as log:
        server = subprocess.Popen(command, env=environment, cwd=home, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"

    def ask(path: str, method: str = "GET") -> bytes:
        with urlopen(Request(f"{address}/{path}", method=method, headers={"Authorization": f"token {token}"})) as reply:
            return reply.read()

    try:
        for _ in range(120):
            try:
                ask("api/status")
                break
            except OSError:
                assert server.poll() is None, (home / "log.txt").read_text()[-2000:]
                time.sleep(0.5)
        yield lambda name: f"{address}/lab/workspaces/{name[:-6]}/tree/{name}?token={token}", folder, ask
    finally:
        server.terminate()  # its kernels end with it
        server.wait(30)


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def run(lab, chromium):
    """A function that opens a notebook, runs all its cells and gives the page; afterwards its picture is kept."""
    address, _, ask = lab
    page = chromium.new_page(viewport={"width": 1280, "height": 1000})
    names = []

    def run_all(name: str):
        names.append(name)
        return page, *open_and_run(page, address(name))

    yield run_all
    keep_picture(page, names[0])
    page.close()
    for session in json.loads(ask("api/sessions")):
        ask(f"api/sessions/{session['id']}", "DELETE")


def open_and_run(page, address: str) -> tuple[dict, list[str]]:
    """Open a notebook, run all cells from the menu, wait for the end; what is seen then, and bars on the way."""
    page.goto(address)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    page.get_by_text(re.compile(r"Python 3.*\| Idle")).wait_for(timeout=60_000)  # in the status bar: it is connected
    for _ in range(3):  # a click that comes before the kernel is ready is lost
        page.locator(".lm-MenuBar-item", has_text=re.compile("^Run$")).click()
        page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
        page.wait_for_timeout(3000)
        if any(prompt != "[ ]:" for prompt in page.evaluate(LOOK)["prompts"]):
            break
    seen, bars, calm, end = {}, [], 0, time.monotonic() + LONGEST
    while calm < 3:
        assert time.monotonic() < end, f"still running after {LONGEST} s: {seen}"
        page.wait_for_timeout(250)
        seen = page.evaluate(LOOK)
        bars += seen["bars"]
        started = any(re.search(r"\d", prompt) for prompt in seen["prompts"])
        calm = calm + 1 if started and seen["status"] == "idle" and "[*]:" not in seen["prompts"] else 0
    return seen, bars


def problems(seen: dict, expected: dict[str, int]) -> list[str]:
    """What a reader would stumble over, a sentence each."""
    found = [f"{'error' if 'Traceback' in text else 'on stderr'}: {text[:300]}" for text in seen["stderr"]]
    found += [f"a progress bar has not ended: {text[:100]}" for text in seen["bars"]]
    found += [f"{seen['prompts'].count('[ ]:')} cells have not run"] if "[ ]:" in seen["prompts"] else []
    found += [f"{seen['broken']} broken images"] if seen["broken"] else []
    found += [f"{seen['badFormulas']} formulas cannot be set"] if seen["badFormulas"] else []
    return found + [f"{seen[k]} {k}, {n} expected" for k, n in expected.items() if seen[k] < n]


def committed(path: Path) -> dict[str, int]:
    """What the committed notebook shows, counted in the file."""
    cells = nbformat.read(path, 4).cells
    shown = [o.get("data", {}) for c in cells if c.cell_type == "code" for o in c.outputs]
    prose = [re.sub(r"`[^`]*`", "", c.source) for c in cells if c.cell_type == "markdown"]
    return {
        "figures": sum("image/png" in data for data in shown),
        "tables": sum("<table" in data.get("text/html", "") for data in shown),
        "headings": sum(len(re.findall(r"^##? ", text, re.M)) for text in prose),
        "formulas": sum(len(re.findall(r"\$\$.+?\$\$|\$[^$\n]+\$", text)) for text in prose),
    }


def keep_picture(page, name: str) -> None:
    """A picture of the whole notebook, where DDLIB_SCREENSHOTS names a folder."""
    if folder := os.environ.get("DDLIB_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
        height = page.evaluate("document.querySelector('.jp-WindowedPanel-inner').scrollHeight")
        page.set_viewport_size({"width": 1280, "height": min(16_000, int(height) + 120)})
        page.wait_for_timeout(500)
        page.screenshot(path=f"{folder}/{Path(name).stem}.png")


def slide(page) -> None:
    """Moving a slider draws the windows anew."""
    image = ".jp-OutputArea-output:has(.widget-slider) img"
    figure = page.locator(image)
    handles = page.locator(".jp-OutputArea-output .widget-slider .noUi-handle")
    assert handles.count() == 2
    for handle in handles.all():
        before = figure.get_attribute("src")
        handle.press("ArrowRight")
        page.wait_for_function(f"old => ![old, undefined].includes(document.querySelector('{image}')?.src)", arg=before)
    assert figure.evaluate("e => e.naturalWidth") > 0


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_the_menu(path: Path, run):
    page, seen, bars = run(path.name)
    assert problems(seen, committed(path)) == []
    source = path.read_text()
    if (
        re.search(r"\b(train_local|record|records_of)\(", source) and "progress=False" not in source
    ):  # what is timed shows none
        assert any(re.search(r"\d+%.*<\d+:\d\d", bar) for bar in bars), "no progress bar with the time left"
    if "IntSlider" in source:
        slide(page)


# ── the page that `make reproduce` ends with, and the settings of `make lab` ──


def test_a_link_unfolds_a_notebook_and_its_formulas_are_set(chromium, tmp_path: Path):
    make = runpy.run_path(str(ROOT / "notebooks/reproduce.py"))["page"]
    paths = [ROOT / "notebooks/00_quickstart.ipynb", ROOT / "notebooks/01_decompositions.ipynb"]
    (tmp_path / "page.html").write_text(make(paths, "What was reproduced"), encoding="utf-8")
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    page.goto((tmp_path / "page.html").as_uri(), timeout=120_000)
    formulas = page.locator("math")
    assert page.locator("details[open]").count() == 0
    assert formulas.count() > 5
    assert not any(formula.is_visible() for formula in formulas.all())
    page.click('a[href="#01_decompositions"] >> nth=0')
    opened = page.locator("details[open]")
    assert opened.count() == 1
    assert "Decompositions" in opened.locator("summary").first.inner_text()
    shown = [formula for formula in formulas.all() if formula.is_visible()]
    assert "N" in [formula.text_content().strip() for formula in shown]
    assert all(formula.bounding_box()["width"] > 3 for formula in shown)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    page.close()


def test_lab_opens_markdown_as_a_page_and_tells_no_news(lab, chromium):
    assert "JUPYTER_CONFIG_PATH=$(CURDIR)/notebooks/.lab " in (ROOT / "Makefile").read_text()
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.goto(lab[0]("README.md"))
    page.wait_for_selector(".jp-MarkdownViewer h1", timeout=60_000)
    page.wait_for_timeout(5000)  # a question would have come by then
    assert page.locator(".jp-FileEditor, .Toastify__toast, .jp-Dialog").count() == 0
    page.locator(".jp-MarkdownViewer a", has_text="05 Report").first.click()
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    page.close()


def test_nothing_in_the_report_is_wider_than_its_page(chromium, tmp_path: Path):
    html, _ = HTMLExporter().from_filename(ROOT / "notebooks/05_report.ipynb")
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    page = chromium.new_page(viewport={"width": 993, "height": 800})
    page.goto((tmp_path / "report.html").as_uri(), timeout=120_000)
    outputs = page.locator(".jp-OutputArea-output")
    widths = outputs.evaluate_all("all => all.map(e => [e.scrollWidth, e.clientWidth])")
    assert len(widths) > 10
    assert [width for width in widths if width[0] > width[1]] == []
    page.close()
