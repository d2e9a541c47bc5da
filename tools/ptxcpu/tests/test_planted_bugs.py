"""One kernel for each kind of mistake: right without it, and the emulator notices it."""

import numpy as np
import pytest
from conftest import SCHEDULES, PTXError, compile_kernel

THREADS = 128
ALL = ["forward", "reverse", "random", "race", "two workers"]


@pytest.fixture
def reverse():
    """Runs a kernel of planted_bugs.cu, and returns what it made of 0, 1, ... 127."""

    def run(kernel, planted, schedule="forward", **options):
        numbers = np.arange(THREADS, dtype=np.float32)
        out = np.full(THREADS, -1, np.float32)
        module = compile_kernel("planted_bugs")
        module.launch(kernel, 1, THREADS, [out, numbers, planted], **SCHEDULES[schedule], **options)
        return out

    return run


def expect_correct(result):
    np.testing.assert_array_equal(result, np.arange(THREADS)[::-1])


def expect_error(reverse, kernel, schedule, message):
    expect_correct(reverse(kernel, 0, schedule))
    with pytest.raises(PTXError, match=rf"^{kernel}: .*{message}"):
        reverse(kernel, 1, schedule)


def test_missing_barrier_is_a_race(reverse):
    message = "shared memory race: .* by thread .* in the same barrier interval"
    expect_error(reverse, "missing_barrier", "race", message)


@pytest.mark.parametrize("schedule", ["forward", "reverse", "random"])
def test_missing_barrier_gives_nan(schedule, reverse):
    expect_correct(reverse("missing_barrier", 0, schedule))
    assert np.isnan(reverse("missing_barrier", 1, schedule)).any()


def test_missing_wait_group_is_a_race(reverse):
    message = "where a cp.async of thread .* was not waited for"
    expect_error(reverse, "missing_wait_group", "race", message)


@pytest.mark.parametrize("schedule", ["forward", "random"])
def test_missing_wait_group_gives_nan(schedule, reverse):
    expect_correct(reverse("missing_wait_group", 0, schedule))
    assert np.isnan(reverse("missing_wait_group", 1, schedule)).any()


@pytest.mark.parametrize("schedule", ALL)
def test_divergent_barrier(schedule, reverse):
    """Half of each warp is one barrier ahead of the other half."""
    message = "divergent barrier: thread .* waits at PTX line .* of the same warp"
    expect_error(reverse, "divergent_barrier", schedule, message)


@pytest.mark.parametrize("schedule", ALL)
def test_divergent_barrier_before_a_collective_is_a_deadlock(schedule, reverse):
    """Half of each warp waits for the block, the other half for its warp."""
    message = "deadlock .* waits for bar.sync .* waits for warp collective"
    expect_error(reverse, "skipped_barrier", schedule, message)


@pytest.mark.parametrize("schedule", ALL)
@pytest.mark.parametrize("kernel", ["shared_out_of_bounds", "shared_below_zero"])
def test_shared_memory_out_of_bounds(kernel, schedule, reverse):
    message = "thread .127,0,0.: .*shared.* of 4 bytes .* is beyond the 512 bytes of shared memory"
    expect_error(reverse, kernel, schedule, message)


@pytest.mark.parametrize("schedule", ALL)
def test_global_read_out_of_bounds(schedule, reverse):
    message = "thread .127,0,0.: ld.global.* out of bounds .*512 bytes, byte offset 512"
    expect_error(reverse, "global_read_out_of_bounds", schedule, message)


@pytest.mark.parametrize("schedule", ALL)
def test_global_write_out_of_bounds(schedule, reverse):
    message = "thread .0,0,0.: st.global.* out of bounds .*512 bytes, byte offset 512"
    expect_error(reverse, "global_write_out_of_bounds", schedule, message)


@pytest.mark.parametrize("schedule", ALL)
def test_unwritten_shared_memory_is_nan(schedule, reverse):
    expect_correct(reverse("unwritten_shared_memory", 0, schedule))
    result = reverse("unwritten_shared_memory", 1, schedule)
    assert np.flatnonzero(np.isnan(result)) == [THREADS - 1 - 5]


@pytest.mark.parametrize("schedule", ALL)
def test_misaligned_vector_in_global_memory(schedule, reverse):
    message = "ld.global.*v4.* of 16 bytes at .* is misaligned"
    expect_error(reverse, "misaligned_global_vector", schedule, message)


@pytest.mark.parametrize("schedule", ALL)
def test_misaligned_vector_in_shared_memory(schedule, reverse):
    message = "ld.shared.v4.* of 16 bytes at shared.* is misaligned$"
    expect_error(reverse, "misaligned_shared_vector", schedule, message)


def test_too_much_shared_memory():
    """The emulated runtime has the limits of a device: test_cuda_runtime.py."""
    module = compile_kernel("planted_bugs")
    numbers, out = np.arange(THREADS, dtype=np.float32), np.zeros(THREADS, np.float32)
    module.launch("dynamic_shared_memory", 1, THREADS, [out, numbers], shared=227 * 1024)
    expect_correct(out)
    with pytest.raises(PTXError, match="232452 bytes of shared memory"):
        module.launch("dynamic_shared_memory", 1, THREADS, [out, numbers], shared=227 * 1024 + 4)


def test_too_little_shared_memory():
    """Less than the kernel uses: an access beyond it."""
    module = compile_kernel("planted_bugs")
    numbers, out = np.arange(THREADS, dtype=np.float32), np.zeros(THREADS, np.float32)
    with pytest.raises(PTXError, match="st.shared.* beyond the 508 bytes of shared memory"):
        module.launch("dynamic_shared_memory", 1, THREADS, [out, numbers], shared=508)


@pytest.mark.parametrize("schedule", ALL)
def test_shuffle_mask_without_the_calling_lane(schedule, reverse):
    message = "lane .* (is not in its own member mask 0000ffff|reads lane .* not active)"
    expect_error(reverse, "shuffle_without_some_lanes", schedule, message)


@pytest.mark.parametrize("schedule", ALL)
def test_shuffle_from_a_lane_that_has_left(schedule, reverse):
    message = "shfl.sync lane 0 reads lane 31, which is not active"
    expect_error(reverse, "shuffle_with_absent_lanes", schedule, message)
