"""Files of any content: models, weights, checkpoints, data sets, images."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import os
import shutil
import struct
import tarfile
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from source import Source

from pyconv.callbacks import BackupAndRestore, CSVLogger, EarlyStopping
from pyconv.datasets import DataError, cifar10, mnist
from pyconv.images import load_image
from pyconv.layers import (
    BatchNormalization,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    Input,
    MaxPooling2D,
)
from pyconv.models import Sequential, load_model
from pyconv.utils import set_random_seed

# In memory where that can be: the disk is not what is tested.
_FOLDER = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))


def remove_folder() -> None:
    shutil.rmtree(_FOLDER, ignore_errors=True)


def _new_model() -> Sequential:
    set_random_seed(1)
    return Sequential(
        [
            Input((6, 6, 1)),
            Conv2D(2, 3, activation="relu"),
            BatchNormalization(),
            MaxPooling2D(2),
            Dropout(0.5),
            Flatten(),
            Dense(3, activation="softmax"),
        ]
    )


_X = np.linspace(0, 1, 4 * 36, dtype=np.float32).reshape(4, 6, 6, 1)
_Y = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]


def _compiled() -> Sequential:
    model = _new_model()
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    return model


# --------------------------------------------------------------------------------------------------
# safetensors

_JSON: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**53, 2**62, 2**63, 2**64, 10**30, 0.5, -0.5),
    *(1e-300, 1e300, "", "x", "a/b", "../../x", "/etc/passwd", "zeros", "Dense", "\ud800", "0"),
    *([], {}, [1], [None], [[1, 1]], {"a": 1}, {"array": 0}, {"array": "../x"}, [1] * 40),
    *({"not finite": "nan"}, {"not finite": "x"}, {"class_name": "Dense", "config": {"units": 4}}),
    *("F32", "F64", [2**62], [2**32, 2**32], [0, 2**62], [0, 0], [3, 2**63], "__import__", "eval"),
]


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    """Every container with every key of it."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    else:
        return []
    found = [(value, key) for key in keys]
    for key in keys:
        found += _nodes(value[key])
    return found


def _change_json(s: Source, value: Any) -> None:
    """Deletes, copies, moves or replaces some of what is in it."""
    for _ in range(s.pick([1, 1, 2, 3, 0])):
        nodes = _nodes(value)
        if not nodes:
            return
        where, key = s.pick(nodes)
        action = s.below(6)
        if action == 0:
            del where[key]
        elif action == 1 and isinstance(where, list):
            where.insert(key, json.loads(json.dumps(where[key])))
        elif action == 1:
            name = s.pick(["x", "name", "units", "array", "input_shape", "seed"])
            where[name] = json.loads(json.dumps(where[key]))
        elif action == 2:
            other, name = s.pick(nodes)
            where[key] = json.loads(json.dumps(other[name])) if name in _keys(other) else None
        elif action == 3 and isinstance(where[key], int):
            where[key] += s.pick([1, -1, 2**31, 2**40])
        else:
            where[key] = json.loads(json.dumps(s.pick(_JSON)))


def _keys(container: Any) -> Any:
    return container if isinstance(container, dict) else range(len(container))


def _flipped(s: Source, content: bytes) -> bytes:
    """The content with some bytes changed, cut off, or more of them."""
    changed = bytearray(content)
    for _ in range(1 + s.below(4)):
        at = s.below(len(changed)) if changed else 0
        action = s.below(6)
        if action == 0:
            del changed[at:]
        elif action == 1:
            changed[at:at] = s.bytes(1 + s.below(9))
        elif action == 2:
            changed[at : at + 8] = struct.pack("<q", s.pick([0, -1, 1, 2**31, 2**62, 2**40]))
        elif action == 3:
            del changed[at : at + 1 + s.below(9)]
        elif at < len(changed):
            changed[at] = s.below(256) if action == 4 else changed[at] ^ 1 << s.below(8)
    return bytes(changed)


def _parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _changed_safetensors(s: Source, content: bytes, key: str) -> bytes:
    if s.flag(4):
        return _flipped(s, content)
    header, data = _parts(content)
    if s.flag(4):
        _change_json(s, header)
    elif s.flag(8):
        header["__metadata__"][key] = s.pick(
            ["[" * 20_000, '{"format": 1' + "0" * 5000 + "}", '{"format": 1, "a": ' * 3000, "NaN"]
        )
    else:
        description = json.loads(header["__metadata__"][key])
        _change_json(s, description)
        header["__metadata__"][key] = json.dumps(description)
    text = json.dumps(header).encode()
    length = len(text) if not s.flag(16) else s.pick([0, 1, 2**63 - 1, 2**64 - 1, 10**8])
    return struct.pack("<Q", length) + text + data


def _saved(ending: str, save: Any) -> bytes:
    path = _FOLDER / f"base{ending}"
    save(path)
    return path.read_bytes()


