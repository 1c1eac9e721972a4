"""What the ladder sets of the optimizer: decays by group, row normalization, and Muon's coefficients."""

import pytest

from components.errors import UserError
from components.muon import NEWTON_SCHULZ, POLAR_EXPRESS
from components.optimizer import OptimizerConfig, build_optimizer
from tests.support import tiny_network


def test_tables_and_scalars_decay_by_weights_of_their_own() -> None:
    config = OptimizerConfig(matrix_weight_decay=0.095, embedding_weight_decay=0.085, scalar_weight_decay=0.02)
    groups = build_optimizer(tiny_network(), config).param_groups
    assert {group["name"]: group["weight_decay"] for group in groups} == {
        "matrices": 0.095,
        "embeddings": 0.085,
        "scalars": 0.02,
    }


def test_muon_is_told_its_iterations() -> None:
    [group, *_] = build_optimizer(tiny_network(), OptimizerConfig(newton_schulz_steps=3)).param_groups
    assert (group["coefficients"], group["row_normalize"]) == ((NEWTON_SCHULZ,) * 3, False)
    config = OptimizerConfig(newton_schulz_steps=4, newton_schulz_coefficients="polar_express", row_normalize=True)
    [group, *_] = build_optimizer(tiny_network(), config).param_groups
    assert (group["coefficients"], group["row_normalize"]) == (POLAR_EXPRESS[:4], True)


def test_more_iterations_than_polar_express_has_are_refused() -> None:
    with pytest.raises(UserError, match="newton_schulz_steps is 6, and polar_express has coefficients for 5"):
        OptimizerConfig(newton_schulz_steps=6, newton_schulz_coefficients="polar_express")
