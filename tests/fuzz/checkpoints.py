"""Malformed checkpoints: a valid tiny model directory with one or two faults in one of its files, loaded and sampled.

Each case loads model and tokenizer and writes two tokens. Either that works ("loaded") or it ends with one line
(a WukongError: "refused"); anything else, and a case of more than ten seconds, is a fault of ours and raises.

    python tests/fuzz/checkpoints.py 2500 0
    python tests/fuzz/checkpoints.py 2500 0 llama
"""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from wukong.errors import WukongError
from wukong.model.config import GPT2Config, LlamaConfig, ModelConfig, RotaryScaling
from wukong.model.families import new_model
from wukong.model.hub import load_policy, load_reward, recommended_sampling, save_policy
from wukong.rollout import generate
from wukong.sampling import SamplingParameters
from wukong.tokenizer import Tokenizer

SECONDS = 10.0
JSON_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
    "added_tokens.json", "model.safetensors.index.json", "vocab.json",
)  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3.5, -0.0, 1e308, float("nan"), float("inf"), 10**6, 2**31, 2**63, 10**30, "", " ",
    "x", "0", "null", "\ud800", "\x00", "é好🍕", "<|endoftext|>", "x" * 5000, "../../etc/passwd", "{{ 1/0 }}",
    "{% for a in range(9**5) %}{% for b in range(9**5) %}{% endfor %}{% endfor %}", "{{ 'x' * 10**10 }}", "{% if",
    [], [None], [1, 2], ["a", "b"], [[]], {}, {"a": 1}, {"content": "x"}, {"content": 3}, {"type": "Sequence"},
)  # fmt: skip


MODELS: dict[str, ModelConfig] = {
    "gpt2": GPT2Config(vocab_size=284, n_positions=64, n_embd=16, n_layer=2, n_head=2),
    "llama": LlamaConfig(
        vocab_size=284, n_positions=64, n_embd=16, n_layer=2, n_head=2, n_kv_head=1, head_width=8, n_inner=24,
        rotary_scaling=RotaryScaling(8.0, 1.0, 4.0, 32), tied=False,
    ),
}  # fmt: skip


def make_valid(directory: Path, family: str) -> None:
    """A policy of two layers with every file that a model of others may have beside it."""
    texts = [f"Boil {n} eggs for {n % 9} minutes, then peel the eggs." for n in range(50)]
    tokenizer = Tokenizer.train(texts, 280)
    torch.manual_seed(0)
    save_policy(directory, new_model(MODELS[family]), tokenizer, sampling=SamplingParameters(0.7, 20, 0.9))
    (directory / "added_tokens.json").write_text('{"<|im_end|>": 280, "[PAD]": 281}')


# ------------------------------------------------------------------------------------------- mutations of JSON values


def _places(value: Any) -> list[tuple[Any, ...]]:
    """The paths of some two thousand values at most, level by level: a first fault may have nested, or repeated, them
    beyond measure. A handful of each long list or object."""
    found: list[tuple[Any, ...]] = [()]
    level = [((), value)]
    while level and len(found) < 2000:
        below = []
        for at, inside in level[:200]:
            children = list(inside.items()) if isinstance(inside, dict) else []
            children = list(enumerate(inside)) if type(inside) is list else children
            below += [((*at, key), child) for key, child in children[:20] + children[-5:]]
        found += [at for at, _ in below]
        level = below
    return found


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    _at(value, path[:-1])[path[-1]] = new
    return value


def _other_value(content: Any, draw: random.Random) -> Any:
    return _put(content, draw.choice(_places(content)), draw.choice(ODD))


def _top_value(content: Any, draw: random.Random) -> Any:
    names = sorted(content) if isinstance(content, dict) else []  # a first fault may have made a list of it
    return _put(content, (draw.choice(names),), draw.choice(ODD)) if names else content


