"""A hundred epochs take no more memory than those before them, and leave no file open.

Until then the C library's and Python's heaps fill up, by less and less every epoch.

How long trainings of the tutorial's network did is in docs/reliability.md, by
tests/machines/long_run.py.
"""

from __future__ import annotations

import sys

import pytest
from trainings import run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")

BEGIN = """
import os, sys
import pyconv, trainings
from pyconv.callbacks import BackupAndRestore, LambdaCallback
from pyconv.preprocessing.image import ImageDataGenerator

def note(number, logs=None):
    "Resident memory and open files."
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    print(pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd")))

x, y = trainings.data()
def fit(**batches):
    callbacks = [BackupAndRestore(sys.argv[1], 16), LambdaCallback(on_epoch_end=note)]
    options = {"epochs": 200, "verbose": 0, "callbacks": callbacks, "validation_data": (x, y)}
    trainings.new_model().fit(**batches, **options)
"""

PROGRAMS = {
    "arrays": "fit(x=x, y=y, batch_size=trainings.BATCH)",
    "generator": (
        "generator = ImageDataGenerator(rotation_range=20, horizontal_flip=True)\n"
        "fit(x=generator.flow(x, y, batch_size=trainings.BATCH), workers=3)"
    ),
    "models": (
        "for number in range(200):\n"
        "    model = trainings.trained(number, epochs=1)\n"
        "    model.predict(x, verbose=0)\n"
        "    if number % 5 == 0: model.save(sys.argv[1] + '.safetensors')\n"
        "    pyconv.models.load_model(sys.argv[1] + '.safetensors').predict(x, verbose=0)\n"
        "    note(number)"
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_memory_and_files(name, tmp_path):
    """Training on arrays; on a generator with threads; and making, saving and loading models."""
    # Else the C library goes on to give new threads heaps of their own for some hundred epochs.
    settings = {"MALLOC_ARENA_MAX": "1", "TRAININGS_SIZE": "12", "PYCONV_DEVICE": "cpu"}
    words = run(BEGIN + PROGRAMS[name], str(tmp_path / "kept"), timeout=300, **settings)
    memory, files = [list(map(int, words[start::2])) for start in (0, 1)]
    assert len(memory) == len(files) == 200
    # The most of ten rounds: threads that are ahead by a batch, or not, make a difference too.
    before, after = max(memory[90:100]), max(memory[-10:])
    assert after <= 1.01 * before, f"{before:,} bytes, then {after:,}"
    assert max(files[-10:]) <= max(files[90:100])
