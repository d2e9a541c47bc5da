"""The command-line program, `pyconv` or `python -m pyconv`."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import platform
import secrets
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
import numpy as np
from numpy.typing import NDArray

import pyconv
from pyconv import distribute
from pyconv.bench.command import bench
from pyconv.datasets import DataNotFoundError, cifar10, data_dir, mnist, shapes
from pyconv.utils import set_random_seed, to_categorical

if TYPE_CHECKING:
    from types import ModuleType

    from pyconv.checkpoints import Checkpoint
    from pyconv.models import Sequential
    from pyconv.preprocessing.image import ImageDataGenerator

Split = tuple[NDArray[np.uint8], NDArray[np.uint8]]
SIGNALLED = 128  # plus the signal's number: the status of what a signal ended, as in shells
SAVE_SECONDS = 10  # between checkpoints within an epoch
SAVE_SHARE = 0.01  # of the time, at most, for checkpoints

TITLES = {"cifar10": "CIFAR-10", "mnist": "MNIST", "shapes": "shapes (synthetic)"}
CLASS_NAMES: dict[str, Sequence[str]] = {
    "cifar10": cifar10.CLASS_NAMES,
    "mnist": mnist.CLASS_NAMES,
    "shapes": shapes.CLASS_NAMES,
}
LOADERS: dict[str, Callable[[], tuple[Split, Split]]] = {
    "cifar10": cifar10.load_data,
    "mnist": mnist.load_data,
    "shapes": shapes.load_data,
}


class _Program(click.Group):
    """Turns exceptions into one line on stderr and an exit status, unless PYCONV_DEBUG=1."""

    def invoke(self, ctx: click.Context) -> Any:
        ctx.obj = stop = _Stop()
        try:
            with stop.heeding_sigterm():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(stop.status)
        except Exception as error:
            if os.environ.get("PYCONV_DEBUG") == "1":
                raise
            text = " ".join(str(error).split()) or "no further explanation"
            # The library's own errors explain themselves; the names of others help.
            expected = isinstance(error, (ValueError, RuntimeError, OSError, ImportError))
            raise click.ClickException(
                text if expected else f"{type(error).__name__}: {text}"
            ) from error


class _Stop:
    """Makes SIGTERM stop the program like Ctrl-C, and knows which one did."""

    status = SIGNALLED + signal.SIGINT

    @contextlib.contextmanager
    def heeding_sigterm(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._receive)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _receive(self, *_: object) -> None:
        self.status = SIGNALLED + signal.SIGTERM
        raise KeyboardInterrupt


def _threads_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--threads", type=click.IntRange(min=1), help="Number of threads.  [default: all cores]"
    )(command)


def _device_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--device",
        type=click.Choice(pyconv.backend.DEVICES),
        default=None,
        help="What the kernels run on.  [default: PYCONV_DEVICE, else auto]",
    )(command)


def _batch_size_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--batch-size", type=click.IntRange(min=1), default=256, show_default=True)(
        command
    )


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pyconv.__version__, prog_name="pyconv")
def main() -> None:
    """Convolutional networks whose kernels people can read."""


@main.command()
@click.option(
    "--data",
    type=click.Choice(["auto", *LOADERS]),
    default="auto",
    show_default=True,
    help="Data set; auto is cifar10 where it is on disk or can be downloaded, else shapes.",
)
@click.option("--epochs", type=click.IntRange(min=1), default=25, show_default=True)
@_batch_size_option
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Seed of weights, order, dropout and augmentation.",
)
@_threads_option
@_device_option
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("pyconv-run"),
    show_default=True,
    help="Folder for model.safetensors, history.csv, curves.png and checkpoint.safetensors.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Use only the first N training images and N/5 test images.",
)
@click.option(
    "--augment",
    is_flag=True,
    help="Shift images at random, by up to a tenth of their size, and mirror every other one "
    "(not digits, of MNIST).",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the run in the output folder, with its options; more --epochs are allowed.",
)
@click.pass_context
def train(
    ctx: click.Context,
    data: str,
    epochs: int,
    batch_size: int,
    seed: int,
    threads: int | None,
    device: str | None,
    output: Path,
    limit: int | None,
    augment: bool,
    resume: bool,
) -> None:
    """Train the tutorial's network on a data set.

    Ctrl-C or SIGTERM stops it after the batch at hand and saves what has been trained so far. After
    that, or whatever else ended it, the same command with --resume goes on, and ends with the same
    weights as a run that was never stopped.
    """
    from pyconv.applications import tutorial_network
    from pyconv.callbacks import BackupAndRestore

    is_first = distribute.rank() == 0  # of the processes that MPI's launcher started
    if is_first:
        _check_writable(output)
    _set_threads(threads)
    _set_device(device)
    checkpoint = _checkpoint(output) if resume else None
    if checkpoint is not None:
        data, batch_size, seed, augment, limit, epochs = _options_of(checkpoint, ctx)
    set_random_seed(seed)

    data, (train_split, test_split) = _load(data)
    if limit is not None:
        train_split = _first(train_split, limit)
        test_split = _first(test_split, max(1, limit // 5))
    to_device = pyconv.backend.current().to_device
    x, y = _prepare(*train_split)
    x_test, y_test = _prepare(*test_split)
    x_test = to_device(x_test)
    if is_first:
        shared = f" in {distribute.size()} processes" if distribute.size() > 1 else ""
        click.echo(f"Training on {len(x):,} images of {TITLES[data]}{shared}.")

    model = tutorial_network(x.shape[1:], classes=10)
    _compile(model)
    batches: dict[str, Any]
    if augment:
        batches = {"x": _augmented(data).flow(x, y, batch_size=batch_size)}
    else:
        # The images stay on the device, where batches are gathered.
        batches = {"x": to_device(x), "y": y, "batch_size": batch_size}
    settings = {
        "data": data,
        "batch_size": batch_size,
        "seed": seed,
        "augment": augment,
        "limit": limit,
    }
    backup = BackupAndRestore(
        output,
        delete_checkpoint=False,
        save_seconds=SAVE_SECONDS,
        max_share=SAVE_SHARE,
        settings=settings,
    )
    if is_first and resume:
        click.echo(_where_it_goes_on(checkpoint, epochs, output))
    elif is_first and backup.path.exists():
        click.echo(f"Training anew: what --resume would have gone on with in {output} is dropped.")
        backup.path.unlink()
    history = model.fit(
        **batches, epochs=epochs, validation_data=(x_test, y_test), callbacks=[backup]
    )
    if is_first:
        _save_run(model, history.history, output)
    if history.interrupted:
        ctx.exit(ctx.obj.status)
    _report(model, data, x_test, y_test, batch_size)


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--data", type=click.Choice(list(LOADERS)), required=True, help="Whose test images to use."
)
@_batch_size_option
@_threads_option
@_device_option
def evaluate(
    model: Path, data: str, batch_size: int, threads: int | None, device: str | None
) -> None:
    """Measure loss and accuracy of a saved MODEL."""
    from pyconv.losses import SparseCategoricalCrossentropy
    from pyconv.saving import load_model

    _set_threads(threads)
    _set_device(device)
    network = load_model(model)
    if network.get_compile_config() is None:
        _compile(network)
    _, test_split = LOADERS[data]()
    x, one_hot = _prepare(*test_split)
    numbered = isinstance(network.loss, SparseCategoricalCrossentropy)
    _report(network, data, x, test_split[1].ravel() if numbered else one_hot, batch_size)


@main.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
def summary(model: Path | None) -> None:
    """Print the layers of a saved MODEL, or of the tutorial's network."""
    from pyconv.applications import tutorial_network
    from pyconv.saving import load_model

    (load_model(model) if model else tutorial_network()).summary()


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--data", type=click.Choice(list(LOADERS)), help="Data set whose names the classes have."
)
@click.option(
    "--labels", type=click.Path(path_type=Path), help="Text file with a name a line, instead."
)
@click.option("--top", type=click.IntRange(min=1), default=3, show_default=True)
@_threads_option
@_device_option
def predict(
    model: Path,
    images: tuple[Path, ...],
    data: str | None,
    labels: Path | None,
    top: int,
    threads: int | None,
    device: str | None,
) -> None:
    """Print the likeliest classes of IMAGES, and their probabilities, by a saved MODEL.

    Images are made grey or coloured and scaled to what the model takes, with values from 0 to 1, as
    `pyconv train` has them. Needs Pillow.
    """
    from pyconv.images import load_image
    from pyconv.saving import load_model

    _set_threads(threads)
    _set_device(device)
    if data and labels:
        raise click.UsageError("give --data or --labels, not both.")
    network = load_model(model)
    shape, outputs = network.input_shape, network.output_shape
    if shape is None or len(shape) != 4 or outputs is None or len(outputs) != 2:
        raise click.ClickException(
            f"{model} does not classify images: it takes {shape} and gives {outputs}."
        )
    names: Sequence[str] = [f"class {number}" for number in range(cast("int", outputs[1]))]
    if data:
        names = CLASS_NAMES[data]
    elif labels:
        names = labels.read_text().splitlines()
    if len(names) != outputs[1]:
        raise click.ClickException(
            f"{model} has {outputs[1]} classes, and there are {len(names)} names."
        )
    size = cast("tuple[int, int, int]", shape[1:])
    for path in images:
        probabilities = network.predict(load_image(path, size)[np.newaxis], verbose=0)[0]
        best = np.argsort(-probabilities, kind="stable")[:top]
        listed = ", ".join(f"{names[index]} {probabilities[index]:.4f}" for index in best)
        click.echo(f"{path}: {listed}")


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
def export(model: Path, output: Path) -> None:
    """Write a saved MODEL for other programs.

    OUTPUT ends in .onnx, or in .weights.h5 for weights that Keras 3 can load.
    """
    from pyconv.saving import load_model

    if not output.name.endswith((".onnx", ".weights.h5")):
        raise click.UsageError(f"OUTPUT must end in .onnx or .weights.h5. Received: {output}")
    network = load_model(model)
    if output.suffix == ".onnx":
        from pyconv.export import export_onnx

        export_onnx(network, output)
    else:
        network.save_weights(output)
    click.echo(f"Wrote {output}")


