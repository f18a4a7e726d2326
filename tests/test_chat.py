"""The chat, with tiny random models: what is asked of them, what is printed where, and what stays of it."""

import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from wukong import chat
from wukong.chat import COMMANDS, Chat, ChatOptions, chosen_models, load_speakers, named_sources
from wukong.data import load_instructions
from wukong.errors import DataError, UsageError
from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.model.heads import ScalarModel
from wukong.model.hub import load_policy, save_policy, save_reward
from wukong.records import Conversation, Message, read_records
from wukong.rollout import generate, stream
from wukong.seeds import derived_seed
from wukong.tokenizer import StreamDecoder, Tokenizer

DOCS = (Path(__file__).resolve().parents[1] / "docs/tools/chat.md").read_text(encoding="utf-8")
TEXTS = [f"Boil {n} eggs for {n % 9} minutes, then peel the eggs." for n in range(50)]
CONTEXT, ROOM = 96, 12


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Two tiny models, `sft` and `policy`, that answer differently, and a reward model."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = Tokenizer.train(TEXTS, 280)
    config = GPT2Config(vocab_size=280, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=2)
    for seed, name in enumerate(("sft", "policy")):
        torch.manual_seed(seed)
        save_policy(root / name, GPT2(config), tokenizer)
    save_reward(root / "reward", ScalarModel(GPT2(config), "linear", "last"), tokenizer)
    return root


@pytest.fixture
def options(models):
    def make(*names, **more) -> ChatOptions:
        return ChatOptions(
            models=[str(models / name) for name in names or ("sft", "policy")],
            **{"max_new_tokens": ROOM, "temperature": 1.0, **more},
        )

    return make


@pytest.fixture
def talk(options, monkeypatch, capsys):
    """Pipes lines through `run`; returns (standard output, standard error)."""

    def through(text: str, *names, **more) -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        chat.run(options(*names, **more))
        return capsys.readouterr()

    return through


@pytest.fixture
def scripted(monkeypatch):
    """Replaces the models' drawing: `scripted([...answers])` says what they answer; returns what they were asked.

    An answer is text, or a list of token ids; KeyboardInterrupt in a list is Ctrl-C at that moment.
    """
    asked = []
    tokenizer = Tokenizer.train(TEXTS, 280)

    def install(answers):
        remaining = list(answers)

        def fake(model, ids, *, eos_id, max_new_tokens, seed, **drawing):
            asked.append({"ids": ids, "text": tokenizer.decode(ids, skip_special=False), "seed": seed, **drawing})
            answer = remaining.pop(0)
            for token in [*tokenizer.encode(answer), eos_id[0]] if isinstance(answer, str) else answer:
                if token is KeyboardInterrupt:
                    signal.raise_signal(signal.SIGINT)
                yield token

        monkeypatch.setattr(chat, "stream", fake)
        return asked

    return install


@pytest.fixture
def conversation(options) -> Chat:
    chosen = options()
    return Chat(chosen, load_speakers(chosen, chosen.models), interactive=True)


def said(one: Chat) -> list[str]:
    return [message.content for message in one.messages]


# ------------------------------------------------------------------------------------------------------ drawing


def test_streamed_tokens_are_those_of_the_batch_sampler(models):
    model, tokenizer = load_policy(models / "sft")
    model.eval()
    prompts = [tokenizer.prompt_ids(text) for text in ("eggs", "Boil the eggs", "peel")]
    more = {"eos_id": tokenizer.eos_id, "max_new_tokens": 20, "temperature": 0.9, "top_k": 50, "top_p": 0.9}
    batch = generate(model, prompts, seeds=[5, 6, 7], **more)
    for prompt, seed, expected in zip(prompts, (5, 6, 7), batch, strict=True):
        assert list(stream(model, prompt, seed=seed, **more)) == expected.ids


def test_a_stream_that_does_not_fit_is_refused(models):
    model, tokenizer = load_policy(models / "sft")
    with pytest.raises(UsageError, match="does not fit"):
        next(stream(model, [1] * 90, eos_id=tokenizer.eos_id, max_new_tokens=20, seed=0))


