import pytest

from records.train_log import TrainLog, parse_log

OURS = """1544361 parameters, 8 ranks on cuda
start at step 0, elapsed 0.000 s
step 50 train_loss 4.1203 elapsed 4.500 s step_avg 90.00 ms
validation step 100 val_loss 3.221281 val_bpb 1.970825
late QAT from step 90, 8.100 s
step 100 train_loss 3.9000 elapsed 9.000 s step_avg 90.00 ms
stopped at step 120, elapsed 10.684 s
exported 15258044 bytes, with code 55000 bytes 15313044 bytes
float weights val_loss 1.99971096 val_bpb 1.18931758
artifact val_loss 1.97908517 val_bpb 1.17901533 scored in 70.287 s
"""

PUBLIC = """import torch
seed:1337
world_size:8 grad_accum_steps:1
model_params:24730705
step:1/20000 train_loss:6.9300 train_time:500ms step_avg:500.00ms
step:1000/20000 val_loss:2.2448 val_bpb:1.3295 train_time:117000ms step_avg:117.00ms
step:4354/20000 val_loss:2.0105 val_bpb:1.1907 train_time:601991ms step_avg:138.26ms
stopping_early: wallclock_cap train_time:601991ms step:4354/20000
Serialized model: 98437419 bytes
Code size: 56721 bytes
Total submission size: 98494140 bytes
Serialized model int6+zstd: 15425120 bytes
Total submission size int8+zlib: 15481841 bytes
final_eval_mode:sliding_window stride:64
final_int8_zlib_roundtrip val_loss:1.9634 val_bpb:1.1628 eval_time:170700ms
final_int8_zlib_roundtrip_exact val_loss:1.96338430 val_bpb:1.16282670
"""

LATER = """model_params:35944536
gptq:reserving 12s, effective=588000ms
4000/20000 val_loss: 2.8722 val_bpb: 1.1119
4500/20000 train_loss: 2.7622 train_time: 9.7m tok/s: 6095957
4550/20000 val_loss: 2.8119 val_bpb: 1.0886
stopping_early: wallclock_cap train_time: 588047ms step: 4550/20000
pre-quantization post-ema val_loss:2.80873254 val_bpb:1.08734790 eval_time:7440ms
Serialized model: 135431033 bytes
Code size: 16630 bytes
Serialized model quantized+brotli: 15975300 bytes
Total submission size quantized+brotli: 15991930 bytes
quantized val_loss:2.84065044 val_bpb:1.09970431 eval_time:25515ms
quantized_sliding_window val_loss:2.79714850 val_bpb:1.08286335 eval_time:120961ms
ttt:start chunks=1238 ttt_lr=0.005 ttt_epochs=3
ttt_progress: batch 782/782 batch_loss:2.5597 batch_bpb:1.0335 running_loss:2.5597 running_bpb:1.0335
quantized_ttt val_loss:2.79180191 val_bpb:1.08079352 eval_time:366525ms
"""


def scorings(log: TrainLog) -> list[tuple[str, float, float | None]]:
    return [(scoring.label, scoring.val_bpb, scoring.seconds) for scoring in log.scorings]


def test_this_projects_log() -> None:
    log = parse_log(OURS)
    assert log.losses == {50: 4.1203, 100: 3.9}
    assert log.validations == {100: 1.970825}
    assert (log.step_stop, log.train_seconds) == (120, 10.684)
    assert scorings(log) == [("artifact", 1.17901533, 70.287)]  # the float weights' score is another thing
    assert log.float_score is not None
    assert log.float_score.val_bpb == 1.18931758
    assert (log.bytes_model, log.bytes_code, log.bytes_total) == (15258044, 55000, 15313044)
    assert (log.num_params, log.world_size, log.device) == (1544361, 8, "cuda")


def test_calibration_after_the_last_step_is_training_time() -> None:
    calibrated = "calibrated on 64 micro-batches of training data in 5.100 s, elapsed 15.784 s\n"
    log = parse_log(OURS.replace("exported", calibrated + "exported"))
    assert (log.step_stop, log.train_seconds) == (120, 15.784)


def test_a_log_in_the_public_scripts_words() -> None:
    log = parse_log(PUBLIC)
    assert (log.seed, log.num_params, log.world_size) == (1337, 24730705, 8)
    assert log.losses == {1: 6.93}
    assert log.validations == {1000: 1.3295, 4354: 1.1907}
    assert (log.step_stop, log.train_seconds) == (4354, 601.991)
    assert log.step_seconds == pytest.approx(0.13826, abs=1e-5)
    assert scorings(log) == [("final_int8_zlib_roundtrip", 1.1628267, 170.7)]
    assert (log.bytes_model, log.bytes_code, log.bytes_total) == (15425120, 56721, 15481841)  # of what is compressed


def test_a_log_in_the_later_scripts_words() -> None:
    log = parse_log(LATER)
    assert log.losses == {4500: 2.7622}
    assert log.validations == {4000: 1.1119, 4550: 1.0886}
    assert (log.step_stop, log.train_seconds) == (4550, 588.047)
    assert log.float_score is not None
    assert log.float_score.val_bpb == 1.0873479
    assert scorings(log) == [
        ("quantized", 1.09970431, 25.515),
        ("quantized_sliding_window", 1.08286335, 120.961),
        ("quantized_ttt", 1.08079352, 366.525),
    ]
    assert (log.bytes_model, log.bytes_total) == (15975300, 15991930)


def test_a_total_time_is_the_last_scorings_and_a_repeated_score_is_no_other() -> None:
    log = parse_log(
        LATER + "total_eval_time:401.5s\nfinal_int8_zlib_roundtrip_exact val_loss:2.7918 val_bpb:1.08079352\n"
    )
    assert scorings(log)[-1] == ("quantized_ttt", 1.08079352, 401.5)


def test_a_run_to_its_last_step_ends_there() -> None:
    whole = parse_log("step:9000/9000 val_loss:1.9 val_bpb:1.1 train_time:590000ms step_avg:65.56ms\n")
    assert whole.train_seconds == 590.0
    in_minutes = parse_log("9000/9000 train_loss: 1.9 train_time: 9.9m tok/s: 1\n")
    assert in_minutes.train_seconds == pytest.approx(594)
    assert in_minutes.train_seconds_within == 3


def test_times_keep_the_decimals_of_their_units() -> None:
    ours, public = parse_log(OURS), parse_log(PUBLIC)
    assert ours.train_seconds is not None
    assert public.train_seconds is not None
    assert (ours.train_seconds.decimals, public.train_seconds.decimals) == (3, 3)


def test_a_run_that_breaks_off_says_no_time() -> None:
    broken = parse_log("step:100/9000 train_loss:1.9 train_time:5000ms step_avg:50.00ms\n")
    assert (broken.step_stop, broken.train_seconds) == (100, None)


@pytest.mark.parametrize(
    "text", ["hello\nstep by step\n", "step:" + "9" * 400 + "/1 val_loss:1 val_bpb:1\n", "seed:1e5x\n", "x" * 100_000]
)
def test_a_text_without_figures(text: str) -> None:
    assert parse_log(text) == TrainLog()
