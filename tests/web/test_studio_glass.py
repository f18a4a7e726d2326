"""The glass box over HTTP: who may look, what is sent, and what is recomputed."""

import math

import pytest

from tests.traced_runs import TRACE, options_of, run, world
from wukong.report.traces import read_trace
from wukong.training.metrics import read_metrics
from wukong.web.state import Settings


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """runs/mine with a PPO step that has a trace, and one that has none."""
    root = tmp_path_factory.mktemp("runs") / "mine"
    root.mkdir()
    world(root)
    run(options_of(root, "ppo", "policy", episodes=32, **TRACE))
    run(options_of(root, "rloo", "rloo", episodes=16))
    return root


@pytest.fixture
def settings(traced) -> Settings:
    return Settings(run_dir=traced)


ADDRESS = "/api/runs/mine/glass/policy"


def test_an_iteration_is_sent_as_it_was_recorded(sign_in, traced):
    root = sign_in("Root", "admin")
    page = root.get("/runs/mine/glass/policy").text
    assert 'data-step="policy"' in page
    assert "/runs/mine/glass/policy" in root.get("/runs/mine/steps/policy").text
    assert "/glass/" not in root.get("/runs/mine/steps/rloo").text
    recorded, logged = read_trace(traced / "policy"), read_metrics(traced / "policy")
    for one, line in zip(recorded, logged, strict=True):
        found = root.get(f"{ADDRESS}?iteration={one.step}").json()
        assert found["steps"] == [1, 2]
        assert found["settings"] == one.settings
        for sent, response in zip(found["responses"], one.responses, strict=True):
            assert sent["tokens"] == response.tokens
            assert sent["advantages"] == pytest.approx(response.advantages, abs=1e-5)
        means = dict(found["means"])
        assert {name: means[name] for name in ("score", "kl", "value_mean")} == {
            name: line[name] for name in ("score", "kl", "value_mean")
        }
    assert root.get(ADDRESS).json()["step"] == 2, "the last one, unless another is asked for"


def test_other_settings_are_computed_on_the_server(sign_in):
    root = sign_in("Root", "admin")
    before = root.get(ADDRESS).json()
    same = root.post(ADDRESS, json={"iteration": 2}).json()
    computed = dict(same["means"])
    for name, value in before["means"]:
        assert math.isclose(value, computed[name], abs_tol=1e-5), name
    assert same["responses"] == before["responses"]
    changed = root.post(ADDRESS, json={"iteration": 2, "kl_coef": 0.5, "gamma": 0.9, "lam": 0.5, "clip_range": 0.01})
    for old, new in zip(before["responses"], changed.json()["responses"], strict=True):
        assert old["logprobs"] == new["logprobs"]
        assert old["rewards"] != new["rewards"]
        assert old["advantages"] != new["advantages"]


def test_it_is_for_admins_and_says_what_it_has_not(sign_in):
    ann, root = sign_in("Ann"), sign_in("Root", "admin")
    assert ann.get(ADDRESS).status_code == ann.get("/runs/mine/glass/policy").status_code == 403
    assert ann.post(ADDRESS, json={"iteration": 2}).status_code == 403
    for path in ("/runs/mine/glass/rloo", "/runs/mine/glass/nothing", "/runs/nothing/glass/policy"):
        assert root.get(path).status_code == root.get(f"/api{path}").status_code == 404
    assert "--trace" in root.get("/api/runs/mine/glass/rloo").json()["error"]
    assert root.get(f"{ADDRESS}?iteration=7").status_code == 404
    assert "第 7 次迭代" in root.get(f"{ADDRESS}?iteration=7", headers={"accept-language": "zh"}).json()["error"]
    for body in ({"gamma": 1.5}, {"kl_coef": -1}, {"clip_range": 0}, {"lam": "x"}, {"beta": 1}):
        assert root.post(ADDRESS, json={"iteration": 2, **body}).status_code == 422
    del root.headers["x-csrf-token"]
    assert root.post(ADDRESS, json={"iteration": 2}).status_code == 403
