"""Saved models: round trips, damaged and hostile files, and what a failure leaves behind."""

from __future__ import annotations

import errno
import json
import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest

import pyconv
from pyconv.layers import Activation, Conv2D, Dense, Dropout, Flatten, Input, MaxPooling2D
from pyconv.models import Sequential
from pyconv.saving import atomic_write, load_model, save_model

pytest.importorskip("safetensors")


def small_model() -> Sequential:
    pyconv.utils.set_random_seed(1)
    return Sequential(
        [
            Input((8, 8, 3)),
            Conv2D(4, 3, padding="same", activation="relu"),
            Conv2D(5, (3, 2), strides=2, use_bias=False, name="second"),
            MaxPooling2D(2),
            Dropout(0.5),
            Flatten(),
            Dense(6, activation="relu"),
            Dense(2),
            Activation("softmax"),
        ]
    )


@pytest.fixture
def model():
    return small_model()


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(model, path)
    return path


def split(path: Path) -> tuple[dict, bytes]:
    """The header, decoded, and the tensors' bytes of a safetensors file."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(path: Path, header: dict, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def change_description(path: Path, change) -> None:
    header, data = split(path)
    description = json.loads(header["__metadata__"]["pyconv"])
    change(description)
    header["__metadata__"]["pyconv"] = json.dumps(description)
    join(path, header, data)


def config_of_layer(config: dict, class_name: str) -> dict:
    return next(x["config"] for x in config["layers"] if x["class_name"] == class_name)


class TestRoundTrip:
    def test_same_outputs(self, model, saved):
        loaded = load_model(saved)
        x = np.random.default_rng(0).random((5, 8, 8, 3), np.float32)
        assert (loaded.predict(x, verbose=0) == model.predict(x, verbose=0)).all()
        assert loaded.get_config() == model.get_config()
        assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]

    def test_layout(self, saved):
        header, _ = split(saved)
        metadata = header.pop("__metadata__")
        assert {name: (t["dtype"], t["shape"]) for name, t in header.items()} == {
            "conv2d/kernel": ("F32", [3, 3, 3, 4]),
            "conv2d/bias": ("F32", [4]),
            "second/kernel": ("F32", [3, 2, 4, 5]),
            "dense/kernel": ("F32", [10, 6]),
            "dense/bias": ("F32", [6]),
            "dense_1/kernel": ("F32", [6, 2]),
            "dense_1/bias": ("F32", [2]),
        }
        description = json.loads(metadata["pyconv"])
        assert description["format"] == 1
        assert description["version"] == pyconv.__version__
        assert description["config"]["build_input_shape"] == [None, 8, 8, 3]
        assert description["compile"] is None

    def test_compiled(self, model, tmp_path):
        model.compile(
            optimizer=pyconv.optimizers.SGD(learning_rate=0.125, momentum=0.5),
            loss="categorical_crossentropy",
            metrics=["accuracy"],
        )
        save_model(model, tmp_path / "m")
        loaded = load_model(str(tmp_path / "m"))
        assert loaded.get_compile_config() == model.get_compile_config()
        x = np.random.default_rng(0).random((7, 8, 8, 3), np.float32)
        y = np.eye(2, dtype=np.float32)[[0, 1, 0, 1, 1, 1, 0]]
        assert loaded.evaluate(x, y, verbose=0) == model.evaluate(x, y, verbose=0)
        loaded.fit(x, y, epochs=1, verbose=0)

    def test_trained_weights(self, model, tmp_path):
        model.compile(optimizer="rmsprop", loss="categorical_crossentropy")
        x = np.random.default_rng(0).random((7, 8, 8, 3), np.float32)
        model.fit(x, np.eye(2, dtype=np.float32)[[0, 1, 0, 1, 1, 1, 0]], epochs=1, verbose=0)
        save_model(model, tmp_path / "m")
        loaded = load_model(tmp_path / "m")
        for layer, twin in zip(model.layers, loaded.layers, strict=True):
            for parameter, copy in zip(layer.parameters, twin.parameters, strict=True):
                assert (parameter.value == copy.value).all()

    def test_no_initial_weights_are_drawn(self, saved, monkeypatch):
        """A size that a file only claims to have must not cost the memory."""

        def fail(*_):
            pytest.fail("drew weights")

        monkeypatch.setitem(pyconv.initializers._INITIALIZERS, "glorot_uniform", fail)
        loaded = load_model(saved)
        assert loaded.get_layer("dense").kernel_initializer is fail

    def test_saved_twice_is_the_same_file(self, model, saved, tmp_path):
        save_model(load_model(saved), tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == saved.read_bytes()


class TestSaving:
    def test_not_built(self, tmp_path):
        with pytest.raises(ValueError, match="input shape is not known"):
            save_model(Sequential([Flatten(), Dense(3)]), tmp_path / "m")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("failing", ["fsync", "replace"])
    @pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()])
    def test_failure_leaves_the_old_file(self, model, saved, monkeypatch, failing, error):
        before = saved.read_bytes()

        def fail(*_):
            raise error

        monkeypatch.setattr(os, failing, fail)
        kernel = model.layers[-2].parameters[0]
        kernel.assign(np.full(kernel.shape, 7))
        with pytest.raises(type(error)):
            save_model(model, saved)
        assert saved.read_bytes() == before
        assert list(saved.parent.iterdir()) == [saved]

    def test_replaces(self, model, saved):
        kernel = next(layer for layer in model.layers if layer.name == "dense").parameters[0]
        kernel.assign(np.full(kernel.shape, 7))
        save_model(model, saved)
        loaded = next(layer for layer in load_model(saved).layers if layer.name == "dense")
        assert (loaded.parameters[0].value == 7).all()
        assert list(saved.parent.iterdir()) == [saved]

    def test_no_such_folder(self, model, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            save_model(model, tmp_path / "nowhere" / "m")

    def test_target_is_a_folder(self, model, tmp_path):
        (tmp_path / "m").mkdir()
        with pytest.raises(OSError, match="not a regular file"):
            save_model(model, tmp_path / "m")
        assert [p.name for p in tmp_path.iterdir()] == ["m"]


class TestAtomicWrite:
    def test_never_replaces_a_device(self, tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            atomic_write(os.devnull, b"")
        assert not Path(os.devnull).is_file()

    def test_follows_links(self, tmp_path):
        (tmp_path / "folder").mkdir()
        target, link = tmp_path / "folder" / "target", tmp_path / "link"
        target.write_bytes(b"old")
        try:
            link.symlink_to(target)
        except OSError:
            pytest.skip("no symbolic links here")
        atomic_write(link, b"new")
        assert link.is_symlink() and target.read_bytes() == b"new"

    @pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
    def test_permissions_follow_the_umask(self, tmp_path):
        before = os.umask(0o022)
        try:
            atomic_write(tmp_path / "f", b"")
        finally:
            os.umask(before)
        assert (tmp_path / "f").stat().st_mode & 0o777 == 0o644


class TestLoading:
    def fails(self, path: Path, match: str) -> None:
        """Loading raises one ValueError that names the file."""
        with pytest.raises(ValueError, match=match) as caught:
            load_model(path)
        assert str(path) in str(caught.value)

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nothing"):
            load_model(tmp_path / "nothing")

    def test_folder(self, tmp_path):
        self.fails(tmp_path, "is a folder")

    def test_truncated_anywhere(self, saved):
        whole = saved.read_bytes()
        for length in [*range(20), *range(20, len(whole), 97), len(whole) - 1]:
            saved.write_bytes(whole[:length])
            self.fails(saved, "is not a safetensors file, or is damaged")

    def test_too_long(self, saved):
        saved.write_bytes(saved.read_bytes() + b"1")
        self.fails(saved, "is not a safetensors file, or is damaged")

    @pytest.mark.parametrize(
        "content", [b"", b"PK\x03\x04" * 99, b"\x80\x04\x95" * 99, b"\xff" * 99]
    )
    def test_other_files(self, saved, content):
        saved.write_bytes(content)
        self.fails(saved, "is not a safetensors file, or is damaged")

    def test_any_flipped_byte_of_the_header(self, saved):
        """ValueError, or a model; never another exception."""
        whole = saved.read_bytes()
        (length,) = struct.unpack("<Q", whole[:8])
        for at in range(0, 8 + length, 5):
            changed = bytearray(whole)
            changed[at] ^= 1
            saved.write_bytes(changed)
            try:
                load_model(saved)
            except ValueError as error:
                assert str(saved) in str(error)

    def test_another_programs_file(self, saved):
        header, data = split(saved)
        del header["__metadata__"]
        join(saved, header, data)
        self.fails(saved, "no model of pyconv's")

    @pytest.mark.parametrize("number", [2, 0, "1", None, [1]])
    def test_other_format(self, saved, number):
        change_description(saved, lambda d: d.update(format=number, version="9.0"))
        self.fails(saved, r"has format .*, written by pyconv '9.0'.*upgrade")

    @pytest.mark.parametrize(
        "text",
        ["", "{", "[]", "3", "null", "{}", "\x00", "[" * 100_000, '{"format": NaN}'],
        ids=lambda text: text[:20] or "empty",
    )
    def test_broken_json(self, saved, text):
        header, data = split(saved)
        header["__metadata__"]["pyconv"] = text
        join(saved, header, data)
        self.fails(saved, "description is damaged")

    def test_more_text_than_anybody_writes(self, saved, monkeypatch):
        monkeypatch.setattr("pyconv.saving.MOST_TEXT", 2000)
        model = Sequential([Input((1,)), *(Flatten(name=f"f{i}") for i in range(50))])
        with pytest.raises(ValueError, match="more than 2,000 characters"):
            save_model(model, saved)
        header, data = split(saved)
        header["__metadata__"]["pyconv"] = '{"format": 1, "a": [' + "0, " * 700 + "0]}"
        join(saved, header, data)
        self.fails(saved, "description is damaged.*more than 2,000 characters")

    def test_more_layers_than_anybody_has(self, saved):
        """Each is compared with all before it; a file of some megabytes would take hours."""

        def change(description):
            layer = {"class_name": "Flatten", "config": {}}
            description["config"]["layers"] += [layer] * 100_000

        change_description(saved, change)
        start = time.monotonic()
        self.fails(saved, "a model has at most 1,000 layers")
        assert time.monotonic() - start < 20

    def test_no_such_files_are_written(self, tmp_path, monkeypatch):
        monkeypatch.setattr("pyconv.saving.MOST_LAYERS", 3)
        with pytest.raises(ValueError, match="a file holds at most 3 layers"):
            save_model(small_model(), tmp_path / "model")

    @pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity", "1e999"])
    def test_numbers_that_are_not_finite(self, saved, constant):
        header, data = split(saved)
        text = header["__metadata__"]["pyconv"]
        assert '"rate": 0.5' in text
        header["__metadata__"]["pyconv"] = text.replace('"rate": 0.5', f'"rate": {constant}')
        join(saved, header, data)
        self.fails(saved, "not a finite number|cannot be made")

    @pytest.mark.parametrize("value", [None, 7, [], "x", {}])
    @pytest.mark.parametrize("key", ["config", "compile"])
    def test_parts_of_the_wrong_type(self, saved, key, value):
        change_description(saved, lambda d: d.update({key: value}))
        if key == "compile" and value is None:
            assert load_model(saved).optimizer is None
        else:
            self.fails(saved, "cannot be")

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (lambda c: c["layers"][0].update(class_name="Conv3D"), "Conv3D"),
            (lambda c: c["layers"][0].update(class_name="__import__"), "__import__"),
            (lambda c: c["layers"][0].update(class_name=["Dense"]), "cannot be made"),
            (lambda c: c["layers"][0].pop("class_name"), "cannot be made"),
            (lambda c: c["layers"][0].pop("config"), "cannot be made"),
            (lambda c: c.pop("layers"), "cannot be made"),
            (lambda c: c.update(layers=7), "cannot be made"),
            (lambda c: c.update(layers=[7]), "cannot be made"),
            (lambda c: c.update(layers=[]), "cannot be made|has conv2d/bias"),
            (lambda c: c.update(build_input_shape=[None, 8, 8, -3]), "cannot be made"),
            (lambda c: c.update(build_input_shape="8"), "cannot be made"),
            (lambda c: config_of_layer(c, "Conv2D").update(filters=-1), "cannot be made"),
            (lambda c: config_of_layer(c, "Conv2D").update(filters="4"), "cannot be made"),
            (lambda c: config_of_layer(c, "Conv2D").update(unknown=1), "cannot be made"),
            (lambda c: config_of_layer(c, "Dense").update(activation="eval"), "cannot be made"),
            (lambda c: config_of_layer(c, "Dense").update(units=7), "must have the shape"),
            (lambda c: config_of_layer(c, "Dense").update(use_bias=False), "it has dense/bias"),
            (lambda c: config_of_layer(c, "Dense").update(name="other"), "it lacks other/bias"),
            (lambda c: config_of_layer(c, "Dense").update(units=10**15), "cannot be made|must be"),
            (lambda c: config_of_layer(c, "Dense").update(units=10**30), "cannot be made|must be"),
        ],
    )
    def test_config_that_does_not_fit(self, saved, change, problem):
        change_description(saved, lambda d: change(d["config"]))
        self.fails(saved, problem)

    @pytest.mark.parametrize(
        "change",
        [
            lambda c: c.update(optimizer="os.system"),
            lambda c: c.update(loss="unknown"),
            lambda c: c.update(loss=7),
            lambda c: c.pop("loss"),
            lambda c: c.update(metrics=[{"class_name": "Other", "config": {}}]),
            lambda c: c.update(other=1),
        ],
    )
    def test_compile_config_that_does_not_fit(self, model, saved, change):
        model.compile(optimizer="adam", loss="categorical_crossentropy")
        save_model(model, saved)
        change_description(saved, lambda d: change(d["compile"]))
        self.fails(saved, "cannot be compiled")

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (
                lambda h: h["dense/bias"].update(shape=[3, 2]),
                r"dense/bias must have the shape \(6,\)",
            ),
            (
                lambda h: h["dense/bias"].update(dtype="I32"),
                "dense/bias must be of type F32. Received: I32",
            ),
            (lambda h: h.update({"other/bias": h.pop("dense/bias")}), "it lacks dense/bias"),
        ],
    )
    def test_tensors_that_do_not_fit(self, saved, change, problem):
        header, data = split(saved)
        change(header)
        join(saved, header, data)
        self.fails(saved, problem)

    def test_types_that_numpy_lacks(self, saved):
        header, data = split(saved)
        header["dense/bias"].update(dtype="BF16", shape=[12])
        join(saved, header, data)
        self.fails(saved, "damaged|must be of type F32")
