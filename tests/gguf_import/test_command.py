"""`wukong import`: small GGUF files made here, and the real SmolLM2-135M of a package on the index."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.smollm2 import smollm2_gguf
from tests.test_tokenizer_families import QWEN2, vocabulary
from wukong.errors import UsageError
from wukong.gguf_import.command import ImportOptions, run
from wukong.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf")

WIDTH, INNER, HEADS, KEYS, HEAD_WIDTH, LAYERS = 32, 64, 4, 2, 8, 2
ASK = [{"role": "user", "content": "How to make pizza"}]


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp stores a query or key projection: within each head, row i of its first half, then row i of its
    second half."""
    result = np.empty_like(rows)
    for head in range(heads):
        for i in range(HEAD_WIDTH // 2):
            for half in range(2):
                result[head * HEAD_WIDTH + 2 * i + half] = rows[head * HEAD_WIDTH + half * HEAD_WIDTH // 2 + i]
    return result


def random_weights(kind: str, tied: bool) -> dict[str, np.ndarray]:
    """Hugging Face's names -> values."""
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 290, "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KEYS, "head_dim": HEAD_WIDTH,
        "tie_word_embeddings": tied, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    names = dict(model.named_parameters())
    return {name: parameter.detach().numpy() for name, parameter in names.items()}


def theirs(name: str) -> str:
    """llama.cpp's name of a tensor."""
    for ours, its in (
        ("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output"),
        ("model.layers", "blk"), ("self_attn.q_norm", "attn_q_norm"), ("self_attn.k_norm", "attn_k_norm"),
        ("self_attn.o_proj", "attn_output"), ("self_attn.", "attn_"), ("mlp.", "ffn_"), ("_proj", ""),
        ("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"),
    ):  # fmt: skip
        name = name.replace(ours, its)
    return name


def write(path: Path, kind: str, weights: dict[str, np.ndarray], **changes: object) -> None:
    """A file as llama.cpp's converter writes it; a change of None leaves a key out."""
    vocab, merges = vocabulary()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    texts = [*vocab, *special, *(f"[PAD{i}]" for i in range(290 - len(vocab) - 3))]
    kinds = [1] * len(vocab) + [3] * 3 + [5] * (290 - len(vocab) - 3)
    writer = gguf.GGUFWriter(path, kind)
    values = {
        f"{kind}.block_count": LAYERS, f"{kind}.embedding_length": WIDTH, f"{kind}.feed_forward_length": INNER,
        f"{kind}.attention.head_count": HEADS, f"{kind}.attention.head_count_kv": KEYS,
        f"{kind}.attention.key_length": HEAD_WIDTH, f"{kind}.context_length": 64,
        f"{kind}.rope.freq_base": 10000.0, f"{kind}.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.eos_token_id": len(vocab) + 2, "tokenizer.ggml.padding_token_id": len(vocab),
        "tokenizer.ggml.add_bos_token": False, "tokenizer.chat_template": QWEN2, **changes,
    }  # fmt: skip
    for key, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_array(key, value)
    for name, value in weights.items():
        if kind == "llama" and ("q_proj" in name or "k_proj" in name):
            value = interleaved(value, HEADS if "q_proj" in name else KEYS)
        writer.add_tensor(theirs(name), np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(("kind", "tied"), [("llama", True), ("qwen2", False), ("qwen3", True)])
def test_an_imported_model_has_the_weights_and_names_of_transformers(tmp_path, kind, tied):
    weights = random_weights(kind, tied)
    write(tmp_path / "model.gguf", kind, weights)
    run(ImportOptions(file=tmp_path / "model.gguf", out=tmp_path / "model"))
    transformers = pytest.importorskip("transformers")
    model, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert type(model).__name__ == {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind] + "ForCausalLM"
    found = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    assert found.keys() == weights.keys()
    for name, expected in weights.items():
        np.testing.assert_array_equal(found[name], expected, err_msg=name)
    config = model.config
    assert (config.rms_norm_eps, config.rope_parameters["rope_theta"], config.head_dim) == (1e-5, 10000.0, HEAD_WIDTH)
    tokenizer = Tokenizer.load(tmp_path / "model")
    assert tokenizer.vocab_size < 290  # the padding is no token
    assert tokenizer.token_texts(tokenizer.eos_ids) == ["<|im_end|>", "<|endoftext|>"]
    theirs_ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "model").apply_chat_template(
        ASK, add_generation_prompt=True, return_dict=False
    )
    assert tokenizer.prompt_ids(ASK) == theirs_ids


def test_shards_and_bfloat16(tmp_path, monkeypatch):
    weights = random_weights("qwen3", tied=True)
    write(tmp_path / "model.gguf", "qwen3", weights)
    monkeypatch.setattr("wukong.gguf_import.command.SHARD_BYTES", 20_000)
    run(ImportOptions(file=tmp_path / "model.gguf", out=tmp_path / "model", dtype="bfloat16"))
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 1
    model = pytest.importorskip("transformers").AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.bfloat16
        torch.testing.assert_close(parameter, torch.from_numpy(weights[name]).bfloat16(), rtol=0, atol=0)


def test_llama_3s_rotary_factors_become_its_scaling(tmp_path):
    # Waves of 2 pi 10000^(i / 4) tokens for the four pairs of a head of 8: 6.3, 62.8, 628 and 6283. Those below
    # 8192 / 4 = 2048 tokens stay; of the last one 8192 / 6283 = 1.3038 turns fit, which is (1.3038 - 1) / 3 = 0.1013
    # of the way from the factor 32 to 1: 1 / (0.8987 / 32 + 0.1013) = 7.730.
    weights = random_weights("llama", tied=True)
    factors = np.array([1.0, 1.0, 1.0, 7.730], dtype=np.float32)
    write(tmp_path / "other.gguf", "llama", {**weights, "rope_freqs.weight": factors})
    with pytest.raises(UsageError, match="are not Llama 3's factors"):  # the largest one is the factor itself
        run(ImportOptions(file=tmp_path / "other.gguf", out=tmp_path / "model"))
    # With theta 500000 the waves are 6.3, 167, 4443 and 118,138: the third has 1.8438 turns, (1.8438 - 1) / 3 = 0.2813,
    # 1 / (0.7187 / 32 + 0.2813) = 3.292, and the last is divided by the whole factor.
    factors = np.array([1.0, 1.0, 3.292, 32.0], dtype=np.float32)
    theta = {"llama.rope.freq_base": 500000.0}
    write(tmp_path / "model.gguf", "llama", {**weights, "rope_freqs.weight": factors}, **theta)
    run(ImportOptions(file=tmp_path / "model.gguf", out=tmp_path / "model"))
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["rope_scaling"] == {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip


REFUSED = {
    "experts": ({"qwen3.expert_count": 8}, "qwen3.expert_count is 8"),
    "a window": ({"qwen3.attention.sliding_window": 32}, "sliding_window is 32"),
    "another scaling": ({"qwen3.rope.scaling.type": "yarn"}, "scaled by 'yarn'"),
    "part of a head": ({"qwen3.rope.dimension_count": 4}, "a part of each head"),
    "SentencePiece": ({"tokenizer.ggml.model": "llama"}, "only byte-level BPE"),
    "another split": ({"tokenizer.ggml.pre": "falcon"}, "tokenizer.ggml.pre is 'falcon', known are gpt-2,"),
    "no sizes": ({"qwen3.block_count": None}, "qwen3.block_count is missing"),
    "a size of text": ({"qwen3.block_count": "two"}, "qwen3.block_count is 'two', expected int"),
    "too many layers": ({"qwen3.block_count": 3}, "tensor blk.2.attn_k.weight is missing"),
    "too few layers": ({"qwen3.block_count": 1}, "tensor blk.1.attn_k.weight has no place"),
    "another width": ({"qwen3.feed_forward_length": 63}, r"ffn_gate.weight is \(64, 32\), the metadata say \(63, 32\)"),
    "an end without a token": ({"tokenizer.ggml.eos_token_id": 290}, "eos_token_id is 290, but there are"),
    "no merges": ({"tokenizer.ggml.merges": None}, "tokenizer.ggml.merges is missing"),
}


@pytest.fixture(scope="module")
def qwen3_weights() -> dict[str, np.ndarray]:
    return random_weights("qwen3", tied=True)


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_imported_is_refused_in_one_line_and_writes_nothing(tmp_path, qwen3_weights, changes, message):
    write(tmp_path / "model.gguf", "qwen3", qwen3_weights, **changes)
    with pytest.raises(UsageError, match=message) as error:
        run(ImportOptions(file=tmp_path / "model.gguf", out=tmp_path / "model"))
    assert str(tmp_path / "model.gguf") in str(error.value)
    assert "\n" not in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]


def test_other_architectures_and_damaged_files_are_refused(tmp_path, qwen3_weights):
    file, out = tmp_path / "model.gguf", tmp_path / "model"
    write(file, "qwen3", qwen3_weights)
    whole = file.read_bytes()
    for content, message in (
        (whole.replace(b"qwen3", b"gemma"), "the architecture is 'gemma', only llama, qwen2, qwen3"),
        (whole[: len(whole) // 2], "damaged, or cut off|is damaged"),
        (whole[:100], "damaged, or cut off"),
        (b"", "not a GGUF file"),
        (b"PK" + whole[2:], "not a GGUF file"),
    ):
        file.write_bytes(content)
        with pytest.raises(UsageError, match=message):
            run(ImportOptions(file=file, out=out))
        assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("x", encoding="utf-8")
    file.write_bytes(whole)
    with pytest.raises(UsageError, match="exists already"):
        run(ImportOptions(file=file, out=out))
    with pytest.raises(UsageError, match=r"none\.gguf: no such file"):
        run(ImportOptions(file=tmp_path / "none.gguf", out=tmp_path / "other"))


# ------------------------------------------------------------------------------------------------------- SmolLM2-135M


@pytest.fixture(scope="module")
def smollm2_file() -> Path:
    return smollm2_gguf()


@pytest.mark.slow
@pytest.mark.interop
def test_smollm2_is_the_model_that_transformers_reads_from_the_file(smollm2_file, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    run(ImportOptions(file=smollm2_file, out=tmp_path / "model"))
    ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    expected = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_file.parent, gguf_file=smollm2_file.name, dtype=torch.float32
    ).eval()
    tokenizer = Tokenizer.load(tmp_path / "model")
    ids = torch.tensor([tokenizer.prompt_ids(ASK)])
    theirs_of_file = transformers.AutoTokenizer.from_pretrained(smollm2_file.parent, gguf_file=smollm2_file.name)
    assert ids.tolist() == theirs_of_file.apply_chat_template([ASK], add_generation_prompt=True, return_dict=False)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, expected(ids).logits, rtol=1e-4, atol=1e-4)
    options = {"do_sample": False, "max_new_tokens": 30, "pad_token_id": 2}
    answer, theirs_answer = ours.generate(ids, **options)[0], expected.generate(ids, **options)[0]
    assert answer.tolist() == theirs_answer.tolist()
    assert "pizza" in tokenizer.decode(answer[ids.shape[1] :].tolist()).lower()
