"""The audited script in a child of the audit: import it, build its network or score an artifact.

    python -I stranger.py import SCRIPT SETTINGS
    python -I stranger.py run SCRIPT ARGUMENTS...

SETTINGS, as JSON, are the network settings that this project's script derives from the tokenizer.

The script runs in this process and can forge this process's output, so every result is only the script's claim. The
report goes to the file descriptor in REPORT, along with a secret that the audit gave on standard input, so at least
nothing is mistaken for it by accident.
"""

import importlib
import importlib.util
import inspect
import json
import os
import runpy
import sys
import time
from pathlib import Path


def stand_in():  # type: ignore[no-untyped-def]
    """Install stand-ins for missing packages; loaded by path, since this folder must not be importable."""
    spec = importlib.util.spec_from_file_location("stand_ins", Path(__file__).with_name("stand_ins.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.install()


def refuse_network() -> None:
    """Raise whenever this process connects, sends or looks up an address, so the attempt is reported."""

    def hook(event, arguments):  # type: ignore[no-untyped-def]
        if event == "socket.getaddrinfo" or (
            event in ("socket.connect", "socket.sendto", "socket.sendmsg") and isinstance(arguments[1], tuple)
        ):
            raise PermissionError("the audit refuses the network")

    sys.addaudithook(hook)


def import_script(path):  # type: ignore[no-untyped-def]
    """Import the script as a module."""
    spec = importlib.util.spec_from_file_location("train_gpt", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_gpt"] = module
    spec.loader.exec_module(module)
    return module


def build_network(script, settled):  # type: ignore[no-untyped-def]
    """The script's network and settings, from this project's configuration or a third-party script's classes."""
    if hasattr(script, "SOURCES"):
        gpt = importlib.import_module("components.gpt")
        settings = importlib.import_module("yaml").safe_load(script.CONFIG)["model"]
        settings = {name: settled.get(name) if value is None else value for name, value in settings.items()}
        fields = gpt.GPTConfig.__dataclass_fields__
        settings = {name: value for name, value in settings.items() if name in fields and value is not None}
        return gpt.GPT(gpt.GPTConfig(**settings)), settings
    if not hasattr(script, "GPT") or not hasattr(script, "Hyperparameters"):
        raise LookupError("the script has no classes GPT and Hyperparameters")
    given = script.Hyperparameters()
    wanted = inspect.signature(script.GPT).parameters
    settings = {name: getattr(given, name) for name in wanted if hasattr(given, name)}
    if len(wanted) == 1 and not settings:  # later scripts pass them all at once
        plain = {name: getattr(given, name) for name in dir(given) if not name.startswith("_")}
        return script.GPT(given), {name: x for name, x in plain.items() if isinstance(x, bool | int | float | str)}
    return script.GPT(**settings), settings


def report_import(path: str, settled: str) -> dict:
    """Seconds to import, the network's settings, parameters and loss on random ids, or why it failed."""
    started = time.perf_counter()
    used = stand_in()
    try:
        script = import_script(path)
        if hasattr(script, "SOURCES"):
            importlib.import_module("command_line.run")
    except ModuleNotFoundError as error:
        return {"missing": error.name, "why_not": str(error)}
    except Exception as error:  # a third-party script may fail in any way; the audit reports it
        return {"why_not": f"{type(error).__name__}: {error}"}
    report: dict = {"seconds": time.perf_counter() - started, "stand_ins": used}
    try:
        torch = importlib.import_module("torch")
        torch.manual_seed(0)
        network, settings = build_network(script, json.loads(settled))
        report["settings"] = settings
        report["num_params"] = sum(p.numel() for p in network.parameters())
        ids = torch.randint(settings["vocab_size"], (2, 257))
        with torch.no_grad():
            report["initial_loss"] = float(network.float()(ids[:, :-1], ids[:, 1:]).mean())
    except Exception as error:
        report["no_network"] = f"{type(error).__name__}: {error}"
    return report


if __name__ == "__main__":
    secret = sys.stdin.readline().strip()
    sys.stdin.close()
    refuse_network()
    job, *words = sys.argv[1:]
    sys.path.insert(0, os.path.dirname(os.path.abspath(words[0])))
    if job == "run":
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
    else:
        line = json.dumps([secret, report_import(*words)]) + "\n"
        with open(int(os.environ["REPORT"]), "w") as channel:
            channel.write(line)
