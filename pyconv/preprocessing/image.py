"""ImageDataGenerator: batches of images, changed at random each time they are shown.

Names, arguments and transforms are those of Keras's class; where that one differs from its own
documentation, this one follows the documentation:

- `width_shift_range` moves images along their width, `height_shift_range` along their height. Keras
  3 mixes them up.
- Rotations, shears and zooms are about the centre of images that are not square, too.
- `standardize` takes the mean of every sample of a batch, not of all of them.

Random numbers are this library's: what is drawn depends on the seed, the number of the pass over
the data, the number of the batch and the sample's place in it, not on who asks in which order.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pyconv import backend, kernels, random
from pyconv.floats import as_float

__all__ = ["ImageDataGenerator", "NumpyArrayIterator"]

Parameters = dict[str, Any]

# Parameters of a transform, with the values that change nothing.
_NEUTRAL: Parameters = {
    "theta": 0.0,
    "tx": 0.0,
    "ty": 0.0,
    "shear": 0.0,
    "zx": 1.0,
    "zy": 1.0,
    "flip_horizontal": False,
    "flip_vertical": False,
    "channel_shift_intensity": None,
    "brightness": None,
}
_DRAWS = 12  # random numbers an image; each has a purpose of its own, whether it is used or not

_EPSILON = 1e-6  # is added to standard deviations
_FIT_IMAGES = 256  # images at a time in `fit`


class ImageDataGenerator:
    """Changes images at random, and standardizes them.

    Images are (height, width, channels). First all geometric changes are made at once, by one
    affine map with linear interpolation, then the colours are changed, then follows
    :meth:`standardize`, in the order of its arguments below.

    Args:
        featurewise_center: subtracts the mean of every channel over the data set, see :meth:`fit`.
        samplewise_center: subtracts the mean of the image.
        featurewise_std_normalization: divides by the standard deviation of every channel over the
            data set, see :meth:`fit`; implies `featurewise_center`.
        samplewise_std_normalization: divides by the standard deviation of the image; implies
            `samplewise_center`.
        zca_whitening, zca_epsilon: not supported.
        rotation_range: largest angle in degrees, either way.
        width_shift_range: largest shift along the width, either way. A float below 1 is a share of
            the width, from 1 on it is in pixels. An integer n stands for shifts by whole pixels
            below n. A list holds the shifts to choose from; either direction.
        height_shift_range: likewise, along the height.
        brightness_range: a pair of factors between which one is drawn. For pixels from 0 to 255,
            which are rounded down to integers, as by Pillow.
        shear_range: largest angle in degrees, either way.
        zoom_range: a pair of factors between which one is drawn for each axis; below 1 enlarges.
            A number z stands for (1 - z, 1 + z).
        channel_shift_range: largest value to add to an image, either way; the sum is clipped to the
            range of the image.
        fill_mode: what is shown outside an image: "nearest", "constant", "reflect" or "wrap", see
            :func:`pyconv.kernels.warp_affine`.
        cval: the value outside with "constant".
        horizontal_flip: whether every other image is mirrored left to right.
        vertical_flip: whether every other image is mirrored top to bottom.
        rescale: a factor for all values, e.g. 1 / 255; None or 0: none.
        preprocessing_function: takes an image and returns one of the same shape; called before all
            other steps of :meth:`standardize`.
        data_format: "channels_last".
        validation_split: share of the samples, the first ones, that ``flow(subset="validation")``
            serves.
        interpolation_order: 1.
        dtype: "float32".

    Attributes:
        mean, std: (1, 1, channels), what `fit` found; None before.

    Raises:
        NotImplementedError: for what is not supported.
        TypeError, ValueError: if an argument has another type or value.

    Example:
        >>> datagen = ImageDataGenerator(
        ...     width_shift_range=0.1, height_shift_range=0.1, horizontal_flip=True
        ... )
        >>> model.fit(datagen.flow(x, y, batch_size=256), epochs=50)
    """

    def __init__(
        self,
        featurewise_center: bool = False,
        samplewise_center: bool = False,
        featurewise_std_normalization: bool = False,
        samplewise_std_normalization: bool = False,
        zca_whitening: bool = False,
        zca_epsilon: float = 1e-6,
        rotation_range: float = 0,
        width_shift_range: Any = 0.0,
        height_shift_range: Any = 0.0,
        brightness_range: Any = None,
        shear_range: float = 0.0,
        zoom_range: Any = 0.0,
        channel_shift_range: float = 0.0,
        fill_mode: str = "nearest",
        cval: float = 0.0,
        horizontal_flip: bool = False,
        vertical_flip: bool = False,
        rescale: float | None = None,
        preprocessing_function: Callable[[np.ndarray], np.ndarray] | None = None,
        data_format: str | None = None,
        validation_split: float = 0.0,
        interpolation_order: int = 1,
        dtype: Any = None,
    ) -> None:
        _require_supported(zca_whitening, data_format, interpolation_order, dtype)
        if fill_mode not in ("nearest", "constant", "reflect", "wrap"):
            raise ValueError(
                "fill_mode must be 'nearest', 'constant', 'reflect' or 'wrap'. "
                f"Received: fill_mode={fill_mode!r}"
            )
        if preprocessing_function is not None and not callable(preprocessing_function):
            raise TypeError(
                "preprocessing_function must take an image and return one. "
                f"Received: {preprocessing_function!r}"
            )
        if not 0 <= _number("validation_split", validation_split) < 1:
            raise ValueError(
                "validation_split must be at least 0 and below 1. "
                f"Received: validation_split={validation_split!r}"
            )
        self.featurewise_center = bool(featurewise_center or featurewise_std_normalization)
        self.featurewise_std_normalization = bool(featurewise_std_normalization)
        self.samplewise_center = bool(samplewise_center or samplewise_std_normalization)
        self.samplewise_std_normalization = bool(samplewise_std_normalization)
        self.rotation_range = _number("rotation_range", rotation_range)
        self.width_shift_range = _shifts("width_shift_range", width_shift_range)
        self.height_shift_range = _shifts("height_shift_range", height_shift_range)
        self.shear_range = _number("shear_range", shear_range)
        self.zoom_range = _zooms(zoom_range)
        self.channel_shift_range = _number("channel_shift_range", channel_shift_range)
        self.brightness_range = (
            None if brightness_range is None else _pair("brightness_range", brightness_range)
        )
        self.fill_mode, self.cval = fill_mode, _number("cval", cval, finite=False)
        self.horizontal_flip, self.vertical_flip = bool(horizontal_flip), bool(vertical_flip)
        self.rescale = None if rescale is None else _number("rescale", rescale)
        self.preprocessing_function = preprocessing_function
        self.validation_split = validation_split
        self.mean: np.ndarray | None = None
        self.std: np.ndarray | None = None

    # One image

    def get_random_transform(
        self, img_shape: tuple[int, ...], seed: int | None = None
    ) -> Parameters:
        """Draws the parameters of a transform.

        Args:
            img_shape: (height, width, channels).
            seed: 0 <= seed < 2**64; by default the next of the library's stream.

        Returns:
            A dict: angles "theta" and "shear" in degrees, shifts "tx" and "ty" in pixels and zooms
            "zx" and "zy", where x is along the width, "flip_horizontal", "flip_vertical", and
            "channel_shift_intensity" and "brightness", None unless they are asked for.
        """
        height, width, _ = _image_shape(img_shape)
        drawn = self._draw(1, height, width, random.generator(_seed(seed)))
        return {
            name: None if values is None else values[0].item() for name, values in drawn.items()
        }

    def apply_transform(self, x: np.ndarray, transform_parameters: Parameters) -> np.ndarray:
        """Returns an image changed as the parameters say.

        Args:
            x: (height, width, channels), numbers.
            transform_parameters: as :meth:`get_random_transform` returns them; what is left out
                changes nothing.

        Returns:
            A new float32 array of the same shape.

        Raises:
            TypeError: if `x` does not hold numbers.
            ValueError: if its shape does not fit, or for a parameter of another name or that is no
                finite number.
        """
        unknown = sorted(set(transform_parameters) - set(_NEUTRAL))
        if unknown:
            raise ValueError(
                f"Unknown parameters of a transform: {', '.join(map(repr, unknown))}. "
                f"Expected some of {', '.join(map(repr, _NEUTRAL))}"
            )
        x = _images(x, "x", 3)
        given = {**_NEUTRAL, **transform_parameters}
        parameters = {
            name: None
            if value is None and _NEUTRAL[name] is None
            else np.asarray([_number(name, value)])
            for name, value in given.items()
        }
        changed: np.ndarray = self._transform(x[np.newaxis], np.zeros(1, np.int64), parameters)[0]
        return changed

    def random_transform(self, x: np.ndarray, seed: int | None = None) -> np.ndarray:
        """Returns an image changed at random: :meth:`apply_transform` of what
        :meth:`get_random_transform` draws."""
        return self.apply_transform(x, self.get_random_transform(np.shape(x), seed))

    def standardize(self, x: np.ndarray) -> np.ndarray:
        """Applies `preprocessing_function`, `rescale` and the normalizations, in place.

        Args:
            x: an image (height, width, channels) or several (N, height, width, channels), float32.

        Returns:
            x.

        Raises:
            TypeError: if `x` is not a float32 array.
            ValueError: if its shape does not fit, or `preprocessing_function` changes it.
        """
        if not isinstance(x, np.ndarray) or x.dtype != np.float32:
            received = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
            raise TypeError(
                "standardize() works in place, on a float32 NumPy array. "
                f"Received: {received}. Convert it with .astype('float32')"
            )
        if x.ndim not in (3, 4):
            raise ValueError(
                "Expected an image (height, width, channels) or a batch of them. "
                f"Received: x of shape {x.shape}"
            )
        if self.preprocessing_function is not None:
            for image in x if x.ndim == 4 else [x]:
                image[...] = self._preprocessed(image)
        if self.rescale:
            x *= np.float32(self.rescale)
        of_a_sample = (-3, -2, -1)
        if self.samplewise_center:
            x -= x.mean(of_a_sample, keepdims=True)
        if self.samplewise_std_normalization:
            x /= x.std(of_a_sample, keepdims=True) + np.float32(_EPSILON)
        if self.featurewise_center and self.mean is None:
            warnings.warn(
                "featurewise_center and featurewise_std_normalization do nothing before fit(x) has "
                "measured the data.",
                stacklevel=2,
            )
        elif self.featurewise_center:
            x -= self.mean
            if self.featurewise_std_normalization and self.std is not None:
                x /= self.std + np.float32(_EPSILON)
        return x

    # A data set

    def fit(
        self, x: np.ndarray, augment: bool = False, rounds: int = 1, seed: int | None = None
    ) -> None:
        """Measures what `featurewise_center` and `featurewise_std_normalization` need.

        Args:
            x: images (N, height, width, channels).
            augment: whether to measure them changed at random, as `flow` will serve them.
            rounds: how many times each, with `augment`.
            seed: for `augment`; by default the next of the library's stream.

        Raises:
            TypeError: if `x` does not hold numbers.
            ValueError: if its shape or an argument does not fit.
        """
        x = _images(x, "x", 4)
        if not isinstance(rounds, (int, np.integer)) or rounds < 1:
            raise ValueError(
                f"rounds must be an integer of at least 1. Received: rounds={rounds!r}"
            )
        key = random.integer_seed(0 if seed is None else seed, 64)
        if not self.featurewise_center:
            return
        if augment and seed is None:
            key = random.next_seed()
        # Mean and sum of squared deviations, joined chunk by chunk (Chan, Golub, LeVeque 1979):
        # the squares never cancel, and no copy of the data set is made.
        pixels, mean, squares = 0, np.zeros(x.shape[3]), np.zeros(x.shape[3])
        chunks = math.ceil(len(x) / _FIT_IMAGES)
        for number in range(chunks * (rounds if augment else 1)):
            first = number % chunks * _FIT_IMAGES
            chunk = x[first : first + _FIT_IMAGES]
            if augment:
                drawn = self._draw(
                    len(chunk), x.shape[1], x.shape[2], random.generator(key, number)
                )
                chunk = self._transform(chunk, np.arange(len(chunk)), drawn)
            values = chunk.reshape(-1, x.shape[3]).astype(np.float64)
            if self.rescale:
                values *= self.rescale
            new_mean = values.mean(axis=0)
            new_squares = ((values - new_mean) ** 2).sum(axis=0)
            total = pixels + len(values)
            step = new_mean - mean
            squares += new_squares + step**2 * (pixels * len(values) / total)
            mean += step * (len(values) / total)
            pixels = total
        self.mean = mean.astype(np.float32).reshape(1, 1, -1)
        if self.featurewise_std_normalization:
            self.std = np.sqrt(squares / pixels).astype(np.float32).reshape(1, 1, -1)

    def flow(
        self,
        x: np.ndarray,
        y: np.ndarray | None = None,
        batch_size: int = 32,
        shuffle: bool = True,
        sample_weight: np.ndarray | None = None,
        seed: int | None = None,
        save_to_dir: str | None = None,
        save_prefix: str = "",
        save_format: str = "png",
        ignore_class_split: bool = False,
        subset: str | None = None,
    ) -> NumpyArrayIterator:
        """Returns an iterator over batches of the images, changed at random and standardized.

        Args:
            x: images (N, height, width, channels); other numbers than float32 are converted, all
                at once.
            y: labels (N, ...).
            batch_size: samples of a batch; the last of a pass may be smaller.
            shuffle: whether every pass has an order of its own.
            sample_weight: (N,); batches have a third part then, which models do not support.
            seed: 0 <= seed < 2**64; by default the next of the library's stream.
            save_to_dir, save_prefix, save_format: not supported.
            ignore_class_split: whether the two subsets may have different classes.
            subset: "training" or "validation", with `validation_split`.

        Raises:
            NotImplementedError: for what is not supported.
            TypeError: if `x` does not hold numbers.
            ValueError: if shapes or arguments do not fit.
        """
        if save_to_dir is not None:
            raise NotImplementedError(
                "flow() does not save images (save_to_dir). Save those of its batches, e.g. with "
                "matplotlib.pyplot.imsave"
            )
        x = _images(x, "x", 4)
        y = None if y is None else np.asarray(y)
        sample_weight = None if sample_weight is None else np.asarray(sample_weight)
        for name, part in (("y", y), ("sample_weight", sample_weight)):
            if part is not None and (part.ndim < 1 or len(part) != len(x)):
                raise ValueError(
                    f"x and {name} must have the same number of samples. "
                    f"Received: x of shape {x.shape}, {name} of shape {part.shape}"
                )
        if subset is not None:
            rows = self._subset(subset, y, len(x), ignore_class_split)
            x, y = x[rows], None if y is None else y[rows]
            sample_weight = None if sample_weight is None else sample_weight[rows]
        if not len(x):
            raise ValueError(f"There are no samples. Received: x of shape {x.shape}")
        if self.brightness_range is not None and x.max() <= 1 and (x != np.floor(x)).any():
            raise ValueError(
                "brightness_range is for pixels from 0 to 255. Received: values up to "
                f"{x.max()}. Leave the pixels as they are and give rescale=1/255"
            )
        return NumpyArrayIterator(self, x, y, sample_weight, batch_size, shuffle, seed)

    def flow_from_directory(self, *arguments: Any, **keywords: Any) -> Any:
        """Not supported."""
        raise NotImplementedError(
            "Images are not read from files. Load them into an array and use flow(x, y)"
        )

    flow_from_dataframe = flow_from_directory

    # Batches

    def _draw(
        self, count: int, height: int, width: int, generator: np.random.Generator
    ) -> Parameters:
        """Parameters of `count` transforms: arrays of that length, or None."""
        drawn = generator.random((count, _DRAWS)).T

        def between(low: float, high: float, which: int) -> np.ndarray:
            values: np.ndarray = low + (high - low) * drawn[which]
            return values

        def around_zero(largest: float, which: int) -> np.ndarray:
            return between(-largest, largest, which)

        return {
            "theta": around_zero(self.rotation_range, 0),
            "tx": _shift(self.width_shift_range, width, drawn[1], drawn[2]),
            "ty": _shift(self.height_shift_range, height, drawn[3], drawn[4]),
            "shear": around_zero(self.shear_range, 5),
            "zx": between(*self.zoom_range, 6),
            "zy": between(*self.zoom_range, 7),
            "flip_horizontal": (drawn[8] < 0.5) & self.horizontal_flip,
            "flip_vertical": (drawn[9] < 0.5) & self.vertical_flip,
            "channel_shift_intensity": (
                around_zero(self.channel_shift_range, 10) if self.channel_shift_range else None
            ),
            "brightness": (
                between(*self.brightness_range, 11) if self.brightness_range is not None else None
            ),
        }

    def _transform(
        self,
        x: np.ndarray,
        indices: np.ndarray,
        parameters: Parameters,
        threads: int | None = None,
    ) -> np.ndarray:
        """The images with these indices, changed by their parameters."""
        matrices = transform_matrices(parameters, *x.shape[1:3])
        batch = kernels.warp_affine(
            x, matrices, indices, self.fill_mode, self.cval, threads=threads
        )
        if parameters["channel_shift_intensity"] is not None:
            _shift_channels(batch, parameters["channel_shift_intensity"])
        if parameters["brightness"] is not None:
            _change_brightness(batch, parameters["brightness"])
        return batch

    def _preprocessed(self, image: np.ndarray) -> np.ndarray:
        assert self.preprocessing_function is not None
        result = self.preprocessing_function(image)
        if np.shape(result) != image.shape:
            raise ValueError(
                "preprocessing_function must return an image of the shape that it takes, "
                f"{image.shape}. Received: {type(result).__name__} of shape {np.shape(result)}"
            )
        return result

    def _subset(
        self, subset: str, y: np.ndarray | None, samples: int, ignore_class_split: bool
    ) -> slice:
        if subset not in ("training", "validation"):
            raise ValueError(
                f"subset must be 'training' or 'validation'. Received: subset={subset!r}"
            )
        first = int(samples * self.validation_split)
        if not 0 < first < samples:
            raise ValueError(
                "A subset needs a validation_split that leaves samples on both sides. "
                f"Received: validation_split={self.validation_split!r} with {samples} samples"
            )
        if y is not None and not ignore_class_split:
            classes = [set(map(bytes, part)) for part in (y[:first], y[first:])]
            if classes[0] != classes[1]:
                raise ValueError(
                    "The subsets for training and validation have different classes: "
                    f"{len(classes[1])} and {len(classes[0])} kinds of labels. Shuffle the samples "
                    "before, or allow it with ignore_class_split=True"
                )
        return slice(first, None) if subset == "training" else slice(first)


class NumpyArrayIterator:
    """What `flow` returns: endless passes over the batches, which can also be had by number.

    ``len(it)`` is the number of batches of a pass, ``it[i]`` batch i of the pass at hand: the same
    each time, until `on_epoch_end` begins the next pass. ``next(it)`` goes from batch to batch and
    from pass to pass. Threads may share it.

    A batch is a new float32 array x (n, height, width, channels), or (x, y), or
    (x, y, sample_weight).

    Attributes:
        n: number of samples.
        batch_size, shuffle, seed: as for `flow`.
        epoch: number of the pass at hand, from 0.
    """

    def __init__(
        self,
        generator: ImageDataGenerator,
        x: np.ndarray,
        y: np.ndarray | None,
        sample_weight: np.ndarray | None,
        batch_size: int,
        shuffle: bool,
        seed: int | None,
    ) -> None:
        if not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
            raise ValueError(
                f"batch_size must be an integer of at least 1. Received: batch_size={batch_size!r}"
            )
        self.image_data_generator = generator
        self.x, self.y, self.sample_weight = x, y, sample_weight
        self.n, self.batch_size, self.shuffle = len(x), int(batch_size), bool(shuffle)
        self.seed = _seed(seed)
        self.epoch = 0
        self._next = 0
        self._lock = threading.Lock()
        self._order: tuple[int, np.ndarray] = (-1, np.arange(self.n))

    def __len__(self) -> int:
        return -(-self.n // self.batch_size)

    def __getitem__(self, index: int) -> Any:
        return self._batch(self.epoch, range(len(self))[index])

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with self._lock:
            epoch, index = self.epoch, self._next
            self._next = (index + 1) % len(self)
            if self._next == 0:
                self.epoch += 1
        return self._batch(epoch, index)

    def on_epoch_end(self) -> None:
        """Begins the next pass."""
        with self._lock:
            self.epoch, self._next = self.epoch + 1, 0

    def reset(self) -> None:
        """Goes back to the beginning of the pass at hand."""
        with self._lock:
            self._next = 0

    def get_state(self) -> dict[str, int]:
        """Returns what :meth:`set_state` takes to begin the pass at hand again, as plain data."""
        return {"seed": self.seed, "epoch": self.epoch}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to the beginning of the pass, and takes over the seed, of another iterator."""
        with self._lock:
            self.seed = _seed(state["seed"])
            self.epoch, self._next = int(state["epoch"]), 0
            self._order = (-1, np.arange(self.n))

    def _batch(self, epoch: int, index: int) -> Any:
        rows = self._order_of(epoch)[index * self.batch_size : (index + 1) * self.batch_size]
        generator = self.image_data_generator
        height, width = self.x.shape[1:3]
        drawn = generator._draw(len(rows), height, width, self._stream(epoch, 1 + index))
        # In the background it shares the cores with a training step: there one thread of its own
        # holds that up less than a second team of threads.
        in_background = threading.current_thread() is not threading.main_thread()
        batch = generator._transform(self.x, rows, drawn, threads=1 if in_background else None)
        parts = [part[rows] for part in (self.y, self.sample_weight) if part is not None]
        batch = generator.standardize(batch)
        return (batch, *parts) if parts else batch

    def _order_of(self, epoch: int) -> np.ndarray:
        known, order = self._order
        if self.shuffle and known != epoch:
            order = self._stream(epoch, 0).permutation(self.n)
            self._order = (epoch, order)
        return order

    def _stream(self, epoch: int, number: int) -> np.random.Generator:
        return random.generator(self.seed, epoch * (len(self) + 1) + number)


