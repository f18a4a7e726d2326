"""Judgments in: what is kept, what is refused, what a second try does."""

import pytest
import sqlalchemy as sa
from itsdangerous import URLSafeSerializer

from wukong.errors import DataError
from wukong.feedback.store import labels
from wukong.feedback.store.people import accept, invitation, invite, renew, set_active, sign_in, sign_out, signed_in
from wukong.feedback.store.queue import next_assignments, progress
from wukong.feedback.store.tables import Assignment, Invitation, Label, Project, Task
from wukong.feedback.store.tasks import add_guidelines, create_project, guidelines
from wukong.feedback.store.values import as_shown, as_stored, checked, disagreement, units
from wukong.records import Message

PROMPT = [Message(role="user", content="How to make pizza")]


@pytest.fixture
def in_hand(store, project, people) -> Assignment:
    """Ann's first task."""
    with store.write() as session:
        return next_assignments(session, session.get_one(Project, project.id), people[0], 1)[0]


def rows(store):
    with store.read() as session:
        return session.scalars(sa.select(Label).order_by(Label.id)).all()


def submit(store, person, assignment, client_id="client-01", value=None, **more):
    with store.write() as session:
        return labels.submit(session, person, assignment.id, client_id, value or {"winner": 0}, **more)


def test_a_label_carries_what_an_audit_needs(store, project, people, in_hand):
    with store.write() as session:
        version = add_guidelines(session, session.get_one(Project, project.id), "Be *kind*.")
    submit(store, people[0], in_hand, seconds=3.25, comment="close", flagged=True, value={"winner": 1, "strength": 3})
    (label,) = rows(store)
    assert label.value == {"winner": in_hand.shown[1], "strength": 3, "verdict": "better"}
    assert (label.shown, label.seconds, label.comment, label.flagged) == (in_hand.shown, 3.25, "close", True)
    assert (label.annotator_id, label.guideline_id, label.status) == (people[0].id, version.id, "given")


def test_the_same_client_id_again_adds_nothing(store, people, in_hand):
    first = submit(store, people[0], in_hand)
    assert submit(store, people[0], in_hand).id == first.id
    assert len(rows(store)) == 1


@pytest.mark.parametrize(
    "more", [{"value": {"winner": 1}}, {"comment": "but"}, {"flagged": True}, {"seconds": 5.0}], ids=str
)
def test_the_same_client_id_with_another_judgment_is_a_conflict(store, people, in_hand, more):
    """Dropped silently, the annotator would believe that the second one counts."""
    submit(store, people[0], in_hand)
    with pytest.raises(labels.ConflictError, match="another label's"):
        submit(store, people[0], in_hand, **more)
    assert [(row.value["winner"], row.comment, row.flagged, row.seconds) for row in rows(store)] == [
        (in_hand.shown[0], "", False, None)
    ]


def test_other_acts_under_the_same_client_id_are_conflicts(store, project, people, in_hand):
    """Skips, decisions, undos and imported judgments as well."""
    with store.write() as session:
        labels.skip(session, people[0], in_hand.id, "client-skip", "other")
        labels.adjudicate(session, people[2], in_hand.task_id, "client-decide", {"winner": 0})
        labels.add_label(session, session.get_one(Task, in_hand.task_id), "crowd", "client-crowd", {"winner": 0})
        other = create_project(session, "other", "pairwise")
    before = len(rows(store))
    for act in (
        lambda s: labels.skip(s, people[0], in_hand.id, "client-skip", "offensive"),
        lambda s: labels.adjudicate(s, people[2], in_hand.task_id, "client-decide", {"winner": 1}),
        lambda s: labels.adjudicate(s, people[2], in_hand.task_id, "client-decide", {"winner": 0}, "because"),
        lambda s: labels.add_label(s, s.get_one(Task, in_hand.task_id), "crowd", "client-crowd", {"winner": 1}),
    ):
        with pytest.raises(labels.ConflictError), store.write() as session:
            act(session)
    with store.write() as session:
        labels.undo(session, people[0], project.id, "client-undo")
    with pytest.raises(labels.ConflictError), store.write() as session:
        labels.undo(session, people[0], other.id, "client-undo")
    assert len(rows(store)) == before + 1


def test_a_judgment_is_not_mistaken_for_a_decision(store, people, in_hand):
    """An admin who also labels: one client id for both would have lost the decision."""
    submit(store, people[0], in_hand, value={"winner": in_hand.shown.index(0)})
    with pytest.raises(labels.ConflictError), store.write() as session:
        labels.adjudicate(session, people[0], in_hand.task_id, "client-01", {"winner": 0})


