"""Arrays of other libraries, by DLPack: their memory is used as it is."""

from __future__ import annotations

import numpy as np
import pytest

import pyconv
from pyconv import backend, kernels
from pyconv.layers import Conv2D, Dense, Flatten, Input
from pyconv.models import Sequential
from pyconv.preprocessing.image import ImageDataGenerator
from pyconv.utils import set_random_seed


class Tensor:
    """Another library's array, of which only DLPack is known; the memory is NumPy's."""

    def __init__(self, array, device=None, error=None):
        self.array, self.device, self.error = array, device, error
        self.asked = 0

    def __dlpack__(self, **keywords):
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.array.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__() if self.device is None else self.device


class Older(Tensor):
    """Of a library that does not know the protocol's later arguments."""

    def __dlpack__(self, stream=None):
        self.asked += 1
        return self.array.__dlpack__()


class Iterable(Tensor):
    """With a length and rows, as most have; it is data all the same, not batches."""

    def __len__(self):
        return len(self.array)

    def __getitem__(self, index):
        return self.array[index]

    def __iter__(self):
        return iter(self.array)


KINDS = [Tensor, Older, Iterable]


def reals(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def images(n=10):
    return reals(n, 6, 6, 2), np.eye(3, dtype=np.float32)[np.arange(n) % 3]


def new_model():
    set_random_seed(2)
    model = Sequential([Input((6, 6, 2)), Conv2D(4, 3), Flatten(), Dense(3, "softmax")])
    model.compile("sgd", "categorical_crossentropy", metrics=["accuracy"])
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_shared(kind):
    x = reals(3, 4)
    taken = backend.shared(kind(x))
    assert type(taken) is np.ndarray and np.shares_memory(taken, x)
    np.testing.assert_array_equal(taken, x)


@pytest.mark.parametrize("kind", KINDS)
class TestModels:
    def test_the_same_numbers(self, kind):
        x, y = images()
        options = {"batch_size": 4, "epochs": 2, "verbose": 0}
        expected = new_model()
        of_arrays = expected.fit(x, y, validation_data=(x, y), **options)
        model = new_model()
        history = model.fit(kind(x), kind(y), validation_data=(kind(x), kind(y)), **options)
        assert history.history == of_arrays.history
        assert model.evaluate(kind(x), kind(y), verbose=0) == expected.evaluate(x, y, verbose=0)
        assert model.train_on_batch(kind(x), kind(y)) == expected.train_on_batch(x, y)
        assert model.test_on_batch(kind(x), kind(y)) == expected.test_on_batch(x, y)
        for of_tensor, of_array in (
            (model.predict(kind(x), verbose=0), expected.predict(x, verbose=0)),
            (model.predict_on_batch(kind(x)), expected.predict_on_batch(x)),
            (model(kind(x)), expected(x)),
            (model.layers[0](kind(x)), expected.layers[0](x)),
            *zip(model.get_weights(), expected.get_weights()),
        ):
            assert type(of_tensor) is np.ndarray
            np.testing.assert_array_equal(of_tensor, of_array)

    def test_nothing_is_copied(self, kind, monkeypatch):
        """What the first kernel is given is the caller's memory."""
        x, y = images()
        seen = []
        conv2d = kernels.conv2d
        monkeypatch.setattr(
            kernels, "conv2d", lambda x, *a, **k: (seen.append(x), conv2d(x, *a, **k))[1]
        )
        model = new_model()
        model.train_on_batch(kind(x), kind(y))
        model.fit(kind(x), kind(y), batch_size=5, shuffle=False, verbose=0)
        assert len(seen) == 3 and all(np.shares_memory(taken, x) for taken in seen)

    def test_batches(self, kind):
        x, y = images(8)
        expected, model = new_model(), new_model()
        expected.fit(x, y, batch_size=4, shuffle=False, verbose=0)
        batches = [(kind(x[i : i + 4]), kind(y[i : i + 4])) for i in (0, 4)]
        model.fit(batches, verbose=0)
        for mine, theirs in zip(model.get_weights(), expected.get_weights()):
            np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_array_equal(
            model.predict(iter([batch for batch, _ in batches]), verbose=0),
            expected.predict(x, batch_size=4, verbose=0),
        )

    def test_augmentation(self, kind):
        x, y = images(4)
        (made, labels) = ImageDataGenerator(rotation_range=20).flow(kind(x), y, seed=1)[0]
        expected, expected_labels = ImageDataGenerator(rotation_range=20).flow(x, y, seed=1)[0]
        np.testing.assert_array_equal(made, expected)
        np.testing.assert_array_equal(labels, expected_labels)

    @pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float64])
    def test_other_numbers_are_converted_batch_by_batch(self, kind, dtype):
        x = (np.abs(reals(10, 6, 6, 2)) * 50).astype(dtype)
        model = new_model()
        np.testing.assert_array_equal(
            model.predict(kind(x), verbose=0), model.predict(x, verbose=0)
        )

    def test_strides(self, kind):
        x = reals(10, 6, 6, 4)[..., ::2]
        model = new_model()
        np.testing.assert_array_equal(
            model.predict(kind(x), verbose=0), model.predict(x, verbose=0)
        )


