"""Devices: their choice, their arrays, and models on them.

Without a GPU "cuda" is the stand-in of fake_cupy.py: what Python does, with the CPU's kernels. With
one, the tests marked gpu run on it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import types
import warnings
from pathlib import Path

import fake_cupy
import numpy as np
import pytest
from conftest import emulated_cuda, has_emulated_cuda

import pyconv
from pyconv import backend, kernels, losses, metrics, optimizers
from pyconv.bench import operations
from pyconv.bench.contestants import Setting
from pyconv.callbacks import Callback
from pyconv.layers import (
    Activation,
    AveragePooling2D,
    BatchNormalization,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    Input,
    LeakyReLU,
    MaxPooling2D,
    ZeroPadding2D,
)
from pyconv.models import Sequential
from pyconv.preprocessing.image import ImageDataGenerator
from pyconv.utils import set_random_seed
from pyconv.validation import reference
from pyconv.validation.cases import CONV_CASES, integers


def reals(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def one_hot(n, classes=3, seed=0):
    return np.eye(classes, dtype=np.float32)[np.random.default_rng(seed).integers(0, classes, n)]


def small(optimizer="rmsprop", loss="categorical_crossentropy", metrics=("accuracy",), seed=1):
    """Every kind of block, and a convolution without a bias."""
    set_random_seed(seed)
    model = Sequential(
        [
            Input((8, 8, 2)),
            Conv2D(4, 3, padding="same", activation="relu", use_bias=False),
            Conv2D(6, 3),
            Activation("relu"),
            MaxPooling2D(),
            Dropout(0.25),
            MaxPooling2D((2, 1)),
            BatchNormalization(momentum=0.5),
            ZeroPadding2D(1),
            AveragePooling2D(2),
            DepthwiseConv2D(3, padding="same"),
            Flatten(),
            Dense(8, use_bias=False),
            LeakyReLU(),
            Dropout(0.5),
            Activation("relu"),
            Dense(3, activation="softmax"),
        ]
    )
    model.compile(optimizer, loss, list(metrics))
    return model


def samples(n=10):
    return reals(n, 8, 8, 2), one_hot(n)


def assert_same_weights(a, b):
    for mine, theirs in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def forget() -> None:
    """As if no device had been used yet."""
    backend._backend.cache_clear()
    backend._device = backend._current = None


@pytest.fixture
def fresh(monkeypatch):
    for name in ("PYCONV_DEVICE", "PYCONV_MATH_MODE", "PYCONV_EMULATED_ARCH", "PYCONV_CUDA_GRAPH"):
        monkeypatch.delenv(name, raising=False)
    forget()
    yield monkeypatch
    monkeypatch.undo()
    forget()


@pytest.fixture
def no_cuda(fresh):
    """A build without CUDA kernels."""
    for name in ("_cuda", "_cuda_emulated", "_cuda_emulated_sm75"):
        fresh.setitem(sys.modules, f"pyconv.{name}", None)
    return fresh


@pytest.fixture
def fake(fresh):
    """A build with CUDA kernels, a GPU and CuPy; of the device "auto"."""
    cupy, module = fake_cupy.modules()
    fresh.setitem(sys.modules, "cupy", cupy)
    fresh.setitem(sys.modules, "pyconv._cuda", module)
    return module


@pytest.fixture
def cuda(fake):
    pyconv.set_device("cuda")
    return fake


# What this installation says, whatever it was built with.


@pytest.fixture(autouse=True)
def device_as_it_was():
    before = pyconv.get_device()
    yield
    pyconv.set_device(before)


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        cwd=os.path.dirname(__file__),  # not where a source tree would hide what is installed
    )


def test_the_default_is_the_cpu():
    result = python("import pyconv; print(pyconv.get_device())", PYCONV_DEVICE="")
    assert result.stdout == "cpu\n", result.stderr


def test_an_unknown_device_is_refused_with_the_known_ones():
    for known in backend.DEVICES:
        with pytest.raises(ValueError, match=repr(known)):
            pyconv.set_device("tpu")
    result = python("import pyconv; pyconv.get_device()", PYCONV_DEVICE="gpu")
    assert "PYCONV_DEVICE: expected one of" in result.stderr


@pytest.mark.skipif(not backend.cuda_unavailable_reason(), reason="there is a CUDA device")
def test_without_a_device_cuda_is_refused_and_nothing_changes():
    pyconv.set_device("cpu")
    with pytest.raises(RuntimeError, match=r"The device 'cuda' cannot be used: .*\. *"):
        pyconv.set_device("cuda")
    assert pyconv.get_device() == "cpu"
    assert kernels.relu(np.ones(3, np.float32)).sum() == 3


def test_a_build_without_the_emulated_device_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyconv._cuda_emulated", None)
    monkeypatch.delenv("PYCONV_EMULATED_ARCH", raising=False)
    backend._backend.cache_clear()
    try:
        with pytest.raises(RuntimeError, match="PYCONV_CUDA_EMULATION=ON"):
            pyconv.set_device("cuda-emulated")
    finally:
        backend._backend.cache_clear()


def test_an_array_of_another_device_is_refused_with_the_remedy():
    class OnADevice:
        def __init__(self):
            self.__cuda_array_interface__ = {"version": 3}

    pyconv.set_device("cpu")
    with pytest.raises(TypeError, match="the device is 'cpu'.*cupy.asnumpy"):
        kernels.relu(OnADevice())


def test_math_modes_of_the_cpu():
    pyconv.set_device("cpu")
    for mode in ("direct", "winograd4", "winograd6", "fp32"):
        pyconv.set_math_mode(mode)
        assert pyconv.get_math_mode() == mode
    for mode in ("tf32", "FP32", ""):
        with pytest.raises(ValueError, match="'fp32'"):
            pyconv.set_math_mode(mode)


def test_info_says_what_there_is_of_cuda():
    result = python("from pyconv.cli import main; main(['info'])")
    assert result.returncode == 0, result.stderr
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("CUDA:"))
    if backend.cuda_module() is None:
        assert "not in this build" in line
    else:
        assert "sm_75" in line and "built with CUDA" in line


# What any says, with the stand-in.


class TestChoice:
    def test_cpu_where_there_is_nothing_else(self, no_cuda):
        assert pyconv.get_device() == "cpu"
        assert backend.current().name == "cpu"
        assert backend.current() is backend.current()

    def test_auto_is_the_best_there_is(self, fake):
        assert pyconv.get_device() == "cuda"
        pyconv.set_device("cpu")
        assert pyconv.get_device() == "cpu"
        pyconv.set_device("auto")
        assert pyconv.get_device() == backend.current().name == "cuda"

    def test_environment(self, fake, monkeypatch):
        monkeypatch.setenv("PYCONV_DEVICE", "cpu")
        assert pyconv.get_device() == backend.current().name == "cpu"
        pyconv.set_device("cuda")
        assert pyconv.get_device() == "cuda"

    def test_unknown_names(self, fresh):
        expected = "expected one of 'auto', 'cpu', 'cuda', 'cuda-emulated'. Received: 'gpu'"
        with pytest.raises(ValueError, match=f"set_device: {expected}"):
            pyconv.set_device("gpu")
        fresh.setenv("PYCONV_DEVICE", "gpu")
        for function in (pyconv.get_device, backend.current):
            with pytest.raises(ValueError, match=f"PYCONV_DEVICE: {expected}"):
                function()

    def test_a_device_that_cannot_be_had_leaves_the_one_in_use(self, no_cuda):
        pyconv.set_device("cpu")
        with pytest.raises(RuntimeError):
            pyconv.set_device("cuda")
        assert pyconv.get_device() == "cpu"

    def test_not_built(self, no_cuda):
        with pytest.raises(
            RuntimeError,
            match=r"'cuda' cannot be used: the CUDA kernels are not in this build.* nvcc .*"
            r"-C cmake.define.PYCONV_CUDA=ON",
        ):
            pyconv.set_device("cuda")
        no_cuda.setenv("PYCONV_DEVICE", "cuda")
        with pytest.raises(RuntimeError, match="the CUDA kernels are not in this build"):
            kernels.relu(reals(3))

    def test_cannot_be_loaded(self, fake, monkeypatch):
        load = backend.importlib.import_module

        def broken(name):
            if name == "pyconv._cuda":
                raise ImportError("libsomething.so.1: cannot open shared object file")
            return load(name)

        monkeypatch.setattr(backend.importlib, "import_module", broken)
        with pytest.raises(RuntimeError, match=r"pyconv._cuda cannot be loaded: libsomething.so.1"):
            pyconv.set_device("cuda")
        assert pyconv.get_device() == "cpu", "it is no reason not to run"

    def test_no_driver(self, fake):
        fake.reason = "no NVIDIA driver was found"
        with pytest.raises(RuntimeError, match=r"no NVIDIA driver was found. Install .*nvidia-smi"):
            pyconv.set_device("cuda")
        assert pyconv.get_device() == "cpu"

    def test_no_cupy(self, fake, monkeypatch):
        monkeypatch.setitem(sys.modules, "cupy", None)
        with pytest.raises(
            RuntimeError,
            match=r"CuPy, .*, is not installed. Install it: pip install"
            r" 'pyconv\[cuda13\]'",
        ):
            pyconv.set_device("cuda")
        assert pyconv.get_device() == "cpu"

    def test_broken_cupy(self, fake, monkeypatch, tmp_path):
        (tmp_path / "cupy.py").write_text("raise OSError('libnvrtc is gone')")
        monkeypatch.delitem(sys.modules, "cupy")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(RuntimeError, match="cannot be imported: libnvrtc is gone"):
            pyconv.set_device("cuda")
        assert pyconv.get_device() == "cpu"

    def test_emulation(self, no_cuda):
        with pytest.raises(
            RuntimeError,
            match=r"'cuda-emulated' cannot be used: this build does no"
            r"t have it.*-C cmake.define.PYCONV_CUDA_EMULATION=ON",
        ):
            pyconv.set_device("cuda-emulated")
        no_cuda.setenv("PYCONV_EMULATED_ARCH", "90")
        with pytest.raises(ValueError, match="PYCONV_EMULATED_ARCH: expected 75 or 80. .*'90'"):
            pyconv.set_device("cuda-emulated")
        module = types.ModuleType("pyconv._cuda_emulated_sm75")
        no_cuda.setitem(sys.modules, module.__name__, module)
        no_cuda.setenv("PYCONV_EMULATED_ARCH", "75")
        pyconv.set_device("cuda-emulated")
        device = backend.current()
        assert (device.kernels, device.xp, device.captures) == (module, np, False)

    def test_what_is_imported(self):
        """CUDA and CuPy are looked for when a device is, not before."""
        code = (
            "import sys, pyconv; found = {'cupy', 'pyconv._cuda'} & set(sys.modules)\n"
            "pyconv.set_device('cpu'); pyconv.kernels.relu(__import__('numpy').ones(3, 'f'))\n"
            "found |= {'cupy', 'pyconv._cuda'} & set(sys.modules); assert not found, found"
        )
        folder = Path(pyconv.__file__).parents[1]
        subprocess.run([sys.executable, "-c", code], check=True, cwd=folder)


class TestMathMode:
    def test_on_the_cpu(self, no_cuda):
        pyconv.set_math_mode("fp32")
        assert pyconv.get_math_mode() == "fp32"
        with pytest.raises(ValueError, match="'winograd6' on the device 'cpu'. .*'tf32'"):
            pyconv.set_math_mode("tf32")

    def test_on_cuda(self, cuda):
        assert pyconv.get_math_mode() == "fp32"
        pyconv.set_math_mode("tf32")
        assert pyconv.get_math_mode() == cuda.math_mode() == "tf32"
        cuda.tensor_cores = False
        with pytest.raises(ValueError, match="8.0 or later"):
            pyconv.set_math_mode("tf32")

    def test_environment(self, fake, monkeypatch):
        monkeypatch.setenv("PYCONV_MATH_MODE", "tf32")
        assert pyconv.get_math_mode() == "tf32"
        with pytest.raises(ValueError, match="PYCONV_MATH_MODE: .*on the device 'cpu'"):
            pyconv.set_device("cpu")
        forget()
        monkeypatch.setenv("PYCONV_MATH_MODE", "fp8")
        with pytest.raises(ValueError, match="'fp8'"):
            backend.current()


class TestArrays:
    def test_kernels_take_the_devices_arrays(self, cuda):
        x, w = reals(2, 5, 5, 3), reals(3, 3, 3, 4)
        on_device = [fake_cupy.asarray(a) for a in (x, w)]
        y = kernels.conv2d(*on_device)
        assert isinstance(y, fake_cupy.ndarray)
        gradients = kernels.conv2d_backward(y, *on_device)
        assert cuda.launches == ["conv2d", "conv2d_backward"]
        host = [a.get() for a in (y, *gradients)]
        pyconv.set_device("cpu")
        np.testing.assert_array_equal(host[0], kernels.conv2d(x, w))
        for mine, theirs in zip(host[1:], kernels.conv2d_backward(host[0], x, w)):
            np.testing.assert_array_equal(mine, theirs)

    def test_fused_kernels(self, cuda):
        arguments = reals(2, 7, 6, 4), reals(3, 3, 4, 5), reals(5)
        options = {"padding": "same", "rate": 0.5}
        results = []
        for device, convert, back in (
            ("cuda", fake_cupy.asarray, fake_cupy.asnumpy),
            ("cpu", np.asarray, np.asarray),
        ):
            pyconv.set_device(device)
            x, w, b = map(convert, arguments)
            y, winner = kernels.conv2d_pool(x, w, b, **options, seed=4)
            gradients = kernels.conv2d_pool_backward(y, winner, x, w, **options)
            rows = kernels.gather(x, convert(np.array([1, 1, 0])), 0.5)
            results.append([back(a) for a in (y, winner, *gradients, rows)])
        for mine, theirs in zip(*results, strict=True):
            np.testing.assert_array_equal(mine, theirs)

    def test_numbers_on_the_device(self, cuda):
        x, w, g, m, v = (fake_cupy.asarray(reals(50, seed=i)) for i in range(5))
        offset = fake_cupy.asarray(np.array(3, np.uint64)).reshape(())
        rate = fake_cupy.asarray(np.array(0.5, np.float32)).reshape(())
        y = kernels.dropout(x, 0.5, 7, offset)
        kernels.adam_step(w, g, m, v, offset, rate)
        mine = y.get(), w.get()
        pyconv.set_device("cpu")
        np.testing.assert_array_equal(mine[0], kernels.dropout(reals(50), 0.5, 7, 3))
        w, g, m, v = (reals(50, seed=i) for i in range(1, 5))
        kernels.adam_step(w, g, m, v, 3, 0.5)
        np.testing.assert_array_equal(mine[1], w)

    def test_numpys_on_cuda(self, cuda):
        there, here = fake_cupy.asarray(reals(3, 4)), reals(3, 4)
        advice = (
            r"It is NumPy's, but the device is 'cuda': copy it with cupy.asarray, or choose "
            r"pyconv.set_device\('cpu'\)"
        )
        with pytest.raises(TypeError, match=f"x: expected a CuPy array. Received: .*{advice}"):
            kernels.relu(here)
        # Found by the binding.
        with pytest.raises(TypeError, match=f"expected an array on the CUDA device.*{advice}"):
            kernels.relu(there, out=here)
        with pytest.raises(TypeError, match=r"expected a CuPy array. Received: list.$"):
            kernels.relu([1.0])

    def test_cupys_on_the_cpu(self, fake):
        pyconv.set_device("cpu")
        there, here = fake_cupy.asarray(reals(3, 4)), reals(3, 4)
        advice = (
            r"It lies on a GPU, but the device is 'cpu': copy it with cupy.asnumpy, or "
            r"choose pyconv.set_device\('cuda'\)"
        )
        with pytest.raises(TypeError, match=f"x: expected a NumPy array. Received: .*{advice}"):
            kernels.relu(there)
        with pytest.raises(TypeError, match=f"expected a NumPy array of float32.*{advice}"):
            kernels.relu(here, out=there)
        x = fake_cupy.asarray(reals(3, 8, 8, 2))
        for call in (small().predict, small().layers[0]):
            with pytest.raises(TypeError, match=f"Expected a NumPy array of numbers.*{advice}"):
                call(x)

    def test_other_libraries_arrays(self, cuda):
        class Tensor:
            def __init__(self, host):
                self.wrapped = fake_cupy.asarray(host)
                self.__cuda_array_interface__ = self.wrapped.__cuda_array_interface__

        x, _ = samples()
        model = small()
        np.testing.assert_array_equal(
            model.predict(Tensor(x)).get(), model.predict(fake_cupy.asarray(x)).get()
        )

    def test_other_libraries_arrays_by_dlpack(self, cuda, monkeypatch):
        class Tensor:
            def __init__(self, wrapped, where):
                self.wrapped, self.where = wrapped, where

            def __dlpack__(self, **keywords):
                return self.wrapped.__dlpack__(**keywords)

            def __dlpack_device__(self):
                return self.where, 0

        cupy = sys.modules["cupy"]
        monkeypatch.setattr(cupy, "from_dlpack", lambda tensor: tensor.wrapped, raising=False)
        x, y = samples()
        model, on_device = small(), fake_cupy.asarray(x)
        expected = model.predict(on_device).get()
        np.testing.assert_array_equal(model.predict(Tensor(on_device, 2)).get(), expected)
        np.testing.assert_array_equal(
            kernels.relu(Tensor(on_device, 2)).get(), kernels.relu(on_device).get()
        )
        # From the host, batches are copied, as NumPy's are.
        np.testing.assert_array_equal(model.predict(Tensor(x, 1)), expected)
        model.train_on_batch(Tensor(x, 1), Tensor(y, 1))
        with pytest.raises(
            TypeError, match=r"a CuPy array. Received: .* copy it with cupy.asarray"
        ):
            kernels.relu(Tensor(x, 1))

    def test_what_models_do_not_take(self, cuda):
        model = small()
        for given, kind in (("images", "str"), ((i for i in range(3)), "int")):
            with pytest.raises(
                TypeError, match=rf"NumPy or CuPy array of numbers. Received: {kind}$"
            ):
                model.predict(given)
        with pytest.raises(TypeError, match=r"float32 or uint8 .*float64. .*\.astype\('float32'\)"):
            model.predict(fake_cupy.asarray(np.zeros((3, 8, 8, 2))))
        strided = fake_cupy.asarray(reals(6, 8, 8, 2))[::2]
        with pytest.raises(ValueError, match=r"C-contiguous .*cupy.ascontiguousarray"):
            model.predict(strided)
        with pytest.raises(ValueError, match="expected x of shape"):
            model.predict(fake_cupy.asarray(reals(3, 8, 8, 1)))


def train(device, **options):
    """A model's history and weights after three epochs of 4, 4 and 2 samples."""
    pyconv.set_device(device)
    model = small(**options)
    x, y = samples()
    logs = model.fit(x, y, batch_size=4, epochs=3, verbose=0, validation_data=(x, y)).history
    return model, logs


