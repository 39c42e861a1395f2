"""Sphinx: README, executed notebooks and results as static pages that need no network.  `make site` builds them."""

import re
import shutil
from pathlib import Path

import pandas as pd
from docutils.nodes import SkipNode
from latex2mathml.converter import convert

import ddlib

ROOT = Path(__file__).resolve().parents[1]

project = "ddlib"
author = "the ddlib authors"
version = release = ddlib.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "docs/*.rst", "notebooks/*.md", "notebooks/*.ipynb", "results/*.md"]
autodoc_typehints = "none"  # the signature has none, the docstring says it with shapes
autodoc_preserve_defaults = True
default_role = "code"  # `names` in docstrings
napoleon_use_param = napoleon_use_rtype = False
html_theme = "furo"
html_title = "Training CNNs by domain decomposition"
html_copy_source = html_show_sourcelink = False
html_math_renderer = "mathml"  # every browser sets it by itself: no script from elsewhere
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the committed outputs are shown
nb_ipywidgets_js = {}

PAGES = {
    "notebooks": ["notebooks/README"]
    + [f"notebooks/{path.stem}" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))],
    "more": [f"results/{path.stem}" for path in sorted((ROOT / "results").glob("*.md"))]
    + ["docs/results", "docs/verdicts", "docs/choices", "docs/api", "docs/cluster"]
    + [path.stem for path in sorted(ROOT.glob("*.md")) if path.stem != "README"],
}


def toctree() -> str:
    trees = ["\n".join([f":caption: {title}", ":hidden:", "", *pages]) for title, pages in PAGES.items()]
    return "".join(f"\n```{{toctree}}\n{tree}\n```\n" for tree in trees)


def holds_tables(folder: Path) -> bool:
    return folder != ROOT / "results" and folder.name != "figures" and any(folder.rglob("*.csv"))


def folder_of_results(folder: Path) -> str:
    """A heading, the figures and the tables of a folder of results."""
    name = folder.relative_to(ROOT / "results").as_posix()
    parts = [f"\n\n{'#' * (2 + name.count('/'))} {name}\n"]
    parts += [
        f"![{p.stem}]({p.relative_to(ROOT / 'results').as_posix()})\n" for p in sorted(folder.glob("figures/*.png"))
    ]
    for path in sorted(folder.glob("*.csv")):
        table = pd.read_csv(path, dtype={"subdomain": str}, keep_default_na=False)
        if {"dataset", "strategy", "subdomain"} <= set(table):
            table = ddlib.accuracy_table(table).reset_index()
        html = table.to_html(index=False, border=0, classes="docutils", float_format="{:.4g}".format)
        parts.append(f"**{name}/{path.name}**\n\n```{{raw}} html\n{html}\n```\n")
    return "\n".join(parts)


def folder_link(found: re.Match) -> str:
    heading = found[2] if holds_tables(ROOT / "results" / found[2]) else "records"  # a folder of records alone
    return f"]({found[1] and found[1] + 'README.md'}#{heading})"


def complete(_app, page: str, source: list[str]) -> None:
    """What the pages have here and the files have not: a table of contents, tables of results, links within."""
    above = "" if page == "results/README" else r"(?:\.\./)?results/"  # a folder of results is a part of one page here
    source[0] = re.sub(rf"\]\(({above})(\w+)(?:/figures)?\)", folder_link, source[0])
    if page == root_doc:
        source[0] += toctree()
    elif page == "results/README":
        folders = sorted(p for p in (ROOT / "results").glob("**/") if holds_tables(p))
        source[0] += "".join(map(folder_of_results, folders))


def stars(_app, what, name, thing, options, lines: list[str]) -> None:
    """In docstrings (B, C, *shape) is no emphasis."""
    lines[:] = [re.sub(r"\*(?=[\w ]+\))", r"\\*", line) for line in lines]


def set_formula(self, node) -> None:
    block = node.tagname == "math_block"
    formula = convert(node.astext(), display="block" if block else "inline")
    self.body.append(f"<div>{formula}</div>" if block else formula)
    raise SkipNode


def first_page(app, error: Exception | None) -> None:
    if not error:
        shutil.copy(Path(app.outdir) / f"{root_doc}.html", Path(app.outdir) / "index.html")


def setup(app) -> None:
    app.add_html_math_renderer("mathml", (set_formula, None), (set_formula, None))
    app.connect("source-read", complete)
    app.connect("autodoc-process-docstring", stars, priority=1)  # before napoleon
    app.connect("build-finished", first_page)
