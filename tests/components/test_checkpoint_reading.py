"""A checkpoint is read whole or refused in a sentence, whoever wrote it."""

import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.checkpoint_reading import read_checkpoint
from components.errors import UserError
from tests.components.support import at_most_a_gibibyte_more, mutate


def sound() -> dict[str, Any]:
    return {
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {"network.w": torch.arange(12.0).view(3, 4)},
        "hyper_parameters": {"compile": False, "optimizer": {"matrix_lr": 0.02}},
        "callbacks": {"Clock": {"elapsed": 1.5}},
        "loops": {},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.ones(3, 4)}}}],
    }


def refused(path: Path, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.endswith("; give --ckpt_path a .ckpt file that a fit saved.")


def test_a_sound_one_is_read_whole(tmp_path: Path) -> None:
    torch.save(sound(), tmp_path / "a.ckpt")
    found = read_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(found["state_dict"]["network.w"], sound()["state_dict"]["network.w"])
    assert found["callbacks"] == sound()["callbacks"]


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("where", ["callbacks", "state_dict", "hyper_parameters"])
def test_code_in_it_does_not_run(where: str, tmp_path: Path) -> None:
    content, path, mark = sound(), tmp_path / "evil.ckpt", tmp_path / "owned"
    content[where]["evil"] = Evil(mark)
    torch.save(content, path)
    refused(path, "is not a checkpoint or is damaged")
    path.write_bytes(pickle.dumps(content))
    refused(path, "is not a checkpoint or is damaged")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: [1, 2], "it holds no dictionary"),
        (lambda content: {**content, "state_dict": [1]}, "it has no state_dict"),
        (lambda content: {name: content[name] for name in content if name != "loops"}, "it has no loops"),
        (lambda content: {**content, "optimizer_states": {}}, "it has no optimizer_states"),
        (lambda content: {**content, "state_dict": {"network.w": 3}}, "its weights are not tensors"),
        (lambda content: {**content, "hyper_parameters": {"_class_path": "os.X"}}, "its settings name a class"),
        (
            lambda content: {**content, "hyper_parameters": {"optimizer": {"class_path": "antigravity.X"}}},
            "its settings name a class",
        ),
        (
            lambda content: {**content, "state_dict": {"network.w": torch.ones(1).expand(10**6, 10**6)}},
            "its tensors are larger than the file",
        ),
    ],
)
def test_what_is_no_checkpoint_of_a_fit_is_refused(
    change: Callable[[dict[str, Any]], object], reason: str, tmp_path: Path
) -> None:
    torch.save(change(sound()), tmp_path / "a.ckpt")
    with at_most_a_gibibyte_more():
        refused(tmp_path / "a.ckpt", re.escape(f"is not a checkpoint of a fit ({reason})"))


def test_a_compressed_entry_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    torch.save(sound(), tmp_path / "a.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "a.ckpt") as source,
        zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in source.namelist():
            bomb.writestr(entry, bytes(10**8) if entry.endswith("data/0") else source.read(entry))
    refused(tmp_path / "bomb.ckpt", "is not a checkpoint or is damaged")


def test_flipped_bits_and_truncations_are_refused_or_change_nothing(tmp_path: Path) -> None:
    torch.save(sound(), tmp_path / "a.ckpt")
    data, generator, num_refused = (tmp_path / "a.ckpt").read_bytes(), np.random.default_rng(0), 0
    path = tmp_path / "changed.ckpt"
    for _ in range(300):
        path.write_bytes(mutate(data, generator))
        try:
            with at_most_a_gibibyte_more():
                found = read_checkpoint(path)
        except UserError:
            num_refused += 1
        else:
            assert torch.equal(found["state_dict"]["network.w"], sound()["state_dict"]["network.w"])
    assert num_refused > 150
