"""What the tests share: made-up image sets that train in a second, and the rule for tests on real data."""

import os
from functools import wraps

import pytest
import torch
from hypothesis import settings

import ddlib

os.environ["DDLIB_PROGRESS"] = "0"
settings.register_profile("ddlib", deadline=None, derandomize=True, max_examples=40, database=None)
settings.load_profile("ddlib")


# ── two tiers: `make test` leaves out what is marked slow, `make test-all` runs it as well ──

NOTEBOOKS = ("01_decompositions", "02_aggregation", "05_report")  # nbval of the others is slow
FIRST = ("nothing_lost", "sweep", "cluster", "site", "ranks", "engines")  # the longest files


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: kills processes, starts kernels, or takes long; not in `make test`")
    config.addinivalue_line("markers", "real_data: needs the data sets in the folder that DDLIB_DATA names")


@pytest.hookimpl(tryfirst=True)  # before -m is heeded
def pytest_collection_modifyitems(items):
    """Notebooks get their tier; they and the longest files come first, so that two workers end together."""
    for item in items:
        if item.path.suffix == ".ipynb" and item.path.stem not in NOTEBOOKS:
            item.add_marker("slow")
    first = {f"test_{name}": place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: first.get(item.path.stem, len(first) + (item.path.suffix == ".py")))


# ── tests on real data: skipped without DDLIB_DATA; with it, to skip one is to fail ──


def pytest_runtest_setup(item):
    torch.manual_seed(0)  # a test draws the same numbers alone and beside others
    if item.get_closest_marker("real_data") and not os.environ.get("DDLIB_DATA"):
        pytest.skip("needs real data: set DDLIB_DATA to the folder that holds it")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and item.get_closest_marker("real_data") and os.environ.get("DDLIB_DATA"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped although DDLIB_DATA is set: {report.longrepr}"
    return report


@pytest.fixture(scope="session", autouse=True)
def on_the_cpu():
    """Bit for bit is asked of CPUs alone."""
    with pytest.MonkeyPatch.context() as patch:
        for backend in (torch.cuda, torch.backends.mps):
            patch.setattr(backend, "is_available", wraps(backend.is_available)(lambda: False))
        yield


@pytest.fixture
def no_download(monkeypatch, tmp_path):
    """Every download fails, as it does without a network."""
    monkeypatch.setenv("DDLIB_MIRROR", (tmp_path / "no such folder").as_uri())


# ── made-up image sets ──


def made_up(shape, channels, train_size, test_size, flip_axes=(), seed=0) -> ddlib.ImageSet:
    """Four classes: stripes along one axis or the other, a chequerboard, nothing; and noise on all of them."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.meshgrid(*(torch.arange(n) // 2 % 2 for n in shape), indexing="ij")
    patterns = torch.stack([grid[0], grid[1], grid[0] ^ grid[1], torch.zeros_like(grid[0])]).double()

    def half(size):
        labels = torch.arange(size)[torch.randperm(size, generator=generator)] % 4
        noise = torch.rand((size, channels, *shape), generator=generator, dtype=torch.float64)
        return ((120 * patterns[labels][:, None] + 100 * noise).to(torch.uint8), labels)

    return ddlib.image_set(
        "made up", half(train_size), half(test_size), ("rows", "columns", "chess", "none"), flip_axes
    )


@pytest.fixture(scope="session")
def tiny() -> ddlib.ImageSet:
    """64 + 32 images (3, 12, 12)."""
    return made_up((12, 12), 3, 64, 32, flip_axes=(1,))


@pytest.fixture(scope="session")
def tiny3d() -> ddlib.ImageSet:
    """48 + 24 volumes (1, 8, 8, 4)."""
    return made_up((8, 8, 4), 1, 48, 24, flip_axes=(0, 1))


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
