"""Calls of the kernels, mostly right ones: of `pyconv.kernels`, and of the binding under it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from source import Source

import pyconv
from pyconv import kernels
from pyconv.backend import cpu

# What the functions say that they raise, and what NumPy raises for results that no memory holds.
REFUSED = (TypeError, ValueError, MemoryError)

Call = tuple[Callable[..., Any], list[Any], dict[str, Any]]

_CHANNELS = [1, 2, 3, 4, 5, 8, 9, 16, 17, 32]
_MODES = ["fp32", "direct", "winograd4", "winograd6"]


def choose_path(s: Source) -> None:
    """An instruction set, a math mode, and one thread or two; pairs wherever they can be."""
    cpu().set_pair_mode("always")
    pyconv.set_isa(s.pick(pyconv.available_isas()))
    pyconv.set_math_mode(s.pick(_MODES))
    pyconv.set_num_threads(1 + s.flag(200))


def _pair(s: Source, values: list[int]) -> Any:
    return (s.pick(values), s.pick(values)) if s.flag() else s.pick(values)


def _padding(s: Source) -> Any:
    some = [0, 1, 2, 5]
    return s.pick(
        [
            "valid",
            "same",
            s.pick(some),
            (s.pick(some), s.pick(some)),
            ((s.pick(some), s.pick(some)), (s.pick(some), s.pick(some))),
            # Legal as long as the strides are as large; else it asks for too much memory.
            ((0, 2**31 - 1), (0, 0)),
            ((2**31 - 1, 2**31 - 1), (2**31 - 1, 2**31 - 1)),
        ][: 5 if s.flag(4) else 7]
    )


_STEPS = [1, 1, 1, 2, 3, 2**31 - 1, 2**30]


class _Conv:
    """Shapes of a convolution."""

    def __init__(self, s: Source) -> None:
        self.n = s.pick([1, 2, 0, 5])
        self.h, self.w = 1 + s.below(12), 1 + s.below(12)
        self.groups = s.pick([1, 1, 2, 3])
        self.c, self.oc = s.pick(_CHANNELS) * self.groups, s.pick(_CHANNELS) * self.groups
        if s.flag(4):  # depthwise
            self.groups = self.c
            self.oc = self.c
        self.kernel = s.pick([(3, 3), (1, 1), (2, 3), (5, 4), (1, 3)])
        self.strides = _pair(s, _STEPS)
        self.padding = _padding(s)
        self.dilation = _pair(s, [1, 1, 1, 2, 3, 2**31 - 1])
        self.activation = s.pick([None, "relu"])
        self.x = (self.n, self.h, self.w, self.c)
        self.weights = (*self.kernel, self.c // self.groups, self.oc)
        size = kernels.window_output_size(
            (self.h, self.w), self.kernel, self.strides, self.padding, self.dilation
        )
        # Where the window does not fit, or the result is too large, any shape will be refused.
        rows, columns = size if 0 < math.prod(size) < 10_000 and min(size) > 0 else (1, 1)
        self.y = (self.n, rows, columns, self.oc)
        self.pooled = (self.n, rows // 2, columns // 2, self.oc)

    @property
    def geometry(self) -> list[Any]:
        return [self.strides, self.padding, self.dilation, self.groups]


def _conv2d(s: Source) -> Call:
    c = _Conv(s)
    args = [s.array(*c.x), s.array(*c.weights), s.pick([None, s.array(c.oc)])]
    results = {"out": s.array(*c.y), "bfloat16": s.flag()}
    return kernels.conv2d, [*args, *c.geometry, c.activation], results


def _conv2d_backward_data(s: Source) -> Call:
    c = _Conv(s)
    args = [s.array(*c.y), s.array(*c.weights), c.x, *c.geometry, c.activation]
    results = {"y": s.array(*c.y), "out": s.array(*c.x), "bfloat16": s.flag()}
    return kernels.conv2d_backward_data, args, results


def _conv2d_backward_weights(s: Source) -> Call:
    c = _Conv(s)
    args = [s.array(*c.y), s.array(*c.x), c.weights, *c.geometry, c.activation]
    results = {"y": s.array(*c.y), "dw": s.array(*c.weights), "db": s.array(c.oc)}
    return kernels.conv2d_backward_weights, args, results


def _conv2d_backward(s: Source) -> Call:
    c = _Conv(s)
    args = [s.array(*c.y), s.array(*c.x), s.array(*c.weights), *c.geometry, c.activation]
    results = {"dx": s.array(*c.x), "dw": s.array(*c.weights), "db": s.array(c.oc)}
    results |= {"y": s.array(*c.y), "bfloat16": s.flag()}
    return kernels.conv2d_backward, args, results


def _dropping(s: Source) -> list[Any]:
    rate = s.pick([0.0, 0.5, 0.25, 0.999, 1 - 2**-53])
    offset = s.pick([0, 3, 2**64 - 1, np.array(5, np.uint64)])
    return [rate, s.pick([0, 1, 2**64 - 1]), offset]


def _conv2d_pool(s: Source) -> Call:
    c = _Conv(s)
    args = [s.array(*c.x), s.array(*c.weights), s.pick([None, s.array(c.oc)])]
    results = {"out": s.array(*c.pooled), "winner": s.array(*c.pooled, dtype=np.uint8)}
    dropping = _dropping(s)
    results["bfloat16"] = s.flag()
    return kernels.conv2d_pool, [*args, *c.geometry, *dropping], results


def _conv2d_pool_backward(s: Source) -> Call:
    c = _Conv(s)
    args = [s.array(*c.pooled), s.array(*c.pooled, dtype=np.uint8), s.array(*c.x)]
    args += [s.array(*c.weights), *c.geometry, _dropping(s)[0]]
    results = {"dx": s.array(*c.x), "dw": s.array(*c.weights), "db": s.array(c.oc)}
    return kernels.conv2d_pool_backward, args, {"need_dx": s.flag(), **results}


def _conv2d_pool_backward_through(s: Source) -> Call:
    first, second = _Conv(s), _Conv(s)
    groups = s.pick([1, first.oc])
    filters = groups * s.pick([1, 2, 8])
    weights = (*second.kernel, first.oc // groups, filters)
    size = kernels.window_output_size(
        first.y[1:3], second.kernel, second.strides, second.padding, second.dilation
    )
    rows, columns = size if 0 < math.prod(size) < 10_000 and min(size) > 0 else (1, 1)
    pooled = (first.n, rows // 2, columns // 2, filters)
    args = [s.array(*pooled), s.array(*pooled, dtype=np.uint8), s.array(*weights)]
    args += [s.array(*first.y), s.array(*first.x), first.weights]
    args += [second.strides, second.padding, second.dilation, groups, _dropping(s)[0]]
    args += [*first.geometry, first.activation]
    results = {"dw": s.array(*first.weights), "db": s.array(first.oc)}
    return kernels.conv2d_pool_backward_through, args, results


def _pool(s: Source) -> tuple[Any, ...]:
    x = (s.pick([1, 2, 0]), 1 + s.below(9), 1 + s.below(9), s.pick([*_CHANNELS, 70]))
    pool = _pair(s, [2, 2, 3, 1, 5, 17, 2**16])
    strides = _pair(s, _STEPS) if s.flag() else None
    padding = _padding(s)
    pair = pool if isinstance(pool, tuple) else (pool, pool)
    size = kernels.window_output_size(x[1:3], pair, pair if strides is None else strides, padding)
    rows, columns = size if 0 < math.prod(size) < 10_000 and min(size) > 0 else (1, 1)
    return x, (x[0], rows, columns, x[3]), [pool, strides, padding], kernels.argmax_dtype(pair)


def _max_pool2d(s: Source) -> Call:
    x, y, geometry, dtype = _pool(s)
    results = {"out": s.array(*y), "argmax": s.array(*y, dtype=dtype)}
    return kernels.max_pool2d, [s.array(*x), *geometry], results


def _max_pool2d_backward(s: Source) -> Call:
    x, y, geometry, dtype = _pool(s)
    args = [s.array(*y), s.array(*y, dtype=dtype), x, *geometry]
    return kernels.max_pool2d_backward, args, {"out": s.array(*x)}


def _avg_pool2d(s: Source) -> Call:
    x, y, geometry, _ = _pool(s)
    return kernels.avg_pool2d, [s.array(*x), *geometry], {"out": s.array(*y)}


def _avg_pool2d_backward(s: Source) -> Call:
    x, y, geometry, _ = _pool(s)
    return kernels.avg_pool2d_backward, [s.array(*y), x, *geometry], {"out": s.array(*x)}


def _pad2d(s: Source) -> Call:
    x = (s.pick([1, 2, 0]), 1 + s.below(9), 1 + s.below(9), s.pick(_CHANNELS))
    sides = [s.pick([0, 1, -1, 3, -4]) for _ in range(4)]
    padding = s.pick([(sides[:2], sides[2:]), 1, (2, 0), -1])
    if s.flag():
        return kernels.pad2d_backward, [s.array(*x), padding], {}
    y = (x[0], max(0, x[1] + sides[0] + sides[1]), max(0, x[2] + sides[2] + sides[3]), x[3])
    return kernels.pad2d, [s.array(*x), padding], {"out": s.array(*y)}


def _dense(s: Source) -> Call:
    n, inputs, units = s.pick([1, 2, 0, 7]), *(s.pick([1, 3, 8, 17, 64]) for _ in range(2))
    x, w, y = (n, inputs), (inputs, units), (n, units)
    activation = s.pick([None, "relu"])
    masked = {"y": s.array(*y)}
    dw = {"dw": s.array(*w), "db": s.array(units)}
    return s.pick(
        [
            (
                kernels.dense,
                [s.array(*x), s.array(*w), s.pick([None, s.array(units)]), activation],
                {"out": s.array(*y), "bfloat16": s.flag()},
            ),
            (
                kernels.dense_backward_data,
                [s.array(*y), s.array(*w), activation],
                {**masked, "out": s.array(*x), "bfloat16": s.flag()},
            ),
            (
                kernels.dense_backward_weights,
                [s.array(*y), s.array(*x), activation],
                {**masked, **dw},
            ),
            (
                kernels.dense_backward,
                [s.array(*y), s.array(*x), s.array(*w), activation],
                {**masked, **dw, "dx": s.array(*x), "bfloat16": s.flag()},
            ),
        ]
    )


def _pointwise(s: Source) -> Call:
    shape = s.pick([(3, 5), (1,), (), (0,), (2, 3, 4), (65,), (1,) * 32])
    x, dy, out = s.array(*shape), s.array(*shape), {"out": s.array(*shape)}
    if s.flag(4):
        out["out"] = x  # in place
    name, slope = s.pick([*kernels.POINTWISE, "relu"]), s.pick([0.2, 0.0, 1e30, -1.0, 1e300])
    return s.pick(
        [
            (kernels.relu, [x], out),
            (kernels.round_bfloat16, [x], out),
            (kernels.relu_backward, [dy, x], out),
            (kernels.activate, [x, name, slope], out),
            (kernels.activate_backward, [dy, x, name, slope], out),
            (kernels.dropout, [x, *_dropping(s)], out),
            (kernels.dropout_backward, [x, *_dropping(s)], out),
        ]
    )


def _softmax(s: Source) -> Call:
    shape = (s.pick([1, 3, 0, 9]), s.pick([1, 2, 10, 33, 0]))
    x, y = s.array(*shape), s.array(*shape)
    rows = {"loss": s.array(shape[0]), "probabilities": s.array(*shape), "dlogits": s.array(*shape)}
    return s.pick(
        [
            (kernels.softmax, [x], {"out": s.array(*shape)}),
            (kernels.softmax_backward, [x, y], {"out": s.array(*shape)}),
            (kernels.softmax_cross_entropy, [x, y], rows),
        ]
    )


def _batch_norm(s: Source) -> Call:
    c = s.pick(_CHANNELS)
    shape = (*s.pick([(3,), (1,), (2, 3, 2), (0,), (0, 2, 2)]), c)
    x, dy = s.array(*shape), s.array(*shape)
    gamma, beta = (s.pick([s.array(c), None]) for _ in range(2))
    one, two = s.array(c), s.array(c)
    epsilon = s.pick([1e-3, 0.0, 1e300, -1.0])
    out = {"out": s.array(*shape)}
    return s.pick(
        [
            (kernels.batch_norm, [x, gamma, beta, one, two, epsilon], out),
            (
                kernels.batch_norm_training,
                [x, gamma, beta, one, two, s.pick([0.99, 0, 1, 2]), epsilon],
                {**out, "mean": s.array(c), "inverse": s.array(c)},
            ),
            (
                kernels.batch_norm_backward,
                [dy, x, gamma, one, two],
                {"dx": s.array(*shape), "dgamma": s.array(c), "dbeta": s.array(c)},
            ),
        ]
    )


def _gather(s: Source) -> Call:
    dtype = s.pick([np.float32, np.uint8])
    tail = s.pick([(), (3,), (2, 2, 1), (0,)])
    rows, count = s.pick([1, 4, 0]), s.pick([1, 3, 0])
    indices = s.array(count, dtype=np.int64) * s.pick([1, -1, 2**56])
    args = [s.array(rows, *tail, dtype=dtype), indices, s.pick([1.0, 1 / 255, 1e39])]
    return kernels.gather, args, {"out": s.array(count, *tail)}


def _warp_affine(s: Source) -> Call:
    x = (s.pick([1, 3]), 1 + s.below(6), 1 + s.below(6), s.pick([1, 3, 4]))
    count = s.pick([x[0], 2, 0])
    scale = s.pick([1.0, 0.0, -1.5, 1e9, 1e300, 1e-300, float("nan"), 2.0**31, 2.0**63])
    matrices = np.resize(
        s.pick([[1, 0, 0, 0, 1, 0], [0.6, -0.8, 1.5, 0.8, 0.6, -3]]), (count, 2, 3)
    )
    matrices = (matrices * scale).astype(np.float64)
    indices = s.pick([None, s.array(count, dtype=np.int64) % max(1, x[0])])
    mode = s.pick(["nearest", "constant", "reflect", "wrap", "mirror"])
    args = [s.array(*x), matrices, indices, mode, s.pick([0.0, 1e39, float("nan")])]
    return (
        kernels.warp_affine,
        args,
        {"threads": s.pick([None, 1, 2]), "out": s.array(count, *x[1:])},
    )


def _step(s: Source) -> Call:
    shape = s.pick([(3, 5), (1,), (), (0,), (67,)])
    w, dw, m, v = (s.array(*shape) for _ in range(4))
    rate = s.pick([0.1, 0.0, 1e39, float("nan"), np.array(0.1, np.float32)])
    beta = s.pick([0.9, 0.0, 1.0, 2.0, float("nan")])
    step = s.pick([1, 2, 0, 2**63 - 1, 2**64 - 1, np.array(3, np.uint64)])
    return s.pick(
        [
            (kernels.sgd_step, [w, dw, s.pick([None, m]), rate, beta, s.flag()], {}),
            (kernels.rmsprop_step, [w, dw, m, rate, beta, s.pick([1e-7, 0.0])], {}),
            (kernels.adam_step, [w, dw, m, v, step, rate, beta, beta, s.pick([1e-7, 0.0])], {}),
        ]
    )


_CALLS = [
    _conv2d,
    _conv2d_backward_data,
    _conv2d_backward_weights,
    _conv2d_backward,
    _conv2d_pool,
    _conv2d_pool_backward,
    _conv2d_pool_backward_through,
    _max_pool2d,
    _max_pool2d_backward,
    _avg_pool2d,
    _avg_pool2d_backward,
    _pad2d,
    _dense,
    _pointwise,
    _softmax,
    _batch_norm,
    _gather,
    _warp_affine,
    _step,
]


def _damage(s: Source, value: Any, arrays: list[np.ndarray]) -> Any:
    if isinstance(value, np.ndarray):
        return s.damaged(value, arrays)
    if isinstance(value, tuple) and value and s.flag():
        at = s.below(len(value))
        return (*value[:at], s.odd(), *value[at + 1 :])
    return s.odd()


def _damage_some(s: Source, args: list[Any], keywords: dict[str, Any]) -> None:
    """Nothing, one argument, or two."""
    for _ in range(s.pick([0, 1, 1, 2])):
        arrays = [v for v in (*args, *keywords.values()) if isinstance(v, np.ndarray)]
        key = s.pick([*range(len(args)), *keywords])
        where: Any = args if isinstance(key, int) else keywords
        where[key] = _damage(s, where[key], arrays)


def call_kernels(data: bytes) -> None:
    """`pyconv.kernels`: what a user calls."""
    s = Source(data)
    choose_path(s)
    function, args, keywords = s.pick(_CALLS)(s)
    for name in list(keywords):
        if s.flag(3):
            del keywords[name]
    _damage_some(s, args, keywords)
    with contextlib.suppress(REFUSED):
        function(*args, **keywords)


class _Captured(Exception):
    def __init__(self, operation: str, arguments: tuple[Any, ...]) -> None:
        self.operation, self.arguments = operation, arguments


def _capture(operation: str, *arguments: Any) -> None:
    raise _Captured(operation, arguments)


def call_bindings(data: bytes) -> None:
    """`pyconv._cpu`: what `pyconv.kernels` calls, with arguments that it would never pass."""
    s = Source(data)
    choose_path(s)
    function, args, keywords = s.pick(_CALLS)(s)
    original, kernels._call = kernels._call, _capture
    try:
        function(*args, **keywords)
        return  # not a kernel of the table: gather, warp_affine
    except _Captured as captured:
        operation, arguments = captured.operation, list(captured.arguments)
    except REFUSED:
        return
    finally:
        kernels._call = original
    _damage_some(s, arguments, {})
    if s.flag(16):
        arguments = arguments[:-1]
    with contextlib.suppress(REFUSED):
        getattr(cpu(), operation)(*arguments)


def record_sequences(data: bytes) -> None:
    """`pyconv._cpu.Sequence`: networks as one call, recorded and run in any order."""
    s = Source(data)
    choose_path(s)
    host = cpu()
    sequences = [host.Sequence(), host.Sequence()]
    kept: list[Any] = []  # a recorded kernel keeps pointers only; the arrays are its caller's
    samples = s.pick([1, 2])
    result = s.array(samples, 4, 4, 2)
    try:
        for _ in range(1 + s.below(12)):
            sequence = s.pick(sequences)
            action = s.below(8)
            try:
                if action == 0:
                    sequence.begin()
                elif action == 1:
                    sequence.end()
                elif action == 2:
                    x = s.array(3, 4, 4, 2)
                    arrays = [array for array in kept if isinstance(array, np.ndarray)]
                    y = s.damaged(x, [x, *arrays]) if s.flag(4) else np.empty_like(x)
                    sequence.run(s.damaged(x, [x, *arrays]) if s.flag(4) else x, y)
                elif action == 3:
                    len(sequence)
                elif s.flag(8):
                    function, args, keywords = s.pick(_CALLS)(s)
                    kept += [*args, *keywords.values()]
                    kept.append(function(*args, **keywords))
                else:
                    w, b = s.array(3, 3, 2, 2), s.array(2)
                    before = result
                    function, *more = s.pick(
                        [
                            (kernels.relu,),
                            (kernels.conv2d, w, b, 1, "same"),
                            (kernels.activate, "tanh"),
                            (kernels.pad2d, 0),
                        ]
                    )
                    result = function(before, *more)
                    kept += [w, b, before, result]
            except (*REFUSED, RuntimeError):
                pass
    finally:
        for sequence in sequences:
            with contextlib.suppress(RuntimeError):
                sequence.end()
