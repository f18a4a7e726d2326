"""When a stage counts as done, when it may go on, and when it must be refused."""

import json
from pathlib import Path

import pytest
from pydantic import Field

import wukong
from wukong.errors import DataError, UsageError
from wukong.options import WITHOUT_EFFECT, StageOptions
from wukong.provenance import begin


class Options(StageOptions):
    size: int = 3
    device: str = "auto"
    epochs: float | None = Field(None, json_schema_extra={"usual": 1.0})


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Runs a stage of one file in out/ (or the file out.jsonl); returns whether it was done before."""
    monkeypatch.chdir(tmp_path)
    Path("data.jsonl").write_text("some data")

    def run(
        stage="bake", inputs=("data.jsonl",), *, directory=True, finish=True, text="bread", compute=None, **options
    ) -> bool:
        out = Path("out" if directory else "out.jsonl")
        begun = begin(stage, Options(out=out, **options), inputs, directory=directory)
        if begun.done:
            return True
        result = out / "model" / "weights" if directory else out
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_text(text)
        if finish:
            begun.finish({"loss": 0.5}, [result], compute)
        return False

    return run


@pytest.mark.parametrize("directory", [True, False])
def test_a_finished_stage_is_not_done_again(work, directory):
    assert not work(directory=directory)
    assert work(directory=directory)


@pytest.mark.parametrize("directory", [True, False])
def test_what_a_result_came_from_lies_beside_it(work, directory):
    work(directory=directory, seed=7)
    record = json.loads(Path("out/provenance.json" if directory else "out.jsonl.provenance.json").read_text())
    assert record["stage"] == "bake"
    out = "{run}/out" if directory else "{run}/out.jsonl"  # the run may be moved
    assert record["options"] == {"out": out, "seed": 7, "size": 3, "device": "auto", "epochs": None}
    assert record["command"] == ["wukong", "bake", "--out", out, "--seed", "7"]
    # echo -n "some data" | sha256sum; echo -n "bread" | sha256sum
    assert record["inputs"] == {"{run}/data.jsonl": "1307990e6ba5ca145eb35e99182a9bec46531bc54ddf656a602c780fa0240dee"}
    name = "model/weights" if directory else "out.jsonl"
    assert record["files"] == {name: "985604c2b60243122c24d4e18363e6434c535923be05f760204a1aef023aae9b"}
    assert record["version"] == wukong.__version__
    assert record["results"] == {"loss": 0.5}
    assert record["git_commit"] is None or len(record["git_commit"]) == 40


@pytest.mark.parametrize("directory", [True, False])
def test_other_options_are_refused_with_what_changed(work, directory):
    work(directory=directory)
    with pytest.raises(UsageError, match=r"out.*: made with other options \(seed: 0 -> 1, size: 3 -> 4\); .*--redo"):
        work(directory=directory, size=4, seed=1)


def test_an_option_that_an_older_version_did_not_have_counts_as_its_default(work):
    work()
    path = Path("out/provenance.json")
    record = json.loads(path.read_text())
    del record["options"]["size"]
    path.write_text(json.dumps(record))
    assert work()
    with pytest.raises(UsageError, match=r"made with other options \(size: 3 -> 4\)"):
        work(size=4)


def test_what_was_a_fixed_number_and_is_chosen_now_stays_valid(work):
    work(epochs=1.0)
    assert work(epochs=None), "1.0 was the default before the stage chose"
    with pytest.raises(UsageError, match=r"epochs: 1.0 -> 2.0"):
        work(epochs=2.0)


def test_what_the_stage_chose_is_not_what_somebody_else_asks_for(work):
    work(epochs=None)
    with pytest.raises(UsageError, match=r"epochs: None -> 1.0"):
        work(epochs=1.0)


def test_another_machine_makes_no_other_result(work):
    work(compute={"device": "cuda", "precision": "bfloat16"})
    assert json.loads(Path("out/provenance.json").read_text())["compute"]["precision"] == "bfloat16"
    assert work(compute={"device": "cpu", "precision": "float32"})


def test_options_without_effect_on_the_result_may_change(work):
    assert "device" in WITHOUT_EFFECT
    work()
    assert work(device="cpu")


def test_another_stages_result_is_refused(work):
    work()
    with pytest.raises(UsageError, match="out: holds the result of 'bake'; choose another --out"):
        work(stage="cook")


def test_changed_inputs_are_refused_and_moved_ones_are_not(work):
    work()
    Path("data.jsonl").rename("moved.jsonl")
    assert work(inputs=("moved.jsonl",))
    Path("moved.jsonl").write_text("other data")
    with pytest.raises(UsageError, match="made from other input files than now"):
        work(inputs=("moved.jsonl",))


def test_what_a_glob_names_is_an_input(work):
    Path("b.txt").write_text("b")
    work(inputs=("*.txt",))
    assert work(inputs=("*.txt",))
    Path("b.txt").write_text("c")
    with pytest.raises(UsageError, match="other input files"):
        work(inputs=("*.txt",))


def test_a_hub_id_has_no_files_to_compare(work):
    work(inputs=("openai-community/gpt2",))
    assert work(inputs=("openai-community/gpt2",))


def test_a_stages_directory_counts_by_what_it_made(work):
    """Every file it made counts: a tokenizer may be the same while the text behind the shards is not."""
    work()
    Path("out").rename("first")
    work(stage="eat", inputs=("first",))
    Path("first/metrics.jsonl").write_text("not a result")
    assert work(stage="eat", inputs=("first",))
    record = json.loads(Path("first/provenance.json").read_text())
    Path("out").rename("eaten")
    work(text="other bread")
    Path("out").rename("second")
    Path("eaten").rename("out")
    with pytest.raises(UsageError, match="other input files"):
        work(stage="eat", inputs=("second",))
    assert json.loads(Path("second/provenance.json").read_text())["result"] != record["result"]


def test_the_second_of_two_files_counts_too(work, monkeypatch):
    results = []
    for text in ("one", "two"):
        begun = begin("bake", Options(out=Path(text)), [])
        Path(text, "tokenizer").write_text("the same")
        Path(text, "shards").write_text(text)
        begun.finish({}, [Path(text, "tokenizer"), Path(text, "shards")])
        results.append(json.loads(Path(text, "provenance.json").read_text())["result"])
    assert results[0] != results[1]


@pytest.mark.parametrize("directory", [True, False])
def test_a_result_that_was_deleted_is_made_again(work, directory):
    work(directory=directory)
    Path("out/model/weights" if directory else "out.jsonl").unlink()
    assert not work(directory=directory)
    assert work(directory=directory)


def test_an_unfinished_run_goes_on_with_its_own_options_only(work):
    work(finish=False)
    with pytest.raises(UsageError, match=r"made with other options \(size: 3 -> 4\)"):
        work(size=4)
    assert not work()
    assert work()


def test_a_command_that_failed_before_it_made_anything_does_not_stand_in_the_way(tmp_path):
    begin("bake", Options(out=tmp_path, size=-1), [])  # and then the stage refuses the size
    begin("bake", Options(out=tmp_path), [])
    assert json.loads((tmp_path / "options.json").read_text())["options"]["size"] == 3


def test_a_damaged_record_is_named(work):
    work()
    Path("out/provenance.json").write_text("{")
    with pytest.raises(DataError, match=r"out/provenance\.json:1: not valid JSON"):
        work()
