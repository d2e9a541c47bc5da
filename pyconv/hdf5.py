"""Weights in Keras 3's `.weights.h5` files.

The layout: `layers/NAME/vars/0`, `1`, ... are a layer's weights in their order (kernel, bias),
where NAME is the layer's class in snake case, numbered from the second on (`conv2d`, `conv2d_1`),
whatever the layer itself is called; that is in the attribute `name` of `vars`. `optimizer` holds
the state of an optimizer, and `seed_generator` that of a random generator: neither is read.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyconv.extras import extra
from pyconv.layers.base import snake_case

if TYPE_CHECKING:
    from pyconv.layers import Layer, Parameter
    from pyconv.models import Sequential

SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Keras's files for a Sequential are four levels deep, with an optimizer or a generator five.
_MAX_DEPTH = 8


def encode(model: Sequential) -> bytes:
    """Returns the content of a `.weights.h5` file.

    Args:
        model: a built model.

    Raises:
        ImportError: h5py is not installed.
    """
    h5py = _h5py()
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.create_group("vars").attrs["name"] = model.name
        layers = file.create_group("layers")
        for name, layer in _layers(model):
            variables = layers.create_group(f"{name}/vars")
            variables.attrs["name"] = layer.name
            for index, parameter in enumerate(layer.parameters):
                variables.create_dataset(str(index), data=parameter.value)
    return content.getvalue()


def read(model: Sequential, path: Path) -> list[tuple[Parameter, np.ndarray]]:
    """Reads the weights of a model, all checked before the first of them is read.

    Args:
        model: a built model.
        path: the file.

    Returns:
        The model's parameters with their values.

    Raises:
        ImportError: h5py is not installed.
        ValueError: the file is damaged, is not of this layout, does not fit the model, or refers to
            other files.
    """
    h5py = _h5py()
    wanted = {
        f"layers/{name}/vars/{index}": (layer, parameter)
        for name, layer in _layers(model)
        for index, parameter in enumerate(layer.parameters)
    }
    try:
        with h5py.File(path, "r") as file:
            if "layer_names" in file.attrs or "model_weights" in file:
                raise ValueError(
                    f"{path} has the layout of Keras 2. Load it with Keras 3, and save it there "
                    "with model.save_weights('model.weights.h5')."
                )
            found = dict(_datasets(h5py, file, path))
            _compare(wanted, found, path)
            for name in wanted:
                _check_chunks(h5py, found[name], name, path)
            return [(wanted[name][1], found[name][...]) for name in wanted]
    except (OSError, RuntimeError, KeyError, TypeError) as error:  # TypeError: of a damaged type
        raise ValueError(f"{path} is not an HDF5 file, or is damaged: {error}") from error


def _h5py() -> Any:
    with extra("h5", "files that end in .weights.h5 need h5py"):
        import h5py
    return h5py


def _layers(model: Sequential) -> Iterator[tuple[str, Layer]]:
    """The layers with their names in the file."""
    counts: dict[str, int] = {}
    for layer in model.layers:
        stem = snake_case(type(layer).__name__)
        count = counts.get(stem, 0)
        counts[stem] = count + 1
        yield f"{stem}_{count}" if count else stem, layer


def _datasets(
    h5py: Any,
    group: Any,
    path: Path,
    prefix: str = "",
    depth: int = 0,
    seen: set[int] | None = None,
) -> Iterator[tuple[str, Any]]:
    """All datasets but those of the optimizer and of generators, by name."""
    seen = set() if seen is None else seen
    address = h5py.h5o.get_info(group.id).addr
    # A group may contain itself, or many times another one that does the same with a third.
    if depth > _MAX_DEPTH or address in seen:
        raise ValueError(f"{path}: it is damaged: {prefix} lies too deep, or is in it twice.")
    seen.add(address)
    for key in group:
        name = f"{prefix}{key}"
        if name == "optimizer" or key == "seed_generator":
            continue
        # Links may lead into any other file.
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            raise ValueError(
                f"{path}: {name} is a link to somewhere else, which is not followed. Save the "
                "weights again with model.save_weights()."
            )
        value = group[key]
        if isinstance(value, h5py.Group):
            yield from _datasets(h5py, value, path, f"{name}/", depth + 1, seen)
        elif isinstance(value, h5py.Dataset):
            yield name, value
        else:
            raise ValueError(f"{path}: {name} is neither a group nor a dataset.")


def _compare(wanted: dict[str, tuple[Layer, Parameter]], found: dict[str, Any], path: Path) -> None:
    def described(name: str) -> str:
        layer, parameter = wanted[name]
        return f"the {parameter.name} of layer {layer.name} ({name})"

    fix = "Build the model as it was when the file was written."
    if missing := [described(name) for name in wanted if name not in found]:
        raise ValueError(f"{path}: it lacks {', '.join(missing)}. {fix}")
    if extra := sorted(found.keys() - wanted.keys()):
        raise ValueError(f"{path}: it has {', '.join(extra)}, which no layer has. {fix}")
    for name, (_, parameter) in wanted.items():
        dataset = found[name]
        if dataset.shape != parameter.shape:
            raise ValueError(
                f"{path}: {described(name)} must have the shape {parameter.shape}. "
                f"Received: {dataset.shape}. {fix}"
            )
        if dataset.dtype != np.float32:
            raise ValueError(
                f"{path}: {described(name)} must be of type float32. Received: {dataset.dtype}. "
                "Save the weights of a float32 model."
            )
        # The bytes must lie in this file, and be there: without storage zeros would be read.
        if dataset.is_virtual or dataset.external:
            raise ValueError(f"{path}: {described(name)} lies in another file, which is not read.")
        if not _is_complete(dataset):
            raise ValueError(
                f"{path} is damaged: {described(name)} is not all there. Expected: "
                f"{parameter.size * 4} bytes. Received: {dataset.id.get_storage_size()}, as stored"
            )


def _is_complete(dataset: Any) -> bool:
    """Whether all of a dataset is stored, in chunks, if any, that are not larger than itself."""
    if dataset.chunks is None:
        return bool(dataset.id.get_storage_size() == math.prod(dataset.shape) * 4)
    if any(chunk > size for chunk, size in zip(dataset.chunks, dataset.shape)):
        return False
    counts = [-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks)]
    return bool(dataset.id.get_num_chunks() == math.prod(counts))


def _check_chunks(h5py: Any, dataset: Any, name: str, path: Path) -> None:
    """Raises ValueError if a compressed chunk could unpack to more than the dataset has room for.

    HDF5's own decompression goes on for as long as there is something to unpack.
    """
    storage = dataset.id.get_create_plist()
    filters = [storage.get_filter(number)[0] for number in range(storage.get_nfilters())]
    if not filters:
        return
    if filters not in (
        [h5py.h5z.FILTER_DEFLATE],
        [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE],
    ):
        raise ValueError(
            f"{path}: {name} is stored in a way that is not read. Save the weights uncompressed, "
            "or with gzip."
        )
    size, file_size = math.prod(dataset.chunks) * 4, path.stat().st_size
    for number in range(dataset.id.get_num_chunks()):
        chunk = dataset.id.get_chunk_info(number)
        unpacked = None
        if chunk.filter_mask == 0 and chunk.size <= file_size:
            try:
                unpacked = zlib.decompressobj().decompress(
                    dataset.id.read_direct_chunk(chunk.chunk_offset)[1], size + 1
                )
            except zlib.error as error:
                raise ValueError(f"{path} is damaged: {name}: {error}") from error
        if unpacked is None or len(unpacked) != size:
            raise ValueError(
                f"{path} is damaged: a part of {name} must unpack to {size:,} bytes, and does not."
            )
