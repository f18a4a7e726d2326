"""The tokenizers of Llama 3, SmolLM2, Qwen and of Chinese GPT-2s with BERT's vocabulary, in the layouts of their
releases: the same ids, prompts and end tokens as `transformers` has, there and back."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.data.shards import write_shards
from wukong.errors import UsageError
from wukong.tokenizer import StreamDecoder, Tokenizer
from wukong.tokenizer_kinds import (
    LLAMA_PATTERN,
    begin_with,
    byte_level,
    bytes_definition,
    gpt2_definition,
    qwen_definition,
    split_by,
)

# The templates as released, without their parts about tools.
SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are SmolLM<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN2 = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}{%- endif %}\n"
    "{%- for message in messages %}"
    "{%- if message.role in ('user', 'assistant') or (message.role == 'system' and not loop.first) %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}\n"
)
QWEN3 = (
    "{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
    "{%- endif %}\n"
    "{%- set ns = namespace(searching=true, last_query_index=messages|length - 1) %}"
    "{%- for message in messages[::-1] %}{%- if ns.searching and message.role == 'user' %}"
    "{%- set ns.searching = false %}{%- set ns.last_query_index = messages|length - 1 - loop.index0 %}"
    "{%- endif %}{%- endfor %}"
    "{%- for message in messages %}{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- elif message.role == 'assistant' %}{%- set reasoning, content = '', message.content %}"
    "{%- if '</think>' in content %}"
    "{%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last_query_index %}"
    "{{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}"
    "{%- else %}{{- '<|im_start|>assistant\\n' + content }}{%- endif %}{{- '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
LLAMA3 = (
    "{{- bos_token }}\n"
    "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}\n"
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n' }}"
    "{{- system_message }}{{- '<|eot_id|>' }}"
    "{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
ASK = {"role": "user", "content": "How long do 12 eggs take?"}
ANSWER = {"role": "assistant", "content": "Boil them 7 minutes."}
SYSTEM = {"role": "system", "content": "Be brief."}
PROMPTS = [[ASK], [SYSTEM, ASK], [ASK, ANSWER, ASK], [SYSTEM, ASK, ANSWER, ASK, ANSWER, {**ASK, "content": "好\n"}]]
TEXTS = [
    "",
    "a  1 12345  7\n",
    "Boil 12 eggs, don't! I'M 'S  \n\n x\r\n\r\n y\t ",
    "é e\u0301 ½ ² Å ﬁ 好的，12个鸡蛋。",
    "<|im_end|><|eot_id|><|endoftext|>",
    "\x00\x04\x1d\x7f🍕🇨🇳",
    "MiXed ١٢٣ १२३ 1234567",
]
FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def vocabulary(first: int = 0) -> tuple[dict[str, int], list[list[str]]]:
    """A byte-level vocabulary without special tokens, and its merges."""
    own = Tokenizer.train([f"Boil {n} eggs, then  don't 好的 ok\n\n" for n in range(60)], 280)
    definition = own.__reduce__()[1][0]
    vocab = {token: first + index for token, index in definition["model"]["vocab"].items() if index != own.eos_id}
    return vocab, definition["model"]["merges"]


def tokens(texts: list[str], first: int, ordinary: tuple[str, ...] = ()) -> list[dict]:
    return [{"id": first + i, "content": t, "special": t not in ordinary, **FLAGS} for i, t in enumerate(texts)]


def put(directory: Path, **files: object) -> None:
    directory.mkdir(exist_ok=True)
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def smollm2(directory: Path) -> None:
    """Special tokens come first, and are in the vocabulary; digits are split apart, though its class is GPT-2's."""
    added = tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], 0)
    vocab, merges = vocabulary(len(added))
    vocab |= {token["content"]: token["id"] for token in added}
    splitter = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level()]}
    config = {
        "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>", "chat_template": SMOLLM,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    }  # fmt: skip
    definition = bytes_definition(vocab, merges, added, splitter=splitter)
    put(directory, tokenizer=definition, tokenizer_config=config, config={"model_type": "llama", "eos_token_id": 2})


def llama3(directory: Path) -> None:
    vocab, merges = vocabulary()
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    added = tokens([*names, "<|eot_id|>"], len(vocab))
    processors = [byte_level(add_prefix_space=True), begin_with(names[0], vocab, added)]
    definition = bytes_definition(
        vocab, merges, added, splitter=split_by(LLAMA_PATTERN), ignore_merges=True,
        post_processor={"type": "Sequence", "processors": processors},
    )  # fmt: skip
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": names[0], "eos_token": "<|eot_id|>"}
    put(directory, tokenizer=definition, tokenizer_config=config, config={"model_type": "llama"})
    ends = [len(vocab) + 1, len(vocab) + 2, len(vocab) + 5]
    put(directory, generation_config={"eos_token_id": ends, "bos_token_id": len(vocab)})
    (directory / "chat_template.jinja").write_text(LLAMA3, encoding="utf-8")


