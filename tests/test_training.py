"""Training: gradients, fit, histories, callbacks, progress, interruption, repeatability."""

from __future__ import annotations

import gc
import io
import math
import pickle
import weakref

import numpy as np
import pytest

import pyconv
from pyconv import losses, metrics, optimizers
from pyconv.callbacks import Callback, History, Logs
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
from pyconv.utils import set_random_seed
from pyconv.validation import reference
from recorder import Recorder


def reals(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def one_hot(n, classes=3, seed=0):
    return np.eye(classes, dtype=np.float32)[np.random.default_rng(seed).integers(0, classes, n)]


def dense_model(*, inputs=4, classes=3, dropout=0.0, optimizer="sgd"):
    layers = [Input((inputs,)), Dense(8, activation="relu"), Dropout(dropout)]
    model = Sequential([*layers, Dense(classes, activation="softmax")])
    model.compile(optimizer, "categorical_crossentropy", metrics=["accuracy"])
    return model


def data(n=10):
    return reals(n, 4), one_hot(n)


class TestMeansAndDepths:
    """Average pooling, zero padding and depthwise convolution in one network, step by step."""

    @staticmethod
    def model():
        model = Sequential(
            [
                Input((9, 8, 3)),
                ZeroPadding2D(((0, 1), (0, 1))),
                Conv2D(8, 3, strides=2, activation="relu"),
                ZeroPadding2D(1),
                DepthwiseConv2D(3, activation="relu"),
                ZeroPadding2D((1, 2)),
                AveragePooling2D(2, strides=1, padding="same"),
                DepthwiseConv2D(3, padding="same", depth_multiplier=2, use_bias=False),
                GlobalAveragePooling2D(),
                Dense(3, activation="softmax"),
            ]
        )
        model.compile(optimizers.SGD(0.0), "categorical_crossentropy")
        # Small integers, whose sums up to the mean over 7 x 8 pixels are exact.
        rng = np.random.default_rng(3)
        model.set_weights([rng.integers(-2, 3, w.shape) for w in model.get_weights()])
        return model

    @staticmethod
    def step(x, labels, weights):
        """The gradients, in float64."""
        w1, b1, w2, b2, w3, w4, b4 = (w.astype(np.float64) for w in weights)
        w2, w3 = w2.reshape(3, 3, 1, 8), w3.reshape(3, 3, 1, 16)
        first = {"strides": 2, "padding": ((0, 1), (0, 1)), "activation": "relu"}
        second = {"padding": 1, "groups": 8, "activation": "relu"}
        third = {"padding": "same", "groups": 8}
        y1 = reference.conv2d(x, w1, b1, **first)
        y2 = reference.conv2d(y1, w2, b2, **second)
        padded = reference.pad2d(y2, (1, 2))
        mean = reference.avg_pool2d(padded, 2, 1, "same")
        y3 = reference.conv2d(mean, w3, None, **third)
        features = y3.mean(axis=(1, 2))
        logits = reference.dense(features, w4, b4)
        dlogits = reference.softmax_cross_entropy(logits, labels)[2]
        d_features, dw4, db4 = reference.dense_backward(dlogits, features, w4)
        share = d_features[:, None, None] / (y3.shape[1] * y3.shape[2])
        dy3 = np.broadcast_to(share, y3.shape)
        d_mean, dw3, _ = reference.conv2d_backward(dy3, mean, w3, **third)
        d_padded = reference.avg_pool2d_backward(d_mean, padded.shape, 2, 1, "same")
        dy2 = reference.pad2d_backward(d_padded, (1, 2))
        dy1, dw2, db2 = reference.conv2d_backward(dy2, y1, w2, **second, y=y2)
        dw1, db1 = reference.conv2d_backward_weights(dy1, x, w1.shape, **first, y=y1)
        dw2, dw3 = dw2.reshape(3, 3, 8, 1), dw3.reshape(3, 3, 8, 2)
        return [dw1, db1, dw2, db2, dw3, dw4, db4]

    def test_gradients(self, target):
        model = self.model()
        x = np.random.default_rng(4).integers(-2, 3, (4, 9, 8, 3)).astype(np.float32)
        x /= 256  # or the softmax would be saturated, and its gradients 0
        labels = one_hot(4)
        model.train_on_batch(x, labels)
        expected = self.step(x, labels, model.get_weights())
        for got, want in zip(model.gradients, expected, strict=True):
            # Sums of a few hundred terms: 1e-5 of the largest is a hundred roundings.
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
            assert np.abs(want).max() > 1e-6

    def test_a_depthwise_layer_before_a_fused_pooling(self):
        """The gradient of the two goes through both in one kernel."""
        model = Sequential(
            [
                Input((9, 8, 3)),
                ZeroPadding2D(1),
                DepthwiseConv2D(3, depth_multiplier=2, activation="relu"),
                ZeroPadding2D(1),
                Conv2D(5, 3, activation="relu"),
                MaxPooling2D(2),
                Flatten(),
                Dense(3, activation="softmax"),
            ]
        )
        model.compile(optimizers.SGD(0.0), "categorical_crossentropy")
        x, labels = reals(4, 9, 8, 3), one_hot(4)
        model.train_on_batch(x, labels)
        w1, b1, w2, b2, w3, b3 = (w.astype(np.float64) for w in model.get_weights())
        first = {"padding": 1, "groups": 3, "activation": "relu"}
        second = {"padding": 1, "activation": "relu"}
        w1 = w1.reshape(3, 3, 1, 6)
        y1 = reference.conv2d(x, w1, b1, **first)
        y2 = reference.conv2d(y1, w2, b2, **second)
        y3, argmax = reference.max_pool2d(y2)
        flat = y3.reshape(4, -1)
        dlogits = reference.softmax_cross_entropy(reference.dense(flat, w3, b3), labels)[2]
        d_flat, dw3, db3 = reference.dense_backward(dlogits, flat, w3)
        dy2 = reference.max_pool2d_backward(d_flat.reshape(y3.shape), argmax, y2.shape)
        dy1, dw2, db2 = reference.conv2d_backward(dy2, y1, w2, **second, y=y2)
        dw1, db1 = reference.conv2d_backward_weights(dy1, x, w1.shape, **first, y=y1)
        expected = [dw1.reshape(3, 3, 3, 2), db1, dw2, db2, dw3, db3]
        for got, want in zip(model.gradients, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())

    def test_learns(self):
        set_random_seed(1)
        model = self.model()
        model = Sequential.from_config(model.get_config())
        model.compile(optimizers.Adam(0.01), "categorical_crossentropy")
        x = reals(24, 9, 8, 3)
        labels = np.eye(3, dtype=np.float32)[x.mean(axis=(1, 2)).argmax(axis=-1)]
        losses_ = model.fit(x, labels, epochs=60, verbose=0).history["loss"]
        assert losses_[-1] < 0.5 * losses_[0]


class TestGradients:
    """Against finite differences of the same network in float64 (built of the reference)."""

    SHAPE = (6, 7, 2)

    @staticmethod
    def layers(end):
        return [
            Input(TestGradients.SHAPE),
            Conv2D(4, 3, padding="same", activation="relu"),
            Conv2D(4, (3, 2), strides=(1, 2), groups=2, use_bias=False),
            Activation("relu"),
            MaxPooling2D(2, padding="same"),
            Dropout(0.25, seed=11),
            Dense(5),
            Dropout(0.5, seed=12),
            Activation("relu"),
            Flatten(),
            Dense(3, activation=end),
        ]

    @staticmethod
    def logits(weights, x, magnitudes=False):
        """The network; or a polynomial of absolute values that bounds it term by term."""
        if magnitudes:
            weights, x = [np.abs(w) for w in weights], np.abs(x)
        w1, b1, w2, w3, b3, w4, b4 = weights
        y = reference.conv2d(x, w1, b1, padding="same", activation="relu")
        y = reference.conv2d(y, w2, None, (1, 2), groups=2, activation="relu")
        if magnitudes:  # whichever pixel is the largest, it is part of the sum
            y = reference.conv2d(y, np.ones((2, 2, 1, 4)), None, 2, "same", groups=4)
        else:
            y = reference.max_pool2d(y, 2, padding="same")[0]
        y = reference.dropout(y, 0.25, 11)
        y = reference.relu(reference.dropout(reference.dense(y.reshape(-1, 4), w3, b3), 0.5, 12))
        return reference.dense(y.reshape(len(x), -1), w4, b4)

    @pytest.mark.parametrize(
        ("end", "loss"),
        [
            ("softmax", losses.CategoricalCrossentropy()),
            ("softmax", losses.CategoricalCrossentropy(label_smoothing=0.2)),
            (None, losses.CategoricalCrossentropy(from_logits=True)),
            ("softmax", "squares"),
        ],
    )
    def test_finite_differences(self, end, loss):
        class Squares(losses.Loss):
            def losses(self, y_true, y_pred):
                return ((y_true - y_pred) ** 2).sum(axis=-1)

            def gradient(self, y_true, y_pred):
                return 2 * (y_pred - y_true) / len(y_true)

        if loss == "squares":
            loss = Squares()
        set_random_seed(5)
        model = Sequential(self.layers(end))
        x, y = reals(3, *self.SHAPE), one_hot(3)
        # Small, because the bound below grows faster with the weights than the gradients do.
        model.set_weights([0.05 * reals(*w.shape, seed=9) for w in model.get_weights()])
        model.compile(optimizers.SGD(0.0), loss)
        weights = [w.astype(np.float64) for w in model.get_weights()]

        def value(weights):
            logits = self.logits(weights, x)
            if isinstance(loss, Squares):
                return loss.losses(y, reference.softmax(logits)).mean()
            labels = loss.smooth(y.astype(np.float64))
            return reference.softmax_cross_entropy(logits, labels)[0].mean()

        # To first order, the float32 result is off by 2^-24 per rounding that a term passes, times
        # the sum of the magnitudes of the terms. Forward, a term passes the sums of the layers, of
        # 18 + 1, 12 + 1, 4 + 1 and 20 + 1 terms, and two dropouts: 60. Then the softmax and the
        # loss, 10, and backward sums of 3, 5 and 12 terms, two dropouts, and 3 images of 42 pixels:
        # fewer than 256. The derivatives g of a sample's loss with respect to its logits are at
        # most 1: p - t, and 2 p_j (e_j - m) with e = p - t, m = sum e p. An error of up to d in the
        # logits changes p_j by at most 2 p_j (1 - p_j) d <= d / 2, all p together by 4 / 3 d, and
        # so g by at most d / 2 for the cross-entropy and 2 (d / 2) 2 + 2 (d / 2 + d / 2 + 4 / 3 d)
        # < 7 d for the squares.
        curvature = 7 if isinstance(loss, Squares) else 0.5
        largest_logit = self.logits(weights, x, magnitudes=True).max()
        per_logit = 2**-24 * (256 + 60 * curvature * largest_logit) / len(x)

        measured = model.train_on_batch(x, y)
        assert measured == pytest.approx(
            value(weights), rel=0, abs=2**-24 * 70 * (1 + 2 * largest_logit)
        )

        # h balances the truncation error, h^2, with rounding, 2^-53 / h: both are about 1e-10 of
        # the loss.
        h = 1e-5
        for gradient, w in zip(model.gradients, weights):
            expected, bound = np.zeros_like(w), np.zeros_like(w)
            total = self.logits(weights, x, magnitudes=True).sum()
            for index in np.ndindex(w.shape):
                kept = w[index]
                w[index] = kept + h
                above = value(weights)
                w[index] = kept - h
                expected[index] = (above - value(weights)) / (2 * h)
                # The polynomial is linear in every single weight.
                w[index] = np.abs(kept) + 1
                bound[index] = self.logits(weights, x, magnitudes=True).sum() - total
                w[index] = kept
            tolerance = per_logit * bound + 1e-9
            assert (np.abs(gradient - expected) <= tolerance).all()
            # A bound as large as the gradients would let anything pass.
            assert tolerance.max() < 0.05 * np.abs(expected).max()

    def test_gradients_are_overwritten(self):
        model = dense_model(optimizer=optimizers.SGD(0.0))
        x, y = data()
        model.train_on_batch(x, y)
        first = [g.copy() for g in model.gradients]
        model.train_on_batch(x, y)
        assert [g.shape for g in model.gradients] == [w.shape for w in model.get_weights()]
        for a, b in zip(first, model.gradients):
            np.testing.assert_array_equal(a, b)

    def test_fused_and_plain_loss_agree(self):
        """from_logits, softmax at the end, and the formula on probabilities give the same step."""

        formulas = losses.CategoricalCrossentropy()

        class Plain(losses.Loss):
            losses, gradient = formulas.losses, formulas.gradient

        x, y = data()
        gradients, values = [], []
        for end, loss in [
            ("softmax", "categorical_crossentropy"),
            ("softmax", Plain()),
            (None, losses.CategoricalCrossentropy(from_logits=True)),
        ]:
            set_random_seed(1)
            model = Sequential([Input((4,)), Dense(8, "relu"), Dense(3, end)])
            model.compile("sgd", loss)
            values.append(model.train_on_batch(x, y))
            gradients.append(np.concatenate([g.ravel() for g in model.gradients]))
        np.testing.assert_allclose(values, values[0], rtol=1e-6)
        # The plain formula divides by p and multiplies by it again: a few roundings, relative to
        # terms below 1.
        np.testing.assert_allclose(gradients[1], gradients[0], atol=32 * 2**-23)
        np.testing.assert_array_equal(gradients[2], gradients[0])

    def test_a_softmax_and_from_logits_is_probably_a_mistake(self):
        model = dense_model()
        model.compile("sgd", losses.CategoricalCrossentropy(from_logits=True))
        with pytest.warns(UserWarning, match="the model ends in a softmax"):
            model.train_on_batch(*data())

    def test_dropout_follows_the_step(self):
        def steps():
            set_random_seed(1)
            model = dense_model(dropout=0.5, optimizer=optimizers.SGD(0.0))
            return [model.train_on_batch(*data())[0] for _ in range(3)]

        first = steps()
        assert len(set(first)) == 3
        assert steps() == first


class TestOnBatch:
    def test_values(self):
        model = dense_model(optimizer=optimizers.SGD(0.1))
        x, y = data()
        p = model.predict_on_batch(x)
        loss = -np.log((p * y).sum(axis=1).astype(np.float64)).mean()
        accuracy = (p.argmax(1) == y.argmax(1)).mean()
        for method in (model.test_on_batch, model.train_on_batch):
            np.testing.assert_allclose(method(x, y), [loss, accuracy], rtol=1e-6)
        result = model.test_on_batch(x, y, return_dict=True)
        assert list(result) == ["loss", "accuracy"]
        assert result["acc"] == result["accuracy"]
        assert result["loss"] < loss
        model.compile("sgd", "categorical_crossentropy")
        assert isinstance(model.test_on_batch(x, y), float)

    def test_one_step_of_sgd(self):
        model = dense_model(optimizer=optimizers.SGD(0.5))
        before = model.get_weights()
        model.train_on_batch(*data())
        for w0, w1, g in zip(before, model.get_weights(), model.gradients):
            np.testing.assert_allclose(w1, w0 - 0.5 * g, rtol=0, atol=2**-23)
        assert model.optimizer.iterations == 1

    def test_plans_grow_and_are_kept(self):
        model = dense_model()
        model.train_on_batch(*data(4))
        plan = model._training_plan
        model.train_on_batch(*data(3))
        assert model._training_plan is plan
        model.train_on_batch(*data(9))
        assert model._training_plan.capacity == 9
        model.predict(data(5)[0], verbose=0)
        plan = model._inference_plan
        model.test_on_batch(*data(2))
        assert model._inference_plan is plan

    def test_the_batch_is_left_alone(self):
        x, y = data()
        model = Sequential([Input((4,)), Dropout(0.5), Activation("relu"), Dense(3, "softmax")])
        model.compile("sgd", "categorical_crossentropy")
        copies = x.copy(), y.copy()
        for array in (x, y):
            array.flags.writeable = False
        model.train_on_batch(x, y)
        model.fit(x, y, verbose=0, shuffle=False)
        np.testing.assert_array_equal(x, copies[0])
        np.testing.assert_array_equal(y, copies[1])


class TestFit:
    def test_overfits_a_batch(self):
        set_random_seed(1)
        model = Sequential([Conv2D(8, 3, activation="relu", input_shape=(6, 6, 1))])
        model.add(MaxPooling2D())
        model.add(Flatten())
        model.add(Dense(3, activation="softmax"))
        model.compile(optimizers.Adam(0.02), "categorical_crossentropy", metrics=["accuracy"])
        x, y = reals(8, 6, 6, 1), one_hot(8)
        history = model.fit(x, y, batch_size=8, epochs=60, verbose=0)
        assert history.history["loss"][-1] < 0.05 * history.history["loss"][0]
        assert history.history["accuracy"][-1] == 1

    @pytest.mark.parametrize("optimizer", ["rmsprop", "adam", optimizers.SGD(0.1, momentum=0.9)])
    def test_learns_what_can_be_learned(self, optimizer):
        set_random_seed(1)
        x = reals(400, 4)
        y = np.eye(2)[(x[:, 0] * x[:, 1] > 0).astype(int)]  # not linear
        model = dense_model(classes=2, optimizer=optimizer)
        model.optimizer.learning_rate *= 10 if isinstance(optimizer, str) else 1
        model.fit(x, y, batch_size=16, epochs=20, verbose=0)
        held_out = reals(200, 4, seed=1)
        labels = np.eye(2)[(held_out[:, 0] * held_out[:, 1] > 0).astype(int)]
        assert model.evaluate(held_out, labels, verbose=0)[1] > 0.9

    @pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 99])
    def test_means_are_weighted_by_samples(self, batch_size):
        model = dense_model(optimizer=optimizers.SGD(0.0))
        x, y = data(10)
        p = model.predict(x, verbose=0).astype(np.float64)
        expected = [-np.log((p * y).sum(axis=1)).mean(), (p.argmax(1) == y.argmax(1)).mean()]
        evaluated = model.evaluate(x, y, batch_size, verbose=0)
        np.testing.assert_allclose(evaluated, expected, rtol=1e-6)
        history = model.fit(x, y, batch_size, verbose=0, validation_data=(x, y)).history
        np.testing.assert_allclose([history[k][0] for k in ("loss", "acc")], expected, rtol=1e-6)
        assert [history["val_loss"][0], history["val_acc"][0]] == evaluated
        assert model.evaluate(x, y, batch_size, verbose=0, return_dict=True)["acc"] == evaluated[1]

    def test_partial_batches_train(self):
        """fit makes the steps that train_on_batch makes by hand, the smaller last one included."""
        x, y = data(10)
        models = []
        for _ in range(2):
            set_random_seed(2)
            models.append(dense_model(dropout=0.5, optimizer="rmsprop"))
        models[0].fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
        for _ in range(2):
            for first in (0, 4, 8):
                models[1].train_on_batch(x[first : first + 4], y[first : first + 4])
        for a, b in zip(models[0].get_weights(), models[1].get_weights()):
            np.testing.assert_array_equal(a, b)
        assert models[0].optimizer.iterations == 6

    def test_every_epoch_is_a_new_permutation(self):
        seen = []

        class Spy(Sequential):
            def _train_step(self, x, y, means, *more):
                seen.append((x.copy(), y.copy()))
                super()._train_step(x, y, means, *more)

        x, y = (
            np.arange(40, dtype=np.float32).reshape(10, 4),
            np.repeat(np.arange(10), 3).reshape(10, 3),
        )
        model = Spy([Input((4,)), Dense(3, "softmax")])
        model.compile("sgd", "categorical_crossentropy")
        model.fit(x, y, batch_size=4, epochs=2, verbose=0)
        assert [len(batch) for batch, _ in seen] == [4, 4, 2] * 2
        epochs = [[np.concatenate(parts) for parts in zip(*seen[i : i + 3])] for i in (0, 3)]
        for xs, ys in epochs:
            np.testing.assert_array_equal(np.sort(xs[:, 0]), x[:, 0])
            np.testing.assert_array_equal(xs[:, 0] / 4, ys[:, 0])  # x and y stay together
        assert (epochs[0][0] != epochs[1][0]).any()

    @pytest.mark.parametrize("shuffle", [False, True])
    @pytest.mark.parametrize("dtype", [np.uint8, np.float64, np.float16, ">f4"])
    def test_other_numbers_are_converted(self, dtype, shuffle):
        x = np.random.default_rng(0).integers(0, 9, (10, 4))
        results = []
        for given in (x.astype(np.float32), x.astype(dtype), np.asfortranarray(x.astype(dtype))):
            set_random_seed(1)
            model = dense_model()
            model.fit(given, one_hot(10).astype(int), 4, 2, verbose=0, shuffle=shuffle)
            results.append(model.get_weights()[0])
        np.testing.assert_array_equal(results[0], results[1])
        np.testing.assert_array_equal(results[0], results[2])

    def test_validation_split(self):
        x, y = data(10)
        model = dense_model(optimizer=optimizers.SGD(0.0))
        history = model.fit(x, y, validation_split=0.25, verbose=0)
        assert history.params["samples"] == 7
        assert history.history["val_loss"] == [model.evaluate(x[7:], y[7:], verbose=0)[0]]
        assert history.history["loss"] == pytest.approx(
            [model.evaluate(x[:7], y[:7], verbose=0)[0]]
        )

    def test_initial_epoch(self):
        model = dense_model()
        history = model.fit(*data(), epochs=5, initial_epoch=3, verbose=0)
        assert history.epoch == [3, 4]
        assert model.fit(*data(), epochs=0, verbose=0).epoch == []

    def test_a_loss_of_nan_does_not_stop_training(self):
        model = dense_model()
        x, y = data()
        history = model.fit(np.full_like(x, np.nan), y, epochs=2, verbose=0)
        assert [math.isnan(loss) for loss in history.history["loss"]] == [True, True]

    def test_same_seed_same_bits(self):
        def train(seed, threads):
            pyconv.set_num_threads(threads)
            set_random_seed(seed)
            model = Sequential([Conv2D(8, 3, activation="relu"), MaxPooling2D(), Dropout(0.3)])
            model.add(Flatten())
            model.add(Dense(3, activation="softmax"))
            model.compile("rmsprop", "categorical_crossentropy")
            model.fit(reals(20, 8, 8, 2), one_hot(20), batch_size=6, epochs=2, verbose=0)
            return np.concatenate([w.ravel() for w in model.get_weights()])

        before = pyconv.get_num_threads()
        try:
            results = [train(1, 1), train(1, 2), train(2, 1)]
        finally:
            pyconv.set_num_threads(before)
        np.testing.assert_array_equal(results[0], results[1])
        assert (results[0] != results[2]).any()

    def test_compile_again_keeps_the_weights(self):
        model = dense_model()
        model.fit(*data(), verbose=0)
        weights = model.get_weights()
        model.compile("adam", "categorical_crossentropy")
        np.testing.assert_array_equal(model.get_weights()[0], weights[0])
        assert model.optimizer.iterations == 0
        model.fit(*data(), verbose=0)

    def test_an_optimizer_serves_one_model(self):
        optimizer = optimizers.RMSprop()
        dense_model(optimizer=optimizer).train_on_batch(*data())
        with pytest.raises(ValueError, match="belongs to another model"):
            dense_model(optimizer=optimizer, classes=50).train_on_batch(data()[0], one_hot(10, 50))

    def test_a_metric_of_ones_own(self):
        class Confidence(metrics.Metric):
            def values(self, y_true, y_pred):
                return y_pred.max(axis=-1)

        model = dense_model()
        model.compile("sgd", "categorical_crossentropy", ["accuracy", Confidence("confidence")])
        x, y = data()
        expected = model.predict(x, verbose=0).max(axis=1).mean()
        assert model.evaluate(x, y, 3, verbose=0)[2] == pytest.approx(expected, rel=1e-6)


