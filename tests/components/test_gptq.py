"""GPTQ against the late record's codes, a textbook form of it, and what it must hold to."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from numpy.typing import NDArray

from components.byte_counts import token_byte_table
from components.calibration import collect_hessians
from components.errors import UserError
from components.gptq import GPTQ
from components.quantization import Nearest, StoredTensor, load_state, store
from components.scorer import SlidingWindows
from components.scoring import WindowLoader
from components.storage import LARGEST_FLOAT16_TENSOR, Storage, StorageRule, assign
from components.tokenizer import load_tokenizer
from datamodules.shards import find_shards, open_shard
from tests.components.golden_calibration import late_batches
from tests.components.golden_networks import LATE, late_network, needs_late
from tests.support import SAMPLE, needs_sample, random_ids, tiny_network

LARGEST_CODE = {Storage.INT5: 15, Storage.INT6: 31, Storage.INT7: 63, Storage.INT8: 127}
LATE_RULES = (
    StorageRule("*", "float16", at_most=LARGEST_FLOAT16_TENSOR),
    StorageRule("tok_emb.weight", "int8"),
    StorageRule("blocks.*", "int6"),
)


def calibrated(hessians: dict[str, torch.Tensor], **settings: object) -> GPTQ:
    quantizer = GPTQ(**settings)
    quantizer.hessians = hessians
    return quantizer


def rounded(
    weight: torch.Tensor, hessian: torch.Tensor, storage: Storage = Storage.INT6, **settings: object
) -> StoredTensor:
    return calibrated({"w": hessian}, **settings).quantize_all({"w": weight}, {"w": storage})["w"]


def random_case(seed: int, rows: int = 24, cols: int = 160) -> tuple[torch.Tensor, torch.Tensor]:
    """A Gaussian matrix, and the Hessian of correlated inputs of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(cols, cols, generator=generator) * torch.rand(cols, generator=generator).add(0.1)
    inputs = torch.randn(4 * cols, cols, generator=generator) @ mixing
    return torch.randn(rows, cols, generator=generator) * 0.05, inputs.T @ inputs


def cost(weight: torch.Tensor, hessian: torch.Tensor, stored: StoredTensor) -> float:
    """Squared error of the product on the inputs that made the Hessian."""
    error = (weight - stored.dequantize()).double()
    return (error @ hessian.double() * error).sum().item()


def different_codes(one: torch.Tensor, other: torch.Tensor) -> float:
    """Share of codes that differ: a machine's last digit may move one code, and then those after it in its row."""
    return (one != other).float().mean().item()


def textbook_codes(weight: torch.Tensor, hessian: torch.Tensor, scales: torch.Tensor, largest: int) -> NDArray[np.int8]:
    """GPTQ as its paper derives it: each column's error is made up for by an inverse of the columns that are left."""
    w, h, s = weight.double().numpy().copy(), hessian.double().numpy().copy(), scales.double().numpy()
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    order = np.argsort(-h.diagonal(), kind="stable")
    h += 0.01 * h.diagonal().mean() * np.eye(len(h))
    codes = np.zeros(w.shape, np.int8)
    for step, column in enumerate(order):
        left = order[step:]
        inverse = np.linalg.inv(h[np.ix_(left, left)])
        code = np.clip(np.round(w[:, column] / s), -largest, largest)
        error = w[:, column] - code * s
        w[:, left] -= error[:, None] * inverse[0] / inverse[0, 0]
        codes[:, column] = code
    return codes


# The numbers


@needs_late
@pytest.mark.parametrize("case", range(3))
def test_the_late_records_cases(case: int) -> None:
    cases = np.load(LATE / "gptq_cases.npz")
    weight, hessian = (torch.from_numpy(cases[f"{case}.{part}"]) for part in ("weight", "hessian"))
    storage = {31: Storage.INT6, 127: Storage.INT8}[int(cases[f"{case}.clip_range"])]
    stored = rounded(weight, hessian, storage, matrix_sigmas=float(cases[f"{case}.clip_sigmas"]))
    assert np.array_equal(stored.scales.numpy(), cases[f"{case}.scales"])
    assert np.array_equal(stored.values.numpy(), cases[f"{case}.codes"])


