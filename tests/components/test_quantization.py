"""The quantizer: the same values in training, in export and under the compiler."""

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.errors import UserError
from components.quantization import (
    INT8_PERCENTILE,
    Nearest,
    Quantizer,
    StoredTensor,
    fake_quantize,
    load_state,
    quantize,
    store,
)
from components.storage import Storage
from tests.support import needs_compiler, needs_gpu

QUANTIZED = (Storage.INT5, Storage.INT6, Storage.INT8)
LARGEST_CODE = {Storage.INT5: 15, Storage.INT6: 31, Storage.INT8: 127}


def random_weight(seed: int, rows: int, cols: int) -> torch.Tensor:
    """Gaussian rows whose scales span seven decades, one row of zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    scales = 10 ** (torch.rand(rows, 1, generator=generator) * 7 - 5)
    weight = torch.randn(rows, cols, generator=generator) * scales
    weight[rows // 2] = 0
    return weight


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().view(torch.int32)


weights = st.builds(
    random_weight, seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 40), cols=st.sampled_from([1, 2, 3, 17, 64, 333])
)


@settings(deadline=None)
@given(weight=weights, storage=st.sampled_from([Storage.INT5, Storage.INT6]))
def test_codes_and_scales_follow_the_recipe(weight: torch.Tensor, storage: Storage) -> None:
    largest = LARGEST_CODE[storage]
    scales = (weight.abs().amax(dim=1) / largest).clamp_min(2**-14).half()
    codes = torch.clamp(torch.round(weight / scales.float()[:, None]), -largest - 1, largest)
    stored = quantize(weight, storage)
    assert torch.equal(stored.values, codes.to(torch.int8))
    assert torch.equal(stored.scales, scales)


@pytest.mark.parametrize("storage", [Storage.INT5, Storage.INT6])
def test_quotients_next_to_a_half_are_rounded_as_exact_division_rounds_them(storage: Storage) -> None:
    # Each row holds the float32 neighbors of every (k + 1/2) * scale; multiplying by a float32 reciprocal moves some.
    largest = LARGEST_CODE[storage]
    scales = torch.arange(1024, 2048)[:, None] / 2**15
    halves = (torch.arange(-largest, largest) + 0.5) * scales
    neighbors = [torch.nextafter(halves, torch.full_like(halves, toward)) for toward in (-9.0, 9.0)]
    weight = torch.cat([*neighbors, largest * scales], dim=1)
    codes = quantize(weight, storage).values
    assert torch.equal(codes, torch.round(weight / scales).to(torch.int8))


@settings(deadline=None)
@given(weight=weights)
def test_int8_clips_at_the_percentile(weight: torch.Tensor) -> None:
    clip = torch.quantile(weight.abs(), INT8_PERCENTILE, dim=1)
    scales = (clip / 127).clamp_min(1 / 127)
    codes = torch.round(torch.clamp(weight, -clip[:, None], clip[:, None]) / scales[:, None])
    stored = quantize(weight, Storage.INT8)
    assert torch.equal(stored.values, codes.to(torch.int8))
    assert torch.equal(stored.scales, scales.half())


def test_int8_takes_a_matrix_too_large_for_torch_quantile() -> None:
    weight = torch.zeros(1100, 16_384)
    weight[:, :2] = torch.tensor([127.0, 100.0])
    # The clip is 127 - 1.6e-6 * 16383 * (127 - 100) = 126.29, and 100 / 126.29 * 127 = 100.56.
    assert quantize(weight, Storage.INT8).values[:, :3].unique(dim=0).tolist() == [[127, 101, 0]]


@settings(deadline=None)
@given(weight=weights, storage=st.sampled_from(QUANTIZED))
def test_fake_quantize_is_what_export_dequantizes(weight: torch.Tensor, storage: Storage) -> None:
    assert torch.equal(bits(fake_quantize(weight, storage)), bits(quantize(weight, storage).dequantize()))


@needs_compiler
@pytest.mark.parametrize("storage", QUANTIZED)
def test_compiled_fake_quantize_is_what_export_dequantizes(storage: Storage) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(fake_quantize, fullgraph=True, dynamic=False)
    for seed in range(20):
        weight = random_weight(seed, 48, 333).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            result = compiled(weight, storage)
        assert torch.equal(bits(result), bits(quantize(weight, storage).dequantize()))
        upstream = torch.randn(48, 333)
        result.backward(upstream)
        assert torch.equal(weight.grad, upstream)
    with torch.no_grad():
        weight[5, 7] = torch.nan
    with torch.autocast("cpu", torch.bfloat16):
        assert compiled(weight, storage)[5].isnan().all()


@needs_compiler
@pytest.mark.parametrize("storage", [Storage.INT5, Storage.INT6])
def test_compiled_rounds_halves_as_eager_does(storage: Storage) -> None:
    # Rows that put every quotient on a half, and maxima whose scale is a tie between two float16 values.
    largest = LARGEST_CODE[storage]
    scales = torch.tensor([2.0**-7, 3 * 2.0**-9, 1.0 + 2.0**-10, 1.0 + 2.0**-11, 1.0 + 3 * 2.0**-11])
    quotients = torch.cat([torch.arange(-largest, largest) + 0.5, torch.tensor([float(largest)])])
    weight = scales[:, None] * quotients
    torch._dynamo.reset()
    compiled = torch.compile(fake_quantize, fullgraph=True, dynamic=False)
    assert torch.equal(bits(compiled(weight, storage)), bits(fake_quantize(weight, storage)))
    codes = quantize(weight, storage).values[0]
    assert torch.equal(codes, quotients.round().to(torch.int8))
    assert torch.equal(quantize(weight, storage).scales, scales.half())


@needs_gpu
@pytest.mark.parametrize("storage", QUANTIZED)
def test_cuda_quantizes_as_the_cpu_does(storage: Storage) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(fake_quantize, fullgraph=True, dynamic=False)
    for seed in range(20):
        weight = random_weight(seed, 256, 512)
        expected = bits(quantize(weight, storage).dequantize())
        assert torch.equal(bits(fake_quantize(weight.cuda(), storage).cpu()), expected)
        assert torch.equal(bits(compiled(weight.cuda(), storage).cpu()), expected)


@settings(deadline=None)
@given(weight=weights, storage=st.sampled_from(QUANTIZED))
def test_gradient_goes_straight_through(weight: torch.Tensor, storage: Storage) -> None:
    weight.requires_grad_()
    upstream = torch.randn(weight.shape)
    fake_quantize(weight, storage).backward(upstream)
    assert torch.equal(weight.grad, upstream)


def test_float16_storage_leaves_the_weight_alone() -> None:
    weight = torch.randn(3, 5, requires_grad=True)
    assert fake_quantize(weight, Storage.FLOAT16) is weight
    assert torch.equal(quantize(weight, Storage.FLOAT16).dequantize(), weight.half().float())


@settings(deadline=None)
@given(weight=weights, storage=st.sampled_from([Storage.INT5, Storage.INT6]))
def test_error_is_at_most_half_a_scale(weight: torch.Tensor, storage: Storage) -> None:
    stored = quantize(weight, storage)
    error = (stored.dequantize() - weight).abs().double()
    # The quotient is rounded to float32 before it is rounded to a code: a relative 2**-24 of up to 31.5.
    assert (error <= stored.scales.double()[:, None] * (0.5 + 2e-6)).all()


@settings(deadline=None)
@given(weight=weights, storage=st.sampled_from([Storage.INT5, Storage.INT6]))
def test_quantizing_a_dequantized_weight_changes_nothing(weight: torch.Tensor, storage: Storage) -> None:
    once = quantize(weight, storage)
    twice = quantize(once.dequantize(), storage)
    assert torch.equal(once.values, twice.values)
    assert torch.equal(once.scales, twice.scales)


@settings(deadline=None)
@given(weight=weights)
def test_quantizing_a_dequantized_int8_weight_again_moves_it_by_at_most_a_scale(weight: torch.Tensor) -> None:
    # Codes come from the float32 scale and the clip is below the largest magnitude: not an exact fixed point.
    once = quantize(weight, Storage.INT8)
    twice = quantize(once.dequantize(), Storage.INT8)
    assert (once.values.int() - twice.values.int()).abs().max() <= 1
    assert torch.allclose(once.scales.float(), twice.scales.float(), rtol=2e-3)


@settings(max_examples=20, deadline=None)
@given(storage=st.sampled_from(QUANTIZED), cols=st.integers(1, 9))
def test_zeros_stay_zeros(storage: Storage, cols: int) -> None:
    assert not bits(quantize(torch.zeros(4, cols), storage).dequantize()).any()


@pytest.mark.parametrize("storage", [*QUANTIZED, Storage.FLOAT16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_what_cannot_be_stored_is_not_finite(storage: Storage, value: float) -> None:
    weight = torch.ones(3, 4)
    weight[1, 2] = value
    finite = quantize(weight, storage).dequantize().isfinite().all(dim=1)
    assert finite.tolist() == [True, False, True]


def test_a_stored_tensor_holds_its_parts_to_its_storage() -> None:
    codes = torch.zeros(2, 3, dtype=torch.int8)
    for parts in [
        (Storage.INT5, codes, None),
        (Storage.INT5, codes, torch.ones(3).half()),
        (Storage.INT5, codes, torch.ones(2)),
        (Storage.INT5, codes.short(), torch.ones(2).half()),
        (Storage.INT5, codes[0], torch.ones(3).half()),
        (Storage.FLOAT16, torch.ones(2).half(), torch.ones(2).half()),
        (Storage.FLOAT16, torch.ones(2), None),
    ]:
        with pytest.raises(AssertionError):
            StoredTensor(*parts)


def test_a_tensor_s_bytes_are_those_of_its_values_and_scales() -> None:
    assert quantize(torch.ones(6, 40), Storage.INT5).num_bytes == 6 * 40 + 2 * 6
    assert quantize(torch.ones(6, 40), Storage.FLOAT16).num_bytes == 2 * 6 * 40


# A whole network's weights


def weights_of_every_storage() -> tuple[dict[str, torch.Tensor], dict[str, Storage]]:
    weights = {name: random_weight(seed, 8, 12) for seed, name in enumerate(["z", "five", "six", "eight", "a"])}
    weights["vector"] = torch.randn(5)
    storages = {"five": Storage.INT5, "six": Storage.INT6, "eight": Storage.INT8}
    return weights, {name: storages.get(name, Storage.FLOAT16) for name in weights}


class Halving(Quantizer):
    """Stores half of each matrix, to be told from any that rounds the matrix itself."""

    def __init__(self) -> None:
        self.calls: list[tuple[set[str], set[str]]] = []

    def quantize_all(
        self, matrices: Mapping[str, torch.Tensor], storages: Mapping[str, Storage]
    ) -> dict[str, StoredTensor]:
        self.calls.append((set(matrices), set(storages)))
        return {name: quantize(matrix / 2, storages[name]) for name, matrix in reversed(matrices.items())}

    def fake_quantize(self, weight: torch.Tensor, storage: Storage) -> torch.Tensor:
        return fake_quantize(weight / 2, storage)


def test_each_weight_is_stored_by_its_storage_in_the_order_given() -> None:
    weights, storages = weights_of_every_storage()
    stored = store(weights, storages, Nearest())
    assert list(stored) == list(weights)
    for name, tensor in stored.items():
        expected = quantize(weights[name], storages[name])
        assert tensor.storage is storages[name]
        assert torch.equal(tensor.values, expected.values)
        assert expected.scales is None or torch.equal(tensor.scales, expected.scales)


def test_another_quantizer_rounds_all_matrices_at_once_and_nothing_else() -> None:
    weights, storages = weights_of_every_storage()
    quantizer = Halving()
    loaded = load_state(store(weights, storages, quantizer))
    assert quantizer.calls == [({"five", "six", "eight"}, {"five", "six", "eight"})]
    assert list(loaded) == list(weights)
    for name, weight in loaded.items():
        share = 1 if storages[name] is Storage.FLOAT16 else 2
        assert torch.equal(weight, quantize(weights[name] / share, storages[name]).dequantize()), name


def test_stored_weights_are_loaded_as_float32() -> None:
    loaded = load_state(store(*weights_of_every_storage(), Nearest()))
    assert {weight.dtype for weight in loaded.values()} == {torch.float32}


@pytest.mark.parametrize("storage", [*QUANTIZED, Storage.FLOAT16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e38])
def test_weights_that_are_not_finite_are_not_stored(storage: Storage, value: float) -> None:
    weight = torch.ones(3, 4)
    weight[2, 3] = value
    with pytest.raises(
        UserError, match=r"^blocks\.0\.mlp\.fc\.weight holds values that are not finite or too large for"
    ):
        store(
            {"gate": torch.ones(2), "blocks.0.mlp.fc.weight": weight},
            {"gate": Storage.FLOAT16, "blocks.0.mlp.fc.weight": storage},
            Nearest(),
        )
