"""The policy mixed_bfloat16: what is rounded, and that nothing else is."""

from __future__ import annotations

import numpy as np
import pytest

import pyconv
from pyconv import kernels, layers, losses, mixed_precision, optimizers
from pyconv.layers import (
    Activation,
    AveragePooling2D,
    BatchNormalization,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    Input,
    MaxPooling2D,
    ZeroPadding2D,
)
from pyconv.models import Sequential, load_model
from pyconv.validation import reference
from pyconv.validation.cases import integers, reals
from pyconv.validation.reference import assert_same, assert_same_bits

rounded = reference.round_bfloat16
EXACT = 2**24  # up to here float32 has every whole number, and sums of them are exact


# ------------------------------------------------------------------------------------------ the API


class TestPolicies:
    def test_what_a_policy_is(self):
        policy = mixed_precision.DTypePolicy("mixed_bfloat16")
        assert (policy.compute_dtype, policy.variable_dtype) == ("bfloat16", "float32")
        assert mixed_precision.Policy("float32").compute_dtype == "float32"
        assert policy == mixed_precision.Policy.from_config(policy.get_config())
        assert policy != mixed_precision.Policy("float32") and policy != "mixed_bfloat16"
        assert "mixed_bfloat16" in repr(policy) and len({policy, policy}) == 1

    @pytest.mark.parametrize("name", ["float16", "mixed_float16", "bfloat16", "", 16, ["float32"]])
    def test_others_are_refused_with_those_there_are(self, name):
        for call in (mixed_precision.Policy, mixed_precision.set_global_policy):
            with pytest.raises(ValueError, match="'float32' or 'mixed_bfloat16'. Received: "):
                call(name)
        with pytest.raises(ValueError, match="'float32' or 'mixed_bfloat16'. Received: "):
            Dense(3, dtype=name)
        assert mixed_precision.global_policy().name == "float32"

    def test_the_global_one_counts_when_a_layer_is_made(self, global_policy):
        before = Dense(3)
        global_policy("mixed_bfloat16")
        after, own = Dense(3), Dense(3, dtype="float32")
        global_policy(mixed_precision.Policy("float32"))
        assert mixed_precision.dtype_policy().name == "float32"
        found = [layer.compute_dtype for layer in (before, after, own)]
        assert found == ["float32", "bfloat16", "float32"]
        assert after.dtype == after.variable_dtype == "float32"
        with pytest.raises(AttributeError):
            after.dtype_policy = "float32"

    @pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
    @pytest.mark.parametrize("then", ["float32", "mixed_bfloat16"])
    def test_files_keep_it(self, global_policy, policy, then, tmp_path):
        global_policy(policy)
        model = Sequential([Input((4,)), Dense(3, activation="relu"), Dense(2, dtype="float32")])
        model.save(tmp_path / "m.safetensors")
        global_policy(then)
        loaded = load_model(tmp_path / "m.safetensors")
        assert loaded.get_config() == model.get_config()
        assert [layer.dtype_policy.name for layer in loaded.layers] == [policy, "float32"]
        x = reals("x", (5, 4))
        assert_same_bits(loaded.predict(x, verbose=0), model.predict(x, verbose=0))

    def test_as_keras_describes_it(self):
        dtype = {
            "module": "keras",
            "class_name": "DTypePolicy",
            "config": {"name": "mixed_bfloat16"},
            "registered_name": None,
        }
        assert Dense.from_config({"units": 3, "dtype": dtype}).compute_dtype == "bfloat16"
        for wrong in ({}, {"config": None}, {"config": {}}):
            with pytest.raises(ValueError, match="Received: "):
                Dense(3, dtype=wrong)


# -------------------------------------------------------------------------------- what is rounded


