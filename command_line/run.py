"""How a command runs, and how it ends: an error that the user can fix is one sentence and exit code 1.

A command line that cannot be parsed ends with exit code 2.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NoReturn, TypeVar

from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.ranks import end_children, leave, speaks
from callbacks.signals import Signals, Stopped
from command_line.bare import BareCLI, CodeCounter
from components.errors import LostRankError, UserError, describe_os_error
from components.noise import quiet_libraries
from datamodules.fineweb import FineWeb
from lightning_modules.gpt import GPTModule

DESCRIPTIONS = {
    "fit": "Train, quantize, export and score a network. Each behavior of a run has its own section of settings.",
    "validate": "Score a checkpoint, an exported file or float weights.",
}

LEAVE_SECONDS = 5.0
"""How long rank 0 waits for the processes that Lightning started, before it ends them."""

CLI = TypeVar("CLI", bound=BareCLI)


def run_cli(
    cli_class: type[CLI],
    args: list[str] | None,
    count_code: CodeCounter,
    save_config: type[SaveConfigCallback] | None = SaveConfigCallback,
) -> CLI:
    """Run a command line; an error that the user can fix ends in one sentence and exit code 1.

    Args:
        cli_class: The command line.
        args: The command and its options; those of the process if None.
        count_code: Counts the code submitted with an artifact.
        save_config: Saves the configuration in the run's log folder; None if the command leaves none.
    """
    quiet_libraries()
    signals = Signals()
    with signals.handled():
        try:
            return cli_class(
                count_code=count_code,
                signals=signals,
                model_class=GPTModule,
                datamodule_class=FineWeb,
                parser_kwargs={name: {"description": DESCRIPTIONS[name]} for name in cli_class.subcommands()},
                save_config_callback=save_config,
                save_config_kwargs={"overwrite": True},
                seed_everything_default=1337,
                auto_configure_optimizers=False,
                args=args,
            )
        except Stopped as stopped:
            if stopped.sentence is not None and speaks():
                print(f"\n{stopped.sentence}", file=sys.stderr, flush=True)  # below a progress bar
            end_children(LEAVE_SECONDS)
            leave(stopped.code)  # at once: with torch loaded, the interpreter takes seconds to end by itself
        except LostRankError as error:
            if speaks():
                print(f"error: {error}", file=sys.stderr)
            leave(1)
        except (UserError, MisconfigurationException) as error:
            _fail(str(error))
        except OSError as error:
            _fail(describe_os_error(error))
        except ValueError as error:
            # The parser wraps the error of a class if its setting may also be null or a list.
            known = (UserError, ModuleNotFoundError)
            reason = next((cause for cause in _causes(error) if isinstance(cause, known)), None)
            if reason is None:
                raise
            if isinstance(reason, UserError):
                _fail(str(reason))
            said = " ".join(str(reason).split())
            _fail(
                f"A class that the settings name needs a package that is not installed ({said}); install it, or leave "
                "the class out."
            )


def _fail(sentence: str) -> NoReturn:
    """End with an error's sentence, unless another rank has said what ends the run."""
    is_said = speaks()
    end_children(LEAVE_SECONDS)
    sys.exit(f"error: {sentence}" if is_said else 1)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, the one it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__