def test_piped_lines_are_turns_and_answers_alone_reach_stdout(talk, options):
    out, err = talk("Boil eggs\n\n  \nand then?\n", "sft")
    speaker = load_speakers(options("sft"), options("sft").models)[0]
    messages, expected = [], ""
    for turn, question in ((1, "Boil eggs"), (3, "and then?")):  # the turn's number counts messages
        messages.append(Message(role="user", content=question))
        ids = speaker.tokenizer.prompt_ids(messages, max_tokens=CONTEXT - ROOM)
        eos_id, seed = speaker.tokenizer.eos_id, derived_seed(0, "chat", turn, 0)
        drawn = generate(speaker.model, [ids], eos_id=eos_id, max_new_tokens=ROOM, seeds=[seed])[0]
        decoder = StreamDecoder(speaker.tokenizer)
        answer = "".join(decoder.push(index) for index in drawn.ids)
        messages.append(Message(role="assistant", content=answer))
        expected += answer + "\n"
    assert out == expected
    assert "sft>" not in err


def test_a_chat_can_be_repeated_word_for_word(talk):
    lines = "Boil eggs\n/retry\nand then?\n"
    assert talk(lines) == talk(lines)
    assert talk(lines) != talk(lines, seed=1)


def test_options_of_drawing_reach_the_model(talk, scripted):
    asked = scripted(["a"])
    talk("eggs\n", temperature=0.3, top_k=7, top_p=0.8)
    assert {k: asked[0][k] for k in ("temperature", "top_k", "top_p")} == {
        "temperature": 0.3, "top_k": 7, "top_p": 0.8,
    }  # fmt: skip


def test_half_a_character_is_never_printed(conversation, scripted, monkeypatch, capsys):
    byte = conversation.current.tokenizer.encode  # characters outside the corpus have a token for each byte
    written = []
    monkeypatch.setattr("builtins.print", lambda *text, **_: written.append("".join(text)))
    scripted([[*byte("鸡"), *byte("蛋")[:2]]])
    conversation.handle("egg")
    assert len(byte("鸡")) == 3
    assert [piece for piece in written if piece] == ["鸡"]
    assert said(conversation) == ["egg", "鸡"]
    assert "cut at" in capsys.readouterr().err


