"""The teacher behind an endpoint, against a real server: retries, broken replies, money, whole traces."""

import dataclasses
import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("openai", reason="the official client is optional: pip install -r requirements-data.txt")

from data_gen.build import BuildError, build
from data_gen.problems import Problem
from data_gen.teachers import TeacherError, TeacherStop
from data_gen.teachers.choice import TeacherOptions
from data_gen.teachers.code_blocks import cut_out
from data_gen.teachers.endpoint import Endpoint, _retry_after, endpoint_teacher
from data_gen.templates import load_templates
from tests.data_gen.chat_server import RIGHT, WRONG, ChatServer, solve
from tests.data_gen.test_build import command, records

ASK = [{"role": "user", "content": "hello"}]
OPTIONS = TeacherOptions(model="m", backoff=0.01, timeout=5.0, retries=3, concurrency=4)


def problem(number, tests=("assert f(1, 2) == 3", "assert f(2, 2) == 4", "assert f(0, 0) == 0")):
    return Problem(f"p{number}", f"p{number}", "x", (f"Add two numbers, {number} times.",), "", "f", tests)


def ask(script, **options):
    with ChatServer(script) as server:
        with Endpoint(dataclasses.replace(OPTIONS, base_url=server.url, **options)) as endpoint:
            usage = []
            endpoint.account(usage.append, 0.0)
            return endpoint.ask(ASK), server, usage


def first(*bad):
    return lambda number, body: bad[number] if number < len(bad) else "fine"


@pytest.mark.parametrize("stream", [False, True])
def test_a_plain_reply_and_what_it_cost(stream):
    said, server, usage = ask(first(), stream=stream, price_in=2.0, price_out=10.0)
    assert said == "fine"
    assert usage == [{"requests": 1, "prompt_tokens": 100, "completion_tokens": 50, "cost": (100 * 2 + 50 * 10) / 1e6}]
    assert (server.bodies[0]["model"], server.bodies[0]["messages"]) == ("m", ASK)


def test_the_key_comes_from_the_named_variable(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-1")
    _, server, _ = ask(first(), key_variable="MY_KEY")
    assert "Authorization: Bearer secret-1" in server.headers[0].replace("authorization", "Authorization")
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(TeacherStop, match="environment variable MY_KEY is not set"):
        Endpoint(TeacherOptions(model="m", key_variable="MY_KEY"))


@pytest.mark.parametrize(
    "bad",
    [
        {"status": 500, "body": b'{"error": {"message": "oh"}}'},
        {"status": 503, "body": b"<html>"},
        {"status": 429, "body": b'{"error": {"message": "slow"}}'},
        {"body": b'{"id": "c", "choices": [{"mess'},  # broken JSON
        {"body": b'{"id": "c", "object": "chat.completion", "choices": []}'},
        {"body": b'{"id": "c", "choices": [{"index": 0, "message": {"role": "assistant", "content": null}}]}'},
        {"body": b'"a string"'},
        {"text": "  "},
    ],
)
def test_what_fails_is_asked_again(bad):
    said, server, usage = ask(first(bad, bad))
    assert (said, len(server.bodies), usage[0]["retries"]) == ("fine", 3, 2)


def test_a_stalled_reply_and_a_stalled_or_cut_stream_are_asked_again():
    assert len(ask(first({"stall": 3, "text": "late"}), timeout=0.3)[1].bodies) == 2
    assert len(ask(first({"pause": 3, "text": "late"}), timeout=0.3, stream=True)[1].bodies) == 2
    assert len(ask(first({"cut": 1, "text": "a long text that is cut"}), stream=True)[1].bodies) == 2


def test_retry_after_holds_back_every_request():
    slow = {"status": 429, "headers": {"retry-after": "0.7"}, "body": b"{}"}
    with ChatServer(first(slow)) as server:
        with Endpoint(dataclasses.replace(OPTIONS, base_url=server.url)) as endpoint:
            with ThreadPoolExecutor(3) as pool:
                one = pool.submit(endpoint.ask, ASK)
                time.sleep(0.2)
                others = [pool.submit(endpoint.ask, ASK) for _ in range(2)]
                assert {one.result(), *(other.result() for other in others)} == {"fine"}
    assert all(later - server.times[0] >= 0.69 for later in server.times[1:])
    assert _retry_after({"retry-after-ms": "1500"}) == 1.5
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 3500))
    assert _retry_after({"retry-after": later}) > 3400
    assert _retry_after({"retry-after": "soon"}) == 0


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (
            {"status": 401, "body": b'{"error": {"message": "bad key"}}'},
            TeacherStop,
            r"refuses the key in OPENAI_API_KEY",
        ),
        ({"status": 404, "body": b"{}"}, TeacherStop, "knows no model 'm'"),
        ({"status": 400, "body": b"{}"}, TeacherError, r"refuses the request \(status 400\)"),
        ({"status": 500, "body": b"{}"}, TeacherStop, "still answers with status 500 after 3 retries"),
        ({"status": 429, "headers": {"retry-after": "9000"}, "body": b"{}"}, TeacherStop, "come back in 2.5 hours"),
        (
            {"status": 429, "body": b'{"error": {"message": "pay", "code": "insufficient_quota"}}'},
            TeacherStop,
            "quota is used up",
        ),
        ({"body": b"{"}, TeacherError, "4 replies that can not be read"),
    ],
)
def test_what_stays_wrong_is_told(bad, error, message):
    with pytest.raises(error, match=message):
        ask(lambda number, body: bad)


