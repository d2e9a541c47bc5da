"""What is checked: for every operation its calls, and how far from float64 each result may be.

A new operation is one entry of `OPERATIONS`: a table of cases, a function that yields the calls of
a case with their bounds, and one that draws a random case. What a call must compute is what the
function of the same name in `reference` computes, with the same arguments. Bounds are derived in
docs/correctness.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyconv import backend, kernels
from pyconv.validation import problems, reference
from pyconv.validation.cases import (
    CONV_CASES,
    DENSE_CASES,
    FILL_MODES,
    POOL_CASES,
    ConvCase,
    DenseCase,
    PoolCase,
)
from pyconv.validation.problems import Draw, Problem
from pyconv.validation.reference import UNIT_ROUNDOFF, WINOGRAD_ROUNDINGS, sum_bound

Array = NDArray[Any]
# The bound of a result, by what a path's convolutions may round (`paths.Path.arithmetic`); None
# where there is nothing to compare.
Bound = Callable[[str], Any]


@dataclass(frozen=True, eq=False)
class Check:
    """One call of `pyconv.kernels`, and what must come of it.

    Attributes:
        function: its name in `pyconv.kernels`.
        arguments, options: what it takes.
        passes: what tables call its results, in order; None for one that is not compared.
        bounds: of the results: largest error, elementwise or one number; 0 where they are exact.
        expected: the results in float64.
        overwritten: which arguments are results, too, behind what the function returns.
    """

    function: str
    arguments: tuple[Any, ...]
    passes: tuple[str | None, ...]
    bounds: tuple[Bound, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    expected: tuple[Array, ...] = ()
    overwritten: tuple[int, ...] = ()

    def run(self) -> tuple[Array, ...]:
        """The results on the device in use, as NumPy's arrays. Inputs stay as they are."""
        device = backend.current()
        with device.running():
            arguments = [
                device.to_device(a.copy() if index in self.overwritten else a)
                if isinstance(a, np.ndarray)
                else a
                for index, a in enumerate(self.arguments)
            ]
            options = {
                name: device.to_device(a) if isinstance(a, np.ndarray) else a
                for name, a in self.options.items()
            }
            returned = getattr(kernels, self.function)(*arguments, **options)
        results = () if returned is None else as_tuple(returned)
        results += tuple(arguments[index] for index in self.overwritten)
        return tuple(map(backend.to_host, results))


def as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def check(
    function: str,
    arguments: tuple[Any, ...],
    results: Mapping[str, Any],
    expected: tuple[Array, ...] = (),
    **options: Any,
) -> Check:
    """A call whose expected results are those of the reference's function of this name.

    Args:
        function, arguments, options: the call.
        results: a bound for each pass that the call's results are of, in their order: an array, a
            number or a `Bound`; None where a result is not compared.
        expected: the results, where they are at hand.
    """
    expected = expected or as_tuple(getattr(reference, function)(*arguments, **options))
    return Check(
        function,
        arguments,
        tuple(name if bound is not None else None for name, bound in results.items()),
        tuple(bound if callable(bound) else _constant(bound) for bound in results.values()),
        options,
        expected,
    )


def _constant(bound: Any) -> Bound:
    return lambda arithmetic: bound


