"""`wukong chat`: talk to one or more models in the terminal.

In:  model directories or hub ids; typed text, lines on standard input, or --prompt.
Out: the answers, streamed to standard output; everything else goes to standard error.

    wukong chat runs/mine
    wukong chat runs/mine/policy runs/mine/sft

The conversation belongs to the chat, not to a model: `/model` hands it to another one. If it outgrows a model's
context, that model sees only the latest turns. An answer depends on --seed, the conversation and the number of
retries, so a chat can be repeated word for word.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from wukong.console import console, say
from wukong.errors import Text, UsageError, WukongError
from wukong.inspection import Inspector, load_inspector, token_table
from wukong.language import counted, spoken
from wukong.model.hub import load_policy, recommended_sampling
from wukong.model.language_model import LanguageModel
from wukong.options import Options
from wukong.places import RECIPE
from wukong.provenance import verify
from wukong.records import Conversation, Message, read_records, write_records
from wukong.rollout import inference_copy, stream
from wukong.run_models import best_policy, example_prompts, newest_run
from wukong.sampling import OWN_DISTRIBUTION, SamplingParameters
from wukong.seeds import derived_seed
from wukong.tokenizer import StreamDecoder, Tokenizer
from wukong.training.compute import Precision, compute_for
from wukong.training.memory import n_parameters

RUNS = Path("runs")
"""Where `wukong run` puts its runs."""


class ChatOptions(Options):
    """Talk to models in the terminal."""

    models: list[str] = []
    """Directories or hub ids; the first one speaks first. NAME=PATH names a model. A run's directory stands for its
    best model. Default: that of the newest run in runs/."""
    prompt: list[str] = []
    """Ask this, print the answer and exit. Repeatable: each prompt is a separate conversation."""
    system: str | None = None
    """The system message of the conversation."""
    raw: bool = False
    """Continue the text as given, without the chat template, as a base model is trained to do."""
    temperature: float | None = Field(None, ge=0, le=100)
    """Divides the logits; 0 always takes the most likely token. Default: what each model recommends
    (generation_config.json), else 1."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Sample from the most likely tokens that together have this probability; 1 means all. Default: as recommended
    if --temperature is absent."""
    top_k: int | None = Field(None, ge=0)
    """Sample from this many of the most likely tokens; 0 means all. Default: as for --top-p."""
    max_new_tokens: int = Field(128, ge=1)
    """Maximum answer length in tokens, or half the model's context if that is shorter."""
    seed: int = 0
    """All answers are a function of this number and the conversation."""
    precision: Precision = "auto"
    """bfloat16 where it is faster, or as named."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps (an Apple GPU)."""


@dataclass(frozen=True)
class Speaker:
    """A loaded model; `room` is the maximum tokens of its answers."""

    name: str
    source: str
    model: LanguageModel
    tokenizer: Tokenizer
    room: int
    recommended: SamplingParameters = OWN_DISTRIBUTION


@dataclass(frozen=True)
class LastAnswer:
    """What /tokens takes apart."""

    speaker: Speaker
    asked: Sequence[Message]
    text: str
    finished: bool
    temperature: float


def chosen_models(models: Sequence[str]) -> tuple[list[str], Path | None]:
    """The models with runs replaced by their best ones, and the first run that they come from.

    Raises UsageError for a run without a model, or if no model is given and there is no run.
    """
    if not models:
        newest = newest_run(RUNS)
        if newest is None:
            raise UsageError("which model? runs/ holds no run with one; name a directory or a hub id")
        models = [str(newest)]
    found, runs = [], list[Path]()
    for spec in models:
        given = Path(spec if Path(spec).exists() else spec.partition("=")[2] or spec)
        best = best_policy(given) if given.is_dir() and not (given / "config.json").exists() else None
        if best is not None:
            say("{run}: its best model is {name}", run=given, name=best.name)
            found.append(spec[: len(spec) - len(str(given))] + str(best))
            runs.append(given)
        elif (given / RECIPE).exists():
            raise UsageError("{run}: this run has no model yet", run=given)
        else:
            found.append(spec)
            runs += [given.parent] if (given.parent / RECIPE).exists() else []
    return found, runs[0] if runs else None


