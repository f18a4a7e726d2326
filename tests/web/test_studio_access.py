"""Who gets in, and what is refused: each attack is tried, and what the store holds afterwards is looked at."""

import re
import time

import pytest
import sqlalchemy as sa
from fastapi.routing import APIRoute

from tests.web.studio_forms import csrf_of
from wukong.feedback.store.people import invite
from wukong.feedback.store.tables import Annotator, Assignment, Invitation, Label, Project, Task
from wukong.web.access import LARGEST_BODY
from wukong.web.app import create_app
from wukong.web.guard import SAFE
from wukong.web.state import Settings

XSS = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'`"
SQL = "'; DROP TABLE labels; --"


def take(client, project):
    answer = client.post(f"/api/projects/{project}/next", json={})
    assert answer.status_code == 200, answer.text
    return answer.json()["tasks"]


def judge(client, task, client_id="client-xx-1", **more):
    return client.post("/api/labels", json={"assignment": task["assignment"], "client_id": client_id, **more})


def everything(store, table):
    with store.read() as session:
        return session.scalars(sa.select(table)).all()


def routes(app, path=""):
    """All routes, those of included routers too."""
    for route in app.routes:
        if isinstance(route, APIRoute):
            yield route
        elif hasattr(route, "original_router"):
            yield from routes(route.original_router)


# ------------------------------------------------------------------------------------------------------------ the door


def test_pages_send_strangers_to_the_door_and_the_api_says_no(browser, make_project):
    client, project = browser(), make_project()
    for path in ("/", f"/label/{project}", "/people", f"/projects/{project}"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers.get("location")) == (303, "/login"), path
    assert client.get("/api/projects").status_code == 401


@pytest.mark.parametrize("path", ["/people", "/projects/new", "/projects/{p}", "/projects/{p}/tasks", "/tasks/1",
                                  "/projects/{p}/quality", "/api/projects/{p}/quality",
                                  "/api/projects/{p}/export"])  # fmt: skip
def test_annotators_do_not_reach_admin_pages(sign_in, make_project, path):
    project = make_project()
    assert sign_in("Ann").get(path.format(p=project)).status_code == 403
    assert sign_in("Root", "admin").get(path.format(p=project)).status_code == 200


def test_every_admin_form_refuses_annotators(store, sign_in, make_project, browser):
    client, project = sign_in("Ann"), make_project()
    paths = ["/projects/new", f"/projects/{project}/settings", f"/projects/{project}/import", "/people/invite",
             f"/projects/{project}/generate", f"/projects/{project}/uncertainty", "/people/withdraw",
             "/people/renew", "/people/active"]  # fmt: skip
    for path in paths:
        form = {"csrf": client.headers["x-csrf-token"], "name": "evil", "kind": "pairwise"}
        assert client.post(path, data=form).status_code == 403, path
    body = {"client_id": "client-evil", "value": {"winner": 0}}
    assert client.post("/api/tasks/1/adjudication", json=body).status_code == 403
    assert len(everything(store, Project)) == 1
    assert everything(store, Label) == []


def test_invitations_are_for_one_person_once(store, browser):
    with store.write() as session:
        good, old = invite(session), invite(session, seconds=-1)
    client = browser()
    csrf = csrf_of(client)
    assert client.get(f"/invite/{good}").status_code == 200
    assert client.get(f"/invite/{good}").status_code == 200  # looking does not use it up
    for token, words in ((old, "expired"), (good[:-2] + "xx", "not valid"), ("a.b.c", "not valid")):
        answer = client.post(f"/invite/{token}", data={"name": "Eve", "csrf": csrf})
        assert (answer.status_code, words in answer.text) == (403, True), token
    assert client.post(f"/invite/{good}", data={"name": "Ann", "csrf": csrf}).status_code == 303
    second = browser()
    again = second.post(f"/invite/{good}", data={"name": "Eve", "csrf": csrf_of(second)})
    assert (again.status_code, "used already" in again.text) == (403, True)
    assert [person.name for person in everything(store, Annotator)] == ["Ann"]


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(store, browser):
    with store.write() as session:
        token = invite(session)
    client = browser()
    answer = client.post(f"/invite/{token}", data={"name": "Ann", "csrf": csrf_of(client)})
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=lax" in cookie.lower()
    assert client.post("/logout", data={"csrf": csrf_of(client, "/")}).status_code == 303
    assert client.get("/").status_code == 303


