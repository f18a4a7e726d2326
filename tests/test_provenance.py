"""When a stage counts as done, when it may go on, and when it must be refused."""

import json
import multiprocessing
import os
import shutil
import threading
from pathlib import Path

import pytest
from pydantic import Field

import wukong
from wukong.errors import DataError, UsageError
from wukong.files import write_json
from wukong.options import WITHOUT_EFFECT, StageOptions
from wukong.provenance import accept, open_run, read_record, verify


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
        begun = open_run(stage, Options(out=out, **options), inputs, directory=directory)
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
    with pytest.raises(UsageError, match="made from different input files"):
        work(inputs=("moved.jsonl",))


def test_what_a_glob_names_is_an_input(work):
    Path("b.txt").write_text("b")
    work(inputs=("*.txt",))
    assert work(inputs=("*.txt",))
    Path("b.txt").write_text("c")
    with pytest.raises(UsageError, match="different input files"):
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
    with pytest.raises(UsageError, match="different input files"):
        work(stage="eat", inputs=("second",))
    assert json.loads(Path("second/provenance.json").read_text())["result"] != record["result"]


def test_the_second_of_two_files_counts_too(work, monkeypatch):
    results = []
    for text in ("one", "two"):
        begun = open_run("bake", Options(out=Path(text)), [])
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
    open_run("bake", Options(out=tmp_path, size=-1), [])  # and then the stage refuses the size
    open_run("bake", Options(out=tmp_path), [])
    assert json.loads((tmp_path / "options.json").read_text())["options"]["size"] == 3


def test_a_directory_with_files_of_others_is_not_written_to(work):
    Path("out").mkdir()
    Path("out/.hidden").write_text("")
    Path("out/recipe.yaml").write_text("steps: {}")
    Path("out/model.safetensors").write_text("precious")
    with pytest.raises(UsageError, match=r"out: holds model\.safetensors, which was not made by wukong"):
        work()
    assert {file.name for file in Path("out").iterdir()} == {".hidden", "recipe.yaml", "model.safetensors"}
    Path("out/model.safetensors").unlink()
    assert not work()
    assert work()


@pytest.mark.parametrize(
    ("directory", "source"), [(True, "."), (False, "."), (False, "*.jsonl"), (False, "../*/o*.jsonl")]
)
def test_a_result_inside_an_input_is_refused(work, directory, source):
    with pytest.raises(UsageError, match=r"is inside the input .*; choose another"):
        work(inputs=(source,), directory=directory)
    assert [file.name for file in Path().rglob("*") if file.is_file()] == ["data.jsonl"]


def test_a_result_may_lie_in_the_directory_of_a_stage_that_it_came_from(work, tmp_path):
    work()
    begun = open_run("bake", Options(out=Path("out/again")), ["out"])
    begun.finish({}, [])
    assert open_run("bake", Options(out=Path("out/again")), ["out"]).done


def test_a_damaged_record_is_named(work):
    work()
    Path("out/provenance.json").write_text("{")
    with pytest.raises(DataError, match=r"out/provenance\.json:1: not valid JSON"):
        work()


# ------------------------------------------------------------------------------------------------------------- damage


