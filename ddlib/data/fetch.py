"""Files from the network: checked, continued where they broke off, unpacked without trust.

The environment variable `DDLIB_MIRROR` names another server, or a folder, that has the same files: it replaces scheme
and host of every address, so that with `DDLIB_MIRROR=https://mirror.example.org/data`, or `file:///data/mirror`, the
file of `https://host/a/b.tgz?c` comes from `https://mirror.example.org/data/a/b.tgz`.
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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from .. import files
from ..training import progress_bar

ARCHIVES = (".zip", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar")
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)
BLOCK = 1 << 18  # bytes


@dataclass(frozen=True)
class Remote:
    """A file on a server: its address and its published checksum, "md5:…" or "sha256:…"."""

    url: str
    checksum: str

    @property
    def name(self) -> str:
        return PurePosixPath(urlsplit(self.url).path).name

    @property
    def address(self) -> str:
        """Where to ask: `url`, or its path below `$DDLIB_MIRROR`."""
        mirror = os.environ.get("DDLIB_MIRROR")
        return mirror.rstrip("/") + urlsplit(self.url).path if mirror else self.url

    def check(self, path: Path, advice: str = "") -> None:
        """Raise `files.DamagedFile` unless a copy of the file has the published checksum."""
        kind, _, expected = self.checksum.partition(":")
        if (found := files.checksum(path, kind)) != expected:
            raise files.DamagedFile(
                f"{path} is damaged: its {kind.upper()} should be {expected}, it is {found}.{advice}"
            )


def bring(folder: Path, places: Mapping[str, Remote | None]) -> Path:
    """The first of `places` below a folder that is there, or in an archive beside; else the first, downloaded.

    An archive that a person put there is held to its own checksums, not to the published one: mirrors repack them.

    Raises:
        FileNotFoundError: there is nothing to download, or it fails.
        files.DamagedFile: what comes, or lies there, is damaged or hostile.
    """
    for place in places:
        if (folder / place).exists():
            return folder / place
    for place, remote in places.items():
        for archive in [remote.name] if remote else [place + suffix for suffix in ARCHIVES]:
            if (folder / archive).exists():
                return extract(folder / archive, folder / place)
    place, remote = next(iter(places.items()))
    if remote is None:
        raise FileNotFoundError("only a person can download it.")
    file = download(remote, folder / remote.name)
    return file if remote.name == place else extract(file, folder / place)


def download(remote: Remote, target: Path, *, tries: int = 5, pause: float = 1.0) -> Path:
    """Download a file to `target`, which appears only when it is whole and has its checksum.

    What has arrived is kept as `target.part`, and the next attempt, in this call or another, asks for the rest alone.
    A connection that breaks is tried again, after `pause` seconds and then twice as long each time, and given up when
    `tries` attempts in a row have brought nothing new.  Where `target` is there already, it is only checked.

    Raises:
        FileNotFoundError: the server cannot be reached or does not have the file; says what to do by hand.
        files.DamagedFile: what is there, or came, does not have its checksum; what came is removed.
    """
    part = target.with_name(f"{target.name}.part")
    files.writable_folder(target.parent)
    with _alone(target.parent):
        if target.exists():
            remote.check(target, " Delete it to download it again.")
            return target
        _complete(remote, target, part, tries, pause)
        try:
            remote.check(part, f" It came from {remote.address} and was removed.")
        except files.DamagedFile:
            part.unlink()
            raise
        os.replace(part, target)
    return target


def _complete(remote: Remote, target: Path, part: Path, tries: int, pause: float) -> None:
    """Bring `part` to its full length, over as many connections as that takes."""
    most, failures = _size(part), 0
    while True:
        try:
            return _continue(remote.address, part)
        except HTTPError as error:
            if error.code == 416 and _size(part):
                return None  # there is no rest: all of it is here
            reason, final = f"the server answers {error.code} {error.reason}", error.code < 500 and error.code != 429
        except URLError as error:
            reason, final = str(error.reason), not most  # nothing has ever come: offline
        except (OSError, http.client.HTTPException) as error:
            reason, final = f"{type(error).__name__}: {error}", False
        failures = 0 if _size(part) > most else failures + 1
        most = max(most, _size(part))
        if final or failures >= tries:
            raise FileNotFoundError(
                f"{remote.address} could not be downloaded ({reason}). Without a network, get {remote.url} on another "
                f"machine and put it at {target} ({remote.checksum}); or let the environment variable DDLIB_MIRROR "
                f"name a server or a folder that has it."
            )
        time.sleep(min(pause * 2**failures, 60))


def _continue(address: str, part: Path) -> None:
    """One connection: append what `part` lacks, or write it anew where the server cannot skip what is there."""
    have = _size(part)
    headers = {"User-Agent": "ddlib"} | ({"Range": f"bytes={have}-"} if have else {})
    with urlopen(Request(address, headers=headers), timeout=30) as answer:
        if getattr(answer, "status", None) != 206:
            have = 0
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink()
            raise ConnectionError("the server sent another part than the one asked for")
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        title = PurePosixPath(address).name
        with (
            part.open("ab" if have else "wb") as file,
            progress_bar(title, total, have, unit="B", unit_scale=True) as progress,
        ):
            while block := answer.read(BLOCK):
                file.write(block)
                progress.update(len(block))
    if total is not None and _size(part) < total:
        raise ConnectionError(f"it was cut after {_size(part):,} of {total:,} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time works in a folder, so that two workers do not download the same file into each other.

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


def extract(archive: Path, target: Path) -> Path:
    """Unpack a tar or zip archive that holds the folder `target.name`; `target` appears only when it is whole.

    Raises:
        files.DamagedFile: the archive is damaged, holds no such folder, or is hostile: it has a member with an
            absolute path or `..`, a link (data need none), a device.  Archive and member are named; nothing is left.
    """
    files.writable_folder(target.parent)
    with _alone(target.parent), tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{archive.name}.") as temporary:
        if target.exists():
            return target
        try:
            (_unzip if zipfile.is_zipfile(archive) else _untar)(archive, temporary)
        except (*DAMAGE, OSError) as error:
            if getattr(error, "errno", None):
                raise  # of the disk, not of the archive
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
