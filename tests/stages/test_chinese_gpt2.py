"""A Chinese GPT-2 with BERT's vocabulary, as learners take it from the hub, through pretraining, SFT and sampling."""

import json

import numpy as np
import pytest

from tests.stages.tiny_data import FAST, write_jsonl
from tests.test_tokenizer_families import bert, put
from wukong.api import load_policy
from wukong.stages.pretrain import PretrainOptions
from wukong.stages.pretrain import run as pretrain
from wukong.stages.sample import SampleOptions
from wukong.stages.sample import run as sample
from wukong.stages.sft import SFTOptions
from wukong.stages.sft import run as sft
from wukong.stages.tokenize import TokenizeOptions
from wukong.stages.tokenize import run as tokenize
from wukong.tokenizer import Tokenizer

QUESTION, ANSWER = "如何做披萨？", "先揉面，然后加番茄酱。"


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The layout of gpt2-chinese-cluecorpussmall, with tiny weights."""
    transformers = pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp("released") / "model"
    bert(directory, do_lower_case=True)
    size = Tokenizer.load(directory).vocab_size
    sizes = {"vocab_size": size, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
    config = transformers.GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)
    transformers.GPT2LMHeadModel(config).save_pretrained(directory)
    put(directory, config={**json.loads((directory / "config.json").read_text()), "tokenizer_class": "BertTokenizer"})
    return directory


def test_it_is_trained_on_sampled_from_and_writes_chinese_without_spaces(released, tmp_path):
    texts = write_jsonl(tmp_path / "corpus.jsonl", [{"text": f"我爱吃米饭。{i}是了。"} for i in range(60)])
    tokenize(TokenizeOptions(data=[str(texts)], tokenizer=str(released), valid_fraction=0.2, out=tmp_path / "tokens"))
    tokenizer = Tokenizer.load(released)
    shard = np.fromfile(tmp_path / "tokens" / "train" / "tokens-00000.bin", dtype=np.uint16)
    assert shard[0] == tokenizer.role_id("cls_token")
    assert shard[-1] == tokenizer.role_id("sep_token")
    assert (shard == shard[0]).sum() == (shard == shard[-1]).sum()
    further = {"tokens": 1024, "batch_tokens": 256, "sample_prompts": ["我爱"], **FAST}
    pretrain(PretrainOptions(data=tmp_path / "tokens", model=str(released), out=tmp_path / "base", **further))
    taught = write_jsonl(tmp_path / "taught.jsonl", [{"instruction": QUESTION, "output": ANSWER}] * 24)
    passes = {"epochs": 60.0, "batch_size": 8, "lr": 1e-2, "valid_fraction": 0.0, "warmup_steps": 2}
    sft(SFTOptions(model=str(tmp_path / "base"), data=[str(taught)], out=tmp_path / "sft", **passes, **FAST))
    asked = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": QUESTION}])
    options = {"responses_per_prompt": 1, "temperatures": [0.0], "max_new_tokens": 24, "precision": "float32"}
    out = tmp_path / "responses.jsonl"
    sample(SampleOptions(models=[str(tmp_path / "sft")], prompts=[str(asked)], out=out, **options))
    (text,) = (json.loads(line)["text"] for line in out.read_text(encoding="utf-8").splitlines())
    assert text.startswith("先揉")  # it has learnt the answer, if not each character of it
    assert text.endswith("番茄酱。")
    assert " " not in text
    assert [answer.text for answer in load_policy(tmp_path / "sft").generate([QUESTION], temperature=0)] == [text]
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path / "sft")
    assert type(theirs).__name__ == "BertTokenizer"