def forward(layer, x):
    """A layer's outputs in float64 for inputs of bfloat16, before they are rounded."""
    weights = [rounded(w) for w in layer.get_weights()]
    relu = getattr(layer, "activation", None) == "relu"
    if isinstance(layer, Conv2D):
        y = reference.conv2d(x, *weights, padding=layer.padding)
    elif isinstance(layer, DepthwiseConv2D):
        w = weights[0].reshape(*layer.kernel_size, 1, -1)
        y = reference.conv2d(x, w, weights[1], padding=layer.padding, groups=x.shape[-1])
    elif isinstance(layer, Dense):
        y = reference.dense(x, *weights)
    elif isinstance(layer, MaxPooling2D):
        y = reference.max_pool2d(x, 2)[0]
    elif isinstance(layer, AveragePooling2D):
        y = reference.avg_pool2d(x, 2)
    elif isinstance(layer, ZeroPadding2D):
        y = reference.pad2d(x, layer.padding)
    elif isinstance(layer, Flatten):
        y = x.reshape(len(x), -1)
    else:
        assert isinstance(layer, Activation)
        y = x
    assert np.abs(y).max() < EXACT
    return np.maximum(y, 0) if relu else y


def whole(model):
    """Gives the model weights that are whole numbers in bfloat16 only: 257 becomes 256 in it."""
    weights = []
    for index, w in enumerate(model.get_weights()):
        values = integers(f"w{index}", w.shape)
        signs = np.where(np.abs(values) > 2, np.sign(values), 0)
        weights.append(signs * np.float32(257 / 256 if w.ndim > 1 else 257))
    model.set_weights(weights)


CHAINS = {
    "pooled": [
        lambda **o: Conv2D(8, 3, padding="same", activation="relu", **o),
        lambda **o: Conv2D(8, 3, activation="relu", **o),
        lambda **o: MaxPooling2D(**o),
        lambda **o: Flatten(**o),
        lambda **o: Dense(9, activation="relu", **o),
        lambda **o: Dense(5, **o),
    ],
    "padded": [
        lambda **o: ZeroPadding2D(1, **o),
        lambda **o: Conv2D(6, 3, **o),
        lambda **o: Activation("relu", **o),
        lambda **o: AveragePooling2D(**o),
        lambda **o: ZeroPadding2D(1, **o),
        lambda **o: DepthwiseConv2D(3, activation="relu", **o),
        lambda **o: Flatten(**o),
        lambda **o: Dense(5, **o),
    ],
}


def chain(name, policies):
    made = [layer(dtype=policy) for layer, policy in zip(CHAINS[name], policies)]
    model = Sequential([Input((10, 9, 3)), *made])
    whole(model)
    return model, 131 * integers("x", (4, 10, 9, 3))


@pytest.mark.parametrize("name", CHAINS)
def test_inputs_parameters_and_outputs_are(target, math_mode, name):
    """Numbers are whole and sums exact, so a rounding too many or too few shows."""
    if not target.startswith("cuda"):
        math_mode("direct")
    model, x = chain(name, ["mixed_bfloat16"] * 8)
    expected = rounded(x)
    assert (expected != x).any()
    for layer in model.layers:
        expected = rounded(forward(layer, expected))
    assert len(np.unique(expected)) > 5
    model.compile("sgd", "mse")
    assert_same(model.predict(x, verbose=0), expected)  # as one recorded sequence on the CPU
    assert_same(model(x), expected)
    float32, _ = chain(name, ["float32"] * 8)
    assert (float32.predict(x, verbose=0) != expected).any()


@pytest.mark.parametrize("odd", range(6))
def test_a_layer_of_float32_among_others(isa, math_mode, odd):
    """It takes what comes as it is, and what it makes is rounded by the next."""
    math_mode("direct")
    policies = ["mixed_bfloat16"] * 6
    policies[odd] = "float32"
    model, x = chain("pooled", policies)
    expected = x.astype(np.float64)
    for layer in model.layers:
        if layer.compute_dtype == "bfloat16":
            expected = rounded(forward(layer, rounded(expected)))
        else:
            expected = layer(expected.astype(np.float32)).astype(np.float64)
    assert_same(model.predict(x, verbose=0), expected)


class Sum(losses.Loss):
    """Its gradient is given."""

    def losses(self, y_true, y_pred):
        return (y_true * y_pred).sum(1)

    def gradient(self, y_true, y_pred):
        return y_true


