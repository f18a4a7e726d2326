"""The command line: what it accepts, and that every mistake is one line with the right exit code."""

import errno
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import wukong
from wukong import cli, cli_parser
from wukong.console import Bar, console, say
from wukong.errors import DataError, RunError, UsageError
from wukong.kitchen.stage import KitchenOptions
from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.model.heads import ScalarModel
from wukong.model.hub import save_policy, save_reward
from wukong.registry import STAGES, TOOLS
from wukong.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def wukong_says(capsys):
    """Runs a command in this process: (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as error:  # --help
            code = int(error.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def refused(wukong_says):
    """Runs a command that must fail with exit code 2; gives its one line of error."""

    def call(*arguments: object) -> str:
        code, out, err = wukong_says(*arguments)
        assert (code, out) == (2, ""), err
        line = err.splitlines()[-1]
        assert err.count("wukong: error: ") == 1
        assert line.startswith("wukong: error: ")
        assert "Traceback" not in err
        return line.removeprefix("wukong: error: ")

    return call


def in_shell(*arguments: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "wukong", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, **options)


# ---------------------------------------------------------------------------------------------------------- the front


def test_help_lists_every_command():
    done = in_shell("--help")  # that it does not wait for torch: tests/test_imports.py
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("run", "chat", *STAGES):
        assert f"\n  {name} " in done.stdout


def test_version_and_no_arguments(wukong_says):
    assert wukong_says("--version") == (0, f"wukong {wukong.__version__}\n", "")
    assert wukong_says() == wukong_says("--help")


def test_an_unknown_command_is_one_line_that_suggests_the_nearest():
    done = in_shell("tokenise")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "wukong: error: unknown command tokenise; did you mean tokenize?\n"


@pytest.mark.parametrize("name", [*STAGES, "chat"])
def test_help_of_a_command_shows_an_example_and_every_option(wukong_says, name):
    code, out, err = wukong_says(name, "--help")
    assert (code, err) == (0, "")
    assert f"\n    wukong {name} " in out
    stage = {**STAGES, **TOOLS}[name]
    for field in stage.load()[0].model_fields:
        assert f"--{field.replace('_', '-')}" in out or field == stage.positional
    assert ("--redo" in out) == (name != "chat")


HELP = """
import contextlib, os, sys
from wukong import cli, cli_parser
from wukong.registry import STAGES, TOOLS
for columns in (None, "40", "999999999", "500"):  # first as the process was started
    os.environ |= {"COLUMNS": columns} if columns else {}
    print("== columns")
    for command in ([], *([name] for name in ("run", *TOOLS, *STAGES)), ["run", "test"]):
        print("\\n==", *command)
        with contextlib.suppress(SystemExit):
            assert cli.main([*command, "--help"]) == 0
