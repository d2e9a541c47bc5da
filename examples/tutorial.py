"""The tutorial: convolutions by hand, then a CNN on CIFAR-10, without and with augmentation.

    python examples/tutorial.py [EPOCHS [IMAGES]] [--output DIR]

EPOCHS, of each of the two trainings, defaults to 50; IMAGES limits the images for training and
those for testing. The pictures go to DIR, the working directory by default. The calls are those of
the tutorial; only the import lines say `pyconv` where it says `keras`. tutorial.ipynb says more
about each step.
"""

import argparse
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # pictures become files: no display is needed

import matplotlib.pyplot as plt
import numpy as np

from pyconv.datasets import cifar10
from pyconv.layers import Conv2D, Dense, Dropout, Flatten, MaxPooling2D
from pyconv.models import Sequential
from pyconv.preprocessing.image import ImageDataGenerator
from pyconv.utils import plot_activations, plot_filters, set_random_seed, to_categorical

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("epochs", nargs="?", type=int, default=50, help="epochs of each training")
parser.add_argument("images", nargs="?", type=int, default=50_000, help="images at most")
parser.add_argument("--output", type=Path, default=Path(), help="folder for the pictures")
arguments = parser.parse_args()
epochs, images, output = arguments.epochs, arguments.images, arguments.output
output.mkdir(parents=True, exist_ok=True)

set_random_seed(0)  # the same numbers each time

# -------------------------------------------------------------------------- A convolution by hand
# The letter P in 5x5 pixels, and a filter that looks for the upper left corner of such a letter.
letter = np.array(
    [
        [1, 1, 1, 1, 0],
        [1, 0, 0, 0, 1],
        [1, 1, 1, 1, 0],
        [1, 0, 0, 0, 0],
        [1, 0, 0, 0, 0],
    ],
    "float32",
)
corner = np.array(
    [
        [1, 1, 1],
        [1, 0, 0],
        [1, 1, 0],
    ],
    "float32",
)


def activation_map(strides=1, padding="valid"):
    """What a layer of this one filter makes of the letter."""
    layer = Conv2D(
        1, (3, 3), strides=strides, padding=padding, use_bias=False, input_shape=(5, 5, 1)
    )
    model = Sequential([layer])
    model.set_weights([corner.reshape(3, 3, 1, 1)])
    return model.predict(letter.reshape(1, 5, 5, 1), verbose=0)[0, :, :, 0].astype(int)


# The filter covers 3x3 pixels at a time; products of what lies on each other are summed up.
print("First value of the activation map:", int((letter[:3, :3] * corner).sum()))
# N pixels, padded by P on either side, seen by a filter of F with stride S: M values.
for strides, padding, p in ((1, "valid", 0), (2, "valid", 0), (1, "same", 1)):
    values = activation_map(strides, padding)
    m = (5 - 3 + 2 * p) // strides + 1
    print(f"Stride {strides}, padding {p}: (5 - 3 + 2*{p})/{strides} + 1 = {m}")
    print(values)
    assert values.shape == (m, m)

# --------------------------------------------------------------------------------------- The data
# 32x32 colour images of ten kinds of things.
(train_images, train_labels), (test_images, test_labels) = cifar10.load_data()
train_images, train_labels = train_images[:images], train_labels[:images]
test_images, test_labels = test_images[:images], test_labels[:images]
print("Images for training:", train_images.shape, "with labels", train_labels.shape)
print("Images for testing:", test_images.shape, "with labels", test_labels.shape)
classes = len(cifar10.CLASS_NAMES)
print(f"{classes} classes:", ", ".join(cifar10.CLASS_NAMES))

# Pixels from 0 to 1, labels one-hot.
train_data = train_images.astype("float32")
test_data = test_images.astype("float32")
train_data /= 255
test_data /= 255
train_labels_one_hot = to_categorical(train_labels, classes)
test_labels_one_hot = to_categorical(test_labels, classes)