class TestTraining:
    @pytest.mark.parametrize(
        "optimizer",
        [lambda: "rmsprop", lambda: "adam", lambda: optimizers.SGD(0.1, momentum=0.9)],
        ids=["rmsprop", "adam", "sgd"],
    )
    @pytest.mark.parametrize("graph", ["0", "1"])
    def test_as_on_the_cpu(self, cuda, optimizer, graph, monkeypatch):
        monkeypatch.setenv("PYCONV_CUDA_GRAPH", graph)
        on_cpu, expected = train("cpu", optimizer=optimizer())
        on_cuda, logs = train("cuda", optimizer=optimizer())
        assert logs == expected
        assert_same_weights(on_cuda, on_cpu)
        for mine, theirs in zip(on_cuda.gradients, on_cpu.gradients):
            np.testing.assert_array_equal(mine, theirs)
        assert on_cuda.optimizer.iterations == 9
        # Of the nine steps, and the nine forward passes of the validation, the first and the three
        # smaller ones are plain.
        assert cuda.captures == 2 * int(graph)
        assert cuda.launches.count("graph") == 2 * 5 * int(graph)
        assert cuda.launches.count("conv2d_pool_backward") == (4 if graph == "1" else 9)

    def test_captured_steps_round_the_weights_of_then(self, cuda, global_policy, monkeypatch):
        global_policy("mixed_bfloat16")
        results = []
        for graph in ("0", "1"):
            monkeypatch.setenv("PYCONV_CUDA_GRAPH", graph)
            cuda.captures = 0
            results.append(train("cuda"))
            assert cuda.captures == 2 * int(graph)
        (plain, logs), (captured, captured_logs) = results
        assert captured_logs == logs
        assert_same_weights(captured, plain)
        _, on_cpu = train("cpu")
        for name, values in on_cpu.items():
            np.testing.assert_allclose(logs[name], values, atol=0.02)

    def test_steps_do_not_wait_for_values_that_nobody_reads(self, cuda, monkeypatch):
        fetched, get = [], fake_cupy.ndarray.get
        monkeypatch.setattr(
            fake_cupy.ndarray,
            "get",
            lambda self, *a, **k: (fetched.append(1), get(self, *a, **k))[1],
        )
        x, y = samples(200)

        def values(device, *callbacks):
            pyconv.set_device(device)
            fetched.clear()
            history = small().fit(x, y, batch_size=2, epochs=2, verbose=0, callbacks=callbacks)
            return history.history

        expected = values("cpu")
        assert values("cuda") == expected
        assert 0 < len(fetched) <= 2 * 2 * 2  # of an epoch of 100 steps the first 64, and the rest
        seen = {"cpu": [], "cuda": []}
        for device, logs in seen.items():

            class Reader(Callback):
                def on_train_batch_end(self, batch, logs, seen=logs):
                    seen.append(dict(logs))

            assert values(device, Reader()) == expected
        assert len(seen["cpu"]) == 200 and seen["cuda"] == seen["cpu"]
        assert len(fetched) >= 200

        class Counter(Callback):
            reads_batches = False

            def on_train_batch_end(self, batch, logs):
                assert not logs

        assert values("cuda", Counter()) == expected
        assert len(fetched) <= 8

    def test_fused_blocks(self, cuda):
        model, _ = train("cuda")
        names = [type(block).__name__ for block in model._training_plan.blocks]
        assert names[:3] == ["ConvBlock", "ConvPoolBlock", "MaxPoolBlock"]
        for layers, fused in [
            ([Conv2D(2, 3, activation="relu"), MaxPooling2D(2)], True),
            ([Conv2D(2, 3, activation="relu"), MaxPooling2D(2), Activation("relu")], True),
            ([Conv2D(2, 3), MaxPooling2D(2)], False),
            ([Conv2D(2, 3, activation="relu"), Dropout(0.5), MaxPooling2D(2)], False),
            ([Conv2D(2, 3, activation="relu"), MaxPooling2D(2, strides=1)], False),
            ([Conv2D(2, 3, activation="relu"), MaxPooling2D(2, padding="same")], False),
            ([Conv2D(2, 3, activation="relu"), MaxPooling2D(3)], False),
            ([Conv2D(2, 3, activation="relu")], False),
        ]:
            model = Sequential([Input((8, 8, 2)), *layers])
            x, _ = samples(3)
            expected = model.predict(x)
            found = any(
                "Pool" in type(b).__name__ and "Conv" in type(b).__name__
                for b in model._inference_plan.blocks
            )
            assert found == fused, layers
            pyconv.set_device("cpu")
            np.testing.assert_array_equal(model.predict(x), expected)
            pyconv.set_device("cuda")

    def test_models_have_a_stream_of_their_own(self, cuda):
        model, _ = train("cuda")
        model.predict(samples()[0])
        assert {stream is backend.current().stream for stream in cuda.streams} == {True}
        assert fake_cupy.get_current_stream() is fake_cupy.Stream.null
        # The functional layer stays on the caller's.
        cuda.streams.clear()
        mine = fake_cupy.Stream()
        with mine:
            kernels.relu(fake_cupy.asarray(reals(3)))
        assert cuda.streams == [mine]

    def test_data_made_on_another_stream_is_waited_for(self, cuda):
        x, _ = samples()
        model = small()
        expected = model.predict(x)
        mine = fake_cupy.Stream()
        with mine:
            given = fake_cupy.empty(x.shape, np.float32)
            given.set(x)
            outputs = model.predict(given)
            results = outputs.get()
        np.testing.assert_array_equal(results, expected)
        with mine:
            given.set(-x)
            loss = model.test_on_batch(given, one_hot(10))  # read on the model's stream
        assert loss == model.test_on_batch(-x, one_hot(10))

    def test_a_learning_rate_acts_on_a_captured_step(self, cuda):
        class Slower(Callback):
            def on_train_batch_begin(self, batch, logs=None):
                self.model.optimizer.learning_rate = 0.01 / (1 + self.model.optimizer.iterations)

        def weights(device):
            pyconv.set_device(device)
            model = small("adam")
            model.fit(*samples(12), batch_size=4, epochs=3, verbose=0, callbacks=Slower())
            return model

        assert_same_weights(weights("cuda"), weights("cpu"))
        assert cuda.captures == 1

    @pytest.mark.parametrize(
        "change",
        [
            lambda model: setattr(model.optimizer, "rho", 0.5),
            lambda model: setattr(model.optimizer, "epsilon", 0.1),
            lambda model: model.optimizer.slots.update(
                velocity=fake_cupy.asarray(model.optimizer.slots["velocity"].get())
            ),
            lambda model: pyconv.set_math_mode("tf32"),
            lambda model: model.compile("adam", "categorical_crossentropy"),
            lambda model: model.train_on_batch(*samples(9)),  # buffers for a larger batch
        ],
        ids=["rho", "epsilon", "slots", "math_mode", "compile", "capacity"],
    )
    def test_what_a_captured_step_has_for_good(self, cuda, change):
        """After a change a step is captured anew, and does what it should."""

        def weights(graph):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PYCONV_CUDA_GRAPH", graph)
                model = small(metrics=())
                for _ in range(4):
                    model.train_on_batch(*samples(4))
                change(model)
                for _ in range(4):
                    model.train_on_batch(*samples(4))
                pyconv.set_math_mode("fp32")
                return model

        captured = weights("1")
        assert cuda.captures == 2
        assert_same_weights(captured, weights("0"))

    def test_weights_that_are_set_count_in_a_captured_step(self, cuda):
        def weights(device):
            pyconv.set_device(device)
            model = small("sgd")
            for step in range(6):
                if step == 4:
                    model.set_weights([0.1 * reals(*w.shape) for w in model.get_weights()])
                model.train_on_batch(*samples(4))
            return model

        assert_same_weights(weights("cuda"), weights("cpu"))
        assert cuda.captures == 1

    def test_single_steps_of_other_sizes_are_plain(self, cuda):
        model = small()
        for n in (4, 4, 4, 2, 4, 3, 4, 2, 4):
            model.train_on_batch(*samples(n))
        assert (cuda.captures, cuda.launches.count("graph")) == (1, 5)
        model.train_on_batch(*samples(2))
        model.train_on_batch(*samples(2))
        assert cuda.captures == 2

    def test_predictions_are_replayed_with_the_weights_of_then(self, cuda):
        model, (x, _) = small(), samples(8)
        initial = model.get_weights()

        def predictions(x):
            for scale in (1.0, 0.5, 2.0, 1.0):
                model.set_weights([scale * array for array in initial])
                yield fake_cupy.asarray(model.predict_on_batch(x)).get()

        got = [*predictions(x), *predictions(fake_cupy.asarray(x))]
        assert (cuda.captures, cuda.launches.count("graph")) == (1, 7)
        pyconv.set_device("cpu")
        for mine, theirs in zip(got, [*predictions(x)] * 2, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-6)

    @pytest.mark.parametrize("moment", ["begin", "launch"])
    def test_a_capture_that_fails(self, cuda, moment, monkeypatch):
        on_cpu, expected = train("cpu")
        if moment == "begin":
            cuda.capture_error = cuda.Error("begin of a graph: cudaErrorNotSupported")
        else:
            plain = cuda.dense

            def dense(*arguments):
                if fake_cupy.get_current_stream().recording is not None:
                    raise cuda.Error("dense: cudaErrorStreamCaptureUnsupported")
                plain(*arguments)

            monkeypatch.setattr(cuda, "dense", dense)
        with pytest.warns(
            RuntimeWarning, match="not captured as a CUDA graph: .*cudaError"
        ) as seen:
            model, logs = train("cuda")
        assert len({str(warning.message) for warning in seen}) == 1
        assert logs == expected
        assert_same_weights(model, on_cpu)
        assert "graph" not in cuda.launches

    def test_ctrl_c_in_a_capture(self, cuda):
        cuda.capture_error = KeyboardInterrupt()
        model = small()
        history = model.fit(*samples(12), batch_size=4, verbose=0)
        assert history.interrupted and model.optimizer.iterations == 1
        cuda.capture_error = None
        model.fit(*samples(12), batch_size=4, verbose=0)
        assert cuda.captures == 1

    def test_settings_of_graphs(self, cuda, monkeypatch):
        monkeypatch.setenv("PYCONV_CUDA_GRAPH", "yes")
        with pytest.raises(ValueError, match="PYCONV_CUDA_GRAPH: expected 0 or 1. Received: 'yes'"):
            small().train_on_batch(*samples())

    def test_losses_metrics_and_optimizers_of_ones_own(self, cuda):
        class Squares(losses.Loss):
            def losses(self, y_true, y_pred):
                assert isinstance(y_true, np.ndarray) and isinstance(y_pred, np.ndarray)
                return ((y_true - y_pred) ** 2).sum(axis=-1)

            def gradient(self, y_true, y_pred):
                return 2.0 * (y_pred - y_true) / len(y_true)

        class Largest(metrics.Metric):
            def values(self, y_true, y_pred):
                assert isinstance(y_true, np.ndarray) and isinstance(y_pred, np.ndarray)
                return y_pred.max(axis=-1)

        class Twice(optimizers.SGD):
            def step(self, *arguments):
                super().step(*arguments)
                super().step(*arguments)

        for options in (
            {"loss": Squares()},
            {"metrics": [Largest("largest")]},
            {"loss": losses.CategoricalCrossentropy(label_smoothing=0.2)},
            {"optimizer": Twice()},
        ):
            on_cpu, expected = train("cpu", **options)
            if "optimizer" in options:
                options = {"optimizer": Twice()}
            on_cuda, logs = train("cuda", **options)
            assert logs == expected
            assert_same_weights(on_cuda, on_cpu)
            assert (on_cuda._graph._graph is not None) == bool(
                {"metrics"} & set(options)
                or isinstance(options.get("loss"), losses.CategoricalCrossentropy)
            )

    @pytest.mark.parametrize("lies", ["here", "there"])
    @pytest.mark.parametrize("graph", ["0", "1"])
    @pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "bce", "mse", "mae"])
    def test_losses(self, cuda, loss, graph, lies, monkeypatch):
        """Those over classes are kernels, which are captured; formulas are computed on the host."""
        monkeypatch.setenv("PYCONV_CUDA_GRAPH", graph)
        sparse = loss.startswith("sparse")
        x, y = samples()
        if sparse:
            y = y.argmax(axis=1).astype(np.uint8)[:, np.newaxis]
        names = ["accuracy", loss, f"{'sparse_' if sparse else ''}top_k_categorical_accuracy"]

        def results(device):
            pyconv.set_device(device)
            model = small(loss=loss, metrics=names)
            given = fake_cupy.asarray(y) if (device, lies) == ("cuda", "there") else y
            logs = model.fit(
                x, given, batch_size=4, epochs=3, verbose=0, validation_data=(x, given)
            ).history
            return model, logs, model.train_on_batch(x, given), model.test_on_batch(x, given)

        on_cpu, *expected = results("cpu")
        captures = cuda.captures
        on_cuda, *got = results("cuda")
        assert got == expected
        assert_same_weights(on_cuda, on_cpu)
        # The validation's forward pass always is.
        assert cuda.captures - captures == (1 + sparse) * int(graph)

    def test_class_numbers_out_of_range(self, cuda):
        model = small(loss="sparse_categorical_crossentropy")
        y = fake_cupy.asarray(np.full(10, 3, np.uint8))
        with pytest.raises(ValueError, match="0 <= y < 3, .* Received: numbers from 3 to 3"):
            model.fit(fake_cupy.asarray(samples()[0]), y, verbose=0)

    def test_logits(self, cuda):
        def results(device):
            pyconv.set_device(device)
            set_random_seed(1)
            model = Sequential([Input((8,)), Dense(3)])
            model.compile("sgd", losses.CategoricalCrossentropy(from_logits=True), ["accuracy"])
            x, y = reals(12, 8), one_hot(12)
            return model.fit(x, y, batch_size=4, epochs=2, verbose=0).history

        assert results("cuda") == results("cpu")


