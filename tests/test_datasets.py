"""Data sets: real files where present, small made ones, damaged ones, downloads from loopback."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import os
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pyconv.datasets import DataError, DataNotFoundError, cifar10, data_dir, mnist, shapes

RECORDS = 4  # a batch of the made CIFAR-10


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data folder, and CIFAR-10 and MNIST so small that a test can make them."""
    monkeypatch.setenv("PYCONV_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(cifar10, "RECORDS", RECORDS)
    monkeypatch.setattr(cifar10, "MAX_UNPACKED", 4 << 20)
    monkeypatch.setattr(mnist, "N_TRAIN", 6)
    monkeypatch.setattr(mnist, "N_TEST", 3)
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    return tmp_path / "data"


@pytest.fixture
def real(monkeypatch):
    default = Path(__file__).parents[2] / "shared" / "data"
    path = Path(os.environ.get("PYCONV_DATA_DIR") or default)
    if not (path / cifar10.ARCHIVE).is_file() or not (path / "mnist").is_dir():
        pytest.skip(f"no real data: neither PYCONV_DATA_DIR nor {default} has it")
    monkeypatch.setenv("PYCONV_DATA_DIR", str(path))


def batches(seed: int = 0) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    made = {}
    for name in cifar10.BATCHES:
        records = rng.integers(0, 256, (RECORDS, 3073), np.uint8)
        records[:, 0] %= 10
        made[name] = records.tobytes()
    return made


def tar(files: dict[str, bytes], prefix: str = "cifar-10-batches-bin/", **options) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", **options) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def idx(array: np.ndarray) -> bytes:
    header = np.array([0x800 + array.ndim, *array.shape], ">u4")
    return header.tobytes() + array.tobytes()


def digits() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {}
    for prefix, n in (("train", 6), ("t10k", 3)):
        made[f"{prefix}-images-idx3-ubyte"] = rng.integers(0, 256, (n, 28, 28), np.uint8)
        made[f"{prefix}-labels-idx1-ubyte"] = rng.integers(0, 10, n, np.uint8)
    return made


def files_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if not p.is_dir())


class TestRealFiles:
    def test_cifar10(self, real):
        (x, y), (x_test, y_test) = cifar10.load_data()
        assert x.shape == (50000, 32, 32, 3) and x_test.shape == (10000, 32, 32, 3)
        assert y.shape == (50000, 1) and y_test.shape == (10000, 1)
        assert {a.dtype for a in (x, y, x_test, y_test)} == {np.dtype(np.uint8)}
        assert (np.bincount(y[:, 0]) == 5000).all() and (np.bincount(y_test[:, 0]) == 1000).all()
        # The training set's known mean colour, which a swap of planes would show.
        np.testing.assert_allclose(
            x.mean(axis=(0, 1, 2)) / 255, [0.4914, 0.4822, 0.4465], atol=1e-4
        )

    def test_mnist(self, real):
        (x, y), (x_test, y_test) = mnist.load_data()
        assert x.shape == (60000, 28, 28) and x_test.shape == (10000, 28, 28)
        assert y.shape == (60000,) and y_test.shape == (10000,)
        assert {a.dtype for a in (x, y, x_test, y_test)} == {np.dtype(np.uint8)}
        assert np.bincount(y)[:3].tolist() == [5923, 6742, 5958]
        assert abs(x.mean() / 255 - 0.1307) < 1e-4