@needs_late
@needs_sample
def test_the_late_records_network_is_rounded_as_its_script_rounds_it() -> None:
    network = late_network()
    shapes = network.shapes()
    storages = {name: rule.kind for name, rule in assign(shapes, LATE_RULES).items()}
    types = json.loads((LATE / "quantised.json").read_text())["types"]
    assert {name: types[name].split("(")[1][:-1] for name in types} == storages
    # Float64 Hessians: in float32 the last digit, which depends on the machine, moves a few rows' codes.
    quantizer = calibrated(collect_hessians(late_network().double(), late_batches()))
    stored = store(dict(network.named_parameters()), storages, quantizer)
    golden = np.load(LATE / "quantised.npz")
    num_codes = num_different = 0
    for name, storage in storages.items():
        if storage is Storage.FLOAT16:
            continue
        assert np.array_equal(stored[name].scales.numpy(), golden[f"{name}.scale"]), name
        num_codes += stored[name].values.numel()
        num_different += (stored[name].values.numpy() != golden[f"{name}.q"]).sum()
    assert num_codes == sum(golden[entry].size for entry in golden.files if entry.endswith(".q"))
    assert num_different <= num_codes / 10_000


@needs_late
@needs_sample
def test_the_late_records_score_after_calibrating_and_rounding() -> None:
    network = late_network()
    storages = {name: rule.kind for name, rule in assign(network.shapes(), LATE_RULES).items()}
    quantizer = GPTQ()
    quantizer.calibrate(network, late_batches())
    network.load_state_dict(load_state(store(dict(network.named_parameters()), storages, quantizer)))
    case = json.loads((LATE / "eval.json").read_text())["sliding"][0]
    assert case["weights"] == "dequantised"
    [shard] = find_shards(SAMPLE / "datasets" / "fineweb10B_sp1024", "val")
    windows = WindowLoader(
        torch.from_numpy(open_shard(shard)[: case["tokens"]].astype(np.int32)),
        token_byte_table(load_tokenizer(SAMPLE / "tokenizers" / "fineweb_1024_bpe.model")),
        seq_len=case["seq_len"],
        stride=case["stride"],
        windows_per_batch=16,
        device=torch.device("cpu"),
    )
    score = SlidingWindows().score(network, windows)
    assert score.bits_per_byte == pytest.approx(case["val_bpb"], abs=1e-3)


@pytest.mark.parametrize("storage", list(LARGEST_CODE))
def test_codes_are_those_of_the_textbook_form(storage: Storage) -> None:
    weight, hessian = random_case(seed=1, cols=150)
    hessian[:, 7] = hessian[7] = 0
    stored = rounded(weight, hessian, storage)
    expected = textbook_codes(weight, hessian, stored.scales, LARGEST_CODE[storage])
    assert np.array_equal(stored.values.numpy(), expected)
    assert not stored.values[:, 7].any()


@pytest.mark.parametrize(("storage", "sigmas"), [(Storage.INT5, 6.0), (Storage.INT7, 14.0), (Storage.INT8, 20.0)])
def test_scales_by_standard_deviations(storage: Storage, sigmas: float) -> None:
    weight, hessian = random_case(seed=2)
    expected = sigmas * np.std(weight.double().numpy(), axis=1, ddof=1) / LARGEST_CODE[storage]
    scales = rounded(weight, hessian, storage, matrix_sigmas=sigmas).scales
    assert np.allclose(scales.numpy(), expected, rtol=2**-11)


@pytest.mark.parametrize("floor", [0.0, 1.0])
@pytest.mark.parametrize("storage", [Storage.INT6, Storage.INT7])
def test_scales_by_the_row_maximum_are_those_of_nearest_rounding(storage: Storage, floor: float) -> None:
    weight, hessian = random_case(seed=3)
    weight[::2] *= 30
    stored = rounded(weight, hessian, storage, matrix_sigmas=0.0, row_max_floor=floor)
    nearest = Nearest(floor).quantize_all({"w": weight}, {"w": storage})["w"]
    assert torch.equal(stored.scales, nearest.scales)
    assert np.array_equal(stored.values, textbook_codes(weight, hessian, stored.scales, LARGEST_CODE[storage]))