class TestHistory:
    def test_both_names(self):
        history = dense_model().fit(*data(), epochs=2, verbose=0, validation_data=data()).history
        assert list(history) == ["loss", "accuracy", "val_loss", "val_accuracy"]
        for prefix in ("", "val_"):
            assert history[f"{prefix}acc"] is history[f"{prefix}accuracy"]
            assert history.get(f"{prefix}acc") is history[f"{prefix}accuracy"]
            assert f"{prefix}acc" in history
            assert len(history[f"{prefix}acc"]) == 2
        assert history.get("lr", 3) == 3
        assert "lr" not in history
        with pytest.raises(KeyError, match="lr"):
            _ = history["lr"]
        assert pickle.loads(pickle.dumps(history)) == history

    def test_without_accuracy(self):
        logs = Logs(loss=1.0)
        assert "acc" not in logs
        assert logs.get("acc") is None
        with pytest.raises(KeyError, match="'acc'"):
            _ = logs["acc"]

    def test_memory_is_free_at_once(self):
        """No cycles: dropped models need not wait for the garbage collector."""
        gc.collect()
        gc.disable()
        try:
            model = dense_model()
            history = model.fit(*data(), validation_data=data(), verbose=0)
            model.predict(data()[0], verbose=0)
            dropped = weakref.ref(model)
            del model
            assert dropped() is None and history.model is None
        finally:
            gc.enable()

    def test_what_fit_returns(self):
        model = dense_model()
        assert model.history is None
        history = model.fit(*data(), epochs=2, batch_size=4, verbose=0)
        assert isinstance(history, History)
        assert model.history is history
        assert history.model is model
        assert history.epoch == [0, 1]
        assert not history.interrupted
        assert history.params == {
            "epochs": 2,
            "steps": 3,
            "samples": 10,
            "batch_size": 4,
            "verbose": 0,
        }


