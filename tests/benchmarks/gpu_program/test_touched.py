"""Bytes of a kernel by hand-worked cases, and addresses against going through all of them."""

import operator
from functools import reduce
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gpu_program.indices import Affine, Condition, Digit, compared, num_points, reached
from benchmarks.gpu_program.touched import bytes_touched

SAMPLE = (Path(__file__).parent / "sample.txt").read_text()
START = """
    xoffset = tl.program_id(0) * XBLOCK
    xindex = xoffset + tl.arange(0, XBLOCK)[:]
    xmask = xindex < xnumel
    x0 = (xindex % 6)
    x1 = xindex // 6
    x2 = xindex
"""


def kernel(numel: int, body: str, **buffers: str) -> str:
    """A kernel's source as Inductor writes it, over ``numel`` elements.

    Args:
        numel: The range of its index.
        body: Its statements, in lines.
        buffers: Shape, strides and type of each argument.
    """
    statements = "".join(f"    {line.strip()}\n" for line in body.strip().splitlines())
    made = "".join(f"    arg_{i} = rand_strided({made}\n" for i, made in enumerate(buffers.values()))
    names = ", ".join(buffers)
    return (
        f"@triton.jit\ndef triton_poi({names}, xnumel, XBLOCK : tl.constexpr):\n    xnumel = {numel}{START}"
        f"{statements}\n\ndef get_args():\n{made}    return 0\n"
    )


def f32(*sizes: int) -> str:
    strides = [reduce(operator.mul, sizes[i + 1 :], 1) for i in range(len(sizes))]
    return f"{sizes}, {tuple(strides)}, device='cuda:0', dtype=torch.float32)"


def bf16(*sizes: int) -> str:
    return f32(*sizes).replace("float32", "bfloat16")


def i64(*sizes: int) -> str:
    return f32(*sizes).replace("float32", "int64")


def test_a_full_read_and_a_full_write() -> None:
    body = "tmp0 = tl.load(in_ptr0 + (x2), xmask).to(tl.float32)\ntl.store(out_ptr0 + (x2), tmp0, xmask)"
    assert bytes_touched(kernel(24, body, in_ptr0=bf16(4, 6), out_ptr0=f32(4, 6))) == 24 * 2 + 24 * 4


def test_a_slice_counts_what_is_in_it() -> None:
    # The middle third of rows of 18, which other kernels read the rest of.
    body = "tmp0 = tl.load(in_ptr0 + (6 + x0 + 18*x1), xmask)\ntl.store(out_ptr0 + (x2), tmp0, xmask)"
    assert bytes_touched(kernel(24, body, in_ptr0=f32(4, 18), out_ptr0=f32(4, 6))) == 24 * 4 + 24 * 4


def test_what_is_read_again_counts_once() -> None:
    # As a rotation reads its halves, each in the other's place, after a norm has read both.
    body = """
        tmp0 = tl.load(in_ptr0 + (x0 + 18*x1), xmask)
        tmp1 = x0
        tmp2 = tl.full([1], 3, tl.int64)
        tmp3 = tmp1 < tmp2
        tmp4 = tl.load(in_ptr0 + (3 + x0 + 18*x1), tmp3 & xmask, other=0.0).to(tl.float32)
        tmp5 = tmp1 >= tmp2
        tmp6 = tl.load(in_ptr0 + (18*x1 + ((-3) + x0)), tmp5 & xmask, other=0.0)
    """
    assert bytes_touched(kernel(24, body, in_ptr0=f32(4, 18))) == 24 * 4


def test_masked_reads_count_where_the_mask_holds() -> None:
    # Two inputs joined to rows of 6: the first 2 of one, then 4 of the other.
    body = """
        tmp0 = x0
        tmp1 = tl.full([1], 2, tl.int64)
        tmp2 = tmp0 < tmp1
        tmp3 = tl.load(in_ptr0 + (2*x1 + (x0)), tmp2 & xmask, other=0.0)
        tmp4 = tmp0 >= tmp1
        tmp5 = tl.load(in_ptr1 + (5*x1 + ((-2) + x0)), tmp4 & xmask, other=0.0)
    """
    assert bytes_touched(kernel(24, body, in_ptr0=f32(4, 2), in_ptr1=f32(4, 5))) == 4 * 2 * 4 + 4 * 4 * 4


