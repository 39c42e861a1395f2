"""Files from the network, checked; archives, unpacked without trust.

The environment variable `DDLIB_MIRROR` names another server, or a folder, that has the same files: it replaces scheme
and host of every address, so that with `DDLIB_MIRROR=https://mirror.example.org/data`, or `file:///data/mirror`, the
file of `https://host/a/b.tgz?c` comes from `https://mirror.example.org/data/a/b.tgz`.
"""

import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import urlsplit
from urllib.request import url2pathname

from .._internal import files
from .._internal.progress import progress_bar

ARCHIVES = (".zip", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar")
BLOCK = 1 << 18  # bytes
RETRIES = 2  # of a broken connection, after one second and then two


@dataclass(frozen=True)
class Remote:
    """A file on a server: its address and its published checksum, "md5:…" or "sha256:…"."""

    url: str
    checksum: str

    @property
    def name(self) -> str:
        return PurePosixPath(urlsplit(self.url).path).name


def check(path: Path, checksum: str) -> None:
    """Raise `files.DamagedFile` unless the file has the checksum, "md5:…" or "sha256:…"."""
    kind, _, expected = checksum.partition(":")
    if (found := files.checksum(path, kind)) != expected:
        raise files.DamagedFile(f"{path} is damaged: its {kind.upper()} should be {expected}, it is {found}.")


def bring(folder: Path, places: Mapping[str, Remote | None]) -> Path:
    """The first of `places` below a folder that is there, or in an archive beside; else the first, downloaded.

    A file has its published checksum.  An archive that a person put there is held to its own: mirrors repack them.
    """
    for place, remote in places.items():
        target = folder / place
        if target.is_file() and remote:
            check(target, remote.checksum)
        if target.exists():
            return target
        for archive in [remote.name] if remote else [place + suffix for suffix in ARCHIVES]:
            if (folder / archive).exists():
                return extract(folder / archive, target)
    place, remote = next(iter(places.items()))
    if remote is None:
        raise FileNotFoundError("only a person can download it.")
    file = download(remote, folder / remote.name)
    return file if remote.name == place else extract(file, folder / place)


def download(remote: Remote, target: Path) -> Path:
    """Download a file to `target`, which appears only when it is whole and has its checksum.

    Raises:
        FileNotFoundError: the server cannot be reached or does not have the file; says what to do by hand.
        files.DamagedFile: what came does not have its checksum, and was removed.
    """
    import pooch

    mirror = os.environ.get("DDLIB_MIRROR")
    address = mirror.rstrip("/") + urlsplit(remote.url).path if mirror else remote.url
    pooch.get_logger().setLevel("WARNING")
    registry, urls = {target.name: remote.checksum}, {target.name: address}
    fetcher = pooch.create(target.parent, "", registry=registry, urls=urls, retry_if_failed=RETRIES)
    try:
        return Path(fetcher.fetch(target.name, downloader=_transfer))
    except OSError as error:
        raise FileNotFoundError(
            f"{address} could not be downloaded ({error}). Without a network, get {remote.url} on another "
            f"machine and put it at {target} ({remote.checksum}); or let the environment variable DDLIB_MIRROR "
            f"name a server or a folder that has it."
        ) from error
    except ValueError as error:
        raise files.DamagedFile(f"{address} is damaged, what came was removed: {error}") from error


def _transfer(address: str, output: str, _) -> None:
    """Each attempt of pooch's, which itself knows no `file://`."""
    from pooch import HTTPDownloader

    os.unlink(output)  # pooch's is for its owner alone; the one that is written is for whom the umask says
    if address.startswith("file://"):
        shutil.copyfile(url2pathname(urlsplit(address).path), output)
        return
    with progress_bar(PurePosixPath(address).name, 1, unit="B", unit_scale=True) as bar:
        HTTPDownloader(progressbar=bar, chunk_size=BLOCK, headers={"User-Agent": "ddlib"})(address, output, None)


def extract(archive: Path, target: Path) -> Path:
    """Unpack a tar or zip archive that holds the folder `target.name`; `target` appears only when it is whole.

    Raises:
        files.DamagedFile: the archive is damaged, holds no such folder, or is hostile: it has a member with an
            absolute path or `..`, a link (data need none), a device.  Archive and member are named; nothing is left.
    """
    files.writable_folder(target.parent)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{archive.name}.") as temporary:
        inside = Path(temporary) / target.name
        try:
            _unpack(archive, temporary)
            if not inside.is_dir():
                found = ", ".join(sorted(os.listdir(temporary))) or "nothing"
                raise ValueError(f"it holds no folder {target.name}/, but {found}")
        except Exception as error:  # on damaged data, decoders raise anything
            if getattr(error, "errno", None):
                raise  # of the disk, not of the archive
            raise files.DamagedFile(f"{archive} cannot be unpacked, nothing was: {error}.") from error
        try:
            os.rename(inside, target)
        except OSError:
            if not target.is_dir():  # another process was as fast, and its folder is as good
                raise
    return target


def _unpack(archive: Path, folder: str) -> None:
    """Look at every member, then unpack them all."""
    if zipfile.is_zipfile(archive):
        packed = zipfile.ZipFile(archive)
        kinds = [(member.filename, stat.S_IFMT(member.external_attr >> 16)) for member in packed.infolist()]
        members = [(name, kind in (0, stat.S_IFREG, stat.S_IFDIR)) for name, kind in kinds]
    else:
        packed = tarfile.open(archive)  # noqa: SIM115
        packed.extraction_filter = tarfile.data_filter
        members = [(member.name, member.isfile() or member.isdir()) for member in packed]
        while packed.fileobj.read(BLOCK):  # to the end, where the checksum of the compressed data is
            pass
    with packed:
        for name, plain in members:
            path = PureWindowsPath(name)  # it knows both separators, and drives
            if not plain or path.drive or path.root or ".." in path.parts:
                what = "leads out of the folder" if plain else "is a link or a device"
                raise ValueError(f"its member {name!r} {what}")
        packed.extractall(folder)
