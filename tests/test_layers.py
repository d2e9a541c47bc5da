"""Layers: arguments, shapes, parameters, and what they compute when called on an array."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pyconv import layers
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
from pyconv.layers.base import snake_case
from pyconv.utils import set_random_seed
from pyconv.validation import reference


def reals(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


class TestShapes:
    @pytest.mark.parametrize(
        ("layer", "input_shape", "output_shape", "params"),
        [
            (Conv2D(32, (3, 3), padding="same"), (None, 32, 32, 3), (None, 32, 32, 32), 896),
            (Conv2D(32, 3), (None, 32, 32, 32), (None, 30, 30, 32), 9248),
            (Conv2D(8, (5, 3), strides=2), (4, 11, 10, 3), (4, 4, 4, 8), 368),
            (Conv2D(8, 3, strides=2, padding="same"), (None, 11, 10, 3), (None, 6, 5, 8), 224),
            (Conv2D(8, 3, dilation_rate=2), (None, 11, 10, 3), (None, 7, 6, 8), 224),
            (Conv2D(8, 3, groups=4, use_bias=False), (None, 5, 5, 4), (None, 3, 3, 8), 72),
            (MaxPooling2D(), (None, 13, 13, 8), (None, 6, 6, 8), 0),
            (MaxPooling2D(2, padding="same"), (None, 13, 13, 8), (None, 7, 7, 8), 0),
            (MaxPooling2D((3, 2), strides=(2, 1)), (None, 13, 13, 8), (None, 6, 12, 8), 0),
            (AveragePooling2D(), (None, 13, 13, 8), (None, 6, 6, 8), 0),
            (AveragePooling2D(3, 2, "same"), (None, 13, 12, 8), (None, 7, 6, 8), 0),
            (GlobalAveragePooling2D(), (None, 7, 5, 8), (None, 8), 0),
            (GlobalAveragePooling2D(keepdims=True), (None, 7, 5, 8), (None, 1, 1, 8), 0),
            (ZeroPadding2D(), (None, 7, 5, 8), (None, 9, 7, 8), 0),
            (ZeroPadding2D((2, 0)), (None, 7, 5, 8), (None, 11, 5, 8), 0),
            (ZeroPadding2D(((0, 1), (2, 3))), (None, 7, 5, 8), (None, 8, 10, 8), 0),
            (DepthwiseConv2D(3), (None, 7, 6, 8), (None, 5, 4, 8), 80),
            (DepthwiseConv2D(3, 2, "same", 2), (None, 7, 6, 8), (None, 4, 3, 16), 160),
            (DepthwiseConv2D((5, 1), use_bias=False), (None, 7, 6, 3), (None, 3, 6, 3), 15),
            (DepthwiseConv2D(3, dilation_rate=2), (None, 7, 6, 2), (None, 3, 2, 2), 20),
            (Dense(10), (None, 256), (None, 10), 2570),
            (Dense(10, use_bias=False), (None, 7, 256), (None, 7, 10), 2560),
            (Flatten(), (None, 2, 2, 64), (None, 256), 0),
            (Dropout(0.5), (None, 3, 4), (None, 3, 4), 0),
            (Activation("relu"), (None, 3, 4), (None, 3, 4), 0),
            (LeakyReLU(), (None, 3, 4), (None, 3, 4), 0),
            (ReLU(), (None, 3, 4), (None, 3, 4), 0),
            (Softmax(), (None, 3, 4), (None, 3, 4), 0),
            (BatchNormalization(), (None, 5, 6, 7), (None, 5, 6, 7), 28),
            (BatchNormalization(scale=False), (None, 7), (None, 7), 21),
        ],
    )
    def test_shape_and_count(self, layer, input_shape, output_shape, params):
        assert layer.compute_output_shape(input_shape) == output_shape
        assert not layer.built
        layer.build(input_shape)
        assert layer.built
        assert (layer.input_shape, layer.output_shape) == (input_shape, output_shape)
        assert layer.count_params() == params
        x = np.zeros((2, *input_shape[1:]), np.float32)
        assert layer(x).shape == (2, *output_shape[1:])

    @pytest.mark.parametrize(
        ("layer", "input_shape", "message"),
        [
            (Conv2D(8, 3), (None, 28, 28), r"images of shape .* \(None, 28, 28\). .*reshape"),
            (Conv2D(8, 3), (None, 2, 5, 1), "conv2d .*at least 3x3 pixels.* padding='same'"),
            (Conv2D(8, 3, dilation_rate=2), (None, 4, 9, 1), "at least 5x5 pixels"),
            (Conv2D(8, 3, groups=2), (None, 5, 5, 3), r"multiple of groups=2 channels"),
            (MaxPooling2D(4), (None, 3, 5, 1), "max_pooling2d .*at least 4x4 pixels"),
            (MaxPooling2D(), (None, 16), "images of shape"),
            (AveragePooling2D(4), (None, 3, 5, 1), "average_pooling2d .*at least 4x4 pixels"),
            (GlobalAveragePooling2D(), (None, 16), "images of shape"),
            (ZeroPadding2D(), (None, 16), "images of shape"),
            (DepthwiseConv2D(3), (None, 28, 28), r"depthwise_conv2d .*images of shape"),
            (DepthwiseConv2D(3), (None, 2, 5, 1), "at least 3x3 pixels.* padding='same'"),
            (Dense(3), (None, None), "all sizes but that of the batch must be known"),
            (Dense(3), (None,), "all sizes but that of the batch must be known"),
            (Dense(3), (None, 2.5), "tuple of integers with the batch axis first"),
            (Dense(3), 5, "tuple of integers with the batch axis first"),
        ],
    )
    def test_bad_shapes(self, layer, input_shape, message):
        with pytest.raises(ValueError, match=message):
            layer.build(input_shape)
        assert not layer.built

    def test_a_built_layer_keeps_its_weights(self):
        conv = Conv2D(4, 3, groups=2)
        conv.build((None, 8, 8, 2))
        weights = conv.get_weights()
        conv.build((None, 9, 7, 2))  # a convolution takes images of any size
        np.testing.assert_array_equal(conv.get_weights()[0], weights[0])
        assert conv(reals(1, 12, 12, 2)).shape == (1, 10, 10, 4)
        with pytest.raises(
            ValueError, match="expected 2 channels .* for which the layer was built"
        ):
            conv(reals(1, 8, 8, 4))
        dense = Dense(3)
        dense(reals(2, 5))
        with pytest.raises(ValueError, match=r"dense .*expected 5 values .*\(None, 6\)"):
            dense(reals(2, 6))


class TestArguments:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (
                lambda: Conv2D(0, 3),
                "conv2d: filters must be a positive integer. Received: filters=0",
            ),
            (lambda: Conv2D(8, (3, 3, 3)), "kernel_size must be .* a pair"),
            (lambda: Conv2D(8, 3, strides=0), "strides=0"),
            (lambda: Conv2D(8, 3, padding="full"), "one of valid, same. Received: padding='full'"),
            (lambda: Conv2D(8, 3, activation="gelu"), "one of linear, relu, softmax. .*'gelu'"),
            (lambda: Conv2D(8, 3, groups=3), "filters=8, groups=3"),
            (lambda: Conv2D(8, 3, kernel_regularizer="l2"), "does not support kernel_regularizer"),
            (lambda: Conv2D(8, 3, data_format="channels_first"), "does not support data_format"),
            (lambda: Conv2D(8, 3, trainable=False), "does not support trainable other than True"),
            (lambda: Conv2D(8, 3, kernel_initializer="x"), "Unknown initializer"),
            (lambda: Conv2D(8, 3, input_shape=(32, None, 3)), "conv2d: input_shape must be"),
            (lambda: MaxPooling2D((0, 2)), r"pool_size=\(0, 2\)"),
            (lambda: AveragePooling2D(2, padding="full"), "padding='full'"),
            (lambda: AveragePooling2D(data_format="channels_first"), "not support data_format"),
            (lambda: GlobalAveragePooling2D("channels_first"), "not support data_format"),
            (lambda: ZeroPadding2D(-1), "padding must be .* from 0.* Received: padding=-1"),
            (lambda: ZeroPadding2D((1, 2, 3)), r"padding=\(1, 2, 3\)"),
            (lambda: ZeroPadding2D("same"), "padding='same'"),
            (lambda: ZeroPadding2D(1.5), "padding=1.5"),
            (lambda: ZeroPadding2D(data_format="channels_first"), "not support data_format"),
            (lambda: DepthwiseConv2D(3, depth_multiplier=0), "depth_multiplier=0"),
            (lambda: DepthwiseConv2D(3, data_format="channels_first"), "not support data_format"),
            (lambda: DepthwiseConv2D(3, depthwise_regularizer="l2"), "depthwise_regularizer"),
            (lambda: Dense(True), "units=True"),
            (lambda: Dense(2.0), "units=2.0"),
            (lambda: Dense(2, input_shape=784), r"input_shape must be .* \(784,\) for vectors"),
            (lambda: Dropout(1), "0 <= rate < 1. Received: rate=1"),
            (lambda: Dropout("a"), "rate='a'"),
            (lambda: Dropout(0.5, seed=-1), "seed must be in"),
            (lambda: Dropout(0.5, noise_shape=(1,)), "does not support noise_shape"),
            (lambda: Activation("gelu"), "tanh, leaky_relu, .*Received: activation='gelu'"),
            (lambda: LeakyReLU(-0.1), "negative_slope must be a finite.*Received: .*=-0.1"),
            (lambda: LeakyReLU(None), "negative_slope must be a finite.*Received: .*=None"),
            (lambda: ReLU(6.0), "only max_value=None.*LeakyReLU.*Received: max_value=6.0"),
            (lambda: Softmax(1), "axis must be -1.*Received: axis=1"),
            (lambda: BatchNormalization(1), "axis must be -1.*moveaxis.*Received: axis=1"),
            (lambda: BatchNormalization(momentum=1.5), "momentum must be in .* 1. Received: 1.5"),
            (lambda: BatchNormalization(momentum="a"), "momentum must be a number"),
            (lambda: BatchNormalization(epsilon=0), "epsilon must be a finite .*Received: 0"),
            (lambda: BatchNormalization(renorm=True), "does not support renorm other than False"),
            (lambda: BatchNormalization(synchronized=True), "does not support synchronized"),
            (
                lambda: BatchNormalization(beta_regularizer="l2"),
                "does not support beta_regularizer",
            ),
            (lambda: Input(32), "Input: shape must be a tuple"),
        ],
    )
    def test_bad_values(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()

    def test_unknown_arguments(self):
        with pytest.raises(TypeError, match="Conv2D has no argument 'filter'"):
            Conv2D(8, 3, filter=3)
        with pytest.raises(TypeError, match="name of a layer must be a string"):
            Dense(8, name=3)

    def test_keras_arguments_that_ask_for_nothing(self):
        Conv2D(8, 3, data_format="channels_last", kernel_regularizer=None, trainable=True)

    def test_positions_are_those_of_keras(self):
        conv = Conv2D(8, 3, (2, 1), "same", "channels_last", 1, 2, "relu", False)
        assert conv.strides == (2, 1)
        assert (conv.padding, conv.groups, conv.activation) == ("same", 2, "relu")
        assert not conv.use_bias
        conv = DepthwiseConv2D(3, 2, "same", 4, "channels_last", 1, "relu", False, "ones")
        assert (conv.strides, conv.padding, conv.depth_multiplier) == ((2, 2), "same", 4)
        assert (conv.activation, conv.use_bias) == ("relu", False)
        pool = AveragePooling2D(3, 1, "same", "channels_last")
        assert (pool.pool_size, pool.strides, pool.padding) == ((3, 3), (1, 1), "same")
        assert GlobalAveragePooling2D(None, True).keepdims
        assert ZeroPadding2D((1, 2), None).padding == ((1, 1), (2, 2))

    @pytest.mark.parametrize(
        "layer",
        [
            Conv2D(8, (5, 3), 2, "same", None, 1, 2, "relu", False, "he_normal", "ones", name="c"),
            Conv2D(8, 3, dilation_rate=(1, 2), input_shape=(32, 32, 3)),
            MaxPooling2D(3, 2, "same"),
            AveragePooling2D((3, 2), 2, "same"),
            GlobalAveragePooling2D(keepdims=True, name="mean"),
            ZeroPadding2D(((1, 0), (2, 3)), input_shape=(4, 4, 1)),
            DepthwiseConv2D((5, 3), 2, "same", 3, None, 1, "relu", False, "he_normal", "ones"),
            Dense(5, activation="softmax", kernel_initializer="zeros"),
            Dropout(0.25, seed=3),
            Activation("softmax"),
            Flatten(input_shape=(28, 28)),
        ],
    )
    def test_config_round_trip(self, layer):
        description = json.loads(json.dumps(layers.serialize(layer)))
        copy = layers.deserialize(description)
        assert type(copy) is type(layer)
        assert copy.get_config() == layer.get_config()
        assert vars(copy).keys() == vars(layer).keys()

    def test_unknown_class(self):
        with pytest.raises(ValueError, match="one of Activation, .*Conv2D, .* Received: 'LSTM'"):
            layers.deserialize({"class_name": "LSTM", "config": {}})

    def test_names(self):
        assert snake_case("MaxPooling2D") == "max_pooling2d"
        assert snake_case("GlobalAveragePooling2D") == "global_average_pooling2d"
        assert snake_case("DepthwiseConv2D") == "depthwise_conv2d"
        assert snake_case("ZeroPadding2D") == "zero_padding2d"
        assert (Conv2D(1, 1).name, Dense(1, name="head").name) == ("conv2d", "head")
        assert repr(Dense(1)) == "<Dense name=dense, built=False>"


class TestWeights:
    def test_layout_and_initial_values(self):
        conv = Conv2D(8, (3, 5), groups=2, bias_initializer="ones")
        conv.build((None, 9, 9, 4))
        assert [(p.name, p.shape) for p in conv.parameters] == [
            ("kernel", (3, 5, 2, 8)),
            ("bias", (8,)),
        ]
        kernel, bias = conv.get_weights()
        assert kernel.dtype == bias.dtype == np.float32
        limit = np.sqrt(6 / (15 * 2 + 15 * 8))
        assert 0.9 * limit < np.abs(kernel).max() <= limit * (1 + 1e-6)
        assert (bias == 1).all()

    def test_depthwise(self):
        conv = DepthwiseConv2D((3, 5), depth_multiplier=2, bias_initializer="ones")
        conv.build((None, 9, 9, 4))
        assert [(p.name, p.shape) for p in conv.parameters] == [
            ("kernel", (3, 5, 4, 2)),
            ("bias", (8,)),
        ]
        kernel, bias = conv.get_weights()
        limit = np.sqrt(6 / (15 * 4 + 15 * 2))  # Keras counts channels and multiplier as here
        assert 0.9 * limit < np.abs(kernel).max() <= limit * (1 + 1e-6)
        assert (bias == 1).all()
        with pytest.raises(
            ValueError, match="expected 4 channels .* for which the layer was built"
        ):
            conv(reals(1, 8, 8, 8))

    def test_set_weights(self):
        dense = Dense(2)
        dense.build((None, 3))
        array = dense.parameters[0].array
        dense.set_weights([np.arange(6).reshape(3, 2), [1.0, 2.0]])
        assert dense.parameters[0].array is array
        np.testing.assert_array_equal(dense(np.eye(3)), [[1, 3], [3, 5], [5, 7]])
        copies = dense.get_weights()
        copies[0][...] = 0
        assert array.any()
        np.testing.assert_array_equal(np.asarray(dense.parameters[1]), [1, 2])

    def test_wrong_weights_change_nothing(self):
        dense = Dense(2)
        dense.build((None, 3))
        before = dense.get_weights()
        for weights, message in [
            ([np.zeros((3, 2))], r"expects 2 arrays of shapes .* Received: 1 arrays"),
            (
                [np.zeros((3, 2)), np.zeros(3)],
                r"bias of layer dense has the shape \(2,\). .*\(3,\)",
            ),
            ([np.zeros((2, 3)), np.zeros(2)], r"kernel of layer dense .*\(3, 2\)\. .*\(2, 3\)"),
        ]:
            with pytest.raises(ValueError, match=message):
                dense.set_weights(weights)
        with pytest.raises(TypeError, match="expects a list of arrays. Received: ndarray"):
            dense.set_weights(np.zeros(8))
        np.testing.assert_array_equal(dense.get_weights()[0], before[0])

    def test_not_built(self):
        for method in (Dense(2).count_params, lambda: Dense(2).set_weights([])):
            with pytest.raises(ValueError, match="needs a built layer"):
                method()
        assert Dense(2).get_weights() == []

    def test_the_seed_decides(self):
        def kernel(seed):
            set_random_seed(seed)
            dense = Dense(4)
            dense.build((None, 3))
            return dense.get_weights()[0]

        np.testing.assert_array_equal(kernel(1), kernel(1))
        assert (kernel(1) != kernel(2)).any()

    def test_an_initializer_of_ones_own(self):
        dense = Dense(2, kernel_initializer=lambda shape, rng: np.full(shape, 3.0))
        np.testing.assert_array_equal(dense(np.ones((1, 2))), [[6, 6]])
        with pytest.raises(ValueError, match="cannot be written to a configuration"):
            dense.get_config()
        with pytest.raises(ValueError, match=r"dense: .* shape \(2, 2\). Received: \(1,\)"):
            Dense(2, kernel_initializer=lambda shape, rng: np.zeros(1))(np.ones((1, 2)))


class TestCall:
    """Against the float64 reference; inputs are small integers, so results are exact."""

    @staticmethod
    def integers(*shape):
        return np.random.default_rng(0).integers(-4, 5, shape).astype(np.float32)

    @pytest.mark.parametrize("activation", [None, "relu"])
    def test_conv2d(self, activation):
        x = self.integers(2, 7, 6, 4)
        conv = Conv2D(6, 3, (2, 1), "same", groups=2, activation=activation)
        conv.build(x.shape)
        w, b = self.integers(3, 3, 2, 6), self.integers(6)
        conv.set_weights([w, b])
        expected = reference.conv2d(x, w, b, (2, 1), "same", 1, 2, activation)
        np.testing.assert_array_equal(conv(x), expected)

    @pytest.mark.parametrize("activation", [None, "relu"])
    def test_dense_on_the_last_axis(self, activation):
        x, w = self.integers(2, 3, 5, 4), self.integers(4, 6)
        dense = Dense(6, activation, use_bias=False)
        dense.build(x.shape)
        dense.set_weights([w])
        expected = x @ w if activation is None else np.maximum(x @ w, 0)
        np.testing.assert_array_equal(dense(x), expected)

    def test_max_pooling(self):
        x = self.integers(2, 7, 6, 3)
        expected = reference.max_pool2d(x, (3, 2), (2, 2), "same")[0]
        np.testing.assert_array_equal(MaxPooling2D((3, 2), 2, "same")(x), expected)

    @pytest.mark.parametrize("activation", [None, "relu"])
    @pytest.mark.parametrize("multiplier", [1, 3])
    def test_depthwise_conv2d(self, activation, multiplier):
        x = self.integers(2, 7, 6, 4)
        conv = DepthwiseConv2D(3, (2, 1), "same", multiplier, activation=activation)
        conv.build(x.shape)
        w, b = self.integers(3, 3, 4, multiplier), self.integers(4 * multiplier)
        conv.set_weights([w, b])
        # Channel by channel, as Keras defines it.
        one = [
            reference.conv2d(x[..., c : c + 1], w[:, :, c, None], None, (2, 1), "same")
            for c in range(4)
        ]
        expected = np.concatenate(one, axis=-1) + b
        expected = reference.relu(expected) if activation else expected
        np.testing.assert_array_equal(conv(x), expected)

    def test_average_pooling(self):
        x = self.integers(2, 7, 6, 3)
        expected = reference.avg_pool2d(x, (3, 2), (2, 2), "same").astype(np.float32)
        np.testing.assert_array_equal(AveragePooling2D((3, 2), 2, "same")(x), expected)
        mean = x.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)
        np.testing.assert_array_equal(GlobalAveragePooling2D()(x), mean)
        kept = GlobalAveragePooling2D(keepdims=True)(x)
        np.testing.assert_array_equal(kept, mean.reshape(2, 1, 1, 3))

    def test_zero_padding(self):
        x = self.integers(2, 4, 3, 5)
        expected = np.pad(x, ((0, 0), (1, 0), (2, 3), (0, 0)))
        np.testing.assert_array_equal(ZeroPadding2D(((1, 0), (2, 3)))(x), expected)

    def test_activations(self):
        x = reals(2, 3, 5)
        before = x.copy()
        np.testing.assert_array_equal(Activation("relu")(x), np.maximum(x, 0))
        np.testing.assert_allclose(Activation("softmax")(x).sum(axis=-1), 1, rtol=1e-6)
        conv = Conv2D(4, 1, activation="softmax")
        np.testing.assert_allclose(conv(reals(1, 2, 2, 3)).sum(axis=-1), 1, rtol=1e-6)
        np.testing.assert_array_equal(x, before)

    @pytest.mark.parametrize("layer", [Activation("linear"), Flatten(), Dropout(0.5)])
    def test_the_result_is_always_a_new_array(self, layer):
        x = reals(2, 3)
        y = layer(x)
        np.testing.assert_array_equal(y, x)
        assert not np.shares_memory(x, y)

    def test_dropout_in_training(self):
        x = np.ones((4, 1000), np.float32)
        dropout = Dropout(0.25, seed=5)
        np.testing.assert_array_equal(dropout(x), x)
        y = dropout(x, training=True, step=3)
        np.testing.assert_array_equal(y, reference.dropout(x, 0.25, 5, 3).astype(np.float32))
        np.testing.assert_array_equal(y, Dropout(0.25, seed=5)(x, training=True, step=3))
        assert (y != dropout(x, training=True, step=4)).any()
        # By default every call has a mask of its own, which the process's seed decides.
        set_random_seed(1)
        first, second = dropout(x, training=True), dropout(x, training=True)
        set_random_seed(1)
        assert (first != second).any()
        np.testing.assert_array_equal(first, dropout(x, training=True))
        np.testing.assert_array_equal(Dropout(0)(x, training=True), x)

    @pytest.mark.parametrize("dtype", [np.uint8, np.float64, np.bool_, ">f4"])
    def test_other_numbers_are_converted(self, dtype):
        y = Dense(2, kernel_initializer="ones")(np.ones((1, 3), dtype))
        assert y.dtype == np.float32
        np.testing.assert_array_equal(y, [[3, 3]])

    def test_not_contiguous(self):
        x = reals(4, 6)
        dense = Dense(2)
        np.testing.assert_array_equal(dense(x[:, ::2]), dense(x[:, ::2].copy()))

    def test_empty_batch(self):
        assert Conv2D(4, 3)(np.zeros((0, 5, 5, 1), np.float32)).shape == (0, 3, 3, 4)

    def test_errors(self):
        with pytest.raises(TypeError, match="Expected a NumPy array of numbers. Received: Input"):
            Dense(2)(Input((3,)))
        with pytest.raises(TypeError, match="real numbers. Received: dtype complex128"):
            Dense(2)(np.zeros((1, 2), complex))
        with pytest.raises(ValueError, match=r"dense: .* batch .* shape \(3,\). .*np.newaxis"):
            Dense(2)(np.zeros(3))

        class Custom(Layer):
            def _output_shape(self, shape):
                return shape

        with pytest.raises(TypeError, match="class Custom cannot be executed. Expected one of"):
            Custom()(np.zeros((1, 2)))
        with pytest.raises(NotImplementedError, match="must define _output_shape"):
            Layer()(np.zeros((1, 2)))
