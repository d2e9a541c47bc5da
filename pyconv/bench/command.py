"""`pyconv bench`, which the scripts in benchmarks/ call as well."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import pyconv
from pyconv.bench import kernels, memory, report, training
from pyconv.bench.contestants import (
    CONTESTANTS,
    CPU,
    CUDA,
    DEVICES,
    INFERENCE,
    KERNELS,
    OURS,
    PEERS,
    TASKS,
    Setting,
)
from pyconv.bench.networks import NETWORKS as WHOLE
from pyconv.bench.operations import NETWORKS, Layer
from pyconv.bench.processes import ContestantError, Process, interpreters
from pyconv.extras import extra

INSTALLED, NONE = "installed", "none"
ISAS = ("avx512", "avx2", "portable")
SECONDS = {KERNELS: 0.1}  # of a turn; others have 1
TUTORIAL = "tutorial"


class Listing(click.ParamType):
    """Values with commas between them.

    Args:
        kind: makes one of a text, or raises ValueError.
        known: what they may be; None for anything.
    """

    name = "list"

    def __init__(self, kind: Callable[[str], Any] = str, known: Sequence[str] | None = None):
        self.kind, self.known = kind, known

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            values = [self.kind(part) for part in value.split(",")]
        except ValueError as error:
            self.fail(f"{error}. Received: {value!r}", param, ctx)
        if self.known is not None and not set(values) <= set(self.known):
            self.fail(f"expected some of {', '.join(self.known)}. Received: {value!r}", param, ctx)
        return list(dict.fromkeys(values))

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> Any:
        from click.shell_completion import CompletionItem

        before, comma, last = incomplete.rpartition(",")
        return [
            CompletionItem(before + comma + name)
            for name in self.known or ()
            if name.startswith(last)
        ]


def _count(text: str) -> int:
    if (value := int(text)) > 0:
        return value
    raise ValueError("expected integers above 0")


ABOVE_0 = click.FloatRange(min=0, min_open=True)
FILE = click.Path(dir_okay=False, path_type=Path)


@dataclass(frozen=True)
class Options:
    """The command's, as `bench` has checked them."""

    tasks: list[str]
    networks: list[str]
    layers: list[str] | None
    batch: list[int] | None
    setting: Setting
    rounds: int
    seconds: float | None
    patience: float
    memory: float

    def turn(self, task: str) -> float:
        return self.seconds or SECONDS.get(task, 1.0)

    def batches(self, task: str) -> list[int]:
        return self.batch or ([256, 1] if task == INFERENCE else [256])


