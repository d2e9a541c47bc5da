"""Beside other threads, in forked and spawned processes, and within what the machine grants."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest
import trainings
from trainings import run

from pyconv import _cpu, random

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="affinity, control groups")

# What every child process below is asked: to predict and to train, with how many threads.
QUESTIONS = """
import os, sys, threading
import numpy as np
import pyconv, trainings

def predicted(model):
    return trainings.digest(model.predict(trainings.data()[0], verbose=0))

def in_child(question):
    "What it answers in a forked child, or how that ended if not well."
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, question().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    assert os.waitpid(pid, 0) == (pid, 0)
    return answer
"""


def ask(code: str, timeout: float = 120, **environment: str | None) -> list[str]:
    settings = {"PYCONV_DEVICE": "cpu", "PYCONV_NUM_THREADS": "3"}
    return run(QUESTIONS + code, timeout=timeout, **settings | environment)


# Threads


@pytest.mark.parametrize("times", [3])
def test_two_models_in_two_threads(times, num_threads):
    """Each thread sets its seed: initial weights, order and dropout are as in a training alone."""
    num_threads(3)
    expected = {seed: trainings.training(seed) for seed in (1, 2)}
    assert expected[1] != expected[2]
    for _ in range(times):
        got = {}
        begin = threading.Barrier(len(expected))

        def train(seed, got=got, begin=begin):
            begin.wait()
            got[seed] = trainings.training(seed)

        threads = [threading.Thread(target=train, args=(seed,)) for seed in expected]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == expected


def test_seeds_of_threads():
    def in_thread(function):
        result = []
        thread = threading.Thread(target=lambda: result.append(function()))
        thread.start()
        thread.join()
        return result[0]

    def of_its_own():
        random.set_random_seed(2)
        return [random.next_seed(), random.next_seed(), random.get_state()]

    state = random.get_state()
    try:
        random.set_random_seed(2)
        expected = of_its_own()
        random.set_random_seed(1)
        seeds = [random.next_seed() for _ in range(4)]
        random.set_random_seed(1)
        assert random.next_seed() == seeds[0]
        assert in_thread(random.next_seed) == seeds[1]  # it has set none
        assert in_thread(of_its_own) == expected
        assert [random.next_seed(), random.next_seed()] == seeds[2:]
        assert in_thread(random.get_state) == expected[2]  # the last one that was set
    finally:
        random.set_random_seed(0)
        random.set_state(*state)


def test_threads_draw_no_seed_twice():
    drawn, before = [], sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(target=lambda: drawn.extend(random.next_seed() for _ in range(2000)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert len(set(drawn)) == len(drawn) == 8000


# Forks


@needs_fork
def test_a_forked_child_computes_the_same(isa):
    """After the parent's kernels have run on several threads, which the child does not have."""
    code = """
def everything():
    return f"{pyconv.get_num_threads()} {predicted(model)} {trainings.training(2)}"
model = trainings.trained()
print(everything(), in_child(everything), in_child(lambda: in_child(everything)), everything())
"""
    threads, *expected = (words := ask(code, PYCONV_FORCE_ISA=isa))[:3]
    assert threads == "3"
    assert words == ["3", *expected, "1", *expected, "1", *expected, "3", *expected]


@needs_fork
def test_a_child_that_is_forked_before_has_its_threads():
    code = """
def everything():
    return f"{pyconv.get_num_threads()} {trainings.training()}"
print(in_child(everything), everything())
"""
    words = ask(code)
    assert words[0] == "3" and words[:2] == words[2:]


@needs_fork
def test_a_childs_number_of_threads_stays_one():
    code = """
trainings.training()
def change():
    pyconv.set_num_threads(2)
    return f"{pyconv.get_num_threads()} {trainings.training()}"
print(trainings.training(), in_child(change))
"""
    expected, threads, got = ask(code)
    assert (threads, got) == ("1", expected)


@needs_fork
@pytest.mark.parametrize("work", ["predict", "train"])
def test_forks_while_another_thread_is_in_a_kernel(work):
    """No lock that it holds, and nothing that it has half written, is in a child's way."""
    code = f"""
model = trainings.trained()
expected = predicted(model)
end = threading.Event()
def work():
    other = trainings.trained(2)
    x, y = trainings.data()
    begun.set()
    while not end.is_set():
        if {work!r} == "train":
            other.train_on_batch(x, y)
        else:
            model.predict(x, verbose=0)
begun = threading.Event()
thread = threading.Thread(target=work)
thread.start()
begun.wait()
answers = {{in_child(lambda: predicted(model)) for _ in range(60)}}
end.set()
thread.join()
assert predicted(model) == expected
print(expected, *answers)
"""
    expected, *answers = ask(code, timeout=300)
    assert answers == [expected]


METHODS = """
import multiprocessing, sys
import numpy as np
import pyconv, trainings

model = None

def load(path):
    global model
    model = pyconv.models.load_model(path)

def predict(x):
    return pyconv.get_num_threads(), trainings.digest(model.predict(x, verbose=0))

if __name__ == "__main__":
    method, path = sys.argv[1:]
    x = np.split(trainings.data(48)[0], 4)
    model = trainings.trained()
    model.save(path)
    expected = [predict(part)[1] for part in x]
    context = multiprocessing.get_context(method)
    with context.Pool(2, *(() if method == "fork" else (load, (path,)))) as pool:
        answers = pool.map(predict, x, chunksize=1)
    assert [answer for _, answer in answers] == expected
    print(*sorted({threads for threads, _ in answers}))
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method, tmp_path):
    """Children that predict: forked ones with the parent's model, others with a saved one."""
    if method == "fork" and not hasattr(os, "fork"):
        pytest.skip("needs fork")
    program = tmp_path / "program.py"
    program.write_text(METHODS)
    words = run(
        program,
        method,
        str(tmp_path / "model.safetensors"),
        PYCONV_DEVICE="cpu",
        PYCONV_NUM_THREADS="2",
    )
    assert words == ["1" if method == "fork" else "2"]


