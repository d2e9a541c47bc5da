"""Sequential: structure, weights, checks of data, and how layers become blocks."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pyconv import losses, optimizers
from pyconv.blocks import (
    AvgPoolBlock,
    ConvBlock,
    ConvPoolBlock,
    DenseBlock,
    DropoutBlock,
    FlattenBlock,
    MaxPoolBlock,
    PadBlock,
    ReluBlock,
    SoftmaxBlock,
)
from pyconv.layers import (
    Activation,
    AveragePooling2D,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    GlobalAveragePooling2D,
    Input,
    MaxPooling2D,
    ZeroPadding2D,
)
from pyconv.models import Sequential
from pyconv.plan import FlatParameters, Plan
from pyconv.utils import set_random_seed
from pyconv.validation import reference


def reals(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def one_hot(n, classes=3, seed=0):
    return np.eye(classes, dtype=np.float32)[np.random.default_rng(seed).integers(0, classes, n)]


def tutorial():
    model = Sequential()
    model.add(Conv2D(32, (3, 3), padding="same", activation="relu", input_shape=(32, 32, 3)))
    model.add(Conv2D(32, (3, 3), activation="relu"))
    model.add(MaxPooling2D(pool_size=(2, 2)))
    model.add(Dropout(0.25))
    for _ in range(2):
        model.add(Conv2D(64, (3, 3), padding="same", activation="relu"))
        model.add(Conv2D(64, (3, 3), activation="relu"))
        model.add(MaxPooling2D(pool_size=(2, 2)))
        model.add(Dropout(0.25))
    model.add(Flatten())
    model.add(Dense(512, activation="relu"))
    model.add(Dropout(0.5))
    model.add(Dense(10, activation="softmax"))
    return model


def small(*, compiled=True):
    model = Sequential(
        [
            Input((6, 6, 2)),
            Conv2D(4, 3, activation="relu"),
            MaxPooling2D(2),
            Flatten(),
            Dense(3, activation="softmax"),
        ]
    )
    if compiled:
        model.compile("sgd", "categorical_crossentropy", metrics=["accuracy"])
    return model


SUMMARY = """\
Model: "sequential"
_________________________________________________________________
Layer (type)                       Output Shape           Param #
=================================================================
conv2d (Conv2D)                    (None, 32, 32, 32)         896
conv2d_1 (Conv2D)                  (None, 30, 30, 32)       9,248
max_pooling2d (MaxPooling2D)       (None, 15, 15, 32)           0
dropout (Dropout)                  (None, 15, 15, 32)           0
conv2d_2 (Conv2D)                  (None, 15, 15, 64)      18,496
conv2d_3 (Conv2D)                  (None, 13, 13, 64)      36,928
max_pooling2d_1 (MaxPooling2D)     (None, 6, 6, 64)             0
dropout_1 (Dropout)                (None, 6, 6, 64)             0
conv2d_4 (Conv2D)                  (None, 6, 6, 64)        36,928
conv2d_5 (Conv2D)                  (None, 4, 4, 64)        36,928
max_pooling2d_2 (MaxPooling2D)     (None, 2, 2, 64)             0
dropout_2 (Dropout)                (None, 2, 2, 64)             0
flatten (Flatten)                  (None, 256)                  0
dense (Dense)                      (None, 512)            131,584
dropout_3 (Dropout)                (None, 512)                  0
dense_1 (Dense)                    (None, 10)               5,130
=================================================================
Total params: 276,138
Trainable params: 276,138
Non-trainable params: 0
_________________________________________________________________
"""


class TestStructure:
    def test_summary_of_the_tutorial(self, capsys):
        tutorial().summary()
        assert capsys.readouterr().out == SUMMARY
        lines = []
        tutorial().summary(print_fn=lines.append)
        assert "\n".join(lines) + "\n" == SUMMARY

    def test_summary_before_the_shape_is_known(self):
        with pytest.raises(ValueError, match="shape of the inputs is not known yet"):
            Sequential([Dense(3)]).summary()

    def test_summary_of_wide_rows(self):
        lines = []
        Sequential([Input((5,)), Dense(3, name="x" * 80)]).summary(lines.append)
        assert f"{'x' * 80} (Dense)" in lines[4]
        assert len({len(line) for line in lines[1:6]}) == 1

    def test_names(self):
        model = Sequential([Dense(3), Dense(3), Dense(3, name="dense_2"), Dense(3)])
        assert [layer.name for layer in model.layers] == ["dense", "dense_1", "dense_2", "dense_3"]
        for layer in (Dense(3, name="dense"), model.layers[0]):
            with pytest.raises(ValueError, match="a second layer 'dense'. Give it another"):
                model.add(layer)
        assert len(model.layers) == 4

    def test_get_layer(self):
        model = small()
        assert model.get_layer("dense") is model.get_layer(index=-1) is model.layers[3]
        with pytest.raises(ValueError, match="Known: conv2d, max_pooling2d, flatten, dense"):
            model.get_layer("conv")
        with pytest.raises(ValueError, match="there are 4 layers. Received: index=4"):
            model.get_layer(index=4)
        with pytest.raises(ValueError, match="a name or an index"):
            model.get_layer()

    @pytest.mark.parametrize(
        "model",
        [
            lambda: Sequential([Input((5,)), Dense(3)]),
            lambda: Sequential([Dense(3, input_shape=(5,))]),
            lambda: Sequential([Input((5,)), Dense(3, input_shape=(5,))]),
        ],
    )
    def test_input_shape(self, model):
        model = model()
        assert model.built
        assert model.layers[0].built
        assert (model.input_shape, model.output_shape) == ((None, 5), (None, 3))

    def test_the_shape_comes_from_the_first_data(self):
        model = Sequential([Dense(4), Dense(3)])
        assert not model.built
        assert model.input_shape is None
        assert model.output_shape is None
        assert model.predict(reals(2, 5)).shape == (2, 3)
        assert model.count_params() == 5 * 4 + 4 + 4 * 3 + 3
        other = Sequential([Dense(3)])
        other.build((None, 7))
        assert other.count_params() == 24

    def test_structure_errors(self):
        with pytest.raises(
            TypeError, match=r"expected a layer, e.g. Dense\(10\). Received: 'relu'"
        ):
            Sequential(["relu"])
        with pytest.raises(TypeError, match="Add the layers of that model one by one"):
            Sequential([small()])
        with pytest.raises(ValueError, match="Input must be the first element"):
            Sequential([Dense(3), Input((5,))])
        with pytest.raises(ValueError, match=r"must be the same. Received: \(5,\) and \(6,\)"):
            Sequential([Input((5,)), Dense(3, input_shape=(6,))])
        with pytest.raises(ValueError, match="make a new model"):
            small().build((None, 7, 7, 2))
        with pytest.raises(ValueError, match="no layer to remove"):
            Sequential().pop()
        # A layer that does not fit is named at once, and not added.
        model = Sequential([Input((4, 4, 1)), Conv2D(2, 3)])
        with pytest.raises(
            ValueError, match=r"conv2d_1 \(Conv2D\): expected images of at least 3x3"
        ):
            model.add(Conv2D(2, 3))
        assert len(model.layers) == 1
        for call in (Sequential([Dense(2)]).count_params, Sequential([Dense(2)]).get_weights):
            with pytest.raises(ValueError, match="call build"):
                call()

    def test_add_and_pop_after_training(self):
        model = small()
        x, y = reals(4, 6, 6, 2), one_hot(4)
        model.train_on_batch(x, y)
        hidden = model.get_weights()[:2]
        assert isinstance(model.pop(), Dense)
        model.add(Dense(5, activation="relu"))
        model.add(Dense(3, activation="softmax"))
        np.testing.assert_array_equal(model.get_weights()[0], hidden[0])
        model.train_on_batch(x, y)
        assert len(model.gradients) == 6

    def test_config_round_trip(self):
        model = tutorial()
        config = json.loads(json.dumps(model.get_config()))
        assert config["build_input_shape"] == [None, 32, 32, 3]
        copy = Sequential.from_config(config)
        assert copy.get_config() == model.get_config()
        assert copy.count_params() == 276_138
        deferred = Sequential.from_config(Sequential([Dense(3)], name="d").get_config())
        assert (deferred.name, deferred.built) == ("d", False)

    def test_compile_config_round_trip(self):
        model = small(compiled=False)
        assert model.get_compile_config() is None
        model.compile(
            optimizers.SGD(0.5, momentum=0.9),
            losses.CategoricalCrossentropy(label_smoothing=0.1),
            ["acc"],
        )
        config = json.loads(json.dumps(model.get_compile_config()))
        copy = small(compiled=False)
        copy.compile_from_config(config)
        assert copy.get_compile_config() == model.get_compile_config() == config
        assert copy.metrics_names == ["loss", "accuracy"]


class TestWeights:
    def test_round_trip(self):
        model = small()
        model.set_weights([reals(*w.shape) for w in model.get_weights()])
        np.testing.assert_array_equal(model.get_weights()[0], reals(3, 3, 2, 4))
        with pytest.raises(ValueError, match="sequential: .* expects 4 arrays"):
            model.set_weights([])
        weights = model.get_weights()
        weights[2] = weights[2].T
        with pytest.raises(ValueError, match=r"kernel of layer dense has the shape \(16, 3\)"):
            model.set_weights(weights)

    def test_parameters_stay_views_of_one_array(self):
        model = small()
        x, y = reals(4, 6, 6, 2), one_hot(4)
        model.train_on_batch(x, y)
        flat = model._parameters.weights
        model.set_weights([np.ones_like(w) for w in model.get_weights()])
        model.layers[0].set_weights([np.zeros((3, 3, 2, 4)), np.ones(4)])
        for layer in model.layers:
            for parameter in layer.parameters:
                assert np.shares_memory(parameter.value, flat)
                assert parameter.value.ctypes.data % 64 == 0
        assert flat.sum() == 4 + 16 * 3 + 3
        # The gaps between the tensors stay zero.
        model.train_on_batch(x, y)
        used = sum(w.size for w in model.get_weights())
        assert np.count_nonzero(flat) <= used < flat.size

    def test_flat_layout(self):
        model = small()
        parameters = [p for layer in model.layers for p in layer.parameters]
        flat = FlatParameters(parameters)
        assert flat.weights.size == 80 + 16 + 48 + 16  # 72, 4, 48 and 3 floats, rounded up to 16
        slot = np.arange(flat.weights.size, dtype=np.float32)
        assert [view.flat[0] for view in flat.views(slot)] == [0, 80, 96, 144]

    def test_layers_shared_by_two_models(self):
        """Training either model, in turns, trains the shared layers."""
        whole = small()
        x, y = reals(4, 6, 6, 2), one_hot(4)
        whole.train_on_batch(x, y)
        part = Sequential(whole.layers[:3])
        assert part.built
        expected = reference.softmax(reference.dense(part.predict(x), *whole.get_weights()[2:]))
        np.testing.assert_allclose(whole.predict(x), expected, atol=34 * 2**-23 * 4)
        other = Sequential([*whole.layers[:3], Dense(3, activation="softmax", name="other")])
        other.compile("sgd", "categorical_crossentropy")
        for trained, watching in ((other, whole), (whole, other), (other, whole)):
            before = watching.predict(x, verbose=0)
            trained.train_on_batch(x, y)
            np.testing.assert_array_equal(trained.get_weights()[0], watching.get_weights()[0])
            assert (watching.predict(x, verbose=0) != before).any()


class TestPlan:
    @staticmethod
    def kinds(layers, shape=(6, 6, 2)):
        return [
            type(block)
            for block in Plan(Sequential([Input(shape), *layers]).layers, shape, 1).blocks
        ]

    def test_fusion(self):
        assert self.kinds([Conv2D(2, 3, activation="relu"), Flatten(), Dense(2, "softmax")]) == [
            ConvBlock,
            FlattenBlock,
            DenseBlock,
            SoftmaxBlock,
        ]
        plan = Plan(Sequential([Input((4,)), Dense(2), Activation("relu")]).layers, (4,), 1)
        assert [block.activation for block in plan.blocks] == ["relu"]
        assert self.kinds([MaxPooling2D(), Activation("relu"), Dropout(0.5)]) == [
            MaxPoolBlock,
            ReluBlock,
            DropoutBlock,
        ]
        # The activation comes twice: only the first is part of the convolution.
        assert self.kinds([Conv2D(2, 3, activation="relu"), Activation("relu")]) == [
            ConvBlock,
            ReluBlock,
        ]
        assert self.kinds([Conv2D(2, 3), Activation("linear"), Activation("relu")]) == [ConvBlock]

    def test_padding_in_front_of_a_convolution_is_its_own(self):
        relu = {"activation": "relu"}
        for layers, blocks in [
            ([Conv2D(2, 3)], [ConvBlock]),
            ([Conv2D(2, 3, strides=2, **relu)], [ConvBlock]),
            ([Conv2D(2, 3, **relu), MaxPooling2D()], [ConvPoolBlock]),
            ([DepthwiseConv2D(3, **relu)], [ConvBlock]),
            ([DepthwiseConv2D(3, **relu), MaxPooling2D()], [ConvBlock, MaxPoolBlock]),
            ([Conv2D(2, 3, groups=2, **relu), MaxPooling2D()], [ConvBlock, MaxPoolBlock]),
            ([Conv2D(2, 3, padding="same")], [PadBlock, ConvBlock]),
            ([ZeroPadding2D(2), Conv2D(2, 3)], [PadBlock, ConvBlock]),
            ([Activation("relu"), Conv2D(2, 3)], [PadBlock, ReluBlock, ConvBlock]),
            ([AveragePooling2D()], [PadBlock, AvgPoolBlock]),
            ([GlobalAveragePooling2D()], [PadBlock, AvgPoolBlock]),
            ([], [PadBlock]),
        ]:
            layers = [ZeroPadding2D(((1, 0), (2, 3))), *layers]
            assert self.kinds(layers) == blocks
            model = Sequential([Input((6, 6, 2)), *layers])
            y = x = reals(2, 6, 6, 2)
            for layer in model.layers:
                y = layer(y)
            # The taps in the padding are left out, so sums may be cut elsewhere.
            np.testing.assert_allclose(model.predict(x, verbose=0), y, rtol=1e-5, atol=1e-5)

    def test_inference_uses_two_buffers(self):
        model = tutorial()
        plan = Plan(model.layers, (32, 32, 3), 2)
        buffers = {block.output_buffer.ctypes.data for block in plan.blocks if not block.view}
        assert len(buffers) == 2

    def test_no_gradient_before_the_first_parameters(self):
        layers = [Dropout(0.5), MaxPooling2D(), Conv2D(2, 1), Flatten(), Dense(3, "softmax")]
        model = Sequential([Input((6, 6, 2)), *layers])
        model.compile("sgd", "categorical_crossentropy")
        model.train_on_batch(reals(4, 6, 6, 2), one_hot(4))
        dx = [block.dx_buffer is not None for block in model._training_plan.blocks]
        assert dx == [False, False, False, False, True, False]

    @pytest.mark.parametrize(
        "layers",
        [
            [Activation("relu"), Flatten(), Activation("relu"), Dropout(0.5)],
            [Dropout(0.5), Activation("relu"), Conv2D(2, 3), Activation("softmax"), Dropout(0.2)],
            [Flatten(), Dense(4), Dropout(0.5), Activation("relu"), Dense(2)],
            [AveragePooling2D(), ZeroPadding2D(), Dropout(0.5), GlobalAveragePooling2D()],
            [ZeroPadding2D(), Activation("relu"), DepthwiseConv2D(3, depth_multiplier=2)],
        ],
    )
    def test_buffers_are_not_mixed_up(self, layers):
        """A plan gives what its layers give one by one, and leaves its inputs alone."""
        model = Sequential([Input((6, 6, 2)), *layers])
        x = reals(3, 6, 6, 2)
        before = x.copy()
        for training in (False, True):
            plan = Plan(model.layers, (6, 6, 2), 5)
            y = x
            for layer in model.layers:
                y = layer(y, training=training, step=9)
            np.testing.assert_array_equal(plan.forward(x, training, step=9), y)
            np.testing.assert_array_equal(x, before)


class TestPredict:
    def test_against_the_reference(self):
        model = small()
        x = reals(5, 6, 6, 2)
        w1, b1, w2, b2 = model.get_weights()
        pooled, _ = reference.max_pool2d(reference.conv2d(x, w1, b1, activation="relu"), 2)
        expected = reference.softmax(reference.dense(pooled.reshape(5, -1), w2, b2))
        # The logits are sums of at most 18 + 16 products of numbers of size 1, and p is a function
        # of slope <= 1.
        np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=34 * 2**-23 * 4)

    @pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 64])
    def test_batch_sizes(self, batch_size):
        model = small()
        x = reals(5, 6, 6, 2)
        y = model.predict(x, batch_size=batch_size, verbose=0)
        single = np.concatenate([model.predict_on_batch(x[i : i + 1]) for i in range(5)])
        # How a sum is split may depend on the batch.
        np.testing.assert_allclose(y, single, atol=34 * 2**-23)
        np.testing.assert_array_equal(model(x[:2]), model.predict_on_batch(x[:2]))

    def test_results_are_new_arrays(self):
        model = small()
        x = reals(4, 6, 6, 2)
        first = model.predict_on_batch(x)
        kept = first.copy()
        model.predict_on_batch(-x)
        np.testing.assert_array_equal(first, kept)

    def test_training_mode(self):
        model = Sequential([Input((100,)), Dropout(0.5)])
        x = np.ones((1, 100), np.float32)
        np.testing.assert_array_equal(model(x), x)
        assert set(np.unique(model(x, training=True))) == {0.0, 2.0}

    @pytest.mark.parametrize("dtype", [np.uint8, np.float64, np.int64, ">f4"])
    def test_other_numbers_are_converted(self, dtype):
        model = small()
        x = np.random.default_rng(0).integers(0, 9, (5, 6, 6, 2)).astype(dtype)
        expected = model.predict(x.astype(np.float32), verbose=0)
        np.testing.assert_array_equal(model.predict(x, verbose=0), expected)
        np.testing.assert_array_equal(model.predict(x.tolist(), verbose=0), expected)
        np.testing.assert_array_equal(model.predict(np.asfortranarray(x), verbose=0), expected)


class TestDataErrors:
    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            (
                (6, 6, 2),
                r"expected x of shape \(None, 6, 6, 2\).* add the batch axis: x\[np.newaxis\]",
            ),
            ((3, 2, 6, 6), r"Move the channels to the last axis: np.moveaxis\(x, 1, -1\)"),
            ((3, 72), r"x.reshape\(-1, 6, 6, 2\)"),
            ((3, 7, 6, 2), r"conv2d \(Conv2D\), the first layer of sequential, .*\(3, 7, 6, 2\)$"),
            ((72,), r"at least 2 axes. Received: x of shape \(72,\)"),
            ((0, 6, 6, 2), "there are no samples"),
        ],
    )
    def test_shape_of_x(self, shape, message):
        with pytest.raises(ValueError, match=message):
            small().predict(np.zeros(shape, np.float32))

    def test_missing_channels(self):
        model = Sequential([Conv2D(2, 3, input_shape=(28, 28, 1))])
        with pytest.raises(ValueError, match=r"Add the axis of the channels: x\[..., np.newaxis\]"):
            model.predict(np.zeros((3, 28, 28)))

    @pytest.mark.parametrize("method", ["fit", "evaluate", "train_on_batch", "test_on_batch"])
    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ((4,), r"class numbers; use .* one-hot: y = pyconv.utils.to_categorical\(y, 3\)"),
            ((4, 1), "to_categorical"),
            ((4, 5), r"dense \(Dense\), the last layer .*\(None, 3\).* the last layer 5 outputs"),
            (
                (5, 3),
                r"same number of samples. Received: x of shape \(4, 6, 6, 2\), y of shape \(5, 3\)",
            ),
            ((), "same number of samples"),
        ],
    )
    def test_shape_of_y(self, method, shape, message):
        with pytest.raises(ValueError, match=message):
            getattr(small(), method)(reals(4, 6, 6, 2), np.zeros(shape))

    def test_dtypes(self):
        with pytest.raises(TypeError, match="NumPy array of numbers. Received: str"):
            small().fit("images", np.zeros((4, 3)))
        with pytest.raises(TypeError, match="dtype object"):
            small().predict(np.zeros((4, 6, 6, 2), object))
        with pytest.raises(TypeError, match="dtype <U1"):
            small().fit(reals(4, 6, 6, 2), np.full((4, 3), "a"))

    def test_not_compiled(self):
        model = small(compiled=False)
        for method in (model.fit, model.evaluate, model.train_on_batch, model.test_on_batch):
            with pytest.raises(RuntimeError, match="needs a compiled model. Call compile"):
                method(reals(4, 6, 6, 2), one_hot(4))
        with pytest.raises(RuntimeError, match="no gradients before the first training step"):
            _ = model.gradients

    def test_compile(self):
        model = small()
        for arguments, error, message in [
            (("adagrad", "categorical_crossentropy"), ValueError, "Unknown optimizer"),
            (("sgd", "squares"), ValueError, "Unknown loss"),
            (("sgd", "hinge"), ValueError, "loss 'hinge' of Keras is not supported"),
            (("sgd",), ValueError, "needs a loss"),
            (
                ("sgd", "categorical_crossentropy", ["auc"]),
                ValueError,
                "'auc' of Keras is not supp",
            ),
            (("sgd", "categorical_crossentropy", "accuracy"), TypeError, "must be a list"),
            (("sgd", "categorical_crossentropy", ["acc", "accuracy"]), ValueError, "of their own"),
        ]:
            with pytest.raises(error, match=message):
                model.compile(*arguments)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                {"batch_size": 0},
                "batch_size must be an integer of at least 1. Received: batch_size=0",
            ),
            ({"batch_size": 2.0}, "batch_size=2.0"),
            ({"epochs": -1}, "epochs=-1"),
            ({"verbose": 3}, "'auto', 0, 1 or 2. Received: verbose=3"),
            ({"validation_split": 1.0}, "validation_split must be in"),
            ({"validation_split": 0.9}, "leaves no samples .*validation_split=0.9 with 4 samples"),
            (
                {"validation_data": reals(4, 3)},
                r"pair of arrays, \(x, y\), or .* Received: ndarray of 4",
            ),
            ({"validation_data": (reals(4, 3), one_hot(4))}, "expected x of shape"),
        ],
    )
    def test_arguments_of_fit(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            small().fit(reals(4, 6, 6, 2), one_hot(4), **arguments)

    def test_callbacks(self):
        with pytest.raises(TypeError, match="derived from pyconv.callbacks.Callback. Received: 1"):
            small().fit(reals(4, 6, 6, 2), one_hot(4), callbacks=[1])

    def test_nothing_to_train(self):
        model = Sequential([Input((3,)), Activation("softmax")])
        model.compile("sgd", "categorical_crossentropy")
        with pytest.raises(ValueError, match="no weights to train"):
            model.train_on_batch(reals(4, 3), one_hot(4))
        with pytest.raises(ValueError, match="the model has no layers"):
            Sequential().predict(reals(4, 3))

    def test_the_loss_needs_one_axis_of_classes(self):
        model = Sequential([Input((6, 6, 2)), Conv2D(3, 3, activation="softmax")])
        model.compile("sgd", "categorical_crossentropy")
        with pytest.raises(ValueError, match=r"Received: outputs of shape \(None, 4, 4, 3\)"):
            model.train_on_batch(reals(4, 6, 6, 2), reals(4, 4, 4, 3))


def test_the_seed_decides_the_initial_weights():
    def weights():
        set_random_seed(3)
        return small().get_weights()

    for first, second in zip(weights(), weights()):
        np.testing.assert_array_equal(first, second)
