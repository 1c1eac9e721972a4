"""What export writes, what it scores, and how it leaves the network."""

import dataclasses
import signal
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.common import find
from callbacks.export import Export
from callbacks.signals import Signals, Stopped
from cli import main
from components.artifact import read_artifact
from components.errors import UserError
from components.gpt import GPT, GPTConfig
from components.quantization import load_state
from components.scorer import ScoringPass, SlidingWindows
from components.scoring import Score, WindowLoader
from components.storage import RECIPE, Storage, StorageRule, keep_last_keys
from components.weights_file import read_weights
from lightning_modules.gpt import GPTModule
from tests.callbacks.support import MLP_INT5, WIDE, small_module, trainer_of
from tests.callbacks.toy import Zeros
from tests.support import (
    NARROW,
    bytes_by_id,
    fit_arguments,
    random_ids,
    recipe_stored,
    summary_of,
)


def windows(stride: int = 4) -> WindowLoader:
    return WindowLoader(
        random_ids(60),
        bytes_by_id(torch.arange(1024) % 3 + 1),
        seq_len=16,
        stride=stride,
        windows_per_batch=4,
        device=torch.device("cpu"),
    )


def score(network: GPT, stride: int = 4) -> Score:
    return SlidingWindows().score(network, windows(stride))


def trainer_in(folder: Path, callbacks: Sequence[Any] = (), **settings: Any) -> SimpleNamespace:
    scorer = SlidingWindows()
    data = SimpleNamespace(
        final_pass=lambda title: ScoringPass(windows(), scorer, title),
        validation_pass=lambda title: ScoringPass(windows(stride=16), scorer, title),
        scorer=scorer,
    )
    return trainer_of([*callbacks, Signals()], log_dir=str(folder), datamodule=data, **settings)


def export_of(**settings: Any) -> Export:
    export = Export(**settings)
    export.count_code = lambda: 51_234
    return export


@pytest.fixture(scope="module")
def wide() -> GPTModule:
    return small_module(**WIDE, num_kv_heads=4)


@pytest.fixture(scope="module")
def exported(wide: GPTModule, tmp_path_factory: pytest.TempPathFactory) -> tuple[Export, Path]:
    folder = tmp_path_factory.mktemp("exported")
    export = export_of(filename="some.golf")
    export.on_fit_end(trainer_in(folder), wide)
    return export, folder / "some.golf"


def test_the_file_holds_each_weight_as_the_quantizer_stores_it(exported: tuple[Export, Path], wide: GPTModule) -> None:
    artifact = read_artifact(exported[1])
    assert artifact.settings == dataclasses.asdict(wide.network.config)
    assert artifact.tensors.keys() == wide.network.state_dict().keys()
    storages = set()
    recipe = recipe_stored(wide.network.state_dict())
    for name, expected in recipe.items():
        assert torch.equal(artifact.tensors[name].values, expected.values), name
        if expected.scales is not None:
            assert torch.equal(artifact.tensors[name].scales, expected.scales), name
        storages.add(expected.storage)
    assert storages == {Storage.INT5, Storage.INT6, Storage.FLOAT16}
    assert artifact.rules == (*keep_last_keys(1), *RECIPE)


def test_a_signal_in_the_export_leaves_a_whole_file_that_has_not_been_scored(tmp_path: Path) -> None:
    trainer, export = trainer_in(tmp_path), export_of()
    find(trainer, Signals)._received = signal.SIGTERM
    with pytest.raises(Stopped, match="143") as stopped:
        export.on_fit_end(trainer, small_module())
    assert f"validate --artifact {tmp_path / 'model.golf'}" in str(stopped.value.sentence)
    assert len(read_artifact(tmp_path / "model.golf").tensors) > 0
    assert export.float_score is None


@pytest.mark.parametrize(
    ("keep", "storages"), [(0, ["int6", "int6"]), (1, ["int6", "float16"]), (2, ["float16", "float16"])]
)
def test_key_projections_of_the_last_blocks_stay_float16(keep: int, storages: list[str], tmp_path: Path) -> None:
    storage = (StorageRule("blocks.*.attn.*.weight", "int6"), StorageRule("*", "float16"))
    export_of(keep_last_k_fp16=keep, storage=storage).on_fit_end(trainer_in(tmp_path), small_module())
    tensors = read_artifact(tmp_path / "model.golf").tensors
    assert [tensors[f"blocks.{i}.attn.c_k.weight"].storage for i in (0, 1)] == storages


