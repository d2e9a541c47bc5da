# ruff: noqa: E402 - the backend is chosen before the imports
"""Records what Keras's ImageDataGenerator makes of small images, for tests/test_preprocessing.py.
Run by hand, where it is installed:

    pip install tensorflow keras scipy pillow
    KERAS_BACKEND=tensorflow python tests/data/record_images.py

Writes keras_images.npz beside itself. Inputs are not stored: tests/image_cases.py makes them again.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]  # the tests, and pyconv
warnings.simplefilter("ignore")  # the class is deprecated

import keras
import numpy as np
import PIL
import scipy
from keras.src.legacy.preprocessing.image import ImageDataGenerator

from image_cases import COLOURS, GEOMETRY, STANDARDS, batch, image
from pyconv.validation.cases import FILL_MODES


def main() -> None:
    out = {}
    for name, case in GEOMETRY.items():
        for mode in FILL_MODES:
            generator = ImageDataGenerator(fill_mode=mode, cval=0.5)
            x = image(name, case.shape)
            out[f"{name}/{mode}"] = generator.apply_transform(x, dict(case.parameters))
    for name, case in COLOURS.items():
        x = image(name, case.shape, *case.range)
        out[name] = ImageDataGenerator().apply_transform(x, dict(case.parameters))
    for name, arguments in STANDARDS.items():
        generator = ImageDataGenerator(**arguments)
        generator.fit(batch(name))
        flow = generator.flow(batch(name), batch_size=len(batch(name)), shuffle=False)
        out[name] = next(flow)
    versions = [f"{m.__name__} {m.__version__}" for m in (keras, scipy, PIL, np)]
    np.savez_compressed(HERE / "keras_images.npz", versions=np.array(versions), **out)
    print(*versions, sep="\n")


main()