def test_codes_are_symmetric_even_where_making_up_for_errors_asks_for_more() -> None:
    # Two inputs that are nearly the same. The deviation is sqrt(1/2), the scale 0.0228, and 1 is 43.8 of it: of the
    # 12.8 that are clipped, the second column takes 0.99, which damping leaves of the inputs' likeness.
    hessian = torch.tensor([[1.0, 0.999], [0.999, 0.9985]])
    weight = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    assert rounded(weight, hessian, matrix_sigmas=1.0).values.tolist() == [[-31, -13], [31, 13]]


# What it is for


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("storage", "sigmas"), [(Storage.INT5, 6.2), (Storage.INT6, 12.85), (Storage.INT7, 14), (Storage.INT8, 0)]
)
def test_products_are_closer_than_after_rounding_to_nearest(storage: Storage, sigmas: float, seed: int) -> None:
    weight, hessian = random_case(seed)
    stored = rounded(weight, hessian, storage, matrix_sigmas=float(sigmas))
    codes = torch.round(weight / stored.scales.float()[:, None]).clamp(-LARGEST_CODE[storage], LARGEST_CODE[storage])
    nearest = StoredTensor(storage, codes.to(torch.int8), stored.scales)
    assert cost(weight, hessian, stored) < 0.8 * cost(weight, hessian, nearest)


def test_inputs_that_are_alike_leave_nothing_to_gain() -> None:
    weight, _ = random_case(seed=4)
    stored = rounded(weight, torch.eye(weight.size(1)))
    assert torch.equal(stored.values.float(), torch.round(weight / stored.scales.float()[:, None]))


def test_a_network_of_more_products_than_one_shape() -> None:
    network = tiny_network(num_layers=2, model_dim=64, bigram_vocab_size=128)
    quantizer = GPTQ()
    quantizer.calibrate(network, [random_ids(4, 64, seed=seed) for seed in range(2)])
    storages = {name: Storage.INT6 for name, p in network.named_parameters() if name.endswith(".weight")}
    matrices = {name: network.get_parameter(name).detach() for name in storages}
    before = {name: matrix.clone() for name, matrix in (matrices | quantizer.hessians).items()}
    together = quantizer.quantize_all(matrices, storages)
    assert together.keys() == matrices.keys()
    for name, matrix in matrices.items():
        [alone] = quantizer.quantize_all({name: matrix}, storages).values()
        assert torch.equal(together[name].scales, alone.scales), name
        assert different_codes(together[name].values, alone.values) < 0.02, name
    for name, tensor in before.items():
        assert torch.equal(tensor, (matrices | quantizer.hessians)[name]), "it changed what it was given"


def test_a_table_that_no_product_multiplies_by_is_rounded_to_nearest() -> None:
    weight, hessian = random_case(seed=5)
    stored = calibrated({"w": hessian}, row_max_floor=0.5).quantize_all(
        {"bigram.embed.weight": weight, "w": weight}, {"bigram.embed.weight": Storage.INT6, "w": Storage.INT6}
    )
    nearest = Nearest(0.5).quantize_all({"t": weight}, {"t": Storage.INT6})["t"]
    assert torch.equal(stored["bigram.embed.weight"].values, nearest.values)
    assert not torch.equal(stored["w"].values, nearest.values)


@pytest.mark.parametrize("name", ["tok_emb.weight", "lm_head.weight"])
def test_the_table_has_a_rule_of_its_own(name: str) -> None:
    weight, hessian = random_case(seed=6)
    matrices, storages = {name: weight, "w": weight}, {name: Storage.INT8, "w": Storage.INT8}
    hessians = {name: hessian, "w": hessian}
    stored = calibrated(hessians, matrix_sigmas=10.0, table_sigmas=20.0).quantize_all(matrices, storages)
    assert torch.allclose(stored[name].scales.float(), 2 * stored["w"].scales.float(), rtol=2**-10)
    left_out = calibrated(hessians, calibrate_table=False).quantize_all(matrices, storages)
    nearest = Nearest().quantize_all(matrices, storages)
    assert torch.equal(left_out[name].values, nearest[name].values)
    assert torch.equal(left_out[name].scales, nearest[name].scales)
    assert not torch.equal(left_out["w"].values, nearest["w"].values)


