"""``python -m records.requantize``: the artifact of float weights that are there already, without training again.

The weights are a checkpoint's (``--ckpt_path``), or a ``.safetensors`` file (``--weights``). They are scored, exported
as the ``export`` section of the configuration says, and scored again from the file; all other options are those of
``validate``. ``--try SETTING VALUE VALUE ...`` exports once for each value of a setting of that section and shows what
the values trade, bytes against bits per byte. FILE.golf then stands for FILE-1.golf, FILE-2.golf and so on, in the
order of the values, and for the picture FILE.png::

    python -m records.requantize --config configs/record_sp8192_loop.yaml --ckpt_path last.ckpt --out again.golf \\
        --try export.quantizer.matrix_sigmas 10 12.85 16
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from callbacks.common import callbacks_of, find
from callbacks.export import Export, exported_weights, not_scored
from callbacks.scoring import ValidationScore, score_result
from callbacks.summary import RunSummary
from command_line.helpful import HelpfulCLI
from command_line.run import run_cli
from components.artifact_report import describe
from components.command import run_command
from components.errors import UserError
from components.quantization import Quantizer
from datamodules.shards import find_shards
from records.script import compressed_bytes
from records.trade import Choice, draw_trade, trade_table

SUFFIX = ".golf"


class Requantize(HelpfulCLI):
    """A ``validate`` of float weights, followed by one export of them or several."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """``validate`` alone."""
        return {"validate": HelpfulCLI.subcommands()["validate"]}

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Add the options of this command."""
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        parser = self._parser("validate")
        parser.prog = "python -m records.requantize"
        parser.description = __doc__
        parser.add_argument("--out", type=Path | None, default=None, help=f"The artifact to write, a {SUFFIX} file.")
        parser.add_argument(
            "--try",
            type=str,
            nargs="+",
            default=None,
            help="A setting of the export section and two or more values to export with, to compare them.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the options, and once more for each value to try.

        Raises:
            UserError: There are no float weights to quantize, no file to write or one that exists, or the values are
                not two or more of a setting of the export section.
        """
        assert isinstance(args, list)
        super().parse_arguments(parser, args)
        config = self.config.validate
        if config.artifact is not None:
            raise UserError(
                f"{config.artifact} holds weights that are rounded already; give the float weights that the fit "
                "saved, with --weights or --ckpt_path."
            )
        if config.weights is None and config.ckpt_path is None:
            raise UserError("There is nothing to quantize; give float weights with --ckpt_path or --weights.")
        if config.out is None:
            raise UserError(f"There is no file to write; name a new {SUFFIX} file with --out.")
        self.setting, self.values = _values_to_try(args, config.get("try"))
        self.paths = _paths(config.out, len(self.values))
        tried = [parser.parse_args([*args, f"--{self.setting}={value}"]).validate for value in self.values]
        self.sections = [each.export for each in tried or [config]]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Leave no record of a run."""
        trainer = super().instantiate_trainer(**kwargs, logger=False)
        callbacks_of(trainer)[:] = [each for each in callbacks_of(trainer) if not isinstance(each, RunSummary)]
        return trainer

    def before_validate(self) -> None:
        """Load the weights, and refuse an export that would fail before anything is scored."""
        super().before_validate()
        self.exports = [_build_export(section) for section in self.sections]
        for export in self.exports:
            export.check(self.model.network)
            if export.quantizer.calibration_batches:
                find_shards(self.datamodule.path, "train")

    def after_validate(self) -> None:
        """Export the weights that were scored, and show what came out."""
        scored = find(self.trainer, ValidationScore).score
        assert scored is not None
        self.model.to(self.trainer.strategy.root_device)  # the trainer's teardown has moved it to the CPU
        choices: list[Choice] = []
        calibrated: Quantizer | None = None
        for value, path in zip(self.values or [""], self.paths, strict=True):
            if value:
                self._print(f"{self.setting} {value}")
            export = self.exports.pop(0)  # the calibration of earlier ones, which is large, goes with them
            choices.append(self._export(export, value, path, calibrated))
            calibrated = export.quantizer
        if not self.trainer.is_global_zero:
            return
        if self.values:
            picture = self.config.validate.out.with_suffix(".png")
            draw_trade(self.setting, choices, scored.bits_per_byte, picture)
            print(f"\n{trade_table(self.setting, choices, scored.bits_per_byte)}\n\nPicture: {picture}")
        else:
            [choice] = choices
            print(f"\n{describe(choice.path, dict(self.model.network.named_parameters()))}\n")
            print(f"float weights  {scored.bits_per_byte:.6f} bits per byte")
            print(f"artifact       {choice.bits_per_byte:.6f} bits per byte")

    def _export(self, export: Export, value: str, path: Path, calibrated: Quantizer | None) -> Choice:
        network = self.model.network
        stored = export.quantize(self.trainer, network, calibrated)
        written = export.write(self.trainer, network, stored, path)
        with exported_weights(network, written.artifact):
            score, seconds = score_result(self.trainer, self.model, "scoring the artifact", not_scored(path))
        self._print(
            f"{path}: {written.num_bytes:,} bytes, {score.bits_per_byte:.6f} bits per byte, scored in {seconds:.1f} s"
        )
        return Choice(value, path, written.num_bytes, score.bits_per_byte)

    def _print(self, line: str) -> None:
        if self.trainer.is_global_zero:
            print(line, flush=True)


def _values_to_try(args: list[str], words: list[str] | None) -> tuple[str, list[str]]:
    """The setting's dotted name and its values; none if nothing is to be tried."""
    if words is None:
        return "", []
    setting, *values = words
    if sum(word.split("=")[0] == "--try" for word in args) > 1:
        raise UserError("--try is given twice; compare the values of one setting at a time.")
    if not setting.startswith("export."):
        raise UserError(f"--try {setting} is not a setting of the export section; give one such as export.quantizer.")
    if len(set(values)) < max(2, len(values)):
        raise UserError(f"--try {setting} has {len(values)} values; give two or more, each once.")
    return setting, values


def _paths(out: Path, num_values: int) -> list[Path]:
    """The artifacts to write, one for each value to try; none of them exists, nor does the picture."""
    if out.suffix != SUFFIX:
        raise UserError(f"--out is {out}; give it a name that ends in {SUFFIX}.")
    paths = [out.with_stem(f"{out.stem}-{i + 1}") for i in range(num_values)] or [out]
    for path in [*paths, *([out.with_suffix(".png")] if num_values else [])]:
        if path.exists():
            raise UserError(f"{path} exists already; remove it or choose another --out.")
    return paths


def _build_export(section: Namespace) -> Export:
    parser = LightningArgumentParser()
    parser.add_class_arguments(Export, "export")
    export = parser.instantiate(Namespace(export=section)).export
    assert isinstance(export, Export)
    return export


def main(arguments: list[str]) -> None:
    """Run the command with the options given."""
    run_cli(Requantize, ["validate", *arguments], compressed_bytes, save_config=None)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
