"""Models in files: safetensors, which hold numbers and text and nothing that could be executed."""

from __future__ import annotations

import glob
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyconv import initializers

if TYPE_CHECKING:
    from pyconv.layers import Parameter
    from pyconv.models import Sequential

FORMAT = 1
# What a file may ask of its reader: every layer is compared with all before it, and parsing text
# takes thirty times its memory.
MOST_LAYERS = 1000
MOST_TEXT = 32 << 20  # characters
KERAS_ENDINGS = (".keras", ".h5", ".hdf5")  # of files that only Keras writes

# Whatever constructors make of arguments that they were never meant to see.
BAD_CONFIG = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


def save_model(model: Sequential, path: str | os.PathLike[str], overwrite: bool = True) -> None:
    """Saves a model: its layers, its weights, and how it was compiled.

    The file is a safetensors file. Its tensors are float32, named after layer and parameter
    (`conv2d/kernel`, `dense_1/bias`). Its text metadata hold, as JSON under the key `pyconv`:
    `format` (a number), `version` (of pyconv), `config` (the layers and the input shape) and
    `compile` (optimizer, loss and metrics; null if the model is not compiled). The optimizer's
    state is not saved. Equal models give equal files.

    The file is replaced as a whole or not at all: when saving fails, what was there stays.

    Args:
        model: A built `Sequential`.
        path: File to write, by custom ending in `.safetensors`.
        overwrite: Whether a file that is there is replaced.

    Raises:
        FileExistsError: It is there and `overwrite` is False.
        ValueError: `path` ends like a file of Keras's, the model is not built, two layers have the
            same name, or the configuration is not plain data.
        OSError: The file cannot be written.

    Example:
        >>> pyconv.saving.save_model(model, "model.safetensors")
    """
    if os.fspath(path).endswith(KERAS_ENDINGS):
        raise ValueError(
            "a model is saved as a safetensors file; Keras's whole models are not supported. Use "
            "another ending, or save_weights('model.weights.h5') for weights that Keras can load. "
            f"Received: {os.fspath(path)!r}"
        )
    _save(model, path, overwrite, model.get_config(), model.get_compile_config())


def save_weights(model: Sequential, path: str | os.PathLike[str], overwrite: bool = True) -> None:
    """Saves a model's weights without its layers.

    A name that ends in `.weights.h5` gives an HDF5 file of Keras 3's layout, which Keras loads into
    a model with the same layers; any other a safetensors file as of :func:`save_model`, in which
    `config` is null. The optimizer's state is not saved.

    Args:
        model: A built `Sequential`.
        path: File to write.
        overwrite: Whether a file that is there is replaced.

    Raises:
        FileExistsError: It is there and `overwrite` is False.
        ImportError: h5py is needed and not installed.
        ValueError: The model is not built, or `path` ends in `.h5` but not in `.weights.h5`.
        OSError: The file cannot be written.
    """
    name = os.fspath(path)
    if name.endswith(".weights.h5"):
        from pyconv import hdf5

        _check_saveable(model, path, overwrite)
        atomic_write(path, hdf5.encode(model))
        return
    if name.endswith(KERAS_ENDINGS):
        raise ValueError(
            "weights are saved as *.weights.h5 (Keras's format) or *.safetensors. "
            f"Received: {name!r}"
        )
    _save(model, path, overwrite, None, None)


def load_weights(model: Sequential, path: str | os.PathLike[str]) -> None:
    """Loads weights into a model; all of them or, if something does not fit, none.

    Which kind of file it is, is told from its content. Nothing in it is executed.

    Args:
        model: A built `Sequential` with the layers that the file was written for. Layers are found
            by their names in safetensors files, by class and order in `.weights.h5` files.
        path: A file of :func:`save_weights` or :func:`save_model`, or a `.weights.h5` file of Keras
            3.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: h5py is needed and not installed.
        ValueError: The model is not built, or the file is damaged, of another kind, or does not fit
            the model.
    """
    _check_built(model)
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder. Expected a file written by save_weights.")
    with open(path, "rb") as file:
        start = file.read(8)
    if start.startswith(b"PK"):
        raise ValueError(
            f"{path} is an archive, perhaps a .keras file, which is not supported. Take "
            "model.weights.h5 out of it (it is a zip file), and load that."
        )
    from pyconv import hdf5

    if start == hdf5.SIGNATURE:
        for parameter, value in hdf5.read(model, path):
            parameter.assign(value)
        return
    tensors, _ = read_tensors(path)
    check_tensors(model, tensors, path)
    set_tensors(model, tensors)


