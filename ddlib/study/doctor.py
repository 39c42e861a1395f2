"""What a bug report needs: versions, device, data, and what is wrong on this machine."""

import os
import shutil
from importlib import metadata
from pathlib import Path

from .. import files
from ..data import sets as datasets
from ..devices import choose_device, choose_precision
from . import records

ROOM = 10  # GiB that checkpoints and the larger data sets can take


def facts() -> list[str]:
    """Versions, device, threads, the precision that pays, the data folder and its free disk, a line each."""
    from .. import __version__

    device = choose_device()
    here = records.provenance(device.type, choose_precision("auto", device), 0.0)
    folder = datasets.data_folder()
    return [
        f"ddlib {__version__} (results {here['results']}, commit {here['commit'][:10]}), Python {here['python']}",
        ", ".join(f"{name} {number}" for name, number in here["versions"].items()),
        f"{device.type}: {here['device']}, {here['threads']} threads on {here['cores']} cores",
        f"precision that pays: {here['precision']}",
        f"data folder {folder}{'' if folder.exists() else ' (not there yet)'}, {_free(folder):.0f} GiB free",
    ]


def wrong() -> list[str]:
    """What keeps the companion from working as it should; empty where all is well."""
    found = [f"{name} {has}, but {asked} is needed" for name, asked, has in _requirements("") if has != "ok"]
    folder = datasets.data_folder()
    if not os.access(_existing(folder), os.W_OK):
        found.append(f"the data folder {folder} cannot be written: set DDLIB_DATA to another one")
    if _free(folder) < ROOM:
        found.append(f"only {_free(folder):.1f} GiB are free for {folder}; {ROOM} GiB are safe")
    if not (files.project_folder() / "notebooks").is_dir():
        found.append("the notebooks are not beside ddlib: clone the repository and install it with pip install -e")
    return found


def missing() -> list[str]:
    """What only costs features or speed: extras that are not installed, instructions that the processor lacks."""
    import torch

    extras = metadata.metadata("ddlib").get_all("Provides-Extra") or [] if _installed("ddlib") else []
    found = []
    for extra in extras:
        lacking = [name for name, _, has in _requirements(extra) if has != "ok"]
        if lacking:
            found.append(f"extra {extra!r} is not complete ({', '.join(lacking)}): pip install 'ddlib[{extra}]'")
    if choose_device().type == "cpu":
        able = torch.cpu.get_capabilities()
        if able.get("architecture", "").startswith("x86") and not able.get("avx512_f", able.get("avx512")):
            found.append("no AVX-512: training takes longer than the times that the README states")
        if choose_precision("auto", choose_device()) == "fp32":
            found.append("no bf16 in hardware: precision 'auto' is fp32")
    return found


def _requirements(extra: str) -> list[tuple[str, str, str]]:
    """(name, version asked for, "ok" or what is there) of the requirements of ddlib, or of one of its extras."""
    from packaging.requirements import Requirement

    found = []
    for line in metadata.requires("ddlib") or [] if _installed("ddlib") else []:
        one = Requirement(line)
        with_it = one.marker is None or one.marker.evaluate({"extra": extra})
        without = one.marker is None or one.marker.evaluate({"extra": ""})
        if not with_it or (extra and without):
            continue
        has = metadata.version(one.name) if _installed(one.name) else None
        state = "is not installed" if has is None else "ok" if one.specifier.contains(has, prereleases=True) else has
        found.append((one.name, str(one.specifier), state))
    return found


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def _free(folder: Path) -> float:
    """GiB."""
    return shutil.disk_usage(_existing(folder)).free / 2**30
