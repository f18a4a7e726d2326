"""Demonstrations -> a model that answers: the loss counts what the assistant says, and nothing else."""

import json
import math

import numpy as np
import pytest
import torch

from tests.reference.losses import log_softmax
from tests.stages.tiny_data import (
    FAST,
    curves,
    demonstrations,
    die_before,
    made_files,
    stop_after,
    tokenised,
    write_jsonl,
    written,
)
from wukong.data.batches import Example, epoch_batch
from wukong.data.split import split_by_prompt
from wukong.data.summary import ReadSummary
from wukong.errors import DataError, UsageError
from wukong.model.gpt2 import GPT2
from wukong.model.hub import load_policy
from wukong.records import Conversation
from wukong.scoring import kl_to_start
from wukong.stages.pretrain import PretrainOptions
from wukong.stages.pretrain import run as pretrain
from wukong.stages.sft import SFTOptions, examples_of, response_loss, run
from wukong.tokenizer import EOS, Tokenizer
from wukong.training.compute import Compute

CPU = Compute(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """base/: a model that has read a little; data.jsonl: demonstrations."""
    directory = tmp_path_factory.mktemp("sft")
    tokens = tokenised(directory)
    pretrain(PretrainOptions(data=tokens, model="test", tokens=2048, batch_tokens=256, out=directory / "base", **FAST))
    write_jsonl(directory / "data.jsonl", demonstrations())
    return directory


BASE = {"epochs": 2.0, "batch_size": 8, "lr": 1e-2, "warmup_steps": 2, "valid_fraction": 0.2, "dropout": 0.1} | FAST
BASE |= {"eval_every": 2}


@pytest.fixture
def options(place, tmp_path):
    def make(**changes) -> SFTOptions:
        base = {"model": str(place / "base"), "data": [str(place / "data.jsonl")], "out": tmp_path / "sft"}
        return SFTOptions(**(base | BASE | changes))

    return make


@pytest.fixture(scope="module")
def finished(place):
    done = SFTOptions(model=str(place / "base"), data=[str(place / "data.jsonl")], out=place / "whole", **BASE)
    run(done)
    return done


@pytest.fixture
def base(place) -> tuple[GPT2, Tokenizer]:
    model, tokenizer = load_policy(place / "base")
    return model.eval(), tokenizer


def conversations() -> list[Conversation]:
    return [Conversation.model_validate(record) for record in demonstrations()]


def loss_by_hand(model: GPT2, tokenizer: Tokenizer, conversation: Conversation) -> list[float]:
    """-log p of each token of the assistant's answers and of the end token behind each, one answer at a time: the
    text before an answer is what `prompt_ids` gives to the sampler."""
    nats = []
    for turn, message in enumerate(conversation.messages):
        if message.role != "assistant":
            continue
        before = tokenizer.prompt_ids(list(conversation.messages[:turn]))
        answer = [*tokenizer.encode(message.content), tokenizer.eos_id]
        with torch.no_grad():
            logits = model.logits(model(torch.tensor([before + answer])))[0].tolist()
        for place, token in enumerate(answer, start=len(before)):
            nats.append(-log_softmax(logits[place - 1])[token])
    return nats


# --------------------------------------------------------------------------------------------------- the loss


def test_the_loss_counts_the_assistants_tokens_only(base):
    model, tokenizer = base
    some = conversations()[:7]  # two of them with two turns
    examples = examples_of(some, tokenizer, 64, ReadSummary())
    expected = [x for one in some for x in loss_by_hand(model, tokenizer, one)]
    loss, count = response_loss(model, examples, CPU)
    assert count == len(expected) == sum(sum(e.response) for e in examples)
    assert loss.item() == pytest.approx(sum(expected), rel=1e-5)
    assert 0.2 < count / sum(len(e.ids) for e in examples) < 0.8


def test_an_example_does_not_see_the_others_in_its_row(base):
    model, tokenizer = base
    one, other = examples_of(conversations()[1:3], tokenizer, 64, ReadSummary())
    assert len(one.ids) + len(other.ids) <= 64, "they must share a row"
    alone = response_loss(model, [one], CPU)[0].item()
    silent = Example(other.ids, [False] * len(other.ids))
    changed = Example([(token + 1) % 200 for token in other.ids], silent.response)
    for neighbour in (silent, changed):
        for pair in ([one, neighbour], [neighbour, one]):
            assert response_loss(model, pair, CPU)[0].item() == pytest.approx(alone, rel=1e-5)


def test_questions_get_no_gradient_of_their_own(base):
    """The gradient on the logits is zero at every position that predicts a token of a question."""
    model, tokenizer = base
    example = examples_of(conversations()[:1], tokenizer, 64, ReadSummary())[0]
    hidden = []
    hook = model.ln_f.register_forward_hook(lambda _, __, out: (out.retain_grad(), hidden.append(out))[0])
    response_loss(model, [example], CPU)[0].backward()
    hook.remove()
    reached = hidden[0].grad[0].abs().sum(-1) > 0  # (T,)
    assert reached.tolist() == [*example.response[1:], False]


def test_the_first_logged_loss_is_the_mean_over_the_batchs_response_tokens(options, base):
    run(options(dropout=0, micro_batch_tokens=100))
    model, tokenizer = base
    train, _ = split_by_prompt(conversations(), 0.2, 0)
    batch = [train[i] for i in epoch_batch(len(train), 0, 8, 0)]
    expected = [x for one in batch for x in loss_by_hand(model, tokenizer, one)]
    first = curves(options().out)[0]
    assert first["loss"] == pytest.approx(np.mean(expected), abs=1e-4)
    assert first["response_tokens"] == len(expected)


def test_micro_batches_change_nothing_but_rounding(options, tmp_path):
    run(options(dropout=0, out=tmp_path / "whole"))
    run(options(dropout=0, micro_batch_tokens=60))
    for whole, parts in zip(curves(tmp_path / "whole"), curves(options().out), strict=True):
        assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-3)
    first = [curves(out)[0] for out in (tmp_path / "whole", options().out)]
    assert first[0]["grad_norm"] == pytest.approx(first[1]["grad_norm"], rel=1e-4)


