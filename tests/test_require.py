"""Everything a step needs is checked before the first one runs, and before anything is deleted."""

import importlib
import json
import shutil
from pathlib import Path

import pytest

import wukong
from wukong.cli import main
from wukong.errors import DataError, UsageError
from wukong.files import fingerprint
from wukong.options import StageOptions
from wukong.registry import STAGES, TOOLS
from wukong.stages.label import LabelOptions
from wukong.stages.label import run as label
from wukong.stages.tokenize import TokenizeOptions
from wukong.stages.tokenize import run as tokenize

HEAD = "name: mine\nsteps:\n  kitchen: {out: '{run}/data', megabytes: 0.02}\n"
TOKENS = "  tokenize: {data: ['{run}/data/corpus.jsonl'], vocab_size: 400, valid_fraction: 0.1, out: '{run}/tokens'}\n"
BASE = "  pretrain: {data: '{run}/tokens', model: test, batch_tokens: 64, tokens: 64, out: '{run}/base'}\n"
SAMPLE = "  sample: {models: ['{run}/base'], prompts: ['{run}/data/prompts-train.jsonl'], out: '{run}/r.jsonl'}\n"
LABEL = "  label: {responses: '{run}/r.jsonl', judge: rubric, out: '{run}/c.jsonl'}\n"
REWARD = "  reward: {model: '{run}/base', data: ['{run}/c.jsonl'], out: '{run}/reward'}\n"
PROMPTS = "['{run}/data/prompts-train.jsonl']"
PPO = f"  ppo: {{model: '{{run}}/base', prompts: {PROMPTS}, max_new_tokens: 16, out: '{{run}}/ppo', %s}}\n"
CHAIN = HEAD + TOKENS + BASE + SAMPLE.replace("out:", "max_new_tokens: 16, out:") + LABEL + REWARD


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run of the first step."""
    directory = tmp_path_factory.mktemp("first")
    (directory / "first.yaml").write_text(HEAD)
    return wukong.run(directory / "first.yaml", directory / "run")


@pytest.fixture
def started(first, tmp_path, monkeypatch):
    """A run of which the first step is done; returns (a function that runs a recipe, the run directory)."""
    monkeypatch.chdir(tmp_path)
    run = Path(shutil.copytree(first, "run"))
    Path("other.jsonl").write_text('{"strange": 1}\n')
    Path("votes.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b", "label": True}) + "\n")
    Path("broken.py").write_text("raise OSError('no such device')\n")
    Path("a_file").write_text("")

    def again(text: str, **options) -> None:
        Path("recipe.yaml").write_text(text)
        wukong.run("recipe.yaml", "run", **options)

    return again, run


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        (
            CHAIN + PPO % "rewards: [no_module_of_this_name:score]",
            "step ppo: no_module_of_this_name:score: cannot be lo",
        ),
        (CHAIN + PPO % "rewards: ['math:no_function']", "step ppo: math:no_function: cannot be loaded"),
        (CHAIN + PPO % "rewards: ['math:pi']", "step ppo: math:pi: is float, expected a function"),
        (CHAIN + PPO % "rewards: ['broken:score']", "importing broken raised OSError: no such device"),
        (CHAIN + PPO % "rewards: ['x*lexicon']", "write WEIGHT"),
        (CHAIN + PPO % "rewards: []", "step ppo: there is no reward"),
        (CHAIN + PPO % "reward_model: '{run}/reward', ensemble: ['{run}/reward']", "is named twice"),
        (CHAIN + PPO % "reward_model: '{run}/base'", "expected reward model, but step pretrain makes policy there"),
        (CHAIN + PPO % "reward_model: '{run}/reward', batch_size: 33", "is not a multiple of --batch-size 33"),
        (CHAIN + PPO % "reward_model: '{run}/reward', device: 'cuda:99'", "--device cuda:99 cannot be used here"),
        (
            CHAIN + (PPO % "reward_model: '{run}/reward'").replace("16", "64"),
            "step ppo: --max-new-tokens 64 leaves no room",
        ),
        (
            CHAIN + PPO % "reward_model: '{run}/reward', ptx_data: '{run}/base', ptx_coef: 1",
            "expected token shards",
        ),
        (CHAIN + (PPO % "reward_model: '{run}/reward'").replace("'{run}/ppo'", "a_file/ppo"), "a_file is a file"),
        (
            CHAIN + (PPO % "reward_model: '{run}/reward'").replace("{run}/ppo", "a_file"),
            "is a file, but --out must be a directory",
        ),
        (
            CHAIN + "  sft: {model: '{run}/reward', data: ['other.jsonl'], out: '{run}/s'}\n",
            "step reward makes reward model",
        ),
        (
            CHAIN + "  sft: {model: '{run}/base', data: ['other.jsonl'], out: '{run}/s'}\n",
            "no known format of instructions",
        ),
        (CHAIN + "  sft: {model: '{run}/base', data: ['none.jsonl'], out: '{run}/s'}\n", "none.jsonl: no such file"),
        (
            CHAIN + "  sft: {model: '{run}/base', data: ['{run}/data/taught.jsonl'], out: s}\n",
            "run/data/taught.jsonl: ",
        ),
        (CHAIN + "  sft: {model: nowhere/at/all, data: ['x'], out: '{run}/s'}\n", "nowhere/at/all: no such directory"),
        (CHAIN + "  sft: {model: '{run}/base', template: none.jinja, data: ['votes.jsonl'], out: s}\n", "none.jinja"),
        (
            CHAIN + "  kto: {model: '{run}/base', data: ['{run}/c.jsonl'], out: '{run}/k'}\n",
            "step label makes rankings there",
        ),
        (
            CHAIN + "  dpo: {model: '{run}/base', data: ['votes.jsonl'], out: '{run}/d'}\n",
            "a single vote compares nothing",
        ),
        (
            CHAIN + "  dpo: {model: '{run}/base', data: ['{run}/c.jsonl'], loss: ipo, label_smoothing: 0.1, out: d}\n",
            "ipo",
        ),
        (CHAIN.replace("judge: rubric", "judge: rubrik"), "step label: unknown judge 'rubrik'"),
        (CHAIN.replace("{run}/r.jsonl', judge", "{run}/data', judge"), "step label: run/data: "),
        (CHAIN.replace("batch_tokens: 64", "batch_tokens: 65"), "is not a multiple of the context 64"),
        (CHAIN.replace("max_new_tokens: 16, out", "max_new_tokens: 99, out"), "--max-new-tokens 99 leaves no room"),
        (
            CHAIN.replace("max_new_tokens: 16, out", "endpoint: 'http://x', out"),
            "--endpoint and --endpoint-model go together",
        ),
        (
            CHAIN + "  evaluate: {models: ['a={run}/base', 'a={run}/base'], prompts: [p], out: e}\n",
            "'a' is given twice",
        ),
        (
            CHAIN + "  evaluate: {models: ['a={run}/base'], reference: b, prompts: [p], out: e}\n",
            "no model is named 'b'",
        ),
    ],
)
def test_nothing_is_made_or_deleted_where_a_later_step_could_not_start(started, recipe, problem):
    run_again, run = started
    log = run / "events.jsonl"
    before = {path: fingerprint(path) for path in run.rglob("*") if path.is_file() and path != log}
    for options in ({}, {"redo": "kitchen"}):
        with pytest.raises(UsageError) as caught:
            run_again(recipe, **options)
        assert problem in str(caught.value)
        assert {path: fingerprint(path) for path in run.rglob("*") if path.is_file() and path != log} == before
        last = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
        assert (last["event"], last["step"], last["message"]) == ("failed", None, str(caught.value))


def test_a_sound_recipe_starts_and_steps_behind_until_are_not_checked(started):
    run_again, run = started
    run_again(CHAIN + PPO % "rewards: [no_module_of_this_name:score]", until="tokenize")
    assert (run / "tokens" / "provenance.json").exists()


def test_redo_of_a_single_stage_deletes_nothing_where_the_stage_could_not_start(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("corpus.jsonl").write_text('{"text": "once upon a time"}\n' * 3)
    command = [
        "tokenize",
        "--data",
        "corpus.jsonl",
        "--valid-fraction",
        "0.5",
        "--vocab-size",
        "257",
        "--out",
        "tokens",
    ]
    Path("valid.jsonl").write_text('{"text": "there was a goat"}\n')
    command += ["--valid-data", "valid.jsonl"]
    assert main(command) == 0
    before = fingerprint("tokens")
    shutil.copy("corpus.jsonl", "kept.jsonl")
    Path("corpus.jsonl").write_text('{"strange": 1}\n')
    assert main([*command, "--redo"]) == 2
    assert "no known format of texts" in capsys.readouterr().err
    assert fingerprint("tokens") == before
    shutil.move("kept.jsonl", "corpus.jsonl")
    assert main([*command, "--redo"]) == 0


def test_what_a_stage_reads_last_is_checked_first(tmp_path):
    """A single stage, without --redo: no model is trained towards responses that cannot be read."""
    (tmp_path / "r.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(DataError, match=r"r\.jsonl:1"):
        label(LabelOptions(responses=str(tmp_path / "r.jsonl"), judge="rubric", out=tmp_path / "c.jsonl"))
    with pytest.raises(UsageError, match="is this the right directory"):
        tokenize(TokenizeOptions(data=["/"], tokenizer="/", out=tmp_path / "t"))


def test_every_stage_says_what_it_needs():
    stages = [*STAGES.values(), *(tool for tool in TOOLS.values() if issubclass(tool.load()[0], StageOptions))]
    assert len(stages) == len(STAGES) + 3
    for stage in stages:
        assert callable(importlib.import_module(stage.module).needs), stage.module