@pytest.mark.parametrize(("mask", "columns"), [("tmp0 & tmp1", 2), ("tmp1 & tmp0", 2), ("tmp0 | tmp1", 6), ("tmp0", 6)])
def test_data_in_a_mask_counts_as_true(mask: str, columns: int) -> None:
    body = f"""
        tmp0 = tl.load(in_ptr0 + (x1), xmask) > 0
        tmp1 = x0 < 2
        tmp2 = tl.load(in_ptr1 + (x2), {mask}, other=0.0)
    """
    assert bytes_touched(kernel(24, body, in_ptr0=i64(4), in_ptr1=f32(4, 6))) == 4 * 8 + 4 * columns * 4


def test_a_shifted_read_overlaps_the_plain_one() -> None:
    body = """
        tmp0 = tl.load(in_ptr0 + (x2), xmask)
        tmp1 = (-1) + x1
        tmp2 = tl.full([1], 0, tl.int64)
        tmp3 = tmp1 >= tmp2
        tmp4 = tl.load(in_ptr0 + ((-6) + x2), tmp3 & xmask, other=0.0)
    """
    assert bytes_touched(kernel(24, body, in_ptr0=f32(4, 6))) == 24 * 4


def test_a_broadcast_row_counts_once() -> None:
    assert bytes_touched(kernel(24, "tmp0 = tl.load(in_ptr0 + (x0), xmask)", in_ptr0=f32(6))) == 6 * 4
    assert bytes_touched(kernel(24, "tmp0 = tl.load(in_ptr0 + (0))", in_ptr0=f32(1))) == 4


@pytest.mark.parametrize(("rows", "gathered"), [(1000, 4 * 6), (2, 2 * 6)])
def test_a_gather_counts_its_accesses_or_the_table(rows: int, gathered: int) -> None:
    body = "tmp0 = tl.load(in_ptr0 + (x1), xmask)\ntmp1 = tl.load(in_ptr1 + (x0 + 6*tmp0), xmask)"
    assert bytes_touched(kernel(24, body, in_ptr0=i64(4), in_ptr1=f32(rows, 6))) == 4 * 8 + gathered * 4
    one_row = f"({rows}, 6), (0, 1), dtype=torch.float32)"
    assert bytes_touched(kernel(24, body, in_ptr0=i64(4), in_ptr1=one_row)) == 4 * 8 + 6 * 4


def test_a_write_in_place_counts_twice() -> None:
    body = "tmp0 = tl.load(in_out_ptr0 + (x2), xmask)\ntl.store(in_out_ptr0 + (x2), tmp0, xmask)"
    assert bytes_touched(kernel(24, body, in_out_ptr0=f32(24))) == 2 * 24 * 4
    added = "tl.atomic_add(out_ptr0 + (x0), 1.0, xmask, sem='relaxed')"
    assert bytes_touched(kernel(24, added, out_ptr0=f32(6))) == 2 * 6 * 4
    reused = "tl.store(in_out_ptr0 + (x2), 1.0, xmask)"  # memory of a buffer that is no longer needed
    assert bytes_touched(kernel(24, reused, in_out_ptr0=f32(24))) == 24 * 4


def test_what_a_kernel_wrote_it_reads_from_a_cache() -> None:
    body = "tl.store(out_ptr0 + (x2), 1.0, xmask)\ntmp0 = tl.load(out_ptr0 + (x2), xmask)"
    assert bytes_touched(kernel(24, body, out_ptr0=f32(24))) == 24 * 4


def test_partial_sums_fill_their_workspace() -> None:
    body = "tl.store(ws_ptr + (tl.program_id(0) + 0 * tl.num_programs(0)) * 6 + x0, 1.0, xmask)"
    assert bytes_touched(kernel(24, body, ws_ptr="(12,), (1,), dtype=torch.float32)")) == 12 * 4


def test_indices_in_a_loop_go_through_their_whole_range() -> None:
    body = """
        r0_numel = 8
        r0_base = tl.arange(0, R0_BLOCK)[None, :]
    """
    source = kernel(6, body, in_ptr0=f32(6, 8), out_ptr0=f32(6)).replace(
        "\n\ndef get_args",
        """    for r0_offset in tl.range(0, r0_numel, R0_BLOCK):
        r0_index = r0_offset + r0_base
        r0_mask = r0_index < r0_numel
        r0_1 = r0_index
        tmp0 = tl.load(in_ptr0 + (8*((r0_1 + 8*x2) // 8) + (((r0_1 + 8*x2) % 8))), r0_mask & xmask)
    tmp1 = tl.sum(tmp0, 1)[:, None]
    tl.store(out_ptr0 + (x2), tmp1, xmask)


def get_args""",
    )
    assert bytes_touched(source) == (48 + 6) * 4