def _drop(content: Any, draw: random.Random) -> Any:
    path = draw.choice(_places(content)[1:] or [()])
    if path:
        del _at(content, path[:-1])[path[-1]]
    return content


def _rename(content: Any, draw: random.Random) -> Any:
    objects = [path for path in _places(content) if isinstance(_at(content, path), dict) and _at(content, path)]
    if objects:
        inside = _at(content, draw.choice(objects))
        key = draw.choice(sorted(inside))
        inside[key.upper() if draw.random() < 0.5 else key + "_"] = inside.pop(key)
    return content


def _swap(content: Any, draw: random.Random) -> Any:
    places = [path for path in _places(content) if path]
    if len(places) > 1:
        a, b = draw.sample(places, 2)
        if a[: len(b)] != b and b[: len(a)] != a:
            first, second = _at(content, a), _at(content, b)
            _put(content, a, second)
            _put(content, b, first)
    return content


def _number(content: Any, draw: random.Random) -> Any:
    places = [path for path in _places(content) if type(_at(content, path)) in (int, float)]
    if places:
        path = draw.choice(places)
        old = _at(content, path)
        changes = (old + 1, old - 1, -old, old * 2, old // 2, float(old), str(old), bool(old), old * 10**6, [old])
        content = _put(content, path, draw.choice(changes))
    return content


def _wrapped(content: Any, draw: random.Random) -> Any:
    path = draw.choice(_places(content))
    old = _at(content, path)
    return _put(content, path, draw.choice(([old], {"value": old}, str(old)[:200], [old, old])))


def _more(content: Any, draw: random.Random) -> Any:
    """Options that models of others have."""
    names = (
        "activation_function", "scale_attn_by_inverse_layer_idx", "n_inner", "tie_word_embeddings", "architectures",
        "model_type", "chat_template", "eos_token", "eos_token_id", "tokenizer_class", "add_prefix_space", "pad_token",
        "added_tokens_decoder", "additional_special_tokens", "repetition_penalty", "do_sample", "temperature", "top_k",
        "add_bos_token", "extra_special_tokens", "normalizer", "pre_tokenizer", "quantization_config", "wukong",
    )  # fmt: skip
    typical = (
        "relu",
        "<|im_end|>",
        "PreTrainedTokenizerFast",
        280,
        [280, 279],
        {"280": {"content": "<t>"}},
        ["<t>"],
        1.3,
    )
    if isinstance(content, dict):
        content[draw.choice(names)] = draw.choice((*ODD, *typical))
    return content


def _repeated(content: Any, draw: random.Random) -> Any:
    lists = [path for path in _places(content) if type(_at(content, path)) is list and _at(content, path)]
    if lists:
        inside = _at(content, draw.choice(lists))
        inside.insert(draw.randrange(len(inside) + 1), draw.choice(inside))
    return content


def _as_bytes(content: Any, draw: random.Random) -> bytes:
    return json.dumps(content).encode()


def _cut(content: Any, draw: random.Random) -> bytes:
    raw = _as_bytes(content, draw)
    return raw[: draw.randrange(len(raw) + 1)]


def _flipped(content: Any, draw: random.Random) -> bytes:
    raw = bytearray(_as_bytes(content, draw))
    for _ in range(draw.choice((1, 3, 20))):
        raw[draw.randrange(len(raw))] = draw.randrange(256)
    return bytes(raw)


def _nested(content: Any, draw: random.Random) -> bytes:
    deep = draw.choice((50, 5000, 200_000))
    opened, closed = draw.choice(((b"[", b"]"), (b'{"a":', b"}")))
    inner = b"1" if draw.random() < 0.5 else _as_bytes(content, draw)
    return opened * deep + inner + closed * deep


def _digits(content: Any, draw: random.Random) -> bytes:
    return _as_bytes(content, draw).replace(b"2", b"9" * draw.choice((5, 400, 5000)), 1)


def _other_text(content: Any, draw: random.Random) -> bytes:
    return draw.choice(
        (b"", b"\xff\xfe{}", b"version https://git-lfs.github.com/spec/v1\n", b"[]", b"3", b"null", b"{}")
    )


JSON_MUTATIONS: tuple[Callable[[Any, random.Random], Any], ...] = (
    _other_value, _top_value, _drop, _rename, _swap, _number, _wrapped, _more, _repeated, _cut, _flipped, _nested,
    _digits, _other_text,
)  # fmt: skip


def _damage_json(file: Path, draw: random.Random) -> str:
    mutation = draw.choice(JSON_MUTATIONS)
    try:
        content = json.loads(file.read_bytes()) if file.is_file() else {}
        changed = mutation(content, draw)
        file.write_bytes(changed if isinstance(changed, bytes) else json.dumps(changed).encode())
    except (OSError, OverflowError, RecursionError, ValueError):  # cannot be read any more, or not be written down
        return "not written"
    return mutation.__name__.strip("_")


# ----------------------------------------------------------------------------------------- mutations of safetensors


def _tensors(
    change: Callable[[dict[str, torch.Tensor], str, random.Random], Any],
) -> Callable[[Path, random.Random], None]:
    def mutate(file: Path, draw: random.Random) -> None:
        tensors = load_file(file)
        change(tensors, draw.choice(sorted(tensors)), draw)
        save_file({name: t.contiguous() for name, t in tensors.items()}, file, metadata={"format": "pt"})

    return mutate


def _other_number(tensors: dict[str, torch.Tensor], name: str, draw: random.Random) -> None:
    tensors[name].view(-1)[draw.randrange(tensors[name].numel())] = draw.choice((float("nan"), float("inf"), 1e38, 0.0))


def _header(change: Callable[[dict[str, Any], str, random.Random], Any]) -> Callable[[Path, random.Random], None]:
    def mutate(file: Path, draw: random.Random) -> None:
        raw = file.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        names = sorted(name for name in header if name != "__metadata__")
        change(header, draw.choice(names), draw)
        packed = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(packed)) + packed + raw[8 + length :])

    return mutate


