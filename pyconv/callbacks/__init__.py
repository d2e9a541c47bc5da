"""Callbacks: what is told about the progress of training, and may act on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyconv.callbacks.backup import BackupAndRestore
from pyconv.callbacks.base import (
    Callback,
    CallbackList,
    History,
    LambdaCallback,
    Logs,
    ProgbarLogger,
    Progress,
)
from pyconv.callbacks.control import (
    EarlyStopping,
    LearningRateScheduler,
    ReduceLROnPlateau,
    TerminateOnNaN,
)
from pyconv.callbacks.files import CSVLogger, ModelCheckpoint, TensorBoard
from pyconv.names import missing

__all__ = [
    "BackupAndRestore",
    "CSVLogger",
    "Callback",
    "CallbackList",
    "EarlyStopping",
    "History",
    "LambdaCallback",
    "LearningRateScheduler",
    "Logs",
    "ModelCheckpoint",
    "ProgbarLogger",
    "Progress",
    "ReduceLROnPlateau",
    "TensorBoard",
    "TerminateOnNaN",
]


if not TYPE_CHECKING:  # a type checker shall report what there is not

    def __getattr__(name: str) -> Any:
        raise missing(__name__, name, __all__)
