# ruff: noqa: E402 - the backend and the path are chosen before the imports
"""Records what PyTorch and Keras compute, for tests/test_recorded.py. Run by hand, where both are
installed:

    pip install torch tensorflow keras
    OMP_NUM_THREADS=1 KERAS_BACKEND=tensorflow python tests/data/record.py

Writes torch_ops.npz, keras_ops.npz and tutorial.npz beside itself, and prints the versions, which
tutorial.npz keeps. Inputs are not stored: pyconv/validation/cases.py makes them again from
counters.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]  # the tests, and pyconv

import keras
import numpy as np
import tensorflow
import torch
import torch.nn.functional as F

from pyconv.validation.cases import (
    CONV_CASES,
    DENSE_CASES,
    POOL_CASES,
    named,
    reals,
    sample,
    tutorial_batch,
    tutorial_weights,
)
from pyconv.validation.reference import conv_geometry, pool_geometry

TORCH_CONVS = (
    *("in3_out17", "in8_out31", "k1x1_stride2", "k5x5", "stride3x2", "dilation2_stride2"),
    *("groups3", "depthwise3_x2", "pad_asymmetric", "stride_above_kernel", "k7x7"),
)
TORCH_POOLS = ("channels17", "pool3_stride2", "pool2x3", "pad1")
TORCH_DENSES = ("n1", "n13", "in17_out48")
KERAS_CONVS = (
    *("k2x2_same_stride2", "stride2_same_even", "stride2_same_odd", "stride3_same"),
    *("k7x7_same_stride2", "k_above_input_same_stride2", "stride_above_kernel_same", "k4x4_same"),
)
KERAS_POOLS = ("pool2_same_odd", "pool2_same_stride1", "pool3_stride2_same", "pool3_stride1_same")
KERAS_POOLS += ("pool_above_image_same_stride3", "stride_above_pool_same")
KERAS_AVERAGES = (*KERAS_POOLS, "channels17", "pool3_stride2", "whole_image")
KERAS_DEPTHWISE = ("depthwise3_x2", "depthwise16_x2", "depthwise_stride2_same", "depthwise5_x3")


def leaf(array):
    return torch.tensor(array, requires_grad=True)


def to_nchw(x):
    return x.permute(0, 3, 1, 2)


def to_nhwc(x):
    return x.permute(0, 2, 3, 1)


# -------------------------------------------------------------------------------- single operations


def torch_ops() -> dict[str, np.ndarray]:
    out = {}

    def keep(name, y, *leaves):
        y.backward(torch.tensor(reals(f"{name} dy", tuple(y.shape))))
        for key, value in zip(("y", "dx", "dw", "db"), (y, *(array.grad for array in leaves))):
            out[f"{name}/{key}"] = value.detach().numpy()

    for case in named(CONV_CASES, TORCH_CONVS):
        strides, dilation, (rows, columns), _ = conv_geometry(
            case.x, case.w, *case.geometry.values()
        )
        name = f"conv {case.name}"
        x, w = leaf(reals(f"{name} x", case.x)), leaf(reals(f"{name} w", case.w))
        b = leaf(reals(f"{name} b", (case.filters,)))
        y = F.conv2d(
            F.pad(to_nchw(x), (*columns, *rows)),
            w.permute(3, 2, 0, 1),
            b,
            stride=strides,
            dilation=dilation,
            groups=case.groups,
        )
        keep(name, to_nhwc(y).relu() if case.activation else to_nhwc(y), x, w, b)
    for case in named(POOL_CASES, TORCH_POOLS):
        pool, strides, ((top, _), (left, _)), _ = pool_geometry(case.x, *case.geometry.values())
        name = f"pool {case.name}"
        x = leaf(reals(f"{name} x", case.x))
        keep(name, to_nhwc(F.max_pool2d(to_nchw(x), pool, strides, (top, left))), x)
    for case in named(DENSE_CASES, TORCH_DENSES):
        name = f"dense {case.name}"
        x, w = (
            leaf(reals(f"{name} x", (case.batch, case.inputs))),
            leaf(reals(f"{name} w", (case.inputs, case.units))),
        )
        b = leaf(reals(f"{name} b", (case.units,)))
        y = F.linear(x, w.T, b)
        keep(name, y.relu() if case.activation else y, x, w, b)
    logits = leaf(8 * reals("cross_entropy logits", (13, 10)))
    labels = torch.softmax(torch.tensor(reals("cross_entropy labels", (13, 10))), dim=-1)
    out["cross_entropy/labels"] = labels.numpy()
    loss = F.cross_entropy(logits, labels, reduction="none")
    loss.mean().backward()
    out["cross_entropy/loss"] = loss.detach().numpy()
    out["cross_entropy/probabilities"] = torch.softmax(logits, -1).detach().numpy()
    out["cross_entropy/dlogits"] = logits.grad.numpy()
    return out


def keras_ops() -> dict[str, np.ndarray]:
    out = {}
    for case in named(CONV_CASES, KERAS_CONVS):
        name = f"conv {case.name}"
        y = keras.ops.conv(
            reals(f"{name} x", case.x),
            reals(f"{name} w", case.w),
            strides=case.strides,
            padding="same",
            data_format="channels_last",
        )
        out[f"{name}/y"] = keras.ops.convert_to_numpy(y)
    for case in named(POOL_CASES, KERAS_POOLS):
        name = f"pool {case.name}"
        y = keras.ops.max_pool(
            reals(f"{name} x", case.x), case.pool_size, case.strides, "same", "channels_last"
        )
        out[f"{name}/y"] = keras.ops.convert_to_numpy(y)

    def keep(name, function, **inputs):
        """The outputs, and the gradients with respect to the inputs."""
        variables = {f"d{key}": tensorflow.Variable(value) for key, value in inputs.items()}
        with tensorflow.GradientTape() as tape:
            y = function(*variables.values())
        dy = tensorflow.constant(reals(f"{name} dy", tuple(y.shape)))
        out[f"{name}/y"] = y.numpy()
        for key, gradient in tape.gradient(y, variables, dy).items():
            out[f"{name}/{key}"] = gradient.numpy()

    for case in named(POOL_CASES, KERAS_AVERAGES):
        name = f"average {case.name}"
        layer = keras.layers.AveragePooling2D(case.pool_size, case.strides, case.padding)
        keep(name, layer, x=reals(f"{name} x", case.x))
    for case in named(CONV_CASES, KERAS_DEPTHWISE):
        name = f"depthwise {case.name}"
        multiplier = case.filters // case.groups
        pad = keras.layers.ZeroPadding2D(0 if case.padding == "same" else case.padding)
        padding = "same" if case.padding == "same" else "valid"

        def depthwise(x, w, strides=case.strides, pad=pad, padding=padding):
            return keras.ops.depthwise_conv(pad(x), w, strides, padding, "channels_last")

        w = reals(f"{name} w", case.w).reshape(*case.kernel, case.groups, multiplier)
        keep(name, depthwise, x=reals(f"{name} x", case.x), w=w)
    return out


# -------------------------------------------------------------------------------------- the network


def torch_step(weights, dtype):
    """Loss and gradients of the tutorial's network without dropout."""
    x, labels = tutorial_batch()
    leaves = [torch.tensor(w, dtype=dtype, requires_grad=True) for w in weights]
    h = to_nchw(torch.tensor(x, dtype=dtype))
    for i, same in zip(range(0, 12, 2), (1, 0) * 3):
        h = F.relu(F.conv2d(h, leaves[i].permute(3, 2, 0, 1), leaves[i + 1], padding=same))
        h = h if same else F.max_pool2d(h, 2)
    h = to_nhwc(h).flatten(1)
    h = F.relu(h @ leaves[12] + leaves[13])
    logits = h @ leaves[14] + leaves[15]
    loss = F.cross_entropy(logits, torch.tensor(labels, dtype=dtype))
    loss.backward()
    return loss.item(), [leaf.grad.numpy() for leaf in leaves]