"""


def test_help_is_written_in_any_width():
    """In a process of its own, for the help in a width without room for a word once had no end; this takes seconds."""
    environment = os.environ | {"COLUMNS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", HELP], env=environment, cwd=ROOT, capture_output=True, text=True, check=True, timeout=600
    )
    assert done.stderr == ""
    _, narrowest, forty, widest, wide = done.stdout.split("== columns\n")
    assert narrowest == forty
    assert widest == wide != forty
    for name in ("run", "run test", *TOOLS, *STAGES):
        assert f"\n== {name}\nusage: wukong {name.split()[0]}" in narrowest


# ------------------------------------------------------------------------------------------------------ wrong options


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["kitchen"], "--out is required; see wukong kitchen --help"),
        (["tokenize"], "--out and --data are required; see wukong tokenize --help"),
        (["kitchen", "--out", "x", "--megabites", "1"], "unknown option --megabites; did you mean --megabytes?"),
        (["kitchen", "--out", "x", "--zzz"], "unknown option --zzz; see wukong kitchen --help"),
        (["kitchen", "--out", "x", "y"], "unexpected argument y; see wukong kitchen --help"),
        (["kitchen", "--out", "x", "--megabytes", "-1"], "--megabytes: should be greater than 0, not -1.0"),
        (["kitchen", "--out", "x", "--megabytes", "big"], "--megabytes: expected a number, not 'big'; see"),
        (["kitchen", "--out", "x", "--megabytes"], "--megabytes: a value is missing"),
        (["kitchen", "--out", "x", "--seed", "0.5"], "--seed: expected a whole number, not '0.5'"),
        (
            ["pretrain", "--out", "x", "--data", "y", "--lr-schedule", "sine"],
            "--lr-schedule: choose one of cosine, linear, constant, not 'sine'",
        ),
        (["pretrain", "--out", "x", "--data", "y", "--betas", "0.9"], "--betas: 2 values are needed"),
        (["tokenize", "--out", "x", "--data", "y", "--encoding", "utf-99"], "--encoding: unknown encoding 'utf-99'"),
        (["serve"], "MODELS is required; see wukong serve --help"),
        (["plan"], "RECIPE is required; see wukong plan --help"),
        (["init", "a.yaml", "b.yaml"], "unexpected argument b.yaml; see wukong init --help"),
        (["run"], "the recipe comes first: wukong run RECIPE [options]"),
        (["run", "--seed", "1"], "the recipe comes first: wukong run RECIPE [options]"),
        (["run", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (
            ["run", "test", "--ppo.kl-coff", "1"],
            "unknown option --ppo.kl-coff; did you mean --ppo.kl-coef?",
        ),
        (["run", "test", "--ppo.kl-coef", "-1"], "ppo.kl_coef: should be greater than or equal to 0"),
        (["run", "test", "--until", "ppp"], "--until ppp: the recipe test has no such step; did you mean"),
    ],
)
def test_a_wrong_option_is_one_line(refused, monkeypatch, arguments, line):
    monkeypatch.chdir(ROOT)
    assert line in refused(*arguments)
    assert not (ROOT / "x").exists()


def test_underscores_equals_signs_and_repeated_lists_are_understood():
    options, _ = STAGES["sample"].load()
    line = "--models a --top_k=5 --models b c --temperatures=0.5 --temperatures 1 --out x --prompts p"
    given = cli_parser.parse("wukong sample", cli_parser.hints(options), "", line.split())
    assert given == {
        "models": ["a", "b", "c"], "top_k": 5, "temperatures": [0.5, 1.0], "out": Path("x"), "prompts": ["p"],
    }  # fmt: skip


def test_help_of_a_recipe_shows_its_values(wukong_says, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, out, _ = wukong_says("run", "test", "--help")
    assert code == 0
    assert "--ppo.kl-coef FLOAT" in out
    assert "(recipe: 128)" in " ".join(out.split())  # ppo.episodes


def test_overrides_reach_the_steps(wukong_says, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    code, _, err = wukong_says(
        "run", "test", "--run-dir", tmp_path / "run", "--until", "kitchen", "--kitchen.megabytes", "0.05",
        "--seed", "4",
    )  # fmt: skip
    assert code == 0, err
    resolved = (tmp_path / "run" / "recipe.yaml").read_text()
    assert "megabytes: 0.05" in resolved
    assert "seed: 4" in resolved
    assert (tmp_path / "run" / "data" / "corpus.jsonl").stat().st_size < 70_000


def test_redo_makes_a_stage_anew(wukong_says, tmp_path):
    world = ["kitchen", "--out", tmp_path / "world", "--megabytes", "0.05"]
    assert wukong_says(*world)[0] == 0
    (tmp_path / "world" / "corpus.jsonl").write_text("edited")
    code, _, err = wukong_says(*world)
    assert code == 2
    assert "corpus.jsonl: damaged or changed: not what wukong kitchen wrote" in err
    (again,) = re.findall(r"rebuild it: wukong (.*? --redo);", err)
    assert wukong_says("accept", tmp_path / "world")[0] == 0
    code, _, err = wukong_says(*world)
    assert (code, "is complete, nothing to do" in err) == (0, True)
    assert wukong_says(*shlex.split(again))[0] == 0
    code, _, err = wukong_says(*world, "--seed", "1")
    assert code == 2
    assert "--redo" in err
    assert wukong_says(*world, "--seed", "1", "--redo")[0] == 0
    assert (tmp_path / "world" / "corpus.jsonl").stat().st_size > 40_000


def test_redo_spares_what_the_stage_did_not_make(refused, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    line = refused("kitchen", "--out", tmp_path, "--redo")
    assert "was not made by wukong kitchen, so --redo does not delete it" in line
    assert (tmp_path / "thesis.txt").exists()


# --------------------------------------------------------------------------------------------------------- wrong input


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny models and shards, some of them broken."""
    root = tmp_path_factory.mktemp("models")
    texts = [f"Boil {n} eggs for {n % 9} minutes, then peel them." for n in range(60)]
    tokenizer, other = Tokenizer.train(texts, 280), Tokenizer.train([t.upper() for t in texts], 280)
    config = GPT2Config(vocab_size=280, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    save_policy(root / "good", GPT2(config), tokenizer)
    save_reward(root / "reward", ScalarModel(GPT2(config)), tokenizer)
    for name in ("cut", "config", "llama", "empty"):
        save_policy(root / name, GPT2(config), tokenizer)
    weights = (root / "cut" / "model.safetensors").read_bytes()
    (root / "cut" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (root / "config" / "config.json").write_text('{"model_type": "gpt2"')
    (root / "llama" / "config.json").write_text('{"model_type": "llama"}')
    (root / "mamba").mkdir()
    (root / "mamba" / "config.json").write_text('{"model_type": "mamba"}')
    for file in (root / "empty").iterdir():
        file.unlink()
    big = Tokenizer.train([f"{text} {i}{text[::-1]}" for i, text in enumerate(texts)], 360)
    save_policy(root / "mismatch", GPT2(config), tokenizer)
    big.save(root / "mismatch")
    (root / "text.txt").write_text("\n\n".join(texts))
    shards = ["tokenize", "--data", str(root / "text.txt"), "--document-separator", "blank", "--valid-fraction", "0.2"]
    save_policy(root / "other", GPT2(config), other)
    assert cli.main([*shards, "--tokenizer", str(root / "good"), "--out", str(root / "shards")]) == 0
    return root


@pytest.fixture
def data(tmp_path):
    """Small data files, most of them bad."""
    files = {
        "good.jsonl": b'{"instruction": "Peel", "output": "Peel them."}\n' * 3,
        "empty.jsonl": b"",
        "field.jsonl": b'{"instruction": "Peel", "output": "x"}\n{"instruction": "Peel"}\n',
        "broken.jsonl": b'{"instruction": "Peel", "output": "x"}\n{"instruction": "Pe\n',
        "latin.jsonl": '{"instruction": "Caf\u00e9", "output": "x"}\n'.encode("latin-1"),
        "foreign.jsonl": b'{"height": 3}\n',
        "packed.jsonl.gz": b"\x1f\x8b\x08 not gzip at all",
        "long.jsonl": b'{"instruction": "' + b"Boil eggs. " * 100 + b'", "output": "x"}\n',
        "pairs.jsonl": b'{"prompt": "Peel", "chosen": "yes", "rejected": "no"}\n' * 2,
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.jsonl", ["nowhere.jsonl: no such file"]),
        ("empty.jsonl", ["empty.jsonl", "empty"]),
        ("field.jsonl", ["field.jsonl:2:", "'output'", "missing"]),
        ("broken.jsonl", ["broken.jsonl:2:", "not valid JSON"]),
        ("latin.jsonl", ["latin.jsonl:1:", "not utf-8", "--encoding cp1252"]),
        ("foreign.jsonl", ["foreign.jsonl", "height"]),
        ("packed.jsonl.gz", ["packed.jsonl.gz", "damaged gzip"]),
        ("long.jsonl", ["no demonstration is left to train on"]),
    ],
)
def test_unusable_demonstrations(refused, models, data, name, words):
    line = refused("sft", "--model", models / "good", "--data", data / name, "--out", data / "out")
    assert all(word in line for word in words), line
    assert not (data / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", ["nowhere: no such directory"]),
        ("empty", ["empty: holds no model (config.json is missing)"]),
        ("cut", ["model.safetensors: damaged weights file"]),
        ("config", ["config.json:", "not valid JSON"]),
        ("llama", ["config.json: vocab_size is missing"]),
        ("mamba", ["model_type is 'mamba', only these can be loaded: ", "gpt2", "llama"]),
        ("mismatch", ["tokenizer does not match the model"]),
        ("reward", ["holds a reward model, expected a language model"]),
        ("text.txt", ["text.txt: is a file, expected a directory"]),
    ],
)
@pytest.mark.parametrize("stage", ["sft", "sample", "chat"])
def test_unusable_model(refused, models, data, stage, name, words):
    arguments = {
        "sft": ["--model", models / name, "--data", data / "good.jsonl", "--out", data / "out"],
        "sample": ["--models", models / name, "--prompts", data / "good.jsonl", "--max-new-tokens", "4",
                   "--out", data / "out.jsonl"],
        "chat": [models / name, "--prompt", "hello"],
    }[stage]  # fmt: skip
    line = refused(stage, *arguments)
    assert all(word in line for word in words), line
    assert not (data / "out.jsonl").exists()