@pytest.mark.parametrize(
    "draft",
    [
        {"comment": "half \ud800"},
        {"half \ud800": 1},
        {"groups": [["\x00"]]},
        {"score": float("nan")},
        {"score": float("inf")},
        {"score": 2**63},
    ],
    ids=repr,
)
def test_a_draft_that_could_not_be_shown_again_is_refused(store, people, in_hand, draft):
    """Kept, it would make every request for the next task fail."""
    with pytest.raises(DataError), store.write() as session:
        labels.save_draft(session, people[0], in_hand.id, draft)
    with store.read() as session:
        assert session.get_one(Assignment, in_hand.id).draft is None


@pytest.mark.parametrize("seconds", [float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(store, people, in_hand, seconds):
    with pytest.raises(DataError, match="seconds"):
        submit(store, people[0], in_hand, seconds=seconds)


def test_another_client_id_for_a_judged_task_is_a_conflict(store, people, in_hand):
    submit(store, people[0], in_hand)
    with pytest.raises(labels.ConflictError, match="judged already"):
        submit(store, people[0], in_hand, "client-02")
    assert len(rows(store)) == 1


def test_a_client_id_of_somebody_else_is_a_conflict(store, project, people, in_hand):
    submit(store, people[0], in_hand)
    with store.write() as session:
        other = next_assignments(session, session.get_one(Project, project.id), people[1], 1)[0]
    with pytest.raises(labels.ConflictError, match="another label's"):
        submit(store, people[1], other)
    assert len(rows(store)) == 1


def test_nobody_judges_or_drafts_in_anothers_name(store, people, in_hand):
    with pytest.raises(labels.NotFoundError):
        submit(store, people[1], in_hand)
    with pytest.raises(labels.NotFoundError), store.write() as session:
        labels.save_draft(session, people[1], in_hand.id, {"winner": 1})
    assert rows(store) == []


def test_undo_takes_back_the_last_one_and_brings_it_as_a_draft(store, project, people, in_hand):
    submit(store, people[0], in_hand, value={"winner": 1, "strength": 1})
    with store.write() as session:
        again = labels.undo(session, people[0], project.id, "client-undo")
    with store.write() as session:  # the same undo, heard twice
        labels.undo(session, people[0], project.id, "client-undo")
    assert again.id == in_hand.id
    assert again.draft == {"winner": 1, "strength": 1, "verdict": "better"}
    given, withdrawn = rows(store)
    assert (withdrawn.status, withdrawn.supersedes) == ("withdrawn", given.id)
    with store.read() as session:
        assert session.get_one(Task, in_hand.task_id).n_labels == 0
        assert progress(session, project.id, people[0])["done"] == 0
    submit(store, people[0], in_hand, "client-03")
    assert [row.supersedes for row in rows(store)] == [None, given.id, withdrawn.id]
    with store.read() as session:
        assert session.get_one(Task, in_hand.task_id).n_labels == 1
        assert session.scalars(sa.select(Label.client_id).where(labels.current())).all() == ["client-03"]


def test_undo_goes_back_step_by_step_and_then_says_so(store, project, people):
    for i in range(3):
        with store.write() as session:
            found = next_assignments(session, session.get_one(Project, project.id), people[0], 1)[0]
            labels.submit(session, people[0], found.id, f"client-{i}x", {"winner": 0})
    for i in range(3):
        with store.write() as session:
            labels.undo(session, people[0], project.id, f"undo-{i}-xx")
    with pytest.raises(labels.ConflictError, match="nothing to undo"), store.write() as session:
        labels.undo(session, people[0], project.id, "undo-9-xx")


def test_a_skipped_task_goes_to_others_and_can_be_undone(store, project, people, in_hand):
    with store.write() as session:
        labels.skip(session, people[0], in_hand.id, "client-skip", "not my field")
    (label,) = rows(store)
    assert (label.status, label.comment, label.value) == ("skipped", "not my field", None)
    with store.read() as session:
        assert session.get_one(Task, in_hand.task_id).open
    with store.write() as session:
        mine = {one.task_id for one in next_assignments(session, session.get_one(Project, project.id), people[0], 10)}
        theirs = {one.task_id for one in next_assignments(session, session.get_one(Project, project.id), people[1], 10)}
    assert in_hand.task_id not in mine
    assert in_hand.task_id in theirs
    with store.write() as session:
        assert labels.undo(session, people[0], project.id, "client-undo").id == in_hand.id


def test_a_skip_needs_a_reason(store, people, in_hand):
    with pytest.raises(DataError, match="reason"), store.write() as session:
        labels.skip(session, people[0], in_hand.id, "client-skip", " ")


def test_disagreement_and_an_admins_decision(store, project, people, in_hand):
    with store.write() as session:
        for name, winner in (("crowd 1", 0), ("crowd 2", 1), ("crowd 3", 0)):
            task = session.get_one(Task, in_hand.task_id)
            labels.add_label(session, task, name, f"crowd:{name}", {"winner": winner})
        assert task.disagreement == pytest.approx(2 / 3)  # of three pairs of people, two differ
        assert not task.adjudicated
    for n, winner in enumerate((1, 0)):
        with store.write() as session:
            labels.adjudicate(session, people[2], in_hand.task_id, f"decision-{n}", {"winner": winner})
    first, second = [row for row in rows(store) if row.adjudicates]
    assert second.supersedes == first.id
    with store.read() as session:
        task = session.get_one(Task, in_hand.task_id)
        assert (task.adjudicated, task.n_labels) == (True, 3)


def test_an_imported_correction_supersedes_and_the_same_adds_nothing(store, in_hand):
    with store.write() as session:
        task = session.get_one(Task, in_hand.task_id)
        first, new = labels.add_label(session, task, "crowd", "ls:1:v1", {"winner": 0}, created_at=5.0)
        assert new
        assert labels.add_label(session, task, "crowd", "ls:1:v1", {"winner": 0}) == (first, False)
        second, _ = labels.add_label(session, task, "crowd", "ls:1:v2", {"winner": 1})
        assert (second.supersedes, task.n_labels, first.created_at) == (first.id, 1, 5.0)
        with pytest.raises(labels.ConflictError):
            labels.add_label(session, task, "somebody else", "ls:1:v1", {"winner": 0})


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("pairwise", {}, "winner"),
        ("pairwise", {"winner": 2}, "winner"),
        ("pairwise", {"winner": None}, "names a winner"),
        ("pairwise", {"winner": 0, "verdict": "tie"}, "names a winner"),
        ("pairwise", {"winner": 0, "strength": 4}, "strength"),
        ("pairwise", {"winner": 0, "more": 1}, "more"),
        ("ranking", {"groups": [[0, 1], [2]]}, "each of the 4"),
        ("ranking", {"groups": [[0, 1], [2, 3], []]}, "each of the 4"),
        ("ranking", {"groups": [[0, 1], [2, 3, 3]]}, "each of the 4"),
        ("likert", {"ratings": [{"score": 8}] * 4}, "ratings.0.score"),
        ("likert", {"ratings": [{"score": 1}]}, "each of the 4"),
        ("likert", {"ratings": [{"score": 1, "flags": ["sour"]}] * 4}, "unknown flag"),
        ("thumbs", {"vote": 0}, "vote"),
    ],
)
def test_values_that_fit_no_task(kind, value, words):
    with pytest.raises(DataError, match=words):
        checked(kind, value, {"pairwise": 2, "thumbs": 1}.get(kind, 4))