class TestGeneratedBatches:
    """Made on the host, in the background, and copied to the device batch by batch."""

    @pytest.mark.parametrize("graph", ["0", "1"])
    def test_augmented_images(self, cuda, graph, monkeypatch):
        monkeypatch.setenv("PYCONV_CUDA_GRAPH", graph)

        def results(device):
            pyconv.set_device(device)
            model = small()
            x, y = samples()
            generator = ImageDataGenerator(rotation_range=20, horizontal_flip=True)
            flow = generator.flow(x, y, batch_size=4, seed=1)
            history = model.fit(flow, epochs=3, verbose=0, validation_data=(x, y)).history
            outputs = model.predict(iter([x[:4], x[4:]]), verbose=0)
            assert isinstance(outputs, np.ndarray)
            return model, history, model.evaluate(flow, verbose=0), outputs

        (on_cuda, *got), (on_cpu, *expected) = results("cuda"), results("cpu")
        assert got[:2] == expected[:2]
        np.testing.assert_array_equal(got[2], expected[2])
        assert_same_weights(on_cuda, on_cpu)

    def test_batches_on_the_device(self, cuda):
        x, y = samples(8)
        batches = [(x[:4], y[:4]), (x[4:], y[4:])]
        there = [tuple(map(fake_cupy.asarray, batch)) for batch in batches]

        def results(device, batches):
            pyconv.set_device(device)
            model = small()
            return model, model.fit(batches, epochs=2, verbose=0).history

        (on_cuda, logs), (on_cpu, expected) = results("cuda", there), results("cpu", batches)
        assert logs == expected
        assert_same_weights(on_cuda, on_cpu)


