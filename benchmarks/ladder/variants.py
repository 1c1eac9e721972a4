"""What is compared: the recipe, the rungs, and each technique added to the recipe, all scaled down alike.

The scale is set by rules, before anything is measured, and no technique is tuned:

- 5 layers stand for 10 and 11, and layer numbers are halved: exclusive attention in the last 2 layers for the last 4,
  loops over layer 2 for 4 to 5, and over 1 to 2 for 3 to 5, parallel residuals from 3 for 7.
- The width is 64 for 512, and the table of token pairs has a quarter of the rows and an eighth of the width. Two heads
  of 32 channels stand for eight of 64, so 8 channels rotate instead of 16. A tensor is small, and stays float16, up to
  1,024 elements for 65,536.
- A step has 512 tokens, in sequences of 128. Score-first training takes chunks of 1,024 tokens, GPTQ calibrates on 16
  such steps' batches.
- Warm-downs and the momentum's warm-up keep their share of the run's steps.
- The average's decay is 0.98: at the records' 0.997 the initial weights would keep 41% of it. Snapshots are taken
  every 5 steps below a multiplier of 0.2.
- Learning rates, weight decays, gains, and everything else are the configuration's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from components.gpt import GPTConfig

Settings = dict[str, Any]
"""Values by dotted name, as on the command line."""

RECIPE = "recipe"
MODEL: Settings = {
    "num_layers": 5,
    "model_dim": 64,
    "num_heads": 2,
    "num_kv_heads": 1,
    "bigram_vocab_size": 1024,
    "bigram_dim": 16,
}
SEQ_LEN = 128
BATCH_TOKENS = 512
SMALL_TENSOR = 1024
MOMENTUM_WARMUP = 0.3
"""The recipe's 1,500 of its 5,100 steps."""

RECIPE_NETWORK = GPTConfig(**MODEL)
"""The recipe's network at this scale, which the other networks' steps are timed beside."""


def rules(*stored: tuple[str, str], faked: tuple[str, ...] = ()) -> list[Settings]:
    """Storage rules after the one that keeps small tensors: pattern and storage, and which storages QAT fakes."""
    small = {"names": "*", "storage": "float16", "at_most": SMALL_TENSOR, "qat": False}
    return [
        small,
        *({"names": names, "storage": kind, "at_most": 0, "qat": kind in faked} for names, kind in stored),
    ]


TABLES_INT8 = (("tok_emb.weight", "int8"), ("bigram.*.weight", "int8"))
INT5_INT6 = (("blocks.*.mlp.*.weight", "int5"), ("blocks.*.attn.*.weight", "int6"))
RECIPE_STORAGE = (("tok_emb.weight", "float16"), ("bigram.*.weight", "int8"))


def _class(path: str, **arguments: Any) -> Settings:
    return {"class_path": path, "init_args": arguments}


SNAPSHOTS = _class("components.averages.SnapshotMean", start_multiplier=0.2, every_n_steps=5)
EMA = _class("components.averages.ExponentialMean", decay=0.98)
TRAINS_AT_TEST_TIME = _class("components.test_time_training.ScoreFirstTraining", chunk_tokens=1024)


def gptq(**scales: Any) -> Settings:
    """The calibrated quantizer, on 16 batches of this scale."""
    return _class("components.gptq.GPTQ", calibration_batches=16, **scales)


ROW_MAX_GPTQ = gptq(matrix_sigmas=0.0, table_sigmas=0.0, row_max_floor=1.0, calibrate_table=False)
SIGMA_GPTQ = gptq(matrix_sigmas=12.85, table_sigmas=20.0, row_max_floor=0.0, calibrate_table=True)


@dataclass(frozen=True)
class Variant:
    """A run to compare with another.

    Args:
        name: Its name in the table.
        config: The configuration it starts from, in ``configs/``.
        settings: What differs from that at this scale.
        vocab_size: Pieces of its tokenizer.
        against: The variant that it is compared with.
        published: Its published gain at full size, in bits per byte; empty if there is none for it alone.
        visible: Whether a few hundred small steps could show the gain at all.
    """

    name: str
    config: str = "record_10l"
    settings: Settings = field(default_factory=dict)
    vocab_size: int = 1024
    against: str = RECIPE
    published: str = ""
    visible: str = ""


