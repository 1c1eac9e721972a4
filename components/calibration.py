"""Second moments of the inputs to a network's products, which a calibrated quantizer uses to weight errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from components.gpt import GPT
from components.layers import JointLinear, Linear
from components.mlp import MLP


@torch.no_grad()
def collect_hessians(network: GPT, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """The Hessian of each product's squared error with respect to a row of its weight, up to a factor of 2.

    ``H = sum x x^T / batches`` over the product's inputs x at all positions of all ranks' batches. A layer that runs
    several times per pass sums over its runs. Source: Frantar et al., GPTQ, arXiv 2210.17323.

    This is one eager pass, even if the network is compiled, and it keeps no inputs. Under autocast the inputs have its
    dtype; the sums have the weights' dtype, float32.

    Args:
        network: The network.
        batches: This rank's ids, int64 [B, T] on the network's device; a rank may have none if another has some.

    Returns:
        float32 [inputs, inputs] on the network's device, the same on every rank, by weight name, for every linear
        layer and for the head, which is the token table if they are tied.
    """
    names = {module: name for name, module in network.named_modules() if isinstance(module, Linear)}
    head_name, head = ("tok_emb", network.tok_emb) if network.lm_head is None else ("lm_head", network.lm_head)
    sums = {f"{name}.weight": _zeros(module.weight) for module, name in (names | {head: head_name}).items()}
    num_batches = torch.zeros((), device=head.weight.device)
    with _summed(network, {module: sums[f"{name}.weight"] for module, name in names.items()}):
        for ids_BT in batches:
            _add(sums[f"{head_name}.weight"], network.head_input(ids_BT, ids_BT.size(1)))
            num_batches += 1
    if dist.is_initialized():
        for total in (num_batches, *sums.values()):
            dist.all_reduce(total)
    assert num_batches > 0, "there must be a batch to calibrate on"
    return {name: total / num_batches for name, total in sums.items()}


@contextmanager
def _summed(network: nn.Module, sums: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """Add each layer's inputs to its sum whenever it runs, alone or in a joint product."""

    def add_input(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        for layer in module.layers if isinstance(module, JointLinear) else (module,):
            _add(sums[layer], inputs[0])

    products = [module for module in network.modules() if isinstance(module, JointLinear) or module in sums]
    hooks = [module.register_forward_pre_hook(add_input) for module in products]
    fused = [module for module in network.modules() if isinstance(module, MLP) and module.fused]
    for mlp in fused:
        mlp.fused = False  # its layers run as modules, and so their hooks do
    try:
        yield
    finally:
        for mlp in fused:
            mlp.fused = True
        for hook in hooks:
            hook.remove()


def _zeros(weight: Tensor) -> Tensor:
    return weight.new_zeros(weight.size(1), weight.size(1))


def _add(total: Tensor, inputs: Tensor) -> None:
    """Add ``x x^T`` of every position to a sum, in the sum's dtype."""
    x_NC = inputs.flatten(0, -2).to(total.dtype)
    total.addmm_(x_NC.T, x_NC)  # in place, which autocast leaves alone
