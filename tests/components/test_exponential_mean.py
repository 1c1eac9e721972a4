"""The exponential mean: its recursion, where it starts, and how it resumes."""

import io

import pytest
import torch

from components.averages import Average, ExponentialMean, Moment
from components.errors import UserError


def weights(*values: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor([[value] for value in values]), "b": torch.tensor(values[0])}


def test_a_case_by_hand() -> None:
    mean = ExponentialMean(decay=0.75)
    assert mean.value() is None
    mean.start(weights(8.0, 0.0))
    assert mean.value()["w"].tolist() == [[8.0], [0.0]]
    mean.add(weights(0.0, 4.0))  # 6, 1
    mean.add(weights(2.0, 5.0))  # 5, 2
    assert mean.value()["w"].tolist() == [[5.0], [2.0]]
    assert mean.value()["b"].item() == 5.0


def test_it_takes_in_every_step() -> None:
    mean = ExponentialMean()
    assert all(
        mean.is_due(Moment(step, lr, faked)) for step in (1, 2, 51) for lr in (0.0, 1.0) for faked in (True, False)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9965])
def test_many_steps_follow_a_float64_reference(decay: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    current = {name: torch.randn(5, 7, generator=generator).to(dtype) for name in ("a", "b")}
    mean = ExponentialMean(decay)
    mean.start(current)
    expected = {name: w.double() for name, w in current.items()}
    for _ in range(300):
        for name, w in current.items():
            w.add_(torch.randn(5, 7, generator=generator), alpha=0.1)  # in place, as an optimizer's steps are
            expected[name] = decay * expected[name] + (1 - decay) * w.double()
        mean.add(current)
    for name, value in mean.value().items():
        assert value.dtype == torch.float32
        assert torch.allclose(value.double(), expected[name], rtol=1e-5, atol=1e-5)


def test_a_resumed_mean_goes_on_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    steps = [{"w": torch.randn(4, 4, generator=generator)} for _ in range(7)]
    through, first, second = (ExponentialMean(0.9) for _ in range(3))
    for mean in (through, first):
        mean.start(steps[0])
    for step in steps[1:]:
        through.add(step)
    for step in steps[1:4]:
        first.add(step)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    second.to(torch.device("cpu"))
    second.start(steps[3])  # which a resumed run calls too, and which must not start over
    for step in steps[4:]:
        second.add(step)
    assert torch.equal(second.value()["w"], through.value()["w"])


def test_the_weights_stay_the_trainers() -> None:
    mean, current = ExponentialMean(0.5), weights(1.0, 2.0)
    mean.start(current)
    mean.add(weights(3.0, 4.0))
    assert current["w"].tolist() == [[1.0], [2.0]]


def test_all_weights_move_in_one_update() -> None:
    mean = ExponentialMean(0.5)
    parameters = {str(i): torch.ones(3) for i in range(40)}
    mean.start(parameters)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        mean.add(parameters)
    [update] = [event for event in profile.key_averages() if "foreach" in event.key]
    assert (update.key, update.count) == ("aten::_foreach_lerp_", 1)


def test_adding_before_the_start_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(AssertionError, match="must be started"):
        ExponentialMean().add(weights(1.0))


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_that_is_no_share_is_refused(decay: float) -> None:
    with pytest.raises(UserError, match=rf"^averaging\.decay is {decay}; set the share that a step leaves, from 0 to"):
        ExponentialMean(decay)


def test_it_says_what_it_does() -> None:
    mean: Average = ExponentialMean(0.997)
    assert mean.summary() == {"ema_decay": 0.997}
    assert mean.describe() == "The model is the exponential mean of the weights after every step, of decay 0.997."
    assert mean.missed() is None
