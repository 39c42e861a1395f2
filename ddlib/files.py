"""Files that are whole or not there: atomic writes, checksums, folders that can be written."""

import hashlib
import io
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch


class DamagedFile(Exception):
    """A file that is not what was written; the message names it and what was expected."""


def writable_folder(path: str | Path) -> Path:
    """Create a folder and try to write in it, before any long work starts.

    Raises:
        OSError: it cannot be created or written; the message names it.
    """
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(error.errno, f"the output folder cannot be written ({error.strerror})", str(folder)) from None
    return folder


def write_atomically(path: str | Path, data: bytes | str) -> Path:
    """Write to a temporary name beside `path`, flush, rename: readers see the old file or the new one whole.

    Raises:
        OSError: it cannot be written, since the disk is full, say; what was there stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = data.encode() if isinstance(data, str) else data
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            told = f"{len(data) / 2**20:.1f} MiB could not be written ({error.strerror}); what was there before is kept"
            raise type(error)(error.errno, told, str(path)) from None
        raise
    return path


def checksum(data: bytes | Path, kind: str = "sha256") -> str:
    """Hexadecimal digest of bytes or of a file."""
    if isinstance(data, Path):
        with data.open("rb") as file:
            return hashlib.file_digest(file, kind).hexdigest()
    return hashlib.new(kind, data).hexdigest()


def save_tensors(path: str | Path, content: dict[str, Any]) -> Path:
    """`torch.save`, atomically, with the SHA-256 of the content in the file's first line."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getvalue()
    return write_atomically(path, checksum(data).encode() + b"\n" + data)


def load_tensors(path: str | Path) -> dict[str, Any]:
    """What `save_tensors` wrote, on the CPU.  Code in the file is never executed.

    Raises:
        DamagedFile: the content does not have its checksum.
    """
    expected, _, data = Path(path).read_bytes().partition(b"\n")
    found = checksum(data).encode()
    if found != expected:
        raise DamagedFile(f"{path} is damaged: its SHA-256 should be {expected[:64]!r}, it is {found.decode()}.")
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def set_aside(path: str | Path) -> Path:
    """Rename a file that cannot be trusted, so that it is neither used nor lost; returns its new name.

    The name has a hash of the content: what bears it already is the same.
    """
    path = Path(path)
    return path.replace(path.with_name(f"{path.name}.damaged-{checksum(path)[:16]}"))
