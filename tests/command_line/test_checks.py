"""What is filled in and what is refused before anything is built."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch

from cli import main
from command_line.checks import check_accelerator
from components.errors import UserError
from tests.support import TINY, summary_of, validate_arguments, write_shard

NETWORK = {f"model.{name}": value for name, value in {**TINY, "num_layers": 2}.items()}


@pytest.fixture
def other_vocabulary(tmp_path: Path) -> Path:
    """A data folder whose tokenizer has 300 pieces, documents beginning with id 2."""
    folder = tmp_path / "other"
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["a few words to make pieces of", "and a few more words, for other pieces"]),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        unk_id=0,
        eos_id=1,
        bos_id=2,
        minloglevel=2,
    )
    write_shard(folder / "fineweb_val_000000.bin", np.arange(300))
    return folder


def test_the_vocabulary_is_the_tokenizers(other_vocabulary: Path, tmp_path: Path) -> None:
    arguments = validate_arguments(other_vocabulary, tmp_path / "runs", **NETWORK)
    cli = main([*arguments, "--model.vocab_size=null", "--model.bos_id=null"])
    config = cli.model.network.config
    assert (config.vocab_size, config.bos_id) == (300, 2)
    assert cli.model.network.tok_emb.weight.shape == (300, 64)
    assert summary_of(tmp_path / "runs")["tokens_scored"] == 299


def test_a_bos_id_that_is_given_stays(other_vocabulary: Path, tmp_path: Path) -> None:
    settings = {**NETWORK, "model.vocab_size": 300, "model.bos_id": 7}
    cli = main(validate_arguments(other_vocabulary, tmp_path / "runs", **settings))
    assert cli.model.network.config.bos_id == 7


def test_another_vocabulary_than_the_tokenizers_is_refused(other_vocabulary: Path, tmp_path: Path) -> None:
    arguments = validate_arguments(other_vocabulary, tmp_path / "runs", **{**NETWORK, "model.vocab_size": 512})
    with pytest.raises(SystemExit, match=r"error: .* has 300 pieces where 512 are configured"):
        main(arguments)


def test_apples_gpu_is_refused_or_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"trainer\.accelerator is mps, and Apple's GPUs have no float64"):
        check_accelerator(Namespace(accelerator="mps"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    trainer = Namespace(accelerator="auto")
    check_accelerator(trainer)
    assert trainer.accelerator == "cpu"
