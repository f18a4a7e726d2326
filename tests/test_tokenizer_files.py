"""Tokenizers of others: the same ids, text, template and end tokens as `transformers` has, there and back."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from wukong.errors import UsageError
from wukong.tokenizer import EOS, StreamDecoder, Tokenizer

TEXTS = [f"Boil {n} eggs for {n % 9} minutes, then peel the eggs. Café <b>" for n in range(50)]
SAMPLES = [
    "",
    " ",
    "Boil 12 eggs",
    " leading",
    "two  spaces\n\nlines ",
    "ÉGGS Café cafe\u0301",
    "<|im_end|>",
    "x<think>y</think> z",
    "a [PAD] b",
    f"forged{EOS}",
    "<t>",
    "2024 eggs, 3.5%",
    "好 🍕",
    "MiXed <|IM_END|> case",
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ASK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How long do eggs take?"}]
TALK = [*ASK, {"role": "assistant", "content": "Boil 7 minutes."}, {"role": "user", "content": "Thanks<|im_end|>"}]
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


@pytest.fixture(scope="module")
def own() -> Tokenizer:
    return Tokenizer.train(TEXTS, 280)


def read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def write(file: Path, content) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


def change(directory: Path, name: str, **values) -> None:
    """Sets values of a JSON file; None takes one away."""
    file = directory / name
    content = {**(read(file) if file.exists() else {}), **values}
    write(file, {key: value for key, value in content.items() if value is not None})


def json_only(directory: Path, **parts) -> None:
    """As a `PreTrainedTokenizerFast` is saved: tokenizer.json says all."""
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        (directory / name).unlink()
    change(directory, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    content = read(directory / "tokenizer.json")
    write(directory / "tokenizer.json", {**content, **parts})


def plain(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()


def bare(directory: Path) -> None:
    for file in directory.iterdir():
        if file.name not in ("vocab.json", "merges.txt", "config.json"):
            file.unlink()


def added(directory: Path, *tokens: dict) -> None:
    content = read(directory / "tokenizer.json")
    content["added_tokens"] += [{**FLAGS, "special": True, **token} for token in tokens]
    write(directory / "tokenizer.json", content)


def added_special(directory: Path) -> None:
    added(directory, {"id": 280, "content": "<|im_start|>"}, {"id": 281, "content": "<|im_end|>"})


def added_ordinary(directory: Path) -> None:
    added(
        directory,
        *({"id": 280 + i, "content": text, "special": False} for i, text in enumerate(("<think>", "</think>"))),
    )


def added_in_json(directory: Path) -> None:
    plain(directory)
    write(directory / "added_tokens.json", {"<|im_end|>": 280, "[PAD]": 281, "<t>": 282})
    change(directory, "special_tokens_map.json", pad_token="[PAD]", eos_token={**FLAGS, "content": "<|im_end|>"})


def added_by_decoder(directory: Path) -> None:
    plain(directory)
    decoder = {"280": {**FLAGS, "content": "<|im_end|>", "special": True, "rstrip": True}}
    change(directory, "tokenizer_config.json", added_tokens_decoder=decoder, eos_token="<|im_end|>")


def appended_roles(directory: Path) -> None:
    change(directory, "tokenizer_config.json", pad_token="[PAD]", additional_special_tokens=["<t>", "<|im_end|>"])
    (directory / "special_tokens_map.json").unlink()


def prefix_space(directory: Path) -> None:
    change(directory, "tokenizer_config.json", add_prefix_space=True)


def prefix_space_in_json(directory: Path) -> None:
    json_only(directory)
    content = read(directory / "tokenizer.json")
    content["pre_tokenizer"]["add_prefix_space"] = True
    write(directory / "tokenizer.json", content)


def prefix_space_contradicted(directory: Path) -> None:
    prefix_space_in_json(directory)
    change(directory, "tokenizer_config.json", tokenizer_class="GPT2Tokenizer", add_prefix_space=False)


def chatml(directory: Path) -> None:
    added_special(directory)
    (directory / "chat_template.jinja").write_text(CHATML, encoding="utf-8")


def chatml_with_prefix_space(directory: Path) -> None:
    chatml(directory)
    prefix_space(directory)


def begins_with_bos(directory: Path) -> None:
    plain(directory)
    change(directory, "tokenizer_config.json", add_bos_token=True)


def split(*parts: dict) -> Callable[[Path], None]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": len(parts) == 1}
    return lambda directory: json_only(
        directory, pre_tokenizer={"type": "Sequence", "pretokenizers": [*parts, byte_level]}
    )


def normal(**normalizer) -> Callable[[Path], None]:
    return lambda directory: json_only(directory, normalizer=normalizer)


QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
VARIANTS = {
    "as we save": lambda d: None,
    "vocab.json and merges.txt": plain,
    "nothing but these": bare,
    "tokenizer.json": json_only,
    "special tokens": added_special,
    "ordinary added tokens": added_ordinary,
    "added_tokens.json": added_in_json,
    "added_tokens_decoder": added_by_decoder,
    "roles without a token": appended_roles,
    "add_prefix_space": prefix_space,
    "add_prefix_space in tokenizer.json": prefix_space_in_json,
    "add_prefix_space contradicted": prefix_space_contradicted,
    "ChatML": chatml,
    "ChatML with add_prefix_space": chatml_with_prefix_space,
    "add_bos_token": begins_with_bos,
    "digits apart": split({"type": "Digits", "individual_digits": True}),
    "Qwen's pattern": split(
        {"type": "Split", "pattern": {"Regex": QWEN}, "behavior": "Isolated", "invert": False},
        {"type": "Punctuation", "behavior": "Isolated"},
    ),
    "lower case": normal(type="Lowercase"),
    "NFC": normal(type="NFC"),
    "several normalizers": normal(type="Sequence", normalizers=[{"type": "NFD"}, {"type": "StripAccents"}]),
}


@pytest.fixture
def directory(own, tmp_path) -> Path:
    own.save(tmp_path / "theirs", model_max_length=64)
    write(tmp_path / "theirs" / "config.json", {"model_type": "gpt2", "eos_token_id": 279})
    return tmp_path / "theirs"


def automatic(directory: Path):
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_ids_text_and_template_are_those_of_transformers_there_and_back(directory, variant, tmp_path):
    variant(directory)
    theirs, ours = automatic(directory), Tokenizer.load(directory)
    ours.save(tmp_path / "back", model_max_length=64)
    (tmp_path / "back" / "config.json").write_bytes((directory / "config.json").read_bytes())
    back = automatic(tmp_path / "back")
    assert ours.vocab_size == len(theirs) == len(back)
    for text in SAMPLES:
        ids = ours.encode(text)
        for other in (theirs, back):
            assert ids == other.encode(text, add_special_tokens=False, split_special_tokens=True), text
            assert ours.raw_ids(text) == other.encode(text, split_special_tokens=True), text
            assert ours.decode(ids) == other.decode(ids, clean_up_tokenization_spaces=False)
        stream = StreamDecoder(ours)
        assert "".join(map(stream.push, ids)) + stream.finish() == ours.decode(ids)
    everything = list(range(ours.vocab_size))
    for skip in (False, True):
        expected = theirs.decode(everything, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert ours.decode(everything, skip_special=skip) == expected
    for role in ("eos_token", "bos_token", "pad_token", "unk_token"):
        if variant is not bare:  # there ours has a padding token of its own
            assert ours.roles.get(role) == getattr(theirs, role) == getattr(back, role)
    assert back.eos_token_id == theirs.eos_token_id == ours.eos_id
    again = Tokenizer.load(tmp_path / "back")
    assert (again.fingerprint, again.eos_ids) == (ours.fingerprint, ours.eos_ids)
    assert back.chat_template == ours.template


@pytest.mark.parametrize(
    "variant", [added_special, chatml, chatml_with_prefix_space], ids=["alpaca", "ChatML", "spaced"]
)
def test_conversations_are_those_of_transformers(directory, variant):
    variant(directory)
    theirs, ours = automatic(directory), Tokenizer.load(directory)
    talk = TALK[:3]  # what a person forges is a token there, and never one here
    assert ours.render(talk) == theirs.apply_chat_template(talk, tokenize=False)
    prompt = theirs.apply_chat_template(ASK, add_generation_prompt=True, return_dict=False)
    assert ours.prompt_ids(ASK) == prompt
    if variant is not added_special:  # Alpaca's turns touch each other, ours are tokenised one by one
        whole = theirs.apply_chat_template(talk, return_dict=False)
        assert ours.conversation_ids(talk)[0] == whole[: len(ours.conversation_ids(talk)[0])]
    ids, said = ours.conversation_ids(talk)
    assert ids == ours.prompt_ids(ASK) + ours.response_ids(talk[-1]["content"])
    assert [i for i, mine in zip(ids, said, strict=True) if mine] == ours.response_ids(talk[-1]["content"])


def test_a_forged_end_token_is_ordinary_text_whatever_its_files_say(directory):
    added(
        directory,
        *({"id": 280 + i, "content": text, "special": False} for i, text in enumerate(("<|im_start|>", "<|im_end|>"))),
    )
    (directory / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    change(directory, "tokenizer_config.json", eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"])
    (directory / "special_tokens_map.json").unlink()
    tokenizer = Tokenizer.load(directory)
    end = tokenizer.eos_ids[0]
    assert tokenizer.decode([end], skip_special=False) == "<|im_end|>"
    assert end not in tokenizer.encode("a<|im_end|>b")
    assert tokenizer.prompt_ids(TALK).count(end) == 4
    assert tokenizer.decode(tokenizer.encode("a<|im_end|>b")) == "a<|im_end|>b"


@pytest.mark.parametrize(
    ("generation", "config", "template", "expected"),
    [
        ({}, {}, None, [EOS]),
        ({}, {}, CHATML, ["<|im_end|>", EOS]),
        ({"eos_token_id": 281}, {}, CHATML, ["<|im_end|>"]),
        ({"eos_token_id": [279, 281]}, {}, None, [EOS, "<|im_end|>"]),
        ({"eos_token_id": [281, 50256]}, {}, CHATML, ["<|im_end|>"]),
        ({"eos_token_id": None}, {"eos_token_id": 281}, None, [EOS, "<|im_end|>"]),
        (None, {"eos_token_id": [280, 281]}, None, [EOS, "<|im_start|>", "<|im_end|>"]),
        (None, {"eos_token_id": 50256}, None, [EOS]),
    ],
)
def test_an_answer_ends_at_every_end_token_that_the_model_names(directory, generation, config, template, expected):
    added_special(directory)
    write(directory / "config.json", {"model_type": "gpt2", **config})
    if generation is not None:
        write(directory / "generation_config.json", generation)
    if template is not None:
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    tokenizer = Tokenizer.load(directory)
    assert [tokenizer.decode([index], skip_special=False) for index in tokenizer.eos_ids] == expected
    assert tokenizer.response_ids("x")[-1] == tokenizer.eos_ids[0]


def test_the_end_token_may_stand_in_generation_config_alone(directory):
    added_special(directory)
    content = read(directory / "tokenizer.json")
    content["added_tokens"] = content["added_tokens"][1:]
    content["model"]["vocab"]["<plain>"] = content["model"]["vocab"].pop(EOS)
    write(directory / "tokenizer.json", content)
    for name in ("special_tokens_map.json", "tokenizer_config.json", "config.json"):
        (directory / name).unlink()
    with pytest.raises(UsageError, match="no end token"):
        Tokenizer.load(directory)
    write(directory / "generation_config.json", {"eos_token_id": [281]})
    assert Tokenizer.load(directory).eos_id == 281


# ------------------------------------------------------------------------------------------------------ chat templates

ENDS = "{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' }}{% endfor %}"


def in_config(value) -> Callable[[Path], None]:
    def put(directory: Path) -> None:
        (directory / "chat_template.jinja").unlink()
        change(directory, "tokenizer_config.json", chat_template=value)

    return put


def in_files(default: bool) -> Callable[[Path], None]:
    def put(directory: Path) -> None:
        (directory / "additional_chat_templates").mkdir()
        (directory / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}", encoding="utf-8")
        (directory / "chat_template.jinja").unlink()
        if default:
            (directory / "chat_template.jinja").write_text(ENDS, encoding="utf-8")

    return put


NAMED = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": ENDS}]


@pytest.mark.parametrize(
    "place",
    [in_config(ENDS), in_config(NAMED), in_config({"default": ENDS, "rag": "x"}), in_files(default=True)],
    ids=["text", "list of named", "object of named", "files"],
)
def test_the_default_template_is_found_wherever_it_stands(directory, place, tmp_path):
    place(directory)
    ours = Tokenizer.load(directory)
    assert ours.template == ENDS == automatic(directory).get_chat_template()
    ours.save(tmp_path / "back")
    assert automatic(tmp_path / "back").chat_template == ENDS


def test_without_a_template_it_is_alpacas(directory):
    in_config(None)(directory)
    assert Tokenizer.load(directory).render("Hi").startswith("### Instruction:")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (in_config(NAMED[:1]), "tokenizer_config.json: no default among its chat templates ('tool_use')"),
        (in_files(default=False), "no default among its chat templates ('tool_use')"),
        (in_config([]), "no default among its chat templates"),
        (in_config(3), "chat_template is 3, not a text"),
        (in_config([3]), "chat_template lists 3, not a name and a template"),
        (in_config([{"name": "default"}]), "not a name and a template"),
        (in_config({"default": 3}), "chat_template is 3, not a text"),
        (in_config("no braces"), "the content and a special token"),
        (in_config("{{ messages[0].content }}"), "the content and a special token such as <|endoftext|>"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_honoured_is_refused_in_one_line(directory, place, message):
    place(directory)
    with pytest.raises(UsageError) as error:
        Tokenizer.load(directory)
    assert message in str(error.value)
    assert str(directory) in str(error.value)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------------ refusals


def to(name: str, **values) -> Callable[[Path], None]:
    return lambda directory: change(directory, name, **values)


def model_option(**values) -> Callable[[Path], None]:
    def put(directory: Path) -> None:
        json_only(directory)
        content = read(directory / "tokenizer.json")
        changed = content["model"] | values
        content["model"] = {name: value for name, value in changed.items() if value is not None}
        write(directory / "tokenizer.json", content)

    return put


def raw(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_bytes(content)


def loop(directory: Path) -> None:
    (directory / "tokenizer_config.json").unlink()
    (directory / "tokenizer_config.json").symlink_to("tokenizer_config.json")
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer.json").symlink_to("tokenizer.json")
    (directory / "vocab.json").unlink()


def pattern(regex: str) -> Callable[[Path], None]:
    return split(
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}, {"type": "Digits"}
    )


BROKEN = {
    "a normalizer that puts in text": (
        normal(type="Replace", pattern={"String": "a"}, content="b"),
        "normalizer 'Replace' is not supported",
    ),
    "a normalizer of wrong type": (normal(type=3), "normalizer 3 is not supported"),
    "no byte-level splitting": (
        lambda d: json_only(d, pre_tokenizer={"type": "Metaspace"}),
        "pre_tokenizer 'Metaspace' is not supported",
    ),
    "byte level twice": (
        split({"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}),
        "does not end with ByteLevel",
    ),
    "another decoder": (to("tokenizer.json", decoder={"type": "Metaspace"}), "decoder is not ByteLevel"),
    "a pattern that backtracks": (pattern("(a+)+$"), "could take exponential time"),
    "a pattern that backtracks in a choice": (pattern("(?:a|aa)*b"), "could take exponential time"),
    "a back-reference": (pattern(r"(a*)\1"), "could take exponential time"),
    "a pattern of wrong type": (
        split({"type": "Split", "pattern": 3, "behavior": "Isolated", "invert": False}),
        "neither a String nor a Regex",
    ),
    "dropout": (model_option(dropout=0.1), "model.dropout is 0.1"),
    "byte fallback": (model_option(byte_fallback=True), "model.byte_fallback is True"),
    "a suffix of words": (model_option(end_of_word_suffix="</w>"), "model.end_of_word_suffix is '</w>'"),
    "tokenizer.json a list": (raw("tokenizer.json", b"[]"), "tokenizer.json: not a JSON object"),
    "tokenizer.json deep": (raw("tokenizer.json", b"[" * 200000), "tokenizer.json: "),
    "merges of numbers": (model_option(merges=[[1, 2]]), "merges or added_tokens are damaged"),
    "no vocabulary": (model_option(vocab=None), "tokenizer.json: not a vocabulary"),
    "merges a text": (model_option(merges="a b"), "merges or added_tokens are damaged"),
    "added tokens a number": (to("tokenizer.json", added_tokens=3), "merges or added_tokens are damaged"),
    "an added token of wrong types": (to("tokenizer.json", added_tokens=[{"id": True, "content": "x"}]), "is damaged"),
    "an added token far away": (
        to("tokenizer.json", added_tokens=[{"id": 9999, "content": "x", "special": True}]),
        "cannot have the id 9999",
    ),
    "ids twice": (to("added_tokens.json", **{EOS: 5}), "has the ids 279 and 5"),
    "added_tokens.json of texts": (to("added_tokens.json", x="y"), "added_tokens.json: added token"),
    "duplicate ids": (lambda d: (plain(d), change(d, "vocab.json", extra=7)), "ids are not 0 to"),
    "an id of true": (lambda d: (plain(d), change(d, "vocab.json", extra=True)), "vocab.json: not a vocabulary"),
    "an id beyond 32 bits": (lambda d: (plain(d), change(d, "vocab.json", extra=2**40)), "do not match"),
    "a lone surrogate": (lambda d: (plain(d), change(d, "vocab.json", **{"\ud800": 280})), "half a character"),
    "a class of wrong type": (to("tokenizer_config.json", tokenizer_class=3), "tokenizer_class is 3, not a name"),
    "a space of wrong type": (to("tokenizer_config.json", add_prefix_space="yes"), "add_prefix_space is 'yes'"),
    "a role of wrong type": (to("special_tokens_map.json", eos_token=3), "special_tokens_map.json: eos_token is 3"),
    "a role without content": (to("special_tokens_map.json", eos_token={"text": "x"}), "neither text nor a token"),
    "an end token that is none": (to("special_tokens_map.json", eos_token="<nothing>"), "has no <nothing> token"),
    "special tokens of wrong type": (to("tokenizer_config.json", additional_special_tokens=3), "not a list of tokens"),
    "a decoder of wrong type": (to("tokenizer_config.json", added_tokens_decoder=[1]), "not an object of id: token"),
    "a decoder of odd ids": (
        to("tokenizer_config.json", added_tokens_decoder={"x": {"content": "a"}}),
        "not an object of id: token",
    ),
    "end ids of text": (
        to("generation_config.json", eos_token_id="279"),
        "generation_config.json: eos_token_id is '279'",
    ),
    "end ids of truth": (to("config.json", eos_token_id=True), "config.json: eos_token_id is True"),
    "a negative end id": (to("generation_config.json", eos_token_id=[-1]), "eos_token_id is [-1]"),
    "a number without end": (raw("config.json", b'{"eos_token_id": ' + b"9" * 5000 + b"}"), "config.json: "),
    "links in a circle": (loop, "no tokenizer here"),
    "merges.txt is gone": (lambda d: (plain(d), (d / "merges.txt").unlink()), "merges.txt: no such file"),
}


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN)
def test_what_cannot_be_honoured_is_refused_in_one_line(directory, damage, message):
    damage(directory)
    with pytest.raises(UsageError) as error:
        Tokenizer.load(directory)
    assert message in str(error.value)
    assert str(directory) in str(error.value)
    assert "\n" not in str(error.value)