def test_an_endpoint_that_is_not_there_is_one_sentence():
    with Endpoint(dataclasses.replace(OPTIONS, base_url="http://127.0.0.1:9/v1")) as endpoint:
        with pytest.raises(TeacherStop, match=r"the endpoint http://127.0.0.1:9/v1/ can not be reached .*--base-url"):
            endpoint.ask(ASK)


def test_the_limit_is_never_passed_even_by_requests_at_once():
    price = dict(price_in=0.0, price_out=1250.0)  # so that a reply of 50 tokens costs 1/16
    with ChatServer(lambda number, body: "fine", latency=0.02) as server:
        options = dataclasses.replace(OPTIONS, base_url=server.url, max_tokens=100, spend_limit=1.0, **price)
        with Endpoint(options) as endpoint:
            costs = []
            endpoint.account(lambda usage: costs.append(usage.get("cost", 0)), 0.5)
            with ThreadPoolExecutor(8) as pool:
                futures = [pool.submit(endpoint.ask, ASK) for _ in range(40)]
                errors = [future.exception() for future in futures]
    assert all("spending limit of $1 is reached" in str(error) for error in errors if error)
    # Each may cost 1/8, so of the 1/2 that is left the last 1/16 is not touched.
    assert sum(costs) == 7 / 16
    assert sum(error is None for error in errors) == 7


# ---- the dialogue


def test_replies_of_every_shape():
    assert cut_out(RIGHT).before == "The sum."
    assert cut_out(RIGHT).after == "It adds."
    assert cut_out("def f():\n    return 1\n").code == "def f():\n    return 1\n"
    assert cut_out("Sorry.") is None
    assert cut_out("No code block, sorry, I can not do it.") is None
    assert cut_out("```js\nx\n```\nthen\n```python\ny = 1\n```").code == "y = 1\n"
    assert cut_out("```\na = 1\n```\n```\na = 1\nb = 2\n```").code == "a = 1\nb = 2\n"
    assert cut_out("```python\nx = 1").code == "x = 1\n"  # cut before its end
    assert cut_out("```C++\nint x;\n```", "cpp").code == "int x;\n"
    assert cut_out("text\n```python\n```\n") is None


