"""Feeds inputs that coverage guides to everything that takes bytes, arguments or files.

    python tests/fuzz/run.py --inputs 1000000 [--target NAME ...] [--seed S] [--jobs J]

Needs atheris (pip install "pyconv[fuzz]"), and shows most with a build under sanitizers, see
.ci/run. Every target runs in a process of its own: one that crashes, hangs, takes too much memory
or raises what it should not ends that process, and its input is left in --output, to be run again
by `python tests/fuzz/run.py --target NAME --input FILE`. The exit status is then 1.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import mmap
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

SECONDS = 30  # for one input
MEMORY = 2048  # MiB of a process
ALLOCATION = 1000  # MiB at once; more is refused, as if there was no more
LENGTH = 512  # bytes of an input
LARGEST = 50_000  # inputs of a process
LINES = 12  # of a failed process's log that are shown


class Result(NamedTuple):
    """What a process did; `problem` is empty if all its inputs passed."""

    inputs: int
    coverage: int
    seconds: float
    problem: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--inputs", type=int, default=100_000, help="of all targets together")
    parser.add_argument("--target", action="append", help="only these; may be repeated")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="targets at a time")
    parser.add_argument("--output", type=Path, default=Path("fuzz-failures"))
    parser.add_argument("--input", type=Path, help="one input of one target, again")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.child:
        fuzz(*options.child, rest)
        return 0

    sys.path.insert(0, str(Path(__file__).parent))
    from targets import TARGETS

    names = options.target or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no such target: {', '.join(unknown)}. Known: {', '.join(TARGETS)}")
    if options.input is not None:
        TARGETS[names[0]][0](options.input.read_bytes())
        return 0
    total = sum(TARGETS[name][1] for name in names)
    counts = {name: -(-options.inputs * TARGETS[name][1] // total) for name in names}
    # Many inputs are dealt out to processes with seeds of their own.
    parts = [
        (name, part, -(-counts[name] // parts))
        for name in names
        for parts in [-(-counts[name] // LARGEST)]
        for part in range(parts)
    ]

    options.output.mkdir(exist_ok=True)
    if "LD_PRELOAD" in os.environ:
        coverage_symbols(options.output)
    print(f"{'target':<14}{'inputs':>10}{'coverage':>10}{'seconds':>9}  result", flush=True)
    failed = done = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        results: dict[str, list[Result]] = {name: [] for name in names}
        running = {
            pool.submit(run, *part, options.seed + part[1], options.output): part[0]
            for part in parts
        }
        for future in as_completed(running):
            name = running[future]
            results[name].append(future.result())
            if len(results[name]) < list(running.values()).count(name):
                continue
            inputs = sum(r.inputs for r in results[name])
            coverage = max(r.coverage for r in results[name])
            seconds = sum(r.seconds for r in results[name])
            problems = [r.problem for r in results[name] if r.problem]
            result = "; ".join(problems) or "passed"
            print(f"{name:<14}{inputs:>10,}{coverage:>10}{seconds:>9.0f}  {result}", flush=True)
            failed += bool(problems)
            done += inputs
    print(f"{done:,} inputs, {failed} of {len(names)} targets failed")
    return 1 if failed else 0


def run(name: str, part: int, count: int, seed: int, output: Path) -> Result:
    """Runs one target in a process."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "PYTHONUNBUFFERED": "1"}
    sanitizer = "detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=16"
    environment["ASAN_OPTIONS"] = f"{sanitizer}:max_allocation_size_mb={ALLOCATION}"
    if sanitizers := environment.get("LD_PRELOAD"):
        environment["LD_PRELOAD"] = f"{coverage_symbols(output)} {sanitizers}"
        environment["PYCONV_LIBFUZZER"] = libfuzzer()
        environment["ASAN_OPTIONS"] += ":verify_asan_link_order=0"
    environment["UBSAN_OPTIONS"] = "print_stacktrace=1:halt_on_error=1"
    last = output / f"{name}-{part}-last"
    last.write_bytes(bytes(4 + LENGTH))
    command = [sys.executable, __file__, "--child", name, str(last)]
    command += [f"-runs={count}", f"-seed={seed}"]
    command += [f"-timeout={SECONDS}", f"-rss_limit_mb={MEMORY}", "-malloc_limit_mb=100000"]
    command += [f"-max_len={LENGTH}", "-len_control=0", "-print_final_stats=1", "-verbosity=1"]
    command += [f"-artifact_prefix={output}/{name}-"]
    log = output / f"{name}-{part}.log"
    start = time.monotonic()
    with open(log, "wb") as file:
        status = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        ).returncode
    text = log.read_text(errors="replace")
    # A line of progress is "#1024 pulse cov: 123 ...".
    progress = re.findall(r"^#(\d+)\s+\w+\s+cov: (\d+)", text, re.MULTILINE)
    inputs, coverage = map(int, progress[-1]) if progress else (0, 0)
    passed = status == 0 and inputs >= count
    content = last.read_bytes()
    last.write_bytes(content[4 : 4 + int.from_bytes(content[:4], "little")])
    if passed:
        log.unlink()
        last.unlink()
    # The failure itself is shown, since the folder may not outlive the run.
    problem = "" if passed else f"FAILED, exit status {status}, see {log}:\n{failure(text)}"
    return Result(inputs, coverage, time.monotonic() - start, problem)


def failure(log: str) -> str:
    """The lines of a log that say what failed, or its last ones."""
    lines = log.splitlines()
    said = (i for i, line in enumerate(lines) if re.search(r"runtime error:|ERROR:|=== Un", line))
    first = next(said, max(0, len(lines) - LINES))
    return "\n".join(line[:200] for line in lines[first : first + LINES])


def libfuzzer() -> str:
    """The path of atheris's library that libFuzzer is in."""
    (folder,) = importlib.util.find_spec("atheris").submodule_search_locations
    return next(map(str, Path(folder).glob("core_with_libfuzzer.*.so")))


@functools.cache
def coverage_symbols(folder: Path) -> Path:
    """Builds what is preloaded before GCC's sanitizers, see there."""
    library = (folder / "coverage_symbols.so").resolve()
    source = Path(__file__).with_name("coverage_symbols.c")
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    compiler = ["gcc", "-shared", "-fPIC", "-O1", str(source), "-o", str(library), "-ldl"]
    subprocess.run(compiler, check=True, env=environment)
    return library


def fuzz(name: str, last: str, arguments: list[str]) -> None:
    """Runs one target in this process, under libFuzzer, which ends it.

    The file `last` always has the length and the bytes of the input at hand, lest it be lost when a
    sanitizer ends the process.
    """
    import atheris

    sys.path.insert(0, str(Path(__file__).parent))
    with atheris.instrument_imports(include=["pyconv"]):
        from targets import TARGETS
    target = TARGETS[name][0]
    kept = mmap.mmap(os.open(last, os.O_RDWR), 0)

    def one_input(data: bytes) -> None:
        kept[: 4 + len(data)] = len(data).to_bytes(4, "little") + data
        target(data)

    atheris.Setup([sys.argv[0], *arguments], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