def _check_built(model: Sequential) -> None:
    if not model.built:
        raise ValueError(
            "the model has no weights yet, because its input shape is not known. Give it an Input "
            "layer, or call model.build(input_shape), before saving or loading."
        )


def _check_saveable(model: Sequential, path: str | os.PathLike[str], overwrite: bool) -> None:
    _check_built(model)
    if not overwrite and os.path.exists(path):
        raise FileExistsError(
            f"{os.fspath(path)} is there already. Pass overwrite=True, or another name."
        )


def _save(
    model: Sequential,
    path: str | os.PathLike[str],
    overwrite: bool,
    config: dict[str, Any] | None,
    compiled: dict[str, Any] | None,
) -> None:
    from safetensors.numpy import save

    import pyconv

    _check_saveable(model, path, overwrite)
    description = {
        "format": FORMAT,
        "version": pyconv.__version__,
        "config": config,
        "compile": compiled,
    }
    try:
        if config is not None and len(config["layers"]) > MOST_LAYERS:
            raise ValueError(f"a file holds at most {MOST_LAYERS:,} layers")
        # One key, because safetensors writes several in random order.
        metadata = {"pyconv": as_text(description)}
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"the model's configuration cannot be saved: {error}. Received: {description}"
        ) from error
    atomic_write(path, save(get_tensors(model), metadata=metadata))


def load_model(path: str | os.PathLike[str]) -> Sequential:
    """Loads a model that `save_model` wrote, compiled if it was compiled.

    Everything in the file is checked before use; nothing in it is executed.

    Args:
        path: The file.

    Returns:
        The model, built and with its weights.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a model of pyconv's, is damaged, was written by a newer format,
            or its weights do not fit its layers.

    Example:
        >>> model = pyconv.saving.load_model("model.safetensors")
        >>> model.predict(x)
    """
    from pyconv.models import Sequential

    path = Path(path)
    tensors, description = read_tensors(path)
    if "config" in description and description["config"] is None:
        raise ValueError(
            f"{path} holds weights alone, so a model cannot be made of it. Make the model, and "
            "call its load_weights()."
        )
    try:
        if len(description["config"]["layers"]) > MOST_LAYERS:
            raise ValueError(f"a model has at most {MOST_LAYERS:,} layers")
        config, initial = _without_initializers(description["config"])
        model = Sequential.from_config(config)
        for layer, names in zip(model.layers, initial):
            for name, value in names.items():
                setattr(layer, name, initializers.get(value))
    except BAD_CONFIG as error:
        raise ValueError(
            f"{path}: its layers cannot be made: {type(error).__name__}: {error}"
        ) from error
    check_tensors(model, tensors, path)
    set_tensors(model, tensors)
    if (compiled := description.get("compile")) is not None:
        try:
            model.compile_from_config(compiled)
        except BAD_CONFIG as error:
            raise ValueError(
                f"{path}: it cannot be compiled as it was: {type(error).__name__}: {error}"
            ) from error
    return model


def as_text(description: Mapping[str, Any]) -> str:
    """The description of a file as JSON; raises ValueError or TypeError unless that can be read."""
    text = json.dumps(description, allow_nan=False)
    if len(text) > MOST_TEXT:
        raise ValueError(f"as text it has more than {MOST_TEXT:,} characters")
    return text