def test_unusable_shards(refused, models, tmp_path):
    out = ["--out", tmp_path / "out", "--batch-tokens", "64"]
    assert "made with another tokenizer" in refused(
        "pretrain", "--data", models / "shards", "--model", models / "other", *out
    )
    assert "is longer than the model's" in refused(
        "pretrain", "--data", models / "shards", "--model", models / "good", "--context", "65", *out
    )
    assert "is not a multiple of the context" in refused(
        "pretrain", "--data", models / "shards", "--model", models / "good", "--context", "60", *out
    )
    assert "good" in refused("pretrain", "--data", models / "good", "--model", "test", *out)
    assert "nowhere" in refused("pretrain", "--data", models / "nowhere", "--model", "test", *out)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_prompt_longer_than_the_context(refused, models, data):
    common = ["--prompts", data / "long.jsonl", "--max-new-tokens", "8"]
    line = refused("sample", "--models", models / "good", *common, "--out", data / "out.jsonl")
    assert "long.jsonl" in line
    assert "56" in line
    policy, reward = ["--model", models / "good"], ["--reward-model", models / "reward"]
    refused("ppo", *policy, *reward, *common, "--out", data / "out")


def test_a_result_of_another_stage_is_not_overwritten(refused, wukong_says, models, data):
    assert wukong_says("kitchen", "--out", data / "world", "--megabytes", "0.02")[0] == 0
    line = refused("sft", "--model", models / "good", "--data", data / "good.jsonl", "--out", data / "world")
    assert "holds the result of 'kitchen'; choose another --out" in line