@pytest.mark.parametrize(
    ("kind", "value", "stored"),
    [
        ("pairwise", {"winner": 0, "strength": 2}, {"winner": 2, "strength": 2}),
        ("ranking", {"groups": [[0], [1, 2]]}, {"groups": [[2], [0, 1]]}),
        # Shown 2, 0, 1 with 7, 5, 3: by index, 0 has 5, 1 has 3, 2 has 7.
        ("likert", {"ratings": [7, 5, 3]}, {"ratings": [5, 3, 7]}),
        ("thumbs", {"vote": 1}, {"vote": 1}),
    ],
)
def test_places_on_the_page_become_indices_and_back(kind, value, stored):
    shown = [2, 0, 1]
    assert as_stored(kind, value, shown) == stored
    assert as_shown(kind, stored, shown) == value


def test_units_and_disagreement_by_hand():
    assert units("ranking", {"groups": [[2], [0, 1]]}) == {"0>1": 0, "0>2": -1, "1>2": -1}
    # Against [0], [1], [2]: 1, 1, 1. All three pairs differ.
    assert disagreement("ranking", [{"groups": [[2], [0, 1]]}, {"groups": [[0], [1], [2]]}]) == 1
    ratings = [{"ratings": [{"score": a}, {"score": b}]} for a, b in ((3, 7), (4, 1))]
    assert disagreement("likert", ratings) == 0.5  # one point apart is none
    assert disagreement("thumbs", [{"vote": 1}]) == 0