_BASE: Settings = {
    "schedule.warmdown_steps": 0,
    "schedule.warmdown_fraction": 0.6,
    "averaging": SNAPSHOTS,
    "export.storage": rules(*RECIPE_STORAGE, *INT5_INT6, faked=("int5", "int6")),
}


def technique(name: str, settings: Settings, published: str = "", visible: str = "", **others: Any) -> Variant:
    """The recipe with something changed."""
    return Variant(name, settings=_BASE | settings, published=published, visible=visible, **others)


NO_QAT = technique("no late QAT", {"late_qat.start_fraction": 1.0}, "-0.0009 beside averaging", "no")

RUNGS = (
    Variant(RECIPE, settings=_BASE, published="1.1628"),
    Variant(
        "record_11l_ema",
        "record_11l_ema",
        {
            "model.xsa_last_n": 2,
            "model.rope_dims": 8,
            "model.bigram_vocab_size": 512,
            "schedule.warmdown_steps": 0,
            "schedule.warmdown_fraction": 0.43,  # 3,000 of 7,051 steps
            "averaging": EMA,
            "export.storage": rules(*TABLES_INT8, ("blocks.*.weight", "int6")),
        },
        published="1.1250",
    ),
    Variant(
        "record_sp4096",
        "record_sp4096",
        {
            "model.xsa_last_n": 5,
            "model.rope_dims": 8,
            "model.bigram_vocab_size": 0,
            "averaging": EMA,
            "export.storage": rules(TABLES_INT8[0], ("blocks.*.weight", "int6")),
            "export.quantizer": ROW_MAX_GPTQ,
        },
        vocab_size=4096,
        published="1.0979",
    ),
    Variant(
        "record_sp8192_loop",
        "record_sp8192_loop",
        {
            "model.xsa_last_n": 5,
            "model.rope_dims": 8,
            "model.bigram_vocab_size": 0,
            "model.loop_start": 2,
            "model.loop_end": 2,
            "averaging": EMA,
            "export.storage": rules(TABLES_INT8[0], ("blocks.*.weight", "int6")),
            "export.quantizer": SIGMA_GPTQ,
        },
        vocab_size=8192,
        published="1.0856",
    ),
    *(
        Variant(
            name,
            name,
            {
                "model.xsa_last_n": 5,
                "model.rope_dims": 8,
                "model.bigram_vocab_size": 0,
                "model.loop_start": 1,
                "model.loop_end": 2,
                "model.parallel_from": 3,
                "averaging": EMA,
                "export.storage": rules(TABLES_INT8[0], ("blocks.*.weight", "int6")),
                "export.quantizer": SIGMA_GPTQ,
                "scorer": TRAINS_AT_TEST_TIME,
            },
            vocab_size=8192,
            published=published,
        )
        for name, published in (("record_sp8192_ttt", "1.0810"), ("record_sp8192_gates", "1.0775"))
    ),
)