class TestDataOnTheDevice:
    @pytest.mark.parametrize("shuffle", [False, True])
    @pytest.mark.parametrize("dtype", [np.float32, np.uint8])
    def test_fit(self, cuda, dtype, shuffle):
        """The samples stay where they are: what crosses over is smaller by far."""
        x = np.random.default_rng(0).integers(0, 9, (10, 8, 8, 2)).astype(dtype)
        y = one_hot(10)
        given, labels = fake_cupy.asarray(x), fake_cupy.asarray(y)

        def fit(device, x, y):
            pyconv.set_device(device)
            model = small()
            data = {"validation_data": (x, y), "verbose": 0}
            return model, model.fit(x, y, 4, 3, shuffle=shuffle, **data).history

        on_cpu, expected = fit("cpu", x, y)
        model = small()  # its weights go to the device
        weights = sum(w.nbytes for w in model.get_weights())
        fake_cupy.Transfers.to_device = 0
        on_cuda, logs = fit("cuda", given, labels)
        assert logs == expected
        assert_same_weights(on_cuda, on_cpu)
        # 9 steps of training, 9 of validation: their labels, indices, and the steps' numbers.
        small_things = 3 * 2 * (10 * 3 * 4 + 10 * 8) + 9 * 24
        assert fake_cupy.Transfers.to_device <= weights + small_things
        assert ("gather" in cuda.launches) == (shuffle or dtype == np.uint8)

    def test_validation_split_and_batches(self, cuda):
        x, y = samples()
        given = fake_cupy.asarray(x), fake_cupy.asarray(y)

        def results(device, x, y):
            pyconv.set_device(device)
            model = small()
            values = [model.train_on_batch(x, y) for _ in range(3)]
            values += [model.test_on_batch(x, y), model.evaluate(x, y, 4, verbose=0)]
            history = model.fit(x, y, 4, verbose=0, validation_split=0.25).history
            return [*values, history]

        assert results("cuda", *given) == results("cpu", x, y)

    def test_predict(self, cuda):
        x, _ = samples()
        model = small()
        expected = model.predict(x, batch_size=4)
        assert isinstance(expected, np.ndarray)
        given = fake_cupy.asarray(x)
        for outputs in (
            model.predict(given, batch_size=4),
            model.predict(given),
            model.predict_on_batch(given),
            model(given),
        ):
            assert isinstance(outputs, fake_cupy.ndarray)
            np.testing.assert_array_equal(outputs.get(), expected)
        for outputs in (model.predict_on_batch(x), model(x)):
            assert isinstance(outputs, np.ndarray)
            np.testing.assert_array_equal(outputs, expected)
        integers = np.random.default_rng(0).integers(0, 9, x.shape, np.uint8)
        np.testing.assert_array_equal(
            model.predict(fake_cupy.asarray(integers), 4).get(), model.predict(integers, 4)
        )
        np.testing.assert_array_equal(given.get(), x)

    def test_results_are_new_arrays(self, cuda):
        model = small()
        given = fake_cupy.asarray(samples()[0])
        first = model.predict_on_batch(given)
        kept = first.get()
        model.predict_on_batch(fake_cupy.asarray(-samples()[0]))
        np.testing.assert_array_equal(first.get(), kept)
        identity = Sequential([Input((3,)), Dropout(0.5)])
        x = fake_cupy.asarray(reals(2, 3))
        assert not np.shares_memory(identity(x)._host, x._host)

    def test_layers_one_by_one(self, cuda):
        x, _ = samples(3)
        model = small()
        y, z = x, fake_cupy.asarray(x)
        for layer in model.layers:
            y, z = layer(y, training=True, step=5), layer(z, training=True, step=5)
        assert isinstance(y, np.ndarray)
        np.testing.assert_array_equal(z.get(), y)
        pyconv.set_device("cpu")
        expected = x
        for layer in model.layers:
            expected = layer(expected, training=True, step=5)
        np.testing.assert_array_equal(y, expected)