def test_guidelines_are_versioned(store, project):
    with store.write() as session:
        project = session.get_one(Project, project.id)
        assert [add_guidelines(session, project, text).version for text in ("a", "a", "b")] == [1, 1, 2]
    with store.read() as session:
        assert guidelines(session, project.id).text == "b"


def test_a_draft_is_kept_until_the_judgment(store, people, in_hand):
    with store.write() as session:
        labels.save_draft(session, people[0], in_hand.id, {"groups": [[1]]})
    with store.read() as session:
        assert session.get_one(Assignment, in_hand.id).draft == {"groups": [[1]]}
    submit(store, people[0], in_hand)
    with store.read() as session:
        assert session.get_one(Assignment, in_hand.id).draft is None
    with pytest.raises(labels.ConflictError), store.write() as session:
        labels.save_draft(session, people[0], in_hand.id, {"groups": [[1]]})


# ------------------------------------------------------------------------------------------------------------- people


def test_an_invitation_lets_one_person_in_once(store):
    with store.write() as session:
        token = invite(session, "admin")
    with store.write() as session:
        assert invitation(session, token).used_at is None  # looking does not use it up
        person = accept(session, token, "  Ann   Lee ")
        cookie = sign_in(session, person)
    assert (person.name, person.role) == ("Ann Lee", "admin")
    with pytest.raises(labels.UsageError, match="used already"), store.write() as session:
        accept(session, token, "Bob")
    with store.read() as session:
        assert signed_in(session, cookie).name == "Ann Lee"
        assert signed_in(session, cookie + "x") is None
        assert cookie not in str(session.execute(sa.text("SELECT * FROM sessions")).all())


def test_forged_and_expired_invitations(store):
    with store.write() as session:
        good, old = invite(session), invite(session, seconds=-1)
        with pytest.raises(labels.UsageError, match="expired"):
            accept(session, old, "Ann")
        for forged in (good[:-1], good + "A", "", "a.b", good.replace(good[2], "A", 1)):
            if forged != good:
                with pytest.raises(labels.UsageError, match="not valid"):
                    accept(session, forged, "Ann")


def test_nobody_gets_in_by_what_the_database_holds(store):
    """Whoever reads it has the key and the row of an invitation, and still cannot make its link."""
    with store.write() as session:
        token = invite(session, "admin")
        row = session.scalars(sa.select(Invitation)).one()
        signer = URLSafeSerializer(session.scalar(sa.text("SELECT value FROM settings")), salt="invitation")
        assert signer.loads(token)[0] == row.id
        known = [row.id, row.nonce_hash, row.expires_at, row.role]
        for guess in ([row.id, row.expires_at], *([row.id, row.expires_at, one] for one in [*known, "", None])):
            with pytest.raises(labels.UsageError):
                accept(session, signer.dumps(guess), "Eve")
        assert accept(session, token, "Ann").role == "admin"


def test_a_renewed_link_lets_in_and_the_old_one_does_not(store):
    with store.write() as session:
        old = invite(session, "admin", note="Ann")
        row = session.scalars(sa.select(Invitation)).one()
        new = renew(session, row.id)
        with pytest.raises(labels.UsageError, match="not valid"):
            accept(session, old, "Eve")
        assert accept(session, new, "Ann").role == "admin"
        with pytest.raises(labels.UsageError, match="used already"):
            renew(session, row.id)


def test_a_name_that_is_taken_does_not_use_the_invitation_up(store, people):
    with store.write() as session:
        token = invite(session)
    with pytest.raises(labels.UsageError, match="taken"), store.write() as session:
        accept(session, token, "Ann")
    with store.write() as session:
        assert accept(session, token, "Ann B").id


def test_a_known_person_is_let_in_again_and_a_closed_account_is_out(store, people):
    with store.write() as session:
        ann = session.merge(people[0])
        token = invite(session, annotator=ann)
        assert accept(session, token, "ignored").id == ann.id
        cookie, other = sign_in(session, ann), sign_in(session, ann)
        sign_out(session, other)
        assert signed_in(session, other) is None
        assert signed_in(session, cookie) is not None
        set_active(session, ann, False)
        assert signed_in(session, cookie) is None
