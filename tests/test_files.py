import errno
import os
import stat

import pytest
import torch

from ddlib import files


@pytest.mark.parametrize("data", [b"\x00\xff", "grün ± 1\n"], ids=["bytes", "text"])
def test_what_is_written_is_read(tmp_path, data):
    path = files.write_atomically(tmp_path / "a" / "b" / "file", data)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("mask", [0o077, 0o002])
def test_who_may_read_it_is_the_umasks_to_say(tmp_path, mask):
    before = os.umask(mask)
    try:
        path = files.write_atomically(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize(
    ("step", "error"),
    [("fsync", OSError(errno.ENOSPC, "no space")), ("replace", KeyboardInterrupt())],
    ids=["full", "interrupted"],
)
def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch, step, error):
    path = files.write_atomically(tmp_path / "file", "old")

    def fail(*arguments):
        raise error

    monkeypatch.setattr(files.os, step, fail)
    with pytest.raises(type(error)):
        files.write_atomically(path, "new" * 1000)
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    steps = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(files.os, name, lambda *a, name=name, real=real: (steps.append(name), real(*a))[1])
    files.write_atomically(tmp_path / "file", "new")
    assert steps == ["fsync", "replace"]


def test_changed_values_and_cut_files_are_found(tmp_path):
    """Whatever byte changes, what is read is what was written, or the file is damaged."""
    written = {"a": torch.arange(600), "b": [1.5, "text"]}
    data = files.save_tensors(tmp_path / "x.pt", written).read_bytes()
    found = 0
    for place in range(0, len(data), 41):
        (tmp_path / "x.pt").write_bytes(data[:place] + bytes([data[place] ^ 0x20]) + data[place + 1 :])
        try:
            read = files.load_tensors(tmp_path / "x.pt")
        except files.DamagedFile:
            found += 1
        else:  # a byte that fills up, or a date
            assert torch.equal(read["a"], written["a"])
            assert read["b"] == written["b"]
    assert found > 4800 // 41  # all bytes of the tensor, at the least
    nowhere = bytearray(data)
    nowhere[data.rfind(b"PK\x06\x06") + 50] ^= 0x80  # where its list of parts begins: the seek fails
    for harmed in (nowhere, *(data[:length] for length in (0, 10, 64, len(data) // 2, len(data) - 1))):
        (tmp_path / "x.pt").write_bytes(harmed)
        with pytest.raises(files.DamagedFile, match=r"x\.pt is damaged"):
            files.load_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "no such file"),
        IsADirectoryError(errno.EISDIR, "is a directory"),
        OSError(errno.EMFILE, "too many open files"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_file_that_could_not_be_read_is_not_a_damaged_one(tmp_path, monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    files.save_tensors(tmp_path / "x.pt", {})
    monkeypatch.setattr(files.torch, "load", fail)
    with pytest.raises(type(error)) as caught:
        files.load_tensors(tmp_path / "x.pt")
    assert caught.value is error


def test_set_aside_never_overwrites(tmp_path):
    for number in range(3):
        path = tmp_path / "model.pt"
        path.write_text(str(number))
        assert files.set_aside(path).name.startswith("model.pt.damaged-")
        assert not path.exists()
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["0", "1", "2"]


def test_a_folder_is_made_and_tried_and_one_that_cannot_be_is_named(tmp_path):
    folder = files.writable_folder(tmp_path / "a" / "b")
    assert list(folder.iterdir()) == []
    assert files.writable_folder(str(folder)) == folder
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="output folder cannot be written") as caught:
        files.writable_folder(tmp_path / "file" / "deep")
    assert str(tmp_path / "file" / "deep") in str(caught.value)