class TestSwitch:
    @pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
    def test_training_goes_on(self, cuda, optimizer):
        """The weights move, and so does what the optimizer remembers."""

        def weights(devices):
            pyconv.set_device(devices[0])
            model = small(optimizer)
            for device in devices:
                pyconv.set_device(device)
                for _ in range(3):
                    model.train_on_batch(*samples(4))
            return model

        expected = weights(["cpu"] * 4)
        assert_same_weights(weights(["cpu", "cuda", "cpu", "cuda"]), expected)
        assert_same_weights(weights(["cuda", "cpu", "cuda", "cuda"]), expected)

    def test_prediction(self, cuda):
        x, _ = samples()
        model = small()
        expected = model.predict(x)
        for device in ("cpu", "cuda", "cpu"):
            pyconv.set_device(device)
            np.testing.assert_array_equal(model.predict(x), expected)
            np.testing.assert_array_equal(model.layers[0](x), model.layers[0](x))

    def test_weights(self, cuda, tmp_path):
        pytest.importorskip("safetensors")
        model, _ = train("cuda")
        weights = model.get_weights()
        assert all(isinstance(w, np.ndarray) and w.flags.writeable for w in weights)
        value = model.layers[0].parameters[0].value
        np.testing.assert_array_equal(value, weights[0])
        with pytest.raises(ValueError, match="read-only"):
            value[...] = 0  # would be lost
        np.testing.assert_array_equal(np.asarray(model.layers[0].parameters[0]), weights[0])

        pyconv.saving.save_model(model, tmp_path / "m")
        loaded = pyconv.saving.load_model(tmp_path / "m")
        x, _ = samples()
        np.testing.assert_array_equal(loaded.predict(x), model.predict(x))
        pyconv.set_device("cpu")
        assert_same_weights(loaded, model)
        assert_same_weights(pyconv.saving.load_model(tmp_path / "m"), model)

        pyconv.set_device("cuda")
        new = [reals(*w.shape) for w in weights]
        model.set_weights(new)
        model.layers[0].set_weights([new[0] + 1])
        np.testing.assert_array_equal(model.get_weights()[0], new[0] + 1)
        np.testing.assert_array_equal(model.get_weights()[1], new[1])

    def test_layers_shared_by_two_models(self, cuda):
        """Training either, in turns and on either device, trains the shared layers."""
        whole = small(metrics=())
        other = Sequential([*whole.layers[:-1], Dense(3, activation="softmax", name="other")])
        other.compile("sgd", "categorical_crossentropy")
        x, y = samples()
        for device, trained, watching in (
            ("cuda", whole, other),
            ("cuda", other, whole),
            ("cpu", whole, other),
            ("cuda", whole, other),
        ):
            pyconv.set_device(device)
            before = watching.predict(x, verbose=0)
            for _ in range(3):
                trained.train_on_batch(x, y)
            np.testing.assert_array_equal(trained.get_weights()[0], watching.get_weights()[0])
            assert (watching.predict(x, verbose=0) != before).any()


