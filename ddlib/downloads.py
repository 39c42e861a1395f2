"""Files from the network: checked, continued where they broke off, unpacked without trust.

The environment variable `DDLIB_MIRROR` names another server, or a folder, that holds the same files: it replaces
scheme and host of every address, so with `DDLIB_MIRROR=https://mirror.example.org/data` or `file:///data/mirror`
the file of `https://host/a/b.tgz?c` comes from `https://mirror.example.org/data/a/b.tgz`.
"""

import http.client
import lzma
import os
import stat
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from . import files

ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
BLOCK = 1 << 18  # bytes read at a time


@dataclass(frozen=True)
class Remote:
    """A file on a server: its address and its published checksum, "md5:…" or "sha256:…"."""

    url: str
    checksum: str

    @property
    def name(self) -> str:
        return PurePosixPath(urlsplit(self.url).path).name

    def differs(self, path: Path) -> str:
        """What is wrong with a copy of the file; empty where it has the published checksum."""
        kind, _, expected = self.checksum.partition(":")
        found = files.checksum(path, kind)
        return "" if found == expected else f"its {kind.upper()} should be {expected}, it is {found}"


def download(remote: Remote, target: Path, *, tries: int = 5, pause: float = 1.0) -> Path:
    """Download a file to `target`, which appears only when it is whole and has its checksum.

    What has arrived is kept as `target.part`, and a later attempt, in this call or another, asks for the rest only.
    A connection that breaks is tried again, after `pause` seconds and then twice as long each time, and given up
    when `tries` attempts in a row have brought nothing new.  Where `target` is there already, it is only checked.

    Raises:
        FileNotFoundError: the server cannot be reached or does not have the file; says what to do by hand.
        files.DamagedFile: what came, or was there, does not have its checksum; a damaged `.part` is removed.
    """
    part = target.with_name(f"{target.name}.part")
    files.writable_folder(target.parent)
    with _alone(target.parent):
        if target.exists():
            if wrong := remote.differs(target):
                raise files.DamagedFile(f"{target} is damaged: {wrong}. Delete it to download it again.")
            return target
        continued = part.exists()
        _complete(remote, target, part, tries, pause)
        if continued and remote.differs(part):  # what lay there was of another file, perhaps: once more, from nothing
            part.unlink()
            _complete(remote, target, part, tries, pause)
        if wrong := remote.differs(part):
            part.unlink()
            raise files.DamagedFile(f"the download of {mirrored(remote.url)} is damaged and was removed: {wrong}.")
        os.replace(part, target)
    return target


def mirrored(url: str) -> str:
    """The address to ask: `url`, or its path below `$DDLIB_MIRROR`."""
    mirror = os.environ.get("DDLIB_MIRROR")
    return mirror.rstrip("/") + urlsplit(url).path if mirror else url


def _complete(remote: Remote, target: Path, part: Path, tries: int, pause: float) -> None:
    """Bring `part` to its full length, over as many connections as it takes."""
    most, failures, reason = _size(part), 0, ""
    while failures < tries:
        if failures:
            time.sleep(min(pause * 2 ** (failures - 1), 60))
        try:
            return _continue(mirrored(remote.url), part)
        except HTTPError as error:
            reason = f"the server answers {error.code} {error.reason}"
            if error.code == 416 and _size(part):
                return None  # there is no rest: all of it is here
            if error.code not in (408, 425, 429) and error.code < 500:
                break
        except URLError as error:
            reason = str(error.reason)
            if not most:
                break  # nothing has ever come: offline
        except _BrokenOff as error:
            reason = str(error)
        failures = 0 if _size(part) > most else failures + 1
        most = max(most, _size(part))
    raise FileNotFoundError(
        f"{mirrored(remote.url)} could not be downloaded ({reason}). Without a network, get {remote.url} on another "
        f"machine and put it at {target} ({remote.checksum}); or let the environment variable DDLIB_MIRROR name a "
        f"server or folder that has it."
    )


class _BrokenOff(Exception):
    """A connection that ended before the file did."""


def _continue(url: str, part: Path) -> None:
    """One connection: append what `part` lacks, or write it anew where the server cannot skip what is there."""
    from tqdm import tqdm

    have = _size(part)
    headers = {"User-Agent": "ddlib"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urlopen(Request(url, headers=headers), timeout=30)
    except (ConnectionError, TimeoutError, http.client.HTTPException) as error:
        raise _BrokenOff(f"{type(error).__name__}: {error}") from error
    with answer:
        if getattr(answer, "status", None) != 206:
            have = 0
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink()
            raise _BrokenOff(f"the server sent another range than asked: {answer.headers.get('Content-Range')}")
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        quiet = os.environ.get("DDLIB_PROGRESS") == "0"
        with (
            tqdm(
                total=total, initial=have, desc=PurePosixPath(url).name, unit="B", unit_scale=True, disable=quiet
            ) as bar,
            part.open("ab" if have else "wb") as file,
        ):
            for block in _blocks(answer):
                file.write(block)
                bar.update(len(block))
    if total is not None and _size(part) < total:
        raise _BrokenOff(f"the connection was cut after {_size(part):,} of {total:,} bytes")


def _blocks(answer: Any) -> Iterator[bytes]:
    """What comes from the network; its errors only, not those of the disk, are a reason to try again."""
    try:
        while block := answer.read(BLOCK):
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOff(f"{type(error).__name__}: {error}") from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time work in a folder, so that two workers do not download the same file together.

    Where the system cannot tell (Windows, some network disks), the checksum still keeps a mixture out.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


# ── archives ──────────────────────────────────────────────────────────────────────────────────────────────────


def extract(archive: Path, target: Path) -> Path:
    """Unpack a tar or zip archive that holds the folder `target.name`; `target` appears only when it is whole.

    Raises:
        files.DamagedFile: the archive is damaged, holds no such folder, or is hostile: a member with an absolute
            path or `..`, a link (a data set needs none), a device.  It and the member are named; nothing is left.
    """
    files.writable_folder(target.parent)
    with _alone(target.parent), tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{archive.name}.") as temporary:
        if target.exists():
            return target
        try:
            (_unzip if zipfile.is_zipfile(archive) else _untar)(archive, temporary)
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError) as error:
            raise files.DamagedFile(f"{archive} cannot be unpacked: {type(error).__name__}: {error}.") from error
        inside = Path(temporary) / target.name
        if not inside.is_dir():
            found = ", ".join(sorted(p.name for p in Path(temporary).iterdir())) or "nothing"
            raise files.DamagedFile(f"{archive} holds no folder {target.name}/, but {found}.")
        os.rename(inside, target)
    return target


def _untar(archive: Path, folder: str) -> None:
    def inside(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        _refuse(archive, member.name, member.isfile() or member.isdir())
        return tarfile.data_filter(member, folder)

    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter=inside)
        while tar.fileobj.read(BLOCK):  # to the end, where the checksum of the compressed data is
            pass


def _unzip(archive: Path, folder: str) -> None:
    with zipfile.ZipFile(archive) as packed:
        for member in packed.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            _refuse(archive, member.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
        packed.extractall(folder)


def _refuse(archive: Path, name: str, plain: bool) -> None:
    path = PureWindowsPath(name)  # it knows both separators, and drives
    if not plain or path.drive or path.root or ".." in path.parts:
        what = "leads out of the target folder" if plain else "is a link or a device"
        raise files.DamagedFile(f"{archive} is refused, nothing was unpacked: its member {name!r} {what}.")
