"""The DataModule: what each rank trains on and scores from a folder of shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from components.byte_counts import token_byte_table
from components.errors import UserError
from components.scorer import Scorer, ScoringPass, SlidingWindows
from components.scoring import ScoringConfig, WindowLoader
from components.tokenizer import load_tokenizer
from datamodules.shards import find_shards
from datamodules.shuffled import ShuffledLoader
from datamodules.stream import SpanLoader, StreamLoader, TokenStream, to_device
from datamodules.tokenizer import check_vocabulary


class FineWeb(LightningDataModule):
    """Stream a folder's train shards and score its validation shards.

    An optimizer step reads the next ``train_micro_batches`` micro-batches of the stream, for any number of ranks. Each
    rank accumulates over its share. Checkpoints include the stream's position.

    Args:
        path: Folder with fineweb_train_*.bin and fineweb_val_*.bin.
        tokenizer_path: The SentencePiece model that made the shards.
        train_batch_tokens: Tokens per optimizer step over all ranks.
        train_seq_len: Tokens per training sequence.
        train_micro_batches: Micro-batches per optimizer step over all ranks, a multiple of the number of ranks.
        order: How the train shards are read: ``in_order`` from start to end, or ``shuffled``, whole sequences in
            random order, each once per pass.
        shuffle_seed: The seed of the shuffled order.
        scoring: The windows used to score validation text.
        scorer: What computes a result; validation during a fit is plain scoring.
    """

    def __init__(
        self,
        path: str = "data/datasets/fineweb10B_sp1024",
        tokenizer_path: str = "data/tokenizers/fineweb_1024_bpe.model",
        train_batch_tokens: int = 786432,
        train_seq_len: int = 2048,
        train_micro_batches: int = 8,
        order: Literal["in_order", "shuffled"] = "in_order",
        shuffle_seed: int = 0,
        scoring: ScoringConfig = ScoringConfig(),
        scorer: Scorer = SlidingWindows(),
    ) -> None:
        super().__init__()
        for name, value in (("train_seq_len", train_seq_len), ("train_micro_batches", train_micro_batches)):
            if value < 1:
                raise UserError(f"data.{name} is {value}; set it to at least 1.")
        if shuffle_seed < 0:
            raise UserError(f"data.shuffle_seed is {shuffle_seed}; set it to at least 0.")
        self.path = Path(path)
        self.tokenizer_path = Path(tokenizer_path)
        self.train_batch_tokens = train_batch_tokens
        self.train_seq_len = train_seq_len
        self.train_micro_batches = train_micro_batches
        self.order = order
        self.shuffle_seed = shuffle_seed
        self.scoring = scoring
        self.scorer = scorer
        self.vocab_size = 0  # until the tokenizer is loaded
        self._start_position = 0
        self._start_step = 0
        self._train_loader: StreamLoader | None = None

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence that the network will see."""
        return max(self.train_seq_len, self.scoring.seq_len)

    def setup(self, stage: str) -> None:
        """Open the data and set the trainer's gradient accumulation for the number of ranks.

        Raises:
            UserError: A shard or the tokenizer cannot be read, they do not match, or the batch does not divide into
                micro-batches for the ranks.
        """
        assert self.trainer is not None
        self.scorer.check(self.scoring.seq_len)
        self.tokenizer = load_tokenizer(self.tokenizer_path)
        self.vocab_size = len(self.tokenizer)
        self._val_ids = self._read_validation_ids()
        self._byte_table = token_byte_table(self.tokenizer)
        if stage == TrainerFn.FITTING:
            self._train_loader = self._open_train_loader()
            self._set_accumulation()

    def _read_validation_ids(self) -> Tensor:
        assert self.trainer is not None
        shards = TokenStream(find_shards(self.path, "val"), self.vocab_size)
        wanted = min(len(shards), self.scoring.max_tokens or len(shards))
        if wanted < 2:
            raise UserError(
                f"The validation shards in {self.path} hold {wanted} ids, and scoring needs at least two; "
                "download or prepare them again."
            )
        ids = np.array(shards.take(0, wanted), dtype=np.int32)
        check_vocabulary(ids, self.vocab_size, self.path)
        # One copy on the device, shared by all loaders.
        return torch.from_numpy(ids).to(self.trainer.strategy.root_device)

    def _open_train_loader(self) -> StreamLoader:
        assert self.trainer is not None
        settings: dict[str, Any] = {
            "stream": TokenStream(find_shards(self.path, "train"), self.vocab_size),
            "position": self._start_position,
            "batch_tokens": self.train_batch_tokens,
            "micro_batches": self.train_micro_batches,
            "seq_len": self.train_seq_len,
            "rank": self.trainer.global_rank,
            "world_size": self.trainer.world_size,
            "pin_memory": self.trainer.strategy.root_device.type == "cuda",
        }
        if self.order == "shuffled":
            return ShuffledLoader(**settings, seed=self.shuffle_seed)
        return SpanLoader(**settings)

    def _set_accumulation(self) -> None:
        assert self.trainer is not None
        derived = self.train_micro_batches // self.trainer.world_size
        if self.trainer.accumulate_grad_batches not in (1, derived):
            raise UserError(
                f"trainer.accumulate_grad_batches is {self.trainer.accumulate_grad_batches}, but "
                f"{self.train_micro_batches} micro-batches over {self.trainer.world_size} ranks make {derived}; leave "
                "it out, or change data.train_micro_batches."
            )
        self.trainer.accumulate_grad_batches = derived

    def train_dataloader(self) -> StreamLoader:
        """Yield this rank's micro-batches endlessly."""
        assert self._train_loader is not None
        return self._train_loader

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Copy a micro-batch as one buffer; a scoring pass moves its own windows."""
        return batch if isinstance(batch, ScoringPass) else to_device(batch, device)

    def val_dataloader(self) -> OneBatch:
        """A validation's one batch: plain scoring during a fit, the final scoring for ``validate``."""
        assert self.trainer is not None
        if self.trainer.state.fn != TrainerFn.FITTING:
            return OneBatch(self.final_pass("scoring"))
        return OneBatch(self.validation_pass("validation"))

    def validation_pass(self, title: str) -> ScoringPass:
        """The scoring of a fit's validations; ``title`` labels its progress bar."""
        windows = self._windows(self._val_ids, self.scoring.val_stride or self.scoring.seq_len)
        return ScoringPass(windows, SlidingWindows(), title)

    def validation_prompt(self, num_tokens: int) -> list[int]:
        """The first ids of the validation text, at most ``num_tokens``."""
        ids: list[int] = self._val_ids[:num_tokens].tolist()
        return ids

    def final_pass(self, title: str) -> ScoringPass:
        """The scoring that gives a run's result; ``title`` labels its progress bar."""
        return ScoringPass(self._windows(self._val_ids, self.scoring.stride), self.scorer, title)

    def example_pass(self) -> ScoringPass:
        """A scoring of dummy ids with every batch shape that validation uses, the same on every rank."""
        stride = self.scoring.val_stride or self.scoring.seq_len
        ids = torch.arange(self.scoring.seq_len + stride + 1, dtype=torch.int32) % self.vocab_size
        return ScoringPass(self._windows(ids, stride, shared=False), SlidingWindows(), "warming up")

    def _windows(self, ids: Tensor, stride: int, shared: bool = True) -> WindowLoader:
        """Windows of a text at a stride, on this rank's device; split over the ranks, or all of them."""
        assert self.trainer is not None
        return WindowLoader(
            ids,
            self._byte_table,
            seq_len=self.scoring.seq_len,
            stride=stride,
            windows_per_batch=self.scoring.windows_per_batch,
            device=self.trainer.strategy.root_device,
            rank=self.trainer.global_rank if shared else 0,
            world_size=self.trainer.world_size if shared else 1,
        )

    @property
    def epoch(self) -> float:
        """Number of passes over the training data so far."""
        assert self._train_loader is not None
        return self._train_loader.epoch

    def calibration_batches(self, num_batches: int) -> Iterator[Tensor]:
        """Yield input ids [sequences, train_seq_len]: this rank's share of the stream's first micro-batches.

        They are on the rank's device. The training stream's position does not change.
        """
        assert self.trainer is not None
        loader = self._open_train_loader()
        loader.position = 0
        share = range(self.trainer.global_rank, num_batches, self.trainer.world_size)
        for (input_ids, _), _ in zip(loader, share, strict=False):
            yield input_ids.to(self.trainer.strategy.root_device)

    def example_batch(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Dummy input and target ids shaped like a micro-batch, [sequences, train_seq_len] each."""
        assert self._train_loader is not None
        buffer = self._train_loader.empty_buffer(device)
        buffer.view(-1).copy_(torch.arange(buffer.numel(), device=device) % self.vocab_size)
        return self._train_loader.split(buffer)

    def summary(self) -> dict[str, Any]:
        """What the run read: the shards, their order, how many of their ids it trained on and scored, and by what.

        ``train_positions`` are the stream's positions before the first and after the last step, in ids.
        """
        assert self.trainer is not None
        facts: dict[str, Any] = {
            "val_shards": [path.name for path in find_shards(self.path, "val")],
            "val_ids": len(self._val_ids),
            "scoring_seq_len": self.scoring.seq_len,
            "scoring_stride": self.scoring.stride,
            "scoring_max_tokens": self.scoring.max_tokens,
            "scorer": f"{type(self.scorer).__module__}.{type(self.scorer).__qualname__}",
        }
        facts |= self.scorer.summary()
        if self._train_loader is not None:
            stream = self._train_loader.stream
            facts["train_shards"] = [path.name for path in stream.paths]
            facts["train_ids"] = len(stream)
            facts["train_order"] = self.order
            if self.order == "shuffled":
                facts["train_shuffle_seed"] = self.shuffle_seed
            facts["train_positions"] = [self._start_position, self._position()]
        return facts

    def _position(self) -> int:
        """Number of ids trained on by all ranks together."""
        assert self.trainer is not None
        assert self._train_loader is not None
        micro_batches = (self.trainer.global_step - self._start_step) * self.trainer.accumulate_grad_batches
        return self._train_loader.position_after(micro_batches)

    def state_dict(self) -> dict[str, Any]:
        """The stream's position."""
        assert self.trainer is not None
        return {"position": self._position(), "step": self.trainer.global_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a checkpoint's position; the number of ranks may have changed."""
        self._start_position, self._start_step = state_dict["position"], state_dict["step"]
        if self._train_loader is not None:
            self._train_loader = self._open_train_loader()


class OneBatch:
    """A loader with one batch, such as a validation's scoring.

    Args:
        batch: The batch.
    """

    def __init__(self, batch: ScoringPass) -> None:
        self.batch = batch

    def __len__(self) -> int:
        """One."""
        return 1

    def __iter__(self) -> Iterator[ScoringPass]:
        """Yield the batch."""
        yield self.batch
