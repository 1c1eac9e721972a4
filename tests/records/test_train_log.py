from records.train_log import parse_log

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
model_params:24730705
step:1/20000 train_loss:6.9300 train_time:500ms step_avg:500.00ms
step:1000/20000 val_loss:2.2448 val_bpb:1.3295 train_time:117000ms step_avg:117.00ms
step:4354/20000 val_loss:2.0105 val_bpb:1.1907 train_time:601991ms step_avg:138.26ms
stopping_early: wallclock_cap train_time:601991ms step:4354/20000
Serialized model: 98437419 bytes
Serialized model int6+zstd: 15425120 bytes
final_eval_mode:sliding_window stride:64
final_int8_zlib_roundtrip val_loss:1.9634 val_bpb:1.1628 eval_time:170700ms
final_int8_zlib_roundtrip_exact val_loss:1.96338430 val_bpb:1.16282670
"""


def test_this_projects_log() -> None:
    log = parse_log(OURS)
    assert log.losses == {50: 4.1203, 100: 3.9}
    assert log.validations == {100: 1.970825}
    assert (log.step_stop, log.train_seconds, log.eval_seconds) == (120, 10.684, 70.287)
    assert (log.val_loss, log.val_bpb) == (1.97908517, 1.17901533)  # the artifact's, not the float weights'
    assert (log.bytes_model, log.num_params) == (15258044, 1544361)


def test_a_log_in_the_public_scripts_words() -> None:
    log = parse_log(PUBLIC)
    assert (log.seed, log.num_params) == (1337, 24730705)
    assert log.losses == {1: 6.93}
    assert log.validations == {1000: 1.3295, 4354: 1.1907}
    assert (log.step_stop, log.train_seconds, log.eval_seconds) == (4354, 601.991, 170.7)
    assert (log.val_loss, log.val_bpb) == (1.9633843, 1.1628267)
    assert log.bytes_model == 15425120  # compressed, not the plain state


def test_a_text_without_figures() -> None:
    log = parse_log("hello\nstep by step\n")
    assert log.step_stop is None
    assert log.val_bpb is None
    assert log.losses == {}
