"""The layer BatchNormalization in models: weights, training, freezing, files and devices."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import emulated_cuda, has_emulated_cuda

import pyconv
from pyconv import Sequential, layers, optimizers
from pyconv.blocks import (
    ActivationBlock,
    BatchNormBlock,
    ConvBlock,
    ConvPoolBlock,
    DenseBlock,
    FlattenBlock,
    ReluBlock,
    SoftmaxBlock,
)
from pyconv.callbacks import EarlyStopping
from pyconv.layers import (
    BatchNormalization,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    Input,
    LeakyReLU,
    MaxPooling2D,
    ReLU,
    Softmax,
)
from pyconv.plan import make_blocks, operations
from pyconv.saving import load_model
from pyconv.utils import set_random_seed
from pyconv.validation import reference


def new_model(**options) -> Sequential:
    """Convolution, batch normalization and ReLU, as they are usually put together."""
    set_random_seed(1)
    model = Sequential(
        [
            Input((8, 8, 3)),
            Conv2D(6, 3, use_bias=False),
            BatchNormalization(momentum=0.5, **options),
            ReLU(),
            MaxPooling2D(2),
            Flatten(),
            Dense(5),
            BatchNormalization(),
            LeakyReLU(),
            Dense(2, activation="softmax"),
        ]
    )
    model.compile(optimizers.SGD(0.1), "categorical_crossentropy", metrics=["accuracy"])
    return model


def samples(n=12):
    x = np.random.default_rng(0).normal(size=(n, 8, 8, 3)).astype(np.float32)
    return x, np.eye(2, dtype=np.float32)[np.arange(n) % 2]


def moving(layer) -> list[np.ndarray]:
    return layer.get_weights()[-2:]


class TestWeights:
    def test_order(self):
        model = new_model()
        assert [p.name for p in model.layers[1].parameters] == [
            *("gamma", "beta", "moving_mean", "moving_variance")
        ]
        assert [w.shape for w in model.get_weights()] == [
            *[(3, 3, 3, 6), *[(6,)] * 4],
            *[(54, 5), (5,), *[(5,)] * 4],
            *[(5, 2), (2,)],
        ]
        assert [p.trainable for p in model.layers[1].parameters] == [True, True, False, False]
        gamma, beta, mean, variance = model.layers[1].get_weights()
        assert (gamma == 1).all() and (variance == 1).all() and not beta.any() and not mean.any()

    def test_initializers(self):
        layer = BatchNormalization(
            beta_initializer="ones",
            gamma_initializer=lambda shape, rng: np.full(shape, 2.0),
            moving_mean_initializer="ones",
            moving_variance_initializer="zeros",
        )
        layer.build((None, 3))
        assert [w[0] for w in layer.get_weights()] == [2, 1, 1, 0]

    def test_summary_counts_what_is_trained(self):
        lines = []
        new_model().summary(lines.append)
        assert lines[-4:-1] == [
            "Total params: 493",
            "Trainable params: 471",
            "Non-trainable params: 22",
        ]
        lines = []
        new_model(trainable=False).summary(lines.append)
        assert lines[-3:-1] == ["Trainable params: 459", "Non-trainable params: 34"]

    def test_set_weights(self):
        model, other = new_model(), new_model()
        weights = [np.random.default_rng(0).random(w.shape) for w in model.get_weights()]
        model.set_weights(weights)
        other.set_weights(model.get_weights())
        x = samples()[0]
        np.testing.assert_array_equal(model.predict(x, verbose=0), other.predict(x, verbose=0))

    def test_another_number_of_channels(self):
        layer = BatchNormalization()
        layer.build((None, 4, 4, 3))
        with pytest.raises(ValueError, match=r"expected 3 channels .*\(None, 4, 4, 5\)"):
            layer(np.zeros((1, 4, 4, 5), np.float32))
        assert layer(np.zeros((1, 9, 3), np.float32)).shape == (1, 9, 3)


class TestLayer:
    def test_in_training_it_takes_the_batchs_statistics(self):
        x = samples()[0]
        layer = BatchNormalization(momentum=0.75)
        y = layer(x, training=True)
        ones, zeros = np.ones(3), np.zeros(3)
        expected = reference.batch_norm_training(x, ones, zeros, zeros, ones, 0.75)
        np.testing.assert_allclose(y, expected[0], atol=1e-5)
        for got, of in zip(moving(layer), expected[3:]):
            np.testing.assert_allclose(got, of, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(
            layer(x), reference.batch_norm(x, ones, zeros, *moving(layer)), atol=1e-5
        )

    def test_it_changes_no_array_of_the_callers(self):
        x = samples()[0]
        before = x.copy()
        BatchNormalization()(x, training=True)
        BatchNormalization()(x)
        np.testing.assert_array_equal(x, before)

    @pytest.mark.parametrize("options", [{}, {"center": False}, {"scale": False}])
    def test_config(self, options):
        layer = BatchNormalization(
            *(-1, 0.5, 0.01), **options, gamma_initializer="he_normal", trainable=False
        )
        again = layers.deserialize(layers.serialize(layer))
        assert again.get_config() == layer.get_config()
        assert not again.trainable and again.momentum == 0.5 and again.epsilon == 0.01
        assert (again.center, again.scale) == (layer.center, layer.scale)
        for other in (LeakyReLU(0.1), ReLU(), Softmax()):
            assert layers.deserialize(layers.serialize(other)).get_config() == other.get_config()

    def test_activations_by_name(self):
        x = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)
        for name in ("sigmoid", "tanh", "softplus", "leaky_relu"):
            expected = reference.activate(x, name)
            dense = Dense(4, name, kernel_initializer=lambda shape, rng: np.eye(*shape))
            for layer in (layers.Activation(name), dense):
                np.testing.assert_allclose(layer(x), expected, atol=1e-6)
        np.testing.assert_allclose(LeakyReLU()(x), reference.activate(x, "leaky_relu", 0.3))
        np.testing.assert_array_equal(ReLU()(x), np.maximum(x, 0))
        np.testing.assert_allclose(Softmax()(x), reference.softmax(x), atol=1e-6)


class TestBlocks:
    def kinds(self, *given):
        return [type(block) for block in make_blocks(operations(built(given)), (8, 8, 3))]

    def test_what_becomes_of_the_layers(self):
        conv, norm = Conv2D(2, 3, activation="tanh"), BatchNormalization()
        assert self.kinds(conv, norm, ReLU()) == [
            *(ConvBlock, ActivationBlock, BatchNormBlock, ReluBlock)
        ]
        assert self.kinds(Conv2D(2, 3), ReLU()) == [ConvBlock]
        assert self.kinds(Conv2D(2, 3), LeakyReLU()) == [ConvBlock, ActivationBlock]
        assert self.kinds(Dense(2, "sigmoid")) == [DenseBlock, ActivationBlock]

    def test_folded_for_inference(self):
        """Into the weights before it, and ReLU and pooling into the convolution as ever."""
        model = new_model()
        x = samples()[0]
        model.predict(x, verbose=0)
        plan = model._plan_for_inference(1)
        assert [type(block) for block in plan.blocks] == [
            *(ConvPoolBlock, FlattenBlock, DenseBlock, ActivationBlock, DenseBlock, SoftmaxBlock)
        ]
        assert [w.shape for w in model.get_weights()][:2] == [(3, 3, 3, 6), (6,)]

    @pytest.mark.parametrize("use_bias", [True, False])
    @pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}])
    def test_what_is_folded_computes_the_same(self, use_bias, options):
        set_random_seed(1)
        model = Sequential(
            [
                Input((6, 6, 4)),
                BatchNormalization(),
                Conv2D(6, 3, groups=2, use_bias=use_bias),
                BatchNormalization(**options),
                BatchNormalization(),  # one is enough
                DepthwiseConv2D(2, depth_multiplier=2, use_bias=use_bias),
                BatchNormalization(**options),
                Conv2D(3, 2, activation="tanh"),
                BatchNormalization(),  # not behind an activation
                Dense(5, use_bias=use_bias),
                BatchNormalization(**options),
            ]
        )
        x = np.random.default_rng(0).normal(size=(5, 6, 6, 4)).astype(np.float32)
        for seed in range(2):
            rng = np.random.default_rng(seed)
            model.set_weights([rng.uniform(0.2, 1, w.shape) for w in model.get_weights()])
            h = x
            for layer in model.layers:
                h = layer(h)
            y = model.predict(x, verbose=0)
            np.testing.assert_allclose(y, h, rtol=0, atol=2e-5 * np.abs(h).max())
        kinds = [type(block) for block in model._plan_for_inference(1).blocks]
        assert kinds.count(BatchNormBlock) == 3  # those whose comments say so, and the first

    def test_slopes(self):
        for layer, slope in ((LeakyReLU(), 0.3), (layers.Activation("leaky_relu"), 0.2)):
            (block,) = make_blocks(operations([layer]), (3,))
            assert block.function == ("leaky_relu", slope)


def built(given):
    return Sequential([Input((8, 8, 3)), *given]).layers


class TestTraining:
    def test_gradients_by_finite_differences(self):
        """Of the whole network: also where batch normalization is the first layer, or twice."""
        set_random_seed(2)
        model = Sequential(
            [
                Input((4, 4, 2)),
                BatchNormalization(epsilon=0.1),
                Conv2D(3, 2, activation="tanh"),
                BatchNormalization(center=False, epsilon=0.1),
                BatchNormalization(scale=False, epsilon=0.1),
                layers.Activation("softplus"),
                Flatten(),
                Dense(3, activation="sigmoid"),
                Dense(2),
            ]
        )
        model.compile(optimizers.SGD(0.0), "mse")
        x = np.random.default_rng(0).normal(size=(6, 4, 4, 2)).astype(np.float32)
        y = np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32)
        weights = [
            np.random.default_rng(i).uniform(0.5, 1, w.shape).astype(np.float32)
            for i, w in enumerate(model.get_weights())
        ]

        def loss():
            return model.train_on_batch(x, y)

        model.set_weights(weights)
        loss()
        gradients = [g.copy() for g in model.gradients]
        trained = [p for layer in model.layers for p in layer.parameters if p.trainable]
        assert [g.shape for g in gradients] == [p.shape for p in trained]
        # A float32 loss of about 1 rounds by 1e-7, and some more on its way; over a step of 2^-5
        # that is less than 1e-4. The third derivative times the step's square / 6 is about that.
        step = 2.0**-5
        for parameter, gradient in zip(trained, gradients):
            before = parameter.value.copy()
            for index in np.random.default_rng(0).permutation(parameter.size)[:6]:
                values = []
                for sign in (1, -1):
                    moved = before.copy()
                    moved.flat[index] += sign * step
                    parameter.assign(moved)
                    values.append(loss())
                slope = (values[0] - values[1]) / (2 * step)
                assert slope == pytest.approx(gradient.flat[index], abs=1e-3), parameter
            parameter.assign(before)

    def test_a_small_network_learns(self):
        (x, y), (test_x, test_y) = pyconv.datasets.shapes.load_data(n_train=600, n_test=200)
        x, test_x = x / np.float32(255), test_x / np.float32(255)
        set_random_seed(3)
        model = Sequential(
            [
                Input(x.shape[1:]),
                Conv2D(8, 3, use_bias=False),
                BatchNormalization(momentum=0.9),
                ReLU(),
                MaxPooling2D(2),
                Conv2D(16, 3, use_bias=False),
                BatchNormalization(momentum=0.9),
                LeakyReLU(0.1),
                MaxPooling2D(4),
                Flatten(),
                Dense(10, activation="softmax"),
            ]
        )
        model.compile(optimizers.Adam(1e-2), "sparse_categorical_crossentropy", ["accuracy"])
        history = model.fit(x, y, epochs=6, verbose=0).history
        assert history["loss"][-1] < 0.4 * history["loss"][0]
        assert model.evaluate(test_x, test_y, verbose=0)[1] > 0.5  # by chance 0.1

    def test_inference_takes_the_moving_averages_of_the_last_step(self):
        """Whatever was recorded before it."""
        model, (x, y) = new_model(), samples()
        for _ in range(3):
            model.train_on_batch(x, y)
            h = x
            for layer in model.layers:
                h = layer(h)
            np.testing.assert_allclose(model.predict(x, verbose=0), h, atol=1e-5)
            assert model.evaluate(x, y, verbose=0)[0] == pytest.approx(
                -np.log((h * y).sum(axis=1)).mean(), rel=1e-4
            )

    def test_inference_does_not_move_them(self):
        model, (x, y) = new_model(), samples()
        model.train_on_batch(x, y)
        before = model.get_weights()
        model.predict(x, verbose=0)
        model.evaluate(x, y, verbose=0)
        model.test_on_batch(x, y)
        for a, b in zip(model.get_weights(), before):
            np.testing.assert_array_equal(a, b)

    def test_batches_of_any_size(self):
        model, (x, y) = new_model(), samples(13)
        history = model.fit(x, y, batch_size=4, epochs=2, verbose=0)  # the last one has 1 sample
        assert np.isfinite(history.history["loss"]).all()
        with pytest.raises(ValueError, match="no samples"):
            model.train_on_batch(x[:0], y[:0])

    def test_best_weights_are_restored_as_a_whole(self):
        model, (x, y) = new_model(), samples(40)
        kept = []

        class Keep(pyconv.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                kept.append(self.model.get_weights())

        stop = EarlyStopping("loss", patience=1, min_delta=10.0, restore_best_weights=True)
        model.fit(x, y, epochs=3, verbose=0, callbacks=[Keep(), stop])
        for a, b in zip(model.get_weights(), kept[0]):
            np.testing.assert_array_equal(a, b)

    @pytest.mark.skipif(not has_emulated_cuda(), reason="built without PYCONV_CUDA_EMULATION")
    @pytest.mark.parametrize("architecture", ["80", "75"])
    def test_emulated_cuda_trains_as_the_cpu_does(self, architecture):
        x, y = samples(4)
        on_cpu = new_model()
        for _ in range(2):
            on_cpu.train_on_batch(x, y)
        outputs = on_cpu.predict(x, verbose=0)
        with emulated_cuda(architecture):
            model = new_model()
            for _ in range(2):
                model.train_on_batch(x, y)
            np.testing.assert_allclose(model.predict(x, verbose=0), outputs, atol=1e-4)
        for a, b in zip(model.get_weights(), on_cpu.get_weights()):
            np.testing.assert_allclose(a, b, atol=1e-4)
        # Back on the CPU, with what the device has computed.
        np.testing.assert_allclose(model.predict(x, verbose=0), outputs, atol=1e-4)


class TestFrozen:
    def test_nothing_of_it_changes(self):
        model, (x, y) = new_model(trainable=False), samples()
        before = model.get_weights()
        for _ in range(3):
            model.train_on_batch(x, y)
        for index, (a, b) in enumerate(zip(model.get_weights(), before)):
            assert np.array_equal(a, b) == (1 <= index <= 4), index
        assert len(model.gradients) == 7

    def test_the_gradient_passes_through(self):
        """As through the same scale and shift in the weights of the layer before."""
        model, (x, y) = new_model(trainable=False), samples()
        model.layers[1].set_weights(
            [np.random.default_rng(i).uniform(0.5, 2, 6).astype(np.float32) for i in range(4)]
        )
        gamma, beta, mean, variance = model.layers[1].get_weights()
        scale = gamma / np.sqrt(variance + np.float32(1e-3))
        folded = Sequential([Input((8, 8, 3)), Conv2D(6, 3), *new_model().layers[2:]])
        folded.compile(optimizers.SGD(0.1), "categorical_crossentropy")
        weights = model.get_weights()
        folded.set_weights([weights[0] * scale, beta - mean * scale, *weights[5:]])
        assert model.train_on_batch(x, y)[0] == pytest.approx(folded.train_on_batch(x, y))
        np.testing.assert_allclose(
            model.gradients[0], folded.gradients[0] * scale, rtol=1e-3, atol=1e-6
        )

    def test_set_between_steps(self):
        model, (x, y) = new_model(), samples()
        model.train_on_batch(x, y)
        layer = model.layers[1]
        layer.trainable = False
        model.compile(optimizers.SGD(0.1), "categorical_crossentropy")
        before = layer.get_weights()
        model.train_on_batch(x, y)
        for a, b in zip(layer.get_weights(), before):
            np.testing.assert_array_equal(a, b)
        layer.trainable = True
        model.compile(optimizers.SGD(0.1), "categorical_crossentropy")
        model.train_on_batch(x, y)
        for a, b in zip(layer.get_weights(), before):
            assert not np.array_equal(a, b)

    def test_an_optimizer_with_a_memory_must_be_a_new_one(self):
        model, (x, y) = new_model(), samples()
        model.compile("adam", "categorical_crossentropy")
        model.train_on_batch(x, y)
        model.layers[1].trainable = False
        with pytest.raises(ValueError, match="the model has changed. Compile again with a new"):
            model.train_on_batch(x, y)

    def test_nothing_else_to_train(self):
        model = Sequential([Input((3,)), BatchNormalization(trainable=False)])
        model.compile("sgd", "mse")
        with pytest.raises(ValueError, match="no weights to train"):
            model.train_on_batch(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32))

    def test_other_layers_cannot_be_frozen(self):
        layer = Dense(2)
        layer.trainable = True
        with pytest.raises(ValueError, match="only BatchNormalization can be frozen"):
            layer.trainable = False
        assert layer.trainable

    def test_first_of_all(self):
        """Nothing before the first layer that is trained gets a gradient."""
        model = Sequential(
            [Input((3,)), BatchNormalization(trainable=False), Dropout(0.5), Dense(2)]
        )
        model.compile("sgd", "mse")
        x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
        model.train_on_batch(x, np.zeros((4, 2), np.float32))
        assert len(model.gradients) == 2


class TestFiles:
    def trained(self):
        model, (x, y) = new_model(), samples()
        model.train_on_batch(x, y)
        return model, x

    def test_model(self, tmp_path):
        model, x = self.trained()
        model.save(tmp_path / "m.safetensors")
        loaded = load_model(tmp_path / "m.safetensors")
        np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
        assert loaded.get_config() == model.get_config()
        assert [p.trainable for p in loaded.layers[1].parameters] == [True, True, False, False]

    @pytest.mark.parametrize("name", ["w.safetensors", "w.weights.h5"])
    def test_weights(self, name, tmp_path):
        if name.endswith("h5"):
            pytest.importorskip("h5py")
        model, x = self.trained()
        model.save_weights(tmp_path / name)
        other = new_model()
        other.load_weights(tmp_path / name)
        np.testing.assert_array_equal(other.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.filterwarnings("default")  # Keras's own
class TestKeras:
    """Against Keras itself, where it is installed."""

    @pytest.fixture
    def theirs(self):
        keras = pytest.importorskip("keras", exc_type=ImportError, reason="compares with Keras")
        pytest.importorskip("h5py")
        of = keras.layers
        model = keras.Sequential(
            [
                of.Input((8, 8, 3)),
                of.Conv2D(6, 3, use_bias=False),
                of.BatchNormalization(momentum=0.5),
                of.ReLU(),
                of.MaxPooling2D(2),
                of.Flatten(),
                of.Dense(5),
                of.BatchNormalization(),
                of.LeakyReLU(),
                of.Dense(2, activation="softmax"),
            ]
        )
        model.compile(keras.optimizers.SGD(0.1), "categorical_crossentropy")
        return model

    def test_weights_both_ways(self, theirs, tmp_path):
        model, (x, y) = new_model(), samples()
        assert [w.shape for w in model.get_weights()] == [w.shape for w in theirs.get_weights()]
        theirs.train_on_batch(x, y)
        theirs.save_weights(tmp_path / "k.weights.h5")
        model.load_weights(tmp_path / "k.weights.h5")
        expected = theirs.predict(x, verbose=0)
        np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=0, atol=1e-5)
        model.train_on_batch(x, y)
        model.save_weights(tmp_path / "p.weights.h5")
        theirs.load_weights(tmp_path / "p.weights.h5")
        for a, b in zip(model.get_weights(), theirs.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        expected = theirs.predict(x, verbose=0)
        np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=0, atol=1e-5)