@click.command()
@click.argument("tasks", nargs=-1, type=click.Choice([KERNELS, *TASKS]))
@click.option("--device", type=click.Choice(DEVICES), default=CPU, show_default=True)
@click.option(
    "--peers",
    type=Listing(known=[*PEERS, INSTALLED, NONE]),
    default=INSTALLED,
    show_default=True,
    metavar="NAMES",
    help=f"Whom to compare with: installed, none, or some of {', '.join(PEERS)}.",
)
@click.option(
    "--contestants",
    type=Listing(known=list(CONTESTANTS)),
    metavar="NAMES",
    help=f"Exactly these instead of --peers, of {', '.join(CONTESTANTS)}.",
)
@click.option(
    "--peers-python",
    "pythons",
    multiple=True,
    metavar="PATH",
    help="An interpreter that has peers; may be repeated. The first one that has what a peer needs "
    "runs it; the last resort is this one.",
)
@click.option(
    "--network",
    "networks",
    type=Listing(known=list(NETWORKS)),
    default=TUTORIAL,
    show_default=True,
    metavar="NAMES",
    help=f"Whose layers' kernels: {', '.join(NETWORKS)}. As a whole: {', '.join(WHOLE)}; those "
    "with branches are no Sequential.",
)
@click.option(
    "--layers", type=Listing(), metavar="NAMES", help="Of the networks.  [default: all of them]"
)
@click.option(
    "--batch",
    type=Listing(_count),
    metavar="N,...",
    help="Batch sizes.  [default: 256; inference: 256,1]",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="Of everybody.  [default: all that pyconv uses]"
)
@click.option(
    "--isa", type=click.Choice(ISAS), help="Instruction set that pyconv and peers are limited to."
)
@click.option("--tf32", is_flag=True, help="With cuda: tensor cores, factors rounded to TF32.")
@click.option(
    "--bfloat16",
    is_flag=True,
    help="Networks in mixed precision: pyconv's and Keras's mixed_bfloat16, PyTorch's autocast.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True)
@click.option(
    "--seconds",
    type=ABOVE_0,
    help="Of a turn in a round, at least.  [default: 1; kernels: 0.1]",
)
@click.option(
    "--patience",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    metavar="SECONDS",
    help="For so long a case, wait for a quiet machine before each turn, and repeat turns that "
    "other processes disturb.",
)
@click.option(
    "--max-memory",
    type=ABOVE_0,
    default=4.0,
    show_default=True,
    metavar="GB",
    help="Kernels whose inputs, outputs and gradients take more are left out.",
)
@click.option("--memory", "with_memory", is_flag=True, help="Peak memory of the tutorial's script.")
@click.option(
    "--sweep", "with_sweep", is_flag=True, help="pyconv against the batch size and the threads."
)
@click.option("--json", "json_file", type=FILE, help="Write every round there.")
@click.option("--markdown", "markdown_file", type=FILE, help="Write the tables there.")
@click.option(
    "--plot", "plot_file", type=FILE, help="Draw the roofline and the ratios there, as PNG."
)
@click.option(
    "--compare",
    "old_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="OLD.json",
    help="Say what has changed beyond noise since that --json; exit status 1 if something is "
    "slower.",
)
@click.option(
    "--compare-anyway", is_flag=True, help="Though machine, device or settings were others."
)
@click.pass_context
def bench(
    ctx: click.Context,
    tasks: tuple[str, ...],
    device: str,
    peers: list[str],
    contestants: list[str] | None,
    pythons: tuple[str, ...],
    networks: list[str],
    layers: list[str] | None,
    batch: list[int] | None,
    threads: int | None,
    isa: str | None,
    tf32: bool,
    bfloat16: bool,
    rounds: int,
    seconds: float | None,
    patience: float,
    max_memory: float,
    with_memory: bool,
    with_sweep: bool,
    json_file: Path | None,
    markdown_file: Path | None,
    plot_file: Path | None,
    old_file: Path | None,
    compare_anyway: bool,
) -> None:
    """Time kernels, training and inference beside other frameworks.

    Everybody runs in a process of its own, in turns, in its best form; without names all three are
    timed. docs/benchmarks.md says what the tables mean.

    Exit status 1 if a peer that was found failed, or with --compare something became slower.
    """
    if device == CUDA and (reason := pyconv.backend.cuda_unavailable_reason()):
        raise click.UsageError(f"--device cuda cannot be used: {reason}")
    if tf32 and device != CUDA:
        raise click.UsageError("--tf32: only with --device cuda")
    if bfloat16 and (tf32 or KERNELS in tasks or with_memory):
        raise click.UsageError("--bfloat16: with training, inference and --sweep only")
    if isa is not None and isa not in pyconv.available_isas():
        raise click.UsageError(
            f"--isa: this machine has {', '.join(pyconv.available_isas())}. Received: {isa}"
        )
    if len(peers) > 1 and {INSTALLED, NONE} & set(peers):
        raise click.UsageError("--peers: installed and none stand alone")
    for task in tasks:
        if task != KERNELS and not set(networks) & set(WHOLE):
            raise click.UsageError(
                f"{task}: of --network {', '.join(WHOLE)}; others have branches, and kernels only"
            )
    known = {layer.name for network in networks for layer in NETWORKS[network]}
    if layers is not None and not set(layers) <= known:
        raise click.UsageError(
            f"--layers: expected some of {', '.join(sorted(known))}. Received: {','.join(layers)}"
        )
    wanted = list(dict.fromkeys(tasks))
    if not wanted and not with_memory and not with_sweep:
        wanted = [
            *(() if bfloat16 else (KERNELS,)),
            *(TASKS if set(networks) & set(WHOLE) else ()),
        ]
    # Where that is the best there is anyway, nobody needs a limit, which some do not know.
    limit = None if isa == pyconv.available_isas()[0] else isa
    options = Options(
        wanted,
        networks,
        layers,
        batch,
        Setting(threads or pyconv.get_num_threads(), limit, device, tf32, bfloat16),
        rounds,
        seconds,
        patience,
        max_memory,
    )
    if contestants is None:
        named = [] if NONE in peers else list(PEERS) if INSTALLED in peers else peers
        contestants = [OURS, *itertools.chain.from_iterable(PEERS[peer] for peer in named)]
    if KERNELS in wanted and OURS not in contestants:
        raise click.UsageError(f"kernels: --contestants must have {OURS}")
    names = [
        name
        for name in sorted(contestants, key=lambda name: name != OURS)
        if any(CONTESTANTS[name].does(task) for task in wanted)
        or (with_memory and name in memory.CONTESTANTS)
    ]
    try:
        found = interpreters(names, pythons)
    except ValueError as error:
        raise click.UsageError(f"--peers-python: {error}") from error
    # Rather now than when all is measured.
    for file in (json_file, markdown_file, plot_file):
        if file is not None and not file.absolute().parent.is_dir():
            raise click.UsageError(f"{file}: there is no folder {file.absolute().parent}")
    if plot_file is not None:
        with extra("plot", "--plot needs matplotlib"):
            import matplotlib.figure  # noqa: F401

    result = report.new(
        {
            "device": device,
            "threads": options.setting.threads,
            "isa": isa or pyconv.isa(),
            "tf32": tf32,
            "bfloat16": bfloat16,
            "rounds": rounds,
            "seconds": {task: options.turn(task) for task in wanted},
            "patience": patience,
        }
    )
    old = None
    if old_file is not None:
        old = _comparable(old_file, result, compare_anyway, rounds)
    print(report.title(result))

    missing = {
        name: f"no interpreter has {' and '.join(CONTESTANTS[name].modules)}"
        for name in names
        if found[name] is None
    }
    absent = set(missing)
    result["missing"] = missing
    if KERNELS in wanted:
        with _started(KERNELS, found, options.setting, missing, absent) as processes:
            _kernels(result, processes, options)
    for task in (task for task in wanted if task != KERNELS):
        with _started(task, found, options.setting, missing, absent) as processes:
            whole = [network for network in networks if network in WHOLE]
            for network, size in itertools.product(whole, options.batches(task)):
                case = training.compare(
                    network,
                    task,
                    size,
                    processes,
                    rounds,
                    options.turn(task),
                    missing,
                    patience,
                    training.BFLOAT16_TOLERANCE
                    if bfloat16
                    else training.TF32_TOLERANCE
                    if tf32
                    else training.TOLERANCE,
                )
                training.print_comparison(case)
                result["cases"].append(case)
    if result["cases"]:
        print(f"\n{_versions(result)}")
    result["noise"] = report.noise(result)
    if text := report.warning(result["noise"], len(result["cases"])):
        print(text)
    if with_sweep:
        result["sweep"] = training.sweep(rounds, seconds or 1.0, options.setting, patience)
    if with_memory:
        result["memory"] = training.measure_memory(
            found, options.setting, training.IMAGES, training.TEST_IMAGES
        )
    for name, reason in missing.items():
        print(f"missing: {CONTESTANTS[name].title} ({name}): {reason}")

    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if markdown_file is not None:
        picture = None
        if plot_file is not None:
            picture = os.path.relpath(plot_file, markdown_file.parent)
        markdown_file.write_text(markdown(result, picture), encoding="utf-8")
    if plot_file is not None:
        from pyconv.bench.plots import draw

        draw(result, plot_file)
    slower = old is not None and report.print_changes(old, result)
    ctx.exit(int(slower or bool(set(missing) - absent)))


def _comparable(path: Path, result: report.Report, anyway: bool, rounds: int) -> report.Report:
    """Reads the report to compare with; refuses, before hours of measuring, what says nothing."""
    try:
        old = report.load(path)
    except ValueError as error:
        raise click.UsageError(f"--compare: {error}") from error
    fewest = min(rounds, old["settings"]["rounds"])
    if fewest < report.LEAST_ROUNDS:
        raise click.UsageError(
            f"--compare: at least {report.LEAST_ROUNDS} rounds of both runs show what is noise. "
            f"Received: {fewest}"
        )
    found = report.differences(old, result)
    if found and not anyway:
        raise click.UsageError(
            f"--compare: times of the two runs say nothing about the code between them: "
            f"{'; '.join(found)}. With --compare-anyway they are compared"
        )
    return old


@contextlib.contextmanager
def _started(
    task: str,
    pythons: dict[str, str | None],
    setting: Setting,
    missing: dict[str, str],
    absent: set[str],
) -> Any:
    """The processes of those who take part in a task; who cannot is missing, and absent."""
    with contextlib.ExitStack() as stack:
        processes: dict[str, Process] = {}
        for name, python in pythons.items():
            if python is None or not CONTESTANTS[name].does(task):
                continue
            try:
                processes[name] = stack.enter_context(Process(name, python, setting))
            except ContestantError as error:
                missing[name] = str(error)
                absent.add(name)
        yield processes


def _kernels(result: report.Report, processes: dict[str, Process], options: Options) -> None:
    """Measures kernels and prints them."""
    ceilings = kernels.measure_ceilings(processes[OURS], min(3, options.rounds))
    result["ceilings"] = ceilings
    print(kernels.describe_ceilings(ceilings))
    peers = [name for name in processes if name != OURS]
    table = kernels.table(peers)
    for network, batch in itertools.product(options.networks, options.batches(KERNELS)):
        print(f"\n{network}, batch {batch}\n{table.header()}")
        rows = []
        for layer, name in _passes(network, options.layers):
            if layer.memory(batch) > options.memory * 1e9:
                print(f"{layer.name:12}{name:9} left out: needs more than --max-memory")
                continue
            rows.append(
                kernels.measure(
                    network,
                    layer,
                    name,
                    batch,
                    processes,
                    options.rounds,
                    options.turn(KERNELS),
                    result["missing"],
                    options.patience,
                    options.setting.tf32,
                )
            )
            print(table.line(kernels.cells(rows[-1], peers)), flush=True)
        for line in kernels.speedups(rows, peers):
            print(line)
        result["cases"] += rows
    if len(options.networks) * len(options.batches(KERNELS)) > 1:
        for line in kernels.speedups(result["cases"], peers):
            print(f"all together, {line}")


def _passes(network: str, layers: list[str] | None) -> list[tuple[Layer, str]]:
    return [
        (layer, name)
        for layer in NETWORKS[network]
        if layers is None or layer.name in layers
        for name in layer.passes
    ]


def _versions(result: report.Report) -> str:
    versions: dict[str, str] = {}
    for case in result["cases"]:
        for row in case["contestants"].values():
            versions.update(row["versions"])
    return ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))


