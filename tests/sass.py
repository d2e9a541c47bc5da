"""What is in the machine code of CUDA kernels: functions, their main loops, their resources.

Reads NVIDIA's own disassembler (packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm).
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ANONYMOUS = "(anonymous namespace)::"


def tools() -> Path | None:
    """The folder with cuobjdump and nvdisasm, from PyPI or else a toolkit on the PATH."""
    spec = importlib.util.find_spec("nvidia")
    folders = [*(spec.submodule_search_locations or ())] if spec else []
    candidates = [path for folder in folders for path in Path(folder).glob("*/bin")]
    candidates += map(Path, os.get_exec_path())
    for folder in candidates:
        if (folder / "cuobjdump").exists() and (folder / "nvdisasm").exists():
            return folder
    return None


def cuobjdump(*arguments: str | Path) -> str:
    folder = tools()
    assert folder is not None
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        [folder / "cuobjdump", *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    ).stdout


def demangled(text: str) -> str:
    """Names without the namespaces that all of ours are in."""
    names = subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True)
    return names.stdout.replace("pyconv::cuda::", "").replace("pyconv::", "").replace(ANONYMOUS, "")


def kernel_name(signature: str) -> str:
    """`gemm_kernel<64, Plain, Store>` of `void gemm_kernel<64, Plain, Store>(Taps, ...)`."""
    name = signature.strip().removeprefix("void ").rstrip(":")
    return name[: name.index("(")] if "(" in name else name


@dataclass(frozen=True)
class Instruction:
    address: int
    text: str  # with its predicate and modifiers

    @property
    def opcode(self) -> str:
        words = self.text.split()
        return words[1] if words[0].startswith("@") else words[0]

    @property
    def does_nothing(self) -> bool:
        """`@!PT ...`, which the compiler puts in, and NOP."""
        return self.text.startswith("@!PT") or self.opcode == "NOP"


@cache
def functions(file: Path, architecture: str) -> dict[str, list[Instruction]]:
    """The instructions of each kernel in an object, extension or cubin."""
    found: dict[str, list[Instruction]] = {}
    name = ""
    pattern = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
    for line in demangled(cuobjdump("-sass", "-arch", f"sm_{architecture}", file)).splitlines():
        if "Function :" in line:
            name = kernel_name(line.split("Function :")[1])
            found[name] = []
        elif match := pattern.match(line):
            found[name].append(Instruction(int(match[1], 16), match[2]))
    return found


@cache
def resources(file: Path, architecture: str) -> dict[str, dict[str, int]]:
    """REG, STACK, SHARED, LOCAL of each kernel."""
    found = {}
    name = ""
    text = demangled(cuobjdump("-res-usage", "-arch", f"sm_{architecture}", file))
    for line in text.splitlines():
        if line.strip().startswith("Function "):
            name = kernel_name(line.strip().removeprefix("Function "))
        elif "REG:" in line:
            found[name] = {key: int(value) for key, value in re.findall(r"([A-Z]+):(\d+)", line)}
    return found


# Warps and blocks that a multiprocessor holds, and kilobytes of its shared memory. CUDA C++
# Programming Guide, "Technical Specifications per Compute Capability".
MULTIPROCESSORS = {
    "75": (32, 16, 64),
    "80": (64, 32, 164),
    "86": (48, 16, 100),
    "89": (48, 24, 100),
    "90": (64, 32, 228),
    "100": (64, 32, 228),
    "120": (48, 24, 100),
}


def resident_blocks(architecture: str, usage: dict[str, int], threads: int) -> int:
    """Blocks of a kernel that a multiprocessor holds: its occupancy.

    As the toolkit's cuda_occupancy.h has it. Each of the four partitions has 16384 registers and
    gives them to warps in units of 256. Shared memory comes in units of 256 bytes, 128 from sm_80
    on, where each block takes another 1 KB, which cuobjdump counts from sm_90 on.
    """
    most_warps, most_blocks, kilobytes = MULTIPROCESSORS[architecture]
    warps = -(-threads // 32)
    registers = -(-usage["REG"] * 32 // 256) * 256
    unit = 256 if architecture == "75" else 128
    reserved = 1024 if architecture in ("80", "86", "89") else 0
    shared = -(-(usage["SHARED"] + reserved) // unit) * unit
    return min(
        most_blocks,
        most_warps // warps,
        16384 // registers * 4 // warps,
        kilobytes * 1024 // shared if shared else most_blocks,
    )


def main_loop(code: list[Instruction], opcode: str) -> list[Instruction]:
    """The innermost loop with most of `opcode`: from the target of a backward branch to the branch.

    Of two loops that contain each other and the same number of them, the shorter one.
    """
    best: list[Instruction] = []
    most = 0
    for branch in code:
        match = re.search(r"\bBRA(?:\.\w+)* (?:\S+, )?(?:`\()?0x([0-9a-f]+)", branch.text)
        if not match or int(match[1], 16) > branch.address:
            continue
        start = int(match[1], 16)
        loop = [i for i in code if start <= i.address <= branch.address and not i.does_nothing]
        count = sum(i.opcode.startswith(opcode) for i in loop)
        if count > most or (count == most and count and len(loop) < len(best)):
            best, most = loop, count
    return best


def count(code: list[Instruction], *prefixes: str) -> int:
    return sum(i.opcode.startswith(prefixes) for i in code)


def covered(loop: list[Instruction], counted: str) -> int:
    """The least number of `counted` between a load from global memory and the first use of what it
    loads: what the latency is hidden by. The loop goes round."""
    least = len(loop)
    widths = {".64": 2, ".128": 4}
    for at, load in enumerate(loop):
        if not load.opcode.startswith("LDG."):
            continue
        width = next((n for suffix, n in widths.items() if suffix in load.opcode), 1)
        match = re.search(r"\bR(\d+)\b", load.text)
        assert match is not None, load
        loaded = {f"R{int(match[1]) + i}" for i in range(width)}
        between = 0
        for i in loop[at + 1 :] + loop[:at]:
            operands = i.text.partition(i.opcode)[2]
            if not i.opcode.startswith("ST"):  # the first operand is written
                operands = operands.partition(",")[2]
            read = set(re.findall(r"\bR\d+\b", operands))
            if i.opcode.startswith("STS.128"):  # a register stands for four
                read |= {
                    f"R{int(name[1:]) + k}"
                    for name in re.findall(r", (R\d+)", i.text)
                    for k in range(4)
                }
            if read & loaded:
                least = min(least, between)
                break
            if not i.opcode.startswith("ST"):  # written anew
                loaded -= set(re.findall(r"^\W*(R\d+)\b", i.text.partition(i.opcode)[2])[:1])
            between += i.opcode.startswith(counted)
    return least