def test_an_answer_cannot_steer_the_terminal(conversation, scripted, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    scripted(["\x1b]0;title\x07red\x1b[31m\x9b2J\tand\nlines"])
    conversation.handle("egg")
    assert capsys.readouterr().out == "\ufffd]0;title\ufffdred\ufffd[31m\ufffd2J\tand\nlines\n"
    assert "\x1b" in said(conversation)[-1]  # what was said is kept as it was


def test_piped_output_is_left_as_it_is(talk, scripted):
    scripted(["\x1b[31mred"])
    assert talk("egg\n")[0] == "\x1b[31mred\n"


def test_an_empty_answer_is_said_to_be_one(conversation, scripted, capsys):
    scripted([""])
    conversation.handle("egg")
    assert "no answer: the model ended its turn at once" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- the conversation


def test_earlier_turns_are_part_of_the_prompt(conversation, scripted):
    asked = scripted(["Boil them.", "Peel them."])
    conversation.handle("eggs")
    conversation.handle("then?")
    assert "eggs" in asked[1]["text"]
    assert "Boil them.<|endoftext|>" in asked[1]["text"]
    assert said(conversation) == ["eggs", "Boil them.", "then?", "Peel them."]


def test_the_oldest_turns_are_left_out_when_the_context_is_full(conversation, scripted):
    asked = scripted(["Boil the eggs"] * 4)
    for text in ("first", "second", "third", "fourth"):
        conversation.handle(text)
    assert len(asked[-1]["ids"]) <= CONTEXT - ROOM
    assert "first" not in asked[-1]["text"]
    assert "fourth" in asked[-1]["text"]
    assert len(conversation.messages) == 8  # the chat forgets nothing, another model may have more room


def test_a_turn_that_is_too_long_is_one_line_and_the_chat_goes_on(conversation, scripted, capsys):
    scripted(["Yes.", "Still here."])
    conversation.handle("eggs")
    conversation.handle("egg " * 100)
    error = capsys.readouterr().err
    assert re.search(r"the prompt has \d+ tokens, more than 84", error)
    assert said(conversation) == ["eggs", "Yes."]
    conversation.handle("then?")
    assert said(conversation)[-1] == "Still here."


def test_a_line_with_half_a_character_is_one_line_and_the_chat_goes_on(talk, scripted):
    scripted(["Yes."])
    out, err = talk("bad \udcff byte\neggs\n")
    assert "of this line is not valid UTF-8; nothing was asked" in err
    assert out == "Yes.\n"


def test_bytes_that_are_not_utf8_are_an_error_of_their_line(options, scripted, monkeypatch, capsys):
    scripted(["Yes."])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\neggs\n"), encoding="ascii"))
    chat.run(options())
    out, err = capsys.readouterr()
    assert "of this line is not valid UTF-8; nothing was asked" in err
    assert out == "Yes.\n"


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(conversation, scripted, capsys):
    encode = conversation.current.tokenizer.encode
    asked = scripted([[*encode("Boil "), KeyboardInterrupt, *encode("never")], "Yes."])
    conversation.handle("eggs")
    assert "stopped; the answer so far is kept" in capsys.readouterr().err
    assert said(conversation) == ["eggs", "Boil "]
    conversation.handle("go on")
    assert "Boil " in asked[1]["text"]


def test_ctrl_c_in_a_pipe_ends_the_program(talk, scripted):
    scripted([[1, KeyboardInterrupt]])
    with pytest.raises(SystemExit) as left:
        talk("eggs\nmore\n")
    assert left.value.code == 130


# ------------------------------------------------------------------------------------------------------- commands


def test_another_model_goes_on_with_the_conversation(conversation, scripted, capsys):
    asked = scripted(["One.", "Two."])
    conversation.handle("eggs")
    conversation.handle("/model policy")
    conversation.handle("then?")
    assert conversation.current.name == "policy"
    assert "One." in asked[1]["text"]
    assert "policy> " in capsys.readouterr().err


def test_an_unknown_model_or_command_changes_nothing(conversation, capsys):
    conversation.handle("/model nobody")
    conversation.handle("/sing")
    error = capsys.readouterr().err
    assert "no model 'nobody' is loaded; there are sft, policy" in error
    assert "no command /sing" in error
    assert conversation.current.name == "sft"


def test_models_are_listed_with_the_current_one_marked(conversation, capsys):
    conversation.handle("/models")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("* sft")
    assert lines[1].startswith("  policy")


def test_retry_answers_the_same_question_with_another_seed(conversation, scripted):
    asked = scripted(["One.", "Two.", "Three."])
    conversation.handle("eggs")
    conversation.handle("/retry")
    conversation.handle("/retry")
    assert len({one["seed"] for one in asked}) == 3
    assert len({one["text"] for one in asked}) == 1
    assert said(conversation) == ["eggs", "Three."]


def test_compare_asks_all_models_with_the_same_seed(conversation, scripted, capsys):
    asked = scripted(["Of sft.", "Of policy."])
    conversation.handle("/compare eggs")
    assert asked[0]["seed"] == asked[1]["seed"]
    assert said(conversation) == ["eggs", "Of sft."]  # the current model's
    out, err = capsys.readouterr()
    assert out == "Of sft.\nOf policy.\n"
    assert err.index("sft> ") < err.index("policy> ")


def test_compare_without_a_text_repeats_the_last_question(conversation, scripted):
    asked = scripted(["One.", "A.", "B."])
    conversation.handle("eggs")
    conversation.handle("/compare")
    assert {one["text"] for one in asked[1:]} == {asked[0]["text"]}
    assert said(conversation) == ["eggs", "A."]


@pytest.mark.parametrize("command", ["/retry", "/compare"])
def test_nothing_asked_yet_is_said(conversation, command, capsys):
    conversation.handle(command)
    assert "nothing was asked yet" in capsys.readouterr().err


def test_new_forgets_the_conversation(conversation, scripted):
    asked = scripted(["One.", "Two."])
    conversation.handle("eggs")
    conversation.handle("/new")
    conversation.handle("eggs")
    assert asked[0] == asked[1]


def test_temperature_is_checked(conversation, scripted, capsys):
    asked = scripted(["One."])
    for wrong in ("", "hot", "-1", "nan"):
        conversation.handle(f"/temperature {wrong}")
        assert "the temperature is a number" in capsys.readouterr().err
    conversation.handle("/temperature 0.25")
    conversation.handle("eggs")
    assert asked[0]["temperature"] == 0.25


def test_a_system_message_heads_the_prompt_and_can_be_removed(conversation, scripted):
    asked = scripted(["One.", "Two."])
    conversation.handle("/system Be brief.")
    conversation.handle("eggs")
    conversation.handle("/system")
    conversation.handle("eggs")
    assert asked[0]["text"].startswith("Be brief.")
    assert "Be brief." not in asked[1]["text"]


def test_raw_continues_the_bare_text_and_leaves_the_conversation_alone(conversation, scripted):
    asked = scripted(["One.", " for six", " again", "Two."])
    conversation.handle("eggs")
    conversation.handle("/raw")
    conversation.handle("How to make pizza")
    conversation.handle("/retry")
    conversation.handle("/raw")
    conversation.handle("then?")
    assert [one["text"] for one in asked[1:3]] == ["How to make pizza"] * 2
    assert asked[1]["seed"] != asked[2]["seed"]
    assert said(conversation) == ["eggs", "One.", "then?", "Two."]


def test_a_raw_text_that_is_too_long_is_refused(conversation, capsys):
    conversation.handle("/raw")
    conversation.handle("egg " * 100)
    assert "sft has room for 84" in capsys.readouterr().err


def test_two_slashes_say_one(conversation, scripted):
    scripted(["One."])
    conversation.handle("//quit is a word")
    assert said(conversation)[0] == "/quit is a word"


def test_quit_leaves(conversation, talk, scripted):
    assert conversation.handle("/quit") is False
    scripted(["One."])
    assert talk("eggs\n/quit\nnever asked\n")[0] == "One.\n"


def test_saved_conversations_are_demonstrations(conversation, scripted, tmp_path, capsys):
    file = tmp_path / "said.jsonl"
    scripted(["One.", "Two."])
    conversation.handle("/save")
    conversation.handle(f"/save {file}")
    error = capsys.readouterr().err
    assert "needs the name of a file" in error
    assert "no conversation to save yet" in error
    conversation.handle("/system Be brief.")
    conversation.handle("eggs")
    conversation.handle(f"/save {file}")
    conversation.handle("/new")
    conversation.handle("more")
    conversation.handle(f"/save {file}")
    first, second = read_records(file, Conversation)
    assert [m.role for m in first.messages] == ["system", "user", "assistant"]
    assert [m.content for m in second.messages] == ["Be brief.", "more", "Two."]
    assert len(load_instructions(file).records) == 2


def test_save_does_not_touch_a_file_of_another_kind(conversation, scripted, tmp_path, capsys):
    file = tmp_path / "notes.txt"
    file.write_text("my notes")
    scripted(["One."])
    conversation.handle("eggs")
    conversation.handle(f"/save {file}")
    assert "notes.txt:1" in capsys.readouterr().err
    assert file.read_text() == "my notes"


def test_the_last_answer_is_shown_token_by_token(conversation, scripted, capsys):
    conversation.handle("/tokens")
    assert "there is no answer yet" in capsys.readouterr().err
    scripted(["Two eggs."])
    conversation.handle("eggs")
    conversation.handle("/tokens")
    shown = capsys.readouterr().err
    assert "log π" in shown
    assert "' eggs'" in shown
    assert "KL" not in shown, "no record names a reference"


def test_help_and_the_docs_list_every_command(conversation, capsys):
    conversation.handle("/help")
    shown = capsys.readouterr().err
    for name, command in COMMANDS.items():
        usage = f"/{name} {command.argument}".strip()
        assert usage in shown
        assert f"| `{usage}` |" in DOCS


def test_every_option_is_in_the_docs():
    for name, field in ChatOptions.model_fields.items():
        assert re.search(rf"`(--)?{name.replace('_', '-')}\b", DOCS), name
        assert field.description, name


# ------------------------------------------------------------------------------------------------ one-shot and start


def test_prompts_are_conversations_of_their_own_answered_by_all(talk, scripted):
    asked = scripted(["A", "B", "C", "D"])
    out, err = talk("never read", prompt=["eggs", "butter"])
    assert out == "== sft ==\nA\n== policy ==\nB\n== sft ==\nC\n== policy ==\nD\n"
    assert err == "sft: temperature 1\npolicy: temperature 1\n"
    assert "eggs" not in asked[2]["text"]


def test_one_model_answers_without_its_name(talk, scripted):
    scripted([" for six"])
    assert talk("", "sft", prompt=["How to make pizza"], raw=True) == (" for six\n", "sft: temperature 1\n")


def test_a_prompt_that_is_too_long_is_an_error(talk):
    with pytest.raises(DataError, match="more than 84"):
        talk("", prompt=["egg " * 100])


def test_models_have_names(models):
    assert named_sources([f"{models}/sft", "openai-community/gpt2"]) == {
        "sft": f"{models}/sft", "gpt2": "openai-community/gpt2",
    }  # fmt: skip
    assert list(named_sources(["a/policy", "b/policy"])) == ["a/policy", "b/policy"]
    assert named_sources(["old=a/policy", "new=b/policy"]) == {"old": "a/policy", "new": "b/policy"}


def test_a_path_may_hold_an_equals_sign(tmp_path):
    (tmp_path / "lr=1e-3").mkdir()
    assert named_sources([f"{tmp_path}/lr=1e-3"]) == {"lr=1e-3": f"{tmp_path}/lr=1e-3"}


@pytest.mark.parametrize("specs", [["a/p", "a/p"], ["=a"], ["x="]])
def test_names_must_differ(specs):
    with pytest.raises(UsageError, match="needs a name, as in NAME=PATH"):
        named_sources(specs)


def test_a_name_given_twice_is_said():
    with pytest.raises(UsageError, match="the name 'x' is given twice"):
        named_sources(["x=a", "x=b"])


def test_a_reward_model_cannot_be_talked_to(talk):
    with pytest.raises(UsageError, match="holds a reward model"):
        talk("eggs\n", "reward")


def test_answers_are_cut_at_half_the_context(talk):
    _, err = talk("eggs\n", "sft", max_new_tokens=500)
    assert "sft: its context is 96 tokens, its answers are cut at 48" in err


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_p": 0}, {"voice": "deep"}])
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        ChatOptions(**{"models": ["x"], **wrong})


def test_a_reader_that_leaves_is_no_error(models):
    code = (
        "from wukong.chat import ChatOptions, run\n"
        f"run(ChatOptions(models=[{str(models / 'sft')!r}], prompt=['eggs'] * 200, max_new_tokens=40))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.read(1)
        process.stdout.close()
        error = process.stderr.read().decode()
    assert process.returncode == 0
    assert "Traceback" not in error


def test_saved_lines_are_one_json_object_each(conversation, scripted, tmp_path):
    scripted(['He said: "two\nlines"'])
    conversation.handle("eggs")
    conversation.handle(f"/save {tmp_path / 'a.jsonl'}")
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0])["source"] == "chat with sft"