# ------------------------------------------------------------------------------------------------ trouble while it runs


class OutOfMemoryError(RuntimeError):
    """Named as torch's own for GPUs."""


@pytest.mark.parametrize(
    "text",
    [
        "x*openai:M@http://user:sesame@host/v1: write WEIGHT*NAME",
        "openai:M@user:sesame@host is named twice",
        "http:/user:sesame@host/recipe.yaml: no such file",
        "https://sesame@host/x: no such directory",
        "postgresql://user:p@sesame@host/x",
        "http://user:se/sesame@host/x",
        "http://host/v1?api_key=sesame&x=1",
        "http://host/v1?a=1&token=sesame",
    ],
)
def test_no_error_repeats_a_secret(text):
    for error in (UsageError(text), RunError(text), DataError("is odd", file=text)):
        assert "sesame" not in str(error)
        assert "***" in str(error)


@pytest.mark.parametrize(
    "text", ["a@b.de: mail 10:30 c@d", "openai:M@http://127.0.0.1:9/v1: no answer", "write postgresql://user@host/name"]
)
def test_what_is_no_secret_stays_in_an_error(text):
    assert str(UsageError(text)) == text


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RunError("the loss is nan"), 1, "the loss is nan"),
        (RunError("two\nlines"), 1, "two lines"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/full/x"),
            1,
            "/full/x: No space left on device; finished work",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), 1, "/root/x: Permission denied; finished work"),
        (ValueError("I/O error: No space left on device (os error 28)"), 1, "the disk is full (I/O error"),
        (MemoryError(), 1, "out of memory (MemoryError); lower --micro-batch-tokens"),
        (OutOfMemoryError("CUDA out of memory. Tried"), 1, "out of memory (CUDA out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"), 1, "out of memory ("),
    ],
)
def test_trouble_is_one_line_with_its_exit_code(wukong_says, monkeypatch, tmp_path, error, code, line):
    def run(options: KitchenOptions) -> None:
        raise error

    monkeypatch.setitem(sys.modules, "wukong.kitchen.stage", SimpleNamespace(run=run, __doc__=""))
    found, out, err = wukong_says("kitchen", "--out", tmp_path)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert err.startswith(f"wukong: error: {line}")


