"""Against outputs of PyTorch and Keras, recorded by data/record*.py: neither is needed here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyconv import kernels
from pyconv.validation import reference
from pyconv.validation.cases import (
    CONV_CASES,
    DENSE_CASES,
    POOL_CASES,
    named,
    norm_layers,
    norm_samples,
    norm_steps,
    norm_weights,
    reals,
    sample,
    tutorial_batch,
    tutorial_weights,
)
from pyconv.validation.reference import UNIT_ROUNDOFF, assert_same, assert_within, sum_bound

DATA = Path(__file__).parent / "data"


def load(stem: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"{stem}.npz", allow_pickle=False) as file:
        return dict(file)


TORCH, KERAS, TUTORIAL = load("torch_ops"), load("keras_ops"), load("tutorial")


def recorded(data, kind: str, table) -> list:
    prefix = f"{kind} "
    names = sorted({key.split("/")[0] for key in data if key.startswith(prefix)})
    return named(table, tuple(name.removeprefix(prefix) for name in names))


def assert_both_round(got, peer, terms, magnitude, what) -> None:
    """Both sides are float32: each may be off by the bound."""
    assert_within(got, peer, 2 * sum_bound(terms, magnitude), what)


# -------------------------------------------------------------------------------- single operations


@pytest.mark.parametrize("case", recorded(TORCH, "conv", CONV_CASES), ids=lambda c: c.name)
def test_conv2d_of_torch(isa, case):
    name = f"conv {case.name}"
    y, dx, dw, db = (TORCH[f"{name}/{key}"] for key in ("y", "dx", "dw", "db"))
    x, w, b = reals(f"{name} x", case.x), reals(f"{name} w", case.w), reals(f"{name} b", db.shape)
    dy = reals(f"{name} dy", y.shape)
    options = case.geometry | {"activation": case.activation}
    magnitude = reference.conv2d(*map(np.abs, (x, w, b)), **case.geometry)
    terms = int(np.prod(case.w[:3])) + 1
    assert_both_round(kernels.conv2d(x, w, b, **options), y, terms, magnitude, f"y {case}")
    # ReLU's mask is that of the recorded y; a y whose sign is within the rounding would be another
    # function.
    magnitudes = reference.conv2d_backward(*map(np.abs, (dy, x, w)), **options, y=y)
    windows = int(np.prod(y.shape[:3]))
    for got, peer, terms, magnitude in zip(
        kernels.conv2d_backward(dy, x, w, **options, y=y),
        (dx, dw, db),
        (int(np.prod(case.kernel)) * case.filters // case.groups, windows, windows),
        magnitudes,
    ):
        assert_both_round(got, peer, terms, magnitude, f"gradient {case}")


@pytest.mark.parametrize("case", recorded(TORCH, "pool", POOL_CASES), ids=lambda c: c.name)
def test_max_pool2d_of_torch(isa, case):
    name = f"pool {case.name}"
    x = reals(f"{name} x", case.x)
    y, argmax = kernels.max_pool2d(x, **case.geometry)
    assert_same(y, TORCH[f"{name}/y"], str(case))
    dy = reals(f"{name} dy", y.shape)
    dx = kernels.max_pool2d_backward(dy, argmax, case.x, **case.geometry)
    pool, strides, _, _ = reference.pool_geometry(case.x, *case.geometry.values())
    terms = -(-pool[0] // strides[0]) * -(-pool[1] // strides[1])
    magnitude = reference.max_pool2d_backward(np.abs(dy), argmax, case.x, **case.geometry)
    assert_both_round(dx, TORCH[f"{name}/dx"], terms, magnitude, str(case))


@pytest.mark.parametrize("case", recorded(TORCH, "dense", DENSE_CASES), ids=lambda c: c.name)
def test_dense_of_torch(isa, case):
    name = f"dense {case.name}"
    y, dx, dw, db = (TORCH[f"{name}/{key}"] for key in ("y", "dx", "dw", "db"))
    x, w, b = (reals(f"{name} {k}", a.shape) for k, a in (("x", dx), ("w", dw), ("b", db)))
    dy = reals(f"{name} dy", y.shape)
    magnitude = reference.dense(*map(np.abs, (x, w, b)))
    got = kernels.dense(x, w, b, case.activation)
    assert_both_round(got, y, case.inputs + 1, magnitude, f"y {case}")
    magnitudes = reference.dense_backward(*map(np.abs, (dy, x, w)), case.activation, y=y)
    for got, peer, terms, magnitude in zip(
        kernels.dense_backward(dy, x, w, case.activation, y=y),
        (dx, dw, db),
        (case.units, case.batch, case.batch),
        magnitudes,
    ):
        assert_both_round(got, peer, terms, magnitude, f"gradient {case}")


def test_softmax_cross_entropy_of_torch(isa):
    logits, labels = 8 * reals("cross_entropy logits", (13, 10)), TORCH["cross_entropy/labels"]
    loss, p, dlogits = kernels.softmax_cross_entropy(logits, labels)
    # The differences to the maximum are below 16: each rounds by 16 u, exp, log and sums of ten add
    # less than as much again (test_pointwise.py has the exact count). Twice that, on values of at
    # most 1, or 16 for the loss.
    bound = 2 * 2 * 16 * UNIT_ROUNDOFF
    assert_within(p, TORCH["cross_entropy/probabilities"], bound, "p")
    assert_within(loss, TORCH["cross_entropy/loss"], 16 * bound, "loss")
    assert_within(dlogits, TORCH["cross_entropy/dlogits"], bound / 13 * 2, "dlogits")


@pytest.mark.parametrize("case", recorded(KERAS, "conv", CONV_CASES), ids=lambda c: c.name)
def test_same_convolution_of_keras(isa, case):
    name = f"conv {case.name}"
    x, w = reals(f"{name} x", case.x), reals(f"{name} w", case.w)
    magnitude = reference.conv2d(np.abs(x), np.abs(w), **case.geometry)
    got = kernels.conv2d(x, w, **case.geometry)
    terms = int(np.prod(case.w[:3]))
    assert_both_round(got, KERAS[f"{name}/y"], terms, magnitude, str(case))


@pytest.mark.parametrize("case", recorded(KERAS, "pool", POOL_CASES), ids=lambda c: c.name)
def test_same_pooling_of_keras(isa, case):
    name = f"pool {case.name}"
    y, _ = kernels.max_pool2d(reals(f"{name} x", case.x), **case.geometry)
    assert_same(y, KERAS[f"{name}/y"], str(case))


@pytest.mark.parametrize("case", recorded(KERAS, "average", POOL_CASES), ids=lambda c: c.name)
def test_average_pooling_of_keras(isa, case):
    name = f"average {case.name}"
    y, dx = (KERAS[f"{name}/{key}"] for key in ("y", "dx"))
    x, dy = reals(f"{name} x", case.x), reals(f"{name} dy", y.shape)
    pool, _, _, _ = reference.pool_geometry(case.x, *case.geometry.values())
    terms = int(np.prod(pool)) + 1  # Keras's sums may run over the window pixel by pixel
    magnitude = reference.avg_pool2d(np.abs(x), **case.geometry)
    assert_both_round(kernels.avg_pool2d(x, **case.geometry), y, terms, magnitude, f"y {case}")
    got = kernels.avg_pool2d_backward(dy, case.x, **case.geometry)
    magnitude = reference.avg_pool2d_backward(np.abs(dy), case.x, **case.geometry)
    assert_both_round(got, dx, terms, magnitude, f"dx {case}")


@pytest.mark.parametrize("case", recorded(KERAS, "depthwise", CONV_CASES), ids=lambda c: c.name)
def test_depthwise_convolution_of_keras(isa, case):
    """Keras's kernel (kh, kw, channels, multiplier) is this one with its axes joined."""
    name = f"depthwise {case.name}"
    y, dx, dw = (KERAS[f"{name}/{key}"] for key in ("y", "dx", "dw"))
    x, w = reals(f"{name} x", case.x), reals(f"{name} w", case.w)
    dy = reals(f"{name} dy", y.shape)
    magnitude = reference.conv2d(np.abs(x), np.abs(w), **case.geometry)
    taps = int(np.prod(case.kernel))
    got = kernels.conv2d(x, w, **case.geometry)
    assert_both_round(got, y, taps, magnitude, f"y {case}")
    gradients = kernels.conv2d_backward(dy, x, w, **case.geometry)
    magnitudes = reference.conv2d_backward(*map(np.abs, (dy, x, w)), **case.geometry)
    terms = (taps * case.filters // case.groups, int(np.prod(y.shape[:3])))
    for mine, peer, count, magnitude in zip(gradients, (dx, dw.reshape(case.w)), terms, magnitudes):
        assert_both_round(mine, peer, count, magnitude, f"gradient {case}")


# --------------------------------------------------------------------------- the tutorial's network


def network_step(ops, weights) -> tuple[float, list[np.ndarray]]:
    """Loss and gradients by `ops`: pyconv.kernels in float32, or the reference in float64."""
    x, labels = tutorial_batch()
    convs, padding = [], ("same", "valid") * 3
    h = x
    for i in range(6):
        w, b = weights[2 * i : 2 * i + 2]
        y = ops.conv2d(h, w, b, padding=padding[i], activation="relu")
        pooled, argmax = ops.max_pool2d(y) if padding[i] == "valid" else (y, None)
        convs.append((h, w, y, argmax))
        h = pooled
    flat = h.reshape(len(h), -1)
    hidden = ops.dense(flat, *weights[12:14], "relu")
    logits = ops.dense(hidden, *weights[14:16])
    loss, _, dlogits = ops.softmax_cross_entropy(logits, labels)

    dh, dw2, db2 = ops.dense_backward(dlogits, hidden, weights[14])
    dh, dw1, db1 = ops.dense_backward(dh, flat, weights[12], "relu", y=hidden)
    gradients = [dw1, db1, dw2, db2]
    dh = dh.reshape(h.shape)
    for i in reversed(range(6)):
        x, w, y, argmax = convs[i]
        if argmax is not None:
            dh = ops.max_pool2d_backward(dh, argmax, y.shape)
        dh, dw, db = ops.conv2d_backward(dh, x, w, padding=padding[i], activation="relu", y=y)
        gradients[:0] = [dw, db]
    return float(np.mean(loss)), gradients


# A float32 run differs from the truth (recorded in float64) by the rounding that sixteen passes
# hand on. No useful bound is known beforehand, a worst case being thousands of times what happens;
# so the yardstick is what float32 runs of PyTorch and Keras got wrong, recorded with the truth: for
# one step PyTorch's error, for ten the largest of Keras's and of 16 runs of PyTorch from weights
# that are off by one unit in the last place (their spread tells how far roundings grow). Another
# order of summation is another draw from the same distribution; the largest of all tensors' draws
# may be some times the yardstick of its tensor: 8.
SLACK = 8


def assert_gradients(loss, gradients, slack) -> None:
    """Loss and gradients against float64, in units of what PyTorch's float32 got wrong."""
    # The loss is a single number and may be hit by luck: what its own format rounds is the least to
    # be allowed.
    unit = max(TUTORIAL["loss_error"], TUTORIAL["loss"] * UNIT_ROUNDOFF)
    assert abs(loss - TUTORIAL["loss"]) <= slack * unit
    assert len(gradients) == 16
    for i, gradient in enumerate(gradients):
        largest = TUTORIAL[f"gradient{i}_largest"]
        allowed = slack * TUTORIAL[f"gradient{i}_error"]
        error = np.abs(sample(gradient) - TUTORIAL[f"gradient{i}"]).max() / largest
        assert error <= allowed, f"gradient {i}: {error:.2g}, allowed {allowed:.2g}"
        norm, truth = np.linalg.norm(gradient.astype(np.float64)), TUTORIAL[f"gradient{i}_norm"]
        # An error of at most `allowed * largest` in each of `size` entries moves the norm by no
        # more than this.
        assert abs(norm - truth) <= allowed * largest * np.sqrt(gradient.size)


def test_the_reference_computes_what_torch_does_in_float64():
    weights = [w.astype(np.float64) for w in tutorial_weights()]
    loss, gradients = network_step(reference, weights)
    # Two float64 runs: 2^-29 of a float32 run's error each, so 2^-20 of it is ample.
    assert_gradients(loss, gradients, 2.0**-20)


def test_kernels_compute_the_tutorials_gradients(isa):
    loss, gradients = network_step(kernels, tutorial_weights())
    assert_gradients(loss, gradients, SLACK)


def losses_off(losses) -> float:
    """How far ten losses are from float64, and from Keras, which has an error of its own.

    In units of what is allowed.
    """
    # The largest so far: an error may come close to 0 by chance.
    error = np.maximum.accumulate(TUTORIAL["losses_error"])
    error = np.maximum(error, TUTORIAL["losses"] * UNIT_ROUNDOFF)
    distances = [
        np.abs(np.array(losses) - TUTORIAL[truth]) / (slack * error)
        for truth, slack in (("losses", SLACK), ("keras_losses", SLACK + 1))
    ]
    return float(np.max(distances))


def weights_off(weights, when) -> float:
    """How far weights are, likewise."""
    return max(
        np.abs(sample(w) - TUTORIAL[truth].astype(np.float64)).max()
        / (slack * TUTORIAL[f"{when}{i}_error"])
        for i, w in enumerate(weights)
        for truth, slack in ((f"{when}{i}", SLACK), (f"keras_{when}{i}", SLACK + 1))
    )


def test_kernels_follow_ten_steps_of_keras_rmsprop(isa, math_mode):
    math_mode("direct")  # the model below multiplies as it does by default
    weights = tutorial_weights()
    velocities = [np.zeros_like(w) for w in weights]
    losses = []
    for step in range(len(TUTORIAL["losses"])):
        loss, gradients = network_step(kernels, weights)
        losses.append(loss)
        for w, dw, velocity in zip(weights, gradients, velocities):
            kernels.rmsprop_step(w, dw, velocity, 1e-3, 0.9, 1e-7)
        if step == 0:
            assert weights_off(weights, "first") <= 1
    assert losses_off(losses) <= 1
    assert weights_off(weights, "last") <= 1


@pytest.mark.parametrize("mode", ["direct", "fp32"])
def test_sequential_follows_keras(isa, math_mode, mode):
    """Ten steps from the weights and, with Winograd's algorithm, from some that are off by a unit.

    Its roundings, some times larger, change the sign of a gradient near 0 in one of about ten such
    runs, and RMSprop's first steps are as long for that one as for any other: such a run is a
    thousand times as far off. So it is the median run that counts.
    """
    math_mode(mode)
    runs = [follow_keras(tutorial_weights(), first=True)]
    if mode == "fp32":
        for seed in range(6):
            up = np.random.default_rng(seed)
            runs.append(
                follow_keras(
                    [
                        np.nextafter(w, np.where(up.random(w.shape) < 0.5, w - 1, w + 1))
                        for w in tutorial_weights()
                    ]
                )
            )
    assert np.median([losses for losses, _ in runs]) <= 1, runs
    assert np.median([weights for _, weights in runs]) <= 1, runs


def follow_keras(weights, first=False) -> tuple[float, float]:
    """Ten steps of a model; how far losses and weights are off then."""
    models = pytest.importorskip("pyconv.models")
    from pyconv.layers import Conv2D, Dense, Flatten, MaxPooling2D

    layers = []
    for filters in (32, 64, 64):
        shape = {} if layers else {"input_shape": (32, 32, 3)}
        layers.append(Conv2D(filters, (3, 3), padding="same", activation="relu", **shape))
        layers.append(Conv2D(filters, (3, 3), activation="relu"))
        layers.append(MaxPooling2D(pool_size=(2, 2)))
    layers += [Flatten(), Dense(512, activation="relu"), Dense(10, activation="softmax")]
    model = models.Sequential(layers)
    model.compile(optimizer="rmsprop", loss="categorical_crossentropy", metrics=["accuracy"])
    model.set_weights(weights)
    x, labels = tutorial_batch()
    losses = []
    for step in range(len(TUTORIAL["losses"])):
        loss, accuracy = model.train_on_batch(x, labels)
        losses.append(loss)
        assert accuracy in (0.0, 0.25, 0.5, 0.75, 1.0)
        if first and step == 0:
            assert_gradients(loss, model.gradients, SLACK)
            assert weights_off(model.get_weights(), "first") <= 1
    return losses_off(losses), weights_off(model.get_weights(), "last")


# ----------------------------------------------------------------------------- batch normalization


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("name", ["trained", "frozen"])
def test_batch_normalization_and_activations_follow_keras(isa, global_policy, name, policy):
    """Five steps of SGD, and inference with the moving averages; also with a frozen layer.

    The truth is Keras's in float64, the yardstick what it got wrong with the same policy, of a
    tensor or, as that may be small by chance, of the median one.
    """
    models = pytest.importorskip("pyconv.models")
    from pyconv import layers, optimizers

    data = load("keras_norm")
    global_policy(policy)
    model = models.Sequential([layers.Input((6, 6, 2)), *norm_layers(layers)])
    model.set_weights(norm_weights([w.shape for w in model.get_weights()]))
    model.layers[1].trainable = name == "trained"
    losses, weights = norm_steps(model, optimizers.SGD(0.1))
    got = {f"weights{i}": w for i, w in enumerate(weights)}
    got |= {"losses": losses, "outputs": model.predict(norm_samples()[0], verbose=0)}
    suffix = "error" if policy == "float32" else "mixed error"
    errors = {key: float(data[f"{name} {key} {suffix}"]) for key in got}
    assert len(got) == 21 and max(errors.values()) < (1e-6 if policy == "float32" else 1e-2)
    typical = np.median(list(errors.values()))
    distances = []
    for key, value in got.items():
        distance = np.abs(np.asarray(value, np.float64) - data[f"{name} {key}"]).max()
        distances.append(distance)
        assert distance <= SLACK * max(errors[key], typical), f"{key}: {distance:.2g}"
    assert np.median(distances) > typical / SLACK  # it is this policy that has been followed
    if name == "frozen":
        for i in range(1, 5):
            assert_same(weights[i], norm_weights([w.shape for w in weights])[i])