class TestCommands:
    @pytest.fixture(autouse=True)
    def elsewhere(self, tmp_path, monkeypatch, fresh):
        pytest.importorskip("safetensors")
        from pyconv import cli

        rng = np.random.default_rng(0)
        split = rng.integers(0, 256, (30, 32, 32, 3), np.uint8), rng.integers(0, 10, 30, np.uint8)
        monkeypatch.setitem(cli.LOADERS, "shapes", lambda: (split, split))
        monkeypatch.chdir(tmp_path)

    @staticmethod
    def run(*arguments, status=0):
        from click import testing

        from pyconv.cli import main

        result = testing.CliRunner().invoke(main, list(arguments))
        assert result.exit_code == status, result.output
        return result.output

    QUICK = ("--data", "shapes", "--batch-size", "10")

    def test_device(self, fake):
        histories, evaluated = [], []
        for device in ("cpu", "cuda"):
            self.run("train", *self.QUICK, "--epochs", "2", "--device", device, "--output", device)
            assert pyconv.get_device() == device
            histories.append(np.loadtxt(f"{device}/history.csv", delimiter=",", skiprows=1))
            evaluated.append(
                self.run("evaluate", "cpu/model.safetensors", *self.QUICK, "--device", device)
            )
        # On the CPU a recorded forward pass may round otherwise.
        np.testing.assert_allclose(*histories, rtol=1e-6)
        assert evaluated[0] == evaluated[1]
        assert "graph" in fake.launches

    @pytest.mark.parametrize("augment", [(), ("--augment",)], ids=["plain", "augmented"])
    def test_resume(self, fake, augment):
        """The state goes from the device to the file and back, and a graph knows nothing old."""
        arguments = ("train", *self.QUICK, *augment, "--device", "cuda")
        self.run(*arguments, "--epochs", "3", "--output", "whole")
        self.run(*arguments, "--epochs", "1", "--output", "a")
        self.run(*arguments, "--epochs", "3", "--output", "a", "--resume")
        for name in ("model.safetensors", "history.csv"):
            assert Path("a", name).read_bytes() == Path("whole", name).read_bytes()
        assert "graph" in fake.launches

    def test_a_device_that_cannot_be_had(self, no_cuda):
        output = self.run("train", *self.QUICK, "--device", "cuda", status=1)
        assert output.startswith("Error: The device 'cuda' cannot be used: the CUDA kernels are")
        output = self.run("train", *self.QUICK, "--device", "gpu", status=2)
        assert "cuda-emulated" in output

    def test_info(self, fake):
        output = self.run("info")
        assert "cuda (known: cpu, cuda, cuda-emulated)" in output
        assert "built with CUDA 13.0 for sm_75, sm_80, sm_120; driver for CUDA 13.1" in output
        assert "NVIDIA Fake, compute capability 8.0, 108 multiprocessors, 40.0 GiB" in output
        name, threads, registers, shared, local, occupancy = output.splitlines()[-1].split()
        assert (name, threads, registers, shared) == ("relu", "256", "18", "1024")
        assert (local, occupancy) == ("0", "75%")

    def test_info_without_a_driver(self, fake):
        fake.reason = "no NVIDIA driver was found"
        output = self.run("info")
        assert "sm_75, sm_80, sm_120; no NVIDIA driver was found" in output
        assert "device:" in output and "cpu" in output and "registers" not in output

    def test_info_without_cuda(self, no_cuda):
        assert "the CUDA kernels are not in this build" in self.run("info")

    def test_info_of_a_device_that_cannot_be_had(self, no_cuda):
        no_cuda.setenv("PYCONV_DEVICE", "cuda")
        assert "the CUDA kernels are not in this build" in self.run("info")


