"""ONNX files, run by ONNX Runtime."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import pyconv
from pyconv.applications import tutorial_network
from pyconv.export import export_onnx
from pyconv.layers import (
    Activation,
    AveragePooling2D,
    BatchNormalization,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    GlobalAveragePooling2D,
    Input,
    Layer,
    LeakyReLU,
    MaxPooling2D,
    ReLU,
    Softmax,
    ZeroPadding2D,
)
from pyconv.models import Sequential


def outputs(path, x):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(["output"], {"input": x})[0]


MODELS = {
    "padding, strides, groups": [
        Input((9, 12, 4)),
        Conv2D(6, (3, 2), strides=(2, 3), padding="same", groups=2, activation="relu"),
        Conv2D(4, 3, padding="same", dilation_rate=2, use_bias=False),
        Activation("relu"),
        MaxPooling2D((2, 3), strides=(1, 2), padding="same"),
        Dropout(0.5),
        Flatten(),
        Dense(5, activation="relu", use_bias=False),
        Dense(3, activation="softmax"),
    ],
    "strides beyond the window": [Input((7, 8, 3)), Conv2D(4, 1, strides=3, padding="same")],
    "images to the end": [
        Input((8, 8, 3)),
        Conv2D(4, 3, activation="softmax"),
        MaxPooling2D(4, 2),
        Dense(2),
        Activation("softmax"),
    ],
    "means and depths": [
        Input((9, 12, 4)),
        ZeroPadding2D(((0, 1), (2, 3))),
        DepthwiseConv2D(3, 2, depth_multiplier=2, activation="relu"),
        AveragePooling2D((2, 3), strides=(1, 2), padding="same"),
        DepthwiseConv2D((3, 1), padding="same", dilation_rate=2, use_bias=False),
        ZeroPadding2D((1, 0)),
        AveragePooling2D(3, 2, padding="same"),
        GlobalAveragePooling2D(),
        Dense(3, activation="softmax"),
    ],
    "means that keep their axes": [Input((5, 4, 3)), GlobalAveragePooling2D(keepdims=True)],
    "means alone": [Input((5, 4, 3)), GlobalAveragePooling2D(), Activation("softmax")],
    "a vector": [Input((6,)), Dense(4), Activation("linear")],
    "sequences": [Input((5, 6)), Dense(4, activation="relu"), Flatten(), Dense(2)],
    "activations": [
        Input((6, 6, 2)),
        Conv2D(3, 3, activation="tanh"),
        LeakyReLU(0.3),
        ReLU(),
        Activation("softplus"),
        Flatten(),
        Dense(4, activation="leaky_relu"),
        Dense(4, activation="sigmoid"),
        Softmax(),
    ],
    "batch normalization": [
        Input((6, 6, 2)),
        Conv2D(3, 3, use_bias=False),
        BatchNormalization(),
        BatchNormalization(center=False, epsilon=0.1),
        BatchNormalization(scale=False),
        Flatten(),
        BatchNormalization(),
    ],
    "batch normalization of sequences": [
        Input((5, 6)),
        BatchNormalization(scale=False, center=False),
        Dense(4),
        BatchNormalization(),
    ],
    "pooling of negative numbers": [Input((5, 5, 2)), MaxPooling2D(3, 2, padding="same")],
}


def close(given, expected):
    # The bound that is promised: 1e-5 of the largest value.
    assert given.shape == expected.shape and given.dtype == np.float32
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("n", [1, 4])
def test_same_outputs(name, n, tmp_path):
    pytest.importorskip("onnx")
    pyconv.utils.set_random_seed(3)
    config = Sequential(MODELS[name]).get_config()
    model = Sequential.from_config(config)
    for layer in model.layers:
        for parameter in layer.parameters:
            if parameter.name in ("bias", "beta", "moving_mean"):
                parameter.assign(np.linspace(-1, 1, parameter.size))
            elif parameter.name != "kernel":
                parameter.assign(np.linspace(0.5, 2, parameter.size))
    export_onnx(model, tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(n, *model.input_shape[1:])).astype("f") - 1
    close(outputs(tmp_path / "m.onnx", x), model.predict(x, verbose=0))


def test_the_tutorials_network(tmp_path):
    pytest.importorskip("onnx")
    model = tutorial_network()
    export_onnx(model, tmp_path / "m.onnx")
    x = np.random.default_rng(0).random((5, 32, 32, 3), np.float32)
    close(outputs(tmp_path / "m.onnx", x), model.predict(x, verbose=0))


def test_file(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = Sequential([Input((4, 4, 1)), Conv2D(2, 3, name="c"), Flatten(), Dense(2, name="d")])
    export_onnx(model, tmp_path / "a")
    export_onnx(model, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = onnx.load(tmp_path / "a")
    names = [tensor.name for tensor in loaded.graph.initializer]
    assert names == ["c/kernel", "c/bias", "d/kernel", "d/bias"]
    assert loaded.producer_name == "pyconv"


def test_unknown_layer(tmp_path):
    pytest.importorskip("onnx")

    class Mine(Layer):
        def _output_shape(self, shape):
            return shape

    with pytest.raises(ValueError, match="a Mine cannot be exported to ONNX. Known: Activation, A"):
        export_onnx(Sequential([Input((4,)), Mine()]), tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_not_built(tmp_path):
    pytest.importorskip("onnx")
    with pytest.raises(ValueError, match="shape of the inputs is not known"):
        export_onnx(Sequential([Dense(2)]), tmp_path / "m")


def test_without_onnx(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'pyconv\[onnx\]'"):
        export_onnx(Sequential([Input((4,)), Dense(2)]), tmp_path / "m")
