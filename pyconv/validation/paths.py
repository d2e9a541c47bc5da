"""The paths that a call can take on this machine: devices, instruction sets, math modes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

from pyconv import backend

# What a math mode may round: see checks.Check.bound. The first is a device's plain one.
ARITHMETIC = {
    "cpu": {
        "direct": "direct",
        "fp32": "any",
        "winograd4": "winograd4",
        "winograd6": "winograd6",
    },
    "cuda": {"fp32": "direct", "tf32": "tf32"},
}
ARCHITECTURES = {"80": "_cuda_emulated", "75": "_cuda_emulated_sm75"}


@dataclass(frozen=True)
class Path:
    """Where and how kernels run.

    Attributes:
        device: "cpu", "cuda" or "cuda-emulated".
        math_mode: as `pyconv.set_math_mode` takes it.
        variant: the instruction set of "cpu", the architecture of "cuda-emulated", else "".
    """

    device: str
    math_mode: str
    variant: str = ""

    @property
    def arithmetic(self) -> str:
        """What a convolution may round: "direct", "winograd4", "winograd6", "any", "tf32"."""
        return ARITHMETIC["cpu" if self.device == "cpu" else "cuda"][self.math_mode]

    @property
    def name(self) -> str:
        """As tables have it."""
        where = f"cuda-emulated sm_{self.variant}" if self.device == "cuda-emulated" else ""
        return f"{where or self.variant or self.device} {self.math_mode}"

    @property
    def options(self) -> str:
        """Of `pyconv validate`, to choose this path alone."""
        variant = {"cpu": "--isa ", "cuda-emulated": "--arch "}.get(self.device, "")
        chosen = f"{variant}{self.variant} " if variant else ""
        return f"--device {self.device} {chosen}--math-mode {self.math_mode}"

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Within it, `pyconv.kernels` takes this path; settings are as before after it."""
        with contextlib.ExitStack() as undo:
            if self.device == "cuda-emulated":
                undo.enter_context(_emulating(self.variant))
            previous = backend.get_device()
            undo.callback(backend.set_device, previous)
            backend.set_device(self.device)
            if self.device == "cpu":
                undo.callback(backend.set_isa, backend.isa())
                backend.set_isa(self.variant)
            mode = backend.get_math_mode()
            undo.callback(backend.current().kernels.set_math_mode, mode)
            backend.set_math_mode(self.math_mode)
            yield


@contextlib.contextmanager
def _emulating(architecture: str) -> Iterator[None]:
    """Within it, "cuda-emulated" has code for this architecture, and checks every access against
    the arrays of the call."""
    settings = {
        "PYCONV_EMULATED_ARCH": architecture,
        "PTXCPU_COMPUTE_CAPABILITY": architecture,
        "PTXCPU_STRICT": "1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    backend._backend.cache_clear()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        backend._backend.cache_clear()


def available(
    device: str = "all",
    isas: Sequence[str] = (),
    architectures: Sequence[str] = (),
    math_modes: Sequence[str] = (),
) -> list[Path]:
    """The paths of this machine that these options leave; fastest first, plain ones before others.

    Args:
        device: "cpu", "cuda", "cuda-emulated", or "all" there are.
        isas, architectures, math_modes: those to take; all, if empty.

    Raises:
        RuntimeError: for a device that cannot be used.
        ValueError: if nothing is left.
    """
    found: list[Path] = []
    if device in ("cpu", "all"):
        known = backend.available_isas()
        for isa in isas:
            if isa not in known:
                raise ValueError(f"--isa: this machine has {', '.join(known)}. Received: {isa!r}.")
        found += [Path("cpu", mode, isa) for isa in known for mode in ARITHMETIC["cpu"]]
    if device == "cuda" or (device == "all" and not backend.cuda_unavailable_reason()):
        reason = backend.cuda_unavailable_reason()
        if reason:
            raise RuntimeError(f"The device 'cuda' cannot be used: {reason}.")
        module = backend.cuda_module()
        assert module is not None
        capability = tuple(map(int, str(module.devices()[0]["compute_capability"]).split(".")))
        found += [
            Path("cuda", mode)
            for mode in ARITHMETIC["cuda"]
            if mode == "fp32" or capability >= (8,)
        ]
    if device in ("cuda-emulated", "all"):
        built = [a for a, name in ARCHITECTURES.items() if _is_built(name)]
        if device == "cuda-emulated" and not built:
            backend._backend("cuda-emulated")  # says what is missing
        found += [
            Path("cuda-emulated", mode, a)
            for a in built
            for mode in ARITHMETIC["cuda"]
            if mode == "fp32" or a != "75"
        ]
    # A choice among one device's variants leaves other devices out.
    if isas or architectures:
        found = [path for path in found if path.variant in (*isas, *architectures)]
    if math_modes:
        found = [path for path in found if path.math_mode in math_modes]
    if not found:
        raise ValueError(
            "no path of this machine is left: these --device, --isa, --arch and --math-mode do not "
            "go together. `pyconv info` says what there is."
        )
    return found


def _is_built(name: str) -> bool:
    return isinstance(backend._extension(name), ModuleType)