def flip(file: str) -> None:
    """One bit, at the same time on the file's clock."""
    status, raw = os.stat(file), bytearray(Path(file).read_bytes())
    raw[len(raw) // 2] ^= 1
    Path(file).write_bytes(raw)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("directory", [True, False])
@pytest.mark.parametrize("damage", [flip, lambda file: os.truncate(file, 3)])
def test_a_damaged_result_is_neither_complete_nor_an_input(work, directory, damage):
    work(directory=directory)
    out, file = ("out", "out/model/weights") if directory else ("out.jsonl", "out.jsonl")
    damage(file)
    again = rf"{file}: damaged or changed: .*rebuild it: wukong bake --out {out} --redo; .*wukong accept {out}\)"
    with pytest.raises(DataError, match=again):
        work(directory=directory)
    with pytest.raises(DataError, match=again):
        open_run("eat", Options(out=Path("eaten")), [out])
    with pytest.raises(DataError, match=again):
        open_run("eat", Options(out=Path("eaten")), ["out/m*/w*" if directory else "*.jsonl"])
    with pytest.raises(DataError, match=again):
        open_run("eat", Options(out=Path("eaten")), ["out/model" if directory else "./out.jsonl"])
    assert not Path("eaten").exists() or not any(Path("eaten").iterdir())


def test_an_input_that_is_partly_gone_is_named(work):
    work()
    Path("out/model/weights").unlink()
    with pytest.raises(DataError, match=r"out/model/weights: is gone \(rebuild it: wukong bake"):
        open_run("eat", Options(out=Path("eaten")), ["out"])


def test_a_result_that_was_changed_on_purpose_can_be_kept(work):
    work(directory=False)
    open_run("eat", Options(out=Path("eaten")), ["out.jsonl"]).finish({}, [])
    Path("out.jsonl").write_text("better bread")
    assert accept(Path("out.jsonl")) == ["out.jsonl"]
    assert accept(Path("out.jsonl")) == []
    assert work(directory=False)
    with pytest.raises(UsageError, match="made from different input files"):
        open_run("eat", Options(out=Path("eaten")), ["out.jsonl"])
    with pytest.raises(UsageError, match=r"data\.jsonl: no complete result"):
        accept(Path("data.jsonl"))


def test_files_that_nobody_recorded_may_be_edited(work):
    work()
    Path("out/notes.txt").write_text("mine")
    Path("data.jsonl").write_text("edited")
    verify("out")
    verify("out/notes.txt")
    verify("data.jsonl")
    verify("some/hub-id")


def test_a_record_without_hashes_warns_and_does_not_refuse(work, capsys):
    work()
    record = json.loads(Path("out/provenance.json").read_text())
    write_json("out/provenance.json", record | {"files": {}, "inputs": {"data.jsonl": None}})
    assert work()
    assert "has no hashes" in capsys.readouterr().err
    open_run("eat", Options(out=Path("eaten")), ["out"])


def test_a_finished_stage_does_without_inputs_that_are_gone(work):
    work()
    Path("data.jsonl").unlink()
    assert work()


# ------------------------------------------------------------------------------------------------------- moved results


@pytest.mark.parametrize("old", [False, True], ids=["{run}", "spelled out"])
@pytest.mark.parametrize("absolute", [False, True])
def test_paths_in_a_moved_run_are_those_of_now(work, tmp_path, monkeypatch, old, absolute):
    """Also of a record of an older version, which spelled them out."""
    root = tmp_path.resolve() if absolute else Path()
    run = root / "runs" / "x"
    (run / "base").mkdir(parents=True)
    (run / "base" / "weights").write_text("w")
    options = Options(out=run / "sub" / "out")
    (run / "recipe.yaml").write_text("name: x\nsteps: {bake: {out: '{run}/sub/out'}}\nrun_dir: '{here}'\n")
    open_run("bake", options, [run / "base", "data.jsonl"]).finish({}, [])
    if old:
        record = read_record(run / "sub" / "out")
        del record["run"], record["command"]
        write_json(run / "sub" / "out" / "provenance.json", record)
    shutil.move(run, tmp_path / "moved")
    there = read_record(tmp_path / "moved" / "sub" / "out")
    assert there["options"]["out"] == str(tmp_path / "moved" / "sub" / "out")
    assert list(there["inputs"]) == [str(tmp_path / "moved" / "base"), "data.jsonl"]
    monkeypatch.chdir(tmp_path / "moved")
    done = open_run("bake", Options(out=Path("sub/out")), ["base", str(tmp_path / "data.jsonl")])
    assert done.done


def test_a_path_within_an_option_is_an_input_wherever_it_lies(work):
    """name=PATH and WEIGHT*PATH: compared by what lies there."""

    class Named(Options):
        models: list[str] = []
        rewards: list[str] = []

    Path("a").write_text("a")
    one = Named(out=Path("named"), models=["x=a"], rewards=["0.5*a", "rubric"])
    open_run("name", one, ["a"]).finish({}, [])
    assert read_record("named")["options"]["models"] == ["x=a"]
    shutil.copy("a", "b")
    assert open_run("name", one.model_copy(update={"models": ["x=b"], "rewards": ["0.5*b", "rubric"]}), ["b"]).done
    with pytest.raises(UsageError, match="models"):
        open_run("name", one.model_copy(update={"models": ["y=a"]}), ["a"])


# ------------------------------------------------------------------------------------------- one process at a place


def _bake(directory: str, is_directory: bool, started, go_on, said) -> None:
    os.chdir(directory)
    out = Path("out" if is_directory else "out.jsonl")
    try:
        begun = open_run("bake", Options(out=out), [], directory=is_directory)
    except UsageError as error:
        said.put(str(error))
        return
    started.set()
    go_on.wait(300)
    result = out / "weights" if is_directory else out
    result.write_text("bread")
    begun.finish({}, [result])
    said.put("finished")


@pytest.mark.parametrize("directory", [True, False])
def test_two_processes_never_write_to_one_place(tmp_path, monkeypatch, directory):
    fork = multiprocessing.get_context("fork")
    started, go_on, said = fork.Event(), fork.Event(), fork.Queue()
    args = (str(tmp_path), directory, started, go_on, said)
    first = fork.Process(target=_bake, args=args)
    first.start()
    assert started.wait(300)
    second = fork.Process(target=_bake, args=args)
    second.start()
    assert "in use by another process" in said.get(timeout=300)
    go_on.set()
    assert said.get(timeout=300) == "finished"
    first.join()
    second.join()
    monkeypatch.chdir(tmp_path)
    assert open_run("bake", Options(out=Path("out" if directory else "out.jsonl")), [], directory=directory).done
    assert not list(tmp_path.glob(".*"))


def test_a_thread_does_not_write_where_another_does(work):
    said = []

    def second() -> None:
        try:
            open_run("bake", Options(out=Path("place")), [])
        except UsageError as error:
            said.append(str(error))

    first = open_run("bake", Options(out=Path("place")), [])
    thread = threading.Thread(target=second)
    thread.start()
    thread.join()
    assert "in use by another process" in said[0]
    assert not open_run("bake", Options(out=Path("place")), []).done  # but a command that failed may be given again
    first.finish({}, [])
