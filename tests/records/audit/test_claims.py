import json
from typing import Any

import pytest

from records.audit.claims import read_claims


def claims_of(**content: Any):  # type: ignore[no-untyped-def]
    return read_claims(json.dumps(content).encode())


@pytest.mark.parametrize(
    ("name", "figure"),
    [
        *(("val_bpb", "val_bpb"), ("mean_val_bpb", "val_bpb"), ("val_bpb_mean", "val_bpb")),
        *(("val_loss_sliding", "val_loss"), ("steps", "steps"), ("train_steps", "steps"), ("step_stop", "steps")),
        *(("train_time_s", "train_seconds"), ("wallclock_seconds", "train_seconds")),
        *(("eval_time_s_mean", "eval_seconds"), ("ttt_eval_time_s", "eval_seconds")),
        *(("artifact_bytes", "bytes_total"), ("artifact_size_bytes", "bytes_total")),
        *(("bytes_model_int6_zstd", "bytes_model"), ("code_bytes", "bytes_code"), ("model_params", "num_params")),
    ],
)
def test_figures_are_found_under_the_names_they_go_by(name: str, figure: str) -> None:
    assert claims_of(**{name: 600}).top == {figure: 600}


def test_the_plainest_of_several_names_counts() -> None:
    assert claims_of(artifact_bytes_mean=3, bytes_total=1, artifact_bytes=2).top == {"bytes_total": 1}


def test_results_of_seeds_come_by_their_seed_or_in_a_list() -> None:
    by_seed = claims_of(seed_results={"42": {"val_bpb": 1.5}, "7": {"val_bpb": 1.25, "note": "x"}})
    assert by_seed.seeds == {42: {"val_bpb": 1.5}, 7: {"val_bpb": 1.25}}
    assert claims_of(seed_results=[{"seed": 42, "val_bpb": 1.5}]).seeds == {42: {"val_bpb": 1.5}}


@pytest.mark.parametrize(
    ("content", "count"),
    [
        ({"n_seeds": 5}, 5),
        ({"blurb": "3-seed mean: 1.1122"}, 3),
        ({"seeds": [1, 2]}, 2),
        ({"seed_results": {"1": {}, "2": {}, "3": {}, "4": {}}, "seeds": [1]}, 4),
        ({"name": "one run"}, 0),
    ],
)
def test_of_how_many_seeds_a_submission_speaks(content: dict[str, Any], count: int) -> None:
    assert claims_of(**content).num_seeds == count


def test_folders_that_a_sentence_names() -> None:
    claims = claims_of(notes="logs in ttt_pr1767/. See records/x and https://host/a/b/", blurb="int6/zstd")
    assert claims.folders == ("ttt_pr1767/",)


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ({"val_bpb": "1.1"}, "val_bpb is '1.1'"),
        ({"val_bpb": True}, "val_bpb is True"),
        ({"bytes_total": 1.5}, "bytes_total is 1.5"),
        ({"val_loss": 1e300}, "val_loss is 1e+300"),
        ({"seeds": "42"}, "seeds is '42'"),
        ({"seeds": [1.5]}, "seeds is a list"),
        ({"seed_results": {"x": {}}}, "seed_results has 'x'"),
        ({"seed_results": 3}, "seed_results is 3"),
        ({"baseline_val_losses": [None]}, "baseline_val_losses is a list"),
        ({"author": 3}, "author is 3"),
    ],
)
def test_what_is_not_of_its_type_is_named(content: dict[str, Any], wrong: str) -> None:
    claims = claims_of(**content)
    assert claims.wrong == (wrong,)
    assert claims.top == {}


def test_a_mean_may_have_fractions_and_p_may_be_a_bound() -> None:
    claims = claims_of(artifact_bytes_mean=1.5, p_value="<0.001")
    assert claims.wrong == ()
    assert claims.top == {"bytes_total": 1.5}


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff", b"[" * 100_000, b'{"val_bpb": ' + b"9" * 10_000 + b"}"])
def test_what_is_no_object_is_said(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"JSON|nested"):
        read_claims(data)
