"""Downloads from a server that cuts, repeats, damages and refuses; archives that would escape."""

import hashlib
import io
import os
import socket
import stat
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest

from ddlib import files
from ddlib.data import fetch as downloads
from ddlib.data import sets as datasets
from ddlib.data.fetch import Remote, download, extract

CONTENT = np.random.default_rng(0).bytes(300_000)


# ── a small server ──


class Handler(BaseHTTPRequestHandler):
    """Serves `served` (path → bytes), each request in the next of `moods`, or in `mood` when there is none left.

    A number is the bytes after which it cuts the connection; a negative one, and it ignores Range.
    """

    def do_GET(self):
        house = self.server.house
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        house.requests.append((self.path, start))
        mood = house.moods.pop(0) if house.moods else house.mood
        data = house.served.get(self.path.partition("?")[0])
        if data is None or mood in (404, 503):
            return self.send_error(404 if data is None else mood)
        if mood == "damages":
            data = data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]
        if mood == "ignores Range" or (isinstance(mood, int) and mood < 0):
            start = 0
        if start >= len(data):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            shown = start + 7 if mood == "sends another part" else start
            self.send_header("Content-Range", f"bytes {shown}-{len(data) - 1}/{len(data)}")
        if mood != "gives no length":
            self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        cut = abs(mood) if isinstance(mood, int) else len(data)
        house.sent += len(data[start : start + cut])  # before the reader has it, who asks at once
        self.wfile.write(data[start : start + cut])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def house():
    """The server: what it serves, its moods, the requests (path, first byte) that came, the bytes sent."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.house = SimpleNamespace(served={"/a/file.bin": CONTENT}, moods=[], mood="", requests=[], sent=0)
    server.house.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.house
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def no_mirror(monkeypatch):
    monkeypatch.delenv("DDLIB_MIRROR", raising=False)


def md5(data: bytes) -> str:
    return f"md5:{hashlib.md5(data).hexdigest()}"


def remote(house, data=CONTENT, path="/a/file.bin") -> Remote:
    return Remote(house.url + path, md5(data))


# ── downloads ──


def test_whole(house, tmp_path):
    target = download(remote(house), tmp_path / "new" / "file.bin")
    assert target.read_bytes() == CONTENT
    assert os.listdir(target.parent) == ["file.bin"]
    assert download(remote(house), target) == target
    assert house.requests == [("/a/file.bin", 0)]  # what is there is only checked


def test_sha256(house, tmp_path):
    sha = Remote(f"{house.url}/a/file.bin?download=1", f"sha256:{hashlib.sha256(CONTENT).hexdigest()}")
    assert sha.name == "file.bin"
    assert download(sha, tmp_path / "x").read_bytes() == CONTENT


def test_goes_on_from_the_part(house, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:200_000])
    assert download(remote(house), tmp_path / "file.bin").read_bytes() == CONTENT
    assert house.requests == [("/a/file.bin", 200_000)]
    assert house.sent == 100_000


def test_cut_connections(house, tmp_path):
    house.moods = [100_000, 1, 150_000]
    assert download(remote(house), tmp_path / "file.bin", pause=0).read_bytes() == CONTENT
    assert [start for _, start in house.requests] == [0, 100_000, 100_001, 250_001]
    assert house.sent == len(CONTENT)


@pytest.mark.parametrize("moods", [[503, 503], [50_000, "ignores Range"], [50_000, "sends another part"]])
def test_tries_again(house, tmp_path, moods):
    house.moods = moods
    assert download(remote(house), tmp_path / "file.bin", pause=0).read_bytes() == CONTENT


def test_gives_up_and_goes_on_later(house, tmp_path):
    house.moods = [50_000, *[503] * 4]
    with pytest.raises(FileNotFoundError, match=r"503.*another machine"):
        download(remote(house), tmp_path / "file.bin", tries=4, pause=0)
    assert len(house.requests) == 5
    assert os.listdir(tmp_path) == ["file.bin.part"]
    assert download(remote(house), tmp_path / "file.bin").read_bytes() == CONTENT
    assert house.requests[-1] == ("/a/file.bin", 50_000)


def test_a_server_that_always_cuts_and_ignores_range_is_given_up(house, tmp_path):
    house.mood = -50_000
    with pytest.raises(FileNotFoundError, match="it was cut after 50,000 of 300,000 bytes"):
        download(remote(house), tmp_path / "file.bin", tries=3, pause=0)
    assert len(house.requests) == 4  # the first brought something


def test_a_complete_part_needs_no_rest(house, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert download(remote(house), tmp_path / "file.bin").read_bytes() == CONTENT
    assert house.sent == 0


@pytest.mark.parametrize("before", [b"", b"another file" * 1000, CONTENT + b"and more"])
@pytest.mark.parametrize("mood", ["damages", "gives no length"])
def test_damaged_is_refused_and_removed(house, tmp_path, before, mood):
    if mood == "gives no length" and not before:
        house.served["/a/file.bin"] = CONTENT[:1000]  # nobody can tell that this is not all of it
    if before:
        (tmp_path / "file.bin.part").write_bytes(before)
    wanted = remote(house)
    house.mood = mood
    with pytest.raises(files.DamagedFile, match=rf"MD5 should be {wanted.checksum[4:]}.*{house.url}.*removed"):
        download(wanted, tmp_path / "file.bin", pause=0)
    assert os.listdir(tmp_path) == []
    house.mood, house.served["/a/file.bin"] = "", CONTENT
    assert download(wanted, tmp_path / "file.bin").read_bytes() == CONTENT


def test_missing_says_what_to_do(house, tmp_path):
    missing = remote(house, path="/none.bin")
    with pytest.raises(FileNotFoundError) as error:
        download(missing, tmp_path / "none.bin")
    for told in ("404", missing.url, missing.checksum, str(tmp_path / "none.bin"), "DDLIB_MIRROR"):
        assert told in str(error.value)
    assert len(house.requests) == 1
    assert os.listdir(tmp_path) == []


def test_offline_is_told_at_once(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = Remote(f"http://127.0.0.1:{closed.getsockname()[1]}/file.bin", md5(CONTENT))
        with pytest.raises(FileNotFoundError, match="Without a network"):
            download(nobody, tmp_path / "file.bin", pause=60)


def test_damaged_file_in_place(house, tmp_path):
    (tmp_path / "file.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(files.DamagedFile, match=r"file\.bin is damaged.*Delete it"):
        download(remote(house), tmp_path / "file.bin")
    assert house.requests == []


def test_folder_that_cannot_be_made(house, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OSError, match="taken"):
        download(remote(house), tmp_path / "taken" / "file.bin")


def test_mirrors(house, tmp_path, monkeypatch):
    asked = Remote("https://data.example.org/a/file.bin?download=1", md5(CONTENT))
    monkeypatch.setenv("DDLIB_MIRROR", f"{house.url}/mirror/")
    house.served["/mirror/a/file.bin"] = CONTENT
    assert download(asked, tmp_path / "one").read_bytes() == CONTENT
    folder = tmp_path / "mirror" / "a"
    folder.mkdir(parents=True)
    (folder / "file.bin").write_bytes(CONTENT)
    monkeypatch.setenv("DDLIB_MIRROR", (tmp_path / "mirror").as_uri())
    (tmp_path / "two.part").write_bytes(CONTENT[:10])
    assert download(asked, tmp_path / "two").read_bytes() == CONTENT
    (folder / "file.bin").unlink()
    with pytest.raises(FileNotFoundError, match="file://"):
        download(asked, tmp_path / "three")


def test_workers_do_not_download_together(house, tmp_path):
    house.moods = [100_000]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: download(remote(house), tmp_path / "file.bin", pause=0.01), range(4)))
    assert all(path.read_bytes() == CONTENT for path in found)
    assert house.sent == len(CONTENT)


# ── archives ──


def tar(path, members, mode="w:gz"):
    """members: (name, bytes), or (name, tarfile type, link name)."""
    with tarfile.open(path, mode) as archive:
        for name, *what in members:
            info = tarfile.TarInfo(name)
            if isinstance(what[0], bytes) and len(what) == 1:
                info.size = len(what[0])
                archive.addfile(info, io.BytesIO(what[0]))
            else:
                info.type, info.linkname = what
                archive.addfile(info)
    return path


def zipped(path, members):
    """members: (name, bytes), or (name, bytes, file type)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data, *kind in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = ((kind[0] if kind else stat.S_IFREG) | 0o644) << 16
            archive.writestr(info, data)
    return path