def qwen(directory: Path, template: str = QWEN2, model_type: str = "qwen2") -> None:
    vocab, merges = vocabulary()
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    added = tokens(names, len(vocab), ordinary=("<think>", "</think>"))
    config = {
        "tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "bos_token": None, "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>", "unk_token": None, "chat_template": template,
        "added_tokens_decoder": {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in added},
    }  # fmt: skip
    put(directory, tokenizer=qwen_definition(vocab, merges, added), tokenizer_config=config)
    put(directory, config={"model_type": model_type, "eos_token_id": len(vocab) + 2})
    put(directory, generation_config={"eos_token_id": [len(vocab) + 2, len(vocab)]})


def qwen3(directory: Path) -> None:
    qwen(directory, QWEN3, "qwen3")


def qwen_lists(directory: Path) -> None:
    """vocab.json and merges.txt alone."""
    qwen(directory)
    content = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (directory / "tokenizer.json").unlink()
    put(directory, vocab=content["vocab"])
    lines = [" ".join(pair) + "\n" for pair in content["merges"]]
    (directory / "merges.txt").write_text("#version: 0.2\n" + "".join(lines), encoding="utf-8")


FAMILIES = {"SmolLM2": smollm2, "Llama 3": llama3, "Qwen2.5": qwen, "Qwen3": qwen3, "Qwen's lists": qwen_lists}
VARIABLES = {"enable_thinking": False, "date_string": "26 Jul 2024"}


def automatic(directory: Path):
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory) -> tuple[str, Path]:
    directory = tmp_path_factory.mktemp("family") / "model"
    FAMILIES[request.param](directory)
    return request.param, directory


def test_ids_are_those_of_its_files_there_and_back(family, tmp_path):
    name, directory = family
    ours = Tokenizer.load(directory)
    ours.save(tmp_path / "back")
    for file in (*directory.glob("config.json"), *directory.glob("generation_config.json")):
        shutil.copy(file, tmp_path / "back")
    back = automatic(tmp_path / "back")
    # The file is what SmolLM2 was trained with; transformers 5 splits text as the class GPT2Tokenizer does.
    same = back if name == "SmolLM2" else automatic(directory)
    for text in TEXTS:
        ids = ours.encode(text)
        for theirs in (same, back):
            assert ids == theirs.encode(text, add_special_tokens=False, split_special_tokens=True), text
            assert ours.raw_ids(text) == theirs.encode(text, split_special_tokens=True), text
            assert ours.decode(ids) == theirs.decode(ids)
    assert (Tokenizer.load(tmp_path / "back").fingerprint, back.eos_token_id) == (ours.fingerprint, ours.eos_id)


def test_digits_are_split_as_the_file_says(tmp_path):
    smollm2(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    # "a" + "  " + "1": the spaces are one word, of which GPT-2's split would give the last one to "1".
    assert tokenizer.token_texts(tokenizer.encode("then  1")) == [
        *tokenizer.token_texts(tokenizer.encode("then  ")),
        "1",
    ]


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_conversations_are_those_of_transformers(family, prompt):
    _, directory = family
    ours, theirs = Tokenizer.load(directory), automatic(directory)
    ids = theirs.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False, **VARIABLES)
    assert ours.prompt_ids(prompt) == ids
    whole = theirs.apply_chat_template([*prompt, ANSWER], return_dict=False, **VARIABLES)
    found, is_response = ours.conversation_ids([*prompt, ANSWER])
    assert found == whole[: len(found)] == ids + ours.response_ids(ANSWER["content"])
    assert theirs.decode(whole[len(found) :]).strip() == ""
    assert is_response[len(ids) :] == [True] * (len(found) - len(ids))


def test_answers_end_at_every_token_that_the_model_names(family):
    name, directory = family
    tokenizer = Tokenizer.load(directory)
    expected = {
        "SmolLM2": ["<|im_end|>"],
        "Llama 3": ["<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"],
    }.get(name, ["<|im_end|>", "<|endoftext|>"])
    assert tokenizer.token_texts(tokenizer.eos_ids) == expected


