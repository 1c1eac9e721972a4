"""The statistical model of stored weights: lossless, small, and its account of the bytes is the coder's."""

import numpy as np
import pytest
import torch
import zstandard

from components.quantization import StoredTensor, quantize
from components.rans import CorruptStreamError
from components.storage import Storage
from components.weight_coding import TensorForm, coded_sizes, decode_tensors, encode_tensors, model_bytes
from tests.components.support import assert_same, gaussian_state, small_tensors
from tests.support import recipe_stored


def forms_of(tensors: list[StoredTensor]) -> list[TensorForm]:
    return [TensorForm(tensor.storage, tuple(tensor.values.shape)) for tensor in tensors]


def order_zero_bytes(tensors: list[StoredTensor]) -> float:
    """Entropy of each tensor's codes and of each byte plane of its float16 values, without what their tables take."""
    total = 0.0
    for tensor in tensors:
        halves = tensor.values if tensor.scales is None else tensor.scales
        planes = [halves.numpy().view(np.uint8)[..., byte::2] for byte in (0, 1)]
        for plane in [*planes, *([] if tensor.scales is None else [tensor.values.numpy().view(np.uint8)])]:
            counts = np.bincount(plane.ravel()).astype(float)
            counts = counts[counts > 0]
            total += (counts * np.log2(counts.sum() / counts)).sum() / 8
    return total


def test_tensors_of_every_form_survive_in_their_order() -> None:
    tensors = small_tensors()
    stored = list(tensors.values())
    model, values = encode_tensors(stored)
    assert len(model) == model_bytes(forms_of(stored))
    decoded = decode_tensors(forms_of(stored), model, values)
    assert_same(dict(zip(tensors, decoded, strict=True)), tensors)


def test_nothing_is_coded_as_nothing() -> None:
    model, values = encode_tensors([])
    assert decode_tensors([], model, values) == []


def test_gaussian_weights_take_less_than_their_order_zero_entropy() -> None:
    tensors = recipe_stored(gaussian_state(2, 512, 1024, 4096))
    stored = list(tensors.values())
    assert {tensor.storage for tensor in stored} == set(Storage) - {Storage.INT7}  # which test_artifact_versions holds
    model, values = encode_tensors(stored)
    assert len(zstandard.compress(model, 22)) + len(values) < 0.999 * order_zero_bytes(stored)
    decoded = decode_tensors(forms_of(stored), model, values)
    assert_same(dict(zip(tensors, decoded, strict=True)), tensors)


@pytest.mark.parametrize("lines", ["rows", "columns"])
def test_lines_of_different_widths_are_told_apart(lines: str) -> None:
    # Every other line is uniform over 16 codes, or 4 bits, the rest over 255, or 7.994 bits; mixed, they take 6.8 each.
    generator = torch.Generator().manual_seed(0)
    narrow = torch.randint(-8, 8, (256, 512), generator=generator)
    wide = torch.randint(-127, 128, (256, 512), generator=generator)
    codes = torch.stack([narrow, wide], dim=1).flatten(0, 1).to(torch.int8)
    codes = codes if lines == "rows" else codes.T.contiguous()
    _, values = encode_tensors([StoredTensor(Storage.INT8, codes, torch.ones(512).half())])
    assert len(values) == pytest.approx(512 * 512 * (4 + 7.994) / 2 / 8, rel=0.01)


def test_the_sizes_of_the_tensors_add_up_to_the_stream() -> None:
    stored = list(recipe_stored(gaussian_state(1, 256, 1024, 1024)).values())
    _, values = encode_tensors(stored)
    # The account is of exact logarithms; the coder is within a thousandth of them, and its lanes have first states.
    assert sum(coded_sizes(stored)) == pytest.approx(len(values), rel=1e-3, abs=200)


def test_a_tensor_of_one_value_costs_nothing() -> None:
    noise = quantize(torch.randn(300, 300, generator=torch.Generator().manual_seed(0)), Storage.INT5)
    zeros = StoredTensor(Storage.INT8, torch.zeros(300, 300, dtype=torch.int8), torch.ones(300).half())
    sizes = coded_sizes([noise, zeros])
    assert sizes[0] > 300 * 300 * 3 / 8
    assert sizes[1] < 300


@pytest.mark.parametrize("damage", ["short", "long", "another shape"])
def test_values_of_other_tensors_are_refused(damage: str) -> None:
    stored = list(small_tensors().values())
    model, values = encode_tensors(stored)
    forms = forms_of(stored)
    if damage == "another shape":
        forms[0] = TensorForm(Storage.INT5, (40, 6))  # as many codes and levels, but of 40 rows' scales
        model += bytes(model_bytes(forms) - len(model))
    values = {"short": values[:-2], "long": values + bytes(2)}.get(damage, values)
    with pytest.raises(CorruptStreamError):
        decode_tensors(forms, model, values)