@pytest.mark.parametrize("kind", KINDS)
def test_kernels(kind, target):
    if target == "cuda":
        pytest.skip("tensors of the host are refused there")
    x, w, b = reals(2, 6, 6, 3), reals(3, 3, 3, 4, seed=1), reals(4, seed=2)
    expected = kernels.conv2d(x, w, b, activation="relu")
    np.testing.assert_array_equal(
        kernels.conv2d(kind(x), kind(w), b=kind(b), activation="relu"), expected
    )
    np.testing.assert_array_equal(kernels.conv2d(x, kind(w), b, activation="relu"), expected)
    dy = reals(*expected.shape, seed=3)
    for of_tensor, of_array in zip(
        kernels.conv2d_backward(kind(dy), kind(x), kind(w)), kernels.conv2d_backward(dy, x, w)
    ):
        np.testing.assert_array_equal(of_tensor, of_array)
    rows, indices = reals(5, 3), np.array([4, 0, 4])
    np.testing.assert_array_equal(kernels.gather(kind(rows), kind(indices)), rows[indices])


class TestOutputs:
    def test_are_written_to_and_given_back(self):
        x, w = reals(2, 5), reals(5, 3, seed=1)
        memory = np.empty((2, 3), np.float32)
        out = Tensor(memory)
        assert kernels.dense(x, w, out=out) is out
        np.testing.assert_array_equal(memory, kernels.dense(x, w))
        dx, dw = Tensor(np.empty_like(x)), Tensor(np.empty_like(w))
        dy = reals(2, 3, seed=2)
        results = kernels.dense_backward(Tensor(dy), x, w, dx=dx, dw=dw)
        assert results[0] is dx and results[1] is dw and type(results[2]) is np.ndarray
        for mine, theirs in zip((dx.array, dw.array), kernels.dense_backward(dy, x, w)):
            np.testing.assert_array_equal(mine, theirs)

    def test_in_place(self):
        x = reals(7)
        expected = kernels.relu(x)
        tensor = Tensor(x)
        assert kernels.relu(tensor, out=tensor) is tensor
        np.testing.assert_array_equal(x, expected)
        weights, gradients = Tensor(reals(5)), reals(5, seed=1)
        kernels.sgd_step(weights, gradients, None, 0.5, 0.0, False)
        np.testing.assert_array_equal(weights.array, reals(5) - np.float32(0.5) * gradients)

    def test_read_only(self):
        x = reals(4)
        frozen = np.zeros(4, np.float32)
        frozen.flags.writeable = False
        for out in (Tensor(frozen), Older(np.zeros(4, np.float32))):
            with pytest.raises(ValueError, match=r"writeable array .*\(Taken as an array: "):
                kernels.relu(x, out=out)