def test_the_admin_secret_is_asked_for_where_there_is_one(store):
    from fastapi.testclient import TestClient

    app = create_app(store, Settings(hosts=None, admin_secret="correct horse battery"))
    client = TestClient(app, base_url="http://studio.example", follow_redirects=False)
    with store.write() as session:
        token = invite(session, "admin")
    csrf = csrf_of(client)
    wrong = client.post(f"/invite/{token}", data={"name": "Eve", "secret": "guess", "csrf": csrf})
    assert (wrong.status_code, everything(store, Annotator)) == (400, [])
    right = {"name": "Root", "secret": "correct horse battery", "csrf": csrf}
    assert client.post(f"/invite/{token}", data=right).status_code == 303
    other = TestClient(app, base_url="http://studio.example", follow_redirects=False)
    for form, status in (({"name": "Root", "secret": "guess"}, 403), ({"name": "Eve", "secret": right["secret"]}, 403),
                         ({"name": "Root", "secret": right["secret"]}, 303)):  # fmt: skip
        assert other.post("/login", data={**form, "csrf": csrf_of(other)}).status_code == status


def test_without_a_secret_nobody_signs_in_by_name(browser, sign_in):
    sign_in("Root", "admin")
    client = browser()
    for secret in ("", "None"):
        form = {"name": "Root", "secret": secret, "csrf": csrf_of(client)}
        assert client.post("/login", data=form).status_code == 403


def test_a_closed_account_is_out_at_once(store, sign_in):
    root, ann = sign_in("Root", "admin"), sign_in("Ann")
    (person,) = [one for one in everything(store, Annotator) if one.name == "Ann"]
    form = {"csrf": root.headers["x-csrf-token"], "annotator": person.id, "active": "no"}
    assert root.post("/people/active", data=form).status_code == 303
    assert ann.get("/").status_code == 303


# ---------------------------------------------------------------------------------------------------- other sites, CSRF


def test_every_change_needs_the_token(store, sign_in, make_project):
    """Asks the application for its routes, so that one that is added later is tried too."""
    project, root = make_project(), sign_in("Root", "admin")
    token = root.headers.pop("x-csrf-token")
    tried = 0
    for route in routes(root.app):
        for method in route.methods - set(SAFE):
            path = re.sub(r"\{(\w+)\}", str(project), route.path)
            body = {"client_id": "client-evil", "assignment": 1, "value": {}, "reason": "x", "draft": {}}
            for more in ({}, {"headers": {"x-csrf-token": "0" * 64}}):
                sent = {"json": body} if path.startswith("/api") else {"data": {"csrf": "0" * 64, "name": "evil"}}
                if path == f"/api/projects/{project}/undo":
                    sent = {"json": {"client_id": "client-evil"}}
                if path == "/api/labels":
                    sent["json"] = {"client_id": "client-evil", "assignment": 1, "value": {}}
                if path == "/api/skips":
                    sent["json"] = {"client_id": "client-evil", "assignment": 1, "reason": "x"}
                if path.endswith("/adjudication"):
                    sent["json"] = {"client_id": "client-evil", "value": {}}
                if path.endswith("/draft"):
                    sent["json"] = {"draft": {}}
                answer = root.request(method, path, **sent, **more)
                assert answer.status_code == 403, f"{method} {path}: {answer.status_code} {answer.text[:300]}"
                tried += 1
    assert tried >= 2 * 17
    assert (everything(store, Label), len(everything(store, Project))) == ([], 1)
    root.headers["x-csrf-token"] = token
    assert take(root, project)


def test_a_token_of_another_session_is_none(sign_in, make_project):
    project, ann, eve = make_project(), sign_in("Ann"), sign_in("Eve")
    ann.headers["x-csrf-token"] = eve.headers["x-csrf-token"]
    assert ann.post(f"/api/projects/{project}/next", json={}).status_code == 403


@pytest.mark.parametrize("headers", [{"origin": "https://evil.example"}, {"origin": "null"},
                                     {"sec-fetch-site": "cross-site"}])  # fmt: skip
def test_requests_from_other_sites_are_refused(sign_in, make_project, headers):
    project, ann = make_project(), sign_in()
    assert ann.post(f"/api/projects/{project}/next", json={}, headers=headers).status_code == 403
    assert ann.post(f"/api/projects/{project}/next", json={}, headers={"origin": "http://127.0.0.1"}).status_code == 200


