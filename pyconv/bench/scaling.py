"""Training in several processes: what one machine shows, and a model of many.

Also the program of each process that is timed: `python -m pyconv.bench.scaling --worker ...`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyconv
from pyconv import distribute
from pyconv.bench import networks

RANKS = tuple(2**exponent for exponent in range(11))  # 1 to 1,024
WARM_UP = 5  # steps


@dataclass(frozen=True)
class Link:
    """What connects the machines.

    Attributes:
        name: for the plot.
        bandwidth: bytes a second that a machine sends, and receives at the same time.
        latency: seconds for a message of no length.
    """

    name: str
    bandwidth: float
    latency: float


# Stated, not measured: the rates of the standards, and latencies of the usual order.
LINKS = (
    Link("1 Gbit/s Ethernet, 50 us", 0.125e9, 50e-6),
    Link("10 Gbit/s Ethernet, 20 us", 1.25e9, 20e-6),
    Link("100 Gbit/s InfiniBand, 2 us", 12.5e9, 2e-6),
)


def least_bytes(ranks: int, gradient_bytes: int) -> float:
    """What a rank must send in a step.

    To add up and hand out, each rank sends all of its gradients but its own share, and then its
    share of the sums to all others; a ring does with that. Source: P. Patarasuk, X. Yuan,
    "Bandwidth optimal all-reduce algorithms for clusters of workstations", J. Parallel Distrib.
    Comput. 69 (2009).
    """
    return 2 * (ranks - 1) / ranks * gradient_bytes


def step_seconds(
    ranks: int, batch: int, compute: Mapping[int, float], gradient_bytes: int, link: Link
) -> float:
    """The modelled time of a step: the largest share's passes, then all of the exchange.

    That nothing overlaps is the worst case. The exchange is a ring's bytes, and the latency of as
    many messages as a tree has levels, there and back.

    Args:
        ranks: one a machine.
        batch: of all ranks together.
        compute: measured seconds of a step, by images; between them it is interpolated.
        gradient_bytes: of the model.
        link: between the machines.
    """
    seconds = interpolated(compute, -(-batch // ranks))
    if ranks == 1:
        return seconds
    seconds += least_bytes(ranks, gradient_bytes) / link.bandwidth
    return seconds + 2 * math.ceil(math.log2(ranks)) * link.latency


def interpolated(measured: Mapping[int, float], at: float) -> float:
    """The value at a number of images, linear between the measured ones and beyond them."""
    known = sorted(measured)
    if at in measured or len(known) == 1:
        return measured.get(int(at), measured[known[0]])
    lower = max((n for n in known[:-1] if n <= at), default=known[0])
    upper = known[known.index(lower) + 1]
    share = (at - lower) / (upper - lower)
    return measured[lower] + share * (measured[upper] - measured[lower])


def mpiexec() -> str | None:
    """MPI's launcher: the one beside the interpreter, where PyPI's MPI puts it, or another one."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which("mpiexec", path=path)