def atomic_write(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file as a whole or not at all.

    A link is followed; the file that it points to is replaced.

    Args:
        path: File to write. Its folder must exist.
        data: The whole content.

    Raises:
        OSError: It cannot be written, or is there and not a regular file.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        # Renaming over it would replace a device, such as /dev/null, for the whole system.
        raise OSError(f"{path} is not a regular file. Choose another name.")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Removes what :func:`atomic_write` left beside the file where its process was killed."""
    target = Path(os.path.realpath(path))
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.????????.tmp"):
        leftover.unlink(missing_ok=True)


def get_tensors(model: Sequential) -> dict[str, np.ndarray]:
    """The weights of a built model, on the host, by layer and name: "conv2d/kernel"."""
    return {name: np.ascontiguousarray(p.value) for name, p in _named_parameters(model)}


def _named_parameters(model: Sequential) -> Iterator[tuple[str, Parameter]]:
    seen = set()
    for layer in model.layers:
        for parameter in layer.parameters:
            name = f"{layer.name}/{parameter.name}"
            if name in seen:
                raise ValueError(
                    f"two parameters are called {name!r}: give the layers other names."
                )
            seen.add(name)
            yield name, parameter


def _without_initializers(
    config: dict[str, Any],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A configuration whose weights are zeros; what its initializers were, layer by layer.

    The weights are overwritten in any case. Zeros cost no memory until they are written to, so
    sizes that a file only claims to have do not matter until they are compared with the tensors'.
    """
    layers, removed = [], []
    for layer in config["layers"]:
        names = {
            key: value for key, value in layer["config"].items() if key.endswith("_initializer")
        }
        removed.append(names)
        layers.append({**layer, "config": {**layer["config"], **dict.fromkeys(names, "zeros")}})
    return {**config, "layers": layers}, removed


def read_tensors(
    path: Path, key: str = "pyconv", what: str = "model", writer: str = "save_model"
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of a file, all float32, and its description, of the format of this version.

    Args:
        path: a safetensors file.
        key: where the description is among its metadata.
        what, writer: what the file should be, and who should have written it, for errors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is something else, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    if path.is_dir():
        raise ValueError(f"{path} is a folder. Expected a file written by {writer}.")
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(key)
            if text is None:
                raise ValueError(
                    f"{path} is a safetensors file, but no {what} of pyconv's. Expected a file "
                    f"written by {writer}."
                )
            description = _parse(text, path)
            tensors = {}
            for name in file.keys():  # noqa: SIM118
                if (dtype := file.get_slice(name).get_dtype()) != "F32":
                    raise ValueError(f"{path}: {name} must be of type F32. Received: {dtype}")
                tensors[name] = file.get_tensor(name)
            return tensors, description
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a safetensors file, or is damaged: {error}. Expected a file written by "
            f"{writer}."
        ) from error


def _parse(text: str, path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a finite number")

    try:
        if len(text) > MOST_TEXT:
            raise ValueError(f"it has more than {MOST_TEXT:,} characters")
        description = json.loads(text, parse_constant=refuse)
        found = description["format"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path}: its description is damaged: {error!r}") from error
    if found != FORMAT:
        raise ValueError(
            f"{path} has format {found!r}, written by pyconv {description.get('version')!r}; this "
            f"version reads format {FORMAT}. Load it with that version, or upgrade pyconv."
        )
    return description


def check_tensors(model: Sequential, tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Raises ValueError unless there is one for every weight of the model, and no other."""
    parameters = dict(_named_parameters(model))
    if missing := sorted(parameters.keys() - tensors.keys()):
        raise ValueError(f"{path}: it lacks {', '.join(missing)}, which its layers have.")
    if extra := sorted(tensors.keys() - parameters.keys()):
        raise ValueError(f"{path}: it has {', '.join(extra)}, which none of its layers has.")
    for name, parameter in parameters.items():
        tensor = tensors[name]
        if tensor.shape != parameter.shape:
            raise ValueError(
                f"{path}: {name} must have the shape {parameter.shape}. Received: {tensor.shape}"
            )


def set_tensors(model: Sequential, tensors: Mapping[str, np.ndarray]) -> None:
    """Overwrites the weights of the model with tensors that :func:`check_tensors` found to fit."""
    for name, parameter in _named_parameters(model):
        parameter.assign(tensors[name])
