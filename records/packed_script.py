"""Train, export and score this submission's model, or score an exported file. Needs requirements.txt.

    torchrun --standalone --nproc_per_node=8 train_gpt.py  # the run, with the settings in CONFIG
    torchrun --standalone --nproc_per_node=8 train_gpt.py --seed_everything 42 --data.path FOLDER
    python train_gpt.py validate --artifact FILE --data.path FOLDER --data.tokenizer_path FILE
    python train_gpt.py fit --help  # every setting, explained where its module is in READABLE
    python train_gpt.py unpack FOLDER  # the sources as files, to read

This file contains a project's modules: some as clear text in READABLE, the others in PACKED, compressed, without
comments, docstrings and most annotations. All are imported from here under their own names.
"""

import base64
import bz2
import importlib.abc
import importlib.util
import os
import sys
from pathlib import Path

CONFIG = ""
READABLE: dict[str, str] = {}
PACKED = ""

SOURCES = dict(READABLE)
if PACKED:
    for _module in bz2.decompress(base64.b85decode("".join(PACKED.split()))).decode().split("\0"):
        _file, _, _source = _module.partition("\n")
        SOURCES[_file] = _source


class Importer(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds modules in SOURCES, and gives their source to code that inspects it; tracebacks name this file."""

    def find_spec(self, fullname, path=None, target=None):  # type: ignore[no-untyped-def]
        if self.file(fullname) not in SOURCES:
            return None
        origin = self.origin(fullname)
        spec = importlib.util.spec_from_loader(fullname, self, origin=origin, is_package=self.is_package(fullname))
        spec.has_location = True  # type: ignore[union-attr]
        return spec

    def get_code(self, fullname):  # type: ignore[no-untyped-def]
        return compile(self.get_source(fullname), self.origin(fullname), "exec")

    def get_source(self, fullname):  # type: ignore[no-untyped-def]
        return SOURCES[self.file(fullname)]

    def is_package(self, fullname):  # type: ignore[no-untyped-def]
        return self.file(fullname).endswith("__init__.py")

    def origin(self, fullname):  # type: ignore[no-untyped-def]
        return f"{Path(__file__).resolve()}:{self.file(fullname)}"

    def file(self, fullname):  # type: ignore[no-untyped-def]
        package = fullname.replace(".", "/") + "/__init__.py"
        return package if package in SOURCES else fullname.replace(".", "/") + ".py"


sys.meta_path.insert(0, Importer())


def main(arguments: list[str]) -> None:
    """Run a command, by default fit, with CONFIG as its first configuration."""
    command = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "fit"
    if command == "unpack":
        for file, source in SOURCES.items():
            path = Path(arguments[0], file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        return
    from command_line.bare import BareCLI
    from command_line.run import run_cli

    launched = []
    if "LOCAL_WORLD_SIZE" in os.environ:  # set by torchrun, which decides how many processes there are
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // local
        launched = [f"--trainer.devices={local}", f"--trainer.num_nodes={nodes}"]
    # This file is all the code that counts.
    run_cli(
        BareCLI, [command, f"--config={CONFIG}", *launched, *arguments], lambda config: Path(__file__).stat().st_size
    )


if __name__ == "__main__":
    main(sys.argv[1:])