GOOD = [("set/a/1.txt", b"one" * 1000), ("set/b/2.txt", b"two" * 1000), ("LICENSE.txt", b"beside")]
PACKED = {
    "set.tgz": lambda path: tar(path, GOOD),
    "set.tar": lambda path: tar(path, GOOD, "w"),
    "set.tar.xz": lambda path: tar(path, GOOD, "w:xz"),
    "set.tar.bz2": lambda path: tar(path, GOOD, "w:bz2"),
    "set.zip": lambda path: zipped(path, GOOD),
}


@pytest.mark.parametrize("name", PACKED)
def test_extract(tmp_path, name):
    archive = PACKED[name](tmp_path / name)
    target = extract(archive, tmp_path / "set")
    assert (target / "a" / "1.txt").read_bytes() == b"one" * 1000
    assert (target / "b" / "2.txt").read_bytes() == b"two" * 1000
    assert sorted(os.listdir(tmp_path)) == sorted(["set", name])
    (target / "mine.txt").write_text("")
    assert extract(archive, target) == target
    assert (target / "mine.txt").exists()  # what is there already is left alone


HOSTILE_TAR = {
    "up": ("set/../../evil.txt", b"x"),
    "up from the start": ("../evil.txt", b"x"),
    "absolute": ("{outside}/evil.txt", b"x"),
    "backslashes": ("set\\..\\..\\evil.txt", b"x"),
    "a drive": ("C:evil.txt", b"x"),
    "a link out": ("set/evil", tarfile.SYMTYPE, "../../outside"),
    "an absolute link": ("set/evil", tarfile.SYMTYPE, "/etc/passwd"),
    "a hard link": ("set/evil", tarfile.LNKTYPE, "../outside/secret.txt"),
    "a device": ("set/evil", tarfile.CHRTYPE, ""),
    "a pipe": ("set/evil", tarfile.FIFOTYPE, ""),
}
HOSTILE_ZIP = {
    "up": ("set/../../evil.txt", b"x"),
    "absolute": ("{outside}/evil.txt", b"x"),
    "a link out": ("set/evil", b"../../outside", stat.S_IFLNK),
    "a device": ("set/evil", b"", stat.S_IFCHR),
}


