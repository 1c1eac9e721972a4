"""Scales by the row maximum: the records' floor under it, and int7."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.errors import UserError
from components.quantization import Nearest, Quantizer, StoredTensor, fake_quantize, quantize
from components.storage import Storage, StorageRule
from tests.components.golden_networks import MID, mean_loss, mid_network, needs_mid, read_json
from tests.support import needs_compiler

CASES = MID / "quantiser_cases.npz"
LINEARS = ("c_q", "c_k", "c_v", "proj", "fc")
LARGEST_CODE = {Storage.INT5: 15, Storage.INT6: 31, Storage.INT7: 63}
RECORD = Nearest(row_max_floor=1.0)
FLOORS = (0.0, 0.3, 1.0)


def random_weight(seed: int, rows: int, cols: int) -> torch.Tensor:
    """Gaussian rows whose scales span four decades around 1, one row of zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator)
    weight *= 10 ** (torch.rand(rows, 1, generator=generator) * 4 - 3)
    weight[rows // 2] = 0
    return weight


def stored_by(quantizer: Quantizer, weight: torch.Tensor, storage: Storage) -> StoredTensor:
    return quantizer.quantize_all({"w": weight}, {"w": storage})["w"]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().view(torch.int32)


weights = st.builds(
    random_weight, seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 40), cols=st.sampled_from([1, 2, 17, 64, 333])
)


@needs_mid
@pytest.mark.parametrize("case", range(3))
def test_a_floor_of_one_gives_the_int6_of_the_record_of_21_march(case: int) -> None:
    cases = np.load(CASES)
    stored = stored_by(RECORD, torch.from_numpy(cases[f"{case}.weight"]), Storage.INT6)
    assert np.array_equal(stored.values.numpy(), cases[f"{case}.row_max.codes"])
    assert np.array_equal(stored.scales.numpy(), cases[f"{case}.row_max.scales"])


@needs_mid
@pytest.mark.parametrize("floor", FLOORS)
@pytest.mark.parametrize("case", range(3))
def test_int8_tables_are_the_records_whatever_the_floor(case: int, floor: float) -> None:
    cases = np.load(CASES)
    stored = stored_by(Nearest(floor), torch.from_numpy(cases[f"{case}.weight"]), Storage.INT8)
    assert np.array_equal(stored.values.numpy(), cases[f"{case}.int8.codes"])
    assert np.array_equal(stored.scales.numpy(), cases[f"{case}.int8.scales"])


@settings(deadline=None)
@given(weight=weights, storage=st.sampled_from(list(LARGEST_CODE)), floor=st.sampled_from(FLOORS))
def test_scales_and_codes_follow_the_formula(weight: torch.Tensor, storage: Storage, floor: float) -> None:
    largest = LARGEST_CODE[storage]
    scales = (weight.abs().amax(dim=1).clamp_min(floor) / largest).clamp_min(2**-14).half()
    codes = torch.round(weight / scales.float()[:, None])
    # The float16 of a scale is off by at most 2**-11 of it: the record of 1 April asks for a symmetric range, and no
    # row maximum leaves it.
    assert codes.abs().max() <= largest
    stored = stored_by(Nearest(floor), weight, storage)
    assert torch.equal(stored.scales, scales)
    assert torch.equal(stored.values, codes.to(torch.int8))
    assert stored.is_sound()


@settings(deadline=None)
@given(weight=weights, storage=st.sampled_from([*LARGEST_CODE, Storage.INT8]), floor=st.sampled_from(FLOORS))
def test_fake_quantize_is_what_export_dequantizes(weight: torch.Tensor, storage: Storage, floor: float) -> None:
    quantizer = Nearest(floor)
    stored = stored_by(quantizer, weight, storage)
    assert torch.equal(bits(quantizer.fake_quantize(weight, storage)), bits(stored.dequantize()))


@needs_compiler
@pytest.mark.parametrize(("storage", "floor"), [(Storage.INT6, 1.0), (Storage.INT7, 0.0), (Storage.INT7, 0.3)])
def test_compiled_fake_quantize_is_what_export_dequantizes(storage: Storage, floor: float) -> None:
    quantizer = Nearest(floor)
    torch._dynamo.reset()
    compiled = torch.compile(quantizer.fake_quantize, fullgraph=True, dynamic=False)
    for seed in range(10):
        weight = random_weight(seed, 48, 333).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            result = compiled(weight, storage)
        assert torch.equal(bits(result), bits(stored_by(quantizer, weight, storage).dequantize()))
        upstream = torch.randn(48, 333)
        result.backward(upstream)
        assert torch.equal(weight.grad, upstream)


def test_int7_has_twice_the_steps_of_int6_and_half_those_of_int8() -> None:
    weight = torch.linspace(-1, 1, 1001)[None]
    codes = {storage: quantize(weight, storage).values for storage in (Storage.INT6, Storage.INT7, Storage.INT8)}
    assert {storage: len(found.unique()) for storage, found in codes.items()} == {"int6": 63, "int7": 127, "int8": 255}


@pytest.mark.parametrize("code", [-65, 64])
def test_an_int7_code_beyond_seven_bits_is_unsound(code: int) -> None:
    assert not StoredTensor(Storage.INT7, torch.tensor([[code]], dtype=torch.int8), torch.ones(1).half()).is_sound()
    within = max(min(code, 63), -64)
    assert StoredTensor(Storage.INT7, torch.tensor([[within]], dtype=torch.int8), torch.ones(1).half()).is_sound()


@pytest.mark.parametrize("floor", [-0.1, float("nan"), float("inf"), 65505.0])
def test_a_floor_that_is_no_magnitude_is_refused(floor: float) -> None:
    with pytest.raises(UserError, match=r"^export\.quantizer\.row_max_floor is .*; set the least magnitude that a row"):
        Nearest(floor)


def test_the_function_has_the_floor_too() -> None:
    weight = torch.tensor([[0.5, -0.25]], requires_grad=True)
    # 0.5 and 0.25 over 1 / 15 are 7.5 and 3.75.
    assert quantize(weight, Storage.INT5, 1.0).values.tolist() == [[8, -4]]
    assert (
        fake_quantize(weight, Storage.INT5, 1.0).tolist() == quantize(weight, Storage.INT5, 1.0).dequantize().tolist()
    )


@needs_mid
def test_late_qat_with_the_floor_gives_the_record_of_21_march_its_loss() -> None:
    network = mid_network(mlp_leak=0.0, xsa_last_n=2)
    rules = [
        StorageRule("*emb*.weight", "float16"),
        *(StorageRule(f"*.{name}.weight", "int6", qat=True) for name in LINEARS),
    ]
    network.enable_fake_quantization([*rules, StorageRule("*", "float16")], RECORD)
    golden = read_json(MID, "forward_gradients.json")["earlier_scripts_same_weights"]
    expected = golden["2026-03-21 (relu^2, XSA last 2, no value embedding)"]["mean_loss_int6_fake_quantised"]
    assert mean_loss(network, MID) == pytest.approx(expected, abs=1e-4)
