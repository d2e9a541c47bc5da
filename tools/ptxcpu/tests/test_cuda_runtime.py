"""A program that calls the emulated runtime through nvcc's own stubs: runtime_api/."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "runtime_api"

CALLS = [
    "launch_limits",
    "shared_memory_limits",
    "memory",
    "same_names_in_two_files",
    "streams_and_events",
    "launch_functions",
    "faults",
    "device",
]
GRAPHS = [
    "captured_work_runs_at_launch",
    "captured_parameters_are_copied",
    "every_kind_of_work_is_captured",
    "memory_allocated_in_a_capture",
    "memory_freed_after_a_capture",
    "default_streams",
    "waiting_breaks_a_capture",
    "unsafe_calls_break_a_capture",
    "unsafe_calls_of_other_threads",
    "legacy_stream_breaks_a_capture",
    "other_streams_run_during_a_capture",
    "begin_and_end_must_match",
    "capture_information",
    "invalid_launch_in_a_capture",
    "fault_in_a_graph_is_sticky",
    "buffer_that_shrinks_before_the_launch",
    "handles_of_graphs",
    "graph_inside_a_graph",
    "events_in_a_capture",
    "forgotten_captures",
]
BUFFERS = [
    "buffer_with_two_sizes",
    "buffer_inside_another",
    "buffers_that_overlap",
    "empty_and_null_buffers",
    "registered_device_memory",
    "many_registrations",
]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if not shutil.which("cmake"):
        pytest.skip("needs CMake")
    directory = tmp_path_factory.mktemp("runtime_api")
    subprocess.run(["cmake", "-S", SOURCE, "-B", directory], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", directory, "-j2"], check=True, capture_output=True)
    return directory / "runtime_api"


def run(program, *arguments, **settings):
    environment = os.environ | settings
    return subprocess.run([program, *arguments], env=environment, capture_output=True, text=True)


def test_all_checks_are_listed_here(program):
    assert sorted(run(program).stdout.split()) == sorted(CALLS + GRAPHS + BUFFERS)


@pytest.mark.parametrize("settings", [{}, {"PTXCPU_ORDER": "reverse", "PTXCPU_RACE": "1"}])
@pytest.mark.parametrize("check", CALLS + GRAPHS + BUFFERS)
def test_runtime(check, settings, program):
    result = run(program, check, **settings)
    assert result.stdout == ""
    assert result.returncode == 0