def markdown(result: report.Report, picture: str | None = None) -> str:
    """A page with the tables of a report, and the picture, if it is somewhere."""
    parts = [
        "# Results",
        f"{report.title(result)}; {result['date']}; rounds: {result['settings']['rounds']}.",
        _versions(result),
        f"![Kernels under the roofline, and beside others]({picture})" if picture else "",
    ]
    for case in (case for case in result["cases"] if case["task"] != KERNELS):
        parts.append(f"## {case['task'].capitalize()}: {case['network']}, batch {case['batch']}")
        parts.append(
            training.TABLE.markdown(training.cells(case, name) for name in case["contestants"])
        )
        parts.append(training.verdict(case))
    if "ceilings" in result:
        parts.append(kernels.describe_ceilings(result["ceilings"]))
    cases = [case for case in result["cases"] if case["task"] == KERNELS]
    peers = list(dict.fromkeys(peer for case in cases for peer in case["contestants"]))
    peers = [peer for peer in peers if peer != OURS]
    for (network, batch), rows in itertools.groupby(
        cases, lambda case: (case["network"], case["batch"])
    ):
        listed = list(rows)
        parts.append(f"## Kernels: {network}, batch {batch}")
        parts.append(kernels.table(peers).markdown(kernels.cells(row, peers) for row in listed))
        parts += kernels.speedups(listed, peers)
    parts.append(report.warning(result["noise"], len(result["cases"])))
    return "\n\n".join(part.strip() for part in parts if part) + "\n"