def launched(
    ranks: int, threads: int, batch: int, seconds: float, **environment: str
) -> dict[str, Any]:
    """Trains in so many processes for about so long; returns what the first one measured.

    Raises:
        RuntimeError: there is no mpiexec, or the program failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "pyconv.bench.scaling", "--worker", str(result)]
        command += ["--batch", str(batch), "--seconds", str(seconds)]
        if ranks > 1:
            launcher = mpiexec()
            if launcher is None:
                raise RuntimeError("there is no mpiexec. Install it: pip install 'pyconv[mpi]'")
            command = [launcher, "-n", str(ranks), *command]
        given = os.environ | {"OMP_NUM_THREADS": str(threads)} | environment
        # There, so that a pyconv in the folder at hand is not taken for the one that is installed.
        done = subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        measured: dict[str, Any] = json.loads(result.read_text())
        return measured


def work(result: Path, batch: int, seconds: float) -> None:
    """What each process does: steps on one batch in memory."""
    pyconv.utils.set_random_seed(1)
    model = networks.TUTORIAL.layers(pyconv)
    model.compile("rmsprop", "categorical_crossentropy")
    x, y = networks.TUTORIAL.data(batch)
    group = model._group
    for _ in range(WARM_UP):
        model.train_on_batch(x, y)
    # How many steps that is, the first process decides for all.
    start = time.perf_counter()
    model.train_on_batch(x, y)
    steps = max(3, math.ceil(seconds / (time.perf_counter() - start)))
    if group is not None:
        steps = group.broadcast(steps)
    times, sent = [], loopback_bytes()
    for _ in range(steps):
        start = time.perf_counter()
        model.train_on_batch(x, y)
        times.append(time.perf_counter() - start)
    if distribute.rank() == 0:
        gradients = model._parameters.gradients.nbytes
        found = {"seconds": statistics.median(times), "steps": steps, "gradient_bytes": gradients}
        if sent is not None:
            found["loopback_bytes"] = loopback_bytes() - sent
        result.write_text(json.dumps(found))


def loopback_bytes() -> Any:
    """What this machine has sent to itself over its network interface; None if that is unknown."""
    try:
        lines = Path("/proc/net/dev").read_text().splitlines()
    except OSError:
        return None
    counts = [line.partition(":")[2].split() for line in lines if line.strip().startswith("lo:")]
    return int(counts[0][8]) if counts else None


def sent_bytes(ranks: int, batch: int, seconds: float) -> float | None:
    """What a rank sends in a step, if all messages go through TCP, as MPICH can be told."""
    through_tcp = {
        "MPIR_CVAR_CH4_NETMOD": "ofi",
        "MPIR_CVAR_NOLOCAL": "1",
        "FI_PROVIDER": "tcp",
    }
    found = launched(ranks, 1, batch, seconds, **through_tcp)
    if not found.get("loopback_bytes"):
        return None
    return float(found["loopback_bytes"] / found["steps"] / ranks)


def measure(batch: int, ranks: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Times ranks of one thread beside one rank of as many threads, in turns, and prints it."""
    ways = {f"1 rank, {ranks} threads": (1, ranks), f"{ranks} ranks, 1 thread": (ranks, 1)}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    gradient_bytes = 0
    for number in range(rounds):
        for name in sorted(ways, reverse=number % 2 == 1):
            found = launched(*ways[name], batch, seconds)
            rates[name].append(batch / found["seconds"])
            gradient_bytes = found["gradient_bytes"]
    one, several = rates.values()
    ratios = [a / b for a, b in zip(several, one)]
    for name, values in rates.items():
        print(f"{name:>22}: {statistics.median(values):9,.1f} images/s")
    efficiency = statistics.median(ratios)
    print(f"{'efficiency':>22}: {efficiency:.3f} (rounds {min(ratios):.3f} to {max(ratios):.3f})")
    least = least_bytes(ranks, 4 * networks.TUTORIAL.parameters)
    sent = sent_bytes(ranks, batch, seconds)
    told = "not known" if sent is None else f"{sent:,.0f} bytes a step, {sent / least:.3f} times"
    print(f"{'a rank sends':>22}: {told}; the least is {least:,.0f}")
    return {
        "rates": rates,
        "efficiency": efficiency,
        "gradient_bytes": gradient_bytes,
        "sent_bytes": sent,
        "least_bytes": least,
    }


def model_of_many(batch: int, gradient_bytes: int, seconds: float) -> dict[str, Any]:
    """Measures this machine's steps by images, and models more machines of its kind."""
    shares = sorted({-(-batch // ranks) for ranks in RANKS})
    threads = pyconv.get_num_threads()
    compute = {share: launched(1, threads, share, seconds)["seconds"] for share in shares}
    print(f"\n{threads} threads, by images: ", end="")
    print(", ".join(f"{share}: {1e3 * value:.2f} ms" for share, value in compute.items()))
    rows = []
    print(f"\n{'machines':>8}{'link':>30}{f'a batch of {batch}':>18}{f'of {batch} each':>18}")
    for link, ranks in itertools.product(LINKS, RANKS):
        strong = compute[batch] / step_seconds(ranks, batch, compute, gradient_bytes, link)
        weak = (
            ranks
            * compute[batch]
            / step_seconds(ranks, batch * ranks, compute, gradient_bytes, link)
        )
        rows.append({"link": link.name, "ranks": ranks, "strong": strong, "weak": weak})
        print(f"{ranks:8}{link.name:>30}{strong:16.1f} x{weak:16.1f} x")
    return {"compute": compute, "speedups": rows}


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Writes a PNG file: speed-ups by machines, a batch shared and batches of each one's own."""
    from pyconv.plotting import _figure, _written

    figure = _figure(11, 4.5)
    axes = figure.subplots(1, 2)
    titles = {
        "strong": f"a batch of {report['batch']} shared",
        "weak": f"{report['batch']} images each",
    }
    for axis, (kind, title) in zip(axes, titles.items()):
        axis.plot(RANKS, RANKS, color="0.7", linestyle=":", label="linear")
        for link in LINKS:
            rows = [row for row in report["speedups"] if row["link"] == link.name]
            axis.plot([r["ranks"] for r in rows], [r[kind] for r in rows], label=link.name)
        axis.set(xscale="log", yscale="log", xlabel="machines", ylabel="times as fast as one")
        axis.set_title(f"Modelled: {title}")
        axis.grid(alpha=0.3)
        axis.legend()
    _written(figure, path)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256, help="images of all ranks together")
    parser.add_argument("--ranks", type=int, default=2, help="on this machine")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--plot", type=Path, help="draw the model there")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.worker:
        work(given.worker, given.batch, given.seconds)
        return
    report: dict[str, Any] = {"batch": given.batch, "ranks": given.ranks}
    report |= measure(given.batch, given.ranks, given.rounds, given.seconds)
    report |= model_of_many(given.batch, report["gradient_bytes"], given.seconds)
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n")
    if given.plot:
        draw(report, given.plot)


if __name__ == "__main__":
    main(sys.argv[1:])