def test_the_samples_rotation() -> None:
    rotation = SAMPLE.split("'''")[3]
    # It reads the queries, one norm for each head and token and eight gains, and writes the queries.
    assert bytes_touched(rotation) == 2 * 2 * 48 * 2048 * 512 + 4 * 48 * 2048 * 8 + 4 * 8


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("tmp0 = tl.load(in_ptr0 + (x2*x2), xmask)", "no address to be followed"),
        ("tmp0 = tl.load(in_ptr0 + (UNKNOWN), xmask)", "no address to be followed"),
        ("tmp0 = tl.load(in_ptr0 + (1 + x2), xmask)", "an address of 24 in 24 elements"),
        ("tmp0 = tl.load(in_ptr0 + ((-1) + x2), xmask)", "an address of -1"),
        ("tmp0 = tl.load(tl.make_block_ptr(in_ptr0), xmask)", "memory is addressed by tl.make_block_ptr"),
        ("tmp0 = triton_helpers.sort(in_ptr0)", "a pointer goes to what only reads and writes"),
        ("tmp0 = xindex", "never accessed: {'in_ptr0'}"),
        ("assert xnumel", "a statement that was not expected: assert xnumel"),
        ("tmp0 = tl.load(in_ptr0 + (x2 % 4 + x2 // 6), xmask)", "divided by 4 and by 6"),
    ],
)
def test_what_cannot_be_counted_is_no_guess(body: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        bytes_touched(kernel(24, body, in_ptr0=f32(24)))


def test_arguments_must_be_beside_the_kernel() -> None:
    source = kernel(24, "tmp0 = tl.load(in_ptr0 + (x2), xmask)", in_ptr0=f32(24))
    with pytest.raises(AssertionError, match="benchmark_kernel is off"):
        bytes_touched(source.replace("def get_args", "def other"))


X = Affine(0, {Digit("x", 1, 96): 1})
COMPARISONS = (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne)


def parts(at: int, whole: Affine = X) -> tuple[Affine, Affine]:
    divided = whole.divided(at)
    assert divided is not None
    return divided


@given(
    st.tuples(*[st.integers(-9, 9)] * 4),
    st.lists(st.tuples(st.sampled_from(range(4)), st.integers(-1, 50), st.sampled_from(COMPARISONS)), max_size=2),
    st.booleans(),
)
def test_addresses_are_those_of_all_points(factors, comparisons, both) -> None:  # type: ignore[no-untyped-def]
    # x of 96 in digits of 4, 3 and 8; the second and the last number overlap.
    rest, lowest = parts(4)
    highest, middle = parts(3, rest)
    numbers = (lowest, middle, highest, rest)
    address = sum((number.times(factor) for number, factor in zip(numbers, factors, strict=True)), Affine(5))
    conditions = [compared(numbers[which], Affine(limit), by) for which, limit, by in comparisons]
    where = reduce(Condition.__and__ if both else Condition.__or__, conditions or [compared(X, X, operator.eq)])
    expected = set()
    for x in range(96):
        values = (x % 4, x // 4 % 3, x // 12, x // 4)
        holds = [by(values[which], limit) for which, limit, by in comparisons]
        if not holds or (all(holds) if both else any(holds)):
            expected.add(5 + sum(v * f for v, f in zip(values, factors, strict=True)))
    spans = reached(address, where)
    assert {a for first, end in spans.tolist() for a in range(first, end)} == expected
    assert (spans[1:, 0] > spans[:-1, 1]).all()


def test_points_of_overlapping_digits() -> None:
    assert num_points([]) == 1
    assert num_points([Digit("x", 1, 96), Digit("x", 4, 12), Digit("y", 1, 2)]) == 96 * 2


def test_a_sum_divides_if_its_digits_tell_how() -> None:
    # r of 8 below 8 times x: both parts come back.
    r = Affine(0, {Digit("r", 1, 8): 1})
    quotient, remainder = parts(8, r + X.times(8))
    assert (quotient, remainder) == (X, r)
    # An odd start lets r cross into the next row.
    assert (r + X.times(8) + Affine(1)).divided(8) is None


def test_equality_is_not_decided_by_the_ends_of_a_range() -> None:
    # Neither end of x - 40 is 0, but 40 is a value.
    assert reached(X, compared(X, Affine(40), operator.eq)).tolist() == [[40, 41]]
    assert reached(X, compared(X, Affine(40), operator.ne)).tolist() == [[0, 40], [41, 96]]


def test_pieces_of_unequal_length_keep_their_gaps() -> None:
    # {0, 1, 3}, again 2 and 4 further on: 6 stays out.
    rest, lowest = parts(4)
    middle = parts(3, rest)[1]
    assert reached(lowest + middle.times(2), compared(lowest, Affine(2), operator.ne)).tolist() == [[0, 6], [7, 8]]