# Subinterpreters

SUBINTERPRETER = """
import sys
{first}
try:
    import _interpreters as interpreters  # from 3.13 on
    interpreter = interpreters.create("isolated" if {isolated} else "legacy")
except ImportError:
    import _xxsubinterpreters as interpreters
    interpreter = interpreters.create(isolated={isolated})
failure = interpreters.run_string(interpreter, '''
import sys, warnings
from importlib.util import module_from_spec, spec_from_file_location
try:
    if {whole_package}:
        warnings.simplefilter("ignore")  # NumPy's
        import pyconv
        pyconv.isa()
    else:
        spec = spec_from_file_location("pyconv._cpu", {path!r})
        spec.loader.exec_module(module_from_spec(spec))
except ImportError as error:
    print("refused", "subinterpreter" in str(error))
else:
    print("loaded")
sys.stdout.flush()
''')
assert failure is None, failure
import pyconv, trainings
print(trainings.training())
"""


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize("first", ["", "import pyconv; pyconv.isa()"])
@pytest.mark.parametrize("whole_package", [True, False])
def test_subinterpreters_are_refused(first, isolated, whole_package):
    """With an ImportError, whether the main interpreter has loaded the kernels or not.

    Python or NumPy may be faster with one of their own. What NumPy does in the main interpreter
    after it was imported in a subinterpreter is not ours.
    """
    if whole_package and not first:
        pytest.skip("NumPy cannot be loaded twice")
    words = run(
        SUBINTERPRETER.format(
            first=first, isolated=isolated, whole_package=whole_package, path=_cpu.__file__
        )
    )
    expected = trainings.training()
    assert words in (["refused", "True", expected], ["refused", "False", expected])
    if not whole_package and (sys.version_info < (3, 12) or not isolated):
        assert words[1] == "True"


# What the machine grants


@needs_linux
def test_the_default_number_of_threads_is_openmps():
    cores = sorted(os.sched_getaffinity(0))
    cases = [
        ({"OMP_NUM_THREADS": "1"}, cores, 1),
        ({"OMP_NUM_THREADS": None}, cores[:1], 1),
        ({"OMP_NUM_THREADS": None}, cores, len(cores)),
        ({"OMP_NUM_THREADS": "3", "PYCONV_NUM_THREADS": "2"}, cores, 2),
    ]
    for variables, mask, expected in cases:
        code = f"import os; os.sched_setaffinity(0, {mask}); import pyconv\n"
        code += "from pyconv import _cpu; print(pyconv.get_num_threads(), _cpu.granted_cpus())"
        threads, granted = map(int, run(code, **{"PYCONV_NUM_THREADS": None} | variables))
        limited = granted and "PYCONV_NUM_THREADS" not in variables
        assert threads == (min(expected, granted) if limited else expected)


GROUPS = {  # files, CPUs
    "no files": ({}, 0),
    "no limit": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 0),
    "of a container": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"},
        2,
    ),
    "of a service, half a CPU": (
        {"proc/self/cgroup": "0::/a.slice/b\n", "sys/fs/cgroup/a.slice/b/cpu.max": "50000 100000"},
        1,
    ),
    "of the slice that it is in": (
        {
            "proc/self/cgroup": "0::/a.slice/b\n",
            "sys/fs/cgroup/a.slice/cpu.max": "250000 100000",
            "sys/fs/cgroup/a.slice/b/cpu.max": "max 100000",
        },
        3,
    ),
    "of both, the lesser": (
        {
            "proc/self/cgroup": "0::/a.slice/b\n",
            "sys/fs/cgroup/a.slice/cpu.max": "200000 100000",
            "sys/fs/cgroup/a.slice/b/cpu.max": "400000 100000",
        },
        2,
    ),
    "of a container that sees the host's path": (
        {"proc/self/cgroup": "0::/docker/123\n", "sys/fs/cgroup/cpu.max": "150000 50000\n"},
        3,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "3:memory:/x\n2:cpu,cpuacct:/a\n1:cpuset:/\n",
            "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "400000\n",
            "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
        },
        4,
    ),
    "version 1, by another name": (
        {
            "proc/self/cgroup": "2:cpuacct,cpu:/a\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "500000",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
        5,
    ),
    "version 1, no limit": (
        {
            "proc/self/cgroup": "1:cpu:/\n0::/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        0,
    ),
    "nonsense": (
        {"proc/self/cgroup": "x\n0::\n::::\n", "sys/fs/cgroup/cpu.max": "some 0\n"},
        0,
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_quotas_of_control_groups(name, tmp_path):
    files, expected = GROUPS[name]
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert _cpu.granted_cpus(str(tmp_path)) == expected


@needs_linux
def test_a_real_control_group(tmp_path):
    """Where this process may make one: with a quota of one CPU, one thread is the default."""
    v1, v2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    group = (v1 if v1.is_dir() else v2) / f"pyconv-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"cannot make a control group: {error}")
    try:
        try:
            if v1.is_dir():
                (group / "cpu.cfs_quota_us").write_text("100000")
            else:
                (group / "cpu.max").write_text("100000 100000")
        except OSError as error:
            pytest.skip(f"cannot set a quota: {error}")
        code = (
            f"import os; open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
            "import pyconv; print(pyconv.get_num_threads())"
        )
        variables = {"OMP_NUM_THREADS": "2", "PYCONV_NUM_THREADS": None}
        assert run(code, **variables) == ["1"]
    finally:
        group.rmdir()
