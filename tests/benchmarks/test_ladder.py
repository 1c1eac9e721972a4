"""The ladder's comparison: pairs and intervals are right, and its runs are ordinary fits that it does not disturb."""

import dataclasses
import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from benchmarks.ladder.compare import compare, paired, steps_in_time, verdict
from benchmarks.ladder.report import picture, technique_rows
from benchmarks.ladder.runs import EVERY, Job, Pace, Result, run_all
from benchmarks.ladder.text import VAL_BYTES, Text
from benchmarks.ladder.variants import RECIPE, RUNGS, VARIANTS, Variant, run_settings
from components.gpt import GPT, GPTConfig
from components.optimizer import OptimizerConfig
from components.storage import StorageRule, assign
from components.tokenizer import load_tokenizer
from datamodules.shards import find_shards, open_shard
from tests.support import ROOT


def result(bits_per_byte: float, step_ratio: float = 1.0) -> Result:
    return Result(bits_per_byte, bits_per_byte, 1000, 5000, step_ratio)


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    ours, theirs = [2.51, 2.47, 2.55], [2.53, 2.52, 2.55]
    outside = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    sample = paired(ours, theirs)
    assert sample.interval is not None
    assert sample.mean - sample.interval == pytest.approx(outside.low)
    assert sample.mean + sample.interval == pytest.approx(outside.high)


def test_the_interval_of_a_hand_worked_case() -> None:
    sample = paired([1.99, 1.98, 1.97], [2.0, 2.0, 2.0])
    assert sample.mean == pytest.approx(-0.02)
    assert sample.interval == pytest.approx(4.30265 * 0.01 / math.sqrt(3), rel=1e-5)  # t of 2 degrees of freedom


@pytest.mark.parametrize(
    ("differences", "said"),
    [((-0.021, -0.02, -0.019), "better"), ((0.021, 0.02, 0.019), "worse"), ((-0.05, -0.02, 0.01), "not shown")],
)
def test_only_an_interval_without_zero_shows_a_difference(differences: tuple[float, ...], said: str) -> None:
    assert verdict(paired(differences, [0.0] * 3)) == said


@pytest.mark.parametrize(("ratio", "steps"), [(1.0, 300), (1.04, 300), (0.96, 300), (2.0, 150), (0.75, 400)])
def test_steps_that_fit_in_the_recipes_time(ratio: float, steps: int) -> None:
    assert steps_in_time(ratio, 300) == steps


def test_both_budgets_are_paired_by_seed_with_the_variants_own_reference() -> None:
    seeds = (1, 2)
    results = {(RECIPE, seed, 300): result(9.0 + seed, step_ratio=1.1) for seed in seeds}
    for seed in seeds:
        results["other", seed, 300] = result(3.0 + seed, step_ratio=0.55)  # half of the recipe's time
        results["other", seed, 600] = result(2.0 + seed)
        results["slow", seed, 300] = result(2.5 + 2 * seed, step_ratio=2.2)  # twice
        results["slow", seed, 150] = result(4.0 + seed)
    compared = compare(Variant("slow", against="other"), results, seeds, 300)
    assert compared.step_ratio == pytest.approx(2)
    assert compared.steps_in_time == 150
    assert compared.at_steps.mean == pytest.approx(((4.5 - 4) + (6.5 - 5)) / 2)
    assert compared.in_time.mean == pytest.approx(2)
    assert compared.bits_per_byte == pytest.approx(5.5)


def test_a_pace_weighs_each_phases_median_by_its_steps() -> None:
    pace = Pace()
    pace.ratios = {"plain": [1.0, 1.2, 50.0], "loops": [2.4]}
    assert pace.ratio() == pytest.approx((3 * 1.2 + 2.4) / 4)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_is_a_network_whose_matrices_are_quantized(variant: Variant) -> None:
    written = yaml.safe_load((ROOT / "configs" / f"{variant.config}.yaml").read_text())
    settings = run_settings(variant, seed=1, steps=100)
    model = written["model"] | settings["model"] | {"vocab_size": variant.vocab_size, "bos_id": 1}
    OptimizerConfig(**(written["model"]["optimizer"] | settings["model"].get("optimizer", {})))
    fields = GPTConfig.__dataclass_fields__
    network = GPT(GPTConfig(**{name: value for name, value in model.items() if name in fields}))
    rules = [StorageRule(**rule) for rule in settings["export"]["storage"]]
    stored = assign(network.shapes(), rules)
    assert all(
        stored[name].storage != "float16" for name, shape in network.shapes().items() if name.endswith("c_k.weight")
    )
    assert variant.against in VARIANTS


