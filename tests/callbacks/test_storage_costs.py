"""What storing the weights costs, beside the artifact itself."""

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from callbacks.export import Export
from callbacks.storage_costs import StorageCosts
from components.artifact import write_artifact
from tests.callbacks.support import WIDE, small_module, trainer_of
from tests.support import recipe_stored


def test_loggers_get_error_and_bytes_of_each_storage(tmp_path: Path) -> None:
    module, export, logger = small_module(**WIDE, num_kv_heads=4), Export(), Mock()
    state = module.network.state_dict()
    export.stored = recipe_stored(state)
    StorageCosts().on_fit_end(trainer_of([export], loggers=[logger], global_step=9), module)
    [call] = logger.log_metrics.call_args_list
    [logged] = call.args
    assert call.kwargs == {"step": 9}
    assert len(logged) == 6
    for storage in ("int5", "int6", "float16"):
        of_kind = [name for name, tensor in export.stored.items() if tensor.storage == storage]
        whole = torch.cat([state[name].flatten() for name in of_kind])
        lost = torch.cat([(state[name] - export.stored[name].dequantize()).flatten() for name in of_kind])
        assert logged[f"quantization/error_{storage}"] == pytest.approx((lost.norm() / whole.norm()).item(), rel=1e-4)
    write_artifact(tmp_path / "model.golf", {"vocab_size": 1024}, export.stored)
    sizes = [value for tag, value in logged.items() if tag.startswith("quantization/bytes_")]
    # The rest of the file describes the tensors and their distributions.
    assert 0.5 < sum(sizes) / (tmp_path / "model.golf").stat().st_size < 1


def test_other_ranks_log_nothing() -> None:
    logger, costs = Mock(), StorageCosts()
    costs.on_fit_end(trainer_of([Export()], loggers=[logger], is_global_zero=False), small_module())
    assert logger.mock_calls == []
    assert costs.costs == {}
