"""What the audit runs in a process of its own, by path and without the project around it: no network, and one job.

    python -I fresh_process.py import SCRIPT            import the script, build its network; prints JSON
    python -I fresh_process.py load SCRIPT ARTIFACT     load the artifact from the file alone; prints JSON
    python -I fresh_process.py run SCRIPT ARGUMENTS...  run the script as a command

A script is foreign if it does not carry this project's modules; its artifacts are then read by the project's own
reader, whose folder PROJECT names. Refusing the network means refusing this process's sockets: it shows an honest
script's needs, and is no prison for a hostile one.
"""

import importlib
import importlib.util
import inspect
import json
import os
import runpy
import sys
import time

VOCABULARY = "vocab_size"


def refuse_network() -> None:
    """Raise wherever this process connects, sends or asks for an address."""

    def hook(event, arguments):  # type: ignore[no-untyped-def]
        if event == "socket.getaddrinfo" or (
            event in ("socket.connect", "socket.sendto", "socket.sendmsg") and isinstance(arguments[1], tuple)
        ):
            raise PermissionError("the audit refuses the network")

    sys.addaudithook(hook)


def import_script(path):  # type: ignore[no-untyped-def]
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("train_gpt", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_gpt"] = module
    spec.loader.exec_module(module)
    return module


def build_network(script):  # type: ignore[no-untyped-def]
    """The script's network and its settings: of this project's configuration, or of a foreign script's classes."""
    if hasattr(script, "SOURCES"):
        gpt = importlib.import_module("components.gpt")
        settings = importlib.import_module("yaml").safe_load(script.CONFIG)["model"]
        settings = {name: value for name, value in settings.items() if name not in ("compile", "optimizer")}
        return gpt.GPT(gpt.GPTConfig(**settings)), settings
    if not hasattr(script, "GPT") or not hasattr(script, "Hyperparameters"):
        raise LookupError("the script has no classes GPT and Hyperparameters")
    given = script.Hyperparameters()
    wanted = inspect.signature(script.GPT).parameters
    settings = {name: getattr(given, name) for name in wanted if hasattr(given, name)}
    return script.GPT(**settings), settings


def report_import(path: str) -> dict:
    """Seconds to import, the network's settings, its parameters, and its loss on random ids."""
    started = time.perf_counter()
    script = import_script(path)
    if hasattr(script, "SOURCES"):
        importlib.import_module("cli")
    report: dict = {"seconds": time.perf_counter() - started, "ours": hasattr(script, "SOURCES")}
    given = vars(getattr(script, "Hyperparameters", object))
    report["hyperparameters"] = {name: x for name, x in given.items() if isinstance(x, bool | int | float | str)}
    try:
        torch = importlib.import_module("torch")
        torch.manual_seed(0)
        network, settings = build_network(script)
        report["settings"] = settings
        report["num_params"] = sum(p.numel() for p in network.parameters())
        ids = torch.randint(settings[VOCABULARY], (2, 257))
        with torch.no_grad():
            report["initial_loss"] = float(network.float()(ids[:, :-1], ids[:, 1:]).mean())
    except Exception as error:  # a foreign script may fail in any way, and the audit then says which
        report["why_not"] = f"{type(error).__name__}: {error}"
    return report


def report_load(path: str, artifact: str) -> dict:
    """Tensors and values that an artifact holds, and the settings it gives."""
    script = import_script(path)
    if not hasattr(script, "SOURCES"):
        sys.path.insert(0, os.environ["PROJECT"])
    found = importlib.import_module("components.model_files").read_any_artifact(artifact)
    state = importlib.import_module("components.quantization").load_state(found.tensors)
    if found.settings is not None:
        gpt = importlib.import_module("components.gpt")
        gpt.GPT(gpt.GPTConfig(**found.settings)).load_state_dict(state)
    return {
        "settings": found.settings,
        "num_tensors": len(state),
        "num_values": sum(weight.numel() for weight in state.values()),
    }


if __name__ == "__main__":
    refuse_network()
    job, *words = sys.argv[1:]
    if job == "run":
        sys.argv = words
        sys.path.insert(0, os.path.dirname(os.path.abspath(words[0])))
        runpy.run_path(words[0], run_name="__main__")
    else:
        print("\n" + json.dumps(report_import(*words) if job == "import" else report_load(*words)))