class _Bases:
    """Files to begin with, made when they are first needed."""

    def __init__(self) -> None:
        self._known: dict[str, bytes] = {}

    def get(self, kind: str) -> bytes:
        if kind not in self._known:
            self._known[kind] = getattr(self, f"_{kind}")()
        return self._known[kind]

    def _model(self) -> bytes:
        return _saved(".safetensors", _compiled().save)

    def _weights(self) -> bytes:
        return _saved(".safetensors", _new_model().save_weights)

    def _hdf5(self) -> bytes:
        return _saved(".weights.h5", _new_model().save_weights)

    def _checkpoint(self) -> bytes:
        folder = _FOLDER / "base"
        _train(folder, 1)
        return (folder / "checkpoint.safetensors").read_bytes()


_BASES = _Bases()


def _train(folder: Path, epochs: int) -> None:
    callbacks = [
        EarlyStopping("loss", patience=5),
        CSVLogger(_FOLDER / "log.csv"),
        BackupAndRestore(folder, delete_checkpoint=False),
    ]
    _compiled().fit(_X, _Y, 2, epochs, verbose=0, callbacks=callbacks)


def load_models(data: bytes) -> None:
    """`load_model`: a saved model whose description, header or bytes are changed."""
    s = Source(data)
    path = _FOLDER / "model.safetensors"
    path.write_bytes(_changed_safetensors(s, _BASES.get("model"), "pyconv"))
    with contextlib.suppress(ValueError):
        model = load_model(path)
        model.get_config()
        model.summary(print_fn=len)
        sizes = [math.prod(layer.output_shape[1:]) for layer in model.layers]
        if max([*sizes, *model.input_shape[1:]]) < 10_000:
            model.predict(np.zeros((1, *model.input_shape[1:]), np.float32), verbose=0)


_WEIGHTS = _new_model()


def load_weights(data: bytes) -> None:
    """`load_weights`: safetensors or any bytes."""
    s = Source(data)
    path = _FOLDER / "weights"
    if s.flag(4):
        path.write_bytes(s.pick([b"", b"PK", b"\x89HDF\r\n\x1a\n"]) + s.rest())
    else:
        path.write_bytes(_changed_safetensors(s, _BASES.get("weights"), "pyconv"))
    with contextlib.suppress(ValueError):
        _WEIGHTS.load_weights(path)


def load_checkpoints(data: bytes) -> None:
    """`BackupAndRestore`: goes on with a checkpoint that is changed."""
    s = Source(data)
    folder = _FOLDER / "backup"
    folder.mkdir(exist_ok=True)
    path = folder / "checkpoint.safetensors"
    path.write_bytes(_changed_safetensors(s, _BASES.get("checkpoint"), "pyconv_checkpoint"))
    with warnings.catch_warnings(), contextlib.suppress(ValueError):
        warnings.simplefilter("ignore")  # another instruction set
        _train(folder, 2)


# --------------------------------------------------------------------------------------------------
# HDF5


def load_hdf5(data: bytes) -> None:
    """`load_weights`: Keras's `.weights.h5`, some bytes of which are changed."""
    s = Source(data)
    path = _FOLDER / "w.weights.h5"
    path.write_bytes(_flipped(s, _BASES.get("hdf5")))
    with contextlib.suppress(ValueError):
        _WEIGHTS.load_weights(path)


_STORAGE: list[dict[str, Any]] = [
    {},
    {"chunks": (1, 1), "compression": "gzip"},
    {"chunks": True, "shuffle": True, "fletcher32": True},
    {"chunks": (64, 64), "maxshape": (None, None)},
    {"compression": "lzf"},
    {"fillvalue": 3.0, "chunks": True},
    {"scaleoffset": 2},
    {"external": [("/etc/passwd", 0, 1 << 20)]},
]


def build_hdf5(data: bytes) -> None:
    """`load_weights`: HDF5 files of any groups, links, datasets and ways to store them."""
    import h5py

    s = Source(data)
    path = _FOLDER / "b.weights.h5"
    path.write_bytes(_BASES.get("hdf5"))
    names = ["layers/dense/vars/0", "layers/dense/vars", "layers/dense", "layers", "x", "layers/x"]
    names += [
        "layers/conv2d/vars/1",
        "layers/flatten/vars",
        "optimizer",
        "vars",
        "layers/dense/vars/1",
    ]
    with h5py.File(path, "a") as file:
        for _ in range(1 + s.below(4)):
            name, other = s.pick(names), s.pick(names)
            try:
                if s.flag(4) or name in file:
                    del file[name]
                action = s.below(8)
                if action == 0:
                    file[name] = file[other]
                elif action == 1:
                    file[name] = h5py.SoftLink(f"/{other}")
                elif action == 2:
                    file[name] = h5py.ExternalLink(s.pick([str(path), "/etc/passwd"]), other)
                elif action == 3:
                    file.create_group(name)
                elif action == 4:
                    shape = s.pick([(8, 3), (2**40, 2**20), (0, 3), (), (3,), (8, 3, 1)])
                    dtype = s.pick(["f4", ">f4", "f8", "i4", "S3", h5py.string_dtype()])
                    file.create_dataset(name, shape, dtype, **s.pick(_STORAGE))
                elif action == 5:
                    file.attrs[s.pick(["layer_names", "name"])] = s.pick([1, "x", [b"x"]])
                elif action == 6:
                    file[name] = np.dtype("f4")
                else:
                    file.create_dataset(name, data=s.array(8, 3), **s.pick(_STORAGE))
            # Whatever h5py says of such a request.
            except (ValueError, TypeError, KeyError, OSError, RuntimeError, AttributeError):
                pass
    with contextlib.suppress(ValueError):
        _WEIGHTS.load_weights(path)