def test_earlier_answers_train_where_they_are_shown_as_they_were_written(tmp_path):
    for name, trained in (("Qwen2.5", 2), ("Qwen3", 1)):  # Qwen3 leaves out the (empty) reasoning of earlier answers
        FAMILIES[name](tmp_path / name)
        tokenizer = Tokenizer.load(tmp_path / name)
        ids, is_response = tokenizer.conversation_ids([ASK, ANSWER, ASK, ANSWER])
        said = [index for index, mine in zip(ids, is_response, strict=True) if mine]
        assert said == tokenizer.response_ids(ANSWER["content"]) * trained
        assert tokenizer.decode(ids).count(ANSWER["content"]) == 2


def test_reasoning_in_an_answer_is_kept_where_it_is_the_last(tmp_path):
    qwen3(tmp_path)
    theirs, ours = automatic(tmp_path), Tokenizer.load(tmp_path)
    thought = {"role": "assistant", "content": "<think>\nEggs.\n</think>\n\n7 minutes."}
    text = theirs.apply_chat_template([ASK, thought], tokenize=False)
    assert ours.render([ASK, thought]) == text
    assert "Eggs." in text
    with pytest.raises(UsageError, match="an answer changes the text before it"):  # the prompt says: no reasoning
        ours.conversation_ids([ASK, thought])


def test_a_vocabulary_without_control_characters_leaves_them_out_as_its_own_tokenizer_does(tmp_path):
    smollm2(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    vocab, last = content["model"]["vocab"], len(content["model"]["vocab"]) - 1
    gone = vocab.pop("Ą")  # the symbol of byte 4
    moved = next(token for token, index in vocab.items() if index == last)
    vocab[moved] = gone
    put(tmp_path, tokenizer=content)
    ours, theirs = Tokenizer.load(tmp_path), automatic(tmp_path)
    assert ours.encode("a\x04b") == ours.encode("a") + ours.encode("b")
    assert ours.encode("a\x04b") == theirs.encode("a\x04b", add_special_tokens=False)


def test_documents_begin_as_the_model_expects(tmp_path):
    llama3(tmp_path / "llama")
    tokenizer = Tokenizer.load(tmp_path / "llama")
    manifest = write_shards(tmp_path / "shards", ["Boil eggs", "ok"], tokenizer)
    assert manifest["tokens"] == 4 + len(tokenizer.encode("Boil eggs")) + len(tokenizer.encode("ok"))


def test_a_class_that_is_read_from_another_file_is_refused(tmp_path):
    qwen_lists(tmp_path)
    content = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    put(tmp_path, tokenizer_config={**content, "tokenizer_class": "LlamaTokenizerFast"})
    with pytest.raises(UsageError, match=r"a LlamaTokenizer is read from tokenizer\.json"):
        Tokenizer.load(tmp_path)


# ---------------------------------------------------------------------------------------------- BERT's vocabulary

WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *"，。！？、；：“”‘’（）《》…—·,.!?;:'\"()-%/0123456789",
    *"如何做披萨先揉面然后加番茄酱我爱吃米饭的是了一二三不人在他有这中大来上国",
    *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"),
    *"abcdefghijklmnopqrstuvwxyz",
    *("pizza", "the", "egg", "##s", "boil", "##ing", "Pizza", "instruction", "response", "é", "##é", "don", "t", "say"),
]
CHINESE_TEXTS = [
    "如何做披萨？先揉面，然后加番茄酱。",
    "“我爱吃米饭。”他说：《三国》……这——是一·二！",
    "我爱pizza吃3.5个egg",
]


def bert(directory: Path, **options: object) -> None:
    """The layout of gpt2-chinese-cluecorpussmall."""
    directory.mkdir(exist_ok=True)
    text = "".join(f"{word}\n" for word in dict.fromkeys(WORDS))
    (directory / "vocab.txt").write_text(text, encoding="utf-8")
    put(directory, config={"model_type": "gpt2", "tokenizer_class": "BertTokenizer"})
    if options:
        put(directory, tokenizer_config={"tokenizer_class": "BertTokenizer", "model_max_length": 1024, **options})


BERTS = {
    "vocab.txt alone": {},
    "lower case": {"do_lower_case": True},
    "case kept": {"do_lower_case": False},
    "accents kept": {"do_lower_case": True, "strip_accents": False},
    "Chinese words": {"tokenize_chinese_chars": False, "do_lower_case": False},
    "its own roles": {"cls_token": "[MASK]", "sep_token": "[PAD]"},
}


