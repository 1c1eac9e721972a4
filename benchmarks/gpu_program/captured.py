"""Runs the compiler in a process that believes in a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_program import shim
from benchmarks.gpu_program.chips import CHIPS, Backend
from components.errors import UserError

ROOT = Path(__file__).parents[2]


def check_build() -> None:
    """Reject a build of torch that cannot write programs for a GPU.

    Raises:
        UserError: It is a CPU build.
    """
    if torch.version.cuda is None:
        raise UserError(
            f"torch {torch.__version__} is a build without CUDA, which cannot write a GPU's program; run "
            "`make gpu-program`, which installs a CUDA build of its own."
        )


def captured(
    files: Sequence[Path], passes: Sequence[str], chip: str, attention: Backend, sass: bool = False
) -> dict[str, Any]:
    """The programs of a run's passes, as ``compiler.main`` writes them.

    Args:
        files: The run's configuration files.
        passes: Of ``workload.PASSES``.
        chip: The GPU's name in ``chips.CHIPS``.
        attention: What computes attention.
        sass: Whether to count machine instructions.

    Raises:
        UserError: torch is a CPU build, there is no C compiler, or compilation failed.
    """
    check_build()
    request: dict[str, Any] = {"files": list(map(str, files)), "passes": list(passes)}
    request |= {"chip": chip, "attention": attention, "sass": sass}
    with tempfile.TemporaryDirectory(prefix="gpu_program_") as name:
        folder = Path(name)
        libraries = shim.build(CHIPS[chip], folder)
        (folder / "request.json").write_text(json.dumps(request))
        environment = {
            **os.environ,
            "LD_PRELOAD": ":".join(map(str, libraries)),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
            "TRITON_CACHE_DIR": str(folder / "triton"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        }
        arguments = [str(folder / "request.json"), str(folder / "programs.json")]
        command = [sys.executable, "-m", "benchmarks.gpu_program.compiler", *arguments]
        ended = subprocess.run(command, env=environment, check=False)
        if ended.returncode:
            raise UserError(f"Compiling {', '.join(passes)} for {chip} failed; the traceback above says why.")
        programs: dict[str, Any] = json.loads((folder / "programs.json").read_text())
        return programs
