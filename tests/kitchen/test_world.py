"""The kitchen as files."""

import hashlib
import json

import pytest

from wukong.cli import main
from wukong.errors import RunError
from wukong.files import fingerprint
from wukong.kitchen.world import write_world
from wukong.kitchen.worlds import language_of
from wukong.records import Conversation, Prompt, read_records


def test_written_world_is_readable_and_reproducible(tmp_path) -> None:
    paths = write_world(tmp_path / "a", seed=5, megabytes=0.1)
    assert set(paths) == {"corpus", "instructions", "prompts-train", "prompts-test"}
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(f"{name}.jsonl" for name in paths)
    corpus = [json.loads(line) for line in paths["corpus"].read_text(encoding="utf-8").splitlines()]
    assert all(set(document) == {"text"} for document in corpus)
    assert len(read_records(paths["instructions"], Conversation)) > 1500
    assert len(read_records(paths["prompts-train"], Prompt)) == 1124
    assert len(read_records(paths["prompts-test"], Prompt)) == 465
    write_world(tmp_path / "b", seed=5, megabytes=0.1)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    write_world(tmp_path / "c", seed=6, megabytes=0.1)
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "c")


def test_the_language_of_the_world_is_not_that_of_the_terminal(tmp_path, capsys) -> None:
    for world, language in (("zh", "en"), ("en", "zh")):
        out = tmp_path / world
        command = ["kitchen", "--out", str(out), "--megabytes", "0.01", "--world", world, "--language", language]
        assert main(command) == 0
        first = read_records(out / "prompts-test.jsonl", Prompt)[0].messages[0].content
        assert main([*command, "--seed", "x"]) == 2
        assert (language_of(first), language_of(capsys.readouterr().err)) == (world, language)


def test_a_directory_that_cannot_be_made_is_a_run_error(tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError):
        write_world(tmp_path / "file" / "kitchen", megabytes=0.01)


FILES_OF_SEED_0 = {
    "corpus": "5ba74447255638b5",
    "instructions": "73801a027d6e1cd1",
    "prompts-train": "843d37f7deabdfba",
    "prompts-test": "67bc9c0d326df9aa",
}


def test_the_files_of_a_seed_are_the_same_for_ever(tmp_path) -> None:
    """Figures in the documentation come from these bytes; a change is intended or a mistake."""
    paths = write_world(tmp_path, seed=0, megabytes=0.2)
    assert {name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for name, path in paths.items()} == FILES_OF_SEED_0
