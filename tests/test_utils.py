"""to_categorical, seeds, initializers, losses, metrics and optimizers: what needs no model."""

from __future__ import annotations

import random as python_random

import numpy as np
import pytest

from pyconv import initializers, losses, metrics, optimizers, random
from pyconv.utils import set_random_seed, to_categorical


class TestToCategorical:
    @pytest.mark.parametrize("shape", [(3,), (3, 1)])
    def test_one_hot(self, shape):
        one_hot = to_categorical(np.array([0, 2, 1]).reshape(shape), 4)
        assert one_hot.dtype == np.float32
        np.testing.assert_array_equal(one_hot, np.eye(4)[[0, 2, 1]])

    def test_number_of_classes_from_the_data(self):
        assert to_categorical([0, 5, 2]).shape == (3, 6)

    def test_more_axes(self):
        classes = np.arange(6).reshape(2, 3)
        np.testing.assert_array_equal(to_categorical(classes), np.eye(6)[classes])

    def test_empty(self):
        assert to_categorical(np.zeros(0, np.int64), 3).shape == (0, 3)
        with pytest.raises(ValueError, match="needs num_classes"):
            to_categorical([])

    def test_a_scalar(self):
        np.testing.assert_array_equal(to_categorical(1, 3), [0, 1, 0])

    @pytest.mark.parametrize(
        ("labels", "classes", "message"),
        [
            ([0, 3], 3, "0 <= x < 3. Received: numbers from 0 to 3 with num_classes=3"),
            ([-1, 3], None, "Received: numbers from -1 to 3"),
            ([0.5], 2, "one-hot already"),
            ([np.nan], 2, "NaN"),
            ([0], 0, "num_classes must be a positive integer. Received: num_classes=0"),
        ],
    )
    def test_bad_values(self, labels, classes, message):
        with pytest.raises(ValueError, match=message):
            to_categorical(labels, classes)

    def test_bad_dtype(self):
        with pytest.raises(TypeError, match="expects integers. Received: dtype <U3"):
            to_categorical(["cat"])


class TestRandom:
    def test_the_seed_repeats_everything(self):
        def draws():
            set_random_seed(7)
            return (
                [random.next_seed(), random.next_seed()],
                python_random.random(),
                np.random.rand(),
            )

        assert draws() == draws()

    def test_seeds_differ(self):
        set_random_seed(7)
        seeds = [random.next_seed() for _ in range(1000)]
        set_random_seed(8)
        assert len({*seeds, random.next_seed()}) == 1001
        assert all(0 <= seed < 2**64 for seed in seeds)

    def test_splitmix64_is_the_published_generator(self):
        # The first outputs of the reference implementation (splitmix64.c) for the state 0.
        golden = 0x9E3779B97F4A7C15
        assert random._splitmix64(0) == 0xE220A8397B1DCDAF
        assert random._splitmix64(golden) == 0x6E789E6AA1B965F4

    def test_streams_of_a_generator(self):
        first = random.generator(3, 0).permutation(100)
        assert (first == random.generator(3, 0).permutation(100)).all()
        assert (first != random.generator(3, 1).permutation(100)).any()
        assert (first != random.generator(4, 0).permutation(100)).any()

    @pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "1", None])
    def test_bad_seeds(self, seed):
        with pytest.raises(ValueError, match="seed must be"):
            set_random_seed(seed)


