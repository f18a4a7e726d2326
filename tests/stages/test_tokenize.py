"""Text -> tokenizer and shards: everything arrives on one side or the other, once."""

import json

import pytest

from tests.stages.tiny_data import demonstrations, documents, write_jsonl, written
from wukong.data.shards import TokenShards
from wukong.errors import DataError, UsageError
from wukong.stages.tokenize import TokenizeOptions, run
from wukong.tokenizer import Tokenizer


@pytest.fixture
def corpus(tmp_path):
    return write_jsonl(tmp_path / "corpus.jsonl", [{"text": text} for text in documents()])


@pytest.fixture
def options(tmp_path, corpus):
    def make(**changes) -> TokenizeOptions:
        base = {"data": [str(corpus)], "out": tmp_path / "out", "vocab_size": 300, "valid_fraction": 0.1}
        return TokenizeOptions(**(base | changes))

    return make


def texts(out, side: str) -> list[str]:
    """The documents of one side, decoded from its shards."""
    tokenizer = Tokenizer.load(out)
    shards = TokenShards.open(out / side, tokenizer)
    found: list[list[int]] = [[]]
    for token in shards.window(0, len(shards)).tolist():
        if token == tokenizer.eos_id:
            found.append([])
        else:
            found[-1].append(token)
    assert found.pop() == [], "the last document is closed too"
    return [tokenizer.decode(ids) for ids in found]


def test_every_document_arrives_once_on_one_side(options):
    run(options())
    train, valid = texts(options().out, "train"), texts(options().out, "valid")
    assert sorted(train + valid) == sorted(documents())
    assert 10 < len(valid) < 60  # a tenth of 300
    assert train == [text for text in documents() if text in set(train)], "in the order they came"


def test_transformers_loads_the_tokenizer_and_gives_the_same_ids(options):
    transformers = pytest.importorskip("transformers")
    run(options())
    ours = Tokenizer.load(options().out)
    theirs = transformers.AutoTokenizer.from_pretrained(options().out)
    assert ours.vocab_size == len(theirs) == 300
    for text in (*documents()[:5], "Grüße 😀"):
        assert theirs(text)["input_ids"] == ours.encode(text)


def test_adding_documents_moves_none_to_the_other_side(options, tmp_path, corpus):
    run(options())
    before = set(texts(options().out, "valid"))
    more = write_jsonl(tmp_path / "more.jsonl", [{"text": f"More {text}"} for text in documents()])
    later = options(data=[str(more), str(corpus)], out=tmp_path / "later", tokenizer=str(options().out))
    run(later)
    assert {text for text in texts(later.out, "valid") if not text.startswith("More")} == before
    assert Tokenizer.load(later.out).fingerprint == Tokenizer.load(options().out).fingerprint


def test_another_seed_holds_out_other_documents(options, tmp_path):
    run(options())
    other = options(seed=1, out=tmp_path / "other")
    run(other)
    assert set(texts(other.out, "valid")) != set(texts(options().out, "valid"))


def test_validation_text_of_its_own_is_used_whole(options, tmp_path):
    valid = tmp_path / "valid.txt"
    valid.write_text("Serve the rice.\n\nServe the beans.")
    run(options(valid_data=[str(valid)], document_separator="blank"))
    assert texts(options().out, "valid") == ["Serve the rice.", "Serve the beans."]
    assert texts(options().out, "train") == documents()


def test_instructions_teach_the_tokenizer_and_enter_no_shard(options, tmp_path):
    instructions = write_jsonl(tmp_path / "instructions.jsonl", demonstrations())
    with_them = options(instructions=[str(instructions)], out=tmp_path / "with")
    run(options())
    run(with_them)
    word = " question"  # stands in the instructions only
    assert len(Tokenizer.load(with_them.out).encode(word)) < len(Tokenizer.load(options().out).encode(word))
    assert not any("question" in text for side in ("train", "valid") for text in texts(with_them.out, side))
    assert sorted(texts(with_them.out, "train")) == sorted(texts(options().out, "train"))


def test_what_was_read_and_made_is_recorded(options):
    run(options())
    record = json.loads((options().out / "provenance.json").read_text())
    results = record["results"]
    assert results["vocab_size"] == 300
    assert results["train"]["documents"] + results["valid"]["documents"] == 300
    assert results["data"]["kept"] == 300
    manifest = json.loads((options().out / "train" / "manifest.json").read_text())
    assert results["train"]["tokens"] == manifest["tokens"] == sum(shard["tokens"] for shard in manifest["shards"])
    made = [f"{side}/{name}" for side in ("train", "valid") for name in ("manifest.json", "tokens-00000.bin")]
    assert {"tokenizer.json", *made} <= set(record["files"])


def test_a_finished_stage_is_not_done_again(options):
    run(options())
    before = written(options().out)
    run(options())
    assert written(options().out) == before


def test_other_options_and_other_text_are_refused(options, corpus):
    run(options())
    with pytest.raises(UsageError, match=r"made with other options \(vocab_size: 300 -> 290\)"):
        run(options(vocab_size=290))
    write_jsonl(corpus, [{"text": "other"}])
    with pytest.raises(UsageError, match="made from different input files"):
        run(options())


@pytest.mark.parametrize("given", [None, "alpaca"])
def test_a_given_tokenizer_keeps_its_template_unless_another_is_named(options, tmp_path, given):
    plain = Tokenizer.train(["Boil rice."], 257, "plain")
    plain.save(tmp_path / "plain")
    run(options(tokenizer=str(tmp_path / "plain"), template=given))
    expected = plain if given is None else Tokenizer.train([], 257, given)
    assert Tokenizer.load(options().out).render("Hello") == expected.render("Hello")


def test_another_tokenizer_under_the_same_name_is_refused(options, tmp_path):
    for name, size in (("small", 280), ("large", 300)):
        Tokenizer.train(documents(), size).save(tmp_path / name)
    run(options(tokenizer=str(tmp_path / "small")))
    (tmp_path / "small").rename(tmp_path / "gone")
    (tmp_path / "large").rename(tmp_path / "small")
    with pytest.raises(UsageError, match="made from different input files"):
        run(options(tokenizer=str(tmp_path / "small")))


def test_nothing_held_out_is_an_error_with_advice(options):
    with pytest.raises(
        UsageError, match=r"no document for the valid shards \(give --valid-data or a larger --valid-fr"
    ):
        run(options(valid_fraction=0.0))


def test_a_record_that_is_no_text_is_named(options, corpus):
    corpus.write_text('{"text": "fine"}\n{"text": 5.5}\n{"words": "no"}\n')
    with pytest.raises(DataError, match=r"corpus\.jsonl:3: "):
        run(options())
    assert not (options().out / "train").exists()
    assert not (options().out / "provenance.json").exists()
