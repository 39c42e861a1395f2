"""Downloads from a server that cuts, damages and refuses; archives that would escape."""

import hashlib
import io
import os
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import urlsplit

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

    A number below 400 is the bytes after which it cuts the connection, one above is an error.
    """

    def do_GET(self):
        house = self.server.house
        house.requests.append(self.path)
        mood = house.moods.pop(0) if house.moods else house.mood
        data = house.served.get(self.path.partition("?")[0])
        if data is None or mood == 503:
            return self.send_error(404 if data is None else mood)
        if mood == "damages":
            data = data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]
        self.send_response(200)
        if mood != "gives no length":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: mood if isinstance(mood, int) else len(data)])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def house():
    """The server: what it serves, its moods, the requests that came."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.house = SimpleNamespace(served={"/a/file.bin": CONTENT}, moods=[], mood="", requests=[])
    server.house.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.house
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)


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
    assert house.requests == ["/a/file.bin"]
    (tmp_path / "other").touch()
    assert target.stat().st_mode == (tmp_path / "other").stat().st_mode  # what the umask says


@pytest.mark.parametrize("moods", [[503, 503], [100, 200], ["damages", "gives no length"]])
def test_tries_again(house, tmp_path, moods):
    house.moods = moods
    assert download(remote(house), tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("mood", [503, 200], ids=["refuses", "cuts"])
def test_gives_up_and_leaves_nothing(house, tmp_path, mood):
    house.mood = mood
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded.*another machine"):
        download(remote(house), tmp_path / "file.bin")
    assert len(house.requests) == 1 + downloads.RETRIES
    assert os.listdir(tmp_path) == []
    house.mood = ""
    assert download(remote(house), tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("mood", ["damages", "gives no length"])
def test_damaged_is_refused_and_removed(house, tmp_path, mood):
    if mood == "gives no length":
        house.served["/a/file.bin"] = CONTENT[:1000]  # nobody can tell that this is not all of it
    wanted = remote(house)
    house.mood = mood
    with pytest.raises(files.DamagedFile, match=rf"{house.url}.*is damaged.*removed.*expected {wanted.checksum}"):
        download(wanted, tmp_path / "file.bin")
    assert os.listdir(tmp_path) == []


def test_missing_says_what_to_do(house, tmp_path):
    missing = remote(house, path="/none.bin")
    with pytest.raises(FileNotFoundError) as error:
        download(missing, tmp_path / "none.bin")
    for words in ("404", missing.url, missing.checksum, str(tmp_path / "none.bin"), "DDLIB_MIRROR"):
        assert words in str(error.value)
    assert os.listdir(tmp_path) == []


def test_mirrors(house, tmp_path, monkeypatch):
    asked = Remote("https://data.example.org/a/file.bin?download=1", md5(CONTENT))
    monkeypatch.setenv("DDLIB_MIRROR", f"{house.url}/mirror/")
    house.served["/mirror/a/file.bin"] = CONTENT
    assert download(asked, tmp_path / "one").read_bytes() == CONTENT
    folder = tmp_path / "a mirror" / "a"
    folder.mkdir(parents=True)
    (folder / "file.bin").write_bytes(CONTENT)
    monkeypatch.setenv("DDLIB_MIRROR", (tmp_path / "a mirror").as_uri())
    assert download(asked, tmp_path / "two").read_bytes() == CONTENT
    (folder / "file.bin").unlink()
    with pytest.raises(FileNotFoundError, match="file://"):
        download(asked, tmp_path / "three")
    monkeypatch.setenv("DDLIB_MIRROR", "no address at all")
    with pytest.raises(FileNotFoundError, match="no address at all"):
        download(asked, tmp_path / "three")


def test_workers_may_fetch_together(house, tmp_path):
    house.served["/a/set.tgz"] = tar(tmp_path / "x.tgz", GOOD).read_bytes()
    places = {"set": remote(house, house.served["/a/set.tgz"], "/a/set.tgz")}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: downloads.bring(tmp_path / "data", places), range(4)))
    assert {path.joinpath("a/1.txt").read_bytes() for path in found} == {b"one" * 1000}
    assert sorted(os.listdir(tmp_path / "data")) == ["set", "set.tgz"]


# ── archives ──


def tar(path, members):
    """members: (name, bytes), or (name, tarfile type, link name)."""
    with tarfile.open(path, "w:gz") as archive:
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
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


GOOD = [("set/a/1.txt", b"one" * 1000), ("set/b/2.txt", b"two" * 1000), ("LICENSE.txt", b"beside")]
PACKED = {"set.tgz": tar, "set.zip": zipped}


