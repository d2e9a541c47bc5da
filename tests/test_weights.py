"""Files of weights alone: safetensors, and Keras's `.weights.h5` both ways."""

from __future__ import annotations

import resource
import sys
import zlib

import numpy as np
import pytest

import pyconv
from pyconv.layers import Activation, Conv2D, Dense, Dropout, Flatten, Input, MaxPooling2D
from pyconv.models import Sequential, load_model


def new_model(seed=1) -> Sequential:
    pyconv.utils.set_random_seed(seed)
    return Sequential(
        [
            Input((8, 8, 3)),
            Conv2D(4, 3, activation="relu", name="first"),
            Conv2D(4, 3, use_bias=False),
            MaxPooling2D(2),
            Dropout(0.5),
            Flatten(),
            Dense(6),
            Activation("relu"),
            Dropout(0.25),
            Dense(2, activation="softmax", bias_initializer="ones"),
        ]
    )


def assert_same(model, other):
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


NAMES = {
    "layers/conv2d/vars/0": (3, 3, 3, 4),
    "layers/conv2d/vars/1": (4,),
    "layers/conv2d_1/vars/0": (3, 3, 4, 4),
    "layers/dense/vars/0": (16, 6),
    "layers/dense/vars/1": (6,),
    "layers/dense_1/vars/0": (6, 2),
    "layers/dense_1/vars/1": (2,),
}


class TestBothKinds:
    @pytest.fixture(params=["w.safetensors", "w.weights.h5"])
    def path(self, request, tmp_path):
        if request.param.endswith(".h5"):
            pytest.importorskip("h5py")
        return tmp_path / request.param

    def test_round_trip(self, path):
        model, other = new_model(), new_model(2)
        model.save_weights(path)
        other.load_weights(str(path))
        assert_same(model, other)
        x = np.random.default_rng(0).random((3, 8, 8, 3), np.float32)
        np.testing.assert_array_equal(model.predict(x, verbose=0), other.predict(x, verbose=0))
        assert [p.name for p in path.parent.iterdir()] == [path.name]

    def test_the_content_decides(self, path):
        new_model().save_weights(path)
        other = path.with_name("anything")
        path.rename(other)
        model = new_model(2)
        model.load_weights(other)
        assert_same(model, new_model())

    def test_the_same_file_again(self, path):
        new_model().save_weights(path)
        before = path.read_bytes()
        new_model().save_weights(path)
        assert path.read_bytes() == before

    def test_overwrite(self, path):
        path.write_bytes(b"old")
        with pytest.raises(FileExistsError, match="is there already. Pass overwrite=True"):
            new_model().save_weights(path, overwrite=False)
        assert path.read_bytes() == b"old"

    def test_not_built(self, path):
        model = Sequential([Dense(3)])
        with pytest.raises(ValueError, match="input shape is not known"):
            model.save_weights(path)
        with pytest.raises(ValueError, match="input shape is not known"):
            model.load_weights(path)

    def test_truncated(self, path):
        new_model().save_weights(path)
        whole = path.read_bytes()
        model = new_model(2)
        for length in [*range(0, len(whole), 997), len(whole) - 1]:
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=r"damaged|no model|is not") as caught:
                model.load_weights(path)
            assert str(path) in str(caught.value)
        assert_same(model, new_model(2))

    def test_flipped_bytes(self, path):
        """ValueError, or weights of the right shapes; never another exception."""
        new_model().save_weights(path)
        whole = path.read_bytes()
        for at in range(0, len(whole), 211):
            changed = bytearray(whole)
            changed[at] ^= 255
            path.write_bytes(changed)
            try:
                new_model().load_weights(path)
            except ValueError as error:
                assert str(path) in str(error)