class TestCallbacks:
    def test_order(self):
        recorder = Recorder()
        dense_model().fit(*data(10), batch_size=5, verbose=0, callbacks=[recorder])
        assert [call[:2] for call in recorder.calls] == [
            ("on_train_begin", None),
            ("on_epoch_begin", 0),
            ("on_train_batch_begin", 0),
            ("on_train_batch_end", 0),
            ("on_train_batch_begin", 1),
            ("on_train_batch_end", 1),
            ("on_epoch_end", 0),
            ("on_train_end", recorder.calls[-2][2]),
        ]
        assert list(recorder.calls[3][2]) == ["loss", "accuracy"]

    def test_aliases_and_running_means(self):
        class Batches(Callback):
            losses = ()

            def on_batch_begin(self, batch, logs=None):
                self.begun = batch

            def on_batch_end(self, batch, logs=None):
                assert self.begun == batch
                self.losses = (*self.losses, logs["loss"])

        batches = Batches()
        model = dense_model(optimizer=optimizers.SGD(0.0))
        x, y = data(10)
        history = model.fit(x, y, batch_size=4, verbose=0, shuffle=False, callbacks=batches)
        assert batches.losses[0] == pytest.approx(model.evaluate(x[:4], y[:4], verbose=0)[0])
        assert batches.losses[-1] == history.history["loss"][0]

    def test_additions_to_the_logs_get_into_the_history(self):
        class LearningRate(Callback):
            def on_epoch_end(self, epoch, logs=None):
                logs["learning_rate"] = self.model.optimizer.learning_rate

        history = dense_model().fit(*data(), verbose=0, callbacks=[LearningRate()])
        assert history.history["learning_rate"] == [0.01]

    @pytest.mark.parametrize("hook", ["on_train_batch_end", "on_epoch_end"])
    def test_stop_training(self, hook):
        class Stop(Callback):
            pass

        setattr(Stop, hook, lambda self, *_: setattr(self.model, "stop_training", True))
        model = dense_model()
        history = model.fit(*data(10), batch_size=5, epochs=4, verbose=0, callbacks=[Stop()])
        assert history.epoch == [0]
        assert not history.interrupted
        assert model.optimizer.iterations == (1 if hook == "on_train_batch_end" else 2)
        assert model.fit(*data(10), epochs=2, verbose=0).epoch == [0, 1]

    @pytest.mark.parametrize("verbose", [0, 2])
    def test_interrupt(self, capsys, verbose):
        class ControlC(Callback):
            ended = False

            def on_train_batch_end(self, batch, logs=None):
                if self.model.optimizer.iterations == 5:
                    raise KeyboardInterrupt

            def on_train_end(self, logs=None):
                self.ended = True

        model, callback = dense_model(), ControlC()
        history = model.fit(*data(10), 5, epochs=9, verbose=verbose, callbacks=[callback])
        assert history.interrupted
        assert model.history is history
        assert history.epoch == [0, 1]
        assert len(history.history["loss"]) == 2
        assert callback.ended
        assert model.optimizer.iterations == 5
        printed = capsys.readouterr().out
        assert ("interrupted after 2 complete epochs" in printed) == bool(verbose)
        assert np.isfinite(model.evaluate(*data(), verbose=0)).all()
        assert not model.fit(*data(), verbose=0).interrupted

    def test_other_exceptions_pass(self):
        class Broken(Callback):
            def on_epoch_begin(self, epoch, logs=None):
                raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            dense_model().fit(*data(), callbacks=[Broken()])