@pytest.mark.parametrize("name", PACKED)
def test_extract(tmp_path, name):
    archive = PACKED[name](tmp_path / name, GOOD)
    target = extract(archive, tmp_path / "set")
    assert (target / "a" / "1.txt").read_bytes() == b"one" * 1000
    assert (target / "b" / "2.txt").read_bytes() == b"two" * 1000
    assert sorted(os.listdir(tmp_path)) == sorted(["set", name])
    (target / "mine.txt").write_text("")
    assert extract(archive, target) == target
    assert (target / "mine.txt").exists()  # what is there already is left alone
    assert sorted(os.listdir(tmp_path)) == sorted(["set", name])


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("set.tgz", ("set/../../evil.txt", b"x")),
        ("set.tgz", ("set/evil", tarfile.SYMTYPE, "../../outside")),
        ("set.zip", ("set/../../evil.txt", b"x")),
    ],
    ids=["tar, up", "tar, a link out", "zip, up"],
)
def test_hostile_archives_leave_nothing(tmp_path, name, member):
    folder = tmp_path / "data"
    folder.mkdir()
    archive = PACKED[name](folder / name, [*GOOD, member, ("set/c/3.txt", b"after")])
    with pytest.raises(files.DamagedFile) as error:
        extract(archive, folder / "set")
    assert str(archive) in str(error.value)
    assert repr(member[0]) in str(error.value)
    assert os.listdir(folder) == [name]
    assert os.listdir(tmp_path) == ["data"]


@pytest.mark.parametrize(
    ("members", "end", "told"),
    [
        (GOOD, -9, r"set\.tgz cannot be unpacked"),  # without all of the checksum at its end
        ([("other/1.txt", b"x")], None, "holds no folder set/, but other"),
    ],
    ids=["damaged", "of something else"],
)
def test_other_archives_leave_nothing(tmp_path, members, end, told):
    archive = tar(tmp_path / "set.tgz", members)
    archive.write_bytes(archive.read_bytes()[:end])
    with pytest.raises(files.DamagedFile, match=told):
        extract(archive, tmp_path / "set")
    assert os.listdir(tmp_path) == ["set.tgz"]


def test_a_full_disk_is_not_a_damaged_archive(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads, "_unpack", full)
    with pytest.raises(OSError, match="No space left"):
        extract(tar(tmp_path / "set.tgz", GOOD), tmp_path / "set")


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
    house.served[urlsplit(there.url).path] = data


def test_fetch_downloads_and_unpacks(mirrored, monkeypatch, tmp_path):
    data = tar(tmp_path / "x.tgz", [("flower_photos/roses/1.jpg", b"r")]).read_bytes()
    publish(monkeypatch, mirrored, "tf_flowers", "flower_photos", data)
    root = tmp_path / "data"
    mirrored.moods = [100]
    assert datasets.present("tf_flowers", root) is None
    place = datasets.fetch("tf_flowers", root)
    assert place == root / "flower_photos" == datasets.present("tf_flowers", root)
    assert (place / "roses" / "1.jpg").read_bytes() == b"r"
    assert sorted(os.listdir(root)) == ["flower_photos", "flower_photos.tgz"]
    assert datasets.fetch("tf_flowers", root) == place
    assert len(mirrored.requests) == 2


def test_fetch_a_plain_file(mirrored, monkeypatch, tmp_path):
    publish(monkeypatch, mirrored, "nodulemnist3d", "nodulemnist3d_64.npz", CONTENT)
    assert datasets.fetch("nodulemnist3d", tmp_path).read_bytes() == CONTENT
    (tmp_path / "nodulemnist3d_64.npz").write_bytes(CONTENT[:-1])
    with pytest.raises(files.DamagedFile, match=r"nodulemnist3d_64\.npz is damaged: its MD5 should be"):
        datasets.fetch("nodulemnist3d", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"organmnist3d_64\.npz.*404.*zenodo.*MIRROR.*DDLIB_DATA"):
        datasets.load_dataset("organmnist3d", tmp_path)
    assert mirrored.requests[-1].partition("?")[0].endswith("/organmnist3d_64.npz")


def test_an_archive_put_there_by_hand(mirrored, tmp_path):
    zipped(tmp_path / "CroppedYale.zip", [("CroppedYale/yaleB01/x.pgm", b"x"), ("__MACOSX/junk", b"")])
    assert datasets.fetch("faces", tmp_path) == tmp_path / "CroppedYale"
    tar(tmp_path / "flower_photos.tgz", [("flower_photos/roses/1.jpg", b"r")])  # not the published one
    assert datasets.fetch("tf_flowers", tmp_path) == tmp_path / "flower_photos"
    assert mirrored.requests == []


@pytest.mark.parametrize("name", ["mosmed", "faces"])
def test_a_person_must_get_it(mirrored, tmp_path, name):
    entry = datasets.DATASETS[name]
    with pytest.raises(FileNotFoundError) as error:
        datasets.load_dataset(name, tmp_path)
    for words in ("only a person", entry.source, entry.layout, str(tmp_path), "DDLIB_DATA"):
        assert words in str(error.value)
    assert mirrored.requests == []


def test_what_is_not_fetched():
    with pytest.raises(ValueError, match="inside scikit-learn"):
        datasets.fetch("digits")
    with pytest.raises(ValueError, match="path=…"):
        datasets.fetch("image_folder")


def test_published_checksums():
    from torchvision.datasets import CIFAR10

    (cifar10,) = datasets.DATASETS["cifar10"].places.values()
    assert (cifar10.url, cifar10.checksum, cifar10.name) == (CIFAR10.url, f"md5:{CIFAR10.tgz_md5}", CIFAR10.filename)
