"""What Inductor generates for each pass of a run, and what the optimizer calls, written to a file as JSON.

    python -m benchmarks.gpu_program.compiler REQUEST OUT

runs in a process of its own, which ``benchmarks.gpu_program.captured`` starts with the stand-ins of ``shim`` loaded.
Dynamo, AOTAutograd's partitioner and Inductor's decompositions, fusion and scheduling are the real ones. What Inductor
writes is kept instead of loaded. Nothing is tuned, and no kernel runs.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.gpu_program import fake_cuda
from benchmarks.gpu_program.chips import CHIPS
from benchmarks.gpu_program.eager import count_update, count_update_on_scored
from benchmarks.gpu_program.machine_code import count_instructions
from benchmarks.gpu_program.workload import Pass, Workload
from components.gpt import GPT


class CompiledError(Exception):
    """Ends a pass once its graphs are compiled: they cannot run."""


def configure() -> None:
    """Set the compiler up: nothing cached, one process, a kernel's arguments shown, the backward pass at once."""
    import torch._functorch.config as functorch_config
    import torch._inductor.config as inductor_config

    inductor_config.force_disable_caches = True
    inductor_config.compile_threads = 1
    inductor_config.benchmark_kernel = True  # writes the shapes and types of a kernel's arguments beside it
    inductor_config.benchmark_harness = False
    functorch_config.force_non_lazy_backward_lowering = True


@contextlib.contextmanager
def generated() -> Iterator[list[dict[str, Any]]]:
    """Collect each graph's code and its calls of libraries, instead of loading the code."""
    from torch._inductor.graph import GraphLowering
    from torch._inductor.ir import MultiOutput
    from torch._inductor.scheduler import ExternKernelSchedulerNode

    programs: list[dict[str, Any]] = []

    def keep(graph: GraphLowering) -> types.ModuleType:
        code, _ = graph.codegen()
        calls = [node for node in graph.scheduler.nodes if isinstance(node, ExternKernelSchedulerNode)]
        # One output of a call with several is a node too, and launches nothing.
        kernels = [node.node for node in calls if not isinstance(node.node, MultiOutput)]
        programs.append({"code": code.value, "externs": [describe(kernel) for kernel in kernels]})
        module = types.ModuleType("generated")
        module.__file__ = "/dev/null"
        module.call = lambda args: [None] * 1000  # type: ignore[attr-defined]
        module.runner = None  # type: ignore[attr-defined]
        return module

    loads = GraphLowering.compile_to_module
    GraphLowering.compile_to_module = keep  # type: ignore[method-assign, assignment]
    try:
        yield programs
    finally:
        GraphLowering.compile_to_module = loads  # type: ignore[method-assign]


