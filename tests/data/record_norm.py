# ruff: noqa: E402 - the backend and the path are chosen before the imports
"""Records what Keras computes with batch normalization and activations, for
tests/test_recorded.py. Run by hand, where Keras is installed:

    OMP_NUM_THREADS=1 KERAS_BACKEND=tensorflow python tests/data/record_norm.py

Writes keras_norm.npz beside itself: losses, weights and outputs in float64, and how far float32 and
mixed_bfloat16 are off. Inputs and initial weights are made again from counters.
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

from pyconv.validation.cases import norm_layers, norm_samples, norm_steps, norm_weights


def run(dtype: str, frozen: bool, policy: str | None = None) -> dict[str, np.ndarray]:
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(policy or dtype)
    model = keras.Sequential([keras.Input((6, 6, 2)), *norm_layers(keras.layers)])
    model.set_weights([w.astype(dtype) for w in norm_weights([w.shape for w in model.weights])])
    model.layers[1].trainable = not frozen
    losses, weights = norm_steps(model, keras.optimizers.SGD(0.1))
    outputs = model.predict(norm_samples()[0].astype(dtype), verbose=0).astype(dtype)
    return {
        "losses": losses,
        "outputs": outputs,
        **{f"weights{i}": w for i, w in enumerate(weights)},
    }


if __name__ == "__main__":
    kept = {"versions": np.array(f"keras {keras.__version__}, numpy {np.__version__}")}
    for name, frozen in (("trained", False), ("frozen", True)):
        truth, rounded = run("float64", frozen), run("float32", frozen)
        mixed = run("float32", frozen, "mixed_bfloat16")
        for key, value in truth.items():
            kept[f"{name} {key}"] = np.asarray(value, np.float64)
            kept[f"{name} {key} error"] = np.abs(rounded[key] - np.asarray(value)).max()
            kept[f"{name} {key} mixed error"] = np.abs(mixed[key] - np.asarray(value)).max()
            errors = kept[f"{name} {key} error"], kept[f"{name} {key} mixed error"]
            print(name, key, np.shape(value), *errors)
    np.savez_compressed(HERE / "keras_norm.npz", **kept)
    print((HERE / "keras_norm.npz").stat().st_size, "bytes")
