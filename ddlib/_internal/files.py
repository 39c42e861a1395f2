"""Files that are whole or not there: atomic writes, checksums, folders that can be written."""

import errno
import hashlib
import math
import os
import pickle
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import torch
from torch import Tensor

SHARE = 0.5  # of the free memory, that images may take; larger sets are read from files as they are used


class DamagedFile(Exception):
    """A file that is not what was written; the message names it and what was expected."""


def reading_failed(error: BaseException) -> bool:
    """The system could not read (rights, descriptors, memory), which says nothing of what is in the file.

    A decoder that a damaged file leads astray fails without a number, or with EINVAL of an impossible seek.
    """
    if isinstance(error, OSError):
        return error.errno not in (None, errno.EINVAL)
    return isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)  # PyTorch's is a RuntimeError


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


def write_atomically(path: str | Path, data: bytes | str | Callable[[BinaryIO], object]) -> Path:
    """Write to a temporary name beside `path`, flush, rename: readers see the old file or the new one whole.

    `data` may be a function that writes to the open file.

    Raises:
        OSError: it cannot be written, since the disk is full, say; what was there stays.
    """
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    data = data.encode() if isinstance(data, str) else data
    write = data if callable(data) else lambda file: file.write(data)
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:12]}")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise type(error)(
                error.errno, f"it could not be written ({error.strerror}); what was there before is kept", str(path)
            ) from None
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


def shapes(*tensors: Tensor) -> str:
    """What `digest` leaves out: the type and the shape of each tensor."""
    return ", ".join(f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in tensors)


def room(shape: Sequence[int], folder: Path) -> Tensor:
    """A uint8 tensor to be filled: in memory, or, where that would take more than `SHARE` of what is free, in a file.

    The file, in `folder`, has no name and goes with the tensor; the system keeps in memory what of it is in use.

    Raises:
        OSError: there is no room for it on the disk either.
    """
    import psutil

    size = math.prod(shape)
    if size <= SHARE * psutil.virtual_memory().available:
        return torch.empty(tuple(shape), dtype=torch.uint8, device="cpu")
    try:
        with tempfile.NamedTemporaryFile(dir=writable_folder(folder)) as file:
            if hasattr(os, "posix_fallocate"):  # or a full disk would kill the process when a page is written
                os.posix_fallocate(file.fileno(), 0, size)
            elif shutil.disk_usage(folder).free < size:  # macOS
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return torch.from_file(file.name, shared=True, size=size, dtype=torch.uint8).view(tuple(shape))
    except OSError as error:
        reason = f"{size / 2**30:.1f} GiB of images fit neither into the free memory nor here ({error.strerror})"
        raise type(error)(error.errno, reason, str(folder)) from None


def save_tensors(path: str | Path, content: dict[str, Any]) -> Path:
    """`torch.save`, atomically; straight to the disk, so that tensors are not held twice."""

    def write(file: BinaryIO) -> None:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # PyTorch does not tell what went wrong on the disk
            raise error.__context__ or error from None

    return write_atomically(path, write)


def load_tensors(path: str | Path, mapped: bool = False) -> dict[str, Any]:
    """What `save_tensors` wrote, on the CPU, `mapped`: read from the file as it is used.  Code is never executed.

    Raises:
        DamagedFile: the zip file that PyTorch writes is not whole, or fails one of its own checksums.
        OSError, RuntimeError: it could not be read, for want of rights, file descriptors or memory, say.
    """
    try:
        with zipfile.ZipFile(path) as packed:
            if broken := packed.testzip():
                raise zipfile.BadZipFile(f"its part {broken} fails its checksum")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        if reading_failed(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedFile(f"{path} is damaged: {reason}.") from error


def set_aside(path: str | Path) -> Path:
    """Rename a file that cannot be trusted, so that it is neither used nor lost; returns its new name."""
    return Path(path).rename(Path(path).with_name(f"{Path(path).name}.damaged-{time.time_ns()}"))