@pytest.mark.parametrize("adjacent", [True, False])
def test_gradients_on_their_way_back_are(isa, adjacent):
    """Those of weights are not, nor is the one between the two convolutions that come first."""
    first = [Conv2D(8, 3, padding="same", activation="relu", dtype="mixed_bfloat16")]
    rest = [
        Conv2D(8, 3, activation="relu", dtype="mixed_bfloat16"),
        MaxPooling2D(dtype="mixed_bfloat16"),
        Flatten(dtype="mixed_bfloat16"),
        Dense(9, activation="relu", dtype="mixed_bfloat16"),
        Dense(5, dtype="mixed_bfloat16"),
    ]
    between = [] if adjacent else [AveragePooling2D(1, dtype="mixed_bfloat16")]
    model = Sequential([Input((10, 9, 3)), *first, *between, *rest])
    x, dy = reals("x", (4, 10, 9, 3)), reals("dy", (4, 5))
    model.compile(optimizers.SGD(1.0), Sum())
    before = model.get_weights()
    model.train_on_batch(x, dy)
    got = model._parameters.gradient_views

    round_ = kernels.round_bfloat16
    w1, b1, w2, b2, w3, b3, w4 = (round_(w) for w in before[:-1])
    x = round_(x)
    y1 = round_(kernels.conv2d(x, w1, b1, padding="same", activation="relu"))
    pooled, winner = kernels.conv2d_pool(y1, w2, b2)
    h = round_(pooled).reshape(4, -1)
    y3 = round_(kernels.dense(h, w3, b3, "relu"))
    dh3, dw4, db4 = kernels.dense_backward(round_(dy), y3, w4)
    dh, dw3, db3 = kernels.dense_backward(round_(dh3), h, w3, "relu", y=y3)
    dpool = round_(dh).reshape(pooled.shape)
    dy1, dw2, db2 = kernels.conv2d_pool_backward(dpool, winner, y1, w2)
    if adjacent:
        dw1, db1 = kernels.conv2d_pool_backward_through(
            *(dpool, winner, w2, y1, x, w1.shape), first_padding="same", first_activation="relu"
        )
    else:
        _, dw1, db1 = kernels.conv2d_backward(
            round_(dy1), x, w1, padding="same", activation="relu", y=y1
        )
    wanted = (dw1, db1, dw2, db2, dw3, db3, dw4, db4)
    for mine, theirs in zip(got, wanted):
        assert_same_bits(mine, theirs)
    assert all((theirs != round_(theirs)).any() for theirs in wanted[::2])


def test_softmax_and_losses_are_not(isa):
    model = Sequential([Input((7,)), Dense(10, activation="softmax", dtype="mixed_bfloat16")])
    x, labels = reals("x", (6, 7)), np.eye(10, dtype=np.float32)[:6]
    model.compile("sgd", "categorical_crossentropy")
    logits = Dense(10, dtype="mixed_bfloat16")
    logits.build((None, 7))
    logits.set_weights(model.get_weights())
    z = logits(x)
    assert_same_bits(z, kernels.round_bfloat16(z))
    p = model.predict(x, verbose=0)
    assert_same_bits(p, kernels.softmax(z))
    loss = kernels.softmax_cross_entropy(z, labels)[0].astype(np.float64).mean()
    assert model.evaluate(x, labels, verbose=0) == pytest.approx(loss, rel=1e-6)


def test_statistics_of_batch_normalization_are_not(isa):
    norm = BatchNormalization(dtype="mixed_bfloat16")
    x = reals("x", (50, 3)) * 3 + 1
    y = norm(x, training=True)
    assert_same_bits(y, kernels.round_bfloat16(y))
    plain = BatchNormalization()
    unrounded = plain(kernels.round_bfloat16(x), training=True)
    assert_same_bits(y, kernels.round_bfloat16(unrounded))
    for mine, wanted in zip(norm.get_weights(), plain.get_weights()):
        assert_same_bits(mine, wanted)


def test_dropout_is(isa):
    x = reals("x", (50, 31))
    y = Dropout(0.3, seed=1, dtype="mixed_bfloat16")(x, training=True, step=5)
    kept = kernels.dropout(kernels.round_bfloat16(x), 0.3, 1, 5)
    assert_same_bits(y, kernels.round_bfloat16(kept))
    assert_same_bits(Dropout(0.3, dtype="mixed_bfloat16")(x), kernels.round_bfloat16(x))