# --------------------------------------------------------------------------------------------------
# Data sets


@contextlib.contextmanager
def _small_data() -> Any:
    """The data sets with fewer images, in a folder of their own."""
    before = cifar10.RECORDS, cifar10.MAX_UNPACKED, mnist.N_TRAIN, mnist.N_TEST
    folder = os.environ.get("PYCONV_DATA_DIR")
    cifar10.RECORDS, cifar10.MAX_UNPACKED, mnist.N_TRAIN, mnist.N_TEST = 1, 1 << 20, 2, 1
    os.environ["PYCONV_DATA_DIR"] = str(_FOLDER)
    try:
        yield
    finally:
        cifar10.RECORDS, cifar10.MAX_UNPACKED, mnist.N_TRAIN, mnist.N_TEST = before
        if folder is None:
            del os.environ["PYCONV_DATA_DIR"]
        else:
            os.environ["PYCONV_DATA_DIR"] = folder


def _tar(s: Source) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=s.pick([0, 1, 2])) as archive:
        for name in cifar10.BATCHES:
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            size = cifar10.RECORDS * (1 + cifar10.PIXELS)
            if s.flag(12):
                member.name = s.pick(["../../../x", "/etc/x", "a" * 300, "../" + name, "\0", name])
            if s.flag(12):
                member.type = s.pick(
                    [b"1", b"2", b"3", b"4", b"5", b"6", b"S", b"L", b"x", b"g", b"K"]
                )
                member.linkname = s.pick(["/etc/passwd", "../../x", name])
            if s.flag(12):
                size += s.pick([1, -1, -size])
            member.size = size
            if s.flag(12):
                member.pax_headers = {
                    s.pick(["size", "path", "GNU.sparse.size", "x"]): "99999999999"
                }
            archive.addfile(member, io.BytesIO(bytes(size)))
    return content.getvalue()


def read_cifar10(data: bytes) -> None:
    """CIFAR-10's archive: members of any kind, name and size, and changed bytes."""
    s = Source(data)
    with _small_data(), contextlib.suppress(DataError):
        try:
            content = _tar(s)
        except ValueError:  # a name that the format has no room for
            return
        if s.flag():
            content = _flipped(s, content)
        content = gzip.compress(content, 1)
        if s.flag(8):
            content = _flipped(s, content)
        (_FOLDER / cifar10.ARCHIVE).write_bytes(content)
        cifar10.load_data()


def read_mnist(data: bytes) -> None:
    """MNIST's files, packed or not: any header and any content."""
    s = Source(data)
    folder = _FOLDER / mnist.FOLDER
    folder.mkdir(exist_ok=True)
    with _small_data(), contextlib.suppress(DataError):
        for name in mnist.MD5:
            count = mnist.N_TRAIN if name.startswith("train") else mnist.N_TEST
            shape = (count, 28, 28) if "images" in name else (count,)
            content = struct.pack(f">I{len(shape)}I", 0x800 + len(shape), *shape)
            content += bytes(math.prod(shape))
            if s.flag():
                content = _flipped(s, content)
            packed = s.flag()
            if packed:
                content = gzip.compress(content, 1)
                if s.flag(4):
                    content = _flipped(s, content)
            (folder / f"{name}.gz").unlink(missing_ok=True)
            (folder / (f"{name}.gz" if packed else name)).write_bytes(content)
        mnist.load_data()


# --------------------------------------------------------------------------------------------------
# Images

_IMAGES: dict[str, bytes] = {}


def _image(kind: str) -> bytes:
    from PIL import Image

    if kind not in _IMAGES:
        content = io.BytesIO()
        pixels = np.arange(7 * 5 * 3, dtype=np.uint8).reshape(7, 5, 3)
        Image.fromarray(pixels).save(content, kind)
        _IMAGES[kind] = content.getvalue()
    return _IMAGES[kind]


def read_images(data: bytes) -> None:
    """`load_image`: files of several kinds with changed bytes, or any bytes."""
    s = Source(data)
    kinds = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "TGA", "PCX", "ICO", "WEBP", "DDS", "SGI"]
    path = _FOLDER / "image"
    content = _flipped(s, _image(s.pick(kinds))) if not s.flag(6) else s.rest()
    path.write_bytes(content)
    with contextlib.suppress(ValueError):
        image = load_image(path, (4, 4, s.pick([1, 3, 2])))
        assert image.shape[:2] == (4, 4) and np.isfinite(image).all()
