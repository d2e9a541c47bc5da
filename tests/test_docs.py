"""The documentation: its code runs, its links lead somewhere, and it names what there is."""

from __future__ import annotations

import pydoc
import re
from pathlib import Path

import numpy as np
import pytest

import pyconv
from pyconv import backend, layers
from pyconv.datasets import cifar10, mnist, shapes

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
WITH_CODE = (
    "README.md",
    *(
        f"docs/{name}.md"
        for name in ("index", "tutorial", "from_keras", "kernels", "faq", "reliability")
    ),
)


def python_blocks(text: str) -> list[tuple[int, str]]:
    """Blocks of Python and the numbers of the lines that they begin in."""
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)) + 1, match[1]) for match in found]


def noise_like_digits():
    """What stands for MNIST here."""
    rng = np.random.default_rng(0)

    def split(n):
        return rng.integers(0, 256, (n, 28, 28), np.uint8), np.arange(n, dtype=np.uint8) % 10

    return split(64), split(32)


@pytest.mark.parametrize("page", WITH_CODE)
def test_code_runs(page, tmp_path, monkeypatch, math_mode, num_threads):
    """Block after block of a page, in one namespace, in an empty folder, on few images."""
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cifar10, "load_data", lambda: shapes.load_data(64, 32))
    monkeypatch.setattr(mnist, "load_data", noise_like_digits)
    text = (ROOT / page).read_text()
    blocks = python_blocks(text)
    assert len(blocks) == text.count("```python")
    assert blocks
    device = pyconv.get_device()
    namespace = {"__name__": "page"}
    try:
        for line, block in blocks:
            # The empty lines make line numbers in errors those of the page.
            exec(compile("\n" * (line - 1) + block, page, "exec"), namespace)
    finally:
        pyconv.set_device(device)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize(
    "picture", sorted((ROOT / "docs" / "images").iterdir()), ids=lambda p: p.name
)
def test_pictures_are_used(picture):
    assert any(f"images/{picture.name}" in page.read_text() for page in PAGES)


def test_pages_are_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r"^ +- .+: (\S+\.md)$", text, re.MULTILINE)
    assert sorted(listed) == sorted(page.relative_to(ROOT / "docs").as_posix() for page in PAGES)


def documented() -> set[str]:
    text = "\n".join(page.read_text() for page in PAGES)
    return set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))


def test_reference_names_what_there_is():
    assert [name for name in sorted(documented()) if pydoc.locate(name) is None] == []


def test_reference_names_all_there_is():
    wanted = {f"pyconv.layers.{name}" for name in layers.__all__}
    wanted |= {f"pyconv.backend.{name}" for name in backend.__all__}
    assert wanted <= documented()
