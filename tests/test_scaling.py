"""The model of many machines, and the program that measures for it."""

from __future__ import annotations

import json

import pytest
from test_distribute import needs_mpi

from pyconv.bench import scaling
from pyconv.bench.scaling import Link

LINK = Link("test", bandwidth=1e6, latency=1e-3)


def test_the_least_that_a_rank_must_send():
    assert scaling.least_bytes(1, 1000) == 0
    assert scaling.least_bytes(2, 1000) == 1000
    assert scaling.least_bytes(4, 1000) == 1500


@pytest.mark.parametrize(("at", "expected"), [(1, 1), (2, 2), (4, 6), (6, 10), (8, 14), (0, 0)])
def test_times_between_and_beyond_the_measured(at, expected):
    assert scaling.interpolated({1: 1.0, 2: 2.0, 6: 10.0}, at) == pytest.approx(expected)
    assert scaling.interpolated({3: 5.0}, at) == 5.0


def test_a_step_of_several_machines():
    compute = {8: 0.8, 16: 1.6, 32: 3.2}
    assert scaling.step_seconds(1, 32, compute, 1000, LINK) == pytest.approx(3.2)
    # Half of the images; 1,000 bytes; a message there and one back.
    assert scaling.step_seconds(2, 32, compute, 1000, LINK) == pytest.approx(1.6 + 1e-3 + 2e-3)
    # The largest share counts: 11 of 32 images.
    assert scaling.step_seconds(3, 32, compute, 0, LINK) == pytest.approx(1.1 + 4e-3)


@needs_mpi
def test_the_program(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    report, picture = tmp_path / "report.json", tmp_path / "scaling.png"
    arguments = ["--batch", "4", "--rounds", "1", "--seconds", "0.05"]
    scaling.main([*arguments, "--json", str(report), "--plot", str(picture)])
    printed = capsys.readouterr().out
    assert "2 ranks, 1 thread" in printed and "efficiency" in printed
    written = json.loads(report.read_text())
    assert written["least_bytes"] == 4 * 276_138
    if written["sent_bytes"] is not None:
        # All gradients, gaps between tensors, some bytes of the loss and of every message.
        assert 0.9 < written["sent_bytes"] / written["least_bytes"] < 1.2
    assert {row["ranks"] for row in written["speedups"]} == set(scaling.RANKS)
    assert all(0 < row["weak"] <= row["ranks"] + 1e-9 for row in written["speedups"])
    assert picture.stat().st_size > 1000