class TestInitializers:
    RNG = staticmethod(lambda: np.random.Generator(np.random.Philox(key=1)))

    @pytest.mark.parametrize(
        ("name", "variance"),
        [
            ("glorot_uniform", 2 / (9 * 32 + 9 * 64)),
            ("he_uniform", 2 / (9 * 32)),
            ("he_normal", 2 / (9 * 32)),
            ("glorot_normal", 2 / (9 * 32 + 9 * 64)),
            ("lecun_uniform", 1 / (9 * 32)),
            ("lecun_normal", 1 / (9 * 32)),
            ("random_uniform", 0.05**2 / 3),
            ("truncated_normal", (0.05 * 0.8796256610342398) ** 2),
        ],
    )
    def test_variance_and_range(self, name, variance):
        values = initializers.get(name)((3, 3, 32, 64), self.RNG())
        assert values.dtype == np.float32
        assert values.shape == (3, 3, 32, 64)
        # Of n samples the variance has a relative standard deviation below sqrt(2 / n), the mean
        # one of sigma / sqrt(n): six of those.
        n = values.size
        assert abs(values.var() / variance - 1) < 6 * np.sqrt(2 / n)
        assert abs(values.mean()) < 6 * np.sqrt(variance / n)
        limit = np.sqrt(3 * variance) if "uniform" in name else 2 * np.sqrt(variance) / 0.8796
        assert np.abs(values).max() <= limit * (1 + 1e-6)
        assert np.abs(values).max() > 0.99 * limit

    def test_random_normal(self):
        values = initializers.RandomNormal(mean=2.0, stddev=0.5)((100, 100), self.RNG())
        # Means and deviations of 10,000 samples, six standard deviations around the true ones.
        assert abs(values.mean() - 2) < 6 * 0.5 / 100
        assert abs(values.std() - 0.5) < 6 * 0.5 / np.sqrt(2 * values.size)
        assert np.abs(values - 2).max() > 2 * 0.5

    def test_settings(self):
        uniform = initializers.RandomUniform(minval=1.0, maxval=3.0)((100, 100), self.RNG())
        assert 1 <= uniform.min() < 1.01 and 2.99 < uniform.max() <= 3
        cut = initializers.TruncatedNormal(1.0, 0.1)((100, 100), self.RNG())
        assert 0.8 <= cut.min() < 0.81 and 1.19 < cut.max() <= 1.2
        assert (initializers.Constant(0.5)((2, 3), self.RNG()) == 0.5).all()
        assert (initializers.get("constant")((2, 3), self.RNG()) == 0).all()

    @pytest.mark.parametrize("shape", [(5, 5), (3, 3, 2, 7), (2, 9), (9, 2)])
    def test_orthogonal(self, shape):
        matrix = initializers.Orthogonal(gain=2.0)(shape, self.RNG()).reshape(-1, shape[-1]) / 2
        if len(matrix) < shape[-1]:
            matrix = matrix.T
        # float32 columns of at most 18 entries below 1.
        identity = np.eye(matrix.shape[1])
        np.testing.assert_allclose(matrix.T @ matrix, identity, atol=20 * 2**-23)

    def test_orthogonal_of_a_vector(self):
        with pytest.raises(ValueError, match=r"at least two axes.*shape=\(3,\)"):
            initializers.get("orthogonal")((3,), self.RNG())

    @pytest.mark.parametrize("name", ["RandomNormal", "HeNormal", "normal", "Zeros", "zero"])
    def test_other_spellings(self, name):
        known = {"RandomNormal": "random_normal", "HeNormal": "he_normal", "zero": "zeros"}
        known |= {"normal": "random_normal", "Zeros": "zeros"}
        assert initializers.get(name) is initializers.get(known[name])

    def test_not_supported(self):
        with pytest.raises(ValueError, match="'VarianceScaling' of Keras is not supported. Use"):
            initializers.get("VarianceScaling")

    def test_settings_are_serialized(self):
        description = initializers.serialize(initializers.RandomNormal(stddev=0.01))
        assert description == {"class_name": "RandomNormal", "config": {"mean": 0, "stddev": 0.01}}
        again = initializers.get(description)
        assert isinstance(again, initializers.RandomNormal) and again.stddev == 0.01
        assert initializers.serialize(initializers.get("constant")) == "constant"

    def test_seeds_of_their_own(self):
        assert initializers.Orthogonal(2.0, seed=None).gain == 2
        with pytest.raises(
            ValueError, match=r"not support a seed of its own.*set_random_seed.*seed=1"
        ):
            initializers.RandomNormal(seed=1)
        with pytest.raises(TypeError, match="RandomUniform has no argument 'low'"):
            initializers.RandomUniform(low=1)

    @pytest.mark.parametrize("value", ["x", None, np.nan, True])
    def test_bad_settings(self, value):
        with pytest.raises(ValueError, match="Constant: value must be"):
            initializers.Constant(value)

    def test_constants(self):
        assert (initializers.get("ones")((2, 3), self.RNG()) == 1).all()
        assert (initializers.get("zeros")((2,), self.RNG()) == 0).all()

    def test_vectors(self):
        assert initializers.get("glorot_uniform")((4,), self.RNG()).shape == (4,)

    def test_unknown(self):
        with pytest.raises(ValueError, match="glorot_uniform, he_normal, .* Received: 'orthodox'"):
            initializers.get("orthodox")

    def test_serialize(self):
        assert initializers.serialize(initializers.he_normal) == "he_normal"
        with pytest.raises(ValueError, match="of your own"):
            initializers.serialize(lambda shape, rng: np.zeros(shape))


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def numerical_gradient(function, x, h=1e-6):
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = h
        gradient[index] = (function(x + step) - function(x - step)) / (2 * h)
    return gradient