def _raw(change: Callable[[bytearray, random.Random], bytes | bytearray]) -> Callable[[Path, random.Random], None]:
    return lambda file, draw: _write(file, change(bytearray(file.read_bytes()), draw))


def _write(file: Path, content: bytes | bytearray) -> None:
    file.write_bytes(content)


def _flip_one(raw: bytearray, draw: random.Random) -> bytearray:
    raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    return raw


def _flip_header(raw: bytearray, draw: random.Random) -> bytearray:
    raw[draw.randrange(min(3000, len(raw)))] = draw.randrange(256)
    return raw


def _set_shape(header: dict[str, Any], name: str, draw: random.Random) -> None:
    header[name]["shape"] = draw.choice(([], [0], [10**12], [2**40, 2**40], [-1], ["3"], [16, 1], None, [1] * 100))


def _set_offsets(header: dict[str, Any], name: str, draw: random.Random) -> None:
    header[name]["data_offsets"] = draw.choice(([0, 4], [4, 0], [0, 2**63], [-4, 4], [], None, [0.5, 4]))


WEIGHT_MUTATIONS: dict[str, Callable[[Path, random.Random], None]] = {
    "a tensor is missing": _tensors(lambda t, name, draw: t.pop(name)),
    "an unknown tensor": _tensors(lambda t, name, draw: t.update({draw.choice(("x", "h.999999999.a", "é")): t[name]})),
    "another shape": _tensors(lambda t, name, draw: t.update({name: t[name].unsqueeze(0)})),
    "a shorter tensor": _tensors(lambda t, name, draw: t.update({name: t[name][:-1].clone()})),
    "integers": _tensors(lambda t, name, draw: t.update({name: t[name].to(draw.choice((torch.int8, torch.bool)))})),
    "half precision": _tensors(lambda t, name, draw: t.update({name: t[name].to(torch.float16)})),
    "doubles": _tensors(lambda t, name, draw: t.update({name: t[name].double() * draw.choice((1.0, 1e300))})),
    "another number": _tensors(_other_number),
    "an untied head": _tensors(lambda t, name, draw: t.update({"lm_head.weight": torch.rand(284, 16)})),
    "a name twice": _tensors(lambda t, name, draw: t.update({name.removeprefix("transformer."): t[name].clone()})),
    "a layer more": _tensors(lambda t, name, draw: t.update({"transformer.h.7.ln_1.weight": torch.ones(16)})),
    "a shape that lies": _header(_set_shape),
    "offsets that lie": _header(_set_offsets),
    "another type": _header(lambda h, name, draw: h[name].update(dtype=draw.choice(("F64", "F8_E4M3", "I64", "Q", 3)))),
    "a header entry less": _header(lambda h, name, draw: h.pop(name)),
    "no object": _header(lambda h, name, draw: h.update({name: draw.choice(ODD[:-20])})),
    "metadata": _header(lambda h, name, draw: h.update(__metadata__=draw.choice(({"format": "tf"}, 3, {"a": 1}, [])))),
    "cut off": _raw(lambda raw, draw: raw[: draw.randrange(len(raw))]),
    "bytes behind": _raw(lambda raw, draw: raw + bytes(draw.randrange(1, 1000))),
    "a bit flipped": _raw(_flip_one),
    "a header byte": _raw(_flip_header),
    "header length": _raw(lambda raw, draw: struct.pack("<Q", draw.choice((0, 1, 2**24, 2**40, 2**64 - 1))) + raw[8:]),
    "a pickle": _raw(lambda raw, draw: b"\x80\x04\x95" + bytes(20)),
    "nothing": _raw(lambda raw, draw: b""),
}  # fmt: skip