class TestCifar10:
    def check(self, made: dict[str, bytes]) -> None:
        (x, y), (x_test, y_test) = cifar10.load_data()
        assert len(x) == len(y) == 5 * RECORDS and len(x_test) == len(y_test) == RECORDS
        for i, name in enumerate(cifar10.BATCHES):
            records = np.frombuffer(made[name], np.uint8).reshape(RECORDS, 3073)
            rows = slice(i * RECORDS, (i + 1) * RECORDS)
            images, labels = (x_test, y_test) if name == "test_batch.bin" else (x[rows], y[rows])
            assert (labels == records[:, :1]).all()
            expected = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            assert (images == expected).all() and images.flags.c_contiguous

    @pytest.mark.parametrize("prefix", ["cifar-10-batches-bin/", "./", ""])
    @pytest.mark.parametrize(
        "format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
    )
    def test_archive_in_any_order(self, folder, prefix, format):
        made = batches()
        long_name = "é" * (20 if format == tarfile.USTAR_FORMAT else 150)
        files = dict(reversed(made.items())) | {"batches.meta.txt": b"airplane\n", long_name: b""}
        (folder / cifar10.ARCHIVE).write_bytes(tar(files, prefix, format=format, encoding="utf-8"))
        self.check(made)

    def test_folder(self, folder):
        made = batches()
        (folder / cifar10.FOLDER).mkdir()
        for name, content in made.items():
            (folder / cifar10.FOLDER / name).write_bytes(content)
        self.check(made)

    def test_never_writes(self, folder):
        (folder / cifar10.ARCHIVE).write_bytes(tar(batches()))
        cifar10.load_data()
        assert files_in(folder) == [cifar10.ARCHIVE]

    def test_truncated(self, folder):
        whole = tar(batches())
        for length in (0, 1, 5, 100, len(whole) // 2, len(whole) - 9, len(whole) - 1):
            (folder / cifar10.ARCHIVE).write_bytes(whole[:length])
            with pytest.raises(DataError, match=rf"{cifar10.ARCHIVE} is damaged.*Delete it"):
                cifar10.load_data()

    def test_any_flipped_byte(self, folder):
        """Reported, or harmless (a time stamp); never wrong data, never another exception."""
        made = batches()
        whole = tar(made)
        rng = np.random.default_rng(0)
        for at in [
            *range(30),
            *rng.integers(30, len(whole), 60),
            *range(len(whole) - 8, len(whole)),
        ]:
            damaged = bytearray(whole)
            damaged[at] ^= 0x55
            (folder / cifar10.ARCHIVE).write_bytes(damaged)
            try:
                cifar10.load_data()
            except DataError:
                continue
            self.check(made)

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (lambda m: m.pop("data_batch_3.bin"), "it lacks data_batch_3.bin"),
            (
                lambda m: m.update({"data_batch_3.bin": m["data_batch_3.bin"][:-1]}),
                "data_batch_3.bin must be a file of 12,292 bytes. Received: 12,291",
            ),
            (
                lambda m: m.update({"test_batch.bin": b"\x0a" + m["test_batch.bin"][1:]}),
                "labels must be 0 to 9. Received: 10",
            ),
            (lambda m: m.update({"more/test_batch.bin": m["test_batch.bin"]}), "in it twice"),
            (lambda m: m.update({"bomb": bytes(4 << 20)}), "it unpacks, or claims to"),
        ],
    )
    def test_wrong_content(self, folder, change, problem):
        made = batches()
        change(made)
        (folder / cifar10.ARCHIVE).write_bytes(tar(made))
        with pytest.raises(DataError, match=problem):
            cifar10.load_data()

    @pytest.mark.parametrize("size", [1 << 40, 1 << 80, -512, -(1 << 40)])
    def test_lying_header(self, folder, size):
        member = tarfile.TarInfo("cifar-10-batches-bin/other.bin")
        member.size = size
        header = member.tobuf(tarfile.GNU_FORMAT)
        (folder / cifar10.ARCHIVE).write_bytes(gzip.compress(header + bytes(4096)))
        with pytest.raises(DataError, match="damaged"):
            cifar10.load_data()

    def test_endless_headers(self, folder):
        """Long-name headers one after another, which tarfile reads by recursion."""
        member = tarfile.TarInfo("x")
        member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1
        block = member.tobuf(tarfile.GNU_FORMAT) + bytes(512)
        (folder / cifar10.ARCHIVE).write_bytes(gzip.compress(block * 1000))
        with pytest.raises(DataError, match="damaged"):
            cifar10.load_data()

    def test_link_in_archive(self, folder):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            link = tarfile.TarInfo("test_batch.bin")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
        (folder / cifar10.ARCHIVE).write_bytes(packed.getvalue())
        with pytest.raises(DataError, match="must be a file"):
            cifar10.load_data()

    def test_folder_with_problems(self, folder):
        unpacked = folder / cifar10.FOLDER
        unpacked.mkdir()
        with pytest.raises(DataError, match=r"cannot read .*data_batch_1.bin"):
            cifar10.load_data()
        for name, content in batches().items():
            (unpacked / name).write_bytes(content)
        (unpacked / "test_batch.bin").write_bytes(batches()["test_batch.bin"] + b"1")
        with pytest.raises(DataError, match=r"test_batch.bin is damaged: it is longer"):
            cifar10.load_data()
        (unpacked / "test_batch.bin").write_bytes(b"1")
        with pytest.raises(DataError, match=r"ends after 1 of 12,292 bytes"):
            cifar10.load_data()

    def test_archive_is_a_folder(self, folder):
        (folder / cifar10.ARCHIVE).mkdir()
        with pytest.raises(DataError, match=r"cannot read .*Check that it is a file"):
            cifar10.load_data()