class TestRefused:
    def test_another_device(self):
        for device, message in (
            ((2, 0), r"lies on a GPU, but the device is 'cpu': .*set_device\('cuda'\)"),
            ((8, 0), r"another device \(DLPack's number 8\): copy it to the host"),
        ):
            tensor = Tensor(reals(2, 6, 6, 2), device)
            with pytest.raises(TypeError, match=f"^x: expected a NumPy array.*Tensor.*{message}"):
                kernels.relu(tensor)
            with pytest.raises(TypeError, match=f"float32. Received: Tensor.*{message}"):
                kernels.relu(reals(2, 6, 6, 2), out=tensor)
            with pytest.raises(TypeError, match=f"Expected a NumPy array.*Tensor. .*{message}"):
                new_model().predict(tensor)
            assert not tensor.asked

    @pytest.mark.parametrize("error", [BufferError, RuntimeError])
    def test_what_is_not_handed_out(self, error):
        """As PyTorch refuses tensors that require gradients, and NumPy dtypes that it lacks."""
        tensor = Tensor(reals(2, 6, 6, 2), error=error("requires grad"))
        message = r"Received: Tensor, for which that fails: requires grad. Detach it .*float32"
        for call in (kernels.relu, new_model().predict, new_model().layers[0]):
            with pytest.raises(TypeError, match=message):
                call(tensor)

    def test_read_only_arrays_of_older_libraries(self):
        x = reals(2, 6, 6, 2)
        x.flags.writeable = False
        with pytest.raises(TypeError, match="readonly.*read-only one needs NumPy 2.1 or a copy"):
            kernels.relu(Older(x))

    def test_wrong_dtypes_and_orders_in_kernels(self):
        with pytest.raises(
            TypeError, match=r"dtype float32.*float64.*astype.*\(Taken .*Tensor\.\)"
        ):
            kernels.relu(Tensor(np.zeros(3)))
        with pytest.raises(ValueError, match=r"C-contiguous.*ascontiguousarray.*Tensor"):
            kernels.relu(Tensor(reals(4, 6)[:, ::2]))
        with pytest.raises(ValueError, match=r"x: expected 4 axes.*Tensor"):
            kernels.max_pool2d(Tensor(reals(4, 6)), 2)

    def test_wrong_shapes_in_models(self):
        with pytest.raises(ValueError, match="the first layer"):
            new_model().predict(Tensor(reals(2, 5, 6, 2)))
        with pytest.raises(TypeError, match="real numbers. Received: dtype complex64"):
            new_model().predict(Tensor(np.zeros((2, 6, 6, 2), np.complex64)))


def test_what_is_read_only_can_be_read():
    x, y = images()
    expected = new_model().predict(x, verbose=0)
    x.flags.writeable = y.flags.writeable = False
    model = new_model()
    np.testing.assert_array_equal(model.predict(Tensor(x), verbose=0), expected)
    model.fit(Tensor(x), Tensor(y), verbose=0)


def test_torch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, y = images()
    expected = new_model()
    expected.fit(x, y, batch_size=4, verbose=0)
    model = new_model()
    model.fit(torch.from_numpy(x), torch.from_numpy(y), batch_size=4, verbose=0)
    for mine, theirs in zip(model.get_weights(), expected.get_weights()):
        np.testing.assert_array_equal(mine, theirs)
    tensor = torch.from_numpy(x)
    assert np.shares_memory(backend.shared(tensor), x)
    out = torch.empty(10, 6, 6, 2)
    assert kernels.relu(tensor, out=out) is out
    assert torch.equal(out, torch.relu(tensor))
    assert np.shares_memory(torch.from_dlpack(model.predict(tensor, verbose=0)).numpy(), x) is False
    for refused, message in (
        (tensor.clone().requires_grad_(), r"detach\(\)"),
        (tensor.to(torch.bfloat16), "float32 or another dtype that NumPy has"),
        (tensor.to("meta"), "Received: Tensor"),
    ):
        for call in (kernels.relu, model.predict):
            with pytest.raises(TypeError, match=message):
                call(refused)
    assert pyconv.get_device() == "cpu"


def test_jax():
    jnp = pytest.importorskip("jax.numpy", reason="JAX is not installed")
    x, _ = images()
    model = new_model()
    np.testing.assert_array_equal(model.predict(jnp.asarray(x)), model.predict(x))
    np.testing.assert_array_equal(kernels.relu(jnp.asarray(x)), kernels.relu(x))
