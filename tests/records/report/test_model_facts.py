"""What an artifact holds: kinds, bytes, errors and histograms, on a small network with every storage."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from components.artifact import read_artifact, write_artifact
from components.weights_file import write_weights
from records.report.model_facts import SMALL, TensorFacts, bytes_by_kind, read_model_facts
from tests.support import recipe_stored, tiny_network

SETTINGS = {"num_layers": 2, "model_dim": 272, "num_heads": 4, "bigram_vocab_size": 1100, "bigram_dim": 64}


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[TensorFacts]]:
    path = tmp_path_factory.mktemp("model") / "model.golf"
    network = tiny_network(**SETTINGS)
    state = dict(network.named_parameters())
    write_weights(path.with_suffix(".safetensors"), asdict(network.config), state)
    write_artifact(path, asdict(network.config), recipe_stored(state))
    return path, read_model_facts(path, path.with_suffix(".safetensors"))


def test_kinds_and_layers(facts: tuple[Path, list[TensorFacts]]) -> None:
    found = {tensor.name: (tensor.kind, tensor.layer, tensor.storage) for tensor in facts[1]}
    assert found["blocks.1.mlp.fc.weight"] == ("MLP", 1, "int5")
    assert found["blocks.0.attn.c_q.weight"] == ("attention", 0, "int6")
    assert found["tok_emb.weight"] == ("token table", None, "float16")
    assert found["bigram.embed.weight"][0] == "bigram table"
    assert found["blocks.0.attn.q_gain"] == (SMALL, 0, "float16")


def test_bytes_add_up_to_what_the_file_has_beside_its_headers(facts: tuple[Path, list[TensorFacts]]) -> None:
    path, tensors = facts
    total = sum(bytes_by_kind(tensors).values())
    assert total == pytest.approx(sum(tensor.num_bytes for tensor in tensors))
    assert 0.9 * path.stat().st_size < total < path.stat().st_size


def test_histograms_count_every_value_in_its_bar(facts: tuple[Path, list[TensorFacts]]) -> None:
    stored = read_artifact(facts[0]).tensors
    for tensor in facts[1]:
        values = stored[tensor.name].values.flatten().double().numpy()
        assert len(tensor.edges) == len(tensor.counts) + 1
        assert tensor.num_values == values.size
        assert np.histogram(values, bins=tensor.edges)[0].tolist() == tensor.counts
    [codes] = [tensor for tensor in facts[1] if tensor.name == "blocks.0.mlp.fc.weight"]
    assert codes.edges[0] == stored[codes.name].values.min() - 0.5


def test_errors_are_those_of_the_float_weights(facts: tuple[Path, list[TensorFacts]]) -> None:
    path, tensors = facts
    state = dict(tiny_network(**SETTINGS).named_parameters())
    [tensor] = [tensor for tensor in tensors if tensor.name == "blocks.0.mlp.fc.weight"]
    weight, stored = state[tensor.name], read_artifact(path).tensors[tensor.name]
    expected = torch.linalg.vector_norm(stored.dequantize() - weight) / torch.linalg.vector_norm(weight)
    assert tensor.error == pytest.approx(expected.item(), rel=1e-5)
    assert all(tensor.error is None for tensor in read_model_facts(path, None))
