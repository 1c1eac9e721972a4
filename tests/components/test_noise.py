"""Which lines and warnings of libraries are left out."""

import logging
import warnings

import pytest

from components.noise import quiet_libraries

LIGHTNING = logging.getLogger("lightning.pytorch.utilities.rank_zero")


def test_tips_are_left_out_and_what_concerns_a_run_is_not(caplog: pytest.LogCaptureFixture) -> None:
    quiet_libraries()
    quiet_libraries()  # another command in the same process
    with caplog.at_level(logging.INFO, logger=LIGHTNING.name):
        LIGHTNING.info("\N{ELECTRIC LIGHT BULB} Tip: For seamless cloud logging, try installing [litlogger]")
        LIGHTNING.info("TPU available: False, using: 0 TPU cores")
        LIGHTNING.info("GPU available: True (cuda), used: True")
    assert caplog.messages == ["GPU available: True (cuda), used: True"]


def test_a_deprecation_between_two_libraries_is_left_out() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_libraries()
        warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated, use another", FutureWarning, stacklevel=1)
        warnings.warn("the run has a problem", FutureWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["the run has a problem"]


def test_a_warning_of_the_project_is_its_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # to be undone
    quiet_libraries()
    ours = warnings.formatwarning("A phase never came.", UserWarning, "/golf/callbacks/summary.py", 3)
    assert ours == "warning: A phase never came.\n"
    for category, file in (
        (UserWarning, "/venv/lib/site-packages/torch/x.py"),
        (FutureWarning, "/golf/callbacks/x.py"),
    ):
        assert f"{file}:3" in warnings.formatwarning("Something.", category, file, 3)