def test_other_names_of_this_machine_are_not_answered(browser):
    assert browser().get("/login", headers={"host": "evil.example"}).status_code == 400
    assert browser().get("/login", headers={"host": "localhost:7860"}).status_code == 200


def test_preferences_lead_back_only_into_the_studio(browser):
    client = browser()
    for back, place in (
        ("/people", "/people"),
        ("//evil.example", "/"),
        ("https://evil.example", "/"),
        ("/\\evil", "/"),
    ):
        form = {"csrf": csrf_of(client), "back": back, "language": "zh"}
        assert client.post("/preferences", data=form).headers["location"] == place


# --------------------------------------------------------------------------------------------------- others' work


def test_nobody_touches_anothers_draft_or_task(store, sign_in, make_project):
    project, ann, eve = make_project(overlap=2), sign_in("Ann"), sign_in("Eve")
    (task,) = take(ann, project)
    draft = f"/api/assignments/{task['assignment']}/draft"
    assert ann.put(draft, json={"draft": {"secret": 1}}).status_code == 204
    assert eve.put(draft, json={"draft": {"forged": 1}}).status_code == 404
    assert judge(eve, task, value={"winner": 0}).status_code == 404
    skip = {"assignment": task["assignment"], "client_id": "client-skip", "reason": "x"}
    assert eve.post("/api/skips", json=skip).status_code == 404
    assert all(one["draft"] is None for one in take(eve, project))
    assert [one.draft for one in everything(store, Assignment) if one.annotator_id == 1] == [{"secret": 1}]
    assert everything(store, Label) == []


def test_a_judgment_is_blind(sign_in, make_project):
    (task,) = take(sign_in(), make_project())
    assert set(task) == {"assignment", "kind", "prompt", "responses", "draft"}


# --------------------------------------------------------------------------------------------------------- bad content


def test_what_people_and_models_write_is_never_markup(store, sign_in):
    root = sign_in("Root " + XSS[:60], "admin")
    form = {
        "csrf": root.headers["x-csrf-token"],
        "name": XSS,
        "kind": "pairwise",
        "guidelines": f"# {XSS}\n[x](javascript:alert(1))",
    }
    assert root.post("/projects/new", data=form).status_code == 303
    line = {"prompt": XSS, "chosen": "good " + XSS, "rejected": "bad " + XSS}
    import json

    upload = {"file": ("x.jsonl", json.dumps(line).encode())}
    answer = root.post("/projects/1/import", data={"csrf": root.headers["x-csrf-token"]}, files=upload)
    assert answer.status_code == 303, answer.text
    while root.app.state.studio.jobs.of(1).state == "running":
        time.sleep(0.01)
    (task,) = take(root, 1)
    assert judge(root, task, value={"winner": 0}, comment=XSS).status_code == 200
    pages = ["/", "/label/1", "/people", "/projects/1", "/projects/1/tasks", "/tasks/1", "/projects/1/quality"]
    for path in [*pages, "/projects/1/tasks?q=" + XSS.replace("#", "")]:
        text = root.get(path).text
        assert "<img" not in text.replace('<img src="/static/icon.svg"', ""), path
        assert "alert(1)</script>" not in text, path
        assert 'href="javascript' not in text, path
        assert not re.search(r"<script(?! type=\"module\" src=\"/static/)", text), path


def test_sql_in_every_field_is_text(store, sign_in, make_project):
    root, project = sign_in("Root " + SQL, "admin"), make_project()
    csrf = {"csrf": root.headers["x-csrf-token"]}
    assert root.post("/projects/new", data={**csrf, "name": SQL, "kind": "pairwise"}).status_code == 303
    assert root.post("/projects/new", data={**csrf, "name": "x", "kind": SQL}).status_code == 400
    assert root.get(f"/projects/{project}/tasks", params={"q": SQL}).status_code == 200
    assert root.get(f"/projects/{project}/tasks", params={"q": "%"}).text.count("/tasks/") < 8  # no wildcard
    assert root.get(f"/projects/{project}/tasks", params={"show": SQL}).status_code == 400
    (task,) = take(root, project)
    assert judge(root, task, SQL, value={"winner": 0}, comment=SQL).status_code == 200
    assert [label.comment for label in everything(store, Label)] == [SQL]


