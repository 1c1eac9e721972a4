"""A CUDA device that torch, Inductor and Triton believe in, for a process of its own, before anything compiles.

The device has a chip's properties and no memory. Its tensors are fake: they have shapes and strides, and no data.
"""

from __future__ import annotations

import contextlib
import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.gpu_program.chips import Backend, Chip


def pretend(chip: Chip) -> None:
    """Let everything that asks for the GPU find this one."""
    properties = types.SimpleNamespace(
        name=chip.name,
        major=chip.capability[0],
        minor=chip.capability[1],
        multi_processor_count=chip.num_sms,
        warp_size=32,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        shared_memory_per_block=49152,
        shared_memory_per_block_optin=chip.shared_memory,
        shared_memory_per_multiprocessor=chip.shared_memory + 1024,
        total_memory=chip.memory,
        L2_cache_size=chip.l2_cache,
        gcnArchName="",
        is_integrated=False,
        is_multi_gpu_board=False,
    )
    _pretend_runtime(properties, chip)
    _pretend_triton(chip)
    import torch._subclasses.fake_tensor as fake_tensor

    fake_tensor.init_gpu_context = _always(None)  # it would allocate


def _pretend_runtime(properties: types.SimpleNamespace, chip: Chip) -> None:
    stream = types.SimpleNamespace(cuda_stream=0, stream_id=0, device_index=0, device_type=1)

    class Device(contextlib.nullcontext):
        def __init__(self, device: object = None) -> None:
            super().__init__()

    answers: dict[str, object] = {
        "is_available": True,
        "is_initialized": True,
        "_lazy_init": None,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "synchronize": None,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        "get_device_properties": properties,
        "get_device_capability": chip.capability,
        "get_device_name": chip.name,
        "is_bf16_supported": True,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
        "get_rng_state_all": [],
        "memory_allocated": 0,
        "current_stream": stream,
        "is_current_stream_capturing": False,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, _always(answer))
    torch.cuda.device = torch.cuda._DeviceGuard = Device  # type: ignore[misc, assignment]
    accelerator: Any = torch.accelerator
    accelerator.is_available = _always(False)
    accelerator.current_accelerator = lambda check_available=False: None if check_available else torch.device("cuda")
    accelerator.current_device_index = _always(0)


def _always(answer: object) -> Any:
    return lambda *args, **kwargs: answer


def _pretend_triton(chip: Chip) -> None:
    import triton
    from triton.backends.compiler import GPUTarget

    limits = {"max_shared_mem": chip.shared_memory, "multiprocessor_count": chip.num_sms, "warpSize": 32}

    class Driver:
        utils = types.SimpleNamespace(get_device_properties=_always(limits))
        get_current_target = _always(GPUTarget("cuda", 10 * chip.capability[0] + chip.capability[1], 32))
        get_current_device = _always(0)
        get_current_stream = _always(0)
        get_active_torch_device = _always(torch.device("cuda", 0))

    triton.runtime.driver.set_active(Driver())


def choose_attention(backend: Backend) -> None:
    """Let attention call a given backend: the real choice asks the driver."""
    aten = torch.ops.aten

    def attend(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        keeps = torch.is_grad_enabled()  # the sums that a backward pass needs
        if attn_mask is not None:  # flash takes no mask, and cuDNN takes it as something to add
            bias = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(~attn_mask, float("-inf"))
            bias = bias.expand(q.size(0), q.size(1), q.size(2), k.size(2))
            return aten._scaled_dot_product_cudnn_attention(q, k, v, bias, keeps, 0.0, False)[0]
        if backend == "cudnn":
            return aten._scaled_dot_product_cudnn_attention(q, k, v, None, keeps, 0.0, is_causal)[0]
        return aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal)[0]

    F.scaled_dot_product_attention = attend  # type: ignore[assignment]


def move(network: nn.Module, mode: FakeTensorMode, device: str = "cuda:0") -> None:
    """Replace a network's parameters and buffers by fake ones on a device."""

    def moved(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device)

    with mode:
        for module in network.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(moved(parameter))
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = moved(buffer)