def transform_matrices(parameters: Parameters, height: int, width: int) -> np.ndarray:
    """The matrices that :func:`pyconv.kernels.warp_affine` takes, (n, 2, 3).

    A pixel p = (x, y) of the result, counted from the image's centre, comes from R (S Z p + t):
    zoomed by Z, sheared by S, shifted by t, rotated by R, in this order. Flips are applied to the
    result.

    Args:
        parameters: arrays (n,), as `get_random_transform` names them.
        height, width: of the images.
    """
    theta, shear = np.deg2rad(parameters["theta"]), np.deg2rad(parameters["shear"])
    cos, sin = np.cos(theta), np.sin(theta)
    tx, ty = parameters["tx"], parameters["ty"]
    matrices = np.empty((len(theta), 2, 3))
    centre_x, centre_y = width / 2 - 0.5, height / 2 - 0.5
    # The rows of R S Z; S = ((1, -sin shear), (0, cos shear)).
    for row, (a, b), centre in (
        (1, (cos, -sin), centre_x),
        (0, (sin, cos), centre_y),
    ):
        of_x = a * parameters["zx"]
        of_y = (b * np.cos(shear) - a * np.sin(shear)) * parameters["zy"]
        matrices[:, row, 1], matrices[:, row, 0] = of_x, of_y
        # The centre's part comes first: without rotation and so on it is exactly 0, and shifts by
        # whole pixels stay whole.
        matrices[:, row, 2] = (centre - of_x * centre_x - of_y * centre_y) + (a * tx + b * ty)
    for flip, column, last in (
        (parameters["flip_horizontal"], 1, width - 1),
        (parameters["flip_vertical"], 0, height - 1),
    ):
        flipped = np.asarray(flip, bool)
        matrices[flipped, :, 2] += matrices[flipped, :, column] * last
        matrices[flipped, :, column] *= -1
    return matrices


