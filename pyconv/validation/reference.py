"""What every kernel must compute, in float64 NumPy, written to be read.

Names, argument order and defaults are those of `pyconv.kernels`, without `out=`. Arrays are NHWC,
weights HWIO. Invalid geometry raises ValueError, so that the reference also says which calls are
legal. `tests/test_reference.py` checks the gradients here by finite differences, and Philox against
its published vectors.
"""

from __future__ import annotations

import numpy as np

UNIT_ROUNDOFF = 2.0**-24  # float32, to nearest


# ----------------------------------------------------------------------------------------- geometry


def pair(value) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else value
    return first, second


def paddings(padding, size, kernel, strides, dilation) -> tuple[tuple[int, int], tuple[int, int]]:
    """((top, bottom), (left, right)) of any accepted `padding`; `size` is the height and width."""
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        # TensorFlow: ceil(size / stride) outputs; an odd total puts the extra row at the bottom,
        # the column at the right.
        totals = [
            max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            for n, k, s, d in zip(size, kernel, strides, dilation)
        ]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple(pair(side) for side in pair(padding))


def output_size(size, kernel, strides, pads, dilation) -> tuple[int, int]:
    result = []
    for n, k, s, (before, after), d in zip(size, kernel, strides, pads, dilation):
        if n < 1 or k < 1 or s < 1 or d < 1 or before < 0 or after < 0:
            raise ValueError("sizes, strides and dilation start at 1, padding at 0")
        room = n + before + after - ((k - 1) * d + 1)
        if room < 0:
            raise ValueError("the window does not fit into the padded input")
        result.append(room // s + 1)
    return tuple(result)


def window_geometry(size, kernel, strides, padding, dilation):
    strides, dilation = pair(strides), pair(dilation)
    if min(*strides, *dilation) < 1:
        raise ValueError("strides and dilation start at 1")
    pads = paddings(padding, size, kernel, strides, dilation)
    return strides, dilation, pads, output_size(size, kernel, strides, pads, dilation)


def tap(padded, row, column, strides, out):
    """The input pixel that each of the `out` windows sees at one kernel position (a view)."""
    return padded[
        :,
        row : row + (out[0] - 1) * strides[0] + 1 : strides[0],
        column : column + (out[1] - 1) * strides[1] + 1 : strides[1],
    ]


def pad_image(x, pads, value):
    return np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=value)


def crop_image(x, pads, size):
    (top, _), (left, _) = pads
    return x[:, top : top + size[0], left : left + size[1]]


# -------------------------------------------------------------------------------------- convolution


def conv_geometry(x_shape, w_shape, strides, padding, dilation_rate, groups):
    channels, filters = x_shape[3], w_shape[3]
    if min(channels, filters, groups) < 1 or channels % groups or filters % groups:
        raise ValueError("groups must divide channels and filters, all at least 1")
    if w_shape[2] != channels // groups:
        raise ValueError("the weights' third dimension is channels / groups")
    return window_geometry(x_shape[1:3], w_shape[:2], strides, padding, dilation_rate)


def group_slices(channels, filters, groups):
    c, f = channels // groups, filters // groups
    return [(slice(g * c, (g + 1) * c), slice(g * f, (g + 1) * f)) for g in range(groups)]


def conv2d(
    x, w, b=None, strides=1, padding="valid", dilation_rate=1, groups=1, activation=None
) -> np.ndarray:
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    strides, dilation, pads, out = conv_geometry(
        x.shape, w.shape, strides, padding, dilation_rate, groups
    )
    padded = pad_image(x, pads, 0.0)
    y = np.zeros((x.shape[0], *out, w.shape[3]))
    for kh, kw in np.ndindex(w.shape[:2]):
        seen = tap(padded, kh * dilation[0], kw * dilation[1], strides, out)
        for cs, fs in group_slices(x.shape[3], w.shape[3], groups):
            y[..., fs] += seen[..., cs] @ w[kh, kw, :, fs]
    if b is not None:
        y += b
    return relu(y) if activation == "relu" else y


