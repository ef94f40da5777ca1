"""Multiple-choice questions: likelihoods against direct computations, files, and metrics of trained runs."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from optional_packages import needs
from small import text_table, train, write_text

from flops_fit_core import DataError, RunFailed
from flops_fit_core.config import make_experiment
from flops_fit_core.data import LanguageTask, MultipleChoice, Question, TokenDataset, read_multiple_choice
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins import ModelEvaluation
from flops_fit_core.plugins.registry import installed
from flops_fit_core.training import evaluation_metrics

TASK = LanguageTask(vocab_size=256, context=24)
QUESTIONS = [
    {"context": "the river ", "choices": ["falls", "grows", "stone and tree"], "answer": 1},
    {"context": "a model of the", "choices": [" data", " loss, every one"], "answer": " data"},
    {"context": "every tree of the cold river in the model", "choices": ["a", "bc", "def", "ghij"], "answer": 3},
    {"context": "", "choices": ["über", "under"], "answer": 0},
]


def write_questions(path, questions=QUESTIONS):
    path.write_text("\n".join(map(json.dumps, questions)) + "\n", encoding="utf-8")
    return path


def read(path, task=TASK, **options):
    return read_multiple_choice("quiz", path, task, encode=lambda text: list(text.encode()), start=0, **options)


def gpt(width=16, task=TASK, seed=0):
    torch.manual_seed(seed)
    spec = installed().find("model", "gpt/gpt").spec
    return spec.build(spec.options(width=width, depth=2, head_dim=8), task).eval()


@torch.no_grad()
def log_likelihood(logits_of, context, choice, window):
    """One token at a time, each from a forward pass of the unpadded ids before it."""
    ids = list(context) + list(choice)
    total = 0.0
    for position in range(len(context), len(ids)):
        begin = max(0, len(ids) - 1 - window)
        logits = logits_of(torch.tensor([ids[begin:position]]))[0, -1]
        total += float(torch.log_softmax(logits.double(), -1)[ids[position]])
    return total


def direct_metrics(logits_of, rows, window):
    """``rows``: (contexts, choices, answer, bytes) of each question."""
    hits, per_token, per_byte, bits = [], [], [], []
    for contexts, choices, answer, sizes in rows:
        scores = [log_likelihood(logits_of, *pair, window) for pair in zip(contexts, choices, strict=True)]
        by_token = [score / len(choice) for score, choice in zip(scores, choices, strict=True)]
        by_byte = [score / size for score, size in zip(scores, sizes, strict=True)]
        hits.append(scores.index(max(scores)) == answer)
        per_token.append(by_token.index(max(by_token)) == answer)
        per_byte.append(by_byte.index(max(by_byte)) == answer)
        bits.append(-scores[answer] / math.log(2) / sizes[answer])
    count = len(rows)
    return {
        "acc": sum(hits) / count,
        "acc_per_token": sum(per_token) / count,
        "acc_per_byte": sum(per_byte) / count,
        "bpb": sum(bits) / count,
    }


# ---------------------------------------------------------------------------- likelihoods


@pytest.mark.parametrize("seed", range(4))
def test_metrics_equal_a_direct_computation_token_by_token(tmp_path, seed):
    model = gpt(seed=seed)
    rows = []
    for item in QUESTIONS:
        context = item["context"].rstrip(" ")
        spaces = item["context"][len(context) :]
        answer = item["answer"] if isinstance(item["answer"], int) else item["choices"].index(item["answer"])
        choices = [list((spaces + choice).encode()) for choice in item["choices"]]
        contexts = [list(context.encode()) or [0]] * len(choices)
        rows.append((contexts, choices, answer, [len(choice.encode()) for choice in item["choices"]]))
    measured = read(write_questions(tmp_path / "quiz.jsonl")).metrics(model, "cpu", 10_000)
    assert measured == pytest.approx(direct_metrics(model, rows, TASK.context), rel=1e-5)


def test_batches_of_any_size_give_the_same_metrics(tmp_path):
    quiz, model = read(write_questions(tmp_path / "quiz.jsonl")), gpt()
    complete = quiz.metrics(model, "cpu", 10_000)
    for tokens in (1, 24, 72):
        assert quiz.metrics(model, "cpu", tokens) == pytest.approx(complete, rel=1e-6)


def test_a_model_that_knows_the_answers_makes_no_error():
    class Knows(torch.nn.Module):
        """Predicts the next number."""

        def forward(self, ids):
            return 50.0 * torch.nn.functional.one_hot((ids + 1) % 256, 256).float()

    questions = [Question(((3, 4),) * 2, ((9, 10), (5, 6)), 1), Question(((7,),) * 2, ((8,), (2,)), 0)]
    metrics = MultipleChoice("count", questions, TASK).metrics(Knows(), "cpu", 100)
    assert metrics == pytest.approx({"acc": 1, "acc_per_token": 1, "bits_per_token": 0}, abs=1e-6)


def test_lengths_count_as_the_metric_states():
    class Uniform(torch.nn.Module):
        def forward(self, ids):
            return torch.zeros(*ids.shape, 256)

    question = Question(((1,),) * 2, ((5, 6, 7), (5,)), 0, (12, 1))
    metrics = MultipleChoice("lengths", [question], TASK).metrics(Uniform(), "cpu", 100)
    # Sums are -24 and -8 bits; per token -8 and -8, of which the first counts; per byte -2 and -8.
    assert metrics == pytest.approx({"acc": 0, "acc_per_token": 1, "acc_per_byte": 1, "bpb": 2})


@needs("transformers")
@needs("tokenizers")
def test_a_transformers_model_and_a_tokenizer_give_the_metrics_of_a_plain_loop(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    text = " ".join(write_text(tmp_path / "text", files=1).glob("*").__next__().read_text().split()[:400])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    torch.manual_seed(1)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=12,
        )
    ).eval()
    task = LanguageTask(vocab_size=300, context=12)
    questions = [
        {"context": "every cold river", "choices": [" falls and", " stone", " loss of data"], "answer": 0},
        {
            "context": "the model of loss and the data of every tree or stone",
            "choices": [" grows", " in"],
            "answer": 1,
        },
    ]

    def encode(words):
        return tokenizer.encode(words, add_special_tokens=False).ids

    path = write_questions(tmp_path / "quiz.jsonl", questions)
    measured = read_multiple_choice("quiz", path, task, encode=encode).metrics(llama, "cpu", 48)
    rows = []
    for item in questions:
        length = len(encode(item["context"]))
        complete = [encode(item["context"] + choice) for choice in item["choices"]]
        sizes = [len(choice) for choice in item["choices"]]
        rows.append(
            ([ids[:length] for ids in complete], [ids[length:] for ids in complete], item["answer"], sizes)
        )
    expected = direct_metrics(lambda ids: llama(input_ids=ids).logits, rows, 12)
    assert measured == pytest.approx(expected, rel=1e-5)


# ---------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"context": "a", "choices": ["b"]}, 'the keys "context", "choices" and "answer"'),
        ({"context": "a", "choices": ["b"], "answer": 0}, "two or more texts"),
        ({"context": "a", "choices": ["b", "c"], "answer": 2}, "answer 2 is not the number of one of 2 choices"),
        ({"context": "a", "choices": ["b", "c"], "answer": "B"}, "answer 'B' is neither the number of a choice"),
        ({"context": "a", "choices": ["b", "b"], "answer": "b"}, "answer 'b' is neither"),
        ({"context": "a", "choices": ["b", "c"], "answer": True}, "answer True is neither"),
        ({"context": "a", "choices": ["b", ""], "answer": 0}, "a choice has 0 tokens"),
        ({"context": "a", "choices": ["b", "c" * 25], "answer": 0}, "a choice has 25 tokens; the window has room"),
        ({"context": "a", "choices": ["b", 3], "answer": 0}, "must all be texts, or all be lists of token ids"),
        ({"context": [1], "choices": [[2], [256]], "answer": 0}, "token id 256 is not below vocab_size = 256"),
    ],
)
def test_a_question_that_is_not_valid_is_named_by_its_line(tmp_path, question, message):
    path = write_questions(tmp_path / "quiz.jsonl", [QUESTIONS[0], question])
    with pytest.raises(DataError, match=r"multiple choice 'quiz', .*quiz\.jsonl, line 2: ") as raised:
        read(path)
    assert message in str(raised.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*none\.jsonl: No such file"):
        read(tmp_path / "none.jsonl")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"cannot read .*bytes\.jsonl: it is not UTF-8"):
        read(tmp_path / "bytes.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="there are no questions"):
        read(tmp_path / "empty.jsonl")
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    with pytest.raises(DataError, match="line 1"):
        read(tmp_path / "deep.jsonl")


def test_texts_need_a_tokenizer_and_an_empty_context_a_first_token(tmp_path):
    path = write_questions(tmp_path / "quiz.jsonl")
    with pytest.raises(DataError, match="line 1: this dataset has no tokenizer"):
        read_multiple_choice("quiz", path, TASK, encode=None)
    with pytest.raises(DataError, match="line 4: the context is empty"):
        read_multiple_choice("quiz", path, TASK, encode=lambda text: list(text.encode()))


def test_long_files_are_reduced_evenly(tmp_path):
    questions = [{"context": [number + 1], "choices": [[1], [2]], "answer": 0} for number in range(100)]
    quiz = read(write_questions(tmp_path / "quiz.jsonl", questions), max_questions=5)
    assert [question.contexts[0][0] for question in quiz.questions] == [11, 31, 51, 71, 91]


# ---------------------------------------------------------------------------- in the training loop


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """An experiment with questions, its results, and the results without the questions."""
    folder = tmp_path_factory.mktemp("study")
    text = write_text(folder / "text")
    path = write_questions(folder / "quiz.jsonl", [QUESTIONS[0], QUESTIONS[1]])
    plain = text_table(text)
    table = text_table(text, dataset={"multiple_choice": {"quiz": str(path)}})
    return table, train(table), train(plain)


def test_every_run_has_the_metrics_of_its_questions(study):
    _, results, _ = study
    for result in results:
        assert result.status == "completed"
        assert set(result.metrics) == {f"quiz/{name}" for name in ("acc", "acc_per_token", "acc_per_byte", "bpb")}
        assert result.metrics["quiz/acc"] in (0.0, 0.5, 1.0)


def test_questions_change_no_training(study):
    _, results, plain = study
    assert [result.loss for result in results] == [result.loss for result in plain]
    assert [result.curve for result in results] == [result.curve for result in plain]


def test_questions_identify_the_runs_and_their_path_does_not(study, tmp_path):
    table, results, plain = study
    assert {result.id for result in results}.isdisjoint(result.id for result in plain)
    source = Path(table["dataset"]["multiple_choice"]["quiz"])
    copy = tmp_path / "elsewhere.jsonl"
    copy.write_text(source.read_text())
    moved = {**table, "dataset": {**table["dataset"], "multiple_choice": {"quiz": str(copy)}}}
    assert [run.id for run in ids(moved)] == [run.id for run in ids(table)]
    copy.write_text(source.read_text().replace('"answer": 1', '"answer": 0'))
    assert {run.id for run in ids(moved)}.isdisjoint(run.id for run in ids(table))


def ids(table):
    return make_plan(make_experiment(table, installed())).runs


def test_a_file_that_changed_after_the_plan_is_another_dataset(tmp_path):
    spec = installed().find("dataset", "text/text").spec
    path = write_questions(tmp_path / "quiz.jsonl")
    options = spec.options(
        path=str(write_text(tmp_path / "text")), context=16, multiple_choice={"quiz": str(path)}
    )
    before = spec.build(options, 0).fingerprint
    write_questions(path, QUESTIONS[:2])
    assert spec.build(options, 0).fingerprint != before


def test_token_files_take_questions_of_ids(tmp_path):
    np.arange(400).astype("<u2").tofile(tmp_path / "train.bin")
    questions = [{"context": [5, 6], "choices": [[7], [300, 301]], "answer": 1}]
    path = write_questions(tmp_path / "quiz.jsonl", questions)
    spec = installed().find("dataset", "tokens/tokens").spec
    options = {"path": str(tmp_path / "train.bin"), "vocab_size": 400, "context": 8}
    plain = spec.build(spec.options(**options), 0)
    dataset = spec.build(spec.options(**options, multiple_choice={"quiz": str(path)}), 0)
    assert plain.evaluations == ()
    assert plain.fingerprint != dataset.fingerprint
    metrics = evaluate(dataset, gpt(task=dataset.task))
    assert set(metrics) == {"quiz/acc", "quiz/acc_per_token", "quiz/bits_per_token"}


@needs("datasets")
@needs("tokenizers")
def test_documents_and_questions_have_the_same_tokenizer(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [file.read_text() for file in write_text(tmp_path / "text", files=8).glob("*")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "docs.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    spec = installed().find("dataset", "hf/hf-dataset").spec
    options = spec.options(
        path=str(tmp_path / "docs.jsonl"),
        tokenizer=str(tmp_path / "tokenizer.json"),
        context=24,
        eval_share=0.4,
        cache=str(tmp_path / "cache"),
        multiple_choice={"quiz": str(write_questions(tmp_path / "quiz.jsonl"))},
    )
    (quiz,) = spec.build(options, 0).evaluations
    first, last = quiz.questions[0], quiz.questions[-1]
    assert [*first.contexts[1], *first.choices[1]] == tokenizer.encode("the river grows").ids
    assert last.contexts[0] == (tokenizer.token_to_id("<|endoftext|>"),)
    assert first.choice_bytes == (5, 5, 14)


class Scripted(ModelEvaluation):
    """An evaluation that returns what a test states, or runs out of memory above a batch size."""

    def __init__(self, name, values, most_tokens=None):
        self.name, self.values, self.most_tokens, self.asked = name, values, most_tokens, []

    def metrics(self, model, device, batch_tokens):
        self.asked.append((batch_tokens, model.training))
        torch.rand(3)
        if self.most_tokens is not None and batch_tokens > self.most_tokens:
            raise torch.OutOfMemoryError("no memory")
        return self.values


def dataset_with(*evaluations):
    row = torch.arange(200).numpy() % 256
    dataset = TokenDataset(row, row[:60], vocab_size=256, context=24, seed=0, fingerprint="x")
    dataset.evaluations = evaluations
    return dataset


def evaluate(dataset, model=None, tokens=4096):
    return evaluation_metrics(model or gpt(), dataset, device="cpu", batch_tokens=tokens, autocast=nullcontext())


def test_an_evaluation_runs_in_eval_mode_and_leaves_mode_and_generators():
    model = gpt().train()
    quiz = Scripted("quiz", {"acc": 0.5, "lost": math.nan})
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert evaluate(dataset_with(quiz), model) == {"quiz/acc": 0.5}
    assert torch.equal(torch.rand(2), expected)
    assert model.training
    assert quiz.asked == [(4096, False)]


def test_batches_are_halved_until_memory_suffices():
    quiz = Scripted("quiz", {"acc": 1.0}, most_tokens=1000)
    assert evaluate(dataset_with(quiz)) == {"quiz/acc": 1.0}
    assert [tokens for tokens, _ in quiz.asked] == [4096, 2048, 1024, 512]
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(dataset_with(Scripted("quiz", {}, most_tokens=3)))


def test_two_evaluations_of_one_name_are_refused():
    with pytest.raises(RunFailed, match="several evaluations with the name 'quiz'"):
        evaluate(dataset_with(Scripted("quiz", {}), Scripted("quiz", {})))


def test_a_model_that_diverged_has_no_metrics(tmp_path):
    model = gpt()
    torch.nn.init.constant_(model.head.weight, math.nan)
    quiz = read(write_questions(tmp_path / "quiz.jsonl"))
    assert evaluate(dataset_with(quiz), model) == {}
