"""The site: built from what is committed, and readable without a network."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import ddlib

for package in ("sphinx", "myst_nb", "furo"):
    pytest.importorskip(package, reason="needs the extra: pip install 'ddlib[site]'")

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


class Loaded(HTMLParser):
    """Of a page: addresses that a browser loads by itself, its tags, and links that a reader may follow."""

    def __init__(self, page: str):
        super().__init__()
        self.addresses, self.tags, self.links = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        self.addresses += [given[k] for k in ("src", "srcset", "data", "poster") if given.get(k)]
        if tag == "link" and "href" in given:
            self.addresses.append(given["href"])
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-c", "docs", "-d", f"{folder}/.doctrees", ".", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_every_notebook_has_its_page_with_outputs(site: Path):
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        page = (site / "notebooks" / f"{path.stem}.html").read_text()
        tags = Loaded(page).tags
        assert "img" in tags
        assert "math" in tags or "$" not in path.read_text()
    assert "<table" in (site / "results" / "README.html").read_text()
    assert (site / "index.html").exists()


def test_every_public_name_is_explained(site: Path):
    page = (site / "docs" / "api.html").read_text()
    things = [name for name in ddlib.__all__ if callable(getattr(ddlib, name))]
    assert len(things) > 20
    assert [name for name in things if f'id="ddlib.{name}"' not in page] == []


def test_folders_of_results_are_parts_of_one_page(site: Path):
    shown = (site / "results" / "README.html").read_text()
    links = r'href="(?:(?:\.\./)?results/)?(?:README\.html)?#(\w+)"'
    anchors = {name for page in site.rglob("*.html") for name in re.findall(links, page.read_text())}
    assert {"bench", "epochs"} <= anchors  # of docs/results.md
    assert [name for name in anchors if (ROOT / "results" / name).is_dir() and f'id="{name}"' not in shown] == []


def test_nothing_is_loaded_from_elsewhere(site: Path):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 5
    for path in pages:
        for address in Loaded(path.read_text()).addresses:
            assert not re.match(r"(?:https?:)?//", address), f"{path.name} loads {address}"
    for path in [*site.rglob("*.css"), *pages]:
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", path.read_text()), path


def test_links_within_lead_somewhere(site: Path):
    for path in sorted(site.rglob("*.html")):
        page = Loaded(path.read_text())
        for link in [*page.links, *page.addresses]:
            file = re.split("[#?]", link)[0]
            if file and not re.match(r"[a-z]+:", file):
                assert (path.parent / file).resolve().exists(), f"{path.name} → {link}"
