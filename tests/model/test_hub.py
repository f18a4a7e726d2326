"""Models that go to `transformers` and come from it, and what is said of those that cannot."""

import json
import os
import pickle
import shutil
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from wukong.errors import UsageError, WukongError
from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.model.heads import ScalarModel
from wukong.model.hub import load_policy, load_reward, load_trunk, save_policy, save_reward
from wukong.sampling import SamplingParameters
from wukong.tokenizer import Tokenizer

WHOLE_MODEL = {"rtol": 1e-4, "atol": 1e-4}
LENGTHS = torch.tensor([12, 5, 1])


def random_ids(*shape: int) -> torch.Tensor:
    """No id is 279, the end-of-text token, which `transformers` would take for padding."""
    return torch.randint(0, 279, shape, generator=torch.Generator().manual_seed(0))


def padded_ids(end: int) -> torch.Tensor:
    return torch.where(torch.arange(12) < LENGTHS[:, None], random_ids(3, 12), end)


def assert_same_weights(left: torch.nn.Module, right: torch.nn.Module) -> None:
    assert [name for name, _ in left.named_parameters()] == [name for name, _ in right.named_parameters()]
    for (name, ours), theirs in zip(left.named_parameters(), right.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.fixture
def policy_dir(model, tokenizer, tmp_path) -> Path:
    save_policy(tmp_path / "policy", model, tokenizer)
    return tmp_path / "policy"


@pytest.fixture
def reward_model(model) -> ScalarModel:
    torch.manual_seed(0)
    return ScalarModel(model)


def edit_config(directory: Path, **changes) -> None:
    config = json.loads((directory / "config.json").read_text())
    config.update(changes)
    (directory / "config.json").write_text(json.dumps({key: v for key, v in config.items() if v != "(absent)"}))


def edit_tensors(directory: Path, change) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def as_shards(directory: Path, kind: str) -> None:
    """Splits the weights into two files and an index, as `save_pretrained` does above 5 GB."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    names = sorted(tensors)
    files = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    for file, part in zip(files, (names[:9], names[9:]), strict=True):
        content = {name: tensors[name] for name in part}
        save_file(content, directory / file) if kind == "safetensors" else torch.save(content, directory / file)
    index = {"metadata": {}, "weight_map": {name: files[i >= 9] for i, name in enumerate(names)}}
    (directory / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


def as_bin(directory: Path) -> None:
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


# ------------------------------------------------------------------------------------------------ policy


def test_policy_comes_back_bit_for_bit(model, tokenizer, policy_dir):
    loaded, loaded_tokenizer = load_policy(policy_dir)
    assert_same_weights(model, loaded)
    assert loaded.config == model.config
    assert loaded_tokenizer.fingerprint == tokenizer.fingerprint
    assert all(p.requires_grad and p.is_contiguous() and p.dtype == torch.float32 for p in loaded.parameters())
    assert loaded.training


@torch.no_grad()
def test_transformers_loads_our_policy_and_we_load_it_back(model, tokenizer, policy_dir, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(policy_dir, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = random_ids(2, 30)
    torch.testing.assert_close(theirs.eval()(ids).logits, model.logits(model(ids)), **WHOLE_MODEL)
    theirs.save_pretrained(tmp_path / "back")
    tokenizer.save(tmp_path / "back")
    assert_same_weights(model, load_policy(tmp_path / "back")[0])


def test_tied_output_layer_is_stored_once(policy_dir):
    assert "lm_head.weight" not in load_file(policy_dir / "model.safetensors")


def test_generation_defaults_reach_transformers(model, tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    save_policy(tmp_path, model, tokenizer, sampling=SamplingParameters(0.7))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).generation_config
    assert (theirs.do_sample, theirs.temperature) == (True, 0.7)
    assert theirs.eos_token_id == theirs.pad_token_id == theirs.bos_token_id == tokenizer.eos_id


def test_saved_directory_is_a_chat_model_for_transformers(policy_dir, tokenizer):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(policy_dir)
    messages = [{"role": "user", "content": "Boil eggs"}]
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == tokenizer.render(messages, add_generation_prompt=True)
    assert theirs.model_max_length == 64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_are_read_in_float32(model, tokenizer, tmp_path, dtype):
    save_policy(tmp_path, model, tokenizer, dtype=dtype)
    assert load_file(tmp_path / "model.safetensors")["transformer.wte.weight"].dtype == dtype
    for loaded, original in zip(load_policy(tmp_path)[0].parameters(), model.parameters(), strict=True):
        assert torch.equal(loaded, original.to(dtype).float())


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_load_like_one_file(model, policy_dir, kind):
    as_shards(policy_dir, kind)
    assert_same_weights(model, load_policy(policy_dir)[0])


def test_shards_written_by_transformers_load(tokenizer, policy_dir, model, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(policy_dir)
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    tokenizer.save(tmp_path / "shards")
    assert_same_weights(model, load_policy(tmp_path / "shards")[0])


def test_bin_file_loads_and_safetensors_is_preferred(model, policy_dir):
    as_bin(policy_dir)
    assert_same_weights(model, load_policy(policy_dir)[0])
    (policy_dir / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UsageError, match=r"model\.safetensors"):
        load_policy(policy_dir)


def test_names_and_leftovers_of_old_files_are_understood(model, policy_dir):
    def as_released(tensors):  # OpenAI's weights on the hub: no prefix, the causal masks stored as buffers
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        for layer in range(3):
            tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64)
            tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
        tensors["lm_head.weight"] = tensors["wte.weight"].clone()

    edit_tensors(policy_dir, as_released)
    assert_same_weights(model, load_policy(policy_dir)[0])
    edit_tensors(policy_dir, lambda tensors: tensors.pop("wte.weight"))  # tied weights may be stored as either
    assert_same_weights(model, load_policy(policy_dir)[0])


def test_dropout_is_the_callers_choice(policy_dir, reward_model, tokenizer, tmp_path):
    save_reward(tmp_path / "reward", reward_model, tokenizer)
    assert load_policy(policy_dir)[0].config.dropout == 0
    for loaded in (load_policy(policy_dir, dropout=0.5)[0], load_trunk(tmp_path / "reward", dropout=0.5)[0]):
        assert not torch.equal(loaded(random_ids(1, 9)), loaded(random_ids(1, 9)))


@torch.no_grad()
def test_embeddings_without_a_token_leave_the_model(tokenizer, tmp_path):
    """They could be drawn, and count in every log-prob."""
    transformers = pytest.importorskip("transformers")
    padded = GPT2(GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=3, n_head=4))
    padded.wte.weight[280:] += 1  # likely enough to be drawn
    save_policy(tmp_path / "padded", padded, tokenizer)
    save_reward(tmp_path / "reward", ScalarModel(padded), tokenizer)
    model, _ = load_policy(tmp_path / "padded")
    assert model.config.vocab_size == len(model.wte.weight) == model.wte.num_embeddings == tokenizer.vocab_size == 280
    assert model.wte.weight.requires_grad
    ids = random_ids(2, 9)
    torch.testing.assert_close(model.logits(model(ids)), padded.logits(padded(ids))[..., :280])
    assert torch.equal(load_reward(tmp_path / "reward")[0].trunk.wte.weight, padded.wte.weight[:280])
    save_policy(tmp_path / "again", model, tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    torch.testing.assert_close(model.logits(model(ids)), theirs(ids).logits, **WHOLE_MODEL)


def test_loading_draws_no_random_numbers(policy_dir):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_policy(policy_dir)
    assert torch.equal(torch.rand(3), expected)


def test_loaded_weights_do_not_depend_on_the_file_any_more(model, policy_dir):
    loaded, _ = load_policy(policy_dir)
    file = policy_dir / "model.safetensors"
    with file.open("r+b") as out:  # in place, as a copying tool might; a mapped file would change under us
        out.write(b"\0" * file.stat().st_size)
    assert_same_weights(model, loaded)


def test_another_chat_template_can_be_asked_for(policy_dir):
    assert load_policy(policy_dir, template="plain")[1].render("Hi") == "Hi"


def test_hub_id_prefers_safetensors_and_falls_back_to_bin(model, policy_dir, tmp_path, monkeypatch):
    import huggingface_hub

    def download(name: str, allow_patterns: list[str]) -> Path:
        snapshot = tmp_path / "snapshot" / name
        snapshot.mkdir(parents=True, exist_ok=True)
        for file in policy_dir.iterdir():
            if any(fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, snapshot)
        return snapshot

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    torch.save({}, policy_dir / "pytorch_model.bin")
    assert_same_weights(model, load_policy("someone/both")[0])
    assert not (tmp_path / "snapshot/someone/both/pytorch_model.bin").exists()
    as_bin(policy_dir)
    assert_same_weights(model, load_policy("someone/old")[0])


# ------------------------------------------------------------------------------------------------ reward


@torch.no_grad()
@pytest.mark.parametrize(("gain", "bias"), [(1.0, 0.0), (0.3, -2.0), (4.0, 25.0)])
def test_transformers_gives_the_same_scores_in_a_padded_batch(reward_model, tokenizer, tmp_path, gain, bias):
    transformers = pytest.importorskip("transformers")
    reward_model.rescale(gain, bias)
    save_reward(tmp_path, reward_model, tokenizer)
    theirs, report = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert theirs.config.num_labels == 1
    ids = padded_ids(tokenizer.eos_id)
    expected = reward_model(ids, LENGTHS)
    mask = (torch.arange(12) < LENGTHS[:, None]).long()
    assert expected.std() > 0.05
    torch.testing.assert_close(theirs.eval()(ids, attention_mask=mask).logits.squeeze(1), expected, **WHOLE_MODEL)
    torch.testing.assert_close(load_reward(tmp_path)[0](ids, LENGTHS), expected, **WHOLE_MODEL)


@torch.no_grad()
def test_saving_leaves_the_model_as_it_was(reward_model, tokenizer, tmp_path):
    reward_model.rescale(1.0, 3.0)
    before = {name: p.clone() for name, p in reward_model.named_parameters()}
    save_reward(tmp_path, reward_model, tokenizer)
    for name, parameter in reward_model.named_parameters():
        assert torch.equal(parameter, before[name]), name


@torch.no_grad()
@pytest.mark.parametrize(("head", "pooling"), [("mlp", "last"), ("linear", "mean"), ("mlp", "weighted")])
def test_heads_unknown_to_transformers_come_back_here_and_are_refused_there(model, tokenizer, tmp_path, head, pooling):
    transformers = pytest.importorskip("transformers")
    reward_model = ScalarModel(model, head, pooling)
    reward_model.rescale(2.0, 1.0)
    save_reward(tmp_path, reward_model, tokenizer)
    loaded, _ = load_reward(tmp_path)
    assert (loaded.head_kind, loaded.pooling) == (head, pooling)
    assert_same_weights(reward_model, loaded)
    with pytest.raises(ValueError, match="wukong_reward"):
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)


@torch.no_grad()
def test_a_classifier_of_others_loads_as_reward_model(theirs_dir, tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(theirs_dir, num_labels=1).eval()
    theirs.config.pad_token_id = tokenizer.eos_id
    theirs.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    loaded, _ = load_reward(tmp_path)
    ids = padded_ids(tokenizer.eos_id)
    torch.testing.assert_close(loaded(ids, LENGTHS), theirs(ids).logits.squeeze(1), **WHOLE_MODEL)


def test_trunk_of_either_kind(model, reward_model, tokenizer, policy_dir, tmp_path):
    assert_same_weights(model, load_trunk(policy_dir)[0])
    save_reward(tmp_path / "reward", reward_model, tokenizer)
    assert_same_weights(model, load_trunk(tmp_path / "reward")[0])


def test_policy_and_reward_model_are_not_taken_for_each_other(reward_model, tokenizer, policy_dir, tmp_path):
    save_reward(tmp_path / "reward", reward_model, tokenizer)
    with pytest.raises(UsageError, match="holds a reward model, expected a language model"):
        load_policy(tmp_path / "reward")
    with pytest.raises(UsageError, match="holds a language model, expected a reward model"):
        load_reward(policy_dir)


def test_classifier_of_several_labels_is_no_reward_model(theirs_dir, tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers.AutoModelForSequenceClassification.from_pretrained(theirs_dir, num_labels=3).save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    with pytest.raises(UsageError, match="a classifier of 3 labels"):
        load_reward(tmp_path)


def test_unknown_reward_head_is_refused(model, tokenizer, tmp_path):
    save_reward(tmp_path, ScalarModel(model, "mlp"), tokenizer)
    edit_config(tmp_path, wukong={"head": "quadratic", "pooling": "last"})
    with pytest.raises(UsageError, match=r"config\.json: wukong\.head"):
        load_reward(tmp_path)


def test_head_of_zeros_cannot_carry_a_bias(reward_model, tokenizer, tmp_path):
    reward_model.rescale(0.0, 1.0)
    with pytest.raises(UsageError, match="all zero"):
        save_reward(tmp_path, reward_model, tokenizer)


# ------------------------------------------------------------------------------------------------ errors


class Burglar:
    """A pickle that touches a file when it is loaded carelessly."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_no_code_of_a_bin_file_is_run(policy_dir, tmp_path):
    as_bin(policy_dir)
    content = torch.load(policy_dir / "pytorch_model.bin", weights_only=True)
    torch.save({**content, "x": Burglar(tmp_path / "burgled")}, policy_dir / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"pytorch_model\.bin: damaged, or contains more than weights"):
        load_policy(policy_dir)
    assert not (tmp_path / "burgled").exists()


def _write(name: str, content: bytes):
    return lambda directory: (directory / name).write_bytes(content)


def _truncate(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def _bin_with(content):
    def change(directory: Path) -> None:
        (directory / "model.safetensors").unlink()
        if isinstance(content, bytes):
            (directory / "pytorch_model.bin").write_bytes(content)
        else:
            torch.save(content, directory / "pytorch_model.bin")

    return change


def _shards_with(**weight_map: str):
    def change(directory: Path) -> None:
        as_shards(directory, "safetensors")
        file = directory / "model.safetensors.index.json"
        index = json.loads(file.read_text())
        index["weight_map"].update(weight_map)
        file.write_text(json.dumps(index))

    return change


def _config(**changes):
    return lambda directory: edit_config(directory, **changes)


def _tensors(change):
    return lambda directory: edit_tensors(directory, change)


def _lose_shard(directory: Path) -> None:
    as_shards(directory, "safetensors")
    (directory / "model-00002-of-00002.safetensors").unlink()


def _spoilt(name: str, value: float):
    """One number of a tensor, in the middle, is another."""
    return _tensors(lambda tensors: tensors[name].view(-1).__setitem__(7, value))


def _header(length: int):
    def change(directory: Path) -> None:
        file = directory / "model.safetensors"
        file.write_bytes(length.to_bytes(8, "little") + file.read_bytes()[8:])

    return change


def _bin_changed(change):
    def damage(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        _bin_with(tensors)(directory)

    return damage


def _packed_bin(directory: Path) -> None:
    as_bin(directory)
    file = directory / "pytorch_model.bin"
    with zipfile.ZipFile(file) as archive:
        parts = [(part, archive.read(part)) for part in archive.namelist()]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for part, content in parts:
            archive.writestr(part, content)


def _twice_in_shards(directory: Path) -> None:
    as_shards(directory, "safetensors")
    for number in (1, 2):
        file = directory / f"model-0000{number}-of-00002.safetensors"
        tensors = load_file(file)
        tensors["transformer.ln_f.bias"] = torch.ones(32)
        save_file(tensors, file)


def _linked(name: str):
    return lambda directory: ((directory / name).unlink(), (directory / name).symlink_to(name))


BROKEN = {
    "other model": (_config(model_type="mamba"), "config.json: model_type is 'mamba', only these can be loaded: gpt2"),
    "other task": (_config(architectures=["GPT2ForTokenClassification"]), "config.json: architecture GPT2ForTok"),
    "no config": (lambda d: (d / "config.json").unlink(), "holds no model (config.json is missing)"),
    "config not JSON": (_write("config.json", b"{"), "config.json:1: not valid JSON"),
    "config a list": (_write("config.json", b"[]"), "config.json: not a JSON object"),
    "no n_head": (_config(n_head="(absent)"), "config.json: n_head is missing"),
    "text for a size": (_config(n_layer="3"), "config.json: n_layer is '3', not a size"),
    "heads do not divide": (_config(n_head=5), "config.json: n_embd 32 is not a multiple of n_head 5"),
    "activation": (_config(activation_function="relu"), "activation_function is 'relu', only GPT-2's 'gelu_new'"),
    "layer scaling": (_config(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx is True"),
    "no scaling": (_config(scale_attn_weights=False), "scale_attn_weights is False"),
    "reordered": (_config(reorder_and_upcast_attn=True), "reorder_and_upcast_attn is True"),
    "cross attention": (_config(add_cross_attention=True), "add_cross_attention is True"),
    "untied by config": (_config(tie_word_embeddings=False), "tie_word_embeddings is False"),
    "inner width": (_config(n_inner=64), "n_inner is 64"),
    "epsilon": (_config(layer_norm_epsilon="tiny"), "layer_norm_epsilon is 'tiny'"),
    "fewer layers": (_config(n_layer=2), "tensor h.2.attn.c_attn.bias has no place"),
    "more layers": (_config(n_layer=4), "tensor h.3.ln_1.weight is missing"),
    "shorter context": (_config(n_positions=32), "tensor wpe.weight is (64, 32) float32, "),
    "missing tensor": (_tensors(lambda t: t.pop("transformer.ln_f.bias")), "tensor ln_f.bias is missing"),
    "extra tensor": (_tensors(lambda t: t.update({"v_head": torch.ones(1)})), "tensor v_head has no place"),
    "integer tensor": (
        _tensors(lambda t: t.update({"transformer.ln_f.bias": torch.ones(32, dtype=torch.int8)})),
        "tensor ln_f.bias is (32,) int8",
    ),
    "untied": (
        _tensors(lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"] + 1})),
        "model.safetensors: lm_head differs from wte",
    ),
    "truncated": (_truncate, "model.safetensors: damaged weights file"),
    "empty": (_write("model.safetensors", b""), "model.safetensors: damaged weights file"),
    "a Git LFS pointer": (_write("model.safetensors", b"version https://git-lfs"), "damaged weights file"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "no weights here"),
    "bin of rubbish": (_bin_with(b"rubbish"), "pytorch_model.bin: damaged"),
    "empty bin": (_bin_with(b""), "pytorch_model.bin: damaged"),
    "bin of a list": (_bin_with([torch.ones(1)]), "pytorch_model.bin: not a dictionary of tensors"),
    "bin of old pickle": (_bin_with(pickle.dumps({"a": 1}, protocol=2)), "pytorch_model.bin: "),
    "shard is lost": (_lose_shard, "model-00002-of-00002.safetensors: no such file"),
    "shard elsewhere": (_shards_with(x="../model.safetensors"), "shard '../model.safetensors' is not a weights file"),
    "shard is a pickle": (_shards_with(x="evil.bin"), "shard 'evil.bin' is not a weights file"),
    "index of nothing": (
        lambda d: (as_shards(d, "safetensors"), _write("model.safetensors.index.json", b"[]")(d)),
        "model.safetensors.index.json: not a JSON object",
    ),
    "a million layers": (_config(n_layer=1_000_000), "tensor h.3.ln_1.weight is missing"),
    "layers beyond counting": (_config(n_layer=10**30), "tensor h.3.ln_1.weight is missing"),
    "a giant vocabulary": (_config(vocab_size=10**12), "tensor wte.weight is (280, 32) float32, "),
    "a giant context": (_config(n_positions=10**15), "tensor wpe.weight is (64, 32) float32, "),
    "a giant width": (_config(n_embd=10**18), "tensor wte.weight is (280, 32) float32, "),
    "no layer": (_config(n_layer=0), "n_layer is 0, not a size"),
    "a negative size": (_config(n_head=-2), "n_head is -2, not a size"),
    "a size that is true": (_config(n_layer=True), "n_layer is True, not a size"),
    "a fraction for a size": (_config(n_embd=32.0), "n_embd is 32.0, not a size"),
    "a list for a size": (_config(vocab_size=[300]), "vocab_size is [300], not a size"),
    "architectures a text": (_config(architectures="GPT2LMHeadModel"), "architecture GPT2LMHeadModel is not one of"),
    "architectures an object": (_config(architectures={"a": 1}), "is not one of"),
    "architectures of objects": (_config(architectures=[{}]), "architecture {} is not one of"),
    "model type a list": (_config(model_type=["gpt2"]), "model_type is ['gpt2'], only these"),
    "an activation that is a list": (_config(activation_function=["gelu_new"]), "activation_function is ['gelu_new']"),
    "another gelu": (_config(activation_function="gelu"), "activation_function is 'gelu', only GPT-2's 'gelu_new'"),
    "epsilon of zero": (_config(layer_norm_epsilon=0.0), "layer_norm_epsilon is 0.0"),
    "epsilon that is no number": (_config(layer_norm_epsilon=float("nan")), "layer_norm_epsilon is nan"),
    "config nested deeply": (_write("config.json", b'{"a":' * 100_000), "config.json: "),
    "config with an endless number": (_write("config.json", b'{"a": ' + b"9" * 9000 + b"}"), "config.json: "),
    "NaN": (_spoilt("transformer.h.1.mlp.c_fc.weight", float("nan")), "tensor h.1.mlp.c_fc.weight contains NaN"),
    "infinity": (_spoilt("transformer.wte.weight", float("-inf")), "tensor wte.weight contains NaN or infinite values"),
    "too large for float32": (
        _tensors(lambda t: t.update({"transformer.ln_f.bias": torch.full((32,), 1e300, dtype=torch.float64)})),
        "tensor ln_f.bias contains NaN or infinite values",
    ),
    "complex numbers": (
        _tensors(lambda t: t.update({"transformer.ln_f.bias": torch.ones(32, dtype=torch.complex64)})),
        "tensor ln_f.bias is (32,) complex64",
    ),
    "a name twice": (
        _tensors(lambda t: t.update({"wpe.weight": t["transformer.wpe.weight"].clone()})),
        "tensor wpe.weight is stored twice",
    ),
    "a layer of a giant number": (_tensors(lambda t: t.update({"h.99999999999999.x": torch.ones(1)})), "has no place"),
    "a giant header": (_header(2**63), "damaged weights file (its header has 9,223,372,036,854,775,808 bytes)"),
    "a long header": (_header(2**25), "damaged weights file (its header has 33,554,432 bytes)"),
    "a header of nothing": (_header(0), "model.safetensors: damaged weights file"),
    "a stretched number": (
        _bin_changed(lambda t: t.update({"transformer.wte.weight": torch.ones(1, 1).expand(280, 32)})),
        "tensor transformer.wte.weight is not stored as plain numbers",
    ),
    "a sparse tensor": (
        _bin_changed(lambda t: t.update({"transformer.ln_f.bias": torch.ones(32).to_sparse()})),
        "tensor transformer.ln_f.bias is not stored as plain numbers",
    ),
    "a packed archive": (_packed_bin, "pytorch_model.bin: its tensors are compressed"),
    "a shard of a long name": (_shards_with(x="y" * 5000 + ".safetensors"), "yyy…: no such file"),
    "a shard elsewhere, absolutely": (_shards_with(x="/etc/passwd"), "shard '/etc/passwd' is not a weights file"),
    "a tensor in no shard": (_shards_with(x="model-00001-of-00002.safetensors"), "tensor x is in none of its shards"),
    "a tensor in both shards": (_twice_in_shards, "tensor transformer.ln_f.bias is in another shard too"),
    "weights that are a link to themselves": (_linked("model.safetensors"), "no weights here"),
    "a config that is a link to itself": (_linked("config.json"), "holds no model (config.json is missing)"),
    "a config that is a pipe": (
        lambda d: ((d / "config.json").unlink(), os.mkfifo(d / "config.json")),
        "config.json: not a file",
    ),
    "a config that is a directory": (
        lambda d: ((d / "config.json").unlink(), (d / "config.json").mkdir()),
        "config.json: not a file",
    ),
    "no tokenizer": (lambda d: [f.unlink() for f in d.glob("*") if "config" not in f.name and "model" not in f.name],
                     "no tokenizer here"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN)
def test_an_unusable_directory_is_refused_in_one_line(policy_dir, damage, message):
    damage(policy_dir)
    with pytest.raises(UsageError) as error:
        load_policy(policy_dir)
    assert message in str(error.value)
    assert str(policy_dir) in str(error.value)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, WukongError)
    assert error.value.exit_code == 2


def test_tokenizer_with_more_tokens_than_the_model_is_refused(policy_dir, tokenizer, tmp_path):
    big = Tokenizer.train(["".join(f"{a}{b}{c} " for a in "abcd" for b in "mnop" for c in "xyz")] * 2, 310)
    small = GPT2(GPT2Config(vocab_size=300, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(UsageError, match="tokenizer does not match the model: 310 tokens, 300 embeddings"):
        save_policy(tmp_path / "never", small, big)
    assert not (tmp_path / "never").exists()
    big.save(policy_dir)
    with pytest.raises(UsageError, match="policy: tokenizer does not match the model"):
        load_policy(policy_dir)


def test_a_file_is_not_a_directory(policy_dir):
    with pytest.raises(UsageError, match="is a file, expected a directory"):
        load_policy(policy_dir / "config.json")
