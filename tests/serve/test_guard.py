"""Who may ask, and how much: other sites' pages, missing keys, bodies too long, too slow, too deep, and wrong fields."""

import asyncio
import json
import threading
from typing import Any

import httpx
import pytest
from tests.serve.conftest import CHAT, question

from tunesmith.serve.app import make_app
from tunesmith.serve.guard import is_deeper, is_loopback
from tunesmith.serve.limits import Limits
from tunesmith.serve.service import Service

KEY = "canary-4f1d0a9e7b6c"
PORT = 8123


@pytest.fixture
def app(session: Any) -> Any:
    return make_app(Service(session, "tuned", "base", Limits(body_seconds=0.2)))


@pytest.fixture
def locked(session: Any) -> Any:
    return make_app(Service(session, "tuned", "base"), KEY)


def send(app: Any, method: str = "GET", path: str = "/v1/models", *, headers: Any = None, body: Any = b"") -> httpx.Response:
    """One request straight to the app, which no model answers: its worker was not started."""
    given = [(name.lower().encode(), value if isinstance(value, bytes) else value.encode()) for name, value in headers or ()]
    if not any(name == b"host" for name, _ in given) and headers is not NO_HOST:
        given.append((b"host", f"127.0.0.1:{PORT}".encode()))
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "headers": given,
        "scheme": "http", "server": ("127.0.0.1", PORT), "client": ("127.0.0.1", 9), "http_version": "1.1",
        "asgi": {"version": "3.0", "spec_version": "2.3"}, "root_path": "",
    }  # fmt: skip
    parts, whole = iter([body] if isinstance(body, bytes) else body), isinstance(body, bytes)
    sent: list[Any] = []

    async def receive() -> Any:
        part = next(parts, None)
        if part is None:
            await asyncio.Event().wait()  # a client that never goes on
        return {"type": "http.request", "body": part, "more_body": not whole}

    async def collect(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, collect))
    start = sent[0]
    return httpx.Response(start["status"], headers=start["headers"], content=b"".join(m.get("body", b"") for m in sent[1:]))


NO_HOST: list[Any] = []


def post(app: Any, body: Any, headers: Any = ()) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return send(app, "POST", CHAT, headers=[("content-type", "application/json"), *headers], body=content)


def error(response: httpx.Response) -> dict[str, Any]:
    fields = response.json()["error"]
    assert set(fields) == {"message", "type", "param", "code"}
    return fields


# ---- Host and Origin


@pytest.mark.parametrize("host", [f"127.0.0.1:{PORT}", f"localhost:{PORT}", f"LOCALHOST:{PORT}", f"[::1]:{PORT}"])
def test_names_of_this_machine_are_answered(app, host):
    response = send(app, headers=[("host", host)])
    assert response.status_code == 200
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    "host",
    ["evil.com", f"evil.com:{PORT}", f"localhost.evil.com:{PORT}", "[::1]evil", f"127.0.0.1:{PORT}@evil.com", "", "127.0.0.1:80",
     "127.0.0.1", f"127.0.0.1:{PORT}/", f"127.0.0.1:{PORT}0000", "127.0.0.1:x", f" 127.0.0.1:{PORT}", f"127.0.0.1.:{PORT}",
     f"0.0.0.0:{PORT}", f"2130706433:{PORT}", "localhost\t", b"\xff\xfe", f"[fe80::1]:{PORT}"],
)  # fmt: skip
def test_a_page_that_points_its_own_name_here_is_turned_away(app, host):
    response = send(app, headers=[("host", host)])
    assert response.status_code == 421
    assert error(response)["code"] == "wrong_host"
    assert "access-control-allow-origin" not in response.headers


def test_no_host_and_two_hosts_are_turned_away(app):
    assert send(app, headers=NO_HOST).status_code == 421
    assert send(app, headers=[("host", f"localhost:{PORT}"), ("host", f"localhost:{PORT}")]).status_code == 421


