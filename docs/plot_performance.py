"""Draws docs/performance.png: the tutorial's network, pyconv beside other frameworks.

    python docs/plot_performance.py

The figures in docs/performance/avx512.csv are the medians of a run of `pyconv bench training
inference`; docs/performance.md says on which machine, with which versions and spreads.
"""

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FOLDER = Path(__file__).parent
TITLES = {
    ("training", "256"): "training, batch 256",
    ("inference", "256"): "inference, batch 256",
    ("inference", "1"): "inference, one image at a time",
}


def main() -> None:
    with open(FOLDER / "performance" / "avx512.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    figure, axes = plt.subplots(1, len(TITLES), figsize=(12, 3), layout="constrained")
    for axis, (key, title) in zip(axes, TITLES.items()):
        own = [row for row in rows if (row["task"], row["batch"]) == key]
        own.sort(key=lambda row: int(row["images_per_second"]))
        names = [row["contestant"] for row in own]
        rates = [int(row["images_per_second"]) for row in own]
        colours = ["#d95f02" if name == "pyconv" else "#9aa5b1" for name in names]
        bars = axis.barh(names, rates, color=colours)
        axis.bar_label(bars, [f"{rate:,}" for rate in rates], padding=3, fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("images/s", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.set_xlim(0, 1.2 * max(rates))
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(FOLDER / "performance.png", dpi=110)


if __name__ == "__main__":
    main()