@pytest.mark.parametrize(
    ("pack", "name", "member"),
    [
        *(pytest.param(tar, "set.tgz", member, id=f"tar, {what}") for what, member in HOSTILE_TAR.items()),
        *(pytest.param(zipped, "set.zip", member, id=f"zip, {what}") for what, member in HOSTILE_ZIP.items()),
    ],
)
def test_hostile_archives_leave_nothing(tmp_path, pack, name, member):
    outside, folder = tmp_path / "outside", tmp_path / "data"
    outside.mkdir()
    folder.mkdir()
    (outside / "secret.txt").write_text("secret")
    evil = (member[0].format(outside=outside), *member[1:])
    archive = pack(folder / name, [*GOOD, evil, ("set/c/3.txt", b"after")])
    with pytest.raises(files.DamagedFile) as error:
        extract(archive, folder / "set")
    assert str(archive) in str(error.value)
    assert repr(evil[0]) in str(error.value)
    assert os.listdir(folder) == [name]
    assert os.listdir(outside) == ["secret.txt"]
    assert sorted(os.listdir(tmp_path)) == ["data", "outside"]


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("how", ["cut", "flipped", "emptied", "replaced"])
def test_damaged_archives_leave_nothing(tmp_path, name, how):
    archive = PACKED[name](tmp_path / name)
    data = archive.read_bytes()
    middle = len(data) // 2 if name != "set.tar" else 150  # a bare tar has checksums on its headers alone
    archive.write_bytes(
        {
            "cut": data[:middle],
            "flipped": data[:middle] + bytes([data[middle] ^ 0x55]) + data[middle + 1 :],
            "emptied": b"",
            "replaced": b"<html>the server is being repaired</html>" * 100,
        }[how]
    )
    with pytest.raises(files.DamagedFile, match=name):
        extract(archive, tmp_path / "set")
    assert os.listdir(tmp_path) == [name]


