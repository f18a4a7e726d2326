"""Which prompts of an evaluation training used: tracing through the records, and what is said when it ends."""

import gzip
import json
import shutil
from pathlib import Path

import pytest

from wukong.data import read_comparisons
from wukong.data.overlap import normalised, overlap
from wukong.data.split import split_by_prompt
from wukong.kitchen.world import write_world
from wukong.provenance import open_run
from wukong.records import Comparison, Conversation, Prompt, Ranking, as_messages, read_records, write_records
from wukong.stages.online.ppo import PPOOptions
from wukong.stages.pretrain import PretrainOptions
from wukong.stages.reward import RewardOptions
from wukong.stages.sample import SampleOptions
from wukong.stages.sft import SFTOptions
from wukong.stages.tokenize import TokenizeOptions


def made(stage: str, options, inputs: list[str], directory: bool = True) -> str:
    """What a stage leaves when it is complete, without its training."""
    work = open_run(stage, options, inputs, directory=directory)
    file = options.out / "model.safetensors" if directory else options.out
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(stage)
    work.finish({}, [file])
    return str(options.out)


def conversation(question: str) -> Conversation:
    return Conversation(messages=[*as_messages(question), {"role": "assistant", "content": "Yes."}])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """text -> base -> sft -> reward, ppo; each stage has questions of its own."""
    root = tmp_path / "run"
    root.mkdir()
    (root / "corpus.jsonl").write_text(
        json.dumps({"text": "She asked: How long do\nBROWN eggs boil? Nobody knew."}) + "\n"
    )
    write_records(root / "taught.jsonl", [conversation(f"Taught question {n}?") for n in range(40)])
    compared = [
        Comparison(prompt=as_messages("Compared question 1"), chosen="a", rejected="b"),
        Ranking(prompt=as_messages("Ranked question 2"), responses=["a", "b"], groups=[[0], [1]]),
    ]
    write_records(root / "compared.jsonl", compared)
    write_records(root / "prompts.jsonl", [Prompt(messages=as_messages(f"Practised question {n}?")) for n in range(40)])
    names = {name: str(root / name) for name in ("corpus.jsonl", "taught.jsonl", "compared.jsonl", "prompts.jsonl")}
    corpus, taught, comparisons, prompts = names.values()
    text = made("tokenize", TokenizeOptions(out=root / "tokens", data=[corpus]), [corpus])
    base = made("pretrain", PretrainOptions(out=root / "base", data=text, model="test"), [text])
    sft = made("sft", SFTOptions(out=root / "sft", model=base, data=[taught], valid_fraction=0.3), [base, taught])
    judge = RewardOptions(out=root / "reward", model=sft, data=[comparisons], valid_fraction=0.0)
    reward = made("reward", judge, [sft, comparisons])
    policy = PPOOptions(out=root / "ppo", model=sft, reward_model=reward, prompts=[prompts], holdout=0.3)
    made("ppo", policy, [sft, reward, prompts])
    return root


def found(run: Path, *questions: str, of: str = "ppo") -> dict:
    return overlap([as_messages(question) for question in questions], [run / of])


def test_no_overlap_is_said_with_all_that_was_compared(run):
    answer = found(run, "Something new?", "Something else that nobody ever asked?")
    assert (answer["prompts"], answer["seen"], answer["unchecked"]) == (2, 0, [])
    assert {one["stage"] for one in answer["checked"]} == {"sft", "reward", "ppo"}
    assert answer["text"]["searched"] == 1, "two words stand in many a text"
    assert answer["words"].startswith("0 of 2 prompts were used in training: compared with the prompts of ")
    assert answer["words"].endswith("0 of the 1 prompts of 4 words or more occur verbatim in the pretraining text")


@pytest.mark.parametrize("question", ["Compared question 1", "Ranked question 2"])
def test_a_prompt_of_each_stage_is_found_however_it_is_written(run, question):
    written = [question, question.upper() + "?", f"  {question.replace(' ', '  ')} ! "]
    answer = found(run, "New?", *written)
    assert answer["seen"] == 3
    assert answer["words"].startswith(
        f'warning: 3 of 4 prompts were used in training, by reward (3), such as "{question}"'
    )


@pytest.mark.parametrize(("kind", "stage"), [("Taught", "sft"), ("Practised", "ppo")])
def test_prompts_that_a_stage_held_out_do_not_count(run, kind, stage):
    answer = found(run, *(f"{kind} question {n}?" for n in range(40)))
    assert 0 < answer["seen"] < 40
    [checked] = [one for one in answer["checked"] if one["stage"] == stage]
    assert answer["seen"] == checked["seen"] == checked["prompts"]


def test_later_questions_of_a_dialogue_and_other_system_messages_are_found(run):
    dialogue = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "One."}, {"role": "user", "content": "Second?"},
        {"role": "assistant", "content": "Two."},
    ]  # fmt: skip
    extra = run / "more.jsonl"
    write_records(extra, [Conversation(messages=dialogue)])
    base = str(run / "base")
    made("sft", SFTOptions(out=run / "more", model=base, data=[str(extra)], valid_fraction=0.0), [base, str(extra)])
    asked = [
        as_messages("first"),
        as_messages(dialogue[1:4]),
        as_messages([{**dialogue[0], "content": "Be long."}, dialogue[1]]),
    ]
    answer = overlap([*asked, as_messages("second")], [run / "more"])
    assert answer["seen"] == 3, "the second question alone is another prompt"


