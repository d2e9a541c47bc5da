"""What a check is given: a case, as one line of text and back; the numbers in it; random ones."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyconv.validation import reference
from pyconv.validation.cases import ConvCase, DenseCase, PoolCase, integers, reals, uniform

VALUES = ("integers", "reals", "extreme", "nan")


# ------------------------------------------------------- cases that the table of shapes has not got


@dataclass(frozen=True)
class ArrayCase:
    """An array of any shape."""

    name: str
    x: tuple[int, ...]


@dataclass(frozen=True)
class ActivationCase:
    name: str
    x: tuple[int, ...]
    function: str = "sigmoid"


@dataclass(frozen=True)
class NormCase:
    """Rows of x, the last axis being channels, and where they lie."""

    name: str
    x: tuple[int, ...]
    center: float = 0.0


@dataclass(frozen=True)
class PadCase:
    name: str
    x: tuple[int, ...]
    padding: Any = 1


@dataclass(frozen=True)
class LogitsCase:
    name: str
    batch: int
    classes: int


@dataclass(frozen=True)
class DropoutCase:
    name: str
    x: tuple[int, ...]
    rate: float = 0.5


@dataclass(frozen=True)
class WarpCase:
    """Images, and how many maps of them."""

    name: str
    x: tuple[int, ...]
    maps: int
    fill_mode: str = "nearest"


@dataclass(frozen=True)
class GatherCase:
    """Rows of x, as many as there are indices."""

    name: str
    x: tuple[int, ...]
    indices: int
    scale: float = 1.0


@dataclass(frozen=True)
class SgdCase:
    name: str
    x: tuple[int, ...]
    momentum: float = 0.0
    nesterov: bool = False


@dataclass(frozen=True)
class RmspropCase:
    name: str
    x: tuple[int, ...]
    rho: float = 0.9


@dataclass(frozen=True)
class AdamCase:
    name: str
    x: tuple[int, ...]
    step: int = 1


# ----------------------------------------------------------------------------------------- problems


@dataclass(frozen=True)
class Problem:
    """A case of an operation, and which numbers to fill its arrays with.

    Attributes:
        operation: a key of `checks.OPERATIONS`.
        case: of the operation's dataclass.
        values: "integers", small, whose sums are exact; "reals" in [-1, 1); "extreme": reals times
            powers of 2 from 2^-30 to 2^30; "nan": reals, and one NaN or infinity.
        seed: of the numbers.
    """

    operation: str
    case: Any
    values: str = "reals"
    seed: int = 0

    @property
    def text(self) -> str:
        """One line, which `parse` reads."""
        words = spell(self.case)
        words.append(f"values={self.values}")
        if self.seed:
            words.append(f"seed={self.seed}")
        return " ".join(words)


def spell(case: Any) -> list[str]:
    """A case as words `field=value`, but for its name and what is the default."""
    return [
        f"{field.name}={_spell(getattr(case, field.name))}"
        for field in fields(case)
        if field.name != "name" and getattr(case, field.name) != field.default
    ]


def _spell(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return ",".join(map(_spell, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def parse(operation: str, kind: type, text: str) -> Problem:
    """The problem that `Problem.text` wrote.

    Raises:
        ValueError: if the text is not that of a case of this kind; says what is wrong with it.
    """
    known = {field.name: field for field in fields(kind) if field.name != "name"}
    names = [*known, "values", "seed"]
    given: dict[str, Any] = {}
    for word in text.split():
        key, equals, value = word.partition("=")
        if not equals or key not in names:
            raise ValueError(
                f"--case: expected words like x=1,4,4,3, for {operation} of "
                f"{', '.join(names)}. Received: {word!r}."
            )
        if key in given:
            raise ValueError(f"--case: {key} is given twice.")
        given[key] = _parse(key, value)
    values, seed = given.pop("values", "reals"), given.pop("seed", 0)
    if values not in VALUES:
        raise ValueError(f"--case: values: expected one of {', '.join(VALUES)}. Got: {values!r}.")
    if not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise ValueError(f"--case: seed: expected an integer from 0 to 2^64 - 1. Got: {seed!r}.")
    missing = [name for name, f in known.items() if f.default is MISSING and name not in given]
    if missing:
        raise ValueError(f"--case: {operation} also needs {', '.join(missing)}. Got: {text!r}.")
    return Problem(operation, kind(name="given", **given), values, seed)


def _parse(key: str, text: str) -> Any:
    if key in ("x", "kernel") or "," in text:  # shapes, of one number too
        numbers = tuple(_number(key, part) for part in text.split(",") if part)
        if key == "padding" and len(numbers) == 4:
            return numbers[:2], numbers[2:]
        return numbers
    words = {"none": None, "true": True, "false": False}
    if text in words:
        return words[text]
    return text if text.replace("_", "").isalpha() else _number(key, text)


def _number(key: str, text: str) -> int | float:
    try:
        return float(text) if set(text) & set(".e") else int(text)
    except ValueError:
        raise ValueError(f"--case: {key}: expected numbers. Received: {text!r}.") from None


class Draw:
    """Inputs of a problem, by name: the same for the same name, shape, kind of values and seed."""

    def __init__(self, problem: Problem) -> None:
        self.values, self.seed = problem.values, problem.seed

    @property
    def exact(self) -> bool:
        """Whether sums of products are exact in any order."""
        return self.values == "integers"

    def __call__(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        key = f"{self.seed} {name}"
        if self.exact:
            return integers(key, shape)
        numbers = reals(key, shape)
        if self.values == "extreme":
            exponents = np.floor(uniform(zlib.crc32(f"{key} 2^".encode()), shape, -30.0, 31.0))
            numbers = np.ldexp(numbers, exponents.astype(np.int32)).astype(np.float32)
        return numbers

    def spoilt(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """The array; of values "nan" a copy in which one element is NaN or infinite."""
        if self.values != "nan" or not array.size:
            return array
        copy = array.copy()
        bad = (np.nan, np.inf, -np.inf)[self.seed % 3]
        copy.reshape(-1)[zlib.crc32(f"{self.seed} where".encode()) % array.size] = bad
        return copy


# ---------------------------------------------------------------------------------- random problems

_CHANNELS = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 40, 47, 48, 64, 65)
_PRODUCTS = 4_000_000  # of a random convolution at most, lest one case take as long as many


def random_conv(rng: np.random.Generator) -> ConvCase:
    """Any geometry that is legal; one in three is a 3x3 convolution of the common kind."""
    while True:
        common = rng.random() < 1 / 3
        groups = 1 if common or rng.random() < 0.7 else int(rng.choice([2, 3, 4, 8]))
        channels, filters = (int(c) * groups for c in rng.choice(_CHANNELS, 2))
        if not common and rng.random() < 0.1:
            groups = channels  # depthwise
            filters = channels * int(rng.integers(1, 3))
        kernel = (3, 3) if common else _pair(rng, 1, 8)
        case = ConvCase(
            "random",
            (int(rng.integers(1, 5)), *_pair(rng, 1, 21), channels),
            kernel,
            filters,
            strides=1 if common else _pair(rng, 1, 5),
            padding=_padding(rng, 3),
            dilation_rate=1 if common or rng.random() < 0.6 else _pair(rng, 1, 4),
            groups=groups,
            activation=(None, "relu")[rng.integers(2)],
        )
        try:
            *_, out = reference.conv_geometry(case.x, case.w, *case.geometry.values())
        except ValueError:
            continue
        products = case.x[0] * out[0] * out[1] * int(np.prod(case.w))
        if products <= _PRODUCTS:
            return case


def random_pool(rng: np.random.Generator) -> PoolCase:
    while True:
        case = PoolCase(
            "random",
            (int(rng.integers(1, 5)), *_pair(rng, 1, 25), int(rng.choice(_CHANNELS))),
            _pair(rng, 1, 6),
            None if rng.random() < 0.5 else _pair(rng, 1, 5),
            _padding(rng, 2),
        )
        try:
            reference.pool_geometry(case.x, *case.geometry.values())
        except ValueError:
            continue
        return case


def random_pad(rng: np.random.Generator) -> PadCase:
    size = (int(rng.integers(1, 5)), *_pair(rng, 1, 25), int(rng.choice(_CHANNELS)))
    sides = _pair(rng, 0, 6), _pair(rng, 0, 6)
    return PadCase("random", size, sides)


def random_dense(rng: np.random.Generator) -> DenseCase:
    batch, inputs, units = (int(np.exp(rng.uniform(0, np.log(most)))) for most in (80, 700, 300))
    return DenseCase("random", batch, inputs, units, (None, "relu")[rng.integers(2)])


def random_shape(rng: np.random.Generator) -> tuple[int, ...]:
    rank = int(rng.integers(1, 5))
    return tuple(int(size) for size in rng.integers(1, (4000, 90, 20, 9)[rank - 1], rank))


def _pair(rng: np.random.Generator, low: int, high: int) -> tuple[int, int]:
    first, second = (int(value) for value in rng.integers(low, high, 2))
    return first, second


def _padding(rng: np.random.Generator, most: int) -> Any:
    kind = rng.integers(4)
    if kind < 2:
        return ("valid", "same")[kind]
    if kind == 2:
        return int(rng.integers(0, most + 1))
    return _pair(rng, 0, most + 1), _pair(rng, 0, most + 1)


# --------------------------------------------------------------------------------- simpler problems


def simpler(problem: Problem) -> Iterator[Problem]:
    """Problems that differ from this one in one respect, each a step towards the simplest: the
    largest steps first. Some of them are not legal."""
    case = problem.case
    for field in fields(case):
        value = getattr(case, field.name)
        if field.name == "name":
            continue
        if field.default is not MISSING and value != field.default:
            yield replace(problem, case=replace(case, **{field.name: field.default}))
        for other in _smaller(value):
            yield replace(problem, case=replace(case, **{field.name: other}))
    for values in VALUES[: VALUES.index(problem.values)]:
        yield replace(problem, values=values)
    if problem.seed:
        yield replace(problem, seed=0)


def _smaller(value: Any) -> Iterator[Any]:
    """Integers from 1 up, and shapes with one of them smaller."""
    if isinstance(value, tuple):
        for index, part in enumerate(value):
            for other in _smaller(part):
                yield (*value[:index], other, *value[index + 1 :])
    elif isinstance(value, int) and not isinstance(value, bool):
        steps = (1, value // 4, value // 2, value - 8, value - 1)
        yield from sorted({step for step in steps if 1 <= step < value})