def _shift_channels(batch: np.ndarray, intensities: np.ndarray) -> None:
    """Adds a number to each image, which keeps its range; in place."""
    low = batch.min(axis=(1, 2, 3), keepdims=True)
    high = batch.max(axis=(1, 2, 3), keepdims=True)
    batch += _of_images(intensities)
    np.clip(batch, low, high, out=batch)


def _change_brightness(batch: np.ndarray, factors: np.ndarray) -> None:
    """Multiplies each image, in place, as Keras does by way of Pillow: in integers from 0 to 255.

    An image that leaves that range is mapped onto it, and back afterwards. Of four channels, the
    last one is opacity.
    """
    low = batch.min(axis=(1, 2, 3), keepdims=True)
    high = batch.max(axis=(1, 2, 3), keepdims=True)
    mapped = (low < 0) | (high > 255)
    span = np.where(high > low, high - low, np.float32(1))
    np.copyto(batch, (batch - low) / span * np.float32(255), where=mapped)
    np.floor(batch, out=batch)
    colours = batch[..., :3]
    np.clip(np.floor(colours * _of_images(factors)), 0, 255, out=colours)
    np.copyto(batch, batch / np.float32(255) * (high - low) + low, where=mapped)


def _of_images(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).reshape(-1, 1, 1, 1)