# -------------------------------------------------------------------------------------------------- the examples


def test_examples_are_what_the_sampler_will_see(base):
    _, tokenizer = base
    one = conversations()[0]
    example = examples_of([one], tokenizer, 64, ReadSummary())[0]
    ids, response = example.ids, example.response
    said = tokenizer.decode([t for t, counted in zip(ids, response, strict=True) if counted], skip_special=False)
    assert said == f"{one.messages[1].content}{EOS}{one.messages[3].content}{EOS}"
    first = tokenizer.prompt_ids(list(one.messages[:1]))
    assert ids[: len(first)] == first
    assert not any(response[: len(first)])


def test_a_long_demonstration_is_cut_and_one_without_an_answer_left_is_dropped(base):
    _, tokenizer = base
    whole = examples_of(conversations()[:1], tokenizer, 64, ReadSummary())[0]
    question = whole.response.index(True)
    summary = ReadSummary()
    cut = examples_of(conversations()[:1], tokenizer, question + 2, summary)[0]
    assert (cut.ids, cut.response) == (whole.ids[: question + 2], whole.response[: question + 2])
    assert summary.truncated == {f"longer than the context of {question + 2} tokens": 1}
    summary = ReadSummary()
    assert examples_of(conversations()[:1], tokenizer, question, summary) == []
    assert summary.dropped == {"longer than the context before any answer": 1}


def test_epochs_follow_each_other_without_a_gap():
    seen = np.concatenate([epoch_batch(10, step, 4, seed=0) for step in range(10)])  # 40 = 4 epochs of 10
    assert [sorted(seen[i : i + 10]) for i in range(0, 40, 10)] == [list(range(10))] * 4
    assert len({tuple(seen[i : i + 10]) for i in range(0, 40, 10)}) == 4
    assert np.bincount(epoch_batch(3, 0, 8, seed=0)).tolist() in (
        [3, 3, 2],
        [3, 2, 3],
        [2, 3, 3],
    )  # more than an epoch a step


# --------------------------------------------------------------------------------------------------------- runs


def test_the_model_learns_to_answer_and_loads_in_transformers(finished):
    transformers = pytest.importorskip("transformers")
    losses = [line["loss"] for line in curves(finished.out)]
    assert losses[-1] < losses[0] - 0.5
    ours, tokenizer = load_policy(finished.out)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(finished.out).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(finished.out)
    question = [{"role": "user", "content": "How long do eggs take?"}]
    text = their_tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    ids = their_tokenizer(text)["input_ids"]
    assert ids == tokenizer.prompt_ids(question)
    with torch.no_grad():
        found = ours.logits(ours.eval()(torch.tensor([ids])))
        torch.testing.assert_close(found, theirs(torch.tensor([ids])).logits, rtol=1e-4, atol=1e-4)