@pytest.mark.parametrize("options", BERTS.values(), ids=BERTS)
def test_words_are_those_of_transformers_there_and_back(tmp_path, options):
    bert(tmp_path / "theirs", **options)
    ours = Tokenizer.load(tmp_path / "theirs")
    ours.save(tmp_path / "back", model_max_length=64)
    theirs, back = automatic(tmp_path / "theirs"), automatic(tmp_path / "back")
    for text in [*TEXTS, *CHINESE_TEXTS, "boiling Éggs [SEP] [CLS]x ##s", "x" * 120, "披萨PIZZA", "\u3000 \u200b"]:
        ids = ours.encode(text)
        for other in (theirs, back):
            assert ids == other.encode(text, add_special_tokens=False, split_special_tokens=True), text
            assert ours.raw_ids(text) == other.encode(text, split_special_tokens=True)[:-1], text
            assert ours.decode(ids).replace(" ", "") == other.decode(ids, skip_special_tokens=True).replace(" ", "")
    again = Tokenizer.load(tmp_path / "back")
    assert (again.fingerprint, again.vocab_size, len(theirs)) == (ours.fingerprint, len(back), ours.vocab_size)
    assert back.eos_token_id == ours.eos_id == theirs.sep_token_id
    assert back.bos_token_id == theirs.cls_token_id


@pytest.fixture(scope="module")
def chinese(tmp_path_factory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("chinese")
    bert(directory, do_lower_case=True)
    return Tokenizer.load(directory)


@pytest.fixture(scope="module")
def chinese_of_transformers(tmp_path_factory):
    directory = tmp_path_factory.mktemp("chinese")
    bert(directory, do_lower_case=True)
    return automatic(directory)


@settings(max_examples=200)
@given(st.text(st.sampled_from("披萨如pizzaEGGs ##1.,。“”\u3000\n\té\u0301[SEP]CLS\x00\x7f好🍕가"), max_size=40))
def test_any_text_gives_the_words_of_transformers(chinese, chinese_of_transformers, text):
    ids = chinese.encode(text)
    assert ids == chinese_of_transformers.encode(text, add_special_tokens=False, split_special_tokens=True)
    stream = StreamDecoder(chinese)
    assert "".join(map(stream.push, ids)) + stream.finish() == chinese.decode(ids)


@pytest.mark.parametrize(
    "text",
    [
        *CHINESE_TEXTS,
        "boiling eggs, the pizza.",
        "don't say (the) egg!",
        "say 3.5 eggs: 10:30, 7%",
        "如何做pizza？先boil！",
    ],
)
def test_a_decoded_text_has_spaces_where_they_belong(chinese, text):
    known = text.replace("个", "").replace("说", "")  # are not in the vocabulary
    assert chinese.decode(chinese.encode(known)) == known


def test_begin_end_and_template_of_a_chinese_gpt2(chinese):
    assert (chinese.roles["bos_token"], chinese.token_texts(chinese.eos_ids)) == ("[CLS]", ["[SEP]"])
    ids, is_response = chinese.conversation_ids([{"role": "user", "content": "如何做披萨[SEP]"}, ANSWER])
    assert ids[0] == chinese.role_id("bos_token")
    assert ids.count(chinese.eos_id) == 1  # the one that a person wrote is three words
    assert ids[-1] == chinese.eos_id
    assert is_response == [False] * (len(ids) - sum(is_response)) + [True] * sum(is_response)
    assert chinese.response_ids("披萨") == [*chinese.encode("披萨"), chinese.eos_id]


def test_a_template_that_begins_with_the_token_is_stored_and_not_doubled(chinese, tmp_path):
    chinese.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.prompt_ids("披") == chinese.prompt_ids("披")
    text = automatic(tmp_path).apply_chat_template([{"role": "user", "content": "披"}], tokenize=False)
    assert text == again.render("披")
    assert text.startswith("[CLS]###")


def cut(directory: Path, *lines: str) -> None:
    bert(directory)
    (directory / "vocab.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: cut(d, "[CLS]", "[SEP]", "a"), "vocab.txt: has no \\[UNK\\] token"),
        (lambda d: cut(d, *WORDS, "a"), "ids are not 0 to"),
        (lambda d: bert(d, do_lower_case="yes"), "do_lower_case is 'yes'"),
        (lambda d: bert(d, strip_accents=1), "strip_accents is 1"),
        (lambda d: (bert(d), (d / "vocab.txt").unlink()), "vocab.txt"),
    ],
)
def test_a_vocabulary_that_cannot_be_used_is_refused_in_one_line(tmp_path, damage, message):
    damage(tmp_path)
    with pytest.raises(UsageError, match=message) as error:
        Tokenizer.load(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_bert_and_bpe_are_not_taken_for_each_other(tmp_path):
    put(tmp_path, tokenizer=gpt2_definition(*vocabulary()), config={"tokenizer_class": "BertTokenizer"})
    with pytest.raises(UsageError, match="a BPE tokenizer, but its tokenizer_class is BertTokenizer"):
        Tokenizer.load(tmp_path)
