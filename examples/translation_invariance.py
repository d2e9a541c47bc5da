"""Why convolutions: what a dense network and a CNN make of digits that are not where they were.

    python examples/translation_invariance.py [EPOCHS [IMAGES]] [--output DIR]

Every digit of MNIST lies in the middle of its image. Three networks learn them there and are then
asked about the same test digits pushed into each corner of the image:

- a dense network, to which every pixel is an input of its own;
- a CNN whose last pooling spans what is left of the image, so that it keeps what was found and
  forgets where;
- the same convolutions without that last pooling, for comparison: its dense layers still see where.

Prints a table of accuracies, and draws some digits with the first two networks' answers into
translation_invariance.png in DIR, the working directory by default. EPOCHS defaults to 5, two
minutes on one core; IMAGES limits the images for training and those for testing.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # the picture becomes a file: no display is needed

import matplotlib.pyplot as plt
import numpy as np

from pyconv.datasets import mnist
from pyconv.layers import Conv2D, Dense, Flatten, MaxPooling2D
from pyconv.models import Sequential
from pyconv.utils import set_random_seed, to_categorical

SHAPE = (28, 28, 1)


def dense_network():
    return Sequential(
        [
            Flatten(input_shape=SHAPE),
            Dense(512, activation="relu"),
            Dense(10, activation="softmax"),
        ]
    )


def cnn(pool_everything=True):
    model = Sequential(
        [
            # "same", so that a stroke at the edge is seen by as many filters as one in the middle.
            Conv2D(32, (3, 3), padding="same", activation="relu", input_shape=SHAPE),
            MaxPooling2D(pool_size=(2, 2)),
            Conv2D(64, (3, 3), padding="same", activation="relu"),
            MaxPooling2D(pool_size=(2, 2)),
            Conv2D(64, (3, 3), padding="same", activation="relu"),
        ]
    )
    if pool_everything:
        model.add(MaxPooling2D(pool_size=(7, 7)))  # 28 / 2 / 2: of each filter one number remains
    model.add(Flatten())
    model.add(Dense(128, activation="relu"))
    model.add(Dense(10, activation="softmax"))
    return model


NETWORKS = {
    "dense": dense_network,
    "CNN": cnn,
    "CNN, last pooling left out": lambda: cnn(pool_everything=False),
}


def push(images, to_bottom, to_right):
    """The digits moved until their ink touches two edges. They keep every pixel of it."""
    pushed = np.empty_like(images)
    for i, image in enumerate(images):
        rows, columns = (np.flatnonzero(image.any(axis=axis)) for axis in (1, 0))
        down = image.shape[0] - 1 - rows[-1] if to_bottom else -rows[0]
        right = image.shape[1] - 1 - columns[-1] if to_right else -columns[0]
        # What leaves on one side enters on the other, but only paper does.
        pushed[i] = np.roll(image, (down, right), axis=(0, 1))
    return pushed


def as_inputs(images):
    return images.reshape(-1, *SHAPE).astype("float32") / 255


def draw(digits, answers, path):
    """A row for each digit, a column for each place, the answers beneath, wrong ones in red.

    Args:
        digits: images by place.
        answers: by place, the answers of each network by its name, and "true".
        path: PNG file to write.
    """
    count = len(next(iter(digits.values())))
    figure, grid = plt.subplots(
        count,
        len(digits),
        figsize=(1.6 * len(digits), 1.9 * count),
        squeeze=False,
        layout="constrained",
    )
    for column, (place, images) in enumerate(digits.items()):
        for row, image in enumerate(images):
            axes = grid[row, column]
            axes.imshow(image, cmap="gray_r", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[], title="" if row else place)
            true = answers[place]["true"][row]
            for x, name in ((0.02, "dense"), (0.58, "CNN")):
                answer = answers[place][name][row]
                color = "black" if answer == true else "red"
                axes.text(
                    x, -0.06, f"{name} {answer}", color=color, va="top", transform=axes.transAxes
                )
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("epochs", nargs="?", type=int, default=5)
    parser.add_argument("images", nargs="?", type=int, default=60_000, help="images at most")
    parser.add_argument("--output", type=Path, default=Path(), help="folder for the picture")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)

    (train_images, train_labels), (test_images, test_labels) = mnist.load_data()
    train_images, train_labels, test_images, test_labels = (
        array[: arguments.images]
        for array in (train_images, train_labels, test_images, test_labels)
    )
    places = {
        "as it is": test_images,
        "top left": push(test_images, to_bottom=False, to_right=False),
        "top right": push(test_images, to_bottom=False, to_right=True),
        "bottom left": push(test_images, to_bottom=True, to_right=False),
        "bottom right": push(test_images, to_bottom=True, to_right=True),
    }
    answers = {place: {"true": test_labels} for place in places}

    for name, network in NETWORKS.items():
        print(f"Training: {name}", flush=True)
        set_random_seed(0)
        model = network()
        model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
        model.fit(
            as_inputs(train_images),
            to_categorical(train_labels, 10),
            batch_size=128,
            epochs=arguments.epochs,
            verbose=2,
        )
        for place, images in places.items():
            outputs = model.predict(as_inputs(images), batch_size=256, verbose=0)
            answers[place][name] = outputs.argmax(axis=1)

    print(f"\nAccuracy on {len(test_images):,} test images, by where the digits are")
    print(f"{'':28}" + "".join(f"{place:>14}" for place in places))
    for name in NETWORKS:
        shares = [np.mean(answers[place][name] == test_labels) for place in places]
        print(f"{name:28}" + "".join(f"{100 * share:12.1f} %" for share in shares))

    # The first image of every other digit.
    shown = np.unique(test_labels, return_index=True)[1][::2]
    draw(
        {place: images[shown] for place, images in places.items()},
        {place: {name: a[shown] for name, a in known.items()} for place, known in answers.items()},
        arguments.output / "translation_invariance.png",
    )


if __name__ == "__main__":
    main()