def _shift(allowed: Any, size: int, which: np.ndarray, sign: np.ndarray) -> np.ndarray:
    """Shifts in pixels from two uniform numbers each; `allowed` is what `_shifts` returned."""
    if isinstance(allowed, float):
        shifts = allowed * (2 * which - 1)
    else:
        if isinstance(allowed, int):
            values = np.floor(which * allowed)
        elif allowed:
            values = np.asarray(allowed)[(which * len(allowed)).astype(int)]
        else:
            values = np.zeros(len(which))
        shifts = values * np.where(sign < 0.5, -1.0, 1.0)
    return shifts * size if np.max(allowed, initial=0) < 1 else shifts


# Checks


def _require_supported(
    zca_whitening: bool, data_format: str | None, interpolation_order: int, dtype: Any
) -> None:
    if zca_whitening:
        raise NotImplementedError(
            "zca_whitening is not supported. Whiten the data set before, or use "
            "featurewise_center and featurewise_std_normalization"
        )
    if data_format not in (None, "channels_last"):
        raise NotImplementedError(
            "Images must have their channels on the last axis, data_format='channels_last'. "
            f"Received: data_format={data_format!r}. Move them with numpy.moveaxis(x, 1, -1)"
        )
    if interpolation_order != 1:
        raise NotImplementedError(
            "Images are interpolated linearly, interpolation_order=1. "
            f"Received: interpolation_order={interpolation_order!r}"
        )
    if dtype is not None and np.dtype(dtype) != np.float32:
        raise NotImplementedError(f"Batches are float32. Received: dtype={dtype!r}")


