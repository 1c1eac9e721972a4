"""The storage rules: which rule decides, what a rule may say, and the recipe's rules against the public export."""

import json
from typing import Any

import pytest
from safetensors.torch import load_file

from components.errors import UserError
from components.storage import RECIPE, Storage, StorageRule, assign, keep_last_keys, refuse_idle_rules
from tests.support import GOLDEN, needs_golden, recipe_storages, tiny_network


def deciding(rules: list[StorageRule], *shape: int, name: str = "blocks.2.mlp.fc.weight") -> StorageRule:
    [rule] = assign({name: shape}, rules).values()
    return rule


def test_the_first_rule_that_fits_decides() -> None:
    rules = [
        StorageRule("other.*", "float16"),
        StorageRule("blocks.*.mlp.*", "int5"),
        StorageRule("blocks.*", "int6"),
        StorageRule("blocks.2.mlp.fc.weight", "int8"),
    ]
    assert deciding(rules, 4, 4) is rules[1]
    assert deciding(rules[::-1], 4, 4) is rules[3]
    assert deciding(rules, 4, 4, name="blocks.2.attn.c_q.weight") is rules[2]


def test_a_rule_up_to_a_size_leaves_larger_tensors_to_the_next_one() -> None:
    rules = [StorageRule("*", "float16", at_most=12), StorageRule("*", "int8")]
    assert deciding(rules, 3, 4) is rules[0]
    assert deciding(rules, 13, 1) is rules[1]
    assert deciding([StorageRule("*", "int5"), *rules], 1000, 1000).storage == "int5"  # 0 stands for any size


def test_a_pattern_is_for_the_whole_name_in_its_case() -> None:
    rules = [
        StorageRule("mlp", "int5"),
        StorageRule("*.mlp", "int5"),
        StorageRule("BLOCKS.*", "int5"),
        StorageRule("*", "int8"),
    ]
    assert deciding(rules, 4, 4) is rules[3]


@pytest.mark.parametrize(("pattern", "blocks"), [("-1", [11]), ("-2", [10]), ("-12", [0]), ("-13", []), ("1", [1])])
def test_blocks_are_counted_from_the_start_or_from_the_end(pattern: str, blocks: list[int]) -> None:
    shapes = {f"blocks.{i}.attn.c_k.weight": (4, 4) for i in range(12)}
    rules = [StorageRule(f"blocks.{pattern}.attn.c_k.weight", "float16"), StorageRule("*", "int6")]
    assigned = assign(shapes, rules)
    assert [i for i in range(12) if assigned[f"blocks.{i}.attn.c_k.weight"] is rules[0]] == blocks


def test_the_last_block_is_the_last_of_all_tensors() -> None:
    # The last block may have fewer kinds of tensors than the others.
    shapes = {"blocks.0.attn.c_k.weight": (4, 4), "blocks.3.mlp.fc.weight": (4, 4)}
    rules = [StorageRule("blocks.-1.*", "int5"), StorageRule("blocks.-4.*", "int6")]
    assert [rule.storage for rule in assign(shapes, rules).values()] == ["int6", "int5"]


def test_a_tensor_that_no_rule_names_is_an_error() -> None:
    with pytest.raises(
        UserError,
        match=r"^No storage rule names new\.table\.weight, a tensor of 262,144 elements; add one for it to export\.sto",
    ):
        assign({"smear.gate": (512,), "new.table.weight": (512, 512)}, RECIPE)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), ()])
@pytest.mark.parametrize("storage", ["int5", "int6", "int8"])
def test_only_a_matrix_has_rows(storage: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=rf"^The storage rule for \* stores cube as {storage} rows, but its shape is "):
        assign({"cube": shape}, [StorageRule("*", storage)])
    assert assign({"cube": shape}, [StorageRule("*", "float16")])["cube"].kind is Storage.FLOAT16


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"names": ""}, "A storage rule has a name pattern of 0 characters; use 1 to 200."),
        ({"names": "*" * 201}, "A storage rule has a name pattern of 201 characters; use 1 to 200."),
        ({"at_most": -1}, r"The storage rule for \* has at_most -1; set it to 0 for any size or to a number"),
        (
            {"storage": "float16", "qat": True},
            r"The storage rule for \* asks late QAT to fake float16, .* qat to false",
        ),
    ],
)
def test_rules_without_a_meaning_are_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{sentence}"):
        StorageRule(**{"names": "*", "storage": "int8", **settings})


