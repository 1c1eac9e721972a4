"""What a ``submission.json`` claims, under any of its figures' known names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from records.figures import Figure

Number = int | float

NAMES: dict[str, tuple[str, ...]] = {
    "val_bpb": ("val_bpb", "val_bpb_sliding"),
    "val_loss": ("val_loss", "val_loss_sliding"),
    "pre_quant_val_bpb": ("pre_quant_val_bpb",),
    "pre_quant_val_loss": ("pre_quant_val_loss",),
    "steps": ("step_stop", "steps", "train_steps"),
    "train_seconds": ("wallclock_seconds", "train_time_seconds", "train_time_s", "train_seconds"),
    "eval_seconds": ("eval_time_seconds", "eval_time_s", "ttt_eval_time_s", "eval_seconds"),
    "bytes_total": ("bytes_total", "total_bytes", "artifact_bytes", "artifact_size_bytes", "artifact_bytes_max"),
    "bytes_model": ("bytes_model", "model_bytes"),
    "bytes_code": ("bytes_code", "code_bytes"),
    "num_params": ("num_params", "model_params"),
    "p_value": ("p_value",),
}
"""Each figure's names, plainest first; a ``mean_`` prefix or ``_mean`` suffix is also accepted."""

COUNTS = ("steps", "bytes_total", "bytes_model", "bytes_code", "num_params")
"""Figures that are integers unless they are means."""

CREDITS = ("author", "github_id", "name")
"""What the challenge requires besides the score; some accepted records lack some of it."""

_FOLDER = re.compile(r"(?<![\w./:-])[\w.-]{1,100}/(?![\w/])")


@dataclass(frozen=True)
class Claims:
    """The claimed figures, by their names in `NAMES`; a Figure keeps its written decimals.

    Attributes:
        top: for the whole submission: its one run's figures, or means and totals over its runs.
        seeds: for each seed.
        listed: the listed seeds; None if there is no list.
        num_seeds: the claimed number of seeds; 0 if not given.
        credits: author, account and name, if given.
        track: the challenge's track, "" if not given.
        hardware: what the runs ran on, "" if not given.
        baseline_losses: losses in nats of the seeds to beat.
        folders: folders named in the submission's text.
        wrong: fields of the wrong type, in words.
    """

    top: Mapping[str, Number] = field(default_factory=dict)
    seeds: Mapping[int, Mapping[str, Number]] = field(default_factory=dict)
    listed: tuple[int, ...] | None = None
    num_seeds: int = 0
    credits: Mapping[str, str] = field(default_factory=dict)
    track: str = ""
    hardware: str = ""
    baseline_losses: tuple[float, ...] = ()
    folders: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()


def read_claims(data: bytes) -> Claims:
    """Read the claims from a ``submission.json``'s content.

    Raises:
        ValueError: it is not a JSON object, in words.
    """
    try:
        content = json.loads(data, parse_float=Figure)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:  # invalid JSON, or integers with thousands of digits
        raise ValueError(f"cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError("holds no JSON object")
    wrong: list[str] = []
    top = _figures(content, wrong)
    seeds = _seeds(content.get("seed_results"), wrong)
    listed = _listed(content.get("seeds"), wrong)
    texts = {name: value for name, value in content.items() if isinstance(value, str)}
    named = content.get("name") or content.get("run_name")
    credits = {**texts, "name": named} if isinstance(named, str) else texts
    for name in (*CREDITS, "track", "hardware"):
        if name in content and not isinstance(content[name], str):
            wrong.append(f"{name} is {_shown(content[name])}")
    return Claims(
        top=top,
        seeds=seeds,
        listed=listed,
        num_seeds=max(len(seeds), len(listed or ()), *_said_seeds(content, texts)),
        credits={name: credits[name] for name in CREDITS if credits.get(name)},
        track=texts.get("track", ""),
        hardware=texts.get("hardware", ""),
        baseline_losses=_losses(content.get("baseline_val_losses"), wrong),
        folders=tuple(sorted({found for text in texts.values() for found in _FOLDER.findall(text)})),
        wrong=tuple(wrong),
    )


def _figures(content: Mapping[str, Any], wrong: list[str]) -> dict[str, Number]:
    """The known figures in an object, each under the first of its names found."""
    found: dict[str, Number] = {}
    for figure, names in NAMES.items():
        forms = [form for name in names for form in (name, f"mean_{name}", f"{name}_mean")]
        forms += sorted(name for name in content if name.startswith("bytes_model_")) if figure == "bytes_model" else []
        given = next((form for form in forms if form in content), None)
        if given is None:
            continue
        value = content[given]
        if _is_number(value) and not (figure in COUNTS and given in names and isinstance(value, float)):
            found[figure] = value
        elif not (figure == "p_value" and isinstance(value, str)):  # "<0.001"
            wrong.append(f"{given} is {_shown(value)}")
    return found


def _seeds(results: object, wrong: list[str]) -> dict[int, dict[str, Number]]:
    if isinstance(results, list):
        results = {entry.get("seed"): entry for entry in results if isinstance(entry, dict)}
    if not isinstance(results, dict):
        if results is not None:
            wrong.append(f"seed_results is {_shown(results)}")
        return {}
    seeds: dict[int, dict[str, Number]] = {}
    for seed, figures in results.items():
        if re.fullmatch(r"\d{1,18}", str(seed)) and isinstance(figures, dict):
            seeds[int(seed)] = _figures(figures, wrong)
        else:
            wrong.append(f"seed_results has {_shown(seed)}")
    return seeds


def _listed(listed: object, wrong: list[str]) -> tuple[int, ...] | None:
    if listed is None:
        return None
    if isinstance(listed, list) and all(type(seed) is int for seed in listed):
        return tuple(listed)
    wrong.append(f"seeds is {_shown(listed)}")
    return None


def _said_seeds(content: Mapping[str, Any], texts: Mapping[str, str]) -> list[int]:
    """The numbers of seeds mentioned in fields and sentences."""
    said = [content.get(name) for name in ("n_seeds", "num_seeds")]
    words = [found for text in texts.values() for found in re.findall(r"\b(\d{1,3})[- ]seeds?\b", text)]
    return [0, *(count for count in said if type(count) is int), *map(int, words)]


def _losses(losses: object, wrong: list[str]) -> tuple[float, ...]:
    if losses is None:
        return ()
    if isinstance(losses, list) and all(_is_number(loss) for loss in losses):
        return tuple(float(loss) for loss in losses)
    wrong.append(f"baseline_val_losses is {_shown(losses)}")
    return ()


def _is_number(value: object) -> bool:
    """Whether a value is a number of plausible size; NaN and infinity are not JSON, but Python reads them."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18


def _shown(value: object) -> str:
    # A container's text could be arbitrarily long, and its nesting arbitrarily deep.
    return f"a {type(value).__name__}" if isinstance(value, list | dict) else repr(value)[:60]
