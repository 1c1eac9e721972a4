"""Reading a checkpoint that may be damaged, or a stranger's: no code of it runs, and it takes no more than its size."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from components.errors import UserError

_PARTS = {
    "pytorch-lightning_version": str,
    "state_dict": dict,
    "hyper_parameters": dict,
    "callbacks": dict,
    "loops": dict,
    "optimizer_states": list,
}
"""What every checkpoint of a fit has, and of what type."""


class _Unsound(Exception):  # noqa: N818
    """Why a file is no checkpoint."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's contents, checked, with its tensors on the CPU and mapped from the file.

    Every byte is checked against the archive's checksums, which torch does not do.

    Raises:
        UserError: The file is missing, damaged or not a checkpoint of a fit, or would take more memory than its size.
    """
    remedy = "give --ckpt_path a .ckpt file that a fit saved"
    if not path.is_file():
        raise UserError(f"There is no checkpoint file {path}; {remedy}.")
    try:
        _check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises many undocumented types on malformed bytes
        raise UserError(f"{path} is not a checkpoint or is damaged; {remedy}.") from error
    try:
        return _checked(content, path.stat().st_size)
    except _Unsound as error:
        raise UserError(f"{path} is not a checkpoint of a fit ({error}); {remedy}.") from error


def _check_archive(path: Path) -> None:
    """Reject an archive that is damaged, or whose entries are larger than the file."""
    with zipfile.ZipFile(path) as archive:
        # torch.save never compresses, and a compressed entry could be of any size.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise _Unsound
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size or archive.testzip():
            raise _Unsound


def _checked(content: Any, num_bytes: int) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise _Unsound("it holds no dictionary")
    for name, kind in _PARTS.items():
        if not isinstance(content.get(name), kind):
            raise _Unsound(f"it has no {name}")
    if not all(isinstance(weight, Tensor) for weight in content["state_dict"].values()):
        raise _Unsound("its weights are not tensors")
    # Settings may not name classes: to look one up is to import, and so to run, its module.
    if "class_path" in _keys(content["hyper_parameters"]) or "_class_path" in _keys(content["hyper_parameters"]):
        raise _Unsound("its settings name a class")
    # A tensor of stride 0 can have any number of elements.
    tensors = [leaf for leaf in tree_leaves(content) if isinstance(leaf, Tensor)]
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors) > num_bytes:
        raise _Unsound("its tensors are larger than the file")
    return content


def _keys(tree: Any) -> Iterable[str]:
    """The keys of nested dictionaries."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield key
            yield from _keys(value)
