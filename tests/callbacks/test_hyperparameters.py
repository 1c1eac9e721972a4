"""Every logger gets a fit's settings."""

from unittest.mock import Mock

from callbacks.hyperparameters import Hyperparameters
from tests.callbacks.support import trainer_of


def test_every_logger_gets_the_settings_when_a_fit_starts() -> None:
    loggers = [Mock(), Mock()]
    callback = Hyperparameters({"model": {"num_layers": 2}})
    callback.on_fit_start(trainer_of(loggers=loggers), Mock())
    for logger in loggers:
        logger.log_hyperparams.assert_called_once_with({"model": {"num_layers": 2}})
