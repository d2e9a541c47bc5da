"""The fuzzer's targets (tests/fuzz) on a few inputs, and properties that hold for any input."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pyconv
from pyconv import kernels
from pyconv.layers import BatchNormalization, Conv2D, Dense, Dropout, Flatten, Input, MaxPooling2D
from pyconv.models import Sequential, load_model

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))

from targets import TARGETS

NEEDS = {"hdf5": "h5py", "hdf5-built": "h5py", "images": "PIL", "models": "safetensors"}
NEEDS |= {"weights": "safetensors", "checkpoints": "safetensors", "command-line": "h5py"}


@pytest.fixture
def path_of_kernels():
    """What targets choose by themselves, undone."""
    before = pyconv.isa(), pyconv.get_math_mode(), pyconv.get_num_threads()
    yield
    pyconv.set_isa(before[0])
    pyconv.set_math_mode(before[1])
    pyconv.set_num_threads(before[2])


@pytest.mark.filterwarnings("ignore")  # overflow in NumPy, losses that do not fit: as they should
@pytest.mark.parametrize("name", TARGETS)
def test_targets(name, path_of_kernels):
    """Any bytes are an input that neither crashes nor raises what is not documented.

    Drawn from a generator of its own, many and long; hypothesis would rather have few and short.
    """
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    target, _ = TARGETS[name]
    rng = np.random.default_rng(1)
    target(b"")
    for _ in range(20 if name in ("command-line", "checkpoints") else 150):
        target(rng.bytes(rng.integers(1, 200)))


sizes = st.integers(1, 6)


@st.composite
def networks(draw):
    """Small networks of layers that fit each other."""
    layers = [Input((draw(st.integers(5, 9)), draw(st.integers(5, 9)), draw(sizes)))]
    for _ in range(draw(st.integers(0, 3))):
        layers.append(
            draw(
                st.sampled_from(
                    [
                        Conv2D(draw(sizes), draw(st.integers(1, 4)), padding="same"),
                        Conv2D(draw(sizes), 3, strides=2, padding="same", activation="relu"),
                        MaxPooling2D(2, padding="same"),
                        BatchNormalization(),
                        Dropout(0.25),
                    ]
                )
            )
        )
    return Sequential([*layers, Flatten(), Dense(draw(sizes), activation="softmax")])


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(model=networks(), seed=st.integers(0, 2**32 - 1))
def test_files_give_the_same_model(tmp_path, model, seed):
    pytest.importorskip("safetensors")
    rng = np.random.default_rng(seed)
    model.set_weights([rng.random(w.shape, np.float32) for w in model.get_weights()])
    model.save(tmp_path / "model.safetensors")
    other = load_model(tmp_path / "model.safetensors")
    assert other.get_config() == model.get_config()
    x = rng.random((3, *model.input_shape[1:]), np.float32)
    np.testing.assert_array_equal(model.predict(x, verbose=0), other.predict(x, verbose=0))


floats = st.one_of(
    st.floats(width=32),  # all of them: NaN, infinities, denormals
    st.sampled_from([0.0, -0.0, 1e-45, -1e-40, 3.4e38, float("inf"), float("nan")]),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(floats, min_size=1, max_size=40), st.sampled_from(["relu", *kernels.POINTWISE]))
def test_special_numbers_one_by_one(values, name):
    """A result depends on its own element alone, wherever in the array that is."""
    x = np.array(values, np.float32)
    call = kernels.relu if name == "relu" else lambda part: kernels.activate(part, name)
    y = call(x)
    assert np.isnan(y).tolist() == np.isnan(x).tolist()
    one_by_one = np.concatenate([call(x[i : i + 1].copy()) for i in range(len(x))])
    np.testing.assert_array_equal(y, one_by_one)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=2, max_size=40))
def test_softmax_of_any_finite_logits(values):
    """Also of huge ones: a distribution, and a loss that is finite for what is not improbable."""
    logits = np.array([values], np.float32)
    labels = np.zeros_like(logits)
    labels[0, logits.argmax()] = 1
    loss, probabilities, gradient = kernels.softmax_cross_entropy(logits, labels)
    assert (probabilities >= 0).all() and abs(probabilities.sum() - 1) < 1e-5
    assert 0 <= loss[0] <= np.log(len(values)) + 1e-5
    assert np.isfinite(gradient).all() and abs(gradient.sum()) < 1e-5
