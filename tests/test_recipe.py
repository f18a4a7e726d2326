"""Recipes: the file, its resolution, and one whole run on the `test` preset."""

import importlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

import wukong
from wukong import story
from wukong.cli import main
from wukong.errors import DataError, UsageError, WukongError
from wukong.files import exclusive, fingerprint, read_json
from wukong.options import POLICY_STAGES
from wukong.recipe import load_recipe, resolve
from wukong.registry import STAGES
from wukong.runner import check_removable, remove_result
from wukong.stages.report import ReportOptions
from wukong.stages.report import run as report
from wukong.studies.reward_report import RewardReportOptions
from wukong.studies.reward_report import run as reward_report
from wukong.web.runs.states import overview

DATA_STEP = "  kitchen: {out: '{run}/data'}\n"


@pytest.fixture
def recipe(tmp_path):
    """A function that writes a recipe with these steps (YAML, indented by two) and gives its path."""

    def write(steps: str, head: str = "name: mine\nseed: 3\n") -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(f"{head}steps:\n{steps}", encoding="utf-8")
        return path

    return write


# ---------------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", None, "needs `name:` and `steps:`"),
        ("- a\n- b\n", None, "needs `name:` and `steps:`"),
        ("name: mine\nsteps: [kitchen]\n", None, "needs `name:` and `steps:`"),
        ("name: mine\nsteps: {}\n", 2, "at least 1 item"),
        ("name: mine\nsteps:\n  kitchen: {out: a\n", 4, "not valid YAML"),
        ("name: mine\nsteps:\n\tkitchen: {out: a}\n", 3, "not valid YAML"),
        ("name: a/b\nsteps:\n  kitchen: {out: a}\n", 1, "field 'name'"),
        ("name: mine\nsed: 1\nsteps:\n  kitchen: {out: a}\n", 2, "unknown option; did you mean seed?"),
        ("name: mine\nseed: many\nsteps:\n  kitchen: {out: a}\n", 2, "field 'seed'"),
        ("name: mine\nsteps:\n  kitchen: {out: a}\n  kitchen: {out: b}\n", 4, "'kitchen' is given twice"),
        ("name: mine\nsteps:\n  kitchen:\n    out: a\n    out: b\n", 5, "'out' is given twice"),
        ("name: mine\nsteps:\n  kitchen: {out: a}\n  tokenise: {out: b}\n", 4, "did you mean tokenize?"),
        ("name: mine\nsteps:\n  Kitchen: {out: a}\n", 3, "there is no such stage"),
        ("name: mine\nsteps:\n  kitchen: 3\n", 3, "field 'steps.kitchen'"),
    ],
)
def test_unusable_recipe_is_an_error_with_its_line(tmp_path, text, line, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        load_recipe(path)
    assert message in str(caught.value)
    assert (caught.value.file, caught.value.line) == (path, line)
    assert "\n" not in str(caught.value)


def test_missing_or_wrongly_encoded_recipe(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.yaml: no such file"):
        load_recipe(tmp_path / "nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes("name: café\n".encode("latin-1"))
    with pytest.raises(DataError, match="not utf-8"):
        load_recipe(tmp_path / "latin.yaml")


def test_a_recipe_cannot_run_code(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("name: !!python/object/apply:os.system ['exit 1']\nsteps:\n  kitchen: {out: a}\n")
    with pytest.raises(DataError, match="could not determine a constructor"):
        load_recipe(path)


# ------------------------------------------------------------------------------------------------------ its resolution


def test_texts_are_filled_in_and_seeds_are_inherited(recipe, monkeypatch):
    monkeypatch.setenv("BOOKS", "/books")
    path = recipe(
        DATA_STEP + "  tokenize: {data: ['${BOOKS}/*.txt', '{run}/data/corpus.jsonl'], out: '{run}/t', seed: 7}\n"
    )
    directory, (kitchen, tokenize) = resolve(load_recipe(path))
    assert directory == Path("runs/mine")
    assert (kitchen.options.out, kitchen.options.seed) == (directory / "data", 3)
    assert (tokenize.options.data, tokenize.options.seed) == (["/books/*.txt", f"{directory}/data/corpus.jsonl"], 7)
    directory, (kitchen, tokenize) = resolve(load_recipe(path), Path("elsewhere"), seed=9)
    assert directory == Path("elsewhere") == kitchen.options.out.parent
    assert (kitchen.options.seed, tokenize.options.seed) == (9, 7)


def test_a_steps_stage_is_its_name_up_to_the_underscore(recipe):
    _, steps = resolve(load_recipe(recipe(DATA_STEP + "  kitchen_big: {out: '{run}/big', megabytes: 9}\n")))
    assert [(step.name, step.stage) for step in steps] == [("kitchen", "kitchen"), ("kitchen_big", "kitchen")]


def test_overrides_replace_values_and_are_checked_like_them(recipe):
    loaded = load_recipe(recipe(DATA_STEP))
    _, (kitchen,) = resolve(loaded, overrides={"kitchen.megabytes": 0.5, "kitchen.seed": 1})
    assert (kitchen.options.megabytes, kitchen.options.seed) == (0.5, 1)
    for overrides, message in [
        ({"kitchen.megabytes": -1}, r"kitchen\.megabytes: should be greater than 0, not -1"),
        ({"kitchen.megabyte": 1}, r"kitchen\.megabyte: unknown option; did you mean megabytes\?"),
        ({"kitchn.megabytes": 1}, r"has no step 'kitchn'; did you mean kitchen\?"),
        ({"kitchen": 1}, "has no step"),
    ]:
        with pytest.raises(UsageError, match=message) as caught:
            resolve(loaded, overrides=overrides)
        assert not isinstance(caught.value, DataError)  # the file is not at fault


@pytest.mark.parametrize(
    ("steps", "line", "message"),
    [
        ("  kitchen: {out: a, megabites: 1}\n", 4, "step kitchen: megabites: unknown option; did you mean megabytes?"),
        ("  kitchen:\n    out: a\n    megabytes: huge\n", 6, "step kitchen: megabytes: should be a valid number"),
        ("  kitchen: {out: a, megabytes: yes}\n", 4, "step kitchen: megabytes: is True, expected a number"),
        ("  kitchen: {out: a, seed: on}\n", 4, "step kitchen: seed: is True, expected a number"),
        ("  tokenize: {columns: {text: [1]}}\n", 4, "step tokenize: columns: text: expected the name of a column"),
        ("  kitchen: {megabytes: 1}\n", 4, "step kitchen: out: is required"),
        ("  kitchen:\n", 4, "step kitchen: out: is required"),
        (DATA_STEP + "  kitchen_2: {out: '{run}/data'}\n", 5, "is the result of step kitchen already"),
        ("  tokenize:\n    out: a\n    data: ['${NOT_SET_ANYWHERE}']\n", 6, "NOT_SET_ANYWHERE is not set (set it, or"),
        (
            DATA_STEP + "  tokenize: {data: ['{run}/date/x'], out: t}\n",
            5,
            "{run}/date/x is not the result of an earlier",
        ),
        ("  evaluate: {models: ['a={run}/a'], prompts: [p], out: e}\n", 4, "a={run}/a is not the result of an earlier"),
    ],
)
def test_unusable_step_is_an_error_with_its_line(recipe, steps, line, message):
    path = recipe(steps)
    with pytest.raises(DataError) as caught:
        resolve(load_recipe(path))
    assert message in str(caught.value)
    assert (caught.value.file, caught.value.line) == (path, line)


def test_an_unset_variable_does_no_harm_where_the_option_is_given(recipe):
    loaded = load_recipe(recipe("  tokenize: {data: ['${NOT_SET_ANYWHERE}'], out: '{run}/t'}\n"))
    _, (step,) = resolve(loaded, overrides={"tokenize.data": ["here.txt"]})
    assert step.options.data == ["here.txt"]


def test_every_algorithm_is_a_step_by_its_name(recipe):
    reward = "reward: {model: m, data: [c], out: '{run}/reward'}"
    online = [f"{name}: {{model: m, reward_model: '{{run}}/reward', prompts: [p], out: '{{run}}/{name}'}}"
              for name in ("ppo", "reinforce", "rloo", "grpo", "bestofn")]  # fmt: skip
    summed = "grpo_sum: {model: m, rewards: [lexicon, '0.5*{run}/reward'], prompts: [p], out: '{run}/sum'}"
    offline = [f"{name}: {{model: m, data: [c], out: '{{run}}/{name}'}}" for name in ("dpo", "kto")]
    taught = "distill: {model: m, teacher: n, prompts: [p], out: '{run}/distill'}"
    steps = [reward, *online, summed, *offline, taught]
    _, steps = resolve(load_recipe(recipe("".join(f"  {step}\n" for step in steps))))
    assert {step.stage for step in steps} == {"reward", *POLICY_STAGES}
    missing = "  grpo: {model: m, rewards: ['0.5*{run}/reward'], prompts: [p], out: o}\n"
    with pytest.raises(DataError, match="is not the result of an earlier step"):
        resolve(load_recipe(recipe(missing)))


def test_nothing_runs_when_a_later_step_is_wrong(recipe, tmp_path):
    path = recipe(DATA_STEP + "  tokenize: {data: [a], out: '{run}/t', vocab_size: 3}\n")
    with pytest.raises(DataError):
        wukong.run(path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["until", "redo"])
def test_unknown_step_is_named(recipe, tmp_path, option):
    with pytest.raises(UsageError, match=rf"--{option} kitchn: .* did you mean kitchen\?"):
        wukong.run(recipe(DATA_STEP), tmp_path / "run", **{option: "kitchn"})
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------------- redoing


def test_redo_deletes_only_what_the_stage_made(tmp_path):
    mine, foreign, empty = tmp_path / "mine", tmp_path / "foreign", tmp_path / "empty"
    for directory in (mine, foreign, empty):
        directory.mkdir()
    (mine / "options.json").write_text('{"stage": "sft"}')
    (mine / "checkpoints").mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="was not made by wukong sft, so --redo does not delete it"):
        remove_result("sft", foreign)
    with pytest.raises(UsageError, match="holds the result of 'sft'"):
        remove_result("reward", mine)
    remove_result("sft", mine)
    remove_result("sft", empty)
    remove_result("sft", tmp_path / "absent")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign"]
    assert (foreign / "thesis.txt").exists()


def test_redo_spares_other_results_inside(tmp_path):
    (tmp_path / "options.json").write_text('{"stage": "kitchen"}')
    inner = tmp_path / "tokenizer" / "options.json"
    inner.parent.mkdir()
    inner.write_text('{"stage": "tokenize"}')
    with pytest.raises(UsageError, match="holds another result too"):
        check_removable("kitchen", tmp_path)
    inner.unlink()
    (tmp_path / "answers.jsonl.provenance.json").write_text('{"stage": "sample"}')
    with pytest.raises(UsageError, match="holds another result too"):
        check_removable("kitchen", tmp_path)


def test_redo_of_a_file_deletes_its_provenance_too(tmp_path):
    out, mark = tmp_path / "responses.jsonl", tmp_path / "responses.jsonl.provenance.json"
    out.write_text("{}")
    remove_result("sample", out)  # nobody knows who made it
    assert out.exists()
    mark.write_text('{"stage": "sample"}')
    with pytest.raises(UsageError, match="holds the result of 'sample'"):
        remove_result("label", out)
    remove_result("sample", out)
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------------------- a whole run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The recipe test, run to its end."""
    return wukong.run("test", tmp_path_factory.mktemp("road") / "run")


@pytest.fixture
def road(finished, tmp_path, monkeypatch):
    """A copy of the finished run, for a test that changes it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "run")
    return Path("run")


def marks(run: Path) -> dict[str, str]:
    """The provenance file of each result -> when it was finished."""
    return {str(file.relative_to(run)): file.read_text() for file in sorted(run.rglob("*provenance.json"))}


def test_the_whole_road_leaves_every_result(finished):
    recipe = yaml.safe_load((finished / "recipe.yaml").read_text())
    other_ways = set(POLICY_STAGES) - {"ppo"}
    assert list(recipe["steps"]) == [stage for stage in STAGES if stage not in other_ways]
    for step, options in recipe["steps"].items():
        assert Path(options["out"].replace("{run}", str(finished))).exists(), step
    weights = {name: fingerprint(finished / name / "model.safetensors") for name in ("base", "sft", "policy")}
    assert len(set(weights.values())) == 3
    assert not list(finished.rglob("checkpoints"))
    assert not list(finished.rglob("*.tmp"))
    evaluation = read_json(finished / "evaluation" / "evaluation.json")
    assert set(evaluation["models"]) == {"base", "sft", "policy"}
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "How to make pizza" in page


def test_its_models_answer_through_the_python_interface(finished):
    policy = wukong.load_policy(finished / "policy", precision="float32")
    (response,) = policy.generate(["How to make pizza"], max_new_tokens=8)
    assert response.n_tokens == 8 or response.finish_reason == "stop"
    reward = wukong.load_reward(finished / "reward", precision="float32")
    assert len(reward.score([("How to make pizza", "Bake it."), ("How to make pizza", "")])) == 2


@pytest.mark.slow
def test_the_whole_road_of_a_llama(tmp_path):
    """The same recipe with one word changed. Its models open in `transformers`, and answer as they do here."""
    transformers = pytest.importorskip("transformers")
    run = wukong.run("test", tmp_path / "run", overrides={"pretrain.model": "llama-test"})
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "How to make pizza" in page
    assert set(read_json(run / "evaluation" / "evaluation.json")["models"]) == {"base", "sft", "policy"}
    policy = wukong.load_policy(run / "policy", precision="float32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(run / "policy").eval()
    assert type(theirs).__name__ == "LlamaForCausalLM"
    ids = torch.tensor([policy.tokenizer.prompt_ids("How to make pizza")])
    with torch.no_grad():
        found = policy.model.logits(policy.model(ids))
        torch.testing.assert_close(found, theirs(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_finished_model_answers_the_question_in_the_story(finished, capsys):
    for stage, name, words in (
        ("pretrain", "base", "“How to make pizza” goes on: “"),
        ("sft", "sft", "asked “How to make pizza”, it says: “"),
        ("ppo", "policy", "learned to please the reward model: score"),
    ):
        story.tell(stage, SimpleNamespace(out=finished / name, device="cpu"), "How to make pizza")
        assert words in capsys.readouterr().err


def test_the_same_command_again_does_nothing(road, capsys):
    before = marks(road)
    wukong.run("test", road)
    assert marks(road) == before
    said = capsys.readouterr().err
    assert said.count("is complete, nothing to do") == len(before) == 9
    assert "[10/10] report" in said
    assert "wukong chat run" in said


def test_the_resolved_recipe_is_a_recipe_of_the_same_run(road):
    before = marks(road)
    wukong.run(road / "recipe.yaml", road)
    assert marks(road) == before


def test_other_options_are_refused_and_nothing_is_lost(road):
    before, resolved = marks(road), (road / "recipe.yaml").read_text()
    with pytest.raises(UsageError, match=r"step ppo: .*made with other options \(kl_coef: .*--redo ppo"):
        wukong.run("test", road, {"ppo.kl_coef": 0.5})
    assert marks(road) == before
    assert (road / "recipe.yaml").read_text() == resolved
    assert (road / "policy" / "model.safetensors").exists()


@pytest.mark.slow
def test_redo_makes_a_step_and_all_later_ones_anew_and_the_same(road):
    before = marks(road)
    weights = fingerprint(road / "policy" / "model.safetensors")
    wukong.run("test", road, redo="ppo")
    after = marks(road)
    assert after.keys() == before.keys()
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"policy/provenance.json", "evaluation/provenance.json"}
    assert fingerprint(road / "policy" / "model.safetensors") == weights


def test_redo_deletes_nothing_when_one_result_is_not_its_own(road):
    shutil.rmtree(road / "evaluation")
    (road / "evaluation").mkdir()
    (road / "evaluation" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="was not made by wukong evaluate"):
        wukong.run("test", road, redo="sft")
    assert (road / "sft" / "model.safetensors").exists()
    assert (road / "evaluation" / "notes.txt").exists()


def test_until_is_the_last_step(tmp_path, capsys):
    run = wukong.run("test", tmp_path / "run", until="kitchen", seed=5)
    assert sorted(path.name for path in run.iterdir()) == ["data", "events.jsonl", "recipe.yaml"]
    assert read_json(run / "data" / "provenance.json")["options"]["seed"] == 5
    assert "[1/1] kitchen" in capsys.readouterr().err


def test_two_processes_are_never_at_work_on_one_run(tmp_path):
    with (
        exclusive(tmp_path / "run", "busy"),
        pytest.raises(UsageError, match="another process is at work on this run"),
    ):
        wukong.run("test", tmp_path / "run", until="kitchen")
    assert list((tmp_path / "run").iterdir()) == []


def test_an_error_keeps_its_kind_and_names_its_step(tmp_path, recipe):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    path = recipe(f"  tokenize: {{data: ['{empty}'], out: '{{run}}/t'}}\n")
    with pytest.raises(WukongError, match=r"^step tokenize: .*empty") as caught:
        wukong.run(path, tmp_path / "run")
    assert caught.value.exit_code == 2


# --------------------------------------------------------------------------------------------- moved, copied, damaged


def moved_results(run: Path) -> dict[str, str]:
    """What is shown of a run: step -> the state that its pages tell."""
    return {step.name: step.state for step in overview(run).steps}


@pytest.mark.parametrize("old", [False, True], ids=["{run}", "spelled out"])
def test_a_moved_run_goes_on_in_its_new_place(finished, tmp_path, monkeypatch, capsys, old):
    """Also one of an older version, which spelled its paths out."""
    monkeypatch.chdir(tmp_path)
    first = tmp_path / "first"
    shutil.copytree(finished, first / "runs" / "x")
    if old:
        spell_out(first / "runs" / "x", "runs/x")
    (tmp_path / "elsewhere").mkdir()
    run = (first / "runs" / "x").rename(tmp_path / "elsewhere" / "y")
    before = marks(run)
    for recipe, place in ((run / "recipe.yaml", None), ("test", run), ("elsewhere/y/recipe.yaml", None)):
        assert wukong.run(recipe, place).resolve() == run
        assert capsys.readouterr().err.count("is complete, nothing to do") == len(before)
        assert marks(run) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "first"]  # and nowhere else
    assert not any(first.rglob("*.safetensors"))
    assert set(moved_results(run).values()) == {"done"}
    report(ReportOptions(run=run, out=tmp_path / "report.html"))
    assert "How to make pizza" in (tmp_path / "report.html").read_text(encoding="utf-8")
    options = {"fractions": [], "precision": "float32"}
    reward_report(RewardReportOptions(reward_model=str(run / "reward"), out=tmp_path / "judged", **options))


def spell_out(run: Path, name: str) -> None:
    """Turns a run's records and recipe into those of an older version, which was run as `name`."""
    for file in run.rglob("*provenance.json"):
        record = read_json(file)
        del record["run"], record["command"]
        del record["files"]
        file.write_text(json.dumps(record | {"files": {}}).replace("{run}", name))
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    del recipe["called_from"]
    text = yaml.safe_dump(recipe | {"run_dir": name}, sort_keys=False)
    (run / "recipe.yaml").write_text(text.replace("{run}", name))


@pytest.mark.parametrize("old", [False, True], ids=["{run}", "spelled out"])
def test_a_copied_run_is_a_run_of_its_own(finished, tmp_path, monkeypatch, old):
    monkeypatch.chdir(tmp_path)
    original = Path(shutil.copytree(finished, "runs/x"))
    if old:
        spell_out(original, "runs/x")
    copy = Path(shutil.copytree(original, "runs/copy"))
    before = marks(original)
    wukong.run(copy / "recipe.yaml", redo="report")
    assert marks(original) == before
    shutil.rmtree(original)
    wukong.run(copy / "recipe.yaml", redo="evaluate")
    assert not original.exists()
    assert marks(copy).items() - before.items()
    assert read_json(copy / "evaluation" / "evaluation.json")["models"].keys() == {"base", "sft", "policy"}


@pytest.mark.parametrize(
    ("file", "step"),
    [
        ("base/model.safetensors", "pretrain"),
        ("tokenizer/train/tokens-00000.bin", "tokenize"),
        ("tokenizer/tokenizer_config.json", "tokenize"),
        ("responses.jsonl", "sample"),
        ("data/instructions.jsonl", "kitchen"),
        ("evaluation/answers.jsonl", "evaluate"),
    ],
)
def test_a_damaged_result_stops_the_run_before_it_begins(road, file, step):
    """One bit, and no later time: the command that makes it again is named."""
    raw, times = bytearray((road / file).read_bytes()), (road / file).stat()
    raw[len(raw) // 2] ^= 1
    (road / file).write_bytes(raw)
    os.utime(road / file, ns=(times.st_atime_ns, times.st_mtime_ns))
    shutil.rmtree(road / "sft")  # an earlier step would be made again
    place = file if file == "responses.jsonl" else file.partition("/")[0]
    problem = (
        f"step {step}: run/{file}: damaged or changed: .*: wukong run run/recipe.yaml --redo {step}; .* run/{place}"
    )
    with pytest.raises(DataError, match=problem):
        wukong.run("test", road)
    assert not (road / "sft").exists()


def test_a_damaged_input_is_not_used_by_a_single_command(road, capsys):
    os.truncate(road / "responses.jsonl", 1000)
    command = ["label", "--responses", str(road / "responses.jsonl"), "--judge", "rubric", "--out", "c.jsonl"]
    assert main(command) == 2
    assert "run/responses.jsonl: damaged or changed" in capsys.readouterr().err
    assert not Path("c.jsonl").exists()


def test_malformed_recipes_and_records_are_refused_in_one_line(monkeypatch):
    """A small part of them; `python tests/fuzz/recipes.py COUNT SEED` makes any number."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "fuzz")
    fuzz = importlib.import_module("recipes")
    counts = fuzz.run(200, 0)
    assert counts.total() == 200
    assert min(counts[name] for name in ("recipe accepted", "recipe refused", "record accepted", "record refused")) > 10
    assert len(fuzz.TEXT) + len(fuzz.TREE) >= 12


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("name: m\nsteps:\n  kitchen: {out: a, 1: b}\n", 3, "a key must be text"),
        ("name: 2024-01-01\nsteps:\n  kitchen: {out: a}\n", 1, "field 'name'"),
        ("name: m\nsteps:\n  kitchen: {out: 2024-01-01}\n", 3, "out: "),
        ("name: m\nsteps:\n  kitchen: {out: a, megabytes: .inf}\n", 3, "megabytes: should be a finite number"),
        ("name: m\nsteps:\n  kitchen: {out: a, megabytes: .nan}\n", 3, "megabytes: should be a finite number"),
        ("name: m\nsteps:\n  kitchen: {out: a, megabytes: 1.0e+300}\n", 3, "megabytes: should be less than"),
        ("name: m\nsteps:\n  kitchen: {out: a, seed: 99999999999999999999}\n", 3, "seed: is larger than"),
        ("name: m\nsteps:\n  kitchen: {out: \"a\\0b\"}\n", 3, "out: contains a NUL character"),
        ("name: m\nsteps:\n  kitchen: {out: \"a\\nb\"}\n", 3, "out: is a path with a line break"),
        ("name: m\nsteps:\n  kitchen: {out: \"${ODD_BYTES}\"}\n", 3, "out: contains invalid UTF-8"),
        ("name: m\nsteps:\n  kitchen: {out: '{run}/" + "x" * 300 + "'}\n", 3, "a name of more than 255 bytes"),
    ],
)  # fmt: skip
def test_odd_values_in_a_recipe_are_one_line(tmp_path, monkeypatch, text, line, message):
    monkeypatch.setenv("ODD_BYTES", os.fsdecode(b"\xff\xfe"))
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(WukongError) as caught:
        wukong.run(tmp_path / "odd.yaml", tmp_path / "run")
    assert message in str(caught.value)
    assert getattr(caught.value, "line", None) == line
    assert "\n" not in str(caught.value)


def test_a_variable_that_names_no_directory_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WUKONG_DATA", str(tmp_path / "nowhere"))
    assert main(["run", "polite", "--run-dir", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert (
        f"step tokenize: the variable WUKONG_DATA names {tmp_path / 'nowhere'}, and there is no such directory" in err
    )


@pytest.mark.parametrize("content", [b"%PDF-1.4\n\x00\xff", b"just words"])
def test_a_file_that_is_no_recipe_is_said_to_be_none(tmp_path, capsys, content):
    (tmp_path / "paper.pdf").write_bytes(content)
    assert main(["run", str(tmp_path / "paper.pdf")]) == 2
    assert "paper.pdf: is not a recipe, which is a YAML file" in capsys.readouterr().err