def test_a_reply_without_a_program_is_asked_for_once_more_and_then_dropped(tmp_path):
    prose = lambda number, body: "I would add them." if len(body["messages"]) == 2 else solve(body)  # noqa: E731
    with ChatServer(prose) as server:
        options = dataclasses.replace(OPTIONS, base_url=server.url)
        with endpoint_teacher(load_templates(), options) as teacher:
            attempt = teacher.attempt(problem(0), random.Random(0), 3)
            assert "return a + b" in attempt.code
            assert [message["role"] for message in attempt.memo] == [
                "system",
                "user",
                "assistant",
            ]  # without the detour
    with ChatServer(lambda number, body: "Never.") as server:
        with pytest.raises(BuildError, match=r"2 dropped: teacher: twice a reply without a program"):
            build(
                [problem(0), problem(1)],
                tmp_path / "out",
                teacher="openai",
                heldout=0,
                options=dataclasses.replace(OPTIONS, base_url=server.url),
            )
    assert not list(tmp_path.iterdir())


def test_traces_of_an_endpoint_with_and_without_tests(tmp_path):
    with ChatServer(latency=0.02) as server:
        options = dataclasses.replace(OPTIONS, base_url=server.url, price_in=1.0, price_out=1.0)
        problems = [problem(number, () if number % 2 else problem(0).tests) for number in range(6)]
        statistics = build(problems, tmp_path / "out", teacher="openai", heldout=1, options=options, workers=1)
    splits = records(tmp_path / "out")
    assert {name: len(found) for name, found in splits.items()} == {"instruction": 5, "reflection": 5, "heldout": 1}
    for record in splits["reflection"]:
        turns = json.loads(record["messages"])
        kinds = [block["type"] for block in turns[1]["content"]]
        assert kinds == ["text", "code", "execution"] * 2
        assert (
            "AssertionError: got -1, expected 3" in turns[1]["content"][2]["content"]
            or "got" in turns[1]["content"][2]["content"]
        )
        assert turns[1]["content"][-1]["content"] == "ok"
        assert turns[3]["content"][0]["content"] == RIGHT.replace("\n```python", "\n\n```python").replace(
            "```\nIt", "```\n\nIt"
        )
        assert json.loads(record["tests"])[0].startswith("assert f(")
        assert record["source"] == "openai"
    assert statistics.usage["requests"] == len(server.bodies) == 6 * 3
    assert statistics.usage["cost"] == pytest.approx(18 * 150 / 1e6)
    assert statistics.attempts == {"failed: AssertionError": 6}
    assert server.most > 1


def test_first_tries_that_pass_are_kept_only_if_asked_for(tmp_path):
    with ChatServer(lambda number, body: RIGHT) as server:
        options = dataclasses.replace(OPTIONS, base_url=server.url)
        with pytest.raises(BuildError, match="dropped: every attempt passed"):
            build([problem(0)], tmp_path / "no", teacher="openai", heldout=0, options=options)
        build([problem(0)], tmp_path / "yes", teacher="openai", heldout=0, options=options, keep_first_try=True)
    assert records(tmp_path / "yes")["reflection"][0]["rounds"] == 0


def test_a_final_answer_that_fails_is_dropped(tmp_path):
    spoiled = lambda number, body: WRONG if "from the beginning" in body["messages"][-1]["content"] else solve(body)  # noqa: E731
    with ChatServer(spoiled) as server:
        with pytest.raises(BuildError, match="1 dropped: the final answer fails"):
            build(
                [problem(0)],
                tmp_path / "out",
                teacher="openai",
                heldout=0,
                options=dataclasses.replace(OPTIONS, base_url=server.url),
            )


def test_money_spent_ends_the_build_and_the_same_command_goes_on(tmp_path):
    problems = [problem(number) for number in range(12)]
    with ChatServer() as server:
        options = dataclasses.replace(
            OPTIONS, base_url=server.url, price_out=1e6 / 1000, max_tokens=60, spend_limit=1.0, concurrency=3
        )
        arguments = dict(teacher="openai", heldout=0, workers=1)
        with pytest.raises(TeacherStop, match=r"spending limit of \$1 is reached .* of 12 problems are done and kept"):
            build(problems, tmp_path / "out", options=options, **arguments)
        assert not (tmp_path / "out").exists()
        spent = len(server.bodies)
        assert 0.9 <= spent * 0.05 <= 1.0
        partial = build(problems, tmp_path / "out", options=options, finish=True, **arguments)
        assert partial.problems["not reached"] >= 1
        assert len(records(tmp_path / "out")["reflection"]) == 12 - partial.problems["not reached"]
        assert partial.usage["cost"] == pytest.approx(spent * 0.05)