def valid_loss_by_hand(options: SFTOptions) -> float:
    """The saved model's loss on the prompts that were held out."""
    model, tokenizer = load_policy(options.out)
    _, valid = split_by_prompt(conversations(), options.valid_fraction, options.seed)
    assert 2 < len(valid) < 12
    return float(np.mean([x for one in valid for x in loss_by_hand(model.eval(), tokenizer, one)]))


def test_the_validation_loss_is_that_of_unseen_prompts(finished):
    record = json.loads((finished.out / "provenance.json").read_text())["results"]
    assert record["valid_loss"] == pytest.approx(valid_loss_by_hand(finished), abs=1e-4)
    assert record["data"]["kept"] == 30


def test_the_best_weights_are_saved_when_training_goes_wrong_later(options):
    run(options(lr_schedule="constant", lr=0.02, epochs=8.0, eval_every=2, max_grad_norm=0, dropout=0.5))
    measured = [line["valid_loss"] for line in curves(options().out) if "valid_loss" in line]
    assert min(measured) < measured[-1] - 1e-3, "or this shows nothing"
    assert valid_loss_by_hand(options()) == pytest.approx(min(measured), abs=1e-4)


def test_a_run_without_validation_keeps_its_last_weights(options):
    run(options(valid_fraction=0, epochs=0.5))
    assert json.loads((options().out / "provenance.json").read_text())["results"]["valid_loss"] is None
    assert not any("valid_loss" in line for line in curves(options().out))
    assert len(curves(options().out)) == math.ceil(0.5 * 30 / 8)


def test_another_template_is_trained_and_saved(options):
    run(options(template="plain", epochs=0.5))
    assert load_policy(options().out)[1].template != load_policy(options().model)[1].template
    assert Tokenizer.load(options().out).render("Hello") == Tokenizer.train([], 257, "plain").render("Hello")


def test_a_finished_stage_is_not_done_again_and_other_options_are_refused(finished):
    before = written(finished.out)
    run(finished)
    assert written(finished.out) == before
    with pytest.raises(UsageError, match=r"made with other options \(epochs: 2.0 -> 3.0\)"):
        run(finished.model_copy(update={"epochs": 3.0}))


@pytest.mark.parametrize("stops", [[1], [2, 5], [6]])
def test_a_stopped_run_equals_an_uninterrupted_one(options, finished, monkeypatch, stops):
    assert len(curves(finished.out)) == 6
    for step in stops:
        stop_after(step, run, options(), monkeypatch)
    run(options())
    assert made_files(options().out) == made_files(finished.out)
    assert curves(options().out) == curves(finished.out)


@pytest.mark.parametrize("file", ["checkpoints/step-000005", "model.safetensors"])
def test_a_run_that_died_equals_an_uninterrupted_one(options, finished, file):
    die_before(file, run, options(checkpoint_seconds=0))
    run(options(checkpoint_seconds=0))
    assert made_files(options().out) == made_files(finished.out)
    assert curves(options().out) == curves(finished.out)


def test_demonstrations_that_leave_nothing_are_refused(options, tmp_path):
    long = {"messages": [{"role": "user", "content": "rice " * 200}, {"role": "assistant", "content": "Yes."}]}
    data = write_jsonl(tmp_path / "long.jsonl", [long])
    with pytest.raises(UsageError, match=r"long\.jsonl: no demonstration is left to train on"):
        run(options(data=[str(data)], valid_fraction=0))


def test_a_record_without_an_answer_is_named(options, tmp_path):
    data = write_jsonl(tmp_path / "bad.jsonl", [{"instruction": "Hi", "output": "Ho"}, {"instruction": "Hi"}])
    with pytest.raises(DataError, match=r"bad\.jsonl:2: .*output"):
        run(options(data=[str(data)]))
    assert not (options().out / "model.safetensors").exists()


def test_the_distance_to_the_starting_model_by_hand(tiny_models) -> None:
    """The KL of the two softmaxes at each token of the response, the prompt's left out."""
    (ours, tokenizer), (start, _) = (load_policy(tiny_models / name) for name in ("other", "sft"))
    prompt, answer = tokenizer.encode("ask"), tokenizer.encode("told")
    expected = 0.0
    with torch.no_grad():
        p, q = (m.eval().logits(m(torch.tensor([prompt + answer])))[0].double().softmax(-1) for m in (ours, start))
    for t in range(len(prompt) - 1, len(prompt) + len(answer) - 1):
        expected += sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p[t], q[t], strict=True))
    answers = [(prompt + answer, [False] * len(prompt) + [True] * len(answer))]
    assert kl_to_start(ours, start, answers) == pytest.approx(expected / len(answer), rel=1e-4)
    assert kl_to_start(ours, ours, answers) == 0