@pytest.mark.parametrize("name", ["../secret.jsonl", "/etc/passwd", "..\\secret.jsonl", "%2e%2e/secret.jsonl", ""])
def test_no_name_leads_out_of_the_run(store, sign_in, make_project, tmp_path, name, settings):
    (tmp_path.parent / "secret.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    root, project = sign_in("Root", "admin"), make_project(tasks=0)
    csrf = {"csrf": root.headers["x-csrf-token"]}
    assert root.post(f"/projects/{project}/import", data={**csrf, "run_file": name}).status_code == 404
    sent = {**csrf, "models": [name], "prompts": "x"}
    assert root.post(f"/projects/{project}/generate", data=sent).status_code == 404
    assert everything(store, Task) == []


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2f..%2fcli.py", "/static//etc/passwd"]
)
def test_static_files_are_the_studios_own(browser, path):
    answer = browser().get(path)
    assert answer.status_code == 404
    assert "import" not in answer.text


def test_bodies_have_a_limit(sign_in, make_project):
    project, ann = make_project(), sign_in()
    (task,) = take(ann, project)
    assert judge(ann, task, value={"winner": 0}, comment="x" * LARGEST_BODY).status_code == 413

    def endless():
        for _ in range(100):
            yield b" " * 10_000

    headers = {"content-type": "application/json"}
    assert ann.post("/api/labels", content=endless(), headers=headers).status_code == 413
    assert judge(ann, task, value={"winner": 0}, comment="x" * 5000).status_code == 422


@pytest.mark.parametrize("text", ["a\x00b", "half \ud800"])
def test_text_that_cannot_be_stored_is_one_line(sign_in, make_project, text):
    import json

    project, ann = make_project(), sign_in()
    (task,) = take(ann, project)
    body = {"assignment": task["assignment"], "client_id": "client-xx", "value": {"winner": 0}, "comment": text}
    answer = ann.post("/api/labels", content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert "error" in answer.json()


def test_guessing_and_hammering_are_slowed(browser, stopped_clock):
    client = browser()
    csrf = csrf_of(client)
    found = [client.post("/invite/guess", data={"name": "x", "csrf": csrf}).status_code for _ in range(40)]
    assert 429 in found
    assert found.count(403) <= 25


def test_every_answer_carries_the_policy(sign_in, make_project):
    root, project = sign_in("Root", "admin"), make_project()
    for path in ("/", f"/label/{project}", "/static/label.js", "/nowhere", "/api/openapi.json"):
        headers = root.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"


def test_pages_have_no_inline_script_or_style_and_no_foreign_address(sign_in, make_project):
    root, project = sign_in("Root", "admin"), make_project()
    for path in ("/", f"/label/{project}", f"/projects/{project}", "/people", "/projects/new", "/tasks/1"):
        text = root.get(path).text
        assert not re.search(r"<script(?![^>]*src=)", text)
        assert not re.search(r"\son\w+=", text)
        assert not re.search(r"\sstyle=|<style", text)
        assert not re.search(r"(src|href)=\"(https?:)?//", text)


def test_an_invitations_link_can_be_renewed_on_the_page_of_people(store, sign_in, browser):
    root = sign_in("Root", "admin")
    with store.write() as session:
        old = invite(session, note="for Ann")
    (row,) = [one for one in everything(store, Invitation) if one.used_at is None]
    page = root.post("/people/renew", data={"csrf": root.headers["x-csrf-token"], "invitation": row.id}).text
    new = re.search(r'value="http://127.0.0.1/invite/([^"]+)"', page)[1]
    client = browser()
    for token, status in ((old, 403), (new, 303)):
        assert client.post(f"/invite/{token}", data={"name": "Ann", "csrf": csrf_of(client)}).status_code == status


def test_withdrawn_invitations_let_nobody_in(store, sign_in, browser):
    root = sign_in("Root", "admin")
    page = root.post("/people/invite", data={"csrf": root.headers["x-csrf-token"], "role": "annotator"}).text
    link = re.search(r'value="http://127.0.0.1/(invite/[^"]+)"', page)
    (row,) = [one for one in everything(store, Invitation) if one.used_at is None]
    root.post("/people/withdraw", data={"csrf": root.headers["x-csrf-token"], "invitation": row.id})
    client = browser()
    assert client.post("/" + link[1], data={"name": "Eve", "csrf": csrf_of(client)}).status_code == 403