class TestCategoricalCrossentropy:
    LABELS = np.eye(4)[[0, 3, 2]]
    LOGITS = np.random.default_rng(0).normal(size=(3, 4))

    def test_value(self):
        p = softmax(self.LOGITS)
        expected = -np.log(p[np.arange(3), [0, 3, 2]]).mean()
        assert losses.CategoricalCrossentropy()(self.LABELS, p) == pytest.approx(expected, rel=1e-6)
        logits = losses.CategoricalCrossentropy(from_logits=True)
        assert logits(self.LABELS, self.LOGITS) == pytest.approx(expected, rel=1e-6)

    def test_probabilities_are_normalised_and_clipped(self):
        loss = losses.CategoricalCrossentropy()
        p = softmax(self.LOGITS)
        assert loss(self.LABELS, 3 * p) == pytest.approx(loss(self.LABELS, p), rel=1e-6)
        assert loss(np.array([[1.0, 0]]), np.array([[0.0, 1]])) == pytest.approx(
            -np.log(1e-7), rel=1e-6
        )
        gradient = loss.gradient(np.array([[1.0, 0]], np.float32), np.array([[0, 1]], np.float32))
        assert (gradient == 0).all()

    def test_label_smoothing(self):
        loss = losses.CategoricalCrossentropy(label_smoothing=0.1)
        np.testing.assert_allclose(loss.smooth(np.array([[0.0, 1.0]])), [[0.05, 0.95]], rtol=1e-7)

    @pytest.mark.parametrize("from_logits", [False, True])
    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    def test_gradient(self, from_logits, smoothing):
        loss = losses.CategoricalCrossentropy(from_logits, smoothing)
        # Not normalised, so that the gradient through the normalisation counts.
        y = self.LOGITS if from_logits else 2 * softmax(self.LOGITS)
        labels = self.LABELS * [[1.0], [1.0], [0.5]]  # one that does not sum to 1
        expected = numerical_gradient(lambda y: loss.losses(labels, y).mean(), y)
        # The loss is below 4, so rounding in float64 costs 4 * 2^-53 / h = 4e-10; the constants are
        # float32.
        np.testing.assert_allclose(loss.gradient(labels, y), expected, rtol=1e-6, atol=1e-8)

    def test_float32_stays(self):
        labels, y = self.LABELS.astype(np.float32), softmax(self.LOGITS).astype(np.float32)
        for loss in (losses.CategoricalCrossentropy(), losses.CategoricalCrossentropy(True, 0.1)):
            assert loss.losses(labels, y).dtype == np.float32
            assert loss.gradient(labels, y).dtype == np.float32

    def test_get(self):
        loss = losses.get("categorical_crossentropy")
        assert isinstance(loss, losses.CategoricalCrossentropy)
        assert losses.get(loss) is loss
        copy = losses.get(losses.serialize(losses.CategoricalCrossentropy(True, 0.1)))
        assert copy.get_config() == {"from_logits": True, "label_smoothing": 0.1}

    def test_errors(self):
        with pytest.raises(ValueError, match="label_smoothing=1"):
            losses.CategoricalCrossentropy(label_smoothing=1)
        with pytest.raises(ValueError, match=r"shape .*\(None, 4\). Received: y of shape \(3,\)"):
            losses.CategoricalCrossentropy()(np.arange(3), self.LOGITS)