class TestSafetensors:
    def test_weights_of_a_whole_model(self, tmp_path):
        new_model().save(tmp_path / "m")
        model = new_model(2)
        model.load_weights(tmp_path / "m")
        assert_same(model, new_model())

    def test_are_no_model(self, tmp_path):
        new_model().save_weights(tmp_path / "w")
        with pytest.raises(ValueError, match="holds weights alone.*load_weights"):
            load_model(tmp_path / "w")

    def test_another_shape(self, tmp_path):
        new_model().save_weights(tmp_path / "w")
        model = Sequential([Input((4,)), Dense(6)])
        with pytest.raises(ValueError, match="it has conv2d/kernel, .* none of its layers has"):
            model.load_weights(tmp_path / "w")

    def test_initializers_come_back(self, tmp_path):
        new_model().save(tmp_path / "m")
        assert load_model(tmp_path / "m").get_config() == new_model().get_config()

    @pytest.mark.parametrize("name", ["m.keras", "m.h5", "m.weights.h5"])
    def test_keras_models_are_not_written(self, tmp_path, name):
        with pytest.raises(ValueError, match="Keras's whole models are not supported"):
            new_model().save(tmp_path / name)

    def test_other_names_of_hdf5(self, tmp_path):
        with pytest.raises(ValueError, match=r"\*.weights.h5 \(Keras's format\)"):
            new_model().save_weights(tmp_path / "m.h5")

    def test_other_files(self, tmp_path):
        model = new_model()
        with pytest.raises(FileNotFoundError):
            model.load_weights(tmp_path / "nothing")
        with pytest.raises(ValueError, match="is a folder"):
            model.load_weights(tmp_path)
        (tmp_path / "m.keras").write_bytes(b"PK\x03\x04" * 9)
        with pytest.raises(ValueError, match="Take model.weights.h5 out of it"):
            model.load_weights(tmp_path / "m.keras")
        (tmp_path / "m.pickle").write_bytes(b"\x80\x04\x95" * 9)
        with pytest.raises(ValueError, match="not a safetensors file"):
            model.load_weights(tmp_path / "m.pickle")


