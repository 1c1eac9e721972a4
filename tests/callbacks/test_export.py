"""What export writes, what it scores, and how it leaves the network."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from callbacks.export import Export
from cli import main
from components.artifact import MAX_BYTES, load_state, read_artifact
from components.errors import UserError
from components.gpt import GPT, GPTConfig
from components.quantization import Storage, quantize, storage_of
from components.scoring import ScoringConfig, WindowLoader, score
from lightning_modules.gpt import GPTModule
from tests.callbacks.support import NARROW, WIDE, FinishedRun, small_module, trainer_of
from tests.support import ROOT, bytes_by_id, fit_arguments, random_ids, scalars_of, summary_of


def windows(stride: int) -> WindowLoader:
    return WindowLoader(
        random_ids(60),
        bytes_by_id(torch.arange(1024) % 3 + 1),
        seq_len=16,
        stride=stride,
        windows_per_batch=4,
        device=torch.device("cpu"),
    )


def trainer_in(folder: Path) -> SimpleNamespace:
    scoring = ScoringConfig(seq_len=16, stride=4)
    return trainer_of(log_dir=str(folder), datamodule=SimpleNamespace(windows=windows, scoring=scoring))


@pytest.fixture(scope="module")
def wide() -> GPTModule:
    return small_module(**WIDE, num_kv_heads=4)


@pytest.fixture(scope="module")
def exported(wide: GPTModule, tmp_path_factory: pytest.TempPathFactory) -> tuple[Export, Path]:
    folder = tmp_path_factory.mktemp("exported")
    export = Export(filename="some.golf")
    export.on_fit_end(trainer_in(folder), wide)
    return export, folder / "some.golf"


def test_the_file_holds_each_weight_as_the_quantizer_stores_it(exported: tuple[Export, Path], wide: GPTModule) -> None:
    artifact = read_artifact(exported[1])
    assert artifact.settings == dataclasses.asdict(wide.network.config)
    assert artifact.tensors.keys() == wide.network.state_dict().keys()
    storages = set()
    for name, weight in wide.network.state_dict().items():
        expected = quantize(weight, storage_of(name, weight.shape, num_layers=2))
        assert torch.equal(artifact.tensors[name].values, expected.values), name
        if expected.scales is not None:
            assert torch.equal(artifact.tensors[name].scales, expected.scales), name
        storages.add(expected.storage)
    assert storages == {Storage.INT5, Storage.INT6, Storage.FLOAT16}


@pytest.mark.parametrize(
    ("keep", "storages"), [(0, ["int6", "int6"]), (1, ["int6", "float16"]), (2, ["float16", "float16"])]
)
def test_key_projections_of_the_last_blocks_stay_float16(
    keep: int, storages: list[str], wide: GPTModule, tmp_path: Path
) -> None:
    Export(keep_last_k_fp16=keep).on_fit_end(trainer_in(tmp_path), wide)
    tensors = read_artifact(tmp_path / "model.golf").tensors
    assert [tensors[f"blocks.{i}.attn.c_k.weight"].storage for i in (0, 1)] == storages


def test_the_network_has_its_float_weights_back(wide: GPTModule, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in wide.network.state_dict().items()}
    Export().on_fit_end(trainer_in(tmp_path), wide)
    for name, tensor in wide.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_result_is_the_score_of_what_stands_in_the_file(exported: tuple[Export, Path], wide: GPTModule) -> None:
    export, path = exported
    artifact = read_artifact(path)
    loaded = GPT(GPTConfig(**artifact.settings))
    loaded.load_state_dict(load_state(artifact.tensors))
    facts = export.summary(trainer_in(path.parent))
    of_file, of_floats = score(loaded, windows(4)), score(wide.network, windows(4))
    assert facts["val_loss"] == pytest.approx(of_file.loss, rel=1e-6)
    assert facts["val_bpb"] == pytest.approx(of_file.bits_per_byte, rel=1e-6)
    assert facts["pre_quant_val_loss"] == pytest.approx(of_floats.loss, rel=1e-6)
    assert facts["pre_quant_val_bpb"] == pytest.approx(of_floats.bits_per_byte, rel=1e-6)
    assert abs(of_file.loss - of_floats.loss) > 1e-4 * of_floats.loss  # or the lines above could not tell them apart
    assert (facts["tokens_scored"], facts["bytes_scored"]) == (59, sum(i % 3 + 1 for i in random_ids(60)[1:].tolist()))
    assert facts["windows"] == 12  # the first 16 targets, then 43 more by 4
    assert facts["artifact"] == str(path)


def test_sizes_are_the_files_and_all_sources_that_the_commands_need(exported: tuple[Export, Path]) -> None:
    export, path = exported
    facts = export.summary(trainer_in(path.parent))
    packages = ("callbacks", "components", "datamodules", "lightning_modules")
    sources = [ROOT / "cli.py", *(file for package in packages for file in (ROOT / package).rglob("*.py"))]
    assert facts["bytes_model"] == path.stat().st_size
    assert facts["bytes_code"] == sum(len(file.read_bytes()) for file in sources)
    assert facts["bytes_total"] == facts["bytes_model"] + facts["bytes_code"]


def test_the_cap_is_in_decimal_megabytes() -> None:
    assert MAX_BYTES == 16_000_000


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
        Export().on_fit_end(trainer_in(tmp_path / "run"), module)
    assert list(tmp_path.rglob("*")) == []


def test_a_run_that_did_not_export_has_nothing_to_say(tmp_path: Path) -> None:
    assert Export().summary(trainer_in(tmp_path)) == {}
    assert Export().excess() is None


def test_a_negative_number_of_blocks_is_refused() -> None:
    with pytest.raises(UserError, match=r"export\.keep_last_k_fp16 is -1"):
        Export(keep_last_k_fp16=-1)


def test_tensorboard_shows_error_and_size_of_every_tensor(finished_run: FinishedRun) -> None:
    num_bytes = 0.0
    for name in finished_run.cli.model.network.state_dict():
        [error] = scalars_of(finished_run.folder, f"export_error/{name}").values()
        assert 0 <= error <= 2**-11, name  # in so narrow a network each is float16, rounded by half a unit at most
        [tensor_bytes] = scalars_of(finished_run.folder, f"export_bytes/{name}").values()
        assert tensor_bytes > 0, name
        num_bytes += tensor_bytes
    # The rest of the file describes the tensors and their distributions.
    assert 0.5 < num_bytes / summary_of(finished_run.folder)["bytes_model"] < 1


def test_a_run_over_the_cap_fails_with_everything_saved(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callbacks.export.MAX_BYTES", 1000)
    settings = {**NARROW, "trainer.max_steps": 2, "trainer.val_check_interval": 16, "late_qat.start_fraction": 0.5}
    with pytest.raises(SystemExit) as exit:
        main(fit_arguments(data_folder, tmp_path, **settings))
    summary = summary_of(tmp_path)
    assert exit.value.code == (
        f"error: {summary['artifact']} and the code take {summary['bytes_total']:,} bytes, "
        f"{summary['bytes_total'] - 1000:,} over the cap of 1,000; everything is saved, but make the network smaller "
        "to submit it."
    )
    assert read_artifact(summary["artifact"]).settings["model_dim"] == 64
    [checkpoint] = tmp_path.rglob("*.ckpt")
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 2