class TestMetrics:
    def test_accuracy(self):
        accuracy = metrics.CategoricalAccuracy()
        predictions = np.array([[0.1, 0.9], [0.9, 0.1], [0.5, 0.5], [0.5, 0.5]])
        # Right, wrong; and as of equal ones the first counts, right, wrong.
        labels = np.eye(2)[[1, 1, 0, 1]]
        np.testing.assert_array_equal(accuracy.values(labels, predictions), [1, 0, 1, 0])
        assert accuracy(labels[:2], predictions[:2]) == 0.5
        assert accuracy(labels[2:3], predictions[2:3]) == pytest.approx(2 / 3)
        accuracy.reset_state()
        assert accuracy.result() == 0

    def test_mean_is_accumulated_in_float64(self):
        mean = metrics.Mean()
        mean.add(np.full(1, 2.0**24, np.float32))
        for _ in range(3):
            mean.add(np.ones(1, np.float32))
        assert mean.result() == (2**24 + 3) / 4

    @pytest.mark.parametrize(
        ("given", "name"),
        [("acc", "accuracy"), ("accuracy", "accuracy"), ("categorical_accuracy",) * 2],
    )
    def test_get(self, given, name):
        metric = metrics.get(given)
        assert metric.name == name
        assert metrics.get(metrics.serialize(metric)).name == name


class TestOptimizers:
    @pytest.mark.parametrize(
        ("name", "config"),
        [
            ("rmsprop", {"learning_rate": 1e-3, "rho": 0.9, "epsilon": 1e-7}),
            ("sgd", {"learning_rate": 0.01, "momentum": 0.0, "nesterov": False}),
            ("adam", {"learning_rate": 1e-3, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7}),
        ],
    )
    def test_defaults_are_those_of_keras(self, name, config):
        optimizer = optimizers.get(name)
        assert optimizer.get_config() == config
        copy = optimizers.get(optimizers.serialize(optimizer))
        assert type(copy) is type(optimizer)
        assert copy.get_config() == config
        assert optimizers.get(optimizer) is optimizer

    @pytest.mark.parametrize(
        ("optimizer", "expected"),
        [
            # Two steps with the gradient 1 from the weight 0, by hand.
            (optimizers.SGD(0.5), -1.0),
            (optimizers.SGD(0.5, momentum=0.5), -0.5 - 0.75),
            (optimizers.SGD(0.5, momentum=0.5, nesterov=True), -0.75 - 0.875),
            (optimizers.RMSprop(0.1), -0.1 / np.sqrt(0.1) - 0.1 / np.sqrt(0.19)),
            (optimizers.Adam(0.1), -0.2),
        ],
    )
    def test_steps(self, optimizer, expected):
        weights, gradients = np.zeros(20, np.float32), np.ones(20, np.float32)
        optimizer.apply(weights, gradients)
        optimizer.apply(weights, gradients)
        assert optimizer.iterations == 2
        # epsilon and float32 change the result by a few parts in a million.
        np.testing.assert_allclose(weights, expected, rtol=1e-5)

    def test_learning_rate_is_settable(self):
        optimizer = optimizers.SGD(1.0)
        weights = np.zeros(4, np.float32)
        optimizer.learning_rate = 0.25
        optimizer.apply(weights, np.ones(4, np.float32))
        np.testing.assert_array_equal(weights, -0.25)
        with pytest.raises(ValueError, match="learning_rate=-1"):
            optimizer.learning_rate = -1

    def test_of_another_model(self):
        optimizer = optimizers.RMSprop()
        optimizer.apply(np.zeros(16, np.float32), np.zeros(16, np.float32))
        with pytest.raises(ValueError, match="belongs to another model.* 32 weights, expected 16"):
            optimizer.apply(np.zeros(32, np.float32), np.zeros(32, np.float32))

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: optimizers.get("adagrad"), "one of adam, rmsprop, sgd.* Received: 'adagrad'"),
            (lambda: optimizers.RMSprop(momentum=0.9), "does not support momentum other than 0.0"),
            (lambda: optimizers.RMSprop(lr=0.1), "Use learning_rate. Received: lr=0.1"),
            (lambda: optimizers.RMSprop(decay=1e-6), "RMSprop does not support decay"),
            (lambda: optimizers.RMSprop(rho=1), "0 <= rho < 1. Received: rho=1"),
            (lambda: optimizers.SGD("fast"), "learning_rate must be a number.* Received: .*'fast'"),
            (lambda: optimizers.Adam(beta_2=float("nan")), "beta_2=nan"),
        ],
    )
    def test_errors(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()