def keep_from_the_device() -> None:
    """Leave out or move to the CPU what the compiler would compute on the device while it compiles."""
    from torch._inductor.fx_passes import fuse_attention, joint_graph, misc_patterns, pad_mm
    from torch.utils._python_dispatch import TorchDispatchMode

    class OnCPU(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if "device" in kwargs:
                kwargs["device"] = torch.device("cpu")
            return func(*args, **kwargs)

    def on_cpu(original: Any) -> Any:
        def method(self: Any, *args: Any) -> Any:
            with OnCPU():
                return original(self, *args)

        return method

    folder = joint_graph.UniformValueConstantFolder  # works out constants
    for name in ("_deduce_value", "_add_peephole_patterns"):
        setattr(folder, name, on_cpu(getattr(folder, name)))
    # Patterns made from real tensors on the device; the network has none of them.
    for module, name in (
        (fuse_attention, "_sfdp_init"),
        (pad_mm, "_pad_mm_init"),
        (misc_patterns, "_misc_patterns_init"),
    ):
        setattr(module, name, lambda *args, **kwargs: None)


def describe(kernel: Any) -> dict[str, Any]:
    """A call of a library or of our own kernel: its name, its tensors' shapes, and the bytes that it reads and writes.

    The bytes are those of its tensors as it is given them. A call with several outputs is no tensor itself: its
    outputs are left out.
    """
    inputs = [tensor for tensor in kernel.inputs if not isinstance(tensor, (list, tuple))]
    return {
        "name": _name(kernel),
        "inputs": [_shape(tensor) for tensor in inputs],
        "bytes": sum(map(_bytes, (*inputs, kernel))),
    }


def _name(kernel: Any) -> str:
    """The operator's, or for a kernel of our own its function's."""
    from torch._inductor.ir import UserDefinedTritonKernel

    if isinstance(kernel, UserDefinedTritonKernel):
        function: Any = kernel.get_kernel_and_metadata()[0]
        return str(function.__name__)
    return str(getattr(kernel, "python_kernel_name", None) or getattr(kernel, "op_overload", None))


def _shape(tensor: Any) -> list[int] | None:
    try:
        return [int(size) for size in tensor.get_size()]
    except (AttributeError, NotImplementedError):
        return None


def _bytes(tensor: Any) -> int:
    shape = _shape(tensor)
    if shape is None:
        return 0
    strides = map(int, tensor.get_stride())
    elements = math.prod(size for size, stride in zip(shape, strides, strict=True) if stride)
    return elements * int(tensor.get_dtype().itemsize)


def compile_pass(network: GPT, mode: Any, shapes: Pass) -> dict[str, Any]:
    """The programs of one pass by part."""

    def backend(graph: torch.fx.GraphModule, example_inputs: Any) -> Any:
        from torch._inductor.compile_fx import compile_fx

        compile_fx(graph, example_inputs)
        raise CompiledError

    torch._dynamo.reset()
    network.train(shapes.is_training)
    network.looping = shapes.looping
    with generated() as programs, mode:
        ids = torch.empty(shapes.num_sequences, shapes.seq_len, dtype=torch.int64, device="cuda:0")
        targets = torch.empty(shapes.num_sequences, shapes.num_scored, dtype=torch.int64, device="cuda:0")
        compiled: nn.Module = torch.compile(network, backend=backend, dynamic=False, fullgraph=True)  # type: ignore[assignment]
        with torch.autocast("cuda", torch.bfloat16), torch.set_grad_enabled(shapes.is_training):
            try:
                compiled(ids, targets)
            except Exception as error:
                if not _caused_by_the_end(error):
                    raise
    parts = ("forward", "backward") if shapes.is_training else ("forward",)
    return dict(zip(parts, programs, strict=True))


def _caused_by_the_end(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, CompiledError) or isinstance(getattr(error, "inner_exception", None), CompiledError):
            return True
        error = error.__cause__
    return False


def main(request_file: Path, out: Path) -> None:
    """Compile what a request asks for: ``{chip, attention, files, passes, sass}``."""
    request = json.loads(request_file.read_text())
    chip = CHIPS[request["chip"]]
    workload = Workload([Path(file) for file in request["files"]])
    fake_cuda.pretend(chip)
    configure()
    keep_from_the_device()
    fake_cuda.choose_attention(request["attention"])
    mode = fake_cuda.FakeTensorMode(allow_non_fake_inputs=True)
    network = workload.network()
    fake_cuda.move(network, mode)
    passes = {}
    for name in request["passes"]:
        print(f"compiling {name}", file=sys.stderr, flush=True)
        workload.set_faking(network, name == "qat")
        passes[name] = compile_pass(network, mode, workload.describe(name))
    instructions = {}
    if request["sass"]:
        for name, parts in passes.items():
            print(f"compiling {name} to machine code", file=sys.stderr, flush=True)
            codes = {part: program["code"] for part, program in parts.items()}
            instructions[name] = {part: count_instructions(code, chip, out.parent) for part, code in codes.items()}
    updates = {"train": count_update(network, mode, workload)}
    if "ttt" in passes and workload.training_on_scored:
        updates["ttt"] = count_update_on_scored(network, mode, workload.training_on_scored)
    import triton

    versions = {"torch": torch.__version__, "triton": triton.__version__}
    result = {"passes": passes, "instructions": instructions, "updates": updates, "versions": versions}
    out.write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