def test_a_row_of_zeros_stays_one() -> None:
    weight, hessian = random_case(seed=7)
    weight[3] = 0
    for sigmas in (12.85, 0.0):
        stored = rounded(weight, hessian, matrix_sigmas=sigmas)
        assert stored.is_sound()
        assert not stored.values[3].any()


# Ranks


def _rank(rank: int, world_size: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    network = tiny_network(num_layers=2)
    # One rank has no batch: their number need not be one that the ranks divide.
    hessians = collect_hessians(network, BATCHES[rank::world_size])
    stored = calibrated(hessians).quantize_all(*_matrices(network))
    torch.save(
        (hessians, {name: (tensor.values, tensor.scales) for name, tensor in stored.items()}), f"{folder}/{rank}.pt"
    )
    dist.destroy_process_group()


BATCHES = [random_ids(2, 64, seed=seed) for seed in range(2)]


def _matrices(network: torch.nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, Storage]]:
    matrices = {name: p.detach() for name, p in network.named_parameters() if name.endswith(".weight")}
    return matrices, {name: Storage.INT8 if name == "tok_emb.weight" else Storage.INT6 for name in matrices}


@pytest.mark.slow
def test_ranks_share_the_work_and_end_with_the_same(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_rank, (3, port, str(tmp_path)), nprocs=3)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(3)]
    network = tiny_network(num_layers=2)
    alone = collect_hessians(network, BATCHES)
    hessians, stored = found[0]
    for name, hessian in alone.items():
        assert torch.allclose(hessians[name], hessian, rtol=1e-4, atol=1e-5 * hessian.abs().max().item()), name
        assert all(torch.equal(other[name], hessians[name]) for other, _ in found)
    expected = calibrated(hessians).quantize_all(*_matrices(network))
    for name, tensor in expected.items():
        for _, others in found:
            assert torch.equal(others[name][0], stored[name][0])
            assert torch.equal(others[name][1], stored[name][1])
        assert different_codes(stored[name][0], tensor.values) < 0.02, name
        assert torch.equal(stored[name][1], tensor.scales), name


# Mistakes


@pytest.mark.parametrize("batches", [0, -1])
def test_calibration_batches_of_0_are_refused(batches: int) -> None:
    with pytest.raises(
        UserError,
        match=rf"^export\.quantizer\.calibration_batches is {batches}, and GPTQ cannot round without calibration; set",
    ):
        GPTQ(calibration_batches=batches)


@pytest.mark.parametrize("setting", ["matrix_sigmas", "table_sigmas"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_sigmas_that_mean_nothing_are_refused(setting: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"^export\.quantizer\.{setting} is {value}; set how many standard deviations"):
        GPTQ(**{setting: value})


def test_a_floor_that_is_no_magnitude_is_refused() -> None:
    with pytest.raises(UserError, match=r"^export\.quantizer\.row_max_floor is -1; set the least magnitude"):
        GPTQ(row_max_floor=-1)


def test_inputs_that_were_not_finite_are_named() -> None:
    weight, hessian = random_case(seed=8)
    hessian[2, 3] = torch.nan
    with pytest.raises(
        UserError, match=r"^What the network multiplied w by was not finite on training data, so it can"
    ):
        rounded(weight, hessian)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e38])
@pytest.mark.parametrize("sigmas", [12.85, 0.0])
def test_weights_that_are_not_finite_are_named(value: float, sigmas: float) -> None:
    weight, hessian = random_case(seed=9)
    weight[2, 3] = value
    quantizer = calibrated({"w": hessian}, matrix_sigmas=sigmas)
    with pytest.raises(UserError, match=r"^w holds values that are not finite or too large for float16"):
        store({"w": weight}, {"w": Storage.INT6}, quantizer)


def test_it_neither_rounds_uncalibrated_nor_fakes() -> None:
    weight, _ = random_case(seed=10)
    with pytest.raises(AssertionError, match="calibrated first"):
        GPTQ().quantize_all({"w": weight}, {"w": Storage.INT6})
    with pytest.raises(AssertionError, match="late QAT must refuse"):
        GPTQ().fake_quantize(weight, Storage.INT6)