class TestMnist:
    @pytest.mark.parametrize("pack", [True, False])
    def test_files(self, folder, pack):
        made = digits()
        for name, array in made.items():
            path = folder / "mnist" / (f"{name}.gz" if pack else name)
            path.write_bytes(gzip.compress(idx(array)) if pack else idx(array))
        (x, y), (x_test, y_test) = mnist.load_data()
        for array, expected in zip((x, y, x_test, y_test), made.values(), strict=True):
            assert (array == expected).all() and array.dtype == np.uint8

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (b"", "ends after 0 of 16 bytes"),
            (idx(np.zeros((6, 28, 28), np.uint8))[:-1], "ends after 4,703 of 4,704 bytes"),
            (idx(np.zeros((6, 28, 28), np.uint8)) + b"1", "more than 4,704 bytes"),
            (idx(np.zeros((5, 28, 28), np.uint8)), "header must be"),
            (idx(np.zeros((6, 784), np.uint8)) + bytes(4), "header must be"),
            (bytes.fromhex("00000803 ffffffff 0000001c 0000001c") + bytes(99), "header must be"),
            (bytes.fromhex("00000d03 00000006 0000001c 0000001c") + bytes(9999), "header must be"),
        ],
    )
    @pytest.mark.parametrize("pack", [True, False])
    def test_damaged_images(self, folder, content, problem, pack):
        name = "train-images-idx3-ubyte"
        path = folder / "mnist" / (f"{name}.gz" if pack else name)
        path.write_bytes(gzip.compress(content) if pack else content)
        with pytest.raises(DataError, match=rf"{path.name} is damaged: .*{problem}"):
            mnist.load_data()

    def test_labels_and_gzip_damage(self, folder):
        for name, array in digits().items():
            (folder / "mnist" / name).write_bytes(idx(array))
        labels = folder / "mnist" / "t10k-labels-idx1-ubyte"
        labels.write_bytes(idx(np.array([1, 2, 10], np.uint8)))
        with pytest.raises(DataError, match="labels must be 0 to 9. Received: 10"):
            mnist.load_data()
        packed = bytearray(gzip.compress(idx(np.array([1, 2, 3], np.uint8))))
        packed[-8] ^= 1  # the checksum
        labels.with_suffix(".gz").write_bytes(packed)
        with pytest.raises(DataError, match="damaged: CRC"):
            mnist.load_data()
        labels.with_suffix(".gz").write_bytes(b"<html>Please log in</html>")
        with pytest.raises(DataError, match="damaged: Not a gzipped file"):
            mnist.load_data()


