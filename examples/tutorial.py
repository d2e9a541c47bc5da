"""The first half of the tutorial: a convolutional network on CIFAR-10, from the data to the curves.

    python examples/tutorial.py [EPOCHS [IMAGES]]

EPOCHS defaults to 50, about a minute each on two cores; IMAGES limits the training images. The
calls are those of the tutorial; only the import lines say `pyconv` where it says `keras`.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np

from pyconv.datasets import cifar10
from pyconv.layers import Conv2D, Dense, Dropout, Flatten, MaxPooling2D
from pyconv.models import Sequential
from pyconv.utils import to_categorical

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 50
images = int(sys.argv[2]) if len(sys.argv) > 2 else 50_000

# The data: 32x32 colour images of ten kinds of things.
(train_images, train_labels), (test_images, test_labels) = cifar10.load_data()
train_images, train_labels = train_images[:images], train_labels[:images]
print("Training data shape:", train_images.shape, train_labels.shape)
print("Testing data shape:", test_images.shape, test_labels.shape)
classes = np.unique(train_labels)
print("Output classes:", len(classes), classes)

# Pixels from 0 to 1, labels one-hot.
train_data = train_images.astype("float32") / 255
test_data = test_images.astype("float32") / 255
train_labels_one_hot = to_categorical(train_labels, len(classes))
test_labels_one_hot = to_categorical(test_labels, len(classes))


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
    model.add(Dense(len(classes), activation="softmax"))
    return model


model = create_model()
model.summary()
model.compile(optimizer="rmsprop", loss="categorical_crossentropy", metrics=["accuracy"])
history = model.fit(
    train_data,
    train_labels_one_hot,
    batch_size=256,
    epochs=epochs,
    verbose=1,
    validation_data=(test_data, test_labels_one_hot),
)
print("Test loss and accuracy:", model.evaluate(test_data, test_labels_one_hot))

# The curves: training accuracy climbs on while validation accuracy levels off. That gap is
# overfitting.
plt.figure(figsize=[8, 6])
plt.plot(history.history["loss"], "r", linewidth=3.0)
plt.plot(history.history["val_loss"], "b", linewidth=3.0)
plt.legend(["Training loss", "Validation loss"], fontsize=18)
plt.xlabel("Epochs", fontsize=16)
plt.ylabel("Loss", fontsize=16)
plt.title("Loss curves", fontsize=16)
plt.savefig("loss.png")

plt.figure(figsize=[8, 6])
plt.plot(history.history["acc"], "r", linewidth=3.0)
plt.plot(history.history["val_acc"], "b", linewidth=3.0)
plt.legend(["Training accuracy", "Validation accuracy"], fontsize=18)
plt.xlabel("Epochs", fontsize=16)
plt.ylabel("Accuracy", fontsize=16)
plt.title("Accuracy curves", fontsize=16)
plt.savefig("accuracy.png")
