"""Requests a second to a chat endpoint, 200 at a time, against what the endpoint's latency allows.

    python -m benchmarks.endpoint_throughput [--concurrency=200] [--latency 0.05 0.5] [--requests=2000] [--rounds=3]

The endpoint is a bare asyncio server in a process of its own that answers after the given latency. Contestants take
turns: our endpoint teacher (official client, retries, accounts), the official client alone, and a bare client that
writes the bytes itself and so shows what server and machine allow. Ideal: concurrency / latency.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator

from benchmarks import harness

REPLY = "The sum.\n```python\ndef f(a, b):\n    return a + b\n```\n" + "It adds both. " * 20
MESSAGES = [
    {"role": "system", "content": "You are an expert programmer. " * 5},
    {"role": "user", "content": "Add the two numbers. " * 40},
]


def serve(latency: float) -> None:
    """Serves chat completions until killed; prints its port."""
    message = {"role": "assistant", "content": REPLY}
    body = json.dumps(
        {
            "id": "c",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 200, "completion_tokens": 90, "total_tokens": 290},
        }
    ).encode()
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport, self.waiting = transport, b""

        def data_received(self, data: bytes) -> None:
            self.waiting += data
            while (end := self.waiting.find(b"\r\n\r\n")) >= 0:
                head = self.waiting[:end].lower()
                length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
                if len(self.waiting) < end + 4 + length:
                    return
                self.waiting = self.waiting[end + 4 + length :]
                asyncio.get_running_loop().call_later(latency, self.transport.write, answer)

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Protocol, "127.0.0.1", 0, backlog=1024)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(run())


@contextlib.contextmanager
def server(latency: float) -> Iterator[int]:
    """The port of a server in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.endpoint_throughput", f"--serve={latency}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


async def drive(one: Callable[[], Awaitable[None]], concurrency: int, requests: int) -> float:
    """Seconds that ``requests`` calls take, ``concurrency`` at a time."""
    left = iter(range(requests))

    async def lane() -> None:
        for _ in left:
            await one()

    started = time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(concurrency)))
    return time.perf_counter() - started


def ours(port: int, concurrency: int, requests: int) -> float:
    """The teacher's endpoint, on its own loop."""
    from data_gen.teachers.choice import TeacherOptions
    from data_gen.teachers.endpoint import Endpoint

    options = TeacherOptions(model="m", base_url=f"http://127.0.0.1:{port}/v1", concurrency=concurrency, price_out=1.0)
    with Endpoint(options) as endpoint:

        async def one() -> None:
            if await endpoint.reply(MESSAGES) != REPLY:
                raise RuntimeError("a wrong reply; the figures would mean nothing")

        def run(count: int) -> float:
            return asyncio.run_coroutine_threadsafe(drive(one, concurrency, count), endpoint._loop).result()

        run(concurrency)  # connections
        return run(requests)


def client_alone(port: int, concurrency: int, requests: int) -> float:
    """The official client with nothing around it."""
    import openai

    async def run() -> float:
        async with openai.AsyncOpenAI(api_key="x", base_url=f"http://127.0.0.1:{port}/v1", max_retries=0) as client:

            async def one() -> None:
                await client.chat.completions.create(model="m", messages=MESSAGES)

            await drive(one, concurrency, concurrency)
            return await drive(one, concurrency, requests)

    return asyncio.run(run())


def bare(port: int, concurrency: int, requests: int) -> float:
    """Sockets and ready-made bytes: what machine and server allow."""
    body = json.dumps({"model": "m", "messages": MESSAGES}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()

    async def run() -> float:
        free = [await asyncio.open_connection("127.0.0.1", port) for _ in range(concurrency)]

        async def one() -> None:
            reader, writer = free.pop()
            writer.write(head + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(answer.split(b"content-length: ")[1].split(b"\r\n")[0]))
            free.append((reader, writer))

        seconds = await drive(one, concurrency, requests)
        for _, writer in free:
            writer.close()
        return seconds

    return asyncio.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--concurrency", type=int, default=200, help="requests at a time (default 200)")
    parser.add_argument("--latency", type=float, nargs="+", default=[0.05, 0.5], help="seconds (0.05 0.5)")
    parser.add_argument("--requests", type=int, default=2000, help="requests a round, at most 10 s of them (2000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the median counts (default 3)")
    flags = parser.parse_args()
    if flags.serve is not None:
        serve(flags.serve)
        return
    contestants = {"ours": ours, "official client alone": client_alone, "bare sockets": bare}
    rows = []
    for latency in flags.latency:
        ideal = flags.concurrency / latency
        requests = min(
            flags.requests, max(flags.concurrency, round(10 * ideal) // flags.concurrency * flags.concurrency)
        )
        with server(latency) as port:
            rates: dict[str, list[float]] = {name: [] for name in contestants}
            for _ in range(flags.rounds):
                for name, run in contestants.items():
                    rates[name].append(requests / run(port, flags.concurrency, requests))
        for name, found in rates.items():
            rate = sorted(found)[len(found) // 2]
            rows.append({"latency, s": latency, "client": name, "requests/s": round(rate, 1), "of ideal": rate / ideal})
    harness.record(
        "endpoint_throughput",
        f"Requests to a chat endpoint, {flags.concurrency} at a time",
        rows,
        concurrency=flags.concurrency,
        requests=flags.requests,
    )


if __name__ == "__main__":
    main()