class Server(http.server.ThreadingHTTPServer):
    """Answers every path from `content`; the answers of `script`, if any, come first."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content: dict[str, bytes] = {}
        self.script: list[str] = []
        self.requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        answer = self.server.script.pop(0) if self.server.script else "whole"
        body = self.server.content.get(self.path[1:])
        if body is None or answer == "busy":
            self.send_error(404 if body is None else 503)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if answer == "half" else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    pytest.importorskip("pooch")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between two tries
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def archive(folder, server, monkeypatch):
    """The server has a made CIFAR-10, and load_data is told its address and checksum."""
    content = tar(batches())
    server.content["cifar.tar.gz"] = content
    monkeypatch.setattr(cifar10, "URL", server.url + "cifar.tar.gz")
    monkeypatch.setattr(cifar10, "MD5", hashlib.md5(content).hexdigest())
    return content


class TestDownload:
    def test_good(self, folder, server, archive):
        assert cifar10.find() is None
        TestCifar10().check(batches())
        assert (folder / cifar10.ARCHIVE).read_bytes() == archive
        assert cifar10.find() == folder / cifar10.ARCHIVE
        cifar10.load_data()
        assert server.requests == 1 and files_in(folder) == [cifar10.ARCHIVE]

    def test_folder_is_made(self, folder, archive, monkeypatch):
        monkeypatch.setenv("PYCONV_DATA_DIR", str(folder / "a" / "b"))
        cifar10.load_data()
        assert (folder / "a" / "b" / cifar10.ARCHIVE).is_file()

    @pytest.mark.parametrize("trouble", ["half", "busy"])
    def test_tries_again(self, folder, server, archive, trouble):
        server.script = [trouble, trouble]
        cifar10.load_data()
        assert server.requests == 3 and files_in(folder) == [cifar10.ARCHIVE]

    @pytest.mark.parametrize(
        ("trouble", "reason"), [("half", "connection was closed"), ("busy", "answered 503")]
    )
    def test_gives_up(self, folder, server, archive, trouble, reason):
        server.script = [trouble] * 9
        with pytest.raises(DataNotFoundError, match=reason):
            cifar10.load_data()
        assert server.requests == 3 and files_in(folder) == []

    def test_404(self, folder, server, archive):
        server.content.clear()
        with pytest.raises(DataNotFoundError, match="answered 404"):
            cifar10.load_data()
        assert files_in(folder) == []

    def test_wrong_checksum(self, folder, archive, monkeypatch):
        monkeypatch.setattr(cifar10, "MD5", "0" * 32)
        with pytest.raises(DataNotFoundError, match="does not match the known hash"):
            cifar10.load_data()
        assert files_in(folder) == []

    def test_no_network(self, folder, server, archive):
        server.shutdown()
        server.server_close()
        with pytest.raises(DataNotFoundError, match="no connection") as caught:
            cifar10.load_data()
        message = str(caught.value)
        assert cifar10.URL in message and f"put it at {folder / cifar10.ARCHIVE}" in message
        assert "PYCONV_DATA_DIR" in message and "\n" not in message
        assert isinstance(caught.value, FileNotFoundError)
        assert files_in(folder) == []

    @pytest.mark.parametrize(
        ("error", "raised"),
        [
            (KeyboardInterrupt(), KeyboardInterrupt),
            (OSError(28, "No space left on device"), DataNotFoundError),
        ],
    )
    def test_interrupted(self, folder, archive, monkeypatch, error, raised):
        import pooch

        def download(self, url, output_file, pooch):
            Path(output_file).write_bytes(archive[:50])
            raise error

        monkeypatch.setattr(pooch.HTTPDownloader, "__call__", download)
        with pytest.raises(raised):
            cifar10.load_data()
        assert files_in(folder) == []

    def test_folder_cannot_be_made(self, folder, archive, monkeypatch):
        (folder / "file").write_bytes(b"")
        monkeypatch.setenv("PYCONV_DATA_DIR", str(folder / "file"))
        with pytest.raises(DataNotFoundError, match="cannot be written"):
            cifar10.load_data()

    def test_mnist_only_what_is_missing(self, folder, server, monkeypatch):
        made = {f"{name}.gz": gzip.compress(idx(array)) for name, array in digits().items()}
        kept = "train-labels-idx1-ubyte.gz"
        (folder / "mnist" / kept).write_bytes(made[kept])
        server.content = dict(made)
        checksums = {k[:-3]: hashlib.md5(v).hexdigest() for k, v in made.items()}
        monkeypatch.setattr(mnist, "URL", server.url)
        monkeypatch.setattr(mnist, "MD5", checksums)
        assert mnist.find() is None
        (x, _), _ = mnist.load_data()
        assert (x == digits()["train-images-idx3-ubyte"]).all()
        assert server.requests == 3 and mnist.find() == folder / "mnist"
        assert files_in(folder) == sorted(made)


class TestDataDir:
    def test_default_is_the_users_cache(self, monkeypatch):
        monkeypatch.setenv("PYCONV_DATA_DIR", "")
        assert data_dir().name.lower() in ("pyconv", "cache")
        assert data_dir().is_absolute()

    def test_home_is_expanded(self, monkeypatch):
        monkeypatch.setenv("PYCONV_DATA_DIR", os.path.join("~", "images"))
        assert data_dir() == Path.home() / "images"


class TestShapes:
    def test_layout(self):
        (x, y), (x_test, y_test) = shapes.load_data(n_train=250, n_test=30)
        assert x.shape == (250, 32, 32, 3) and x_test.shape == (30, 32, 32, 3)
        assert y.shape == (250, 1) and y_test.shape == (30, 1)
        assert {a.dtype for a in (x, y, x_test, y_test)} == {np.dtype(np.uint8)}
        assert set(y[:, 0]) == set(range(len(shapes.CLASS_NAMES)))

    def test_classes_are_balanced(self):
        (_, y), (_, y_test) = shapes.load_data(n_train=2000, n_test=1000)
        assert (np.bincount(y[:, 0]) == 200).all() and (np.bincount(y_test[:, 0]) == 100).all()

    def test_seed_decides(self):
        (x, y), (x_test, y_test) = shapes.load_data(1200, 100, seed=3)
        (x_again, y_again), _ = shapes.load_data(1200, 100, seed=3)
        assert (x == x_again).all() and (y == y_again).all()
        (x_other, _), _ = shapes.load_data(1200, 100, seed=4)
        assert (x != x_other).mean() > 0.9
        # The test set is neither the training set nor dependent on its size.
        (x_less, y_less), (x_test_less, y_test_less) = shapes.load_data(50, 100, seed=3)
        assert (x_less == x[:50]).all() and (y_less == y[:50]).all()
        assert (x_test_less == x_test).all() and (y_test_less == y_test).all()
        assert (x_test != x[:100]).mean() > 0.9
        assert len(np.unique(x.reshape(len(x), -1), axis=0)) == len(x)

    def test_empty(self):
        (x, y), (x_test, _) = shapes.load_data(0, 0)
        assert x.shape == (0, 32, 32, 3) and y.shape == (0, 1) and x_test.shape == (0, 32, 32, 3)

    @pytest.mark.parametrize(
        "arguments", [{"n_train": -1}, {"n_test": -1}, {"seed": -1}, {"seed": 2**64}]
    )
    def test_bad_arguments(self, arguments):
        with pytest.raises(ValueError, match=r"Received: "):
            shapes.load_data(**arguments)

    @pytest.mark.parametrize("label", range(len(shapes.CLASS_NAMES)))
    def test_distances(self, label):
        """Each shape lies in a circle of radius 1.1; its distance grows by 1 a unit at its edge."""
        u, v = np.meshgrid(*[np.linspace(-1.6, 1.6, 321, dtype=np.float32)] * 2)
        distance = shapes._SHAPES[label](u, v)
        assert distance.dtype == np.float32
        inside = distance < 0
        assert 0.08 < inside.mean() * 3.2**2 / np.pi < 0.7
        assert np.hypot(u, v)[inside].max() < 1.1
        slope = np.hypot(*np.gradient(distance, 0.01))
        assert np.percentile(slope[np.abs(distance) < 0.02], 10) > 0.9
        assert slope.max() < 1.5


@pytest.mark.parametrize("dataset", [cifar10, mnist, shapes])
def test_class_names(dataset):
    assert len(set(dataset.CLASS_NAMES)) == 10
