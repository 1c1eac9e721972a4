"""The mean of snapshots: when one is due, what the mean is, and what a resumed run goes on from."""

import copy

import pytest
import torch

from components.averages import Moment, SnapshotMean
from components.errors import UserError


def weights_at(step: int) -> dict[str, torch.Tensor]:
    """Weights that fall on no float32 grid in common."""
    generator = torch.Generator().manual_seed(step)
    return {"matrix": torch.randn(4, 3, generator=generator), "scale": torch.randn((), generator=generator)}


def assert_mean_of(average: SnapshotMean, steps: list[int]) -> None:
    value = average.value()
    assert value is not None
    for name, mean in value.items():
        expected = torch.stack([weights_at(step)[name].double() for step in steps]).mean(0)
        assert mean.dtype == torch.float32
        torch.testing.assert_close(mean.double(), expected, atol=1e-6, rtol=0)


def due_steps(average: SnapshotMean, multiplier: float = 0.1, faked: bool = False) -> list[int]:
    return [step for step in range(1, 13) if average.is_due(Moment(step, multiplier, faked))]


def test_a_snapshot_is_due_at_every_nth_step() -> None:
    assert due_steps(SnapshotMean(every_n_steps=5)) == [5, 10]
    assert due_steps(SnapshotMean(every_n_steps=1)) == list(range(1, 13))


def test_a_snapshot_is_due_only_while_the_rate_is_under_the_multiplier() -> None:
    average = SnapshotMean(start_multiplier=0.5, every_n_steps=5)
    assert due_steps(average, multiplier=0.4999) == due_steps(average, multiplier=0.0) == [5, 10]
    assert due_steps(average, multiplier=0.5) == due_steps(average, multiplier=1.0) == []
    assert due_steps(SnapshotMean(start_multiplier=0), multiplier=0.0) == []


def test_snapshots_may_wait_for_late_qat() -> None:
    average = SnapshotMean(every_n_steps=5, only_under_qat=True)
    assert due_steps(average, faked=False) == []
    assert due_steps(average, faked=True) == [5, 10]
    assert due_steps(SnapshotMean(every_n_steps=5), faked=True) == [5, 10]


def test_the_value_is_the_mean_of_what_was_added() -> None:
    average = SnapshotMean()
    assert average.value() is None
    for step in range(5):
        assert average.add(weights_at(step)) == f"snapshot {step + 1}"
        assert_mean_of(average, list(range(step + 1)))


def test_a_later_change_of_the_weights_does_not_reach_the_mean() -> None:
    average, weights = SnapshotMean(), weights_at(0)
    average.add(weights)
    for weight in weights.values():
        weight.fill_(torch.nan)
    assert_mean_of(average, [0])
    weights = {name: torch.nn.Parameter(weight) for name, weight in weights_at(1).items()}
    average.add(weights)
    assert_mean_of(average, [0, 1])
    assert not any(mean.requires_grad for mean in average.value().values())


def test_bfloat16_weights_are_summed_in_float32() -> None:
    average = SnapshotMean()
    for _ in range(300):  # in bfloat16, 256 ones and one more make 256
        average.add({"ones": torch.ones(2, dtype=torch.bfloat16)})
    assert average.value()["ones"].tolist() == [1.0, 1.0]
    assert average.value()["ones"].dtype == torch.float32


def test_a_resumed_average_goes_on_from_the_state() -> None:
    average, resumed = SnapshotMean(), SnapshotMean()
    for step in range(3):
        average.add(weights_at(step))
    resumed.load_state_dict(copy.deepcopy(average.state_dict()))
    assert_mean_of(resumed, [0, 1, 2])
    assert resumed.add(weights_at(3)) == "snapshot 4"
    assert_mean_of(resumed, [0, 1, 2, 3])
    assert_mean_of(average, [0, 1, 2])


def test_the_sums_move_to_a_device() -> None:
    average = SnapshotMean()
    average.add(weights_at(0))
    average.to(torch.device("meta"))
    assert {mean.device.type for mean in average.value().values()} == {"meta"}


def test_what_it_shows_counts_the_snapshots() -> None:
    average = SnapshotMean()
    assert average.metrics() == {"phase/snapshots": 0.0}
    average.add(weights_at(0))
    average.add(weights_at(1))
    assert average.metrics() == {"phase/snapshots": 2.0}
    assert average.summary() == {"snapshots_averaged": 2}


def test_a_run_without_the_snapshots_it_asked_for_hears_of_it() -> None:
    average = SnapshotMean(start_multiplier=0.2, every_n_steps=50, only_under_qat=True)
    missed = average.missed()
    assert missed is not None
    for part in ("no snapshot was averaged", "multiple of 50 steps", "under QAT", "under 0.2"):
        assert part in missed
    assert "under QAT" not in SnapshotMean().missed()
    average.add(weights_at(0))
    assert average.missed() is None


def test_no_snapshots_asked_for_are_none_missed_and_not_described() -> None:
    average = SnapshotMean(start_multiplier=0)
    assert average.missed() is None
    assert average.describe() is None


@pytest.mark.parametrize("only_under_qat", [True, False])
def test_the_description_tells_when_snapshots_are_taken(only_under_qat: bool) -> None:
    sentence = SnapshotMean(0.25, 40, only_under_qat).describe()
    assert sentence is not None
    assert "every 40 steps" in sentence
    assert "under 0.25" in sentence
    assert ("late QAT" in sentence) == only_under_qat
    assert sentence.endswith(".")
    assert sentence.count(". ") == 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"every_n_steps": 0}, "averaging.every_n_steps is 0; set it to at least 1."),
        ({"start_multiplier": -0.1}, "averaging.start_multiplier is -0.1; set a learning-rate multiplier from 0"),
        ({"start_multiplier": 1.5}, "averaging.start_multiplier is 1.5; set a learning-rate multiplier from 0"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{sentence}"):
        SnapshotMean(**settings)