def conv2d_backward_data(
    dy,
    w,
    x_shape,
    strides=1,
    padding="valid",
    dilation_rate=1,
    groups=1,
    activation=None,
    *,
    y=None,
) -> np.ndarray:
    dy, w = before_activation(dy, activation, y), np.asarray(w, np.float64)
    strides, dilation, pads, out = conv_geometry(
        x_shape, w.shape, strides, padding, dilation_rate, groups
    )
    dx = pad_image(np.zeros(x_shape), pads, 0.0)
    for kh, kw in np.ndindex(w.shape[:2]):
        seen = tap(dx, kh * dilation[0], kw * dilation[1], strides, out)
        for cs, fs in group_slices(x_shape[3], w.shape[3], groups):
            seen[..., cs] += dy[..., fs] @ w[kh, kw, :, fs].T
    return crop_image(dx, pads, x_shape[1:3])


def conv2d_backward_weights(
    dy,
    x,
    w_shape,
    strides=1,
    padding="valid",
    dilation_rate=1,
    groups=1,
    activation=None,
    *,
    y=None,
) -> tuple[np.ndarray, np.ndarray]:
    dy, x = before_activation(dy, activation, y), np.asarray(x, np.float64)
    strides, dilation, pads, out = conv_geometry(
        x.shape, w_shape, strides, padding, dilation_rate, groups
    )
    padded = pad_image(x, pads, 0.0)
    dw = np.zeros(w_shape)
    for kh, kw in np.ndindex(w_shape[:2]):
        seen = tap(padded, kh * dilation[0], kw * dilation[1], strides, out)
        for cs, fs in group_slices(x.shape[3], w_shape[3], groups):
            dw[kh, kw, :, fs] = np.tensordot(
                seen[..., cs], dy[..., fs], axes=((0, 1, 2), (0, 1, 2))
            )
    return dw, dy.sum(axis=(0, 1, 2))