def test_a_prompt_in_the_pretraining_text_is_told_from_one_that_was_trained_on(run):
    answer = found(run, "How long do brown eggs boil?", "How long do brown eggs keep?")
    assert (answer["seen"], answer["text"]["found"], answer["text"]["searched"]) == (0, 1, 2)
    assert "1 of the 2 prompts of 4 words or more occur verbatim in the pretraining text" in answer["words"]


@pytest.mark.parametrize("harm", ["gone", "changed", "damaged"])
def test_data_that_cannot_be_checked_are_named_and_never_count_as_no_overlap(run, harm):
    file = run / "compared.jsonl"
    if harm == "gone":
        file.unlink()
    else:
        file.write_text("{" if harm == "damaged" else file.read_text() + "\n")
    answer = found(run, "Compared question 1")
    assert [one["source"] for one in answer["unchecked"]] == [str(file)]
    assert "reward was trained on it, but it is missing or has changed since" in answer["words"]
    for other in ("taught.jsonl", "prompts.jsonl", "corpus.jsonl"):
        (run / other).unlink()
    answer = found(run, "Compared question 1")
    assert len(answer["unchecked"]) == 4
    assert answer["words"].startswith(
        "could not check whether any of the 1 prompts were used in training; not checked: "
    )
    assert "0 of" not in answer["words"]


def test_a_model_of_unknown_origin_is_named(run, tmp_path):
    strange = tmp_path / "strange"
    strange.mkdir()
    answer = overlap([as_messages("New?")], [strange, "gpt2"])
    assert answer["unchecked"] == [
        {"source": name, "why": "its training data are not recorded"} for name in (str(strange), "gpt2")
    ]
    assert answer["words"].startswith("could not check whether any of the 1 prompts were used in training")
    taught = str(run / "taught.jsonl")
    options = SFTOptions(out=run / "tuned", model="gpt2", data=[taught], valid_fraction=0.0)
    made("sft", options, ["gpt2", taught])
    words = found(run, "New?", of="tuned")["words"]
    assert words.startswith("0 of 1 prompts were used in training: compared with the prompts of sft (40)")
    assert words.endswith("not checked: gpt2 (its training data are not recorded)")


def test_a_moved_run_is_followed_to_its_own_files(run, tmp_path):
    moved = tmp_path / "elsewhere" / "run"
    moved.parent.mkdir()
    shutil.move(run, moved)
    answer = found(moved, "Compared question 1")
    assert (answer["seen"], answer["unchecked"]) == (1, [])


def test_answers_lead_to_the_models_that_gave_them_and_kept_policies_to_their_run(run):
    prompts = str(run / "prompts.jsonl")
    sampled = SampleOptions(out=run / "responses.jsonl", prompts=[prompts], models=[str(run / "ppo")])
    made("sample", sampled, [str(run / "ppo"), prompts], directory=False)
    assert found(run, "Compared question 1", of="responses.jsonl")["seen"] == 1
    kept = run / "ppo" / "policies" / "iteration-000004"
    kept.mkdir(parents=True)
    answer = found(run, "Compared question 1", of="ppo/policies/iteration-000004")
    assert (answer["seen"], answer["unchecked"]) == (1, [])


def test_normalised_text():
    assert normalised("  How  to\nmake ＰＩＺＺＡ ?! ") == "how to make pizza"
    assert normalised("???") == "???"
    assert normalised("如何做饺子。") == "如何做饺子"


def test_the_kitchens_test_prompts_are_none_of_its_training_prompts(tmp_path):
    write_world(tmp_path / "data", seed=0, megabytes=0.3)
    sft = SFTOptions(out=tmp_path / "sft", model="test", data=[str(tmp_path / "data" / "instructions.jsonl")])
    made("sft", sft, ["test", *sft.data])
    ppo = PPOOptions(out=tmp_path / "ppo", model=str(sft.out), reward_model=str(sft.out),
                     prompts=[str(tmp_path / "data" / "prompts-train.jsonl")])  # fmt: skip
    made("ppo", ppo, [str(sft.out), *ppo.prompts])
    test = read_records(tmp_path / "data" / "prompts-test.jsonl", Prompt)
    answer = overlap([one.messages for one in test], [ppo.out])
    assert answer["seen"] == 0
    trained = read_records(tmp_path / "data" / "prompts-train.jsonl", Prompt)
    assert overlap([one.messages for one in trained], [ppo.out])["seen"] == len(trained)


def test_hh_prompts_of_a_reward_models_data_are_found(shared, tmp_path):
    """Real dialogues: those it was trained on are found, all of them; the ones it held out are not."""
    source = tmp_path / "hh.jsonl"
    with gzip.open(shared("hh-rlhf/harmless-base.jsonl.gz"), "rt") as lines:
        source.write_text("".join(line for line, _ in zip(lines, range(400), strict=False)))
    options = RewardOptions(out=tmp_path / "reward", model="test", data=[str(source)], valid_fraction=0.2)
    made("reward", options, ["test", str(source)])
    train, held = split_by_prompt(read_comparisons(source), 0.2, 0)
    assert overlap([one.prompt for one in train], [options.out])["seen"] == len(train)
    assert overlap([one.prompt for one in held], [options.out])["seen"] == 0
