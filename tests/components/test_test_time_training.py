"""Score-first training: nothing is trained on before it is scored, and nothing else changes by it."""

import json
import math
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from components.byte_counts import token_byte_table
from components.errors import UserError
from components.gpt import GPT
from components.scorer import SlidingWindows
from components.scoring import Chunk, Score, WindowLoader
from components.test_time_training import ScoreFirstTraining
from components.tokenizer import load_tokenizer
from datamodules.shards import find_shards, open_shard
from tests.components.golden_networks import LATE, late_network, needs_late
from tests.support import SAMPLE, bytes_by_id, needs_sample, random_ids, tiny_network

SEQ_LEN, STRIDE, CHUNK = 16, 4, 64
TTT = json.loads((LATE / "eval.json").read_text())["ttt"] if LATE.is_dir() else [{"epochs": 0, "chunk_tokens": 0}]
SETTINGS = {"chunk_tokens": CHUNK, "epochs": 2, "lr": 0.05, "batch_seqs": 3}


def windows_of(ids: torch.Tensor, rank: int = 0, world_size: int = 1) -> WindowLoader:
    return WindowLoader(
        ids,
        bytes_by_id(torch.ones(1024, dtype=torch.int64)),
        seq_len=SEQ_LEN,
        stride=STRIDE,
        windows_per_batch=5,
        device=torch.device("cpu"),
        rank=rank,
        world_size=world_size,
    )


class Watched(nn.Module):
    """A network that notes what it is asked to score and to train on, and what it scored."""

    def __init__(self, network: GPT) -> None:
        super().__init__()
        self.network = network
        self.asked: list[tuple[bool, torch.Tensor]] = []
        self.scored: list[torch.Tensor] = []

    def forward(self, input_ids: torch.Tensor, target_ids: torch.Tensor) -> torch.Tensor:
        nats = self.network(input_ids, target_ids)
        self.asked.append((torch.is_grad_enabled(), target_ids))
        if not torch.is_grad_enabled():
            self.scored.append(nats)
        return nats


def nats_by_target(ids: torch.Tensor) -> dict[int, float]:
    """Each target's score, by the position of its id in the text."""
    watched = Watched(tiny_network())
    ScoreFirstTraining(**SETTINGS).score(watched, windows_of(ids))
    # In a text whose every id is its own position, the target's id says where it stands.
    places = windows_of(torch.arange(len(ids)))
    batches = [batch for chunk in places.chunks(CHUNK) for batch in places.batches(chunk)]
    found: dict[int, float] = {}
    for batch, nats in zip(batches, watched.scored, strict=True):
        for place, value in zip(batch.target_ids[batch.scored].tolist(), nats[batch.scored].tolist(), strict=True):
            assert place not in found
            found[place] = value
    return found


def test_a_target_s_score_does_not_depend_on_what_comes_after_it() -> None:
    ids, cut = random_ids(300), 180
    changed = torch.cat((ids[: cut + 1], random_ids(300 - cut - 1, seed=1)))
    before, after = nats_by_target(ids), nats_by_target(changed)
    assert before.keys() == set(range(1, 300))
    assert {place: before[place] for place in range(1, cut + 1)} == {place: after[place] for place in range(1, cut + 1)}
    assert before[cut + 1] != after[cut + 1]


def test_nothing_is_trained_on_before_it_is_scored() -> None:
    watched = Watched(tiny_network())
    ScoreFirstTraining(**SETTINGS).score(watched, windows_of(torch.arange(300)))
    seen: set[int] = set()
    trained: set[int] = set()
    for training, target_ids in watched.asked:
        if training:
            assert seen.issuperset(target_ids.flatten().tolist())
            trained.update(target_ids.flatten().tolist())
        else:
            seen.update(target_ids.flatten().tolist())
    assert trained == set(range(1, 4 * CHUNK + 1))  # the whole sequences of every chunk but the last


def test_training_changes_later_scores_and_leaves_the_weights_as_they_were() -> None:
    network = tiny_network()
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    ids = random_ids(300)
    plain = SlidingWindows().score(network, windows_of(ids))
    scorer = ScoreFirstTraining(**SETTINGS)
    score = scorer.score(network, windows_of(ids))
    assert (score.num_tokens, score.num_bytes) == (plain.num_tokens, plain.num_bytes) == (299, 299)
    assert abs(score.nats - plain.nats) > 1
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert scorer.summary()["test_time_training"]["trained"] == [[64 * i, 64 * (i + 1), 64 * (i + 1)] for i in range(4)]


def test_it_trains_although_its_caller_is_in_inference_mode() -> None:
    scores = []
    for mode in (torch.no_grad, torch.inference_mode):
        network = tiny_network()
        with mode():
            scores.append(ScoreFirstTraining(**SETTINGS).score(network, windows_of(random_ids(300))))
    assert scores[0] == scores[1]


def test_without_epochs_it_is_plain_scoring() -> None:
    ids = random_ids(300)
    scorer = ScoreFirstTraining(**{**SETTINGS, "epochs": 0})
    # Batches end where chunks do, and padded batches round alike.
    assert scorer.score(tiny_network(), windows_of(ids)).nats == pytest.approx(
        SlidingWindows().score(tiny_network(), windows_of(ids)).nats, rel=1e-6
    )


