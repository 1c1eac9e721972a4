"""A script that needs GPU kernels, imported and built where there are none."""

import importlib.util
from pathlib import Path

import pytest

from records.audit.checks import judge
from records.audit.verdicts import State
from tests.records.audit.support import CHECKS, case_of, edit_json, edit_log, verdict_of

needs_no_kernels = pytest.mark.skipif(
    any(importlib.util.find_spec(name) for name in ("triton", "flash_attn_interface")),
    reason="Triton or FlashAttention is installed here, so nothing stands in for it",
)

KERNELS = """import torch
import triton
import triton.language as tl
from flash_attn_interface import flash_attn_func as attend
from torch import nn
from triton.tools.tensor_descriptor import TensorDescriptor

SIZES = [triton.Config({"BLOCK": 64}, num_warps=4)]


@triton.autotune(configs=SIZES, key=["n"])
@triton.jit
def kernel(x, n: tl.constexpr, BLOCK: tl.constexpr):
    tl.store(x, tl.load(x))


class Hyperparameters:
    vocab_size = 512
    model_dim = 32
    num_heads = 4


class GPT(nn.Module):
    def __init__(self, h):
        super().__init__()
        self.heads = h.num_heads
        self.table = nn.Embedding(h.vocab_size, h.model_dim)
        nn.init.normal_(self.table.weight, std=0.005)

    def forward(self, ids, targets):
        x = self.table(ids)
        q = x.unflatten(-1, (self.heads, -1))
        y = attend(q, q[:, :, :2], q[:, :, :2], causal=True)
        assert torch.allclose(y[:, 0, 0], q[:, 0, 0])  # the first position sees itself alone
        z = (x + y.flatten(2)) @ self.table.weight.T
        return nn.functional.cross_entropy(z.flatten(0, 1), targets.flatten())
"""


@needs_no_kernels
def test_a_script_of_kernels_is_imported_and_built_and_the_line_says_with_what(folder: Path) -> None:
    (folder / "train_gpt.py").write_text(KERNELS)
    edit_log("", f"{512 * 32} parameters, 8 ranks on cuda")(folder)
    edit_json("submission.json", num_params=512 * 32)(folder)
    case = case_of(folder)
    imported, network, loss = (
        judge(CHECKS[line], case, None) for line in ("script imports", "network", "initial loss")
    )
    assert imported.state == State.PASS, imported
    assert "stand-ins for triton, flash_attn_interface" in imported.detail
    assert network.state == State.PASS, network
    assert f"{512 * 32:,} parameters; model_dim 32, num_heads 4, vocab_size 512" in network.detail
    assert loss.state == State.PASS, loss


@needs_no_kernels
def test_a_kernel_that_would_be_launched_is_said(folder: Path) -> None:
    (folder / "train_gpt.py").write_text(KERNELS.replace("        x = self.table(ids)", "        kernel[(1,)](ids, 5)"))
    verdict = verdict_of("initial loss", folder)
    assert verdict.state == State.UNKNOWN
    assert "needs Triton and a GPU" in verdict.detail