@pytest.mark.skipif(not has_emulated_cuda(), reason="built without PYCONV_CUDA_EMULATION")
@pytest.mark.parametrize("architecture", ["75", "80"])
def test_a_captured_step_of_the_real_kernels(fresh, architecture):
    """Executed on the CPU: replayed, the kernels give the bits that they give when launched."""

    def run(graph):
        # Between its launches a graph's arrays are not registered with the emulator.
        settings = {"PTXCPU_STRICT": "0", "PYCONV_CUDA_GRAPH": graph}
        with emulated_cuda(architecture, **settings), warnings.catch_warnings():
            warnings.simplefilter("error")
            model, logs = train("cuda-emulated", optimizer="adam")
            assert (model._graph._graph is not None) == (graph == "1")
            return logs, model.get_weights()

    (plain, expected), (replayed, weights) = run("0"), run("1")
    assert replayed == plain
    for mine, theirs in zip(weights, expected):
        np.testing.assert_array_equal(mine, theirs)
    _, on_cpu = train("cpu", optimizer="adam")
    np.testing.assert_allclose(replayed["loss"], on_cpu["loss"], rtol=1e-3)


@pytest.fixture
def gpu(fresh):
    if reason := backend.cuda_unavailable_reason():
        pytest.skip(reason)
    pyconv.set_device("cuda")
    return backend.current()