def torch_rmsprop(steps, initial, dtype):
    """Losses, and weights after the first and the last step, by Keras's formula."""
    weights = [w.astype(np.float64) for w in initial]
    velocities = [np.zeros_like(w) for w in weights]
    losses = []
    for _ in range(steps):
        loss, gradients = torch_step(weights, dtype)
        losses.append(loss)
        for w, g, v in zip(weights, gradients, velocities):
            v *= 0.9
            v += (1 - 0.9) * g**2
            w -= 1e-3 * g / np.sqrt(v + 1e-7)
        if len(losses) == 1:
            first = [w.copy() for w in weights]
    return losses, first, weights


def keras_rmsprop(steps):
    layers = keras.layers
    model = keras.Sequential([keras.Input((32, 32, 3))])
    for filters in (32, 64, 64):
        model.add(layers.Conv2D(filters, 3, padding="same", activation="relu"))
        model.add(layers.Conv2D(filters, 3, activation="relu"))
        model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dense(512, activation="relu"))
    model.add(layers.Dense(10, activation="softmax"))
    optimizer = keras.optimizers.RMSprop(1e-3, rho=0.9, epsilon=1e-7)
    model.compile(optimizer=optimizer, loss="categorical_crossentropy", metrics=["accuracy"])
    model.set_weights(tutorial_weights())
    x, labels = tutorial_batch()
    losses = []
    for _ in range(steps):
        model.reset_metrics()
        losses.append(float(model.train_on_batch(x, labels)[0]))
        if len(losses) == 1:
            first = model.get_weights()
    return losses, first, model.get_weights()