# ------------------------------------------------------------------------------------------------------ which models


def make_run(directory, *names):
    for name in names:
        (directory / name).mkdir(parents=True)
        (directory / name / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
        stage = {"policy": "ppo", "base": "pretrain"}.get(name, name)
        (directory / name / "provenance.json").write_text(f'{{"stage": "{stage}"}}')
    (directory / "recipe.yaml").write_text("steps: {}")
    (directory / "events.jsonl").touch()
    return directory


def test_a_run_stands_for_its_best_model(tmp_path, monkeypatch):
    run = make_run(tmp_path / "runs" / "mine", "base", "sft", "policy")
    assert chosen_models([str(run)]) == ([str(run / "policy")], run)
    assert chosen_models([f"mine={run}"]) == ([f"mine={run / 'policy'}"], run)
    assert chosen_models([str(run / "sft")]) == ([str(run / "sft")], run)
    assert chosen_models(["someone/gpt2", "x=someone/gpt2"]) == (["someone/gpt2", "x=someone/gpt2"], None)
    monkeypatch.chdir(tmp_path)
    assert chosen_models([]) == (["runs/mine/policy"], Path("runs/mine"))


def test_a_directory_without_a_model_is_a_usage_error(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty: neither a model \(no config.json\) nor a run with one"):
        chosen_models([str(tmp_path / "empty")])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="which model"):
        chosen_models([])