def test_a_wrong_checksum_at_the_end_of_gzip(tmp_path):
    archive = PACKED["set.tgz"](tmp_path / "set.tgz")
    data = bytearray(archive.read_bytes())
    data[-8] ^= 1  # the CRC of the whole
    archive.write_bytes(data)
    with pytest.raises(files.DamagedFile, match=r"set\.tgz cannot be unpacked"):
        extract(archive, tmp_path / "set")


def test_archive_of_something_else(tmp_path):
    archive = tar(tmp_path / "set.tgz", [("other/1.txt", b"x")])
    with pytest.raises(files.DamagedFile, match=r"holds no folder set/, but other"):
        extract(archive, tmp_path / "set")
    assert os.listdir(tmp_path) == ["set.tgz"]


def test_a_full_disk_is_not_a_damaged_archive(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads, "_untar", full)
    with pytest.raises(OSError, match="No space left"):
        extract(PACKED["set.tgz"](tmp_path / "set.tgz"), tmp_path / "set")


# ── through the registry ──


@pytest.fixture
def mirrored(house, monkeypatch):
    """The server as the mirror of everything."""
    monkeypatch.setenv("DDLIB_MIRROR", house.url)
    house.served.clear()
    return house


def publish(monkeypatch, house, name, place, data):
    """Let the registry's checksum be that of `data`, and the mirror serve it."""
    entry = datasets.DATASETS[name]
    there = Remote(entry.places[place].url, md5(data))
    monkeypatch.setitem(datasets.DATASETS, name, datasets.replace(entry, places={**entry.places, place: there}))
    house.served[there.address.removeprefix(house.url)] = data


def test_fetch_downloads_and_unpacks(mirrored, monkeypatch, tmp_path):
    data = tar(
        tmp_path / "x.tgz", [("flower_photos/roses/1.jpg", b"r"), ("flower_photos/LICENSE.txt", b"")]
    ).read_bytes()
    publish(monkeypatch, mirrored, "tf_flowers", "flower_photos", data)
    root = tmp_path / "data"
    mirrored.moods = [100]
    monkeypatch.setattr(downloads.time, "sleep", lambda _: None)
    assert datasets.present("tf_flowers", root) is None
    place = datasets.fetch("tf_flowers", root)
    assert place == root / "flower_photos" == datasets.present("tf_flowers", root)
    assert (place / "roses" / "1.jpg").read_bytes() == b"r"
    assert sorted(os.listdir(root)) == ["flower_photos", "flower_photos.tgz"]
    sent = mirrored.sent
    assert datasets.fetch("tf_flowers", root) == place
    assert mirrored.sent == sent


def test_fetch_refuses_a_hostile_download(mirrored, monkeypatch, tmp_path):
    data = tar(tmp_path / "x.tgz", [("flower_photos/../../evil", b"x")]).read_bytes()
    publish(monkeypatch, mirrored, "tf_flowers", "flower_photos", data)
    with pytest.raises(files.DamagedFile, match=r"flower_photos\.tgz is refused.*evil"):
        datasets.fetch("tf_flowers", tmp_path / "data")
    assert os.listdir(tmp_path / "data") == ["flower_photos.tgz"]