# The recipe


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("tok_emb.weight", (1024, 512), "float16"),
        ("tok_emb.weight", (8, 8), "float16"),
        ("lm_head.weight", (1024, 512), "int8"),
        ("bigram.embed.weight", (4096, 128), "int8"),
        ("bigram.proj.weight", (512, 128), "float16"),
        ("bigram.proj.weight", (513, 128), "int8"),
        ("bigram.scale", (), "float16"),
        ("blocks.3.mlp.fc.weight", (1536, 512), "int5"),
        ("blocks.3.mlp.proj.weight", (512, 1536), "int5"),
        ("blocks.3.attn.c_q.weight", (512, 512), "int6"),
        ("blocks.3.attn.c_k.weight", (256, 512), "int6"),
        ("blocks.3.attn.c_v.weight", (256, 512), "int6"),
        ("blocks.3.attn.proj.weight", (512, 512), "int6"),
        ("blocks.9.attn.c_k.weight", (256, 512), "float16"),
        ("blocks.9.attn.c_v.weight", (256, 512), "int6"),
        ("blocks.8.attn.c_k.weight", (256, 512), "int6"),
        ("blocks.3.attn.c_k.weight", (256, 256), "float16"),
        ("blocks.3.attn.c_k.weight", (257, 256), "int6"),
        ("blocks.3.mlp_scale", (512,), "float16"),
    ],
)
def test_the_recipe_s_storage_by_name_and_size(name: str, shape: tuple[int, ...], expected: str) -> None:
    ten_blocks = {f"blocks.{i}.mlp_scale": (512,) for i in range(10)}
    assert recipe_storages({**ten_blocks, name: shape})[name] == expected


@pytest.mark.parametrize(("keep", "kept_blocks"), [(0, []), (1, [9]), (3, [7, 8, 9]), (10, list(range(10)))])
def test_key_projections_of_the_last_blocks_are_kept(keep: int, kept_blocks: list[int]) -> None:
    shapes = {f"blocks.{i}.attn.c_k.weight": (256, 512) for i in range(10)}
    stored = recipe_storages(shapes, keep)
    assert [i for i, name in enumerate(shapes) if stored[name] is Storage.FLOAT16] == kept_blocks


@needs_golden
def test_the_recipe_agrees_with_the_public_export() -> None:
    weights = load_file(GOLDEN / "trained.safetensors")
    types = json.loads((GOLDEN / "tensor_types.json").read_text())
    stored = recipe_storages({name: weight.shape for name, weight in weights.items()})
    assert stored == {name: "float16" if kind.startswith("passthrough") else kind for name, kind in types.items()}


def test_the_recipe_fakes_the_matrices_of_blocks_alone() -> None:
    # As the public run did: its tables are rounded once, at export.
    shapes = tiny_network(
        model_dim=320, num_heads=5, num_kv_heads=5, bigram_vocab_size=1024, bigram_dim=256, tie_embeddings=False
    ).shapes()
    assigned = assign(shapes, (*keep_last_keys(1), *RECIPE))
    large = {name for name in shapes if name.startswith("blocks.") and shapes[name].numel() > 65_536}
    assert {name for name, rule in assigned.items() if rule.qat} == large - {"blocks.2.attn.c_k.weight"}


def refusal_of(rules: list[StorageRule] | tuple[StorageRule, ...], **settings: Any) -> str:
    with pytest.raises(UserError) as refused:
        refuse_idle_rules(tiny_network(**settings).shapes(), rules)
    return str(refused.value)


@pytest.mark.parametrize("names", ["nonsense.*", "blocks.3.*", "blocks.-4.*", "lm_head.weight", "skip_gates"])
def test_a_rule_that_matches_no_weight_of_the_network_is_an_error(names: str) -> None:
    assert refusal_of([*RECIPE, StorageRule(names, "float16")]) == (
        f"The storage rule for {names} matches no weight of this network; correct or remove it in export.storage."
    )


def test_a_rule_for_smaller_weights_than_there_are_is_an_error() -> None:
    sizes = [shape.numel() for shape in tiny_network().shapes().values()]
    refuse_idle_rules(tiny_network().shapes(), [StorageRule("*", "float16", at_most=min(sizes))])
    sentence = refusal_of([StorageRule("tok_emb.weight", "float16", at_most=1024 * 64 - 1)])
    assert "for tok_emb.weight matches no weight of at most 65,535 elements of this network" in sentence


def test_a_rule_that_matches_is_none_though_an_earlier_one_decides() -> None:
    rules = [StorageRule("*", "float16"), StorageRule("blocks.2.*", "int6"), StorageRule("blocks.-3.*", "int6")]
    refuse_idle_rules(tiny_network().shapes(), rules)


def test_the_recipes_rules_serve_networks_without_its_parts() -> None:
    shapes = tiny_network(bigram_vocab_size=0, smear="none").shapes()
    assert not [name for name in shapes if name.startswith(("bigram.", "lm_head."))]
    refuse_idle_rules(shapes, RECIPE)