def test_an_endpoint_that_goes_down_loses_nothing(tmp_path):
    problems = [problem(number) for number in range(10)]
    down = {"status": 500, "body": b"{}"}
    arguments = dict(teacher="openai", heldout=0, workers=1)
    asked = Counter()
    with ChatServer(lambda number, body: solve(body) if number < 15 or asked["up"] else down) as server:
        options = dataclasses.replace(OPTIONS, base_url=server.url, retries=1, concurrency=2)
        with pytest.raises(TeacherStop, match="still answers with status 500"):
            build(problems, tmp_path / "out", options=options, **arguments)
        asked["up"] = 1
        before = len(server.bodies)
        statistics = build(problems, tmp_path / "out", options=options, **arguments)
        assert statistics.examples["reflection"] == 10
        assert len(server.bodies) - before < 30 - 9  # finished problems were not asked for again
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interrupted_request_ends_at_once():
    with ChatServer(lambda number, body: {"stall": 30, "text": "late"}) as server:
        with Endpoint(dataclasses.replace(OPTIONS, base_url=server.url, timeout=60)) as endpoint:
            with ThreadPoolExecutor(1) as pool:
                future = pool.submit(endpoint.ask, ASK)
                while not server.bodies:
                    time.sleep(0.01)
                started = time.monotonic()
                endpoint.interrupt()
                with pytest.raises(TeacherStop, match="interrupted"):
                    future.result(10)
                assert time.monotonic() - started < 5


def test_the_command_line_stops_at_the_limit_with_one_sentence_and_goes_on(tmp_path):
    path = tmp_path / "p.jsonl"
    tests = ["assert f(1, 2) == 3", "assert f(4, 4) == 8"]
    rows = [{"id": f"p{n}", "prompt": f"Add two numbers, {n} times.", "tests": tests} for n in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with ChatServer() as server:
        flags = ["build", f"--problems={path}", f"--output={tmp_path / 'out'}", "--teacher=openai", "--model=m"]
        flags += [f"--base-url={server.url}", "--price-out=1000", "--max-tokens=60", "--heldout=0", "--concurrency=1"]
        flags += ["--near-duplicates=0", "--workers=1"]
        status, _, err = command(*flags, "--spend-limit=0.35")
        assert status == 1
        assert err.startswith(
            "error: the spending limit of $0.35 is reached ($0.3000 spent, the next request may cost $0.06"
        )
        assert "2 of 4 problems are done and kept: the same command goes on from there" in err
        assert err.count("\n") == 1
        before = len(server.bodies)
        status, out, err = command(*flags, "--spend-limit=5")
        assert status == 0, err
        assert len(server.bodies) - before == 2 * 3
    assert "0.6 cost" in out
    status, _, err = command(*flags[:-2], "--spend-limit=5", "--prompts=none")
    assert status == 1
    status, _, err = command(*[flag for flag in flags if flag != "--model=m"])
    assert "teacher 'openai' needs --model" in err


def test_an_offline_teacher_and_a_model_share_the_problems(tmp_path):
    problems = [
        dataclasses.replace(problem(number), solution="def f(a, b):\n    return a + b\n") for number in range(8)
    ]
    with ChatServer() as server:
        options = dataclasses.replace(OPTIONS, base_url=server.url)
        build(problems, tmp_path / "out", teacher="bugs,openai", heldout=0, options=options, workers=1)
    assert Counter(record["source"] for record in records(tmp_path / "out")["reflection"]) == {"bugs": 4, "openai": 4}