def test_fetch_a_plain_file(mirrored, monkeypatch, tmp_path):
    publish(monkeypatch, mirrored, "nodulemnist3d", "nodulemnist3d_64.npz", CONTENT)
    assert datasets.fetch("nodulemnist3d", tmp_path).read_bytes() == CONTENT
    with pytest.raises(FileNotFoundError, match=r"organmnist3d\.npz.*404.*zenodo.*MIRROR.*DDLIB_DATA"):
        datasets.load_dataset("organmnist3d", tmp_path, size=28)
    assert mirrored.requests[-1][0].endswith("/organmnist3d.npz")


def test_an_archive_put_there_by_hand(mirrored, tmp_path):
    zipped(tmp_path / "CroppedYale.zip", [("CroppedYale/yaleB01/x.pgm", b"x"), ("__MACOSX/junk", b"")])
    assert datasets.fetch("faces", tmp_path) == tmp_path / "CroppedYale"
    tar(tmp_path / "flower_photos.tgz", [("flower_photos/roses/1.jpg", b"r")])  # not the published one
    assert datasets.fetch("tf_flowers", tmp_path) == tmp_path / "flower_photos"
    assert mirrored.requests == []


@pytest.mark.parametrize("name", ["mosmed", "lidc_nodules", "faces"])
def test_a_person_must_get_it(mirrored, tmp_path, name):
    entry = datasets.DATASETS[name]
    with pytest.raises(FileNotFoundError) as error:
        datasets.load_dataset(name, tmp_path)
    for told in ("only a person", entry.source, entry.layout, str(tmp_path), "DDLIB_DATA"):
        assert told in str(error.value)
    assert mirrored.requests == []


def test_missing_cifar10_says_what_to_do(mirrored, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        datasets.load_dataset("cifar10", tmp_path)
    for told in ("cifar-10-batches-py", "404", "c58f30108f718f92721af3b95e74349a", "DDLIB_DATA", "DDLIB_MIRROR"):
        assert told in str(error.value)


def test_what_is_not_fetched():
    with pytest.raises(ValueError, match="inside scikit-learn"):
        datasets.fetch("digits")
    with pytest.raises(ValueError, match="path=…"):
        datasets.fetch("image_folder")
    with pytest.raises(ValueError, match="Did you mean 'tf_flowers'"):
        datasets.fetch("tf_flower")
    with pytest.raises(ValueError, match="Did you mean 'mosmed'"):
        datasets.present("mosmad")


def test_table(tmp_path):
    (tmp_path / "MosMedData").mkdir()
    table = datasets.table(tmp_path)
    assert list(table.index) == list(datasets.DATASETS)
    assert table.loc["mosmed", "present"] == str(tmp_path / "MosMedData")
    assert table.loc["faces", "present"] == ""
    assert table.loc["faces", "fetch"] == "python -m ddlib datasets fetch faces"
    assert table.loc["digits", "fetch"] == "not needed"
    assert table.loc["tf_flowers", "checksum"] == "md5:6f87fb78e9cc9ab41eff2015b380011d"
    assert table[["about", "source", "licence", "layout"]].map(bool).all(axis=None)


def test_published_checksums():
    medmnist = pytest.importorskip("medmnist")
    from torchvision.datasets import CIFAR10

    (cifar10,) = datasets.DATASETS["cifar10"].places.values()
    assert (cifar10.url, cifar10.checksum, cifar10.name) == (CIFAR10.url, f"md5:{CIFAR10.tgz_md5}", CIFAR10.filename)
    for name in ("adrenalmnist3d", "nodulemnist3d", "organmnist3d"):
        info, entry = medmnist.INFO[name], datasets.DATASETS[name]
        for size, suffix in ((64, "_64"), (28, "")):
            there = entry.places[entry.sizes[size]]
            assert (there.url, there.checksum) == (info[f"url{suffix}"], f"md5:{info[f'MD5{suffix}']}")