@pytest.mark.gpu
class TestOnAGpu:
    @pytest.mark.parametrize("on_device", [False, True])
    @pytest.mark.parametrize("dtype", [np.float32, np.uint8])
    def test_training_agrees_with_the_cpu(self, gpu, dtype, on_device):
        x = np.random.default_rng(0).integers(0, 9, (40, 8, 8, 2)).astype(dtype)
        y = one_hot(40)

        def fit(x, y):
            model = small("sgd")
            data = {"validation_data": (x, y), "verbose": 0}
            return model, model.fit(x, y, 16, 4, **data).history

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            given = (gpu.xp.asarray(x), gpu.xp.asarray(y)) if on_device else (x, y)
            model, logs = fit(*given)
        assert model._graph._graph is not None, "captured"
        pyconv.set_device("cpu")
        _, expected = fit(x, y)
        for name in ("loss", "val_loss"):
            np.testing.assert_allclose(logs[name], expected[name], rtol=1e-3)

    def test_graph_and_plain_steps_give_the_same_bits(self, gpu, monkeypatch):
        models = []
        for graph in ("0", "1"):
            monkeypatch.setenv("PYCONV_CUDA_GRAPH", graph)
            models.append(train("cuda", optimizer="adam")[0])
        assert_same_weights(*models)

    def test_switching(self, gpu):
        x, _ = samples()
        model, _ = train("cuda")
        expected = model.predict(x)
        given = gpu.xp.asarray(x)
        np.testing.assert_array_equal(model.predict(given).get(), expected)
        pyconv.set_device("cpu")
        np.testing.assert_allclose(model.predict(x), expected, atol=1e-5)

    def test_a_call_waits_on_its_own_stream(self, gpu):
        """Not on that of the call before: the arrays' stream would wait for it in a capture."""
        x = gpu.xp.asarray(reals(50))
        out = gpu.xp.zeros(50, np.float32)
        kernels.relu(x, out=out)
        with gpu.running():
            graph = gpu.kernels.Graph()
            graph.begin_capture()
            kernels.relu(x, out=out)
            graph.end_capture()
            out.set(np.full(50, np.nan, np.float32))
            graph.launch()
        np.testing.assert_array_equal(out.get(), np.maximum(reals(50), 0))

    def test_no_kernel_is_compiled_at_run_time(self, gpu, tmp_path):
        """CuPy caches what it compiles: the cache stays empty."""
        code = (
            "import numpy as np, test_devices\n"
            "model, _ = test_devices.train('cuda')\n"
            "x = test_devices.backend.current().to_device(test_devices.samples()[0])\n"
            "model.predict(x); model.fit(x, test_devices.samples()[1], verbose=0)"
        )
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            cwd=Path(__file__).parent,
            env={**os.environ, "CUPY_CACHE_DIR": str(tmp_path)},
        )
        assert not list(tmp_path.rglob("*.cubin"))


@pytest.mark.gpu
@pytest.mark.skipif(bool(backend.cuda_unavailable_reason()), reason="needs a CUDA device")
@pytest.mark.parametrize("case", CONV_CASES, ids=lambda c: c.name)
def test_convolution_of_integers_is_exact_on_a_real_device(case):
    import cupy

    x, w = integers("x", case.x), integers("w", case.w)
    expected = reference.conv2d(x, w, **case.geometry)
    dy = integers("dy", expected.shape)
    gradients = reference.conv2d_backward(dy, x, w, **case.geometry)
    pyconv.set_device("cuda")
    on_device = [cupy.asarray(array) for array in (dy, x, w)]
    y = kernels.conv2d(*on_device[1:], **case.geometry)
    reference.assert_same(cupy.asnumpy(y), expected, str(case))
    for mine, theirs in zip(kernels.conv2d_backward(*on_device, **case.geometry), gradients):
        reference.assert_same(cupy.asnumpy(mine), theirs, str(case))


# Benchmarks


def test_benchmarks_time_graphs_of_kernels(cuda, monkeypatch):
    """What they compute is what they compute on the CPU, whichever stream it runs on."""

    class Event:
        def record(self) -> None:
            pass

        def synchronize(self) -> None:
            backend.current().stream.synchronize()

    events = sys.modules["cupy"].cuda
    monkeypatch.setattr(events, "Event", Event, raising=False)
    monkeypatch.setattr(events, "get_elapsed_time", lambda start, end: 40.0, raising=False)
    setting = Setting(1, device="cuda")
    for layer in operations.NETWORKS["tutorial"]:
        for name in layer.passes:
            launched = cuda.launches.count("graph")
            (call,) = operations.pyconv_calls(layer, name, 1, setting)
            assert call.seconds(0) == 40e-3 / operations.GRAPH
            assert cuda.launches.count("graph") == launched + 4  # the first one is not timed
            found = operations.digest(call)
            pyconv.set_device("cpu")
            (call,) = operations.pyconv_calls(layer, name, 1, setting)
            expected = operations.digest(call)
            pyconv.set_device("cuda")
            assert found == expected


def test_validate_takes_the_devices_arrays(fake):
    """`pyconv validate` copies to the device and back, in both math modes."""
    from pyconv import _cpu
    from pyconv.validation import paths, running
    from pyconv.validation.checks import OPERATIONS

    before = _cpu.math_mode()
    _cpu.set_math_mode("direct")  # as CUDA's kernels multiply
    try:
        where = paths.available("cuda")
        assert [path.math_mode for path in where] == ["fp32", "tf32"]
        todo = [problem for name in OPERATIONS for problem in running.table(name, 0, 4)]
        report = running.run(todo, where)
    finally:
        _cpu.set_math_mode(before)
    assert report.passed, report.failures
    assert {row.path.device for row in report.rows} == {"cuda"} and fake.launches