def excess(got: Array, expected: Array, bound: Any) -> Array:
    """Errors in units of the bound, elementwise: 0 where equal, infinite where nothing is allowed.

    A NaN is right where one is expected, and nowhere else; so are infinities.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(got.astype(np.float64) - expected)
    rounded = expected.astype(got.dtype) if expected.dtype == np.float64 else expected
    same = (got == rounded) | ((got != got) & (rounded != rounded))
    bound = np.broadcast_to(np.asarray(bound, np.float64), error.shape)
    within = np.isfinite(error) & np.isfinite(bound) & (bound > 0)
    return np.where(within, error / np.where(within, bound, 1.0), np.where(same, 0.0, np.inf))


# ------------------------------------------------------------------------------------- convolution


TF32_ROUNDING = 2 * 2.0**-11 * (1 + 2.0**-12)  # of a product of two factors of 11 significant bits


def _sums(draw: Draw, terms: int, magnitude: Array, winograd: Bound | None = None) -> Bound:
    """Of sums of `terms` roundings; `winograd` bounds those by an algorithm, "winograd4" or
    "winograd6", where that is used."""

    @functools.cache
    def bound(arithmetic: str) -> Any:
        if arithmetic.startswith("winograd") and winograd is not None:
            return winograd(arithmetic)
        if arithmetic == "any" and winograd is not None:
            both = np.maximum(winograd("winograd4"), winograd("winograd6"))
            return np.maximum(both, sum_bound(terms, magnitude))
        if draw.exact:  # TF32, too, has the bits of small integers
            return 0.0
        if arithmetic == "tf32":
            more = sum_bound(terms, magnitude * (1 + TF32_ROUNDING))
            return TF32_ROUNDING * magnitude + more
        return sum_bound(terms, magnitude)

    return bound


def is_plain(case: ConvCase) -> bool:
    """Whether algorithms other than the direct one may compute it: 3x3, all steps of 1."""
    steps = (*reference.pair(case.strides), *reference.pair(case.dilation_rate), case.groups)
    return case.kernel == (3, 3) and set(steps) == {1}


def _side(arithmetic: str) -> int:
    return int(arithmetic[-1])


class _ConvBounds:
    """Bounds of a convolution and its gradients, whose roundings are counted in `more` beyond those
    of the sums."""

    def __init__(self, case: ConvCase, draw: Draw, out: tuple[int, ...], more: int = 0) -> None:
        self.case, self.draw, self.more = case, draw, more
        self.n, self.oh, self.ow, self.f = out
        self.plain = is_plain(case)
        self.pads = reference.conv_geometry(case.x, case.w, *case.geometry.values())[2]

    def forward(
        self,
        magnitude: Array,
        x: Array,
        w: Array,
        b: Array,
        of: Callable[[Array], Array] = np.asarray,
    ) -> Bound:
        """`of` is applied to the magnitudes of the convolution."""
        kh, kw, c, _ = self.case.w

        @functools.cache
        def winograd(arithmetic: str) -> Array:
            m = _side(arithmetic)
            size = reference.winograd_conv2d(m, x, w, b, self.case.padding, of=np.abs)
            return sum_bound(c + WINOGRAD_ROUNDINGS[m] + self.more, of(size))

        use = winograd if self.plain else None
        return _sums(self.draw, kh * kw * c + 1 + self.more, of(magnitude), use)

    def data(self, magnitude: Array, dy: Array, w: Array) -> Bound:
        """dy: as the convolution has it, with ReLU's mask applied."""

        @functools.cache
        def winograd(arithmetic: str) -> Array:
            m, case = _side(arithmetic), self.case
            size = reference.winograd_backward_data(m, dy, w, case.x, case.padding, of=np.abs)
            return sum_bound(self.f + WINOGRAD_ROUNDINGS[m] + self.more, size)

        # With more padding it is computed directly.
        use = winograd if self.plain and max(before for before, _ in self.pads) <= 2 else None
        terms = self.case.kernel[0] * self.case.kernel[1] * self.f // self.case.groups
        return _sums(self.draw, terms + self.more, magnitude, use)

    def weights(self, magnitude: Array, dy: Array, x: Array) -> Bound:
        @functools.cache
        def winograd(arithmetic: str) -> Array:
            m = _side(arithmetic)
            size = reference.winograd_backward_weights(m, dy, x, self.case.padding, of=np.abs)
            tiles = self.n * -(-self.oh // m) * -(-self.ow // m)
            return sum_bound(tiles + WINOGRAD_ROUNDINGS[m] + self.more, size)

        use = winograd if self.plain else None
        return _sums(self.draw, self.n * self.oh * self.ow + self.more, magnitude, use)

    def bias(self, magnitude: Array) -> Bound:
        return _sums(self.draw, self.n * self.oh * self.ow + self.more, magnitude)


def conv2d(case: ConvCase, draw: Draw) -> Iterator[Check]:
    x, w, b = draw("x", case.x), draw("w", case.w), draw("b", (case.filters,))
    options = case.geometry | {"activation": case.activation}
    magnitude = reference.conv2d(np.abs(x), np.abs(w), np.abs(b), **case.geometry)
    bounds = _ConvBounds(case, draw, magnitude.shape)
    spoilt = draw.spoilt(x)
    forward = bounds.forward(magnitude, x, w, b)
    yield check("conv2d", (spoilt, w, b), {"forward": forward}, **options)
    if draw.exact:
        yield check("conv2d", (x, w), {"forward": forward}, **options)

    # ReLU's output as a backward pass gets it: about half of it 0. Independent of x, w and b, which
    # is all the same.
    dy, y = draw("dy", magnitude.shape), np.maximum(draw("y", magnitude.shape), 0)
    options["y"] = y if case.activation else None
    dense = dy * (y > 0) if case.activation else dy
    sizes = reference.conv2d_backward(np.abs(dense), np.abs(x), np.abs(w), **case.geometry)
    data = {"data": bounds.data(sizes[0], dense, w)}
    weights = {"weights": bounds.weights(sizes[1], dense, x), "bias": bounds.bias(sizes[2])}
    both = check("conv2d_backward", (dy, x, w), data | weights, **options)
    yield both
    # A NaN is no part of dw: what it meets there is 0 * NaN in the padding, or skipped.
    bad = draw.spoilt(dy)
    dx, *dw = both.expected
    of_data = (dx,) if bad is dy else ()
    yield check("conv2d_backward_data", (bad, w, case.x), data, of_data, **options)
    yield check("conv2d_backward_weights", (dy, x, case.w), weights, tuple(dw), **options)


def conv2d_pool(case: ConvCase, draw: Draw) -> Iterator[Check]:
    x, w, b = draw("x", case.x), draw("w", case.w), draw("b", (case.filters,))
    rate, seed = (0.5 if draw.exact else 0.3), draw.seed + 3  # 1 / (1 - 0.5) is exact
    dropout: dict[str, Any] = {"rate": rate, "seed": seed, "offset": 9}
    magnitude = reference.conv2d(np.abs(x), np.abs(w), np.abs(b), **case.geometry)
    bounds = _ConvBounds(case, draw, magnitude.shape, more=2)  # dropout's factor and product
    # The maximum of values that each err by their bound errs by the largest of these.
    bound = bounds.forward(
        magnitude, x, w, b, of=lambda size: reference.max_pool2d(size)[0] / (1 - rate)
    )

    def winner(arithmetic: str) -> Any:
        exact = draw.exact and (arithmetic in ("direct", "tf32") or not bounds.plain)
        return 0.0 if exact else None  # where values round, another one of a window may win

    yield check(
        "conv2d_pool", (x, w, b), {"forward": bound, "winner": winner}, **dropout, **case.geometry
    )
    y, won = reference.conv2d_pool(x, w, b, **dropout, **case.geometry)
    dy = draw("dy", y.shape)
    dense = reference.conv2d_pool_gradient(dy, won, magnitude.shape, rate)
    sizes = reference.conv2d_backward(np.abs(dense), np.abs(x), np.abs(w), **case.geometry)
    results = {
        "data": bounds.data(sizes[0], dense, w),
        "weights": bounds.weights(sizes[1], dense, x),
        "bias": bounds.bias(sizes[2]),
    }
    yield check("conv2d_pool_backward", (dy, won, x, w), results, rate=rate, **case.geometry)


def conv2d_pool_backward_through(case: ConvCase, draw: Draw) -> Iterator[Check]:
    """Of a first layer; the second one is a 3x3 convolution with 12 filters."""
    x, rate = draw("x", case.x), 0.3
    y = reference.conv2d(x, draw("w1", case.w), **case.geometry, activation=case.activation)
    y = y.astype(np.float32)
    second = ConvCase("second", y.shape, (3, 3), 12)
    w = draw("w", second.w)
    pooled, won = reference.conv2d_pool(y, w, rate=rate, seed=draw.seed)
    dy = draw("dy", pooled.shape)
    out = reference.conv2d(y, w).shape
    dense = reference.conv2d_pool_gradient(dy, won, out, rate)

    def data(dense: Array, w: Array) -> Array:
        gradient = reference.conv2d_backward_data(dense, w, y.shape)
        return np.asarray(reference.before_activation(gradient, case.activation, y))

    dx, sizes = data(dense, w), data(np.abs(dense), np.abs(w))
    of_dx = _ConvBounds(second, draw, out, more=2).data(sizes, dense, w)
    of_dw = _ConvBounds(case, draw, y.shape)

    def sums(arithmetic: str) -> tuple[tuple[Array, Array], ...]:
        """Of dx's errors, with the magnitudes of the other factors, and of its magnitudes."""
        error = np.where((y > 0) | (case.activation is None), of_dx(arithmetic), 0.0)
        return tuple(
            reference.conv2d_backward_weights(size, np.abs(x), case.w, **case.geometry)
            for size in (error, np.abs(dx) + error)
        )

    def weights(arithmetic: str) -> Array:
        passed_on, magnitude = sums(arithmetic)
        # 1.01: Winograd's own bound takes dx without its error.
        return passed_on[0] + 1.01 * of_dw.weights(magnitude[0], dx, x)(arithmetic)

    def bias(arithmetic: str) -> Array:
        passed_on, magnitude = sums(arithmetic)
        return passed_on[1] + of_dw.bias(magnitude[1])(arithmetic)

    options = {f"first_{name}": value for name, value in case.geometry.items()}
    yield check(
        "conv2d_pool_backward_through",
        (dy, won, w, y, x, case.w),
        {"weights": weights, "bias": bias},
        rate=rate,
        first_activation=case.activation,
        **options,
    )


def _has_second(case: ConvCase) -> bool:
    """Whether its output has room for a 3x3 kernel and a 2x2 window behind it."""
    *_, out = reference.conv_geometry(case.x, case.w, *case.geometry.values())
    return min(out) >= 4


def _random_first(rng: np.random.Generator) -> ConvCase:
    while not _has_second(case := problems.random_conv(rng)):
        pass
    return case


def _pooled(case: ConvCase) -> bool:
    """Whether its output has room for a 2x2 window."""
    *_, out = reference.conv_geometry(case.x, case.w, *case.geometry.values())
    return min(out) >= 2


def _random_pooled(rng: np.random.Generator) -> ConvCase:
    while not _pooled(case := problems.random_conv(rng)):
        pass
    return replace(case, activation=None)  # ReLU is part of the operation


def max_pool2d(case: PoolCase, draw: Draw) -> Iterator[Check]:
    x = draw("x", case.x)
    exact = {"forward": 0.0, "argmax": 0.0}  # a maximum is exact
    yield check("max_pool2d", (draw.spoilt(x),), exact, **case.geometry)
    y, argmax = reference.max_pool2d(x, **case.geometry)
    dy = draw("dy", y.shape)
    # An input collects at most one gradient from each window that covers it.
    terms = windows_around(case)
    size = reference.max_pool2d_backward(np.abs(dy), argmax, case.x, **case.geometry)
    yield check(
        "max_pool2d_backward",
        (draw.spoilt(dy), argmax, case.x),
        {"data": _sums(draw, terms, size)},
        **case.geometry,
    )


def largest_windows(case: PoolCase) -> tuple[int, int]:
    """The rows and columns that a window has in the image at most."""
    pool, _, _, _ = reference.pool_geometry(case.x, *case.geometry.values())
    return min(pool[0], case.x[1]), min(pool[1], case.x[2])


def windows_around(case: PoolCase) -> int:
    """How many windows an element lies in at most."""
    pool, strides, _, _ = reference.pool_geometry(case.x, *case.geometry.values())
    return -(-pool[0] // strides[0]) * -(-pool[1] // strides[1])


def avg_pool2d(case: PoolCase, draw: Draw) -> Iterator[Check]:
    x = draw("x", case.x)
    size = reference.avg_pool2d(np.abs(x), **case.geometry)
    # Rows + columns, not rows * columns; the division is the one that sum_bound adds.
    forward = _sums(draw, sum(largest_windows(case)), size)
    yield check("avg_pool2d", (draw.spoilt(x),), {"forward": forward}, **case.geometry)
    dy = draw("dy", size.shape)
    size = reference.avg_pool2d_backward(np.abs(dy), case.x, **case.geometry)
    # One rounding of the share, and those of the sum of products.
    data = {"data": sum_bound(windows_around(case) + 1, size)}
    yield check("avg_pool2d_backward", (draw.spoilt(dy), case.x), data, **case.geometry)


def pad2d(case: problems.PadCase, draw: Draw) -> Iterator[Check]:
    x = draw("x", case.x)
    yield check("pad2d", (draw.spoilt(x), case.padding), {"forward": 0.0})
    dy = draw("dy", reference.pad2d(x, case.padding).shape)
    yield check("pad2d_backward", (draw.spoilt(dy), case.padding), {"data": 0.0})


# -------------------------------------------------------------------------------------------- dense


def dense(case: DenseCase, draw: Draw) -> Iterator[Check]:
    x, w = draw("x", (case.batch, case.inputs)), draw("w", (case.inputs, case.units))
    b, dy = draw("b", (case.units,)), draw("dy", (case.batch, case.units))
    y = np.maximum(draw("y", dy.shape), 0)
    options: dict[str, Any] = {"activation": case.activation}
    bound = _sums(draw, case.inputs + 1, reference.dense(np.abs(x), np.abs(w), np.abs(b)))
    yield check("dense", (draw.spoilt(x), w, b), {"forward": bound}, **options)
    if draw.exact:
        yield check("dense", (x, w), {"forward": bound}, **options)
    options["y"] = y if case.activation else None
    sizes = reference.dense_backward(np.abs(dy), np.abs(x), np.abs(w), **options)
    terms = (case.units, case.batch, case.batch)
    data, weights, bias = (_sums(draw, count, size) for count, size in zip(terms, sizes))
    results = {"weights": weights, "bias": bias}
    yield check("dense_backward_data", (dy, w), {"data": data}, **options)
    yield check("dense_backward_weights", (dy, x), results, **options)
    yield check("dense_backward", (dy, x, w), {"data": data, **results}, **options)


# ---------------------------------------------------------------------------------------- pointwise


def relu(case: problems.ArrayCase, draw: Draw) -> Iterator[Check]:
    x, dy = draw("x", case.x), draw("dy", case.x)
    yield check("relu", (draw.spoilt(x),), {"forward": 0.0})
    yield check("relu_backward", (draw.spoilt(dy), draw("y", case.x)), {"data": 0.0})


def round_bfloat16(case: problems.ArrayCase, draw: Draw) -> Iterator[Check]:
    yield check("round_bfloat16", (draw.spoilt(draw("x", case.x)),), {"forward": 0.0})


# Roundings, in units of u, that docs/correctness.md counts, of the value and of the gradient.
ACTIVATION_ROUNDINGS = {
    "sigmoid": (5, 3),
    "tanh": (5, 4),
    "leaky_relu": (1, 1),
    "softplus": (7, 4),
}


def activation_bound(name: str, backward: bool, expected: Array, scale: Any = 1.0) -> Array:
    """`scale` is what a result below the smallest normal number, which may be 0, is multiplied
    by."""
    count = 1.01 * ACTIVATION_ROUNDINGS[name][backward]
    with np.errstate(invalid="ignore"):
        bound = count * UNIT_ROUNDOFF * np.abs(expected) + 2.0**-126 * np.maximum(scale, 1.0)
    return np.asarray(bound)


def activation(case: problems.ActivationCase, draw: Draw) -> Iterator[Check]:
    name, x = case.function, draw("x", case.x) * np.float32(20)
    spoilt, dy = draw.spoilt(x), draw("dy", case.x)
    bound = activation_bound(name, False, reference.activate(spoilt, name))
    yield check("activate", (spoilt, name), {"forward": bound})
    y = reference.activate(x, name).astype(np.float32)
    bound = activation_bound(name, True, reference.activate_backward(dy, y, name), np.abs(dy))
    yield check("activate_backward", (dy, y, name), {"data": bound})


def additions(count: int) -> float:
    """Roundings, in units of u, that a sum of `count` terms may show (see sum_bound)."""
    return float(min(count, 8.0 * np.sqrt(count)))


EXP_AND_LOG = 4.0  # exp and log may err by 2 ulp, 4 u
UNDERFLOW = 2.0**-125  # exp may flush results below the smallest normal number, 2^-126, to 0


def softmax_error(z: Array) -> tuple[Array, Array, Array]:
    """(relative error of exp's sum, of p, d = |z - max|) in the worst case, from the steps of the
    formula.

    d is rounded: u d, absolute, which exp turns into a relative error, and adds its own. So exp(-d)
    is off by u (d + EXP_AND_LOG). The sum averages that, weighted by p, and rounds on its own; the
    quotient (or the product with a reciprocal) rounds twice.
    """
    p = reference.softmax(z)
    z = z.astype(np.float64)
    d = z.max(axis=-1, keepdims=True) - z
    of_sum = EXP_AND_LOG + (p * d).sum(axis=-1, keepdims=True) + additions(z.shape[-1])
    return 1.01 * UNIT_ROUNDOFF * of_sum, 1.01 * UNIT_ROUNDOFF * (d + EXP_AND_LOG + of_sum + 2), d


def softmax_gradient_bound(dy: Array, y: Array) -> Array:
    """Of y (dy - sum): the sum errs by `additions`, its product with y, the difference and the
    outer product round once."""
    inner = np.abs(dy * y.astype(float)).sum(axis=-1, keepdims=True)
    bound = (additions(y.shape[-1]) + 1) * inner + 2 * (np.abs(dy) + inner)
    return np.asarray(1.01 * UNIT_ROUNDOFF * np.abs(y) * bound + UNDERFLOW)


def softmax_cross_entropy_bounds(z: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Of the loss, the probabilities and the gradient."""
    n, k = z.shape
    t = labels.astype(np.float64)
    _, of_p, _ = reference.softmax_cross_entropy(z, labels)
    of_sum, relative, d = softmax_error(z)
    log_sum = -reference.log_softmax(z) - d  # log of exp's sum, >= 0
    # -log p = d + log sum, two terms >= 0: nothing cancels. d rounds; log turns the sum's relative
    # error into an absolute one and adds its own; the addition, the product with t and the sum over
    # k round their results.
    terms = t * (
        UNIT_ROUNDOFF * d
        + of_sum
        + UNIT_ROUNDOFF * (EXP_AND_LOG * log_sum + (2 + additions(k)) * (d + log_sum))
    )
    total = t.sum(axis=-1, keepdims=True)
    # p sum(t) - t: p's error; the sum and the product with it; the difference and the division (by
    # a reciprocal).
    difference = np.abs(of_p * total - t)
    of_dlogits = of_p * total * (relative + UNIT_ROUNDOFF * (additions(k) + 1))
    of_dlogits += 3 * UNIT_ROUNDOFF * difference
    return (
        1.01 * terms.sum(axis=-1) + UNDERFLOW,
        relative * of_p + UNDERFLOW,
        1.01 * of_dlogits / max(n, 1) + UNDERFLOW * (1 + total),
    )


# ------------------------------------------------------------------------------ batch normalization


def rows_of(x: Array) -> Array:
    return np.asarray(x, np.float64).reshape(-1, x.shape[-1])


def moment_bounds(x: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """How far the mean, the variance and `inverse` (relatively) may be off.

    Deviations are taken from the means of chunks of rows: they round once, their squares once more.
    Sums of a chunk round `additions` times, and are combined in double. Deviations from a chunk's
    own mean are on average at most twice those from any other number, their squares at most equal.
    A chunk's mean, off by u (additions + 1) of its deviations, enters the variance twice.
    """
    rows = rows_of(x)
    u, k = 1.01 * UNIT_ROUNDOFF, additions(len(rows))
    mean, variance = rows.mean(axis=0), rows.var(axis=0)
    of_mean = u * (np.abs(mean) + 2 * (k + 1) * np.abs(rows - mean).mean(axis=0))
    of_variance = u * (k + 3 + 2 * (k + 1)) * variance + 2.0**-126
    of_inverse = of_variance / (variance + epsilon) / 2 + u
    return of_mean, of_variance, of_inverse


def normalized_bound(x: Array, y: Array, mean: Array, scale: Array) -> Array:
    """Of scale * (x - mean) + beta: the difference, the scale and the product round once each, and
    the sum."""
    of_product = 3 * np.abs((np.asarray(x, np.float64) - mean) * scale)
    return np.asarray(1.01 * UNIT_ROUNDOFF * (of_product + np.abs(y)) + 2.0**-126)


def norm_training_bounds(
    x: Array, gamma: Array, momentum: float, epsilon: float, expected: tuple[Array, ...]
) -> tuple[Array, ...]:
    """Of y, the mean, `inverse` and both moving averages, in float64 as `expected`."""
    y, mean, inverse, *moving = expected
    of_mean, of_variance, of_inverse = moment_bounds(x, epsilon)
    factor = np.abs(gamma * inverse)
    of_y = normalized_bound(x, y, mean, factor) + factor * of_mean * (1 + 1e-6)
    of_y = of_y + np.abs(x - mean) * factor * of_inverse
    of_moving = (
        (1 - momentum) * error + 1.01 * UNIT_ROUNDOFF * np.abs(value)
        for value, error in zip(moving, (of_mean, of_variance))
    )
    return of_y, of_mean, of_inverse * inverse, *of_moving


def norm_gradient_bounds(
    dy: Array, x: Array, gamma: Array, mean: Array, inverse: Array, expected: tuple[Array, ...]
) -> tuple[Array, ...]:
    """Of dx, dgamma and dbeta; `mean` and `inverse` are what the forward pass has handed on."""
    dx, dgamma, dbeta = expected
    n, u = len(rows_of(x)), 1.01 * UNIT_ROUNDOFF
    k, inverse = additions(n), inverse.astype(np.float64)
    d = x.astype(np.float64) - mean
    of_dy = k * rows_of(np.abs(dy)).sum(axis=0)
    # The difference and the product round, and their sum.
    of_product = (k + 2) * rows_of(np.abs(dy * d)).sum(axis=0)
    # dx = (dy - shift - d * slope) * scale: shift, slope, scale and all steps round.
    shift, slope = dbeta / n, inverse * dgamma / n
    rest = np.abs(dy - shift)
    of_rest = of_dy / n + np.abs(shift) + rest
    of_slope = inverse**2 * of_product / n + np.abs(slope)
    of_last = np.abs(d) * of_slope + 2 * np.abs(d * slope) + rest + np.abs(d * slope)
    of_dx = u * np.abs(gamma * inverse) * (of_rest + of_last) + 2 * u * np.abs(dx) + 2.0**-126
    return of_dx, u * (inverse * of_product + np.abs(dgamma)), u * (of_dy + np.abs(dbeta))


def batch_norm(case: problems.NormCase, draw: Draw) -> Iterator[Check]:
    momentum, epsilon = 0.75, 1e-3
    x = (draw("x", case.x) + case.center).astype(np.float32)
    gamma, beta, mean = (draw(name, case.x[-1:]) for name in ("gamma", "beta", "mean"))
    variance, dy = np.abs(draw("variance", case.x[-1:])), draw("dy", case.x)
    for g, b in ((gamma, beta), (None, None)):
        given = (x, g, b, mean, variance, epsilon)
        y = reference.batch_norm(*given)
        scale = (1.0 if g is None else g) / np.sqrt(variance + epsilon)
        yield check("batch_norm", given, {"inference": normalized_bound(x, y, mean, scale)})
    arguments = (x, gamma, beta, mean, variance, momentum, epsilon)
    expected = reference.batch_norm_training(*arguments)
    bounds = norm_training_bounds(x, gamma, momentum, epsilon, expected)
    yield Check(
        "batch_norm_training",
        arguments,
        ("forward", "mean", "inverse", "moving_mean", "moving_variance"),
        tuple(map(_constant, bounds)),
        expected=expected,
        overwritten=(3, 4),
    )
    moments = expected[1].astype(np.float32), expected[2].astype(np.float32)
    gradients = reference.batch_norm_backward(dy, x, gamma, *moments)
    bounds = norm_gradient_bounds(dy, x, gamma, *moments, gradients)
    results = dict(zip(("data", "gamma", "beta"), bounds))
    yield check("batch_norm_backward", (dy, x, gamma, *moments), results, gradients)


# ------------------------------------------------------------------------------------------ softmax


def softmax(case: problems.LogitsCase, draw: Draw) -> Iterator[Check]:
    shape = (case.batch, case.classes)
    z, dy = draw("z", shape), draw("dy", shape)
    bound = softmax_error(z)[1] * reference.softmax(z) + UNDERFLOW
    yield check("softmax", (z,), {"forward": bound})
    y = reference.softmax(z).astype(np.float32)
    yield check("softmax_backward", (dy, y), {"data": softmax_gradient_bound(dy, y)})


def softmax_cross_entropy(case: problems.LogitsCase, draw: Draw) -> Iterator[Check]:
    shape = (case.batch, case.classes)
    z, numbers = draw("z", shape), np.arange(case.batch) % case.classes
    one_hot = np.eye(case.classes, dtype=np.float32)[numbers]
    soft = np.abs(problems.Draw(Problem("", None, seed=draw.seed))("labels", shape))
    for labels in (one_hot, soft):
        bounds = softmax_cross_entropy_bounds(z, labels)
        names = ("loss", "probabilities", "data")
        yield check("softmax_cross_entropy", (z, labels), dict(zip(names, bounds)))


def dropout(case: problems.DropoutCase, draw: Draw) -> Iterator[Check]:
    x = draw("x", case.x)
    for name, function in (("forward", "dropout"), ("data", "dropout_backward")):
        for seed, offset in ((draw.seed, 0), (2**64 - 1 - draw.seed, 2**40 + 1)):
            arguments = (x, case.rate, seed, offset)
            # The factor 1 / (1 - rate) and the product round once each; what is dropped is 0.
            bound = sum_bound(2, np.abs(reference.dropout(*arguments)))
            yield check(function, arguments, {name: bound})


def warp_affine(case: problems.WarpCase, draw: Draw) -> Iterator[Check]:
    x = draw("x", case.x)
    rng = np.random.default_rng(draw.seed)
    shifts = rng.uniform(-1, 1, (case.maps, 2, 1)) * np.reshape(case.x[1:3], (2, 1))
    matrices = np.concatenate([rng.uniform(-2, 2, (case.maps, 2, 2)), shifts], axis=2)
    indices = rng.integers(0, case.x[0], case.maps)
    # tests/test_warp_affine.py derives it.
    bound = 1.001 * 2 * 7 * UNIT_ROUNDOFF * float(np.abs(x).max(initial=0.25))
    arguments = (x, matrices, indices, case.fill_mode, 0.25)
    yield check("warp_affine", arguments, {"forward": bound})


def gather(case: problems.GatherCase, draw: Draw) -> Iterator[Check]:
    source, where = draw("x", case.x), problems.reals(f"{draw.seed} where", (case.indices,))
    # Some lie outside, and are clipped.
    indices = np.floor(where.astype(np.float64) * 1.2 * len(source)).astype(np.int64)
    for rows in (source, (np.abs(source) * 50).astype(np.uint8)):
        # The factor and the product round once each.
        bound = sum_bound(2, np.abs(reference.gather(rows, indices, case.scale)))
        yield check("gather", (rows, indices, case.scale), {"forward": bound})


# --------------------------------------------------------------------------------------- optimizers
#
# One step, from any state. Scalars such as 1 - rho are taken to be computed in double and rounded
# once: 1 - 0.999 in float32 would be off by 216 u, which these bounds catch.

TINY = 2.0**-125  # squares of tiny gradients may underflow


def roundings(count: float, magnitude: Any) -> Array:
    """The error that so many roundings of numbers of this size make at most."""
    return np.asarray(1.001 * UNIT_ROUNDOFF * count * np.abs(magnitude) + TINY)


def sgd_bounds(
    w: Array, g: Array, velocity: Array, rate: float, momentum: float, nesterov: bool
) -> tuple[Array, Array]:
    """Of w and the velocity; all are float64, from before the step."""
    moved = rate * np.abs(g)
    of_velocity = np.zeros(g.shape)
    if momentum:
        # lr g: 2 roundings. momentum v: 2. Their sum: 1.
        moved = moved + momentum * np.abs(velocity)
        of_velocity = roundings(3, moved)
        # Nesterov once more: momentum (v): 2, lr g: 2, the sum: 1, on top of v's 3.
        moved = momentum * moved + moved if nesterov else moved
    return roundings(6, moved) + roundings(1, np.abs(w) + moved), of_velocity


def rmsprop_bounds(w: Array, after: Array, v_after: Array) -> tuple[Array, Array]:
    """Of w and the velocity, from w before the step and both after it, in float64."""
    # (1 - rho) g^2: 3 roundings, rho v: 2, their sum: 1; all terms >= 0.
    # v + eps: v's 4, eps's 1 and the sum's; the root halves them and rounds (2: a root may come
    # from rsqrt and a Newton step); lr g: 2; the quotient: 2. The last difference rounds its
    # result.
    update = np.abs(after - w)
    of_w = roundings(5 / 2 + 2 + 2 + 2, update) + roundings(1, np.abs(w) + update)
    return of_w, roundings(4, v_after)


def adam_bounds(
    w: Array, g: Array, m: Array, v: Array, step: int, rate: float, m_after: Array, v_after: Array
) -> tuple[Array, Array, Array]:
    """Of w, m and v, of Keras's betas and epsilon; in float64, from before the step and after."""
    # m + (g - m)(1 - beta): the difference, 1 - beta and the product round, then the sum rounds
    # its result.
    of_m = roundings(3, np.abs(g - m) * (1 - 0.9)) + roundings(1, m_after)
    # The same with g^2, rounded.
    square = g**2
    change = (square + np.abs(square - v) * 3) * (1 - 0.999)
    of_v = roundings(1, change) + roundings(1, v_after)
    # v's relative error halves in the root; root 2, + eps 2, m alpha 2, the quotient 2.
    alpha = rate * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
    root = np.sqrt(v_after)
    of_root = np.minimum(of_v / np.maximum(root, 1e-30), np.sqrt(of_v))
    denominator = root + 1e-7
    update = np.abs(m_after) * alpha / denominator
    of_w = alpha * of_m / denominator + update * of_root / denominator
    return of_w + roundings(8, update) + roundings(1, np.abs(w) + update), of_m, of_v


def _step(
    function: str, state: tuple[Array, ...], arguments: tuple[Any, ...], bounds: tuple[Array, ...]
) -> Check:
    """A step that overwrites w and its slots, the arguments but for the second."""
    w, g, *slots = state
    expected = getattr(reference, function)(*state, *arguments)
    names = ("weights", "velocity") if len(slots) < 2 else ("weights", "m", "v")
    return Check(
        function,
        (w, g, *slots, *arguments),
        names,
        tuple(map(_constant, bounds)),
        expected=expected,
        overwritten=(0, *range(2, 2 + len(slots))),
    )


def _state(draw: Draw, shape: tuple[int, ...], squares: tuple[bool, ...]) -> Any:
    """w, a gradient of numbers from 1e-6 to 1, some of them exactly 0, and slots."""
    g = draw("g", shape) * np.float32(10) ** (6 * (problems.reals("e", shape) - 1) / 2)
    g.reshape(-1)[::7] = 0
    slots = [draw(f"slot{index}", shape) for index in range(len(squares))]
    slots = [slot * slot if square else slot for slot, square in zip(slots, squares)]
    return draw("w", shape), g.astype(np.float32), *slots


def sgd(case: problems.SgdCase, draw: Draw) -> Iterator[Check]:
    w, g, velocity = _state(draw, case.x, (False,))
    before = (array.astype(np.float64) for array in (w, g, velocity))
    arguments: tuple[Any, ...] = (0.05, case.momentum, case.nesterov)
    bounds = sgd_bounds(*before, *arguments)
    if case.momentum:
        yield _step("sgd_step", (w, g, velocity), arguments, bounds)
    else:  # without a velocity
        after, _ = reference.sgd_step(w, g, None, *arguments)
        yield Check(
            "sgd_step",
            (w, g, None, *arguments),
            ("weights",),
            (_constant(bounds[0]),),
            expected=(after,),
            overwritten=(0,),
        )


def rmsprop(case: problems.RmspropCase, draw: Draw) -> Iterator[Check]:
    state = _state(draw, case.x, (True,))
    arguments: tuple[Any, ...] = (0.001, case.rho, 1e-7)
    after: Any = reference.rmsprop_step(*state, *arguments)
    bounds = rmsprop_bounds(state[0].astype(np.float64), *after)
    yield _step("rmsprop_step", state, arguments, bounds)


def adam(case: problems.AdamCase, draw: Draw) -> Iterator[Check]:
    state = _state(draw, case.x, (False, True))
    arguments: tuple[Any, ...] = (case.step, 0.002, 0.9, 0.999, 1e-7)
    w, g, m, v = (array.astype(np.float64) for array in state)
    after: Any = reference.adam_step(*state, *arguments)
    bounds = adam_bounds(w, g, m, v, case.step, 0.002, *after[1:])
    yield _step("adam_step", state, arguments, bounds)


# --------------------------------------------------------------------------------------- operations


@dataclass(frozen=True)
class Operation:
    """What is validated under one name.

    Attributes:
        cases: the table.
        checks: the calls of a case, with numbers.
        random: draws a case.
        values: the kinds of numbers that have a bound.
        math_modes: of a case, whether algorithms that math modes choose may compute it.
        on_host: whether it is on the CPU only.
    """

    cases: tuple[Any, ...]
    checks: Callable[[Any, Draw], Iterator[Check]]
    random: Callable[[np.random.Generator], Any]
    values: tuple[str, ...] = problems.VALUES
    math_modes: Callable[[Any], bool] = lambda case: False
    on_host: bool = False


_SHAPES = ((1,), (3,), (15,), (16,), (17,), (33,), (2, 3, 5, 7), (70_001,))
_FINITE = problems.VALUES[:3]
_LOGITS = tuple(
    problems.LogitsCase(f"{n}x{k}", n, k)
    for n, k in (
        (1, 1),
        (1, 10),
        (3, 15),
        (3, 16),
        (3, 17),
        (2, 33),
        (4, 100),
        (2, 1000),
        (300, 10),
    )
)


def _random_logits(rng: np.random.Generator) -> problems.LogitsCase:
    return problems.LogitsCase("random", *(int(np.exp(rng.uniform(0, 6))) for _ in range(2)))


OPERATIONS: dict[str, Operation] = {
    "conv2d": Operation(CONV_CASES, conv2d, problems.random_conv, math_modes=is_plain),
    "conv2d_pool": Operation(
        tuple(replace(case, activation=None) for case in CONV_CASES if _pooled(case)),
        conv2d_pool,
        _random_pooled,
        _FINITE,
        math_modes=is_plain,
    ),
    "max_pool2d": Operation(POOL_CASES, max_pool2d, problems.random_pool),
    "avg_pool2d": Operation(POOL_CASES, avg_pool2d, problems.random_pool),
    "pad2d": Operation(
        tuple(
            problems.PadCase(f"{shape} {padding}", shape, padding)
            for shape, padding in (
                ((2, 4, 5, 3), 1),
                ((2, 4, 5, 16), (2, 0)),
                ((3, 6, 4, 33), ((0, 3), (1, 2))),
                ((2, 6, 7, 5), ((-2, 3), (4, -1))),
                ((2, 60, 50, 20), ((1, 0), (0, 1))),
            )
        ),
        pad2d,
        problems.random_pad,
    ),
    "dense": Operation(DENSE_CASES, dense, problems.random_dense),
    "relu": Operation(
        tuple(problems.ArrayCase(str(shape), shape) for shape in _SHAPES),
        relu,
        lambda rng: problems.ArrayCase("random", problems.random_shape(rng)),
    ),
    "round_bfloat16": Operation(
        tuple(problems.ArrayCase(str(shape), shape) for shape in _SHAPES),
        round_bfloat16,
        lambda rng: problems.ArrayCase("random", problems.random_shape(rng)),
    ),
    "activation": Operation(
        tuple(
            problems.ActivationCase(f"{shape} {name}", shape, name)
            for shape in _SHAPES
            for name in ACTIVATION_ROUNDINGS
        ),
        activation,
        lambda rng: problems.ActivationCase(
            "random", problems.random_shape(rng), str(rng.choice(list(ACTIVATION_ROUNDINGS)))
        ),
    ),
    "batch_norm": Operation(
        tuple(
            problems.NormCase(f"{shape} {center}", shape, center)
            for shape in (
                *((1, 1), (3, 5), (1, 17), (700, 1), (513, 16), (64, 33), (1030, 128)),
                *((2, 5, 7, 8), (3, 8, 8, 40), (4, 13, 13, 20)),
            )
            for center in (0.0, 1000.0)
        ),
        batch_norm,
        lambda rng: problems.NormCase(
            "random", (*problems.random_shape(rng)[:3], int(rng.integers(1, 140)))
        ),
        ("reals",),
    ),
    "softmax": Operation(_LOGITS, softmax, _random_logits, _FINITE),
    "softmax_cross_entropy": Operation(_LOGITS, softmax_cross_entropy, _random_logits, _FINITE),
    "dropout": Operation(
        tuple(
            problems.DropoutCase(f"{shape} {rate}", shape, rate)
            for shape, rate in zip(_SHAPES, (0.0, 0.1, 0.25, 0.5, 0.999) * 2)
        ),
        dropout,
        lambda rng: problems.DropoutCase(
            "random", problems.random_shape(rng), round(float(rng.uniform(0, 0.99)), 3)
        ),
        _FINITE,
    ),
    "conv2d_pool_backward_through": Operation(
        tuple(
            replace(case, x=(min(case.x[0], 3), *case.x[1:]))
            for case in CONV_CASES
            if _has_second(case) and np.prod(case.x) < 2**15
        ),
        conv2d_pool_backward_through,
        _random_first,
        ("reals", "extreme"),
        is_plain,
        on_host=True,
    ),
    "warp_affine": Operation(
        tuple(
            problems.WarpCase(f"{shape} {mode}", shape, 20, mode)
            for shape in ((3, 8, 8, 3), (2, 7, 12, 1), (2, 5, 4, 4), (1, 1, 6, 2), (2, 1, 1, 5))
            for mode in FILL_MODES
        ),
        warp_affine,
        lambda rng: problems.WarpCase(
            "random",
            tuple(int(size) for size in rng.integers(1, (4, 30, 30, 6))),
            int(rng.integers(1, 9)),
            str(rng.choice(FILL_MODES)),
        ),
        ("reals", "extreme"),
        on_host=True,
    ),
    "gather": Operation(
        tuple(
            problems.GatherCase(str(row), (7, *row), 6, scale)
            for row, scale in zip(((), (1,), (3,), (4, 4, 3), (33,)), (1.0, 0.5, 1 / 255) * 2)
        ),
        gather,
        lambda rng: problems.GatherCase(
            "random", problems.random_shape(rng), int(rng.integers(1, 40)), float(rng.uniform(0, 2))
        ),
        ("integers", "reals"),
    ),
    "sgd": Operation(
        tuple(
            problems.SgdCase(f"{shape} {momentum} {nesterov}", shape, momentum, nesterov)
            for shape in _SHAPES
            for momentum, nesterov in ((0.0, False), (0.9, False), (0.9, True))
        ),
        sgd,
        lambda rng: problems.SgdCase(
            "random",
            problems.random_shape(rng),
            round(float(rng.uniform(0.1, 0.99)), 3),
            bool(rng.integers(2)),
        ),
        ("reals",),
    ),
    "rmsprop": Operation(
        tuple(
            problems.RmspropCase(f"{shape} {rho}", shape, rho)
            for shape in _SHAPES
            for rho in (0.9, 0.999)
        ),
        rmsprop,
        lambda rng: problems.RmspropCase(
            "random", problems.random_shape(rng), round(float(rng.uniform(0.5, 0.9995)), 4)
        ),
        ("reals",),
    ),
    "adam": Operation(
        tuple(
            problems.AdamCase(f"{shape} {step}", shape, step)
            for shape in _SHAPES
            for step in (1, 1000)
        ),
        adam,
        lambda rng: problems.AdamCase(
            "random", problems.random_shape(rng), int(rng.integers(1, 10_000))
        ),
        ("reals",),
    ),
}
