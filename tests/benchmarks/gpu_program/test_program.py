"""Generated code is read as Inductor wrote it: a kept sample, and calls of libraries worked out by hand."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_program.program import Attention, Other, Product, read_kernels, read_program

# Two kernels of the record's forward pass with two layers (torch 2.13.0), and their launches.
SAMPLE = (Path(__file__).parent / "sample.txt").read_text()


def test_kernels_of_the_sample() -> None:
    norm, rotation = read_kernels(SAMPLE)
    # The norm of the embeddings goes through 48 x 2,048 tokens of 512 channels.
    assert norm.name.startswith("triton_per_fused__fused_rms_norm")
    assert norm.launches == 1
    assert norm.elements == 48 * 2048 * 512
    assert (norm.trigonometry, norm.powers, norm.float64) == (0, 0, False)
    # The rotation of the queries goes through half of their channels: eight heads' first 32, each with its partner.
    assert rotation.launches == 2  # one a layer; the example launch in the kernel's source does not count
    assert rotation.elements == 48 * 2048 * 8 * 32
    assert (rotation.trigonometry, rotation.powers) == (2, 1)
    # It reads the queries, one norm for each head and token and eight gains, and writes the queries.
    assert rotation.bytes == 2 * 2 * 48 * 2048 * 512 + 4 * 48 * 2048 * 8 + 4 * 8


@pytest.mark.parametrize("words", ["tmp1.to(tl.float64)", "'in_ptr0': '*fp64'"])
def test_float64_is_seen(words: str) -> None:
    start = SAMPLE.index("@triton.jit")
    assert read_kernels(SAMPLE[:start] + f"# {words}\n" + SAMPLE[start:])[0].float64


def test_a_launch_of_what_is_not_defined_is_no_zero() -> None:
    with pytest.raises(AssertionError, match="triton_tem_product"):
        read_kernels(SAMPLE + "        triton_tem_product.run(a, b)\n")


def extern(name: str, *inputs: list[int] | None, num_bytes: int = 8) -> dict[str, object]:
    return {"name": name, "inputs": list(inputs), "bytes": num_bytes}


@pytest.mark.parametrize(
    ("call", "shape", "operations"),
    [
        (extern("extern_kernels.mm", [6, 4], [4, 3]), (6, 4, 3), 2 * 6 * 4 * 3),
        (extern("extern_kernels.addmm", [3], [6, 4], [4, 3]), (6, 4, 3), 2 * 6 * 4 * 3),
        (extern("extern_kernels.bmm", [5, 6, 4], [5, 4, 3]), (6, 4, 3), 5 * 2 * 6 * 4 * 3),
        (extern("aten.baddbmm.default", [5, 6, 3], [5, 6, 4], [5, 4, 3]), (6, 4, 3), 5 * 2 * 6 * 4 * 3),
    ],
)
def test_products(call: dict[str, object], shape: tuple[int, int, int], operations: int) -> None:
    other = extern("extern_kernels.mm", [2, 2], [2, 2])
    program = read_program(SAMPLE, [call, other, call])
    assert program.products == (Product(shape, 2, operations, 8), Product((2, 2, 2), 1, 16, 8))
    assert program.num_products == 3
    assert not program.others


def test_a_kernel_of_the_project_s_own_is_a_product_and_not_one_of_the_compiler_s() -> None:
    start = SAMPLE.index("async_compile.wait(")
    own = (
        "squared_relu_mm_0 = async_compile.triton('squared_relu_mm', '''\ncustom_kernel=True\n''', device_str='cuda')\n"
    )
    launched = SAMPLE[:start] + "\n" + own + SAMPLE[start:] + "        squared_relu_mm_0.run(a, b)\n"
    call = extern("squared_relu_mm", [6, 3], [6, 3], [6, 4], [4, 3], num_bytes=100)  # the result and what it kept first
    program = read_program(launched, [call])
    assert program.kernels == read_kernels(SAMPLE)
    assert program.products == (Product((6, 4, 3), 1, 2 * 6 * 4 * 3, 100),)
    assert not program.others


def attended(queries: int, keys: int) -> int:
    """Operations of attention over the full square, by torch's own count."""
    q, k = torch.empty(2, 8, queries, 16, device="meta"), torch.empty(2, 8, keys, 16, device="meta")
    with FlopCounterMode(display=False) as counter:
        F.scaled_dot_product_attention(q, k, k)
    return counter.get_total_flops()


def test_attention() -> None:
    q, k, few = [2, 8, 64, 16], [2, 4, 64, 16], [2, 8, 4, 16]
    program = read_program(
        SAMPLE,
        [
            extern("aten._scaled_dot_product_cudnn_attention.default", q, k, k),
            extern("aten._scaled_dot_product_cudnn_attention_backward.default", q, q, k, k, q),
            extern("aten._scaled_dot_product_cudnn_attention.default", few, k, k, [2, 8, 4, 64]),
        ],
    )
    forward = attended(64, 64) // 2  # causal
    assert program.attention == (
        Attention(False, 1, forward),
        Attention(True, 1, 5 * forward // 2),
        Attention(False, 1, attended(4, 64)),
    )


def test_other_calls_of_libraries() -> None:
    put, sort = extern("aten.index_put_.default", [4], num_bytes=100), extern("aten.sort", None)
    program = read_program(SAMPLE, [put, sort, put])
    assert program.others == (Other("aten.index_put_.default", 2, 100), Other("aten.sort", 1, 8))
    assert program.num_calls == program.launches + 3
    assert program.bytes == sum(kernel.launches * kernel.bytes for kernel in program.kernels) + 208
    assert not program.products
    assert not program.attention


def test_sums_of_what_blocks_left_are_calls_too() -> None:
    line = "            buf7 = workspace_0[0 * (12) * (5) : (0 + 1) * (12) * (5)].view(12, 5).sum(dim=0).view([1, 5])\n"
    [partial] = read_program(SAMPLE + 3 * line, []).others
    assert (partial.calls, partial.bytes) == (3, 4 * (12 * 5 + 5))