@main.command()
def info() -> None:
    """Print versions, and what pyconv found on this machine."""
    missing = "not there; downloaded when needed"
    lines = {
        "pyconv": pyconv.__version__,
        "Python": f"{platform.python_version()} ({platform.system()} {platform.machine()})",
        "NumPy": np.__version__,
        "instruction set": f"{pyconv.isa()} (available: {', '.join(pyconv.available_isas())})",
        "threads": pyconv.get_num_threads(),
        "device": f"{pyconv.get_device()} (known: {', '.join(pyconv.backend.DEVICES[1:])})",
        "CUDA": _cuda_summary(),
        "data folder": data_dir(),
        TITLES["cifar10"]: cifar10.find() or missing,
        TITLES["mnist"]: mnist.find() or missing,
        TITLES["shapes"]: "built in",
    }
    width = max(map(len, lines)) + 2
    for name, value in lines.items():
        click.echo(f"{name + ':':<{width}}{value}")
    _echo_kernels()


main.add_command(bench)


def _complete_operation(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[str]:
    from pyconv.validation.checks import OPERATIONS

    return [name for name in OPERATIONS if name.startswith(incomplete)]


@main.command()
@click.option(
    "--device",
    type=click.Choice(["all", *pyconv.backend.DEVICES[1:]]),
    default="all",
    show_default=True,
    help="What the kernels run on; all is every device of this machine.",
)
@click.option("--isa", "isas", multiple=True, help="Instruction set of the CPU.  [default: each]")
@click.option(
    "--arch",
    "architectures",
    multiple=True,
    type=click.Choice(["80", "75"]),
    help="Architecture of cuda-emulated.  [default: each that was built]",
)
@click.option(
    "--math-mode",
    "math_modes",
    multiple=True,
    type=click.Choice(["direct", "fp32", "winograd4", "winograd6", "tf32"]),
    help="How convolutions multiply.  [default: each of the device's modes]",
)
@click.option(
    "--op",
    "operations",
    multiple=True,
    shell_complete=_complete_operation,
    help="Operation.  [default: each]",
)
@click.option(
    "--against",
    multiple=True,
    type=click.Choice(["float64", "torch", "keras", "onnx", "onnx-data", "installed"]),
    default=("installed",),
    show_default=True,
    help="What results are compared with: NumPy in float64, other libraries, ONNX's conformance "
    "data; installed is all that there are.",
)
@click.option(
    "--cases",
    type=click.IntRange(min=0),
    metavar="N",
    help="At most N cases of an operation's table, spread over it.  [default: all]",
)
@click.option(
    "--random",
    "count",
    type=click.IntRange(min=0),
    metavar="N",
    default=10,
    show_default=True,
    help="Random cases of each operation, besides.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of all numbers, and of the random cases.",
)
@click.option(
    "--case",
    "given",
    metavar="TEXT",
    help="One case, as failures print them, instead of the table. Needs one --op.",
)
@click.option(
    "--json",
    "output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write the results there.",
)
@_threads_option
@click.pass_context
def validate(
    ctx: click.Context,
    device: str,
    isas: tuple[str, ...],
    architectures: tuple[str, ...],
    math_modes: tuple[str, ...],
    operations: tuple[str, ...],
    against: tuple[str, ...],
    cases: int | None,
    count: int,
    seed: int,
    given: str | None,
    output: Path | None,
    threads: int | None,
) -> None:
    """Check every kernel on every path of this machine against float64.

    Options that may be given several times: --isa, --arch, --math-mode, --op, --against. Errors are
    in units of the bound that is derived for each element: up to 1 they are rounding. A failing
    case is made simpler, and printed with the command that runs it again; the exit status is then
    1. See docs/validation.md.

    \b
    pyconv validate --device cpu --op conv2d --random 1000 --seed 1
    pyconv validate --isa avx2 --op conv2d --case 'x=1,4,4,3 kernel=3,3 filters=5 strides=2'
    """
    from pyconv.validation import command

    _set_threads(threads)
    passed = command.validate(
        device=device,
        isas=isas,
        architectures=architectures,
        math_modes=math_modes,
        operations=operations,
        against=against,
        cases=cases,
        count=count,
        seed=seed,
        given=given,
        output=output,
    )
    if not passed:
        ctx.exit(1)


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        pyconv.set_num_threads(threads)


def _set_device(device: str | None) -> None:
    if device is not None:
        pyconv.set_device(device)


def _cuda_summary() -> str:
    """What `info` says of the device "cuda"."""
    module = pyconv.backend.cuda_module()
    reason = pyconv.backend.cuda_unavailable_reason()
    if module is None:
        return reason
    built = f"built with CUDA {module.toolkit_version()} for "
    built += ", ".join(f"sm_{architecture}" for architecture in module.architectures())
    if module.device_count() == 0:
        return f"{built}; {reason}"
    names = "; ".join(
        f"{device['name']}, compute capability {device['compute_capability']}, "
        f"{device['multiprocessors']} multiprocessors, {device['memory'] / 2**30:.1f} GiB"
        for device in module.devices()
    )
    found = f"{built}; driver for CUDA {module.driver_version()}; {names}"
    return f"{found}; {reason}" if reason else found


def _echo_kernels() -> None:
    """The CUDA kernels as the compiler made them for the device, where there is one."""
    if pyconv.get_device() == "cuda-emulated":
        module = pyconv.backend.current().kernels
    elif not pyconv.backend.cuda_unavailable_reason():
        module = cast("ModuleType", pyconv.backend.cuda_module())
    else:
        return
    listed = sorted(module.kernels(), key=lambda kernel: kernel["name"])
    width = max((len(kernel["name"]) for kernel in listed), default=0) + 2
    click.echo(f"\n{'kernel':<{width}}  threads  registers  shared  local  occupancy")
    for kernel in listed:
        click.echo(
            f"{kernel['name']:<{width}}{kernel['threads']:>9}{kernel['registers']:>11}"
            f"{kernel['shared_bytes']:>8}{kernel['local_bytes']:>7}{kernel['occupancy']:>11.0%}"
        )


def _load(data: str) -> tuple[str, tuple[Split, Split]]:
    if data != "auto":
        return data, LOADERS[data]()
    try:
        return "cifar10", LOADERS["cifar10"]()
    except DataNotFoundError as error:
        click.echo(f"CIFAR-10 cannot be had: {error}")
        click.echo("Falling back to shapes, pyconv's own synthetic data set. This is not CIFAR-10.")
        return "shapes", LOADERS["shapes"]()


def _augmented(data: str) -> ImageDataGenerator:
    """The tutorial's augmentation; a mirrored digit is none."""
    from pyconv.preprocessing.image import ImageDataGenerator

    return ImageDataGenerator(
        width_shift_range=0.1, height_shift_range=0.1, horizontal_flip=data != "mnist"
    )


def _checkpoint(folder: Path) -> Checkpoint | None:
    from pyconv import checkpoints
    from pyconv.callbacks import BackupAndRestore

    path = BackupAndRestore(folder).path
    return checkpoints.read(path) if path.exists() else None


def _options_of(checkpoint: Checkpoint, ctx: click.Context) -> list[Any]:
    """The options that a run was begun with, which those that are given must agree with."""
    options = {option.name: option for option in ctx.command.params}
    values: list[Any] = []
    before = checkpoint.settings | {"epochs": checkpoint.epochs}
    for name in ("data", "batch_size", "seed", "augment", "limit", "epochs"):
        if name not in before:
            raise click.ClickException(
                f"{checkpoint.path} was not written by pyconv train. Choose another --output."
            )
        value = options[name].type_cast_value(ctx, before[name])
        given = ctx.params[name]
        is_default = ctx.get_parameter_source(name) is click.core.ParameterSource.DEFAULT
        if name == "epochs" and not is_default and given >= value:
            value = given
        elif not is_default and given not in (value, "auto"):
            option = options[name].opts[0]
            raise click.UsageError(
                f"{checkpoint.path.parent} was begun with {_as_typed(option, value)}, so --resume "
                f"cannot go on with {_as_typed(option, given)}. Leave it out, or choose another "
                "--output."
            )
        values.append(value)
    return values


def _as_typed(option: str, value: Any) -> str:
    if value is None or value is False:
        return f"no {option}"
    return option if value is True else f"{option} {value}"


def _where_it_goes_on(checkpoint: Checkpoint | None, epochs: int, folder: Path) -> str:
    if checkpoint is None:
        return f"There is no checkpoint in {folder}, so training starts afresh."
    if checkpoint.epoch >= epochs:
        return (
            f"The run in {folder} is finished: it has all {epochs} epochs. Give it more --epochs."
        )
    done = f"{checkpoint.epoch} of {epochs} epochs"
    if checkpoint.batch:
        done += f" and batch {checkpoint.batch} of the next one"
    return f"Going on with the run in {folder} after {done}."


def _first(split: Split, n: int) -> Split:
    images, labels = split
    return images[:n], labels[:n]


def _prepare(
    images: NDArray[np.uint8], labels: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    x = images.astype(np.float32)
    x /= 255
    return x.reshape(*images.shape[:3], -1), to_categorical(labels.ravel(), 10)


def _compile(model: Sequential) -> None:
    model.compile(optimizer="rmsprop", loss="categorical_crossentropy", metrics=["accuracy"])


def _report(
    model: Sequential,
    data: str,
    x: NDArray[np.float32],
    y: NDArray[Any],
    batch_size: int,
) -> None:
    results = model.evaluate(x, y, batch_size=batch_size, verbose=0, return_dict=True)
    if distribute.rank() > 0:
        return
    measured = ", ".join(f"{k} {v:.4f}" for k, v in cast("dict[str, float]", results).items())
    click.echo(f"Test {measured} on {len(x):,} images of {TITLES[data]}.")


def _check_writable(folder: Path) -> None:
    """Finds out before hours of training, not after, that the results could not be written."""
    from pyconv.saving import remove_leftovers

    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{secrets.token_hex(4)}.tmp"
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise click.ClickException(
            f"cannot write to {folder}: {error.strerror or error}. Choose another --output."
        ) from error
    names = ("model.safetensors", "history.csv", "curves.png", "checkpoint.safetensors")
    for name in (*names, "probe"):
        remove_leftovers(folder / name)
    for name in names:
        if (folder / name).exists() and not (folder / name).is_file():
            raise click.ClickException(
                f"{folder / name} is there and is not a file. Choose another --output."
            )


def _save_run(model: Sequential, history: Mapping[str, Sequence[float]], folder: Path) -> None:
    from pyconv.plotting import plot_history
    from pyconv.saving import atomic_write, save_model

    save_model(model, folder / "model.safetensors")
    written = ["model.safetensors", "history.csv"]

    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["epoch", *history])
    for epoch, row in enumerate(zip(*history.values(), strict=True), 1):
        writer.writerow([epoch, *row])
    atomic_write(folder / "history.csv", table.getvalue().encode())

    if history:
        try:
            plot_history(history, folder / "curves.png")
            written.append("curves.png")
        except ImportError as error:
            click.echo(f"No curves.png: {error}")
    click.echo(f"Wrote {', '.join(written)} to {folder}{os.sep}")
