"""A real HTTP server on loopback that speaks the chat completions protocol, well or badly as a test wants it."""

import asyncio
import contextlib
import json
import re
import threading
import time

RIGHT = "The sum.\n```python\ndef f(a, b):\n    return a + b\n```\nIt adds."
WRONG = "I subtract.\n```python\ndef f(a, b):\n    return a - b\n```"
TESTED = "\n\nassert f(1, 2) == 3\nassert f(0, 0) == 0\n```"


def solve(body):
    """A model that subtracts first and adds when it has seen feedback; asserts where it is asked for them."""
    said = [message["content"] for message in body["messages"]]
    users = [message["content"] for message in body["messages"] if message["role"] == "user"]
    untested = any("End it with several assertions" in text for text in users)
    if "from the beginning" in said[-1]:
        return RIGHT
    text = RIGHT if len(users) > 1 else WRONG
    return text.split("\nIt adds")[0].replace("\n```", TESTED).replace(TESTED, "\n```", 1) if untested else text


class ChatServer:
    """``with ChatServer(script) as server``: ``server.url`` is the base URL.

    ``script(number, body)`` gives what request ``number`` gets: a text (the reply), a dict of ``status``, ``headers``,
    ``body`` (bytes), ``stall`` (seconds of silence), ``cut`` (drop the stream after so many pieces), ``usage``.
    """

    def __init__(self, script=lambda number, body: solve(body), latency=0.0):
        self.script, self.latency = script, latency
        self.bodies, self.times, self.headers = [], [], []
        self.most = self.now = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready = threading.Event()

    def _run(self):
        asyncio.set_event_loop(self._loop)
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()

    async def _serve(self, reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int(re.search(r"(?i)content-length: (\d+)", head)[1])
                body = json.loads(await reader.readexactly(length))
                number = len(self.bodies)
                self.bodies.append(body)
                self.headers.append(head)
                self.times.append(time.monotonic())
                self.now += 1
                self.most = max(self.most, self.now)
                await asyncio.sleep(self.latency)
                try:
                    await self._answer(writer, body, self.script(number, body))
                finally:
                    self.now -= 1
        writer.close()

    async def _answer(self, writer, body, reply):
        reply = reply if isinstance(reply, dict) else {"text": reply}
        await asyncio.sleep(reply.get("stall", 0))
        usage = reply.get("usage", {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150})
        if "text" not in reply:
            self._send(writer, reply.get("status", 200), reply.get("headers", {}), reply.get("body", b""))
        elif body.get("stream"):
            await self._stream(writer, reply, usage)
        else:
            message = {"role": "assistant", "content": reply["text"]}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            whole = {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
            self._send(writer, 200, {}, json.dumps(whole | ({"usage": usage} if usage else {})).encode())
        await writer.drain()

    def _send(self, writer, status, headers, data):
        headers = {"content-type": "application/json", "content-length": len(data), **headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode() + data)

    async def _stream(self, writer, reply, usage):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")

        def event(data):
            data = f"data: {data}\n\n".encode()
            writer.write(b"%x\r\n%s\r\n" % (len(data), data))

        text, base = reply["text"], {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m"}
        for place, start in enumerate(range(0, len(text), 7)):
            if place == reply.get("cut"):
                writer.close()
                return
            await asyncio.sleep(reply.get("pause", 0))
            delta = {"index": 0, "delta": {"content": text[start : start + 7]}, "finish_reason": None}
            event(json.dumps(base | {"choices": [delta]}))
            await writer.drain()
        event(json.dumps(base | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
        if usage:
            event(json.dumps(base | {"choices": [], "usage": usage}))
        event("[DONE]")
        writer.write(b"0\r\n\r\n")

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