def conv2d_backward(
    dy, x, w, strides=1, padding="valid", dilation_rate=1, groups=1, activation=None, *, y=None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    geometry = (strides, padding, dilation_rate, groups, activation)
    dx = conv2d_backward_data(dy, w, np.shape(x), *geometry, y=y)
    return dx, *conv2d_backward_weights(dy, x, np.shape(w), *geometry, y=y)


def before_activation(dy, activation, y):
    return np.asarray(dy, np.float64) if activation is None else relu_backward(dy, y)


# -------------------------------------------------------------------------------------- max pooling


def pool_geometry(x_shape, pool_size, strides, padding):
    pool = pair(pool_size)
    if x_shape[3] < 1:
        raise ValueError("at least one channel")
    strides = pool if strides is None else pair(strides)
    strides, _, pads, out = window_geometry(x_shape[1:3], pool, strides, padding, 1)
    if any(max(sides) >= size for sides, size in zip(pads, pool)):
        raise ValueError("a window could lie in the padding alone")
    return pool, strides, pads, out


def max_pool2d(x, pool_size=2, strides=None, padding="valid") -> tuple[np.ndarray, np.ndarray]:
    x = np.asarray(x, np.float64)
    pool, strides, pads, out = pool_geometry(x.shape, pool_size, strides, padding)
    padded = pad_image(x, pads, 0.0)
    inside = pad_image(np.ones(x.shape, bool), pads, False)
    shape = (x.shape[0], *out, x.shape[3])
    y, argmax, found = np.zeros(shape), np.zeros(shape, np.int64), np.zeros(shape, bool)
    for position, (kh, kw) in enumerate(np.ndindex(pool)):
        seen = tap(padded, kh, kw, strides, out)
        # Strictly greater: the first maximum wins. Nothing is greater than a NaN, so the first NaN
        # wins.
        better = ~found | (seen > y) | (np.isnan(seen) & ~np.isnan(y))
        better &= tap(inside, kh, kw, strides, out)
        y, argmax, found = (
            np.where(better, seen, y),
            np.where(better, position, argmax),
            found | better,
        )
    return y, argmax.astype(np.uint8 if pool[0] * pool[1] <= 256 else np.int32)


def max_pool2d_backward(
    dy, argmax, x_shape, pool_size=2, strides=None, padding="valid"
) -> np.ndarray:
    dy = np.asarray(dy, np.float64)
    pool, strides, pads, out = pool_geometry(x_shape, pool_size, strides, padding)
    dx = pad_image(np.zeros(x_shape), pads, 0.0)
    for position, (kh, kw) in enumerate(np.ndindex(pool)):
        seen = tap(dx, kh, kw, strides, out)
        seen += np.where(argmax == position, dy, 0.0)
    return crop_image(dx, pads, x_shape[1:3])


# ---------------------------------------------------------------------- average pooling, padding


def avg_pool2d(x, pool_size=2, strides=None, padding="valid") -> np.ndarray:
    x = np.asarray(x, np.float64)
    pool, strides, pads, out = pool_geometry(x.shape, pool_size, strides, padding)
    padded = pad_image(x, pads, 0.0)
    y = np.zeros((x.shape[0], *out, x.shape[3]))
    for kh, kw in np.ndindex(pool):
        y += tap(padded, kh, kw, strides, out)
    return y / pixels_in_windows(x.shape, pool, strides, pads, out)


def avg_pool2d_backward(dy, x_shape, pool_size=2, strides=None, padding="valid") -> np.ndarray:
    pool, strides, pads, out = pool_geometry(x_shape, pool_size, strides, padding)
    share = np.asarray(dy, np.float64) / pixels_in_windows(x_shape, pool, strides, pads, out)
    dx = pad_image(np.zeros(x_shape), pads, 0.0)
    for kh, kw in np.ndindex(pool):
        seen = tap(dx, kh, kw, strides, out)
        seen += share
    return crop_image(dx, pads, x_shape[1:3])


def pixels_in_windows(x_shape, pool, strides, pads, out) -> np.ndarray:
    """(1, oh, ow, 1): padding does not count."""
    inside = pad_image(np.ones((1, *x_shape[1:3], 1)), pads, 0.0)
    return np.sum([tap(inside, kh, kw, strides, out) for kh, kw in np.ndindex(pool)], axis=0)


def pad2d(x, padding=1) -> np.ndarray:
    x = np.asarray(x, np.float64)
    pads = tuple(pair(side) for side in pair(padding))
    if min(size + sum(sides) for size, sides in zip(x.shape[1:3], pads)) < 1:
        raise ValueError("nothing remains of the image")
    padded = pad_image(x, tuple((max(a, 0), max(b, 0)) for a, b in pads), 0.0)
    (top, bottom), (left, right) = (tuple(max(-side, 0) for side in sides) for sides in pads)
    return padded[:, top : padded.shape[1] - bottom, left : padded.shape[2] - right]


def pad2d_backward(dy, padding=1) -> np.ndarray:
    (top, bottom), (left, right) = (pair(side) for side in pair(padding))
    return pad2d(dy, ((-top, -bottom), (-left, -right)))


# ------------------------------------------------------------- convolution, ReLU, pooling, dropout


def conv2d_pool(x, w, b=None, rate=0.0, seed=0, offset=0, first=0, **geometry):
    y, argmax = max_pool2d(conv2d(x, w, b, **geometry, activation="relu"))
    kept = dropout(np.ones(y.shape), rate, seed, offset, first) > 0
    winner = np.where((y > 0) & kept, argmax, 4).astype(np.uint8)
    return dropout(y, rate, seed, offset, first), winner


def conv2d_pool_gradient(dy, winner, shape, rate=0.0) -> np.ndarray:
    """The dense gradient, of `shape`, that the pooled one stands for."""
    alive = np.where(winner == 4, 0.0, np.asarray(dy, np.float64) / (1 - rate))
    return max_pool2d_backward(alive, np.where(winner == 4, 0, winner), shape)


def conv2d_pool_backward(dy, winner, x, w, rate=0.0, **geometry):
    dense_dy = conv2d_pool_gradient(dy, winner, conv2d(x, w, **geometry).shape, rate)
    return conv2d_backward(dense_dy, x, w, **geometry)


def conv2d_pool_backward_through(
    dy, winner, w, y, x, first_w_shape, rate=0.0, first_activation=None, **first_geometry
):
    """Where the second layer has steps of 1 and no padding."""
    dx, *_ = conv2d_pool_backward(dy, winner, y, w, rate)
    geometry = {name.removeprefix("first_"): value for name, value in first_geometry.items()}
    return conv2d_backward_weights(
        dx, x, first_w_shape, **geometry, activation=first_activation, y=y
    )


# -------------------------------------------------------------------------------------------- dense


def check_dense(x_shape, w_shape) -> None:
    if x_shape[1] != w_shape[0] or min(w_shape) < 1:
        raise ValueError("x (n, inputs), w (inputs, units), at least one input and one unit")


def dense(x, w, b=None, activation=None) -> np.ndarray:
    check_dense(np.shape(x), np.shape(w))
    y = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
    if b is not None:
        y += b
    return relu(y) if activation == "relu" else y


def dense_backward_data(dy, w, activation=None, *, y=None) -> np.ndarray:
    return before_activation(dy, activation, y) @ np.asarray(w, np.float64).T


def dense_backward_weights(dy, x, activation=None, *, y=None) -> tuple[np.ndarray, np.ndarray]:
    dy = before_activation(dy, activation, y)
    return np.asarray(x, np.float64).T @ dy, dy.sum(axis=0)


def dense_backward(
    dy, x, w, activation=None, *, y=None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    check_dense(np.shape(x), np.shape(w))
    dx = dense_backward_data(dy, w, activation, y=y)
    return dx, *dense_backward_weights(dy, x, activation, y=y)


# ---------------------------------------------------------------------------------------- pointwise


def relu(x) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return np.where((x > 0) | np.isnan(x), x, 0.0)


def relu_backward(dy, y) -> np.ndarray:
    return np.where(np.asarray(y) > 0, np.asarray(dy, np.float64), 0.0)


def round_bfloat16(x) -> np.ndarray:
    """By multiples of the unit in the last place, where NumPy rounds halves to even."""
    x = np.asarray(x, np.float64)
    with np.errstate(invalid="ignore"):
        _, exponent = np.frexp(x)  # 2^(exponent - 1) <= |x| < 2^exponent
    # 8 significant bits, and no less than those of the denormals.
    unit = np.ldexp(1.0, np.maximum(exponent - 8, -133))
    finite = np.isfinite(x)
    y = np.where(finite, np.rint(np.where(finite, x, 0.0) / unit) * unit, x)
    return np.where(finite & (np.abs(y) >= 2.0**128), np.copysign(np.inf, x), y)


def activate(x, name, negative_slope=0.2) -> np.ndarray:
    x = np.asarray(x, np.float64)
    e = np.exp(-np.abs(x))
    if name == "sigmoid":
        return np.where(x > 0, 1.0, e) / (1.0 + e)
    if name == "tanh":
        return np.tanh(x)
    if name == "softplus":
        return np.maximum(x, 0.0) + np.log1p(e)
    assert name == "leaky_relu"
    return np.where(x > 0, x, x * np.float64(np.float32(negative_slope)))


def activate_backward(dy, y, name, negative_slope=0.2) -> np.ndarray:
    dy, y = np.asarray(dy, np.float64), np.asarray(y, np.float64)
    if name == "sigmoid":
        return dy * y * (1.0 - y)
    if name == "tanh":
        return dy * (1.0 - y) * (1.0 + y)
    if name == "softplus":
        return dy * -np.expm1(-y)
    assert name == "leaky_relu"
    return np.where(y > 0, dy, dy * np.float64(np.float32(negative_slope)))


def log_softmax(x) -> np.ndarray:
    x = np.asarray(x, np.float64)
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def softmax(x) -> np.ndarray:
    return np.exp(log_softmax(x))


def softmax_backward(dy, y) -> np.ndarray:
    dy, y = np.asarray(dy, np.float64), np.asarray(y, np.float64)
    return y * (dy - (dy * y).sum(axis=-1, keepdims=True))


def softmax_cross_entropy(logits, labels, batch=None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels = np.asarray(labels, np.float64)
    log_p = log_softmax(logits)
    loss = -(labels * log_p).sum(axis=-1)
    probabilities = np.exp(log_p)
    dlogits = probabilities * labels.sum(axis=-1, keepdims=True) - labels
    return loss, probabilities, dlogits / max(len(labels) if batch is None else batch, 1)


# ------------------------------------------------------------------------------ batch normalization


def batch_norm(x, gamma, beta, mean, variance, epsilon=1e-3) -> np.ndarray:
    x, mean, variance = (np.asarray(a, np.float64) for a in (x, mean, variance))
    gamma = 1.0 if gamma is None else np.asarray(gamma, np.float64)
    beta = 0.0 if beta is None else np.asarray(beta, np.float64)
    return gamma * (x - mean) / np.sqrt(variance + epsilon) + beta


def batch_norm_training(
    x, gamma, beta, moving_mean, moving_variance, momentum=0.99, epsilon=1e-3
) -> tuple[np.ndarray, ...]:
    """(y, mean, inverse), as the kernel returns them, and the new moving mean and variance."""
    x = np.asarray(x, np.float64)
    rows = x.reshape(-1, x.shape[-1])
    mean, variance = rows.mean(axis=0), rows.var(axis=0)
    y = batch_norm(x, gamma, beta, mean, variance, epsilon)
    moved = [
        momentum * np.asarray(moving, np.float64) + (1.0 - momentum) * towards
        for moving, towards in ((moving_mean, mean), (moving_variance, variance))
    ]
    return y, mean, 1.0 / np.sqrt(variance + epsilon), *moved


def batch_norm_backward(dy, x, gamma, mean, inverse) -> tuple[np.ndarray, ...]:
    dy, x, mean, inverse = (np.asarray(a, np.float64) for a in (dy, x, mean, inverse))
    gamma = 1.0 if gamma is None else np.asarray(gamma, np.float64)
    axes = tuple(range(x.ndim - 1))
    normalized = (x - mean) * inverse
    dbeta, dgamma = dy.sum(axis=axes), (dy * normalized).sum(axis=axes)
    rows = max(x.size // x.shape[-1], 1)
    return gamma * inverse * (dy - (dbeta + normalized * dgamma) / rows), dgamma, dbeta


# ------------------------------------------------------------------------------------------ dropout


def philox4x32(counter, key) -> np.ndarray:
    """Philox4x32-10 (Salmon et al., 2011): counter (..., 4) and key (2,) give draws (..., 4)."""
    c0, c1, c2, c3 = (np.asarray(counter, np.uint64)[..., i] for i in range(4))
    k0, k1 = (np.uint64(word) for word in key)
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ k0,
            p1 & low,
            (p0 >> np.uint64(32)) ^ c3 ^ k1,
            p0 & low,
        )
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return np.stack([c0, c1, c2, c3], axis=-1)


def dropout_keeps(size, rate, seed, offset=0, first=0) -> np.ndarray:
    """Which of `size` elements survive; `first`, a multiple of 4, is the number of the first."""
    blocks = np.arange(-(-size // 4), dtype=np.uint64) + np.uint64(first // 4)
    counter = np.empty((len(blocks), 4), np.uint64)
    counter[:, 0], counter[:, 1] = blocks & np.uint64(0xFFFFFFFF), blocks >> np.uint64(32)
    counter[:, 2], counter[:, 3] = offset & 0xFFFFFFFF, offset >> 32
    draws = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32)).reshape(-1)[:size]
    return draws.astype(np.float64) >= rate * 2.0**32


def dropout(x, rate, seed, offset=0, first=0) -> np.ndarray:
    x = np.asarray(x, np.float64)
    keeps = dropout_keeps(x.size, rate, seed, offset, first).reshape(x.shape)
    return np.where(keeps, x / (1.0 - rate), 0.0)


dropout_backward = dropout


# ------------------------------------------------------------------------------------------- gather


def gather(source, indices, scale=1.0) -> np.ndarray:
    rows = np.clip(indices, 0, len(source) - 1)
    return np.asarray(source, np.float64)[rows] * scale


# --------------------------------------------------------- optimizers: new values, nothing in place


def sgd_step(w, dw, velocity, learning_rate, momentum=0.0, nesterov=False):
    w, step = np.asarray(w, np.float64), -learning_rate * np.asarray(dw, np.float64)
    if momentum == 0.0:
        return w + step, velocity
    velocity = momentum * np.asarray(velocity, np.float64) + step
    return w + (momentum * velocity + step if nesterov else velocity), velocity


def rmsprop_step(w, dw, velocity, learning_rate, rho=0.9, epsilon=1e-7):
    w, dw, velocity = (np.asarray(a, np.float64) for a in (w, dw, velocity))
    velocity = rho * velocity + (1.0 - rho) * dw**2
    return w - learning_rate * dw / np.sqrt(velocity + epsilon), velocity


def adam_step(w, dw, m, v, step, learning_rate, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
    w, dw, m, v = (np.asarray(a, np.float64) for a in (w, dw, m, v))
    alpha = learning_rate * np.sqrt(1.0 - beta_2**step) / (1.0 - beta_1**step)
    m = m + (dw - m) * (1.0 - beta_1)
    v = v + (dw**2 - v) * (1.0 - beta_2)
    return w - m * alpha / (np.sqrt(v) + epsilon), m, v


# ------------------------------------------------------------ Winograd's F(4x4, 3x3), F(6x6, 3x3)
#
# A. Lavin, S. Gray, "Fast algorithms for convolutional neural networks" (2016): m x m outputs are
# A^T [(G w G^T) * (B^T x B)] A, x being the patch under them, m + 2 pixels on a side. The kernels'
# rounding errors are bounded by the same sums with absolute values everywhere, so all of this takes
# a function that is applied to matrices and arrays first: abs, or none.

WINOGRAD_POINTS = {4: (0, 1, -1, 2, -2), 6: (0, 1, -1, 2, -2, 1 / 2, -1 / 2)}  # and infinity
# Of the transforms of both factors and of the result, and the bias.
WINOGRAD_ROUNDINGS = {4: 22, 6: 24}


def winograd_matrices(m) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A [point, output], B [input, point] and G [point, tap], by the algorithm of Toom and Cook: a
    polynomial's values at the points, and its interpolation from them."""
    points = WINOGRAD_POINTS[m]
    a = [[p**i for i in range(m)] for p in points] + [[0] * (m - 1) + [1]]
    others = [[q for q in points if q != p] for p in points]
    b = [np.append(np.poly(rest)[::-1], 0) for rest in others] + [np.poly(points)[::-1]]
    g = [[p**i / np.prod(p - np.array(rest)) for i in range(3)] for p, rest in zip(points, others)]
    return np.array(a, np.float64), np.array(b, np.float64).T, np.array([*g, [0, 0, 1]])


def winograd_tiles(x, pads, out, m, size, step):
    """The squares of `size` pixels that begin every `step` pixels: [n, rows, columns, i, j, c]."""
    rows, columns = -(-out[0] // m), -(-out[1] // m)
    (top, _), (left, _) = pads
    padded = np.zeros((x.shape[0], m * rows + size, m * columns + size, x.shape[3]))
    part = x[:, : padded.shape[1] - top, : padded.shape[2] - left]
    padded[:, top : top + part.shape[1], left : left + part.shape[2]] = part
    tiles = np.zeros((x.shape[0], rows, columns, size, size, x.shape[3]))
    for i, j in np.ndindex(size, size):
        seen = padded[:, i : i + step * rows : step, j : j + step * columns : step]
        tiles[:, :, :, i, j] = seen
    return tiles


def winograd_conv2d(m, x, w, b=None, padding="valid", of=np.asarray) -> np.ndarray:
    """conv2d with a 3x3 kernel and strides of 1."""
    x, w = of(np.asarray(x, np.float64)), of(np.asarray(w, np.float64))
    a, bt, g = map(of, winograd_matrices(m))
    *_, pads, out = conv_geometry(x.shape, w.shape, 1, padding, 1, 1)
    tiles = winograd_tiles(x, pads, out, m, m + 2, m)
    v = np.einsum("ip,jq,nrsijc->nrspqc", bt, bt, tiles, optimize=True)
    u = np.einsum("pi,qj,ijcf->pqcf", g, g, w)
    products = np.einsum("nrspqc,pqcf->nrspqf", v, u, optimize=True)
    y = np.einsum("pi,qj,nrspqf->nrisjf", a, a, products, optimize=True)
    n, rows, _, columns, _, f = y.shape
    y = y.reshape(n, m * rows, m * columns, f)[:, : out[0], : out[1]]
    return y if b is None else y + of(b)


def winograd_backward_data(m, dy, w, x_shape, padding="valid", of=np.asarray) -> np.ndarray:
    """The convolution of dy with the flipped kernel; the padding is at most 2 above and left."""
    *_, pads, _ = conv_geometry(x_shape, w.shape, 1, padding, 1, 1)
    flipped = np.asarray(w)[::-1, ::-1].transpose(0, 1, 3, 2)
    # With more below or right, the last rows and columns of dy come from padding alone.
    sides = tuple((2 - before, max(2 - after, 0)) for before, after in pads)
    dx = winograd_conv2d(m, dy, flipped, None, sides, of)
    return dx[:, : x_shape[1], : x_shape[2]]


def winograd_backward_weights(m, dy, x, padding="valid", of=np.asarray) -> np.ndarray:
    """dw, by the transposed algorithm."""
    x, dy = of(np.asarray(x, np.float64)), of(np.asarray(dy, np.float64))
    a, bt, g = map(of, winograd_matrices(m))
    *_, pads, out = conv_geometry(x.shape, (3, 3, x.shape[3], dy.shape[3]), 1, padding, 1, 1)
    tiles = winograd_tiles(x, pads, out, m, m + 2, m)
    v = np.einsum("ip,jq,nrsijc->nrspqc", bt, bt, tiles, optimize=True)
    gradients = winograd_tiles(dy, ((0, 0), (0, 0)), out, m, m, m)
    products = np.einsum("pi,qj,nrsijf->nrspqf", a, a, gradients, optimize=True)
    u = np.einsum("nrspqc,nrspqf->pqcf", v, products, optimize=True)
    return np.einsum("pi,qj,pqcf->ijcf", g, g, u)


# ------------------------------------------------------------------------------------- augmentation


def warp_coordinates(matrices, height, width) -> np.ndarray:
    """Where each pixel of the result comes from, (2, n, height, width), summed in the order that is
    promised, as "constant" and "wrap" have edges."""
    m = np.asarray(matrices, np.float64)[..., np.newaxis, np.newaxis]
    rows, columns = np.arange(height)[:, np.newaxis], np.arange(width)
    return np.stack([(m[:, i, 2] + m[:, i, 0] * rows) + m[:, i, 1] * columns for i in (0, 1)])


def warp_affine(x, matrices, indices=None, fill_mode="nearest", cval=0.0) -> np.ndarray:
    x = np.asarray(x, np.float64)
    n, (height, width) = len(matrices), x.shape[1:3]
    images = np.arange(n) if indices is None else np.asarray(indices)
    corners, weights, outside = [], [], np.zeros((n, height, width), bool)
    for at, size in zip(warp_coordinates(matrices, height, width), (height, width)):
        left, right = at < 0, at > size - 1
        if fill_mode == "constant":
            outside |= left | right
            at = np.where(left | right, 0.0, at)
        if fill_mode == "wrap":
            period = max(size - 1, 1)
            at = np.where(left, at + period * (np.floor(-at / period) + 1), at)
            at = np.where(right, at - period * np.floor(at / period), at) * (size > 1)
        first = np.floor(at)
        pair = np.stack([first, first + 1]).astype(np.int64)
        if fill_mode == "reflect":
            pair = pair % (2 * size)
            pair = np.minimum(pair, 2 * size - 1 - pair)
        corners.append(np.clip(pair, 0, size - 1))
        weights.append(np.stack([1 - (at - first), at - first]))
    y = np.zeros((n, height, width, x.shape[3]))
    for i, j in np.ndindex(2, 2):
        weight = (weights[0][i] * weights[1][j])[..., np.newaxis]
        pixels = x[images[:, np.newaxis, np.newaxis], corners[0][i], corners[1][j]]
        y += np.where(weight == 0, 0.0, weight * np.where(weight == 0, 0.0, pixels))
    y[outside] = cval
    return y


# -------------------------------------------------------------------------------------- comparisons


def sum_bound(terms: int, magnitude) -> np.ndarray:
    """Largest acceptable error of a float32 sum of `terms` products: K * 2^-23 * magnitude, where
    magnitude = sum |x||w|.

    However a kernel orders and splits the sum, and whether it fuses or not, a product meets at most
    `terms` roundings (its own, and terms - 1 additions), each by a factor within 1 +- u, u = 2^-24.
    So the error is at most terms * u * magnitude: K = terms / 2. That worst case needs every
    rounding to err the same way. For long sums roundings of zero mean give lambda * sqrt(terms) * u
    instead, exceeded with a probability below 2 exp(-lambda^2 / 2) for each product (Higham and
    Mary, 2019); lambda = 8 makes that 3e-14, and is the smaller one from 64 terms on. 1.001 covers
    the terms of order u^2.
    """
    k = min(terms, 8.0 * np.sqrt(terms)) / 2.0
    return 1.001 * k * 2.0**-23 * np.asarray(magnitude, np.float64)


def assert_same(got, expected, what="") -> None:
    """Equal shape, dtype (float64 stands for float32) and values; 0 == -0, NaN where expected."""
    got, expected = np.asarray(got), np.asarray(expected)
    expected = expected.astype(np.float32) if expected.dtype == np.float64 else expected
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    assert got.dtype == expected.dtype, f"{what}: dtype {got.dtype}, expected {expected.dtype}"
    wrong = ~((got == expected) | ((got != got) & (expected != expected)))
    assert not wrong.any(), report(what, got, expected, wrong)


def assert_same_bits(got, expected, what="") -> None:
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape and got.dtype == expected.dtype, (
        f"{what}: {got.shape} {got.dtype}, expected {expected.shape} {expected.dtype}"
    )
    bits = {1: np.uint8, 4: np.uint32, 8: np.uint64}[got.itemsize]
    wrong = np.ascontiguousarray(got).view(bits) != np.ascontiguousarray(expected).view(bits)
    assert not wrong.any(), report(what, got, expected, wrong)


def assert_within(got, expected, bound, what="") -> None:
    """|got - expected| <= bound, elementwise; a NaN is never within."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    assert got.dtype == np.float32, f"{what}: dtype {got.dtype}, expected float32"
    error = np.abs(got.astype(np.float64) - expected)
    wrong = ~(error <= bound)
    assert not wrong.any(), report(what, got, expected, wrong, error / np.maximum(bound, 1e-300))


def report(what, got, expected, wrong, excess=None) -> str:
    where = np.unravel_index(np.argmax(wrong if excess is None else excess), wrong.shape)
    where = tuple(int(i) for i in where)
    ratio = "" if excess is None else f", {excess[where]:.3g} times the bound"
    return (
        f"{what}: {wrong.sum()} of {wrong.size} wrong; at {where} got {got[where]!r}, "
        f"expected {expected[where]!r}{ratio}"
    )