@pytest.mark.parametrize(
    "origin",
    ["null", "", "http://evil.com", f"https://127.0.0.1:{PORT}", "http://127.0.0.1:9999", "http://127.0.0.1",
     f"http://localhost:{PORT}", f"http://127.0.0.1:{PORT}.evil.com", "file://"],
)  # fmt: skip
def test_a_page_of_another_origin_is_turned_away(app, origin):
    for response in (send(app, headers=[("origin", origin)]), send(app, "OPTIONS", CHAT, headers=[("origin", origin)])):
        assert response.status_code == 403
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_the_servers_own_origin_is_no_other_site(app):
    assert send(app, headers=[("origin", f"http://127.0.0.1:{PORT}")]).status_code == 200


@pytest.mark.parametrize(
    ("name", "expected"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("[::1]", True), ("localhost", True), ("0.0.0.0", False),
     ("::", False), ("192.168.0.1", False), ("example.com", False), ("", False)],
)  # fmt: skip
def test_loopback_is_known(name, expected):
    assert is_loopback(name) is expected


# ---- the key


@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", KEY,
     "Bearer " + "x" * 60_000, b"Bearer \xff\xfe", "Bearer \u00e9"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/openapi.json", "/nothing"])
def test_without_the_key_nothing_is_told(locked, given, path):
    response = send(locked, path=path, headers=[("authorization", given)] if given is not None else [])
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert KEY not in response.text


def test_with_the_key_it_is(locked):
    assert send(locked, headers=[("authorization", f"Bearer {KEY}")]).status_code == 200
    assert send(locked, headers=[("authorization", f"bearer {KEY}")]).status_code == 200
    twice = [("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")]
    assert send(locked, headers=twice).status_code == 401
    assert KEY not in send(locked, path="/metrics", headers=[("authorization", f"Bearer {KEY}")]).text


def test_beyond_this_machine_any_name_is_taken_and_the_key_stands_for_it(session):
    app = make_app(Service(session, "tuned", "base"), KEY, anywhere=True)
    key = ("authorization", f"Bearer {KEY}")
    assert send(app, headers=[("host", "gpu-box:80"), key]).status_code == 200
    assert send(app, headers=[("host", "gpu-box:80")]).status_code == 401
    assert send(app, headers=[("host", "gpu-box@evil.com"), key]).status_code == 421
    assert send(app, headers=[("host", "gpu-box:80"), ("origin", "http://evil.com"), key]).status_code == 403


def test_a_watchdog_needs_no_key(locked):
    assert send(locked, path="/health").status_code == 503  # it is told the truth: no worker runs here
    assert error(send(locked, path="/health"))["code"] == "stopped"


# ---- the body


def test_a_long_body_is_refused_by_its_length_and_by_what_comes(app):
    told = send(app, "POST", CHAT, headers=[("content-type", "application/json"), ("content-length", "100000000")], body=[])
    assert told.status_code == 413
    taken = 0

    def parts():
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield b" " * 100_000

    came = send(app, "POST", CHAT, headers=[("content-type", "application/json")], body=parts())
    assert came.status_code == 413
    assert taken <= 12
    assert came.headers["connection"] == "close"


@pytest.mark.parametrize("lengths", [["-1"], ["x"], ["1", "1"], ["1", "2"], ["+5"], ["9" * 30], [""]])
def test_a_length_that_is_none_is_refused(app, lengths):
    headers = [("content-type", "application/json"), *(("content-length", length) for length in lengths)]
    assert send(app, "POST", CHAT, headers=headers, body=[]).status_code in (400, 413)


def test_a_body_that_drips_is_refused_in_time(app):
    headers = [("content-type", "application/json")]
    assert send(app, "POST", CHAT, headers=headers, body=[b"{"]).status_code == 408
    assert send(app, "GET", headers=headers, body=[b"{"]).status_code == 408


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx", "text/json"])
def test_only_json_is_taken_since_a_form_cannot_send_it(app, kind):
    assert send(app, "POST", CHAT, headers=[("content-type", kind)], body=b"{}").status_code == 415


@pytest.mark.parametrize(
    "body", [b"", b"{", b"nonsense", b"[]", b"1", b"null", b'"a"', b"\xff\xfe{}", b'{"model": 1e', b"{}}", b'"' * 999]
)
def test_what_is_no_request_is_refused(app, body):
    assert post(app, body).status_code == 400
    error(post(app, body))


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
def test_json_deeper_than_anybody_needs_is_refused(app, opening):
    deep = opening * 100_000
    assert error(post(app, deep))["code"] == "too_deep"


