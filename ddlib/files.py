"""Files that are whole or not there: atomic writes, checksums, folders that can be written."""

import hashlib
import io
import os
import pickle
import tempfile
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


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
            size = f"{len(data) / 2**20:.1f} MiB could not be written ({error.strerror})"
            raise type(error)(error.errno, f"{size}; what was there before is kept", str(path)) from None
        raise
    return path


def checksum(data: bytes | Path, kind: str = "sha256") -> str:
    """Hexadecimal digest of bytes or of a file."""
    if isinstance(data, Path):
        with data.open("rb") as file:
            return hashlib.file_digest(file, kind).hexdigest()
    return hashlib.new(kind, data).hexdigest()


def digest(*tensors: Tensor) -> str:
    """SHA-256 of the values of tensors, one after another."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()


def save_tensors(path: str | Path, content: dict[str, Any]) -> Path:
    """`torch.save`, atomically."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return write_atomically(path, buffer.getvalue())


def load_tensors(path: str | Path) -> dict[str, Any]:
    """What `save_tensors` wrote, on the CPU.  Code in the file is never executed.

    Raises:
        DamagedFile: the zip file that PyTorch writes is not whole, or fails one of its own checksums.
    """
    try:
        with zipfile.ZipFile(path) as packed:
            if broken := packed.testzip():
                raise zipfile.BadZipFile(f"its part {broken} fails its checksum")
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedFile(f"{path} is damaged: {reason}.") from error


def set_aside(path: str | Path) -> Path:
    """Rename a file that cannot be trusted, so that it is neither used nor lost; returns its new name."""
    return Path(path).rename(Path(path).with_name(f"{Path(path).name}.damaged-{time.time_ns()}"))