def _number(name: str, value: Any, finite: bool = True) -> float:
    if isinstance(value, (int, float, np.integer, np.floating)):
        number = as_float(value)
        if math.isfinite(number) or not finite:
            return number
    raise ValueError(f"{name} must be a {'finite ' * finite}number. Received: {name}={value!r}")


def _pair(name: str, value: Any) -> tuple[float, float]:
    if isinstance(value, (tuple, list, np.ndarray)) and len(value) == 2:
        return _number(name, value[0]), _number(name, value[1])
    raise ValueError(f"{name} must be a pair of numbers. Received: {name}={value!r}")


def _zooms(value: Any) -> tuple[float, float]:
    if isinstance(value, (tuple, list, np.ndarray)):
        return _pair("zoom_range", value)
    zoom = _number("zoom_range", value)
    return 1 - zoom, 1 + zoom


def _shifts(name: str, value: Any) -> float | int | tuple[float, ...]:
    """A float: the largest; an integer: all below it; a tuple: these. Either direction."""
    if isinstance(value, (tuple, list, np.ndarray)) and np.ndim(value) == 1:
        return tuple(_number(name, shift) for shift in value)
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        if _number(name, value) < 0:
            raise ValueError(f"{name} must not be negative. Received: {name}={value!r}")
        return int(value)
    return _number(name, value)


def _seed(seed: int | None) -> int:
    return random.next_seed() if seed is None else random.integer_seed(seed, 64)


def _image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) != 3:
        raise ValueError(f"Expected the shape (height, width, channels). Received: {shape}")
    return tuple(shape)


def _images(x: Any, name: str, axes: int) -> np.ndarray:
    """Images as a float32, C-contiguous array; no copy if they are one."""
    if hasattr(x, "__cuda_array_interface__"):
        raise TypeError(
            f"{name}: images are changed on the host, so a NumPy array is expected. "
            f"Received: {type(x).__name__}. Copy it with cupy.asnumpy"
        )
    x = np.asarray(backend.shared(x))
    if x.dtype.kind not in "buif":
        raise TypeError(f"{name}: expected real numbers. Received: dtype {x.dtype}")
    if x.ndim != axes or not all(x.shape[-3:]):
        expected = "(height, width, channels)" if axes == 3 else "(N, height, width, channels)"
        raise ValueError(f"{name}: expected images {expected}. Received shape: {x.shape}")
    return np.require(x, np.float32, ["C", "A"])
