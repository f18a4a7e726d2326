"""Recipes that come with the package: found by name, listed, and copied as a beginning of one's own."""

import re
from pathlib import Path

import pytest
import torch
import yaml

import wukong
from wukong.cli import main
from wukong.data import read_prompts
from wukong.errors import UsageError
from wukong.model.gpt2 import GPT2, PRESETS, GPT2Config
from wukong.model.hub import save_policy
from wukong.recipe import VARIABLE, check_steps, load_recipe, resolve
from wukong.recipes.shipped import SHIPPED, find_recipe
from wukong.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_recipe_is_found_by_its_name_unless_a_file_is_called_so():
    assert find_recipe("kitchen") == SHIPPED["kitchen"]
    Path("kitchen").mkdir()
    assert find_recipe("kitchen") == SHIPPED["kitchen"]
    Path("kitchen").rmdir()
    Path("kitchen").write_text("name: mine\nsteps:\n  kitchen: {out: a}\n")
    assert find_recipe("kitchen") == Path("kitchen")
    assert load_recipe("kitchen").recipe.name == "mine"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("kichen", r"^kichen: no such file, and no such recipe; did you mean kitchen\?$"),
        ("zzz", "no such recipe; the recipes that come along are course, gsm8k, .*kitchen, kitchen-zh, .*verifiable$"),
        ("recipes/kitchen.yaml", "^recipes/kitchen.yaml: no such file; .*: wukong run kitchen$"),
        ("polite.yaml", ": wukong run polite$"),
        ("mine.yaml", "^mine.yaml: no such file"),
        ("elsewhere/kitchen", "^elsewhere/kitchen: no such file"),
    ],
)
def test_a_name_that_is_not_found_names_the_nearest(given, message):
    with pytest.raises(UsageError, match=message):
        load_recipe(given)


def test_a_shipped_recipe_runs_in_an_empty_directory():
    assert wukong.run("kitchen", until="kitchen", overrides={"kitchen.megabytes": 0.05}) == Path("runs/kitchen")
    assert sorted(path.name for path in Path().iterdir()) == ["runs"]


def test_the_list_says_what_each_does_takes_and_needs(capsys):
    assert main(["recipes"]) == 0
    said = capsys.readouterr().out
    for name, path in SHIPPED.items():
        recipe = load_recipe(path).recipe
        paragraph = "".join(re.split(rf"^{name}$", said, flags=re.M)[1].split())  # lines may break at hyphens
        expected = f"{recipe.description} time: {recipe.time} needs: {recipe.needs}"
        assert paragraph.startswith("".join(expected.split()))
        assert min(len(recipe.description), len(recipe.time), len(recipe.needs)) > 5


@pytest.mark.parametrize("base", [*SHIPPED])
def test_a_written_recipe_is_the_shipped_one_with_comments(base, monkeypatch):
    assert main(["init", "my.yaml", "--based-on", base]) == 0
    text = Path("my.yaml").read_text(encoding="utf-8")
    for variable in VARIABLE.findall(text):
        monkeypatch.setenv(variable, "/data")
    run_dir, steps = resolve(load_recipe("my.yaml"))
    _, originals = resolve(load_recipe(base), run_dir)
    assert run_dir == Path("runs/my")
    assert [(step.name, step.options) for step in steps] == [(step.name, step.options) for step in originals]
    assert "wukong run my.yaml" in text
    assert "# Yours: " in text
    assert max(map(len, text.splitlines())) <= 120
    lines = text.splitlines()
    for step in yaml.safe_load(text)["steps"]:
        assert lines[lines.index(f"  {step}:") - 1].startswith("  # "), step


def test_the_list_and_the_comments_are_chinese_for_a_chinese_terminal(capsys):
    assert main(["recipes", "--language", "zh"]) == 0
    assert "在内置的英文厨房里离线跑完整个流程" in capsys.readouterr().out
    assert main(["init", "my.yaml", "--based-on", "kitchen-zh", "--language", "zh"]) == 0
    assert "已写好" in capsys.readouterr().out
    comments = [line.partition("# ")[2] for line in Path("my.yaml").read_text(encoding="utf-8").splitlines()]
    assert [one for one in comments if one and not re.search("[\u4e00-\u9fff]|^  wukong run", one)] == []


def test_it_runs_as_it_was_written():
    assert main(["init", "my.yaml", "--based-on", "test"]) == 0
    assert main(["run", "my.yaml", "--until", "tokenize"]) == 0
    assert Path("runs/my/tokenizer/provenance.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["there.yaml"], "there.yaml: exists already and is left as it is"),
        (["my.yaml", "--based-on", "kichen"], "no such recipe; did you mean kitchen?"),
        (["my"], "a name such as my.yaml is expected"),
        (["a b.yaml"], "a name such as my.yaml is expected"),
        (["nowhere/my.yaml"], "nowhere/my.yaml: cannot be written"),
        ([], "PATH is required; see wukong init --help"),
    ],
)
def test_nothing_is_overwritten_and_mistakes_are_one_line(capsys, arguments, message):
    Path("there.yaml").write_text("mine")
    assert main(["init", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["there.yaml"]
    assert Path("there.yaml").read_text() == "mine"


def test_the_chinese_kitchen_is_run_like_the_english_one():
    """Only the language, the size of its corpus (in bytes) and the example differ, so that figures can be compared."""
    english, chinese = (load_recipe(SHIPPED[name]).recipe.steps for name in ("kitchen", "kitchen-zh"))
    own = {("kitchen", "world"), ("kitchen", "megabytes"), ("pretrain", "sample_prompts"), ("report", "pinned")}
    own.add(("ppo", "trace_prompts"))
    assert list(chinese) == list(english)
    for step, options in english.items():
        assert {
            name for name in options.keys() | chinese[step].keys() if options.get(name) != chinese[step].get(name)
        } == {name for of, name in own if of == step}


@pytest.mark.slow
def test_gsm8k_is_checked_on_its_real_files_with_any_model(shared, monkeypatch, tmp_path):
    """All steps on the real data and a tiny model in place of the hub's: what the recipe's stages need is there."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = GPT2(GPT2Config(vocab_size=257, **{**PRESETS["test"], "n_positions": 1024}))
    save_policy(tmp_path / "model", model, Tokenizer.train([], 257, "plain"))
    files = {split: [str(shared(f"instructions/gsm8k/{split}.jsonl.gz"))] for split in ("train", "test")}
    overrides = {
        "sft.model": str(tmp_path / "model"), "sft.data": files["train"], "grpo.prompts": files["train"],
        "evaluate.prompts": files["test"],
    }  # fmt: skip
    _, steps = resolve(load_recipe("gsm8k"), overrides=overrides)
    assert check_steps(steps, []) == []
    overrides["evaluate.prompts"] = [str(tmp_path / "unanswered.jsonl")]
    Path(overrides["evaluate.prompts"][0]).write_text('{"question": "1 + 1?"}\n')
    with pytest.raises(UsageError, match=r"step evaluate: .*no reference answer.*which number needs"):
        check_steps(resolve(load_recipe("gsm8k"), overrides=overrides)[1], [])
    prompts = read_prompts(files["train"])
    assert len(prompts) > 7400
    assert all("####" in str(prompt.answer) for prompt in prompts)