def test_rates_fall_by_half_a_cosine_and_steps_are_those_of_torch_s_sgd() -> None:
    """One chunk of two sequences, one step an epoch, against the update written out."""
    ids, network = random_ids(65), tiny_network()
    rates: list[float] = []

    class Noting(ScoreFirstTraining):
        def _step(self, *arguments: object) -> None:
            rates.append(self._optimizer.param_groups[0]["lr"])  # type: ignore[union-attr]
            super()._step(*arguments)  # type: ignore[arg-type]

    Noting(chunk_tokens=16, epochs=1, lr=0.2, batch_seqs=8).score(network, windows_of(ids))
    assert rates == pytest.approx(
        [0.2, 0.2 * (1 + math.cos(math.pi / 3)) / 2, 0.2 * (1 + math.cos(2 * math.pi / 3)) / 2]
    )


def test_gradients_are_clipped_to_norm_one() -> None:
    network = tiny_network()
    scorer = ScoreFirstTraining(chunk_tokens=32, epochs=1, lr=1.0, momentum=0.0)
    moved: list[float] = []
    start = [p.detach().clone() for p in network.parameters()]

    class Noting(Watched):
        def forward(self, input_ids: torch.Tensor, target_ids: torch.Tensor) -> torch.Tensor:
            differences = [(p - q).square().sum() for p, q in zip(self.network.parameters(), start, strict=True)]
            moved.append(float(torch.stack(differences).sum().detach().sqrt()))
            return super().forward(input_ids, target_ids)

    scorer.score(Noting(network), windows_of(random_ids(65)))
    # A learning rate of 1 moves the weights by the gradient's norm: at most 1, and here it was clipped to it.
    assert moved[-1] == pytest.approx(1, rel=1e-4)


def _rank(rank: int, world_size: int, port: int, alone: Score) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    score = ScoreFirstTraining(**SETTINGS).score(tiny_network(), windows_of(random_ids(300), rank, world_size))
    assert (score.num_tokens, score.num_bytes) == (alone.num_tokens, alone.num_bytes)
    assert score.nats == pytest.approx(alone.nats, rel=1e-5)
    dist.barrier()  # a rank that leaves while the other still talks to it can abort it
    dist.destroy_process_group()


def test_two_ranks_give_the_score_of_one() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Batches of 3 sequences over 2 ranks: one has two of them, the other one.
    alone = ScoreFirstTraining(**SETTINGS).score(tiny_network(), windows_of(random_ids(300)))
    mp.spawn(_rank, (2, port, alone), nprocs=2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"chunk_tokens": 0}, "scorer.chunk_tokens is 0; set it to at least 1"),
        ({"epochs": -1}, "scorer.epochs is -1; set it to at least 0"),
        ({"batch_seqs": 0}, "scorer.batch_seqs is 0; set it to at least 1"),
        ({"lr": 0.0}, "scorer.lr is 0.0; set a learning rate above 0"),
        ({"lr": math.nan}, "scorer.lr is nan"),
        ({"momentum": 1.0}, "scorer.momentum is 1.0; set a share from 0 to below 1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        ScoreFirstTraining(**settings)


def test_a_chunk_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(UserError, match=r"scorer\.chunk_tokens is 64, too few for a sequence of scoring\.seq_len 65"):
        ScoreFirstTraining(chunk_tokens=64).check(65)
    ScoreFirstTraining(chunk_tokens=64).check(64)


def dequantized_late_network() -> GPT:
    """The late record's network with the weights that its script quantized and read back."""
    network = late_network()
    arrays = np.load(LATE / "quantised.npz")
    state = network.state_dict()
    for name in state:
        if f"{name}.q" in arrays:
            scales = torch.from_numpy(arrays[f"{name}.scale"]).float()
            state[name] = torch.from_numpy(arrays[f"{name}.q"]).float() * scales[:, None]
    network.load_state_dict(state)
    return network


@needs_late
@needs_sample
@pytest.mark.parametrize(
    "case", range(len(TTT)), ids=lambda i: f"{TTT[i]['epochs']} epochs of {TTT[i]['chunk_tokens']}"
)
def test_the_late_records_scores(case: int) -> None:
    golden = TTT[case]
    [shard] = find_shards(SAMPLE / "datasets" / "fineweb10B_sp1024", "val")
    tokenizer = load_tokenizer(SAMPLE / "tokenizers" / "fineweb_1024_bpe.model")
    windows = WindowLoader(
        torch.from_numpy(open_shard(shard)[: golden["tokens"]].astype("int64")),
        token_byte_table(tokenizer),
        seq_len=golden["seq_len"],
        stride=golden["stride"],
        windows_per_batch=16,
        device=torch.device("cpu"),
    )
    scorer = Keeping(**{name: golden[name] for name in ("chunk_tokens", "epochs", "lr", "momentum", "batch_seqs")})
    score = scorer.score(dequantized_late_network(), windows)
    tolerance = 1e-3 if golden["epochs"] else 1e-4
    assert score.bits_per_byte == pytest.approx(golden["val_bpb"], abs=tolerance)
    for name, (total, squares) in golden.get("param_sums_after", {}).items():
        trained = scorer.trained[name].double()
        assert float(trained.square().sum()) == pytest.approx(squares, rel=1e-3), name
        # Sums of both signs cancel: a thousandth of what they would be if they did not.
        assert float(trained.sum()) == pytest.approx(total, abs=1e-3 * float(trained.abs().sum())), name


class Keeping(ScoreFirstTraining):
    """Keeps what the last training left, before the network has its own weights again."""

    def after_chunk(self, network: nn.Module, windows: WindowLoader, chunk: Chunk, is_last: bool) -> None:
        super().after_chunk(network, windows, chunk, is_last)
        self.trained = {name: p.detach().clone() for name, p in network.named_parameters()}
