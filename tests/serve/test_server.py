"""The server around the answers: keys, limits, clients that leave, failures, metrics, stopping."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import httpx
import openai
import pytest

from tests.serve.serving import served, until, value
from wukong.errors import UsageError
from wukong.model.hub import load_policy
from wukong.serve.app import Access
from wukong.serve.command import ServeOptions, checked_key, run
from wukong.serve.listen import address_of, is_loopback, listen
from wukong.serve.service import Answer, BusyError, Drawing, Service, UnknownModelError, load_model

CHAT = {"model": "policy", "messages": [{"role": "user", "content": "Boil 3 eggs"}]}
LONG = {**CHAT, "max_tokens": 60, "n": 4}


def post(address: str, body=CHAT, path: str = "/v1/chat/completions", **options) -> httpx.Response:
    return httpx.post(address + path, timeout=120, **({"json": body} | options))


def error(response: httpx.Response) -> dict:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


# -------------------------------------------------------------------------------------------------------------- access


def test_a_key_is_needed_where_one_is_set(new_service):
    with served(new_service(), Access(api_key="secret-key")) as address:
        for headers in ({}, {"Authorization": "Bearer wrong-key"}, {"Authorization": "secret-key"}):
            for path in ("/v1/models", "/metrics"):
                refused = httpx.get(address + path, headers=headers)
                assert (refused.status_code, error(refused)["code"]) == (401, "invalid_api_key")
        assert httpx.get(f"{address}/health").json() == {"status": "ok"}
        assert [m.id for m in openai.OpenAI(base_url=f"{address}/v1", api_key="secret-key").models.list()]
        with pytest.raises(openai.AuthenticationError, match="API key"):
            openai.OpenAI(base_url=f"{address}/v1", api_key="wrong-key", max_retries=0).models.list()
        refused = post(address)
        assert (refused.status_code, error(refused)["type"]) == (401, "authentication_error")


def test_without_a_key_other_names_of_this_machine_are_refused(address):
    """A web page whose own name was made to point at 127.0.0.1 must not read answers."""
    for host, status in (("evil.example:80", 403), ("evil.example", 403), ("localhost:80", 200), ("127.0.0.1", 200)):
        assert httpx.get(f"{address}/v1/models", headers={"Host": host}).status_code == status, host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_other_machines_are_let_in_with_a_key_only(host, monkeypatch):
    monkeypatch.delenv("WUKONG_API_KEY", raising=False)
    with pytest.raises(UsageError, match=f"--host {host} lets other machines in: set a key in WUKONG_API_KEY"):
        run(ServeOptions(models=["nowhere"], host=host))
    assert checked_key(ServeOptions(models=["x"], host=host, api_key="long-enough")) == "long-enough"
    monkeypatch.setenv("WUKONG_API_KEY", "from-the-environment")
    assert checked_key(ServeOptions(models=["x"], host=host)) == "from-the-environment"
    monkeypatch.setenv("WUKONG_API_KEY", "short")
    with pytest.raises(UsageError, match="at least 8 characters"):
        checked_key(ServeOptions(models=["x"], host=host))


def test_this_machines_own_addresses():
    own = ("127.0.0.1", "127.8.0.1:80", "::1", "[::1]", "[::1]:80", "localhost", "localhost:8000")
    assert all(map(is_loopback, own))
    other = ("0.0.0.0", "::", "10.0.0.1", "localhost.example", "127.0.0.1.example:80", "", "[")
    assert not any(map(is_loopback, other))


@pytest.mark.parametrize("host", ["127.0.0.1", *(["::"] if socket.has_dualstack_ipv6() else [])])
def test_every_address_means_those_of_both_protocols(host):
    with listen(host, 0) as listener:
        assert address_of(listener).startswith(f"http://{'[::]' if host == '::' else host}:")
        for address in {"127.0.0.1", host.replace("::", "::1")}:
            socket.create_connection((address, listener.getsockname()[1]), timeout=60).close()


def test_a_host_that_is_no_address_is_one_line():
    with pytest.raises(UsageError, match=r"cannot listen at .*: not an address; choose another --port"):
        listen("a" * 70 + ".example", 0)


def test_a_port_that_is_taken_is_one_line(address, models):
    port = int(address.rpartition(":")[2])
    with pytest.raises(UsageError, match=f"cannot listen at 127.0.0.1:{port}: .*in use; choose another --port"):
        run(ServeOptions(models=[str(models / "policy")], port=port))


# -------------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ({"content": b"{", "json": None}, 415, "Content-Type: application/json"),
        ({"content": b"{", "json": None, "headers": {"Content-Type": "application/json"}}, 400, "not valid JSON"),
        (
            {"content": b"[" * 9999, "json": None, "headers": {"Content-Type": "application/json"}},
            400,
            "not valid JSON",
        ),
        ({"body": [1]}, 400, "must be a JSON object"),
        ({"body": {"messages": CHAT["messages"]}}, 400, "model: Field required"),
        ({"path": "/v1/chat"}, 404, "Not Found"),
    ],
)
def test_requests_that_are_none(address, options, status, message):
    refused = post(address, **options)
    assert refused.status_code == status
    assert message in error(refused)["message"]


def test_a_wrong_method_and_half_a_character(address):
    assert error(httpx.get(f"{address}/v1/chat/completions"))["message"] == "Method Not Allowed"
    body = json.dumps({**CHAT, "messages": [{"role": "user", "content": "\ud800"}]})
    refused = post(address, json=None, content=body, headers={"Content-Type": "application/json"})
    assert (refused.status_code, "half a character" in error(refused)["message"]) == (400, True)


def test_a_large_request_is_refused(new_service):
    with served(new_service(), Access(max_body=1000)) as address:
        assert post(address, {**CHAT, "max_tokens": 1}).status_code == 200
        large = {**CHAT, "user": "x" * 1000}
        assert (post(address, large).status_code, error(post(address, large))["code"]) == (413, "request_too_large")
        pieces = (b'{"user": "', *[b"x" * 100] * 20)  # no length is announced
        refused = post(address, json=None, content=iter(pieces), headers={"Content-Type": "application/json"})
        assert refused.status_code == 413


def test_a_full_queue_refuses_and_empties(new_service, held):
    service = new_service(max_batch=1, max_waiting=1)
    with served(service) as address:
        threads = [threading.Thread(target=post, args=(address, {**CHAT, "max_tokens": 20})) for _ in range(2)]
        threads[0].start()
        until(lambda: value(service, "wukong_writing") == 1)
        threads[1].start()
        until(lambda: value(service, "wukong_waiting") == 1)
        refused = post(address)
        assert (refused.status_code, error(refused)["code"], refused.headers["Retry-After"]) == (
            429,
            "server_busy",
            "1",
        )
        held.set()
        for thread in threads:
            thread.join()
        assert post(address, {**CHAT, "max_tokens": 2}).status_code == 200
        assert value(service, "wukong_refused_total") == 1
        too_many = post(address, {**CHAT, "n": 3})
        assert (too_many.status_code, "3 answers in one request" in error(too_many)["message"]) == (400, True)
        of_one = value(service, "wukong_batch_size_bucket", model="policy", le="1.0")
        assert of_one == value(service, "wukong_batch_size_count", model="policy") > 0


# ------------------------------------------------------------------------------------------------ clients that leave


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_leaves_frees_its_places(new_service, held, stream):
    service = new_service(max_batch=4, max_waiting=8)
    with served(service) as address:
        with httpx.Client(timeout=httpx.Timeout(120, read=None if stream else 0.5)) as client:
            if stream:
                with client.stream("POST", f"{address}/v1/chat/completions", json={**LONG, "stream": True}) as response:
                    lines = response.iter_lines()  # the connection closes when nobody holds them any more
                    next(lines)
                    until(lambda: value(service, "wukong_writing") > 0)
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post(f"{address}/v1/chat/completions", json=LONG)
        held.set()
        until(lambda: value(service, "wukong_writing") == 0)
        assert value(service, "wukong_answer_tokens_total", model="policy") < 4 * 60
        assert post(address, {**CHAT, "max_tokens": 2}).status_code == 200


def test_who_leaves_the_queue_is_never_written(new_service, held):
    service = new_service(max_batch=1, max_waiting=8)
    with served(service) as address:
        first = threading.Thread(target=post, args=(address, {**CHAT, "max_tokens": 40, "seed": 0}))
        first.start()
        until(lambda: value(service, "wukong_writing") == 1)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/chat/completions", json=CHAT, timeout=httpx.Timeout(120, read=0.2))
        held.set()
        until(lambda: value(service, "wukong_waiting") == 0)
        first.join()
        assert value(service, "wukong_first_token_seconds_count", model="policy") == 1


# ------------------------------------------------------------------------------------------------------------ failures


def test_a_failure_reaches_those_who_wait_and_the_others_go_on(new_service, before_passes, caplog):
    service = new_service()
    broken = [service.model("sft").model]

    def fail(model):
        if model in broken:
            raise RuntimeError("out of luck")

    before_passes(fail)
    with served(service) as address:
        failed = post(address, {**CHAT, "model": "sft"})
        assert (failed.status_code, error(failed)["message"]) == (500, "the model failed: out of luck")
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIError, match="out of luck"):
            list(client.chat.completions.create(**{**CHAT, "model": "sft"}, stream=True))
        assert post(address, {**CHAT, "max_tokens": 3}).status_code == 200
        assert httpx.get(f"{address}/health").json() == {"status": "ok"}
        broken.clear()
        assert post(address, {**CHAT, "model": "sft", "max_tokens": 3}).status_code == 200
        until(lambda: value(service, "wukong_writing") == 0)


def test_metrics_count_what_happened(new_service):
    service = new_service()
    with served(service) as address:
        used = post(address, {**CHAT, "max_tokens": 5, "n": 3}).json()["usage"]
        post(address, {**CHAT, "model": "nobody"})
        text = httpx.get(f"{address}/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(lines['wukong_answer_tokens_total{model="policy"}']) == used["completion_tokens"]
    assert float(lines['wukong_prompt_tokens_total{model="policy"}']) == used["prompt_tokens"]
    assert float(lines['wukong_requests_total{endpoint="/v1/chat/completions",status="200"}']) == 1
    assert float(lines['wukong_requests_total{endpoint="/v1/chat/completions",status="404"}']) == 1
    assert float(lines['wukong_first_token_seconds_count{model="policy"}']) == 3
    assert float(lines["wukong_writing"]) == 0


# ---------------------------------------------------------------------------------------------------------- in Python


def test_the_service_can_be_used_without_http(new_service, policy):
    async def talk() -> tuple[str, str]:
        with new_service() as service:
            with pytest.raises(UnknownModelError):
                await service.chat("nobody", "Boil 3 eggs")
            answer = await service.chat("policy", "Boil 3 eggs", Drawing(max_new_tokens=30, seed=9))
            assert isinstance(answer, Answer)
            pieces = "".join([piece.text async for piece in answer])
            (whole,) = await (await service.chat("policy", "Boil 3 eggs", Drawing(max_new_tokens=30, seed=9))).whole()
        with pytest.raises(BusyError, match="stopping"):
            await service.chat("policy", "Boil 3 eggs")
        return pieces, whole.text

    (expected,) = policy.generate(["Boil 3 eggs"], max_new_tokens=30, seed=9)
    assert asyncio.run(talk()) == (expected.text, expected.text)


def test_a_model_that_is_added_later_answers(new_service):
    async def talk() -> str:
        service = new_service()
        late = service.models.pop("sft")
        with service:
            service.add(late)
            (whole,) = await (await service.chat("sft", "Boil", Drawing(max_new_tokens=5, temperature=0))).whole()
        return whole.finish_reason

    assert asyncio.run(talk()) in ("stop", "length")


# ----------------------------------------------------------------------------------------------------------- stopping


def test_closing_ends_what_is_not_finished(new_service, held):
    async def talk() -> None:
        service = new_service(max_batch=1)
        service.start()
        answers = [await service.chat("policy", "Boil 3 eggs", Drawing(max_new_tokens=60, seed=0)) for _ in range(2)]
        closing = asyncio.create_task(asyncio.to_thread(service.close))
        while service.alive:
            await asyncio.sleep(0.01)
        held.set()
        await closing
        for answer in answers:
            with pytest.raises(BusyError, match="stopping"):
                await answer.whole()

    asyncio.run(talk())


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_answers_finish(models, sign):
    command = [sys.executable, "-m", "wukong", "serve", str(models / "policy"), "--port", "0", "--device", "cpu"]
    environment = {**os.environ, "WUKONG_API_KEY": "secret-key"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        line = process.stderr.readline()
        assert line.startswith("serving policy at http://127.0.0.1:"), line
        client = openai.OpenAI(base_url=line.split()[3], api_key="secret-key", timeout=120)
        pieces = iter(client.chat.completions.create(**CHAT, max_tokens=80, seed=0, stream=True))
        first = next(pieces)
        assert process.stderr.readline() == "policy: temperature 1 (the model's own), unless a request says otherwise\n"
        process.send_signal(sign)
        last = [first, *pieces][-1]
        assert last.choices[0].finish_reason in ("stop", "length")
        assert process.wait(timeout=120) == 0
        assert process.stderr.read() == "serve: stopped\n"


def test_a_model_says_how_many_parameters_it_has_whatever_its_copy_for_inference_holds(models):
    service = Service({"policy": load_model("policy", str(models / "policy"), "bfloat16", "cpu")})
    with served(service) as url:
        (model,) = httpx.get(f"{url}/v1/models").json()["data"]
    weights = load_policy(models / "policy")[0]
    assert model["parameters"] == sum(parameter.numel() for parameter in weights.parameters())