def test_a_bug_of_ours_keeps_its_traceback(wukong_says, monkeypatch, tmp_path):
    def run(options: KitchenOptions) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(sys.modules, "wukong.kitchen.stage", SimpleNamespace(run=run, __doc__=""))
    with pytest.raises(ZeroDivisionError):
        wukong_says("kitchen", "--out", tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of POSIX")
def test_a_file_that_cannot_be_written_is_one_line_and_absent(tmp_path):
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    done = in_shell("kitchen", "--out", tmp_path / "world", preexec_fn=limit)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("wukong: error: ")
    assert "corpus.jsonl: cannot write (File too large); no partial file was left" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "world").iterdir()] == ["options.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals of POSIX")
def test_ctrl_c_and_a_reader_that_leaves_need_no_traceback(tmp_path):
    command = [sys.executable, "-m", "wukong", "kitchen", "--out", str(tmp_path / "world"), "--megabytes", "50"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "world" / "options.json").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in err
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "wukong", "--help"], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs signals of POSIX")
def test_the_tests_of_ctrl_c_pass_where_the_suite_was_started_with_it_ignored():
    """As a shell starts what runs in the background; every process inherits it."""
    test = f"{__file__}::{test_ctrl_c_and_a_reader_that_leaves_need_no_traceback.__name__}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", test],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert (done.returncode, "1 passed" in done.stdout) == (0, True), done.stdout


def test_torch_is_really_out_of_memory_in_those_words(wukong_says, monkeypatch, tmp_path):
    def run(options: KitchenOptions) -> None:
        torch.empty(1 << 50)

    monkeypatch.setitem(sys.modules, "wukong.kitchen.stage", SimpleNamespace(run=run, __doc__=""))
    code, _, err = wukong_says("kitchen", "--out", tmp_path)
    assert (code, err.startswith("wukong: error: out of memory (")) == (1, True), err


@pytest.mark.parametrize("given", [None, "0"])
def test_tensors_lie_in_huge_pages_unless_the_person_says_otherwise(given):
    """In a process of its own: torch reads the variable when it is imported, so the command line sets it before."""
    environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
    environment |= {} if given is None else {"THP_MEM_ALLOC_ENABLE": given}
    code = (
        "import os, sys\nfrom wukong.cli import main\nassert 'torch' not in sys.modules\nmain(['--version'])\n"
        "assert 'torch' not in sys.modules\nprint(os.environ.get('THP_MEM_ALLOC_ENABLE'))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    expected = given or ("1" if sys.platform == "linux" else "None")
    assert done.stdout.split()[-1] == expected


@pytest.mark.parametrize("rank", [None, 0, 1])
def test_only_the_first_process_of_a_job_speaks_though_it_became_one_later(monkeypatch, capsys, rank):
    """The console was read before: by a server that forks, or by the tests themselves."""
    say("before")
    if rank is not None:
        for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, str(value))
    say("within")
    with Bar("working", 1) as bar:
        bar.advance()
    within = capsys.readouterr().err.splitlines()
    assert within[0] == "before"
    if rank == 1:
        assert within[1:] == []
    else:
        assert within[1] == "within"
        assert within[2].startswith("working: 1/1 steps")
    monkeypatch.undo()
    say("after")
    monkeypatch.setattr(console, "quiet", True)
    say("silenced")
    assert capsys.readouterr().err == "after\n"


def test_what_cannot_be_seen_in_a_message_is_shown():
    assert str(UsageError("o\ufeffut: 左\u3000右 👩\u200d🍳 \u202egpj\U000e0001\x1b[2J\n")) == (
        "o\\ufeffut: 左\u3000右 👩\u200d🍳 \\u202egpj\\U000e0001 [2J "
    )


def test_a_message_stays_readable_whatever_stands_in_it():
    said = str(UsageError(f"file.json: x is {'y' * 10**6}, not a size"))
    assert len(said) < 1700
    assert said.startswith("file.json: x is yyy")
    assert said.endswith("yyy, not a size")