def test_the_network_has_its_float_weights_back(tmp_path: Path) -> None:
    module = small_module()
    before = {name: tensor.clone() for name, tensor in module.network.state_dict().items()}
    export_of(storage=MLP_INT5).on_fit_end(trainer_in(tmp_path), module)
    for name, tensor in module.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_result_is_the_score_of_what_stands_in_the_file(exported: tuple[Export, Path], wide: GPTModule) -> None:
    export, path = exported
    artifact = read_artifact(path)
    loaded = GPT(GPTConfig(**artifact.settings))
    loaded.load_state_dict(load_state(artifact.tensors))
    facts = export.summary(trainer_in(path.parent))
    of_file, of_floats = score(loaded), score(wide.network)
    assert facts["val_loss"] == pytest.approx(of_file.loss, rel=1e-6)
    assert facts["val_bpb"] == pytest.approx(of_file.bits_per_byte, rel=1e-6)
    assert facts["pre_quant_val_loss"] == pytest.approx(of_floats.loss, rel=1e-6)
    assert facts["pre_quant_val_bpb"] == pytest.approx(of_floats.bits_per_byte, rel=1e-6)
    assert abs(of_file.loss - of_floats.loss) > 1e-4 * of_floats.loss  # or the lines above could not tell them apart
    assert (facts["tokens_scored"], facts["bytes_scored"]) == (59, sum(i % 3 + 1 for i in random_ids(60)[1:].tolist()))
    assert facts["exported_bpb"] == pytest.approx(score(loaded, stride=16).bits_per_byte, rel=1e-6)
    assert facts["windows"] == 12  # the first 16 targets, then 43 more by 4
    assert facts["artifact"] == str(path)


def test_loggers_get_the_result(wide: GPTModule, tmp_path: Path) -> None:
    logger = Mock()
    export = export_of()
    export.on_fit_end(trainer_in(tmp_path, loggers=[logger], global_step=9), wide)
    assert all(call.kwargs["step"] == 9 for call in logger.log_metrics.call_args_list)
    logged = {tag: value for call in logger.log_metrics.call_args_list for tag, value in call.args[0].items()}
    facts = export.summary(trainer_in(tmp_path))
    assert logged == {
        "result/bits_per_byte": facts["val_bpb"],
        "result/loss": facts["val_loss"],
        "result/exported": facts["exported_bpb"],
    }


def test_sizes_are_the_files_and_the_codes_that_was_counted(exported: tuple[Export, Path]) -> None:
    export, path = exported
    facts = export.summary(trainer_in(path.parent))
    assert facts["bytes_model"] == path.stat().st_size
    assert facts["bytes_code"] == 51_234
    assert facts["bytes_total"] == facts["bytes_model"] + 51_234


def test_the_float_weights_lie_beside_it(exported: tuple[Export, Path], wide: GPTModule) -> None:
    found = read_weights(exported[1].with_name("some.safetensors"))
    assert found.settings == dataclasses.asdict(wide.network.config)
    state = wide.network.state_dict()
    assert found.weights.keys() == state.keys()
    for name, weight in found.weights.items():
        assert torch.equal(weight, state[name]), name


def test_a_rule_decides_how_a_weight_is_stored(tmp_path: Path) -> None:
    storage = (StorageRule("blocks.0.*.weight", "int8"), StorageRule("*", "float16"))
    export_of(keep_last_k_fp16=0, storage=storage).on_fit_end(trainer_in(tmp_path), small_module())
    artifact = read_artifact(tmp_path / "model.golf")
    assert artifact.rules == storage
    in_block = {f"blocks.0.attn.{name}.weight" for name in ("c_q", "c_k", "c_v", "proj")}
    in_block |= {f"blocks.0.mlp.{name}.weight" for name in ("fc", "proj")}
    assert {name for name, tensor in artifact.tensors.items() if tensor.storage is Storage.INT8} == in_block


@pytest.fixture(scope="module")
def zeroed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Export, SimpleNamespace]:
    """An export by a quantizer of a user's, with its trainer, in which a callback listened."""
    export = export_of(keep_last_k_fp16=0, storage=MLP_INT5, quantizer=Zeros())
    trainer = trainer_in(tmp_path_factory.mktemp("zeroed"), callbacks=[Mock(spec=["on_event"])])
    export.on_fit_end(trainer, small_module())
    return export, trainer


def test_another_quantizer_rounds_the_matrices_and_only_them(zeroed: tuple[Export, SimpleNamespace]) -> None:
    tensors = read_artifact(zeroed[0].artifact_path(zeroed[1])).tensors
    zeros = {name for name, tensor in tensors.items() if not tensor.dequantize().any()}
    assert zeros == {f"blocks.{i}.mlp.{name}.weight" for i in (0, 1) for name in ("fc", "proj")}