# --------------------------------------------------------------------------------------------------- files and shards


def _as_shards(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for file, part in zip(files, (names[:9], names[9:]), strict=True):
        save_file({name: tensors[name] for name in part}, directory / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": {name: files[i >= 9] for i, name in enumerate(names)}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def _loop(directory: Path, draw: random.Random) -> None:
    file = directory / draw.choice(sorted(os.listdir(directory)))
    file.unlink()
    file.symlink_to(file.name)


def _fifo(directory: Path, draw: random.Random) -> None:
    file = directory / draw.choice(sorted(os.listdir(directory)))
    file.unlink()
    os.mkfifo(file)


def _folder(directory: Path, draw: random.Random) -> None:
    file = directory / draw.choice(sorted(os.listdir(directory)))
    file.unlink()
    file.mkdir()


def _gone(directory: Path, draw: random.Random) -> None:
    (directory / draw.choice(sorted(os.listdir(directory)))).unlink()


def _merges(directory: Path, draw: random.Random) -> None:
    (directory / "tokenizer.json").unlink()
    lines = (directory / "merges.txt").read_text(encoding="utf-8").split("\n")
    lines.insert(
        draw.randrange(len(lines)), draw.choice(("a", "a b c", "never seen", "Ġ Ġ", " ", "\ufeff", "x" * 10**5))
    )
    (directory / "merges.txt").write_text("\n".join(lines), encoding="utf-8")


def _plain_vocabulary(directory: Path, draw: random.Random) -> None:
    (directory / "tokenizer.json").unlink()
    _damage_json(directory / draw.choice(("vocab.json", "added_tokens.json", "tokenizer_config.json")), draw)


def _template(directory: Path, draw: random.Random) -> None:
    parts = (
        "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}",
        "{{ eos_token }}",
        "{% if add_generation_prompt %}",
        "{% endif %}",
        "{{ messages[0]['content'] * 10**8 }}",
        "{{ '%900000000d' | format(1) }}",
        "{{ range(10**6) }}",
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% include 'x' %}",
        "{{ ''.__class__ }}",
        "{% generation %}",
        "{% for a in 'x' * 99999 %}{% for b in 'x' * 99999 %}{% endfor %}{% endfor %}",
        "{{ raise_exception('no') }}",
        "\x00",
        (directory / "chat_template.jinja").read_text(encoding="utf-8"),
        "{% set x = namespace(a=1) %}{{ x.a ** 9 ** 9 }}",
    )
    text = "".join(draw.choices(parts, k=draw.choice((1, 1, 2, 4))))
    (directory / "chat_template.jinja").write_text(text, encoding="utf-8")


def _damage(directory: Path, draw: random.Random) -> str:
    """One fault; its name. None where a first one left something else than files: who writes into a pipe waits."""
    if not all(path.is_file() for path in directory.iterdir()):
        return "nothing"
    kind = draw.random()
    if kind < 0.55:
        name = draw.choice(JSON_FILES)
        if name == "model.safetensors.index.json" and not (directory / name).exists():
            try:
                _as_shards(directory)
            except Exception:  # the first fault was in the weights
                return "nothing"
        return f"{name}: {_damage_json(directory / name, draw)}"
    weights = directory / "model.safetensors"
    if kind < 0.85 and weights.is_file():
        name = draw.choice(list(WEIGHT_MUTATIONS))
        try:
            WEIGHT_MUTATIONS[name](weights, draw)
        except Exception:  # a second fault in a file that is none any more
            return "nothing"
        return f"safetensors: {name}"
    change = draw.choice((_loop, _fifo, _folder, _gone, _merges, _plain_vocabulary, _template, _template, _template))
    try:
        change(directory, draw)
    except (OSError, ValueError):  # the first fault was in the same file
        return "nothing"
    return f"files: {change.__name__.strip('_')}"


# -------------------------------------------------------------------------------------------------------------- cases


def attempt(directory: Path) -> str:
    """Loads a directory and writes two tokens: "loaded" or "refused"."""
    try:
        model, tokenizer = load_policy(directory)
        drawing = recommended_sampling(directory).unless_given(str(directory), None)
        prompt = tokenizer.prompt_ids("eggs?", max_tokens=model.config.n_positions - 2)
        generate(
            model.eval(), [prompt], eos_id=tokenizer.eos_ids, max_new_tokens=2, seeds=[0], **drawing.as_dict()
        )  # fmt: skip
        return "loaded"
    except WukongError as error:
        said = str(error)
    if "\n" in said or len(said) > 2000:
        raise AssertionError(f"not one short line: {said[:500]!r}")
    try:
        load_reward(directory)
    except WukongError:
        return "refused"
    return "refused as policy"


def run(count: int, seed: int, family: str = "gpt2") -> Counter:
    """`count` cases; outcomes by name. Raises AssertionError with the fault of the first case that went wrong."""
    outcomes: Counter = Counter()
    with tempfile.TemporaryDirectory(prefix="wukong-fuzz-") as place:
        valid, case = Path(place) / "valid", Path(place) / "case"
        make_valid(valid, family)
        assert attempt(valid) == "loaded"
        for number in range(count):
            draw = random.Random(f"{seed} {number}")
            shutil.rmtree(case, ignore_errors=True)
            shutil.copytree(valid, case)
            faults = [_damage(case, draw) for _ in range(draw.choice((1, 1, 1, 2)))]
            begin = time.monotonic()
            try:
                outcome = attempt(case)
            except BaseException as error:
                raise AssertionError(
                    f"case {number} of seed {seed}, {faults}: {type(error).__name__}: {error}"
                ) from error
            seconds = time.monotonic() - begin
            assert seconds < SECONDS, f"case {number} of seed {seed}, {faults}: {seconds:.1f} seconds"
            outcomes[outcome] += 1
    return outcomes


if __name__ == "__main__":
    print(dict(run(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])))