def test_every_variant_differs_from_what_it_is_compared_with() -> None:
    for variant in VARIANTS.values():
        other = VARIANTS[variant.against]
        if variant is other:
            assert variant.name == RECIPE
        else:
            assert (
                run_settings(variant, 1, 100) != run_settings(other, 1, 100) or variant.vocab_size != other.vocab_size
            )


def test_every_rung_that_is_shipped_is_compared() -> None:
    assert {rung.config for rung in RUNGS} == {path.stem for path in (ROOT / "configs").glob("record_*.yaml")}


@pytest.fixture
def text(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Text:
    """A small text in the published export's layout, in a folder that runs and caches go to."""
    monkeypatch.chdir(tmp_path)
    export = tmp_path / "export"
    (export / "tokenizers").mkdir(parents=True)
    shutil.copytree(data_folder, export / "datasets" / "fineweb10B_sp1024")
    shutil.copy(data_folder / "tokenizer.model", export / "tokenizers" / "fineweb_1024_bpe.model")
    return Text(export)


def documents(folder: Path, split: str) -> list[str]:
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    ids = np.concatenate([open_shard(path) for path in find_shards(folder, split)]).tolist()  # type: ignore[arg-type]
    cuts = [i for i, token_id in enumerate(ids) if token_id == tokenizer.bos_id()] + [len(ids)]
    return [tokenizer.decode(ids[start + 1 : end]) for start, end in itertools.pairwise(cuts)]


def test_every_vocabulary_has_the_same_documents(text: Text, tmp_path: Path) -> None:
    given, trained = text.prepared(1024), text.prepared(600)
    original = tmp_path / "export" / "datasets" / "fineweb10B_sp1024"
    assert (given / "tokenizer.model").read_bytes() == (original / "tokenizer.model").read_bytes()
    for split in ("val", "train"):
        assert documents(given, split) == documents(trained, split)
    scored = documents(given, "val")
    assert scored == documents(original, "val")[: len(scored)]
    assert 0 < sum(len(document.encode()) for document in scored) <= VAL_BYTES
    assert documents(given, "train") == documents(original, "train")[:-1]


def test_two_variants_from_text_to_comparison(text: Text) -> None:
    steps = EVERY  # one timed step
    data = text.prepared(1024)
    # Gates alone change no initial weight: the two runs begin alike and then differ.
    jobs = [Job(VARIANTS[name], 1, steps, data) for name in (RECIPE, "gated skips")]
    results = {(job.variant.name, job.seed, job.steps): job.run() for job in jobs}
    assert all(0.1 < found.step_ratio < 10 for found in results.values())
    # One timed step on a busy machine may have any ratio, and the steps that fit in the time with it.
    alike = {key: dataclasses.replace(found, step_ratio=1.0) for key, found in results.items()}
    compared = compare(VARIANTS["gated skips"], alike, [1], steps)
    assert compared.at_steps.mean == compared.in_time.mean != 0
    assert len(technique_rows([compared])) == 1
    assert b"<svg" in picture([compared], [compared], steps)

    summaries = [json.loads(next(job.folder.rglob("summary.json")).read_text()) for job in jobs]
    assert summaries[0]["train_positions"] == summaries[1]["train_positions"]
    assert summaries[0]["bytes_scored"] == summaries[1]["bytes_scored"]

    kept = {job.variant.name: found for job, found in run_all(jobs, processes=1)}
    assert kept == {name: found for (name, _, _), found in results.items()}, "finished runs are kept, to the last digit"
    assert dataclasses.replace(jobs[0], seed=2).kept() is None


def test_timing_a_run_does_not_change_it(text: Text) -> None:
    job = Job(VARIANTS[RECIPE], 1, EVERY, text.prepared(1024))
    timed = job.run()
    untimed = Variant("untimed", settings=VARIANTS[RECIPE].settings | {"trainer.callbacks": []})
    job = dataclasses.replace(job, variant=untimed)
    with pytest.raises(AssertionError, match="one Pace"):
        job.run()  # the fit ends, but nothing has timed it
    summary = json.loads(next(job.folder.rglob("summary.json")).read_text())
    assert summary["val_bpb"] == timed.bits_per_byte
