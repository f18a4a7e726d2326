"""Who gets which task, and when it comes back."""

import threading

import pytest
import sqlalchemy as sa

from wukong.errors import DataError, UsageError
from wukong.feedback.store import queue
from wukong.feedback.store.labels import add_label, submit
from wukong.feedback.store.tables import Assignment, Label, Project, Task
from wukong.feedback.store.tasks import TaskDraft, add_tasks, change_project, create_project, drafts_of
from wukong.records import Message, Response, prompt_id

PROMPT = [Message(role="user", content="How to make pizza")]


def take(store, project, person, count=1):
    with store.write() as session:
        found = queue.next_assignments(session, session.get_one(Project, project.id), person, count)
        assert all(one.task.external_id for one in found)  # loaded, for use after the session
        return found


def judge(store, person, assignment, winner=0):
    with store.write() as session:
        submit(session, person, assignment.id, f"client-{assignment.id}-{person.id}", {"winner": winner})


def test_a_task_in_hand_stays_in_hand_and_the_next_one_is_another(store, project, people):
    first = take(store, project, people[0], 2)
    assert len({one.task_id for one in first}) == 2
    again = take(store, project, people[0], 2)
    assert [one.id for one in again] == [one.id for one in first]
    judge(store, people[0], first[0])
    third = take(store, project, people[0], 2)
    assert third[0].id == first[1].id
    assert third[1].task_id not in {one.task_id for one in first}


def test_each_task_goes_to_as_many_people_as_the_overlap_says(store, project, people):
    seen: dict[int, set[str]] = {}
    for person in people:
        while found := take(store, project, person):
            seen.setdefault(found[0].task_id, set()).add(person.name)
            judge(store, person, found[0])
    assert len(seen) == 10
    assert all(len(names) == 2 for names in seen.values())
    with store.read() as session:
        assert session.scalars(sa.select(Task.open).distinct()).all() == [False]


def test_every_annotator_has_an_order_of_their_own(store, project, people):
    orders = [[one.task_id for one in take(store, project, person, 10)] for person in people[:2]]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]


def later(store, seconds: float) -> None:
    """So much time has passed since every lease began."""
    with store.write() as session:
        session.execute(
            sa.update(Assignment).values(
                leased_at=Assignment.leased_at - seconds, expires_at=Assignment.expires_at - seconds
            )
        )


def test_a_lease_that_ended_frees_the_task_and_late_work_is_kept(store, project, people):
    with store.write() as session:
        change_project(session, session.get_one(Project, project.id), overlap=1)
    mine = take(store, project, people[0], 10)
    assert take(store, project, people[1]) == []
    later(store, 61)
    theirs = take(store, project, people[1], 10)
    assert len(theirs) == 10
    judge(store, people[1], theirs[0])
    late = next(one for one in mine if one.task_id == theirs[0].task_id)
    judge(store, people[0], late)
    with store.read() as session:
        assert session.get_one(Task, late.task_id).n_labels == 2


def test_ones_own_ended_lease_begins_anew_with_its_draft_and_sides(store, project, people):
    first = take(store, project, people[0], 10)[3]
    with store.write() as session:
        session.get_one(Assignment, first.id).draft = {"strength": 3}
    later(store, 1000)
    again = next(one for one in take(store, project, people[0], 10) if one.task_id == first.task_id)
    assert (again.id, again.draft, again.shown) == (first.id, {"strength": 3}, first.shown)


def test_higher_priorities_come_first_then_what_is_uncertain_when_asked(store, people):
    with store.write() as session:
        project = create_project(session, "p", "pairwise", overlap=2)
        drafts = [TaskDraft(PROMPT, [f"a{i}", f"b{i}"], f"t{i}", priority=2.0 if i == 7 else 0) for i in range(9)]
        add_tasks(session, project, drafts)
        session.execute(sa.update(Task).where(Task.external_id == "t4").values(uncertainty=0.9))
    assert [one.task.external_id for one in take(store, project, people[0], 1)] == ["t7"]
    with store.write() as session:
        session.get_one(Project, project.id).active_selection = True
    assert [one.task.external_id for one in take(store, project, people[1], 2)] == ["t7", "t4"]


def test_gold_tasks_come_at_their_rate_and_take_no_place(store, people):
    with store.write() as session:
        project = create_project(session, "p", "pairwise", overlap=1, gold_rate=0.25)
        drafts = [TaskDraft(PROMPT, [f"a{i}", f"b{i}"]) for i in range(150)]
        gold = [TaskDraft(PROMPT, [f"x{i}", f"y{i}"], gold={"winner": 0}) for i in range(100)]
        add_tasks(session, project, drafts + gold)
    found = take(store, project, people[0], 100)
    golden = sum(one.task.is_gold for one in found)
    assert 12 <= golden <= 38  # binomial(100, 1/4): mean 25, three standard deviations are 13
    judge(store, people[0], next(one for one in found if one.task.is_gold))
    with store.read() as session:
        assert queue.progress(session, project.id, people[0]) == {"done": 1, "left": 150}