def test_what_it_does_is_announced_and_described(zeroed: tuple[Export, SimpleNamespace]) -> None:
    export, trainer = zeroed
    facts = export.summary(trainer)
    first, second, third = (call.args[1].sentence for call in trainer.callbacks[0].on_event.call_args_list)
    assert first == f"exported {facts['bytes_model']} bytes, with code 51234 bytes {facts['bytes_total']} bytes"
    assert second.endswith(f"val_loss {facts['pre_quant_val_loss']:.8f} val_bpb {facts['pre_quant_val_bpb']:.8f}")
    assert f"val_loss {facts['val_loss']:.8f} val_bpb {facts['val_bpb']:.8f} scored in" in third
    assert export.describe(trainer) == [
        "Stored by Zeros rounding, entropy-coded (int5: blocks.*.mlp.*.weight; float16: *)."
    ]


def test_a_weight_without_a_rule_is_refused_before_training(wide: GPTModule, tmp_path: Path) -> None:
    export = export_of(storage=[rule for rule in RECIPE if rule.storage != "int5"])
    with pytest.raises(
        UserError, match=r"No storage rule names blocks\.0\.mlp\.fc\.weight, a tensor of 221,952 elements"
    ):
        export.setup(trainer_in(tmp_path), wide, TrainerFn.FITTING)
    export.setup(trainer_in(tmp_path), wide, TrainerFn.VALIDATING)  # nothing is exported


def test_a_rule_without_a_weight_is_refused_before_training(wide: GPTModule, tmp_path: Path) -> None:
    export = export_of(storage=[*RECIPE, StorageRule("blocks.*.mpl.*", "int5")])
    with pytest.raises(UserError, match=r"^The storage rule for blocks\.\*\.mpl\.\* matches no weight of this network"):
        export.setup(trainer_in(tmp_path), wide, TrainerFn.FITTING)
    with pytest.raises(UserError, match=r"^export\.keep_last_k_fp16 is 3 and the network has 2 blocks; set it to at "):
        export_of(keep_last_k_fp16=3).setup(trainer_in(tmp_path), wide, TrainerFn.FITTING)
    export_of(keep_last_k_fp16=2).setup(trainer_in(tmp_path), wide, TrainerFn.FITTING)


def test_over_the_cap_it_says_by_how_much(exported: tuple[Export, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    export, path = exported
    total = export.summary(trainer_in(path.parent))["bytes_total"]
    monkeypatch.setattr("callbacks.export.MAX_BYTES", total)
    assert export.excess() is None
    monkeypatch.setattr("callbacks.export.MAX_BYTES", total - 1234)
    sentence = export.excess()
    assert str(path) in sentence
    assert f"{total:,} bytes, 1,234 over the cap of {total - 1234:,}" in sentence


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_weights_that_float16_cannot_hold_are_named_and_no_file_is_left(value: float, tmp_path: Path) -> None:
    module = small_module()
    with torch.no_grad():
        module.network.blocks[1].mlp.fc.weight[3, 5] = value
    with pytest.raises(UserError, match=r"blocks\.1\.mlp\.fc\.weight holds values that are not finite or too large"):
        export_of().on_fit_end(trainer_in(tmp_path / "run"), module)
    assert list(tmp_path.rglob("*")) == []


def test_a_run_that_did_not_export_has_no_result(tmp_path: Path) -> None:
    assert Export().summary(trainer_in(tmp_path)) == {}
    assert Export().excess() is None


def test_a_negative_number_of_blocks_is_refused() -> None:
    with pytest.raises(UserError, match=r"export\.keep_last_k_fp16 is -1"):
        Export(keep_last_k_fp16=-1)


@pytest.mark.parametrize("filename", ["model", "model.safetensors"])
def test_a_name_that_the_float_weights_would_take_is_refused(filename: str) -> None:
    with pytest.raises(UserError, match=rf"export\.filename is {filename}; give it a suffix other than"):
        Export(filename=filename)


def test_a_run_over_the_cap_fails_with_everything_saved(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callbacks.export.MAX_BYTES", 1000)
    settings = {**NARROW, "trainer.max_steps": 2, "trainer.val_check_interval": 16, "late_qat.start_fraction": 0.5}
    with pytest.raises(SystemExit) as exit:
        main(fit_arguments(data_folder, tmp_path, **settings), count_code=lambda config: 700)
    summary = summary_of(tmp_path)
    assert exit.value.code == (
        f"error: {summary['artifact']} and the code take {summary['bytes_total']:,} bytes, "
        f"{summary['bytes_total'] - 1000:,} over the cap of 1,000; everything is saved, but make the network smaller "
        "to submit it."
    )
    assert read_artifact(summary["artifact"]).settings["model_dim"] == 64
    assert (tmp_path / "lightning_logs" / "version_0" / "model.safetensors").is_file()
    [checkpoint] = tmp_path.rglob("*.ckpt")
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 2
