"""Each question's lines in a script that has them, and none in one that does as it should."""

import ast

import pytest

from records.audit.hints import QUESTIONS, read_hints

BEFORE_EXPORT = """def main():
    val_tokens = load_validation_tokens("val")
    for step in range(10):
        eval_val(model, val_tokens)
    collect_hessians(model, val_tokens)
    quantize(model)
"""
AFTER_EXPORT = """def main():
    quantize(model)
    val_tokens = load_validation_tokens("val")
    eval_val(model, val_tokens)
"""
TRAINS_FIRST = """def eval_val_ttt(model, val_tokens):
    for chunk in chunks:
        loss = model(chunk)
        loss.backward()
        loss_sum += model(chunk)
"""
SCORES_FIRST = """def eval_val_ttt(model, val_tokens):
    for chunk in chunks:
        loss_sum += model(chunk)
        model(chunk).backward()
"""
TRAINING_LOOP = """def main(train_loader, val_tokens):
    for step in range(10):
        model(next(train_loader)).backward()
        eval_val(model, val_tokens)
"""
BEST_OF = """def eval_val(model, val_tokens):
    best = torch.minimum(nll_one, nll_two)
    for epoch in range(3):
        loss_sum += model(val_tokens)
"""
ONCE = """def eval_val(model, val_tokens):
    for window in windows:
        end = min(window + 1, total)
        loss_sum += model(val_tokens)
"""
SMEAR = """class SmearGate(nn.Module):
    def forward(self, x):
        return torch.lerp(x, shift(x), self.gate)
"""
SMEAR_MASKED = """class SmearGate(nn.Module):
    def forward(self, x, ids):
        return torch.where(ids == self.bos_id, x, torch.lerp(x, shift(x), self.gate))
"""
TRAIN_FILES = """class Hyperparameters:
    train_files = os.path.join(data_path, "fineweb_*.bin")
num_val_docs = 10_000
parser.add_argument("--val-docs", type=int, default=10000)
"""
OWN_FILES = """class Hyperparameters:
    train_files = os.path.join(data_path, "fineweb_train_*.bin")
    val_files = os.path.join(data_path, "fineweb_val_*.bin")
num_val_docs = 50_000
"""


@pytest.mark.parametrize(
    ("question", "text", "lines"),
    [
        ("validation before export", BEFORE_EXPORT, {2, 5}),
        ("validation before export", AFTER_EXPORT, set()),
        ("trained before scored", TRAINS_FIRST, {4}),
        ("trained before scored", SCORES_FIRST, {4}),  # to be looked at: scored first, and on the same targets?
        ("trained before scored", TRAINING_LOOP, set()),
        ("more than one score", BEST_OF, {2, 4}),
        ("more than one score", ONCE, set()),
        ("gate across documents", SMEAR, {1}),
        ("gate across documents", SMEAR_MASKED, set()),
        ("validation in training", TRAIN_FILES, {2, 3, 4}),
        ("validation in training", OWN_FILES, set()),
    ],
)
def test_a_question_finds_its_lines(question: str, text: str, lines: set[int]) -> None:
    assert {line for line, _ in QUESTIONS[question](ast.parse(text))} == lines


def test_training_before_scoring_is_told_from_after() -> None:
    [(_, first)] = QUESTIONS["trained before scored"](ast.parse(TRAINS_FIRST))
    [(_, after)] = QUESTIONS["trained before scored"](ast.parse(SCORES_FIRST))
    assert "adds up its score in line 5, later" in first
    assert "after it scored in line 3" in after


def test_hints_say_in_which_text_they_are() -> None:
    hints = read_hints({"": "import lzma\n", "unpacked": SMEAR}, {"model.smear_across_documents": True})
    assert [(hint.question, hint.place) for hint in hints] == [
        ("gate across documents", "CONFIG"),
        ("gate across documents", "unpacked line 1"),
    ]


def test_a_network_without_a_gate_mixes_nothing_in() -> None:
    assert read_hints({}, {"model.smear_across_documents": True, "model.smear": "none"}) == []


@pytest.mark.parametrize(("scorer", "places"), [("SlidingWindows", 0), ("Other", 1)])
def test_a_scorer_that_may_train_is_to_be_looked_at(scorer: str, places: int) -> None:
    hints = read_hints({}, {"scorer.class_path": f"components.scorer.{scorer}"})
    assert [(hint.question, hint.place) for hint in hints] == [("trained before scored", "CONFIG")] * places