class TestHDF5:
    @pytest.fixture(autouse=True)
    def h5py(self):
        return pytest.importorskip("h5py")

    @pytest.fixture
    def saved(self, tmp_path):
        new_model().save_weights(tmp_path / "w.weights.h5")
        return tmp_path / "w.weights.h5"

    @pytest.fixture
    def fails(self, h5py, saved):
        """Changes the file; loading then raises, and leaves the model alone."""

        def check(change, match):
            with h5py.File(saved, "a") as file:
                change(file)
            model = new_model(2)
            with pytest.raises(ValueError, match=match) as caught:
                model.load_weights(saved)
            assert str(saved) in str(caught.value)
            assert_same(model, new_model(2))

        return check

    def test_layout(self, h5py, saved):
        """What Keras 3.15 writes for this model."""
        found = {}
        with h5py.File(saved) as file:
            file.visititems(lambda name, value: found.update({name: value}))
            shapes = {n: v.shape for n, v in found.items() if isinstance(v, h5py.Dataset)}
            assert shapes == NAMES
            assert {found[name].dtype for name in NAMES} == {np.dtype(np.float32)}
            names = {n: v.attrs["name"] for n, v in found.items() if "name" in v.attrs}
        assert names == {
            "vars": "sequential",
            "layers/activation/vars": "activation",
            "layers/conv2d/vars": "first",
            "layers/conv2d_1/vars": "conv2d",
            "layers/dense/vars": "dense",
            "layers/dense_1/vars": "dense_1",
            "layers/dropout/vars": "dropout",
            "layers/dropout_1/vars": "dropout_1",
            "layers/flatten/vars": "flatten",
            "layers/max_pooling2d/vars": "max_pooling2d",
        }

    def test_what_keras_writes_beside(self, h5py, saved):
        with h5py.File(saved, "a") as file:
            file["optimizer/vars/0"] = np.int64(3)
            file["layers/dropout/seed_generator/vars/0"] = np.zeros(2, np.uint32)
        model = new_model(2)
        model.load_weights(saved)
        assert_same(model, new_model())

    @pytest.mark.parametrize(
        "options",
        [
            {"compression": "gzip"},
            {"compression": "gzip", "shuffle": True, "chunks": (4, 1)},
            {"chunks": (2, 1)},
        ],
    )
    def test_other_storage(self, h5py, saved, options):
        name = "layers/dense_1/vars/0"
        with h5py.File(saved, "a") as file:
            value = file[name][...]
            del file[name]
            file.create_dataset(name, data=value, **options)
        model = new_model(2)
        model.load_weights(saved)
        assert_same(model, new_model())

    def test_missing(self, fails):
        fails(
            lambda file: file.pop("layers/dense/vars/1"),
            r"it lacks the bias of layer dense \(layers/dense/vars/1\). Build the model",
        )

    def test_unknown(self, fails):
        fails(
            lambda file: (
                file.update({"layers/dense_2/vars/0": np.zeros(3, "f")})
                if hasattr(file, "update")
                else file.create_dataset("layers/dense_2/vars/0", data=np.zeros(3, "f"))
            ),
            "it has layers/dense_2/vars/0, which no layer has",
        )

    @staticmethod
    def replace(name, **options):
        def change(file):
            del file[name]
            file.create_dataset(name, **options)

        return change

    def test_wrong_shape(self, fails):
        fails(
            self.replace("layers/conv2d/vars/0", data=np.zeros((3, 3, 4, 3), "f")),
            r"the kernel of layer first \(layers/conv2d/vars/0\) must have the shape "
            r"\(3, 3, 3, 4\). Received: \(3, 3, 4, 3\). Build the model",
        )

    def test_a_shape_that_no_memory_holds(self, fails):
        fails(
            self.replace(
                "layers/dense/vars/0", shape=(2**30, 2**30), dtype="f4", chunks=(1024, 1024)
            ),
            r"must have the shape \(16, 6\). Received: \(1073741824, 1073741824\)",
        )

    @pytest.mark.parametrize("dtype", ["f8", "i4", "f2", "S4"])
    def test_wrong_type(self, fails, dtype):
        fails(
            self.replace("layers/dense/vars/1", shape=(6,), dtype=dtype),
            "bias of layer dense .* must be of type float32. Received: ",
        )

    def test_nothing_stored(self, fails):
        fails(
            self.replace("layers/dense/vars/1", shape=(6,), dtype="f4"),
            "damaged: the bias of layer dense .* is not all there. Expected: 24 bytes. Received: 0",
        )

    def test_chunks_missing(self, fails):
        def change(file):
            self.replace("layers/dense/vars/1", shape=(6,), dtype="f4", chunks=(4,))(file)
            file["layers/dense/vars/1"][:4] = 1

        fails(change, "is not all there. Expected: 24 bytes. Received: 16")

    def test_chunks_larger_than_the_whole(self, fails):
        """Reading them would take memory that nothing else in the file accounts for."""
        fails(
            self.replace(
                "layers/dense/vars/1",
                data=np.zeros(6, "f"),
                chunks=(2**20,),
                maxshape=(None,),
                compression="gzip",
            ),
            "is not all there",
        )

    def test_links(self, h5py, fails, tmp_path):
        def change(file):
            del file["layers/dense/vars/1"]
            file["layers/dense/vars/1"] = h5py.ExternalLink("other.h5", "/secret")

        fails(change, "layers/dense/vars/1 is a link to somewhere else")

    def test_soft_links(self, h5py, fails):
        def change(file):
            del file["layers/dense/vars/1"]
            file["layers/dense/vars/1"] = h5py.SoftLink("/layers/dense_1/vars/1")

        fails(change, "layers/dense/vars/1 is a link to somewhere else")

    def test_external_storage(self, fails, tmp_path):
        (tmp_path / "secret").write_bytes(bytes(24))
        fails(
            self.replace(
                "layers/dense/vars/1",
                shape=(6,),
                dtype="f4",
                external=[(str(tmp_path / "secret"), 0, 24)],
            ),
            "bias of layer dense .* lies in another file",
        )

    def test_virtual(self, h5py, fails, tmp_path):
        def change(file):
            del file["layers/dense/vars/1"]
            layout = h5py.VirtualLayout((6,), "f4")
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", shape=(6,))
            file.create_virtual_dataset("layers/dense/vars/1", layout)

        fails(change, "lies in another file")

    def test_groups_in_a_circle(self, fails):
        def change(file):
            file["layers/dense/again"] = file["layers"]

        fails(change, "lies too deep")

    def test_groups_that_multiply(self, fails):
        """Eight groups, each of which is ten times in the one before: a hundred million paths."""

        def change(file):
            group = file.create_group("layers/more")
            for _ in range(6):
                inner = group.create_group("0")
                for number in range(1, 10):
                    group[str(number)] = inner
                group = inner

        fails(change, "is in it twice")

    @pytest.mark.parametrize("shuffle", [False, True])
    def test_decompression_bomb(self, h5py, fails, saved, shuffle):
        """A chunk of 24 bytes, packed, that goes on for 256 MiB."""

        def change(file):
            name = "layers/dense/vars/1"
            options = {"compression": "gzip", "shuffle": shuffle, "chunks": (6,)}
            self.replace(name, shape=(6,), dtype="f4", **options)(file)
            packer = zlib.compressobj(9)
            packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(256))
            file[name].id.write_direct_chunk((0,), packed + packer.flush())

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        fails(change, "part of layers/dense/vars/1 must unpack to 24 bytes")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB

    def test_chunks_that_are_no_packed_data(self, fails):
        def change(file):
            name = "layers/dense/vars/1"
            self.replace(name, shape=(6,), dtype="f4", compression="gzip", chunks=(6,))(file)
            file[name].id.write_direct_chunk((0,), b"not packed")

        fails(change, "is damaged: layers/dense/vars/1: Error -3")

    @pytest.mark.parametrize("options", [{"compression": "lzf"}, {"fletcher32": True}])
    def test_other_filters(self, fails, options):
        fails(
            self.replace("layers/dense/vars/1", data=np.ones(6, "f"), chunks=(6,), **options),
            "stored in a way that is not read",
        )

    def test_keras_2(self, fails):
        def change(file):
            file.attrs["layer_names"] = [b"conv2d"]

        fails(change, "layout of Keras 2. Load it with Keras 3")

    def test_without_h5py(self, saved, monkeypatch):
        monkeypatch.setitem(sys.modules, "h5py", None)
        for act in (new_model().load_weights, new_model().save_weights):
            with pytest.raises(ImportError, match=r"pip install 'pyconv\[h5\]'"):
                act(saved)