def named_sources(models: Sequence[str]) -> dict[str, str]:
    """Name -> directory or hub id, in order. A name is the last part, or the whole if that is ambiguous."""
    pairs = []
    given_names = Counter[str]()
    for spec in models:
        name, given, source = spec.partition("=")
        explicit = bool(given) and not Path(spec).exists()
        pairs.append((name, source, True) if explicit else (Path(spec).absolute().name, spec, False))
        given_names[name] += explicit
    if twice := [name for name, count in given_names.items() if count > 1]:
        raise UsageError(f"--models: the name {twice[0]!r} is given twice")
    taken = Counter(name for name, _, _ in pairs)
    named = {}
    for name, source, explicit in pairs:
        unique = name if explicit or taken[name] == 1 else source
        if not unique or not source or unique in named:
            raise UsageError(f"--models: {source or name!r} needs a name, as in NAME=PATH")
        named[unique] = source
    return named


def load_speakers(options: ChatOptions, models: Sequence[str]) -> list[Speaker]:
    """Raises UsageError for a model that cannot be loaded, DataError for one changed since its stage wrote it."""
    compute = compute_for(options.precision, options.device)
    speakers = []
    for name, source in named_sources(models).items():
        verify(source)
        model, tokenizer = load_policy(source)
        model = inference_copy(model.to(compute.device), compute).eval()
        room = min(options.max_new_tokens, model.config.n_positions // 2)
        if room < options.max_new_tokens:
            say(
                "{name}: its context is {n_positions} tokens, its answers are cut at {room}",
                name=name,
                n_positions=model.config.n_positions,
                room=room,
            )
        recommended = recommended_sampling(source)
        drawing = recommended.unless_given(source, options.temperature, options.top_k, options.top_p)
        say("{name}: {sampling}", name=name, sampling=drawing.in_words())
        speakers.append(Speaker(name, source, model, tokenizer, room, recommended))
    return speakers


def run(options: ChatOptions) -> None:
    """Raises UsageError for a model that cannot be loaded, or a --prompt that is too long for a model."""
    models, run_directory = chosen_models(options.models)
    speakers = load_speakers(options, models)
    interactive = not options.prompt and sys.stdin.isatty()
    chat = Chat(options, speakers, interactive)
    try:
        if options.prompt:
            for text in options.prompt:
                chat.new()
                chat.ask(text, speakers)
        else:
            if interactive:
                others = ", ".join(s.name for s in speakers[1:])
                also = Text(" (also loaded: {others})", others=others) if others else ""
                say(
                    "{name} is listening{also}; /help lists the commands, Ctrl-D leaves",
                    name=speakers[0].name,
                    also=also,
                )
                if examples := example_prompts(run_directory) if run_directory else []:
                    say("you could ask: {examples}", examples=" · ".join(examples))
            for line in _typed_lines() if interactive else _piped_lines():
                if not chat.handle(line):
                    break
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader (`head`) closed the pipe; silence the flush at exit too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _typed_lines() -> Iterator[str]:
    with contextlib.suppress(ImportError):  # not on Windows; only history and arrow keys are lost
        import readline  # noqa: F401
    prompt = asking = spoken("you> ")
    if not sys.stdout.isatty():  # input() would mix it with the answers
        prompt = ""
    while True:
        if not prompt:
            console.print(asking, end="")
        try:
            yield input(prompt)
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            console.print()
            say("(Ctrl-D or /quit leaves)")


def _piped_lines() -> Iterator[str]:
    if hasattr(sys.stdin, "reconfigure"):  # invalid UTF-8 is then an error in that line only
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    for line in sys.stdin:
        yield line.rstrip("\r\n")


class Chat:
    """One conversation and the model that speaks in it.

    Args:
        options: how answers are sampled.
        speakers: the loaded models; the first one speaks first.
        interactive: label answers with the model's name, and let Ctrl-C end an answer instead of the program.
    """

    def __init__(self, options: ChatOptions, speakers: Sequence[Speaker], interactive: bool) -> None:
        self.options, self.interactive = options, interactive
        self.speakers = {speaker.name: speaker for speaker in speakers}
        self.current = speakers[0]
        self.temperature, self.system, self.raw = options.temperature, options.system, options.raw
        self._inspectors: dict[tuple[str, bool], Inspector] = {}
        self.new()

    # ------------------------------------------------------------------------------------------- conversation

    def new(self, _: str = "") -> None:
        """Clears the conversation; system message, temperature and model stay."""
        self.messages: list[Message] = []
        self.last_question: str | None = None
        self.last_answer: LastAnswer | None = None
        self.attempt = 0

    def handle(self, line: str) -> bool:
        """Handles one input line: a command or a turn. Returns False to leave."""
        if not line.strip():
            return True
        try:
            if line.startswith("/") and not line.startswith("//"):
                name, _, argument = line[1:].partition(" ")
                if name == "quit":
                    return False
                if name not in COMMANDS:
                    raise UsageError(f"no command /{name}; /help lists them, and //{name} sends /{name} as text")
                COMMANDS[name].do(self, argument.strip())
            else:
                self.ask(line.removeprefix("/") if line.startswith("//") else line, [self.current])
        except WukongError as error:
            say(error)
        return True

    def ask(
        self,
        text: str,
        speakers: Sequence[Speaker],
        history: Sequence[Message] | None = None,
        attempt: int = 0,
    ) -> None:
        """A user turn, answered by each of `speakers`; the current model's answer joins the conversation.

        Args:
            history: the preceding messages. Default: the conversation so far.
            attempt: how often the question was retried.

        Raises:
            DataError: the text alone exceeds a model's context; the conversation is unchanged.
        """
        if (
            cut := next((i for i, character in enumerate(text, 1) if "\ud800" <= character <= "\udfff"), None)
        ) is not None:
            raise UsageError("character {n} of this line is not valid UTF-8; nothing was asked", n=cut)
        asked = [*(self.messages if history is None else history), Message(role="user", content=text)]
        prompts = [(speaker, self._prompt_ids(speaker, text, asked)) for speaker in speakers]
        self.last_question, self.attempt = text, attempt
        for speaker, ids in prompts:
            self._announce(speaker, alone=len(speakers) == 1)
            said = self._speak(speaker, ids, asked)
            if speaker is self.current and not self.raw:
                self.messages = [*asked, Message(role="assistant", content=said)]

    def _prompt_ids(self, speaker: Speaker, text: str, asked: Sequence[Message]) -> list[int]:
        room = speaker.model.config.n_positions - speaker.room
        if not self.raw:
            heading = [Message(role="system", content=self.system)] if self.system else []
            return speaker.tokenizer.prompt_ids([*heading, *asked], max_tokens=room)
        ids = speaker.tokenizer.raw_ids(text)
        if len(ids) > room:
            raise UsageError(f"the text has {len(ids)} tokens, {speaker.name} has room for {room}")
        return ids

    def _announce(self, speaker: Speaker, alone: bool) -> None:
        if self.interactive:
            console.print(f"{speaker.name}> ", end="", style="bold", markup=False)
        elif not alone:  # part of the output: it says whose answer follows
            print(f"== {speaker.name} ==")

    def _speak(self, speaker: Speaker, ids: list[int], asked: Sequence[Message]) -> str:
        """Samples, prints and returns an answer to these messages, whose tokens are `ids`."""
        drawing = speaker.recommended.unless_given(
            speaker.source, self.temperature, self.options.top_k, self.options.top_p
        )
        decoder, said, note = StreamDecoder(speaker.tokenizer), "", Text("(cut at {room} tokens)", room=speaker.room)
        finished = False
        try:
            for token in stream(
                speaker.model,
                ids,
                eos_id=speaker.tokenizer.eos_ids,
                max_new_tokens=speaker.room,
                seed=derived_seed(self.options.seed, "chat", len(asked), self.attempt),
                temperature=drawing.temperature,
                top_k=drawing.top_k,
                top_p=drawing.top_p,
            ):
                if token in speaker.tokenizer.eos_ids:
                    finished = True
                    note = Text("" if said else "(no answer: the model ended its turn at once)")
                    break
                piece = decoder.push(token)  # an incomplete last character of a cut answer is not shown
                said += piece
                print(_harmless(piece) if sys.stdout.isatty() else piece, end="", flush=True)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            note = Text("(stopped; the answer so far is kept)")
        print(flush=True)
        if note:
            say(note)
        self.last_answer = LastAnswer(speaker, asked, said, finished, drawing.temperature)
        return said

    # ----------------------------------------------------------------------------------------------- commands

    def switch_model(self, name: str) -> None:
        if name not in self.speakers:
            raise UsageError(f"no model {name!r} is loaded; there are {', '.join(self.speakers)}")
        self.current = self.speakers[name]
        say("{name} continues the conversation", name=name)

    def list_models(self, _: str) -> None:
        for speaker in self.speakers.values():
            mark = "*" if speaker is self.current else " "
            say(
                "{mark} {name}  {source}  ({n_parameters:,} parameters)",
                mark=mark,
                name=speaker.name,
                source=speaker.source,
                n_parameters=n_parameters(speaker.model.config),
            )

    def retry(self, _: str) -> None:
        question, history = self._last_turn()
        self.ask(question, [self.current], history, self.attempt + 1)

    def compare(self, text: str) -> None:
        question, history = (text, self.messages) if text else self._last_turn()
        self.ask(question, list(self.speakers.values()), history)

    def _last_turn(self) -> tuple[str, list[Message]]:
        """The last question, to be answered again, and the messages before it."""
        if self.last_question is None:
            raise UsageError("nothing was asked yet")
        answered = self.messages and self.messages[-2].content == self.last_question
        return self.last_question, self.messages[:-2] if answered else self.messages

    def set_temperature(self, text: str) -> None:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value <= 100:
            raise UsageError(f"the temperature is a number from 0 (always the most likely token) up, not {text!r}")
        self.temperature = value
        say("temperature {value:g}", value=value)

    def set_system(self, text: str) -> None:
        self.system = text or None
        say("system message set" if text else "no system message")

    def switch_raw(self, _: str) -> None:
        self.raw = not self.raw
        say("raw: texts are continued as given, each separately" if self.raw else "chat: with the chat template")

    def show_tokens(self, _: str) -> None:
        last = self.last_answer
        if last is None:
            raise UsageError("there is no answer yet")
        key = (last.speaker.source, self.raw)
        if key not in self._inspectors:
            self._inspectors[key] = load_inspector(key[0], raw=self.raw, device=self.options.device)
        system = [Message(role="system", content=self.system)] if self.system and not self.raw else []
        console.print(token_table(self._inspectors[key](
            [*system, *last.asked], last.text, finished=last.finished, temperature=last.temperature
        )))  # fmt: skip

    def save(self, file: str) -> None:
        if not file:
            raise UsageError("/save needs the name of a file")
        if not self.messages:
            raise UsageError("there is no conversation to save yet")
        heading = [Message(role="system", content=self.system)] if self.system else []
        conversation = Conversation(messages=[*heading, *self.messages], source=f"chat with {self.current.name}")
        path = Path(file).expanduser()
        before = read_records(path, Conversation) if path.exists() else []
        count = write_records(path, [*before, conversation])
        say(
            "{path}: {conversations}",
            path=path,
            conversations=counted(count, "{n:,} conversation", "{n:,} conversations"),
        )

    def help(self, _: str) -> None:
        for name, command in COMMANDS.items():
            say("{command:20} {help}", command=f"/{name} {command.argument}", help=Text(command.help))


@dataclass(frozen=True)
class Command:
    """A `/name` command: its argument, help and action."""

    argument: str
    help: str
    do: Callable[[Chat, str], None]


COMMANDS = {
    "model": Command("NAME", "another model continues the conversation", Chat.switch_model),
    "models": Command("", "the loaded models", Chat.list_models),
    "new": Command("", "begin a new conversation", Chat.new),
    "retry": Command("", "answer the last question again, with another seed", Chat.retry),
    "compare": Command("[TEXT]", "all models answer TEXT, or the last question, with the same seed", Chat.compare),
    "temperature": Command("X", "0 for the most likely words, 1 for the model's own variety", Chat.set_temperature),
    "system": Command("[TEXT]", "set the system message, or remove it", Chat.set_system),
    "raw": Command("", "continue texts without the chat template, or chat again", Chat.switch_raw),
    "tokens": Command("", "the last answer token by token: log-prob, KL, score if it ended there", Chat.show_tokens),
    "save": Command("FILE", "append the conversation to a JSONL file that `wukong sft` reads", Chat.save),
    "help": Command("", "this list", Chat.help),
    "quit": Command("", "leave (so does Ctrl-D)", lambda chat, _: None),
}


def _harmless(text: str) -> str:
    """Text made safe for a terminal: a model's output must not move the cursor or rename the window."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\ufffd" for c in text)
