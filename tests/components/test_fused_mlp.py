"""The fused MLP's kernel under Triton's interpreter, and what keeps it from running where it cannot."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from components.calibration import collect_hessians
from components.errors import UserError
from components.mlp import MLP
from tests.support import CUDA_PYTHON, ROOT, random_ids, tiny_network

WITH_TRITON = Path(sys.executable) if importlib.util.find_spec("triton") else CUDA_PYTHON
needs_triton = pytest.mark.skipif(
    not WITH_TRITON.exists(),
    reason="no Triton: make gpu-program installs a build of torch with it, or GPU_PROGRAM_PYTHON names its Python",
)


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    ended = subprocess.run(
        [WITH_TRITON, "-m", "tests.components.interpreted_mlp"],
        cwd=ROOT,
        env={"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@needs_triton
@pytest.mark.parametrize("faking", [False, True])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.float16, 2e-3)])
def test_output_and_gradients_are_those_of_the_plain_formula(
    dtype: torch.dtype, limit: float, faking: bool, interpreted: dict[str, Any]
) -> None:
    found = interpreted["off"][f"{dtype}, faking {faking}"]
    assert set(found) == {"y", "x", "fc", "proj"}
    assert max(found.values()) < limit, found


@needs_triton
def test_what_is_not_a_number_stays_none(interpreted: dict[str, Any]) -> None:
    assert interpreted["broken positions"] == [3]


WIDE = {"model_dim": 128, "mlp_mult": 2.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**WIDE, "mlp_leak": 0.5}, "model.mlp_leak is 0.5; set model.fused_mlp to false, or model.mlp_leak to 0."),
        ({"model_dim": 96, "mlp_mult": 8.0}, "64 for the stream and of 256 for the MLP, which are 96 and 768 here"),
        ({"model_dim": 128, "mlp_mult": 3.0}, "which are 128 and 384 here; set it to false, or change model.model_dim"),
    ],
)
def test_a_network_that_the_kernel_cannot_compute_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        tiny_network(**settings).fuse_mlps()


def test_fusing_changes_how_every_block_computes_and_no_weight() -> None:
    network = tiny_network(**WIDE)
    before = network.state_dict().keys()
    network.fuse_mlps()
    assert network.state_dict().keys() == before
    mlps = [module for module in network.modules() if isinstance(module, MLP)]
    assert len(mlps) == 3
    assert all(mlp.fused for mlp in mlps)


def test_calibration_sees_the_inputs_of_both_layers_and_leaves_them_fused() -> None:
    plain, fused = tiny_network(**WIDE), tiny_network(**WIDE)
    fused.fuse_mlps()
    expected, found = (collect_hessians(network, [random_ids(2, 32)]) for network in (plain, fused))
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], hessian) for name, hessian in expected.items())
    assert all(module.fused for module in fused.modules() if isinstance(module, MLP))
