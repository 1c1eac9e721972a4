"""A run's passes and phases, from its configuration files."""

from pathlib import Path

import pytest

from benchmarks.gpu_program.workload import VALIDATION_IDS, Pass, Workload
from components.errors import UserError
from components.scoring import Windows
from tests.support import ROOT


def workload(*names: str) -> Workload:
    return Workload([ROOT / "configs" / f"{name}.yaml" for name in names])


def test_the_record() -> None:
    record = workload("record_10l")
    assert record.name == "record_10l"
    assert (record.network_config.vocab_size, record.network_config.num_layers) == (1024, 10)
    assert (record.num_ranks, record.micro_batches, record.seconds) == (8, 1, 600)
    assert record.phases == {"train": 0.85, "qat": pytest.approx(0.15)}
    assert record.passes == ["train", "qat", "val", "score"]
    assert record.describe("train") == Pass("train", 48, 2048, 2048, looping=False)
    assert record.describe("val") == Pass("val", 64, 2048, 2048, looping=False)
    assert record.describe("score") == Pass("score", 64, 2048, 64, looping=False)
    assert [record.describe(name).is_training for name in record.passes] == [True, True, False, False]


def test_a_rung_with_a_loop() -> None:
    rung = workload("record_sp8192_ttt")
    assert rung.network_config.vocab_size == 8192
    assert rung.seconds == 588
    assert rung.phases == {"train": 0.35, "loop": 0.65}
    assert [rung.describe(name).looping for name in ("train", "loop", "qat", "score")] == [False, True, True, True]


def test_a_rung_that_trains_on_what_it_scores() -> None:
    rung = workload("record_sp8192_ttt")
    assert rung.passes == ["train", "loop", "val", "score", "ttt"]
    # A chunk of 32,768 targets is 16 sequences, fewer than a batch may have; each of 8 ranks takes 2.
    assert rung.describe("ttt") == Pass("ttt", 2, 2048, 2048, looping=True)
    assert rung.describe("ttt").is_training
    assert rung.num_test_steps == 3 * (-(-40_542_207 // 32_768) - 1)
    plain = workload("record_sp8192_loop")
    assert "ttt" not in plain.passes
    assert plain.num_test_steps == 0
    with pytest.raises(UserError, match="record_sp8192_loop does not train"):
        plain.describe("ttt")


def test_overlays_override() -> None:
    one = workload("record_10l", "one_gpu")
    assert one.name == "record_10l+one_gpu"
    assert (one.num_ranks, one.micro_batches, one.seconds) == (1, 8, 4800)
    assert one.network_config == workload("record_10l").network_config


def test_an_overlay_fuses_the_mlps_of_a_network_whose_activation_does_not_leak() -> None:
    mlps = [
        [block.mlp.fused for block in workload(*names).network().blocks]
        for names in (("record_10l",), ("record_10l", "fused_mlp"))
    ]
    assert mlps == [[False] * 10, [True] * 10]
    with pytest.raises(UserError, match=r"model\.mlp_leak is 0\.5"):
        workload("record_sp4096", "fused_mlp").network()


@pytest.mark.parametrize("name", ["record_10l", "record_sp4096", "record_sp8192_loop"])
def test_windows_of_the_final_score(name: str) -> None:
    run = workload(name)
    num_ids = VALIDATION_IDS[run.network_config.vocab_size]
    assert run.num_windows == len(Windows(num_ids - 1, 2048, 64))


def test_only_late_qat_sees_stored_weights() -> None:
    record = workload("record_10l")
    network = record.network()
    record.set_faking(network, True)
    faked = {name for name, module in network.named_modules() if getattr(module, "fake", None) is not None}
    # Every matrix of the blocks but the last keys, which are kept.
    assert faked == {
        f"blocks.{i}.{part}"
        for i in range(10)
        for part in ("attn.c_q", "attn.c_k", "attn.c_v", "attn.proj", "mlp.fc", "mlp.proj")
    } - {"blocks.9.attn.c_k"}
    record.set_faking(network, False)
    assert not network.is_faking


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {", "is not YAML"),
        ("- 1", "holds no settings"),
        ("model: {vocab_size: 64}", "no complete run, for lack of 'optimizer'"),
        ("model: {vocab_size: 64}\ndata: 3", "no complete run"),
        ("model: {vocab_size: null}\ndata: {tokenizer_path: my.model}", r"my.model does not state .* model.vocab_size"),
    ],
)
def test_unusable_files_are_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        Workload([file])
    assert "\n" not in str(error.value)