class Terminal(io.StringIO):
    def isatty(self):
        return True


class TestProgress:
    @pytest.mark.parametrize("verbose", ["auto", 1, 2])
    def test_a_line_per_epoch_outside_a_terminal(self, capsys, verbose):
        dense_model().fit(*data(), epochs=2, verbose=verbose, validation_data=data())
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 2
        for epoch, line in enumerate(lines, 1):
            assert line.startswith(f"Epoch {epoch}/2 - ")
            for part in ("images/s", "loss: ", "accuracy: ", "val_loss: ", "val_accuracy: "):
                assert part in line

    def test_silence(self, capsys):
        model = dense_model()
        model.fit(*data(), verbose=0)
        model.evaluate(*data(), verbose=0)
        model.predict(data()[0], 2)
        assert capsys.readouterr() == ("", "")

    def test_a_bar_in_a_terminal(self, monkeypatch):
        terminal = Terminal()
        monkeypatch.setattr("sys.stdout", terminal)
        model = dense_model()
        model.fit(*data(10), batch_size=4, epochs=2, validation_data=data())
        text = terminal.getvalue()
        assert text.startswith("Epoch 1/2\n")
        assert "\nEpoch 2/2\n" in text
        assert "100%" in text
        assert "10/10" in text
        last = text.rstrip().splitlines()[-1]
        for part in ("images/s", ", loss: ", ", accuracy: ", ", val_loss: ", ", val_accuracy: "):
            assert part in last

        terminal.truncate(0)
        model.evaluate(*data(10), batch_size=4)
        assert "10/10" in terminal.getvalue()
        assert "accuracy: " in terminal.getvalue()

        terminal.truncate(0)
        model.predict(data(10)[0], batch_size=4)
        assert "10/10" in terminal.getvalue()
        terminal.truncate(0)
        model.predict(data(10)[0])
        assert terminal.getvalue() == ""

    def test_the_bar_is_closed_when_training_is_interrupted(self, monkeypatch):
        class Interrupt(Callback):
            def on_train_batch_end(self, batch, logs=None):
                raise KeyboardInterrupt

        terminal = Terminal()
        monkeypatch.setattr("sys.stdout", terminal)
        dense_model().fit(*data(), callbacks=[Interrupt()])
        assert terminal.getvalue().endswith(
            "\nTraining was interrupted after 0 complete epochs; the model keeps the weights of "
            "its last step.\n"
        )

    def test_evaluate_outside_a_terminal(self, capsys):
        dense_model().evaluate(*data())
        assert capsys.readouterr().out.startswith("Evaluation - ")

    def test_odd_values_in_the_logs(self, capsys):
        class Odd(Callback):
            def on_epoch_end(self, epoch, logs=None):
                logs |= {"note": "good", "learning_rate": 1e-5}

        dense_model().fit(*data(), callbacks=Odd())
        assert "note: good - learning_rate: 1.0000e-05" in capsys.readouterr().out
