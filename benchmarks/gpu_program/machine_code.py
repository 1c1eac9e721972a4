"""How many instructions a generated kernel is: compiled by Triton, taken apart by NVIDIA's disassembler.

Both come with Triton, and neither needs a GPU.
"""

from __future__ import annotations

import importlib.util
import math
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu_program.chips import Chip
from benchmarks.gpu_program.program import KERNEL, OWN

INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)", re.MULTILINE)
KINDS = {"special": r"MUFU", "float64": r"D(?:MUL|ADD|FMA)", "spilled": r"LDL|STL"}
"""Special functions such as sine and square root; float64 arithmetic; registers that went to memory."""

WARPS = 4
BLOCK = 512
"""Elements of a block: 4 for each of its threads."""

KEEP = """
def keep(*args, triton_meta, **settings):
    return lambda function: (function, triton_meta)


"""


def count_instructions(code: str, chip: Chip, folder: Path) -> dict[str, dict[str, int]]:
    """Instructions of each generated kernel, by kind; a loop's body counts once.

    Args:
        code: What Inductor generated.
        chip: The GPU to compile for.
        folder: An empty folder for files in between.
    """
    generated = [(name, source) for name, source in KERNEL.findall(code) if OWN not in source]
    return {name: count(disassembled(name, source, chip, folder)) for name, source in generated}


def count(assembly: str) -> dict[str, int]:
    """Instructions in a disassembled kernel: all of them, and by kind."""
    instructions = [name for name in INSTRUCTION.findall(assembly) if not name.startswith("NOP")]
    kinds = {kind: sum(bool(re.match(names, i)) for i in instructions) for kind, names in KINDS.items()}
    return {"all": len(instructions), **kinds}


def disassembled(name: str, source: str, chip: Chip, folder: Path) -> str:
    """A kernel's machine code, as text."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function, meta = load(name, source, folder)
    blocks = block_sizes(name, source, meta["signature"])
    compiled = triton.compile(
        ASTSource(
            fn=function,
            signature=dict(meta["signature"]),
            constexprs={**blocks, **meta.get("constants", {})},
            attrs=meta["configs"][0],
        ),
        target=GPUTarget("cuda", 10 * chip.capability[0] + chip.capability[1], 32),
        options={"num_warps": WARPS},
    )
    binary = folder / f"{name}.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    return subprocess.run([tool, "-c", binary], capture_output=True, text=True, check=True).stdout


def load(name: str, source: str, folder: Path) -> tuple[Any, dict[str, Any]]:
    """A kernel's function and what Inductor wrote about its arguments, without Inductor's launcher."""
    source = source.partition("def get_args")[0]
    source = re.sub(r"^triton_helpers\.set_driver_to_gpu\(\)$", "", source, flags=re.MULTILINE)
    source = re.sub(r"^from torch\._(?:dynamo|C)\b.*$", "", source, flags=re.MULTILINE)
    source = re.sub(r"@triton_heuristics\.\w+\(", "@keep(", source, count=1)
    file = folder / f"{name}.py"  # Triton reads a function's source from its file
    file.write_text(KEEP + source)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None, "a Python file has a spec"
    assert spec.loader is not None, "and a loader"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function, meta = getattr(module, name)
    return function, meta


def block_sizes(name: str, source: str, signature: Mapping[str, str]) -> dict[str, int]:
    """A plausible size of each block that a kernel leaves open: a tuner would choose among several."""
    reduced = math.prod(int(size) for size in re.findall(r"^    r\d+_numel = (\d+)$", source, re.MULTILINE))
    if name.startswith("triton_poi"):
        sizes = {"XBLOCK": BLOCK if "YBLOCK" not in signature else BLOCK // 32, "YBLOCK": 32}
    elif name.startswith("triton_per"):
        sizes = {"XBLOCK": max(1, BLOCK // (1 << (reduced - 1).bit_length()))}
    else:
        sizes = {"XBLOCK": 1, "R0_BLOCK": BLOCK, "RSPLIT_SIZE": 64}
    return {argument: sizes.get(argument, 1) for argument, kind in signature.items() if kind == "constexpr"}