# -------------------------------------------------------------------------------------- the weights


def small():
    return Sequential(
        [
            Input((8, 8, 3)),
            Conv2D(8, 3, padding="same", use_bias=False),
            BatchNormalization(),
            Activation("relu"),
            Conv2D(8, 3, activation="relu"),
            MaxPooling2D(),
            Dropout(0.25, seed=3),
            Flatten(),
            Dense(10, activation="softmax"),
        ]
    )


@pytest.fixture
def trained(global_policy):
    pyconv.utils.set_random_seed(1)
    global_policy("mixed_bfloat16")
    model = small()
    model.compile("rmsprop", "categorical_crossentropy", metrics=["accuracy"])
    x = reals("x", (32, 8, 8, 3))
    y = np.eye(10, dtype=np.float32)[np.arange(32) % 10]
    return model, x, y


def test_masters_are_float32(trained):
    model, x, y = trained
    model.fit(x, y, epochs=2, batch_size=16, verbose=0)
    for w in model.get_weights():
        assert (w != kernels.round_bfloat16(w)).any()


def test_predictions_follow_them(trained):
    """Folded and rounded ones are made anew after a step, `set_weights` and `assign`."""
    model, x, y = trained

    def fresh():
        other = small()
        other.set_weights(model.get_weights())
        return other.predict(x, verbose=0)

    assert_same_bits(model.predict(x, verbose=0), fresh())
    for _ in range(2):
        model.train_on_batch(x, y)
        assert_same_bits(model.predict(x, verbose=0), fresh())
    model.set_weights([w * 2 for w in model.get_weights()])
    assert_same_bits(model.predict(x, verbose=0), fresh())
    kernel = model.layers[0].parameters[0]
    kernel.assign(kernel.value / 3)
    assert_same_bits(model.predict(x, verbose=0), fresh())


def test_training_and_inference_agree(trained):
    """Folded batch normalization is rounded once instead of twice, so to some bits of bfloat16."""
    model, x, y = trained
    model.fit(x, y, epochs=3, batch_size=16, verbose=0)
    layer_by_layer = x
    for layer in model.layers:
        layer_by_layer = layer(layer_by_layer)
    np.testing.assert_allclose(model.predict(x, verbose=0), layer_by_layer, atol=2**-5)


def test_it_learns_like_float32(global_policy):
    """On the drawn data set, the accuracies of the two policies are close."""
    (x, y), (x_test, y_test) = pyconv.datasets.shapes.load_data()
    x, x_test = (a[:4000].astype(np.float32) / 255 for a in (x, x_test))
    y, y_test = y[:4000], y_test[:4000]
    accuracies = {}
    for policy in ("float32", "mixed_bfloat16"):
        pyconv.utils.set_random_seed(3)
        global_policy(policy)
        model = Sequential(
            [
                Input(x.shape[1:]),
                Conv2D(16, 3, activation="relu"),
                MaxPooling2D(),
                Conv2D(16, 3, activation="relu"),
                MaxPooling2D(),
                Flatten(),
                Dense(10, activation="softmax"),
            ]
        )
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        model.fit(x, y, epochs=6, batch_size=64, verbose=0)
        accuracies[policy] = model.evaluate(x_test, y_test, verbose=0)[1]
    assert min(accuracies.values()) > 0.5
    assert abs(accuracies["float32"] - accuracies["mixed_bfloat16"]) < 0.05


def test_every_layer_takes_a_dtype():
    made = {
        "Conv2D": (2, 3),
        "DepthwiseConv2D": (3,),
        "Dense": (3,),
        "Activation": ("relu",),
        "Dropout": (0.5,),
    }
    for name in layers.__all__:
        kind = getattr(layers, name)
        if isinstance(kind, type) and issubclass(kind, layers.Layer) and kind is not layers.Layer:
            layer = kind(*made.get(name, ()), dtype="mixed_bfloat16")
            again = layers.deserialize(layers.serialize(layer))
            assert again.compute_dtype == "bfloat16", name