@pytest.mark.filterwarnings("default")  # Keras's own
class TestKeras:
    """Against Keras itself, where it is installed."""

    @pytest.fixture
    def theirs(self):
        keras = pytest.importorskip("keras", exc_type=ImportError, reason="compares with Keras")
        pytest.importorskip("h5py")
        layers = keras.layers
        model = keras.Sequential(
            [
                layers.Input((8, 8, 3)),
                layers.Conv2D(4, 3, activation="relu", name="first"),
                layers.Conv2D(4, 3, use_bias=False),
                layers.MaxPooling2D(2),
                layers.Dropout(0.5),
                layers.Flatten(),
                layers.Dense(6),
                layers.Activation("relu"),
                layers.Dropout(0.25),
                layers.Dense(2, activation="softmax"),
            ]
        )
        model.compile("adam", "categorical_crossentropy")
        return model

    def compare(self, model, theirs, shape=(5, 8, 8, 3)):
        assert_same(model, theirs)
        x = np.random.default_rng(0).random(shape, np.float32)
        expected = theirs.predict(x, verbose=0)
        np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=0, atol=1e-6)

    def test_means_and_depths(self, tmp_path):
        """Layer by layer the same names, shapes and numbers, and files both ways."""
        keras = pytest.importorskip("keras", exc_type=ImportError, reason="compares with Keras")
        pytest.importorskip("h5py")

        def made_of(module):
            layers = module.layers
            return module.Sequential(
                [
                    module.Input((9, 12, 4)),
                    layers.ZeroPadding2D(((0, 1), (2, 3))),
                    layers.DepthwiseConv2D(3, 2, depth_multiplier=2, activation="relu"),
                    layers.AveragePooling2D((2, 3), strides=(1, 2), padding="same"),
                    layers.DepthwiseConv2D(3, padding="same", use_bias=False),
                    layers.AveragePooling2D(3, 2, padding="same"),
                    layers.GlobalAveragePooling2D(keepdims=True),
                    layers.GlobalAveragePooling2D(),
                    layers.Dense(3, activation="softmax"),
                ]
            )

        ours, theirs = made_of(pyconv), made_of(keras)
        for mine, other in zip(ours.layers, theirs.layers, strict=True):
            assert mine.name.rstrip("_0123456789") == other.name.rstrip("_0123456789")
            config = other.get_config()
            for key, value in mine.get_config().items():
                if key not in ("name", "input_shape") and "initializer" not in key:
                    assert np.array_equal(value, config[key]), (mine.name, key)
        theirs.save_weights(tmp_path / "k.weights.h5")
        ours.load_weights(tmp_path / "k.weights.h5")
        self.compare(ours, theirs, (5, 9, 12, 4))
        ours = made_of(pyconv)
        ours.save_weights(tmp_path / "p.weights.h5")
        theirs.load_weights(tmp_path / "p.weights.h5")
        self.compare(ours, theirs, (5, 9, 12, 4))

    def test_theirs_into_ours(self, theirs, tmp_path):
        x = np.random.default_rng(0).random((6, 8, 8, 3), np.float32)
        theirs.fit(x, np.eye(2, dtype="f")[[0, 1, 0, 1, 1, 0]], verbose=0)
        theirs.save_weights(tmp_path / "k.weights.h5")
        model = new_model()
        model.load_weights(tmp_path / "k.weights.h5")
        self.compare(model, theirs)

    def test_ours_into_theirs(self, theirs, tmp_path):
        model = new_model()
        model.save_weights(tmp_path / "p.weights.h5")
        theirs.load_weights(tmp_path / "p.weights.h5")
        self.compare(model, theirs)