def test_depth_counts_brackets_outside_of_texts_only():
    assert not is_deeper(json.dumps({"a": "[" * 100 + '\\"{{{'}).encode(), 1)
    assert not is_deeper(b'[[], {"a": []}]', 3)
    assert is_deeper(b'[[], {"a": []}]', 2)
    assert not is_deeper(b"[]" * 400_000, 1)
    assert not is_deeper(b'"' + b'\\"' * 400_000, 1)


def test_escaped_quotes_without_end_cost_no_time(app):
    assert post(app, b'["' + b'\\"' * 450_000).status_code == 400


# ---- the fields


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": -1}, "max_tokens"), ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": 10**9}, "max_tokens"),
        ({"max_tokens": 10**400}, "max_tokens"), ({"max_tokens": "8"}, "max_tokens"), ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": float("nan")}, "max_tokens"), ({"max_tokens": True}, "max_tokens"), ({"max_tokens": 255}, "max_tokens"),
        ({"max_tokens": None, "max_completion_tokens": 255}, "max_completion_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"), ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"), ({"temperature": "1"}, "temperature"),
        ({"temperature": 2.1}, "temperature"), ({"top_p": 0}, "top_p"), ({"top_p": 1.1}, "top_p"), ({"top_k": -1}, "top_k"),
        ({"seed": 1.5}, "seed"), ({"seed": 2**63}, "seed"), ({"n": 2}, "n"), ({"n": True}, "n"),
        ({"n": 17, "temperature": 1.0}, "n"), ({"n": 0}, "n"), ({"n": -1}, "n"), ({"n": "2"}, "n"),
        ({"n": 10**400}, "n"), ({"n": [2]}, "n"), ({"n": 2, "temperature": 1e-9}, "n"),
        ({"stop": ""}, "stop"), ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ["a" * 201]}, "stop.0"), ({"stop": 5}, "stop"), ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"odd": True}}, "stream_options.odd"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"), ({"presence_penalty": -1}, "presence_penalty"),
        ({"logprobs": 1}, "logprobs"), ({"logprobs": "true"}, "logprobs"), ({"logprobs": {}}, "logprobs"),
        ({"top_logprobs": 5}, "top_logprobs"), ({"logprobs": False, "top_logprobs": 5}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"), ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": True}, "top_logprobs"), ({"logprobs": True, "top_logprobs": "5"}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 10**400}, "top_logprobs"), ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"), ({"modalities": ["audio"]}, "modalities.0"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"), ({"tool_choice": "required"}, "tool_choice"),
        ({"temprature": 1}, "temprature"), ({"trust_remote_code": True}, "trust_remote_code"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"), ({"a\ud800\x1b[2J": 1}, None), ({"model": "../../etc/passwd"}, "model"),
        ({"model": 5}, "model"), ({"model": None}, "model"),
        ({"messages": []}, "messages"), ({"messages": "hello"}, "messages"), ({"messages": [{}]}, None),
        ({"messages": [{"role": "user", "content": "a"}] * 10_000}, "messages"),
        ({"messages": [{"role": "bot", "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "a", "path": "/etc/passwd"}]}, "messages.0.path"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}]},
         "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "url": "x"}]}]}, "messages.0.content.0.url"),
        ({"messages": [{"role": "user", "tool_calls": [{"function": {"name": "f"}}]}]}, "messages"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_refused_by_name(app, fields, param):
    response = post(app, question() | fields)
    told = error(response)
    assert response.status_code == (404 if fields.get("model") == "../../etc/passwd" else 400), told
    assert param is None or told["param"] == param
    assert told["message"].isprintable()
    assert len(told["message"]) < 600


@pytest.mark.parametrize(("fields", "told"), [
    ({"n": 2}, "give a temperature above 0"), ({"n": 17}, "less than or equal to 16"), ({"logit_bias": {"5": 1}}, "top_k"),
    ({"top_logprobs": 5}, "only together with logprobs: true"),
    ({"response_format": {"type": "json_object"}}, "check it"), ({"tool_choice": "required"}, "'auto'"),
    ({"response_format": {"type": "json_object"}}, "Leave response_format out."),
    ({"response_format": {}}, "response_format.type: Field required"), ({"n": 1.0}, "valid integer"),
    ({"stream": True, "stream_options": {"options": 1}}, "no field 'stream_options.options'."),
    ({"temprature": 1}, "did you mean temperature?"), ({"stop": ["a"] * 5}, "at most 4 items"),
])  # fmt: skip
def test_what_is_not_offered_is_refused_with_the_reason(app, fields, told):
    assert told in error(post(app, question() | fields))["message"]


def test_a_body_that_is_not_utf8_and_a_path_that_is_not_here_are_told_in_words(app):
    assert "UTF-8" in error(post(app, '{"model": "é"}'.encode("latin-1")))["message"]
    told = error(send(app, "POST", "/v1/embeddings", headers=[("content-type", "application/json")], body=b"{}"))["message"]
    assert "/v1/embeddings" in told
    assert "POST /v1/chat/completions and /v1/completions" in told


def test_pictures_are_refused_in_words(app):
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]
    told = error(post(app, question() | {"messages": [{"role": "user", "content": parts}]}))
    assert "'image_url'" in told["message"]
    assert "text only" in told["message"]


def test_a_prompt_the_model_cannot_see_is_refused_with_numbers(app):
    told = error(post(app, question("wind " * 400)))
    assert told["code"] == "context_length_exceeded"
    assert "256" in told["message"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", CHAT, 405), ("DELETE", "/v1/models", 405), ("GET", "/docs", 404),
    ("GET", "/", 404), ("GET", "/v1/completions", 405), ("POST", "/v1/embeddings", 404),
    ("GET", "/v1/models/..%2f..%2fetc", 404)])  # fmt: skip
def test_other_paths_and_methods_are_refused_in_the_same_form(app, method, path, status):
    response = send(app, method, path, headers=[("content-type", "application/json")], body=b"{}")
    assert response.status_code == status
    error(response)


# ---- through a real server


def test_fields_that_change_nothing_are_taken(serve, session):
    from tunesmith.serve.protocol import IGNORED

    nothing = {
        "n": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logprobs": False, "logit_bias": {}, "tools": [],
        "response_format": {"type": "text"}, "stop": None, "tool_choice": "none", "seed": None, **dict.fromkeys(IGNORED, "x"),
    }  # fmt: skip
    parts = [{"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    with serve(session) as live, live.client() as client:
        plain, full = live.chat(client), live.chat(client, **nothing)
        assert full.json()["choices"] == plain.json()["choices"]
        assert live.chat(client, messages=[*parts, {"role": "user", "content": "c"}]).status_code == 200


def test_the_key_works_for_openais_client_and_is_told_nowhere(serve, session, capfd):
    import openai

    with serve(session, key=KEY) as live:
        with openai.OpenAI(base_url=f"{live.url}/v1", api_key=KEY) as client:
            assert len(client.models.list().data) == 2
            with pytest.raises(openai.AuthenticationError):
                client.with_options(api_key="wrong", max_retries=0).models.list()
        with live.client() as client:
            assert client.get(f"/v1/models?key={KEY}").status_code == 401
            assert client.get("/health").json() == {"status": "ok"}
    assert KEY not in "".join(capfd.readouterr())


def test_a_template_that_takes_long_holds_nobody_else_up(serve, session):
    tokenizer = session.renderer.tokenizer
    loops = "{% for a in range(2000) %}{% for b in range(1000) %}{% endfor %}{% endfor %}"
    slow = "{% if messages[0]['content'] == 'slow' %}" + loops + "{% endif %}"
    original, tokenizer.chat_template = tokenizer.chat_template, slow + tokenizer.chat_template
    try:
        with serve(session, Limits(render_seconds=0.1)) as live, live.client() as client, live.client() as other:
            answers = []
            asking = threading.Thread(target=lambda: answers.append(live.chat(client, "slow")))
            asking.start()
            while asking.is_alive():
                assert other.get("/health").status_code == 200
            asking.join()
            assert answers[0].status_code == 400
            assert "template" in answers[0].json()["error"]["message"]
    finally:
        tokenizer.chat_template = original
