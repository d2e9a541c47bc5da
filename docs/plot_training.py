"""Draws docs/training.png and docs/augmentation.png: the accuracy of pyconv's recorded runs beside
Keras's.

    python docs/plot_training.py KERAS.json [KERAS.json ...]

The arguments are recorded Keras runs: a list of {"epoch", "val_accuracy", ...} a file, the first
one of 100 epochs. pyconv's are docs/training/*.csv, as `pyconv train` wrote them. Prints the means
quoted in training.md.
"""

import csv
import json
import sys
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure

DOCS = Path(__file__).parent
EPOCHS = 25

ours = {
    f"pyconv, {path.stem.replace('seed', 'seed ')}": [
        float(row["val_accuracy"]) for row in csv.DictReader(path.open())
    ]
    for path in sorted((DOCS / "training").glob("seed*.csv"))
}
keras = {
    f"Keras on TensorFlow, seed {i}": [
        record["val_accuracy"] for record in json.loads(Path(name).read_text())
    ][:EPOCHS]
    for i, name in enumerate(sys.argv[1:])
}

figure = Figure(figsize=(8, 5), layout="constrained")
axes = figure.subplots()
for runs, color in ((ours, "tab:blue"), (keras, "tab:orange")):
    for (name, curve), style in zip(runs.items(), ("-", "--", ":"), strict=False):
        axes.plot(range(1, len(curve) + 1), curve, style, color=color, label=name)
axes.set(xlabel="Epoch", ylabel="Validation accuracy", title="The tutorial's network on CIFAR-10")
axes.grid(alpha=0.3)
axes.legend()
figure.savefig(DOCS / "training.png", dpi=100)

for runs in (ours, keras):
    last = {name: mean(curve[20:25]) for name, curve in runs.items()}
    for name, value in last.items():
        print(f"{name}: {100 * value:.2f} % over epochs 21-25")
    print(f"mean: {100 * mean(last.values()):.2f} %")


# 100 epochs, without and with augmentation
def column(name: str, key: str) -> list[float]:
    path = DOCS / "training" / f"{name}100.csv"
    return [float(row[key]) for row in csv.DictReader(path.open())]


def smooth(curve: list[float]) -> list[float]:
    """Means of up to five epochs: single ones jump by points."""
    return [mean(curve[max(0, i - 2) : i + 3]) for i in range(len(curve))]


long = {
    "Keras, test": [r["val_accuracy"] for r in json.loads(Path(sys.argv[1]).read_text())],
    "pyconv, test": column("plain", "val_accuracy"),
    "pyconv, training": column("plain", "accuracy"),
    "pyconv with augmentation, test": column("augmented", "val_accuracy"),
    "pyconv with augmentation, training": column("augmented", "accuracy"),
}
figure = Figure(figsize=(8, 5), layout="constrained")
axes = figure.subplots()
for (name, curve), (color, style) in zip(
    long.items(),
    (
        *(("tab:orange", "-"), ("tab:blue", "-"), ("tab:blue", ":")),
        *(("tab:green", "-"), ("tab:green", ":")),
    ),
    strict=True,
):
    axes.plot(range(1, len(curve) + 1), smooth(curve), style, color=color, label=name)
axes.set(xlabel="Epoch", ylabel="Accuracy, mean of five epochs", title="100 epochs on CIFAR-10")
axes.grid(alpha=0.3)
axes.legend()
figure.savefig(DOCS / "augmentation.png", dpi=100)
for name, curve in long.items():
    print(f"{name}: {100 * mean(curve[90:100]):.2f} % over epochs 91-100")