def perturbed_runs(steps, weights, runs=16):
    """Float32 runs from weights that are off by at most one unit in the last place.

    Each is as good an answer as any. Once a rounding tips a ReLU or a pooling window they part by
    far more than the rounding: their spread is what another float32 implementation may show.
    """
    for run in range(runs):
        rng = np.random.default_rng(run)
        nudged = [
            np.nextafter(w, w + rng.integers(-1, 2, w.shape, "i4").astype("f4")) for w in weights
        ]
        yield torch_rmsprop(steps, nudged, torch.float32)


def worst(got, truth):
    """Largest error over the largest value."""
    return np.abs(got - truth).max() / np.abs(truth).max()


def tutorial(steps=10) -> dict[str, np.ndarray]:
    weights = tutorial_weights()
    loss, gradients = torch_step(weights, torch.float64)
    loss32, gradients32 = torch_step(weights, torch.float32)
    losses, *weights_after = torch_rmsprop(steps, weights, torch.float64)
    keras_losses, *keras_weights_after = keras_rmsprop(steps)
    peers = [(keras_losses, *keras_weights_after), *perturbed_runs(steps, weights)]
    losses_error = np.max([np.abs(np.subtract(peer[0], losses)) for peer in peers], axis=0)
    out = {
        "versions": np.array(
            f"torch {torch.__version__}, keras {keras.__version__}, "
            f"tensorflow {tensorflow.__version__}, numpy {np.__version__}"
        ),
        "loss": np.array(loss),
        "loss_error": np.array(abs(loss32 - loss)),
        "losses": np.array(losses),
        "losses_error": losses_error,
        "keras_losses": np.array(keras_losses),
    }
    for i, truth in enumerate(gradients):
        out[f"gradient{i}"] = sample(truth)
        out[f"gradient{i}_norm"] = np.linalg.norm(truth)
        out[f"gradient{i}_largest"] = np.abs(truth).max()
        out[f"gradient{i}_error"] = worst(gradients32[i], truth)
    for when, after in (("first", 0), ("last", 1)):
        for i, truth in enumerate(weights_after[after]):
            out[f"{when}{i}"] = sample(truth)
            out[f"keras_{when}{i}"] = sample(keras_weights_after[after][i])
            out[f"{when}{i}_error"] = max(
                np.abs(peer[1 + after][i] - truth).max() for peer in peers
            )
    print(out["versions"])
    print("losses, float64 ", losses)
    print("losses, Keras   ", keras_losses)
    print("losses, spread  ", [f"{e:.1e}" for e in losses_error])
    print("gradient errors ", [f"{out[f'gradient{i}_error']:.1e}" for i in range(16)])
    for when in ("first", "last"):
        print(f"weight errors, {when}", [f"{out[f'{when}{i}_error']:.1e}" for i in range(16)])
    return out


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for stem, record in (
        ("torch_ops", torch_ops),
        ("keras_ops", keras_ops),
        ("tutorial", tutorial),
    ):
        np.savez_compressed(HERE / f"{stem}.npz", **record())
        print(stem, (HERE / f"{stem}.npz").stat().st_size // 1024, "KiB")