TECHNIQUES = (
    technique("exclusive attention, all layers", {"model.xsa_last_n": 5}, "-0.002 and -0.0018", "maybe"),
    technique("partial rotary positions", {"model.rope_dims": 8}, "-0.0023 with the next", "no"),
    technique("norms scaled by depth", {"model.ln_scale": True}, "-0.0023 with the last", "no"),
    technique("LeakyReLU(0.5)^2", {"model.mlp_leak": 0.5}, "-0.002 to -0.003", "maybe"),
    technique("MLP 4x", {"model.mlp_mult": 4.0}, "in a bundle of -0.017", "no"),
    technique("gated skips", {"model.skip_gates": True}, "", "no"),
    technique("query gain 4", {"model.qk_gain_init": 4.0}, "-0.0039", "yes"),
    technique("row-normalized Muon", {"model.optimizer.row_normalize": True}, "-0.001", "no"),
    technique(
        "Polar Express",
        {"model.optimizer.newton_schulz_coefficients": "polar_express"},
        "-0.002 with two more",
        "maybe",
    ),
    technique("learning-rate floor 0.1", {"schedule.min_multiplier": 0.1}, "-0.002 with two more", "maybe"),
    technique(
        "weight decay 0.085",
        {"model.optimizer.matrix_weight_decay": 0.085, "model.optimizer.embedding_weight_decay": 0.085},
        "smaller file",
        "no",
    ),
    technique("EMA for snapshots", {"averaging": EMA}, "-0.003 and -0.0006", "no"),
    technique("no hash table", {"model.bigram_vocab_size": 0}, "", "yes"),
    technique(
        "layer 2 looped from half",
        {"model.loop_start": 2, "model.loop_end": 2, "model.num_loops": 2} | {"loops.start_fraction": 0.5},
        "-0.003",
        "per step",
    ),
    technique("parallel residuals", {"model.parallel_from": 3}, "-0.0003 to -0.002", "no"),
    technique("SmearGate by content", {"model.smear": "content"}, "-0.0026 with the next two", "no"),
    technique("gated attention heads", {"model.gate_width": 12}, "-0.0026 with two more", "no"),
    technique("softcap 15", {"model.logit_softcap": 15.0}, "-0.0026 with the last two", "no"),
    technique("shuffled sequences", {"data.order": "shuffled"}, "", "not said"),
    technique("8,192 pieces", {}, "in a bundle of -0.0123", "yes", vocab_size=8192),
    technique("score-first training", {"scorer": TRAINS_AT_TEST_TIME}, "-0.0017 to -0.0032", "yes, more"),
    NO_QAT,
    technique(
        "GPTQ",
        {"late_qat.start_fraction": 1.0, "export.quantizer": gptq(matrix_sigmas=0.0, table_sigmas=0.0)},
        "-0.0046 in a bundle",
        "no",
        against=NO_QAT.name,
    ),
    technique(
        "GPTQ, all int6, k-sigma scales",
        {
            "late_qat.start_fraction": 1.0,
            "export.quantizer": gptq(matrix_sigmas=12.85, table_sigmas=20.0),
            "export.storage": rules(*RECIPE_STORAGE, ("blocks.*.weight", "int6")),
        },
        "in a bundle of -0.0123",
        "in size",
        against=NO_QAT.name,
    ),
)

VARIANTS = {variant.name: variant for variant in (*RUNGS, *TECHNIQUES)}


def run_settings(variant: Variant, seed: int, steps: int) -> Settings:
    """Everything that a run sets after its configuration, but for the folders: nested, as YAML has it.

    Args:
        variant: What to run.
        seed: Decides the initial weights. The data's order does not depend on it.
        steps: Optimizer steps.
    """
    flat = {
        "seed_everything": seed,
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.strategy": "auto",
        "trainer.precision": "32-true",
        "trainer.max_steps": steps,
        "trainer.limit_val_batches": 0,
        "checkpoint.every_seconds": 0,
        "trainer.enable_progress_bar": False,
        "trainer.enable_model_summary": False,
        "trainer.callbacks": [{"class_path": "benchmarks.ladder.runs.Pace"}],
        "model.compile": False,
        "data.train_batch_tokens": BATCH_TOKENS,
        "data.train_seq_len": SEQ_LEN,
        "data.train_micro_batches": 1,
        "warmup.steps": 0,
        "clock.max_seconds": 0.0,
        "clock.reserve_seconds": 0.0,
        "schedule.momentum_warmup_steps": round(MOMENTUM_WARMUP * steps),
        "scoring.seq_len": SEQ_LEN,
        "scoring.stride": SEQ_LEN // 2,
        "scoring.windows_per_batch": 16,
        **{f"model.{name}": value for name, value in MODEL.items()},
        **variant.settings,
    }
    nested: Settings = {}
    for name, value in flat.items():
        *sections, last = name.split(".")
        section = nested
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = value
    return nested
