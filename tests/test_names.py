"""What Keras has and pyconv leaves out says so, however it is asked for."""

from __future__ import annotations

import importlib

import pytest

import pyconv

NAMES = [
    ("pyconv.layers", "LSTM", "Conv2D, Dense"),
    ("pyconv.losses", "Huber", "MeanSquaredError"),
    ("pyconv.metrics", "AUC", "CategoricalAccuracy"),
    ("pyconv.optimizers", "Lion", "Adam, Optimizer, RMSprop, SGD"),
    ("pyconv.optimizers.schedules", "CosineDecayRestarts", "CosineDecay, Exp"),
    ("pyconv.callbacks", "RemoteMonitor", "EarlyStopping"),
    ("pyconv.models", "Model", "Sequential"),
]


@pytest.mark.parametrize(("module", "name", "there"), NAMES)
def test_what_is_left_out(module, name, there):
    message = rf"{module}.*{name}.*There are .*{there}.*docs/from_keras.md"
    with pytest.raises(ImportError, match=message):
        exec(f"from {module} import {name}")
    with pytest.raises(ImportError, match=message):
        exec(f"def f():\n    from {module} import {name} as other\nf()")
    imported = importlib.import_module(module)
    with pytest.raises(AttributeError, match=message):
        getattr(imported, name)
    with pytest.raises(AttributeError, match=message):
        exec(f"import {module}\n{module}.{name}")
    assert not hasattr(imported, name) and getattr(imported, name, None) is None


@pytest.mark.parametrize("module", sorted({module for module, _, _ in NAMES}))
def test_private_names(module):
    imported = importlib.import_module(module)
    for name in ("__path_of__", "_private"):
        with pytest.raises(AttributeError, match=f"has no attribute '{name}'$"):
            getattr(imported, name)


def test_all_classes_are_told():
    """The list is made of what there is, not written down."""
    for module in (pyconv.layers, pyconv.callbacks):
        with pytest.raises(AttributeError) as caught:
            module.Nothing  # noqa: B018
        for name in module.__all__:
            assert (name in str(caught.value)) == name[0].isupper()


def test_other_spellings_find_the_name():
    for name, meant in (("MaxPool2D", "MaxPooling2D"), ("Conv2d", "Conv2D"), ("dense", "Dense")):
        with pytest.raises(AttributeError, match=f"perhaps '{meant}' is meant"):
            getattr(pyconv.layers, name)


def test_submodules_are_still_imported():
    exec("from pyconv.layers import base, core")
    exec("from pyconv.callbacks import backup")
    exec("from pyconv.optimizers import schedules")