def test_left_and_right_are_drawn_and_stored(store, people):
    with store.write() as session:
        project = create_project(session, "p", "pairwise")
        add_tasks(session, project, [TaskDraft(PROMPT, [f"a{i}", f"b{i}"]) for i in range(200)])
    shown = [tuple(one.shown) for one in take(store, project, people[0], 200)]
    assert set(shown) == {(0, 1), (1, 0)}
    assert 70 <= shown.count((0, 1)) <= 130  # binomial(200, 1/2): four standard deviations are 28
    found = take(store, project, people[0])[0]
    judge(store, people[0], found, winner=0)  # the left one
    with store.read() as session:
        label = session.scalars(sa.select(Label)).one()
        assert label.shown == found.shown
        assert label.value["winner"] == found.shown[0]


def test_two_people_at_once_never_exceed_the_overlap(store, project, people):
    with store.write() as session:
        session.get_one(Project, project.id).overlap = 1
    taken: list[int] = []
    barrier = threading.Barrier(3)

    def work(person) -> None:
        barrier.wait()
        for _ in range(10):
            with store.write() as session:
                found = queue.next_assignments(session, session.get_one(Project, project.id), person, 1)
                ids = [(one.id, one.task_id) for one in found]
            for assignment, task in ids:
                taken.append(task)
                with store.write() as session:
                    submit(session, person, assignment, f"client-{assignment}", {"winner": 0})

    threads = [threading.Thread(target=work, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(set(taken))
    assert len(taken) == 10


def test_raising_the_overlap_opens_tasks_again(store, project, people):
    for person in people[:2]:
        for one in take(store, project, person, 10):
            judge(store, person, one)
    assert take(store, project, people[2]) == []
    with store.write() as session:
        change_project(session, session.get_one(Project, project.id), overlap=3)
    assert len(take(store, project, people[2], 10)) == 10


def test_imported_labels_count_and_close_a_task(store, project, people):
    with store.write() as session:
        for task in session.scalars(sa.select(Task)).all():
            for name in ("crowd 1", "crowd 2"):
                add_label(session, task, name, f"crowd:{task.id}:{name}", {"winner": 1})
    assert take(store, project, people[0]) == []


def response(i: int, text: str, prompt=PROMPT) -> Response:
    return Response(id=f"r{i}", prompt_id=prompt_id(prompt), messages=prompt, text=text, model="m")


@pytest.mark.parametrize(
    ("kind", "per_prompt", "sizes"),
    [
        ("pairwise", 0, [2] * 6), ("pairwise", 2, [2] * 2), ("ranking", 0, [4]), ("ranking", 3, []), ("likert", 0, [4]),
        ("likert", 1, [1]), ("thumbs", 0, [1] * 4), ("thumbs", 3, [1] * 3),
    ],
)  # fmt: skip
def test_tasks_of_responses(kind, per_prompt, sizes):
    texts = ["a", "b", "c", "a", " ", "d"]  # one twice, one empty
    drafts = list(drafts_of(kind, [response(i, text) for i, text in enumerate(texts)], per_prompt))
    assert [len(draft.responses) for draft in drafts] == sizes


def test_the_same_tasks_twice_are_added_once(store):
    with store.write() as session:
        project = create_project(session, "p", "ranking")
        responses = [response(i, f"text {i}") for i in range(5)]
        assert add_tasks(session, project, drafts_of("ranking", responses)) == 1
        assert add_tasks(session, project, drafts_of("ranking", responses)) == 0
    with store.read() as session:
        assert session.scalars(sa.select(Task)).one().texts == [f"text {i}" for i in range(5)]


@pytest.mark.parametrize(
    ("kind", "texts", "words"),
    [
        ("pairwise", ["a"], "has 2 answers, not 1"),
        ("ranking", ["a", "b", "c"], "has 4 to 9 answers, not 3"),
        ("pairwise", ["a", "a"], "equal"),
        ("thumbs", ["a\x00"], "NUL"),
    ],
)
def test_tasks_that_cannot_be(store, kind, texts, words):
    with store.write() as session:
        project = create_project(session, "p", kind)
        with pytest.raises(DataError, match=words):
            add_tasks(session, project, [TaskDraft(PROMPT, texts)])


@pytest.mark.parametrize("settings", [{"overlap": -1}, {"gold_rate": 1.5}, {"lease_seconds": 0}])
def test_settings_out_of_range(store, settings):
    with pytest.raises(UsageError, match=next(iter(settings))), store.write() as session:
        create_project(session, "p", "pairwise", **settings)


def test_a_name_is_taken_once(store, project):
    with pytest.raises(UsageError, match="'pizza' already"), store.write() as session:
        create_project(session, " pizza", "ranking")