# ---------------------------------------------------------------------------------------- The CNN
def create_model():
    """Three times two convolutions and a pooling, then two dense layers."""
    model = Sequential()
    model.add(
        Conv2D(32, (3, 3), padding="same", activation="relu", input_shape=train_data.shape[1:])
    )
    model.add(Conv2D(32, (3, 3), activation="relu"))
    model.add(MaxPooling2D(pool_size=(2, 2)))
    model.add(Dropout(0.25))

    model.add(Conv2D(64, (3, 3), padding="same", activation="relu"))
    model.add(Conv2D(64, (3, 3), activation="relu"))
    model.add(MaxPooling2D(pool_size=(2, 2)))
    model.add(Dropout(0.25))

    model.add(Conv2D(64, (3, 3), padding="same", activation="relu"))
    model.add(Conv2D(64, (3, 3), activation="relu"))
    model.add(MaxPooling2D(pool_size=(2, 2)))
    model.add(Dropout(0.25))

    model.add(Flatten())
    model.add(Dense(512, activation="relu"))
    model.add(Dropout(0.5))
    model.add(Dense(classes, activation="softmax"))
    return model


def draw_curves(history, name, title, path):
    """One value of `history` by epoch, for training and validation."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    shown = range(1, len(history.history[name]) + 1)
    axes.plot(shown, history.history[name], marker=".", label="training")
    axes.plot(shown, history.history[f"val_{name}"], marker=".", label="validation")
    axes.set(title=title, xlabel="Epoch")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
    plt.close(figure)


batch_size = 256
model1 = create_model()
model1.summary()
model1.compile(optimizer="rmsprop", loss="categorical_crossentropy", metrics=["accuracy"])
history = model1.fit(
    train_data,
    train_labels_one_hot,
    batch_size=batch_size,
    epochs=epochs,
    verbose=1,
    validation_data=(test_data, test_labels_one_hot),
)
print("Test loss and accuracy:", model1.evaluate(test_data, test_labels_one_hot))

# Training accuracy climbs on while validation accuracy levels off. That gap is overfitting.
draw_curves(history, "loss", "Loss", output / "loss.png")
draw_curves(history, "acc", "Accuracy", output / "accuracy.png")

# What was learnt: the first filters are edges and colours; where an image has them, their
# activation maps are bright. The maps of the last convolution are 4x4: parts of things, not pixels.
plot_filters(model1.layers[0], output / "filters.png")
plot_activations(model1, test_data[0], 0, output / "activations_first.png")
plot_activations(model1, test_data[0], 9, output / "activations_last.png")

# ---------------------------------------------------------------------------------- Augmentation
# A ship that is moved a little or mirrored is still a ship, but not pixel for pixel: with every
# epoch's images a bit different, there is less to know by heart.
datagen = ImageDataGenerator(
    width_shift_range=0.1, height_shift_range=0.1, horizontal_flip=True, vertical_flip=False
)
datagen.fit(train_data)

# The first image as ten epochs would show it.
figure, grid = plt.subplots(2, 5, figsize=(7, 3), layout="constrained")
for axes in grid.flat:
    axes.imshow(datagen.random_transform(train_data[0]).clip(0, 1))
    axes.set_axis_off()
figure.savefig(output / "augmented.png")
plt.close(figure)

model2 = create_model()
model2.compile(optimizer="rmsprop", loss="categorical_crossentropy", metrics=["accuracy"])
history2 = model2.fit_generator(
    datagen.flow(train_data, train_labels_one_hot, batch_size=batch_size),
    steps_per_epoch=math.ceil(len(train_data) / batch_size),
    epochs=epochs,
    validation_data=(test_data, test_labels_one_hot),
    workers=4,
)
print("With augmentation, test loss and accuracy:", model2.evaluate(test_data, test_labels_one_hot))

# The gap closes: now both networks' curves in the same frame.
draw_curves(history2, "loss", "Loss with augmentation", output / "loss_augmented.png")
draw_curves(history2, "acc", "Accuracy with augmentation", output / "accuracy_augmented.png")
figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
for name, known, color in (
    ("without augmentation", history, "tab:blue"),
    ("with augmentation", history2, "tab:orange"),
):
    shown = range(1, epochs + 1)
    axes.plot(shown, known.history["acc"], ":", color=color, label=f"training, {name}")
    axes.plot(shown, known.history["val_acc"], color=color, label=f"validation, {name}")
axes.set(title="Accuracy", xlabel="Epoch")
axes.grid(alpha=0.3)
axes.legend()
figure.savefig(output / "comparison.png")
