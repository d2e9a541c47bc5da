"""Learning-rate schedules: their formulas, in training, and in saved models."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from pyconv import optimizers
from pyconv.layers import Dense, Input
from pyconv.models import Sequential, load_model
from pyconv.optimizers import schedules
from pyconv.optimizers.schedules import (
    CosineDecay,
    ExponentialDecay,
    InverseTimeDecay,
    PiecewiseConstantDecay,
    PolynomialDecay,
)

ALL = [
    ExponentialDecay(0.1, 10, 0.5, staircase=True),
    InverseTimeDecay(0.1, 10, 0.5),
    PolynomialDecay(0.1, 10, 0.01, power=2.0, cycle=True),
    CosineDecay(0.0, 10, 0.1, warmup_target=0.5, warmup_steps=4),
    PiecewiseConstantDecay([3, 5], [0.3, 0.2, 0.1]),
]


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (ExponentialDecay(0.4, 10, 0.25), {0: 0.4, 5: 0.2, 10: 0.1, 20: 0.025}),
        (ExponentialDecay(0.4, 10, 0.25, True), {0: 0.4, 9: 0.4, 10: 0.1, 19: 0.1, 20: 0.025}),
        (InverseTimeDecay(0.6, 10, 2.0), {0: 0.6, 5: 0.3, 10: 0.2}),
        (InverseTimeDecay(0.6, 10, 2.0, True), {9: 0.6, 10: 0.2, 19: 0.2}),
        (PolynomialDecay(0.3, 10, 0.1), {0: 0.3, 5: 0.2, 10: 0.1, 99: 0.1}),
        (PolynomialDecay(0.5, 10, 0.1, 2.0), {0: 0.5, 5: 0.2, 10: 0.1}),
        (PolynomialDecay(0.3, 10, 0.1, cycle=True), {10: 0.1, 15: 0.15, 20: 0.1, 0: 0.3}),
        (CosineDecay(0.4, 10), {0: 0.4, 5: 0.2, 10: 0.0, 30: 0.0}),
        (CosineDecay(0.4, 10, 0.5), {0: 0.4, 5: 0.3, 10: 0.2, 30: 0.2}),
        (
            CosineDecay(0.1, 10, 0.5, warmup_target=0.4, warmup_steps=3),
            {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4, 8: 0.3, 13: 0.2, 99: 0.2},
        ),
        (PiecewiseConstantDecay([3, 5], [0.3, 0.2, 0.1]), {0: 0.3, 3: 0.3, 4: 0.2, 5: 0.2, 6: 0.1}),
    ],
)
def test_values(schedule, values):
    for step, value in values.items():
        assert schedule(step) == pytest.approx(value, abs=1e-15)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_round_trip(schedule):
    description = json.loads(json.dumps(schedules.serialize(schedule)))
    again = schedules.get(description)
    assert type(again) is type(schedule)
    assert [again(step) for step in range(30)] == [schedule(step) for step in range(30)]


@pytest.mark.parametrize("schedule", ALL, ids=repr)
@pytest.mark.filterwarnings("default")  # Keras's own
def test_same_as_keras(schedule):
    pytest.importorskip("keras", exc_type=ImportError)
    from keras.optimizers import schedules as theirs

    other = getattr(theirs, type(schedule).__name__)(**schedule.get_config())
    for step in range(25):
        # Keras computes in float32.
        assert float(other(step)) == pytest.approx(schedule(step), rel=1e-5, abs=1e-7)


def new_model(schedule):
    model = Sequential([Input((4,)), Dense(3, activation="softmax")])
    model.compile(optimizers.SGD(schedule), "categorical_crossentropy")
    return model


DATA = (np.ones((6, 4), np.float32), np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]])


class TestInTraining:
    def test_every_step_has_its_own(self):
        model = new_model(PiecewiseConstantDecay([0, 1], [0.5, 0.25, 0.125]))
        for rate in (0.5, 0.25, 0.125, 0.125):
            assert model.optimizer.learning_rate == rate
            before = model.get_weights()
            model.train_on_batch(*DATA)
            for w0, w1, g in zip(before, model.get_weights(), model.gradients):
                np.testing.assert_allclose(w1, w0 - rate * g, rtol=0, atol=2**-23)

    def test_in_a_saved_model(self, tmp_path):
        model = new_model(ALL[3])
        model.fit(*DATA, epochs=2, verbose=0)
        model.save(tmp_path / "m")
        loaded = load_model(tmp_path / "m")
        assert loaded.get_compile_config() == model.get_compile_config()
        loaded.fit(*DATA, batch_size=1, verbose=0)
        assert loaded.optimizer.learning_rate == ALL[3](6)

    def test_cannot_be_set_but_replaced(self):
        optimizer = optimizers.Adam(ALL[0])
        with pytest.raises(
            TypeError, match="follows ExponentialDecay.*Received: learning_rate=0.1"
        ):
            optimizer.learning_rate = 0.1
        optimizer.learning_rate = ALL[1]
        assert optimizer.learning_rate == 0.1
        assert optimizers.get(optimizers.serialize(optimizer)).learning_rate == 0.1

    def test_one_of_ones_own(self):
        class Mine(schedules.LearningRateSchedule):
            def __call__(self, step):
                return 1 / (step + 1)

        model = new_model(Mine())
        model.fit(*DATA, epochs=3, verbose=0)
        assert model.optimizer.learning_rate == 0.25
        with pytest.raises(NotImplementedError, match="Mine must define get_config"):
            model.get_compile_config()

    def test_a_rate_that_is_none(self):
        class Bad(schedules.LearningRateSchedule):
            def __call__(self, step):
                return math.nan

        with pytest.raises(ValueError, match="learning_rate must be a number"):
            new_model(Bad()).train_on_batch(*DATA)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExponentialDecay(0.1, 0, 0.5), "decay_steps must be positive"),
        (lambda: ExponentialDecay("x", 1, 0.5), "initial_learning_rate must be a finite number"),
        (lambda: CosineDecay(0.1, 10, math.inf), "alpha must be a finite number"),
        (lambda: PiecewiseConstantDecay([1], [0.1]), "one more value than boundaries"),
        (lambda: PiecewiseConstantDecay([2, 1], [1, 2, 3]), "must ascend"),
        (lambda: schedules.get({"class_name": "Other", "config": {}}), "Unknown schedule.*Cosine"),
        (lambda: optimizers.SGD(print), "learning_rate must be a number"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
