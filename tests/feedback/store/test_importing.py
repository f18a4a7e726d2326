"""Imports: checked as a whole first, then added in short transactions that others get in between."""

import itertools
import json
import os
import subprocess
import sys

import pytest
import sqlalchemy as sa

from wukong.errors import DataError
from wukong.feedback.store.database import Store
from wukong.feedback.store.importing import BATCH, import_file
from wukong.feedback.store.labels import current
from wukong.feedback.store.people import add_annotator
from wukong.feedback.store.tables import Annotator, Label, PromptRow, Task, TaskResponse
from wukong.feedback.store.tasks import create_project

COUNT = 3 * BATCH + 7


def pair(i, chosen="good", rejected="bad", **more):
    return {"prompt": f"How long do {i} eggs take?", "chosen": chosen, "rejected": rejected, **more}


def written(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def empty(store):
    """The id of a project without tasks."""
    with store.write() as session:
        return create_project(session, "eggs", "pairwise").id


def held(store):
    """What the tables hold, without numbers that depend on the order of inserts."""
    with store.read() as session:
        tasks = session.execute(sa.select(Task.external_id, Task.prompt_id, Task.n_labels, Task.open)).all()
        answers = session.execute(sa.select(TaskResponse.position, TaskResponse.response_id)).all()
        labels = session.execute(sa.select(Label.client_id, Annotator.name).join(Label.annotator)).all()
        return [sorted(map(tuple, rows)) for rows in (tasks, answers, labels)]


def test_others_write_while_a_file_is_read_and_between_its_batches(store, empty, tmp_path):
    """`tell` is called again and again: if a transaction were open then, a writer would wait for it in vain."""
    told, seen = [], []

    def tell(line):
        told.append(line)
        with store.write() as session:
            seen.append(session.scalar(sa.select(sa.func.count()).select_from(Task)))
            add_annotator(session, f"Person {len(told)}")

    imported = import_file(store, empty, written(tmp_path / "x.jsonl", map(pair, range(COUNT + 700))), tell=tell)
    assert (imported.added, imported.read, imported.happened) == (COUNT + 700, COUNT + 700, [])
    assert told[:2] == ["500 records read", "1000 records read"]
    assert seen[:2] == [0, 0]
    assert max(after - before for before, after in itertools.pairwise(seen)) <= BATCH
    assert told[-1] == f"{COUNT + 700} of {COUNT + 700} tasks done, {COUNT + 700} of them new"


@pytest.mark.parametrize("use", ["tasks", "gold", "labels"])
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"prompt": "p", "chosen": "a"}, "x.jsonl:308: "),
        ({"prompt": [{"role": "user", "content": "p"}], "response": "r", "vote": 1}, "x.jsonl:308: a vote cannot"),
        (pair(1, strength=-1), "x.jsonl:308: "),
    ],
)
def test_one_bad_record_at_the_end_and_nothing_is_added(store, empty, tmp_path, use, bad, words):
    path = written(tmp_path / "x.jsonl", [*map(pair, range(COUNT)), bad])
    before = held(store)
    with pytest.raises(DataError) as caught:
        import_file(store, empty, path, use)
    assert words in str(caught.value)
    assert held(store) == before
    imported = import_file(store, empty, path, use, skip_bad=1)
    assert (imported.added, imported.read) == (COUNT, COUNT + 1)
    assert imported.happened[0] == "1 dropped: bad record"
    assert words in imported.happened[1]


def answer(i):
    prompt = [{"role": "user", "content": "Eggs?"}]
    return {"id": f"r{i}", "prompt_id": "p", "messages": prompt, "text": f"{i} minutes", "model": "sft"}


@pytest.mark.parametrize(("records", "count"), [(list(map(pair, range(7))), 7), (list(map(answer, range(4))), 6)])
def test_a_file_that_holds_too_much_for_the_memory_is_refused(store, empty, tmp_path, monkeypatch, records, count):
    """Comparisons, and four answers of which six pairs are made."""
    path = written(tmp_path / "x.jsonl", records)
    monkeypatch.setattr("wukong.feedback.store.importing.MOST", count - 1)
    with pytest.raises(DataError, match=rf"x\.jsonl: holds more than {count - 1} records or tasks \(split it"):
        import_file(store, empty, path)
    assert held(store) == [[], [], []]
    monkeypatch.setattr("wukong.feedback.store.importing.MOST", count)
    assert import_file(store, empty, path).added == count


@pytest.mark.parametrize("use", ["tasks", "labels"])
@pytest.mark.parametrize("moment", ["between batches", "within a batch"])
def test_after_a_kill_the_same_file_adds_only_what_is_missing(database_url, tmp_path, use, moment):
    records = [pair(i, *(("good", "bad") if i % 3 else ("bad", "good")), annotator=f"P{i % 4}") for i in range(COUNT)]
    path = written(tmp_path / "x.jsonl", records)
    program = """
import os, sys
from wukong.feedback.store import importing
from wukong.feedback.store.database import Store
from wukong.feedback.store.tasks import create_project
url, path, use, moment = sys.argv[1:]
store = Store(url)
with store.write() as session:
    project = create_project(session, "eggs", "pairwise").id
told = []
def tell(line):
    told.append(line)
    if moment == "between batches" and len(told) == 3:
        os._exit(9)
insert = importing.insert_tasks
def insert_and_die(*args):
    found = insert(*args)
    if moment == "within a batch" and len(told) == 2:
        os._exit(9)
    return found
importing.insert_tasks = insert_and_die
importing.import_file(store, project, path, use, tell=tell)
"""
    command = [sys.executable, "-c", program, database_url, str(path), use, moment]
    assert subprocess.run(command, env=os.environ, check=False).returncode == 9
    store, whole = Store(database_url), Store(tmp_path / "whole.db")
    with whole.write() as session:
        create_project(session, "eggs", "pairwise")
    import_file(whole, 1, path, use)
    there = len(held(store)[0])
    assert 0 < there < COUNT
    assert import_file(store, 1, path, use).added == COUNT - there
    assert held(store) == held(whole)
    assert import_file(store, 1, path, use).added == 0
    assert held(store) == held(whole)
    store.close()
    whole.close()


def test_a_person_who_judged_a_pair_both_ways_said_the_later(store, empty, tmp_path):
    """Both came under one client id before: a conflict, which would now end an import in its middle."""
    records = [pair(1, annotator="Ann"), pair(1, "bad", "good", annotator="Ann"), pair(1, annotator="Bob")]
    path = written(tmp_path / "x.jsonl", records)
    for _ in range(2):
        import_file(store, empty, path, "labels")
        with store.read() as session:
            labels = session.scalars(sa.select(Label).where(current()).order_by(Label.id)).all()
            assert [(one.annotator.name, one.task.texts[one.value["winner"]]) for one in labels] == [
                ("Ann", "bad"), ("Bob", "good")
            ]  # fmt: skip
            assert session.scalar(sa.select(sa.func.count()).select_from(Label)) == 3
            assert session.scalar(sa.select(sa.func.count()).select_from(PromptRow)) == 1
