"""The teacher ``openai``: any OpenAI-compatible chat endpoint, through the official client.

Problems are worked on by threads; their requests run on one asyncio loop with one connection pool. Retries are our own
and not the client's, for three reasons: a Retry-After of minutes is honoured and holds every request back, not one;
replies that are broken (no JSON, no choices, a stream cut short) are retried like those that failed; each is counted.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import email.utils
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from data_gen.teachers import TeacherError, TeacherStop
from data_gen.teachers.chat import ChatTeacher, Message
from data_gen.teachers.choice import TeacherOptions
from data_gen.templates import Templates

LONGEST_PAUSE = 60.0  # seconds that a growing backoff stops at; a Retry-After may be longer
PATIENCE = 3600.0  # a longer Retry-After ends the build instead
PASSING = (408, 409, 429, *range(500, 600))  # statuses that may be otherwise the next time
CHARACTERS_A_TOKEN = 3.0  # few, so that an estimate errs upwards


class _Broken(Exception):
    """A reply that came but can not be used."""


@dataclasses.dataclass
class _Ledger:
    """What was spent, and what requests on their way may still cost; never more than the limit together."""

    options: TeacherOptions
    spend: Callable[[Mapping[str, float]], None] = lambda usage: None
    spent: float = 0.0
    held: float = 0.0

    def __post_init__(self) -> None:
        self.changed = asyncio.Condition()

    def price(self, prompt: float, completion: float) -> float:
        """Dollars for so many tokens."""
        return (prompt * self.options.price_in + completion * self.options.price_out) / 1e6

    async def hold(self, messages: Sequence[Message]) -> float:
        """Sets aside what a request may cost at most; waits for others where there is not enough.

        Raises:
          TeacherStop: the limit does not allow it.
        """
        limit = self.options.spend_limit
        most = self.price(estimate(messages), self.options.max_tokens)
        async with self.changed:
            while limit is not None and self.spent + self.held + most > limit:
                if not self.held:
                    raise TeacherStop(
                        f"the spending limit of ${limit:g} is reached (${self.spent:.4f} spent, the next request may "
                        f"cost ${most:.4f}); raise --spend-limit"
                    )
                await self.changed.wait()
            self.held += most
        return most

    async def settle(self, held: float, usage: Mapping[str, float]) -> None:
        """Gives back what was set aside and notes what it came to."""
        async with self.changed:
            self.held = max(0.0, self.held - held)
            if abs(self.held) < 1e-12:
                self.held = 0.0
            self.spent += usage.get("cost", 0.0)
            self.changed.notify_all()
        self.spend(usage)


def estimate(messages: Sequence[Message]) -> float:
    """Tokens of a request, rather too many."""
    return sum(len(message["content"].encode()) / CHARACTERS_A_TOKEN + 8 for message in messages)


class Endpoint:
    """Chat completions from threads; a context manager that owns the loop, the client and its connections."""

    def __init__(self, options: TeacherOptions):
        """Raises ``TeacherStop`` where the client is not installed or no key is set."""
        try:
            import openai
        except ImportError as error:
            raise TeacherStop(
                "teacher openai needs the official client; pip install -r requirements-data.txt"
            ) from error
        self._openai, self._options = openai, options
        key = os.environ.get(options.key_variable, "")
        if not key and not options.base_url:
            raise TeacherStop(f"environment variable {options.key_variable} is not set; put the endpoint's key into it")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._client = openai.AsyncOpenAI(
            api_key=key or "none",  # local servers ask for none
            base_url=options.base_url or None,
            timeout=options.timeout,
            max_retries=0,
            http_client=_quick_transport(openai, options),
        )
        self._ledger = _Ledger(options)
        self._resume = 0.0  # no request before this time
        self._retries = 0
        self._random = random.Random()
        self._stop: TeacherStop | None = None

    def account(self, spend: Callable[[Mapping[str, float]], None], spent: float) -> None:
        """Tells ``spend`` of every request's cost, from the loop's thread; ``spent`` was spent before."""
        self._ledger.spend, self._ledger.spent = spend, spent

    def interrupt(self) -> None:
        """Ends waiting requests, and those on their way."""
        self._stop = self._stop or TeacherStop("interrupted")

        def cancel() -> None:
            for task in asyncio.all_tasks(self._loop):
                task.cancel()

        if self._loop.is_running():
            self._loop.call_soon_threadsafe(cancel)

    def __enter__(self) -> Endpoint:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.interrupt()
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._client.close(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        if not self._loop.is_running():
            self._loop.close()

    def ask(self, messages: Sequence[Message]) -> str:
        """The reply to ``messages``; may be called from many threads.

        Raises:
          TeacherStop: the endpoint can not be reached, refuses the key, knows no such model; or the money is spent.
          TeacherError: it refuses this request, or its reply stays unusable.
        """
        try:
            return asyncio.run_coroutine_threadsafe(self.reply(messages), self._loop).result()
        except concurrent.futures.CancelledError as error:
            raise self._stop or TeacherStop("interrupted") from error

    async def reply(self, messages: Sequence[Message]) -> str:
        """``ask`` for callers on the endpoint's loop."""
        held = await self._ledger.hold(messages)
        usage: dict[str, float] = {"requests": 1}
        tries = 0
        try:
            while True:
                await self._pause()
                try:
                    text, used = await self._request(messages)
                    prompt, completion = used
                    usage |= {"prompt_tokens": prompt, "completion_tokens": completion}
                    usage["cost"] = self._ledger.price(prompt, completion)
                    return text
                except Exception as error:
                    wait = self._after(error, tries)
                tries += 1
                usage["retries"] = tries
                await self._sleep(wait)
        finally:
            await self._ledger.settle(held, usage)

    def _after(self, error: Exception, tries: int) -> float:
        """Seconds to wait before the next try; raises where there is none."""
        openai, options = self._openai, self._options
        where = str(self._client.base_url)
        last = tries >= options.retries
        # Full jitter: many requests that failed together must not come back together.
        wait = min(LONGEST_PAUSE, options.backoff * 2**tries) * (0.5 + self._random.random() / 2)
        if isinstance(error, openai.APIStatusError) and error.status_code not in PASSING:
            said = _said(error)
            if error.status_code in (401, 403):
                self._fail(f"the endpoint {where} refuses the key in {options.key_variable} ({said})")
            if error.status_code == 404:
                self._fail(
                    f"the endpoint {where} knows no model {options.model!r} ({said}); see --model and --base-url"
                )
            raise TeacherError(f"the endpoint refuses the request (status {error.status_code})") from error
        if isinstance(error, openai.APIStatusError):
            if error.status_code == 429 and getattr(error, "code", "") == "insufficient_quota":
                self._fail(f"the endpoint {where} says that the account's quota is used up ({_said(error)})")
            if asked := _retry_after(error.response.headers):
                if asked > PATIENCE:
                    self._fail(f"the endpoint {where} asks to come back in {asked / 3600:.1f} hours")
                self._resume = max(self._resume, time.monotonic() + asked)  # for every request, not for this one alone
                wait = 0.0
            if last:
                self._fail(f"the endpoint {where} still answers with status {error.status_code} after {tries} retries")
        elif isinstance(error, openai.APITimeoutError) and type(error.__cause__).__name__ != "ConnectTimeout":
            if last:
                self._fail(f"the endpoint {where} has not answered within {options.timeout:g} s in {tries + 1} tries")
        elif isinstance(error, openai.APIConnectionError):
            if last:
                cause = error.__cause__ or error
                self._fail(f"the endpoint {where} can not be reached ({cause}); see --base-url")
        elif isinstance(error, _Broken | json.JSONDecodeError | openai.APIError):
            if last:
                raise TeacherError(f"{tries + 1} replies that can not be read") from error
        else:
            raise error
        return wait

    def _fail(self, what: str) -> None:
        self._stop = self._stop or TeacherStop(what)
        raise self._stop

    async def _pause(self) -> None:
        await self._sleep(max(0.0, self._resume - time.monotonic()))

    async def _sleep(self, seconds: float) -> None:
        """In short naps, so that the end of the build is noticed."""
        until = time.monotonic() + seconds
        while True:
            if self._stop is not None:
                raise self._stop
            left = until - time.monotonic()
            if left <= 0:
                return
            await asyncio.sleep(min(left, 0.2))

    async def _request(self, messages: Sequence[Message]) -> tuple[str, tuple[float, float]]:
        """(text, (prompt tokens, completion tokens)) of one request."""
        options = self._options
        arguments: dict[str, Any] = {
            "model": options.model,
            "messages": list(messages),
            "temperature": options.temperature,
            "max_tokens": options.max_tokens,
        }
        text, usage = await (self._streamed(arguments) if options.stream else self._whole(arguments))
        if not text or not text.strip():
            raise _Broken("an empty reply")
        if usage.get("completion_tokens") is not None:
            return text, (float(usage.get("prompt_tokens") or 0), float(usage["completion_tokens"]))
        return text, (estimate(messages), len(text.encode()) / CHARACTERS_A_TOKEN)

    async def _whole(self, arguments: dict[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
        # The client's plain form of a request: to put messages into its types and the reply back costs as much time as
        # everything else.
        reply = await self._client.post("/chat/completions", cast_to=object, body=arguments)
        try:
            return reply["choices"][0]["message"]["content"], reply.get("usage") or {}
        except (TypeError, KeyError, IndexError, AttributeError) as error:
            raise _Broken("no choices") from error

    async def _streamed(self, arguments: dict[str, Any]) -> tuple[str, Mapping[str, Any]]:
        parts: list[str] = []
        finish = usage = None
        stream = await self._client.chat.completions.create(
            **arguments, stream=True, stream_options={"include_usage": True}
        )
        async with stream:
            try:
                async for chunk in stream:
                    usage = chunk.usage or usage
                    for choice in chunk.choices[:1]:
                        parts.append((choice.delta.content if choice.delta else "") or "")
                        finish = choice.finish_reason or finish
            except self._openai.APIError:
                raise
            except Exception as error:
                # The client wraps what goes wrong before the first byte, but not what happens within the stream.
                if "Timeout" in type(error).__name__:
                    raise self._openai.APITimeoutError(request=stream.response.request) from error
                raise _Broken(f"a stream that broke off ({error})") from error
        if finish is None:
            raise _Broken("a stream cut short")
        return "".join(parts), usage.model_dump() if usage else {}


def _quick_transport(openai: Any, options: TeacherOptions) -> Any:
    """aiohttp under the client where it is installed; None: the client's own, which is slow with many connections."""
    try:
        return openai.DefaultAioHttpClient(timeout=options.timeout)
    except (RuntimeError, ImportError, AttributeError):  # an older client, or one without the extra
        return None


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds of the header Retry-After (a number or a date) or retry-after-ms; 0 where there is none."""
    with contextlib.suppress(KeyError, ValueError):
        return max(0.0, float(headers["retry-after-ms"]) / 1000)
    value = headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def _said(error: Any) -> str:
    return str(getattr(error, "message", error)).strip()[:200]


@dataclasses.dataclass(frozen=True)
class EndpointTeacher(ChatTeacher):
    """A ``ChatTeacher`` whose requests cost money."""

    endpoint: Endpoint | None = None

    def account(self, spend: Callable[[Mapping[str, float]], None], spent: float) -> None:
        """See ``Endpoint.account``."""
        self.endpoint.account(spend, spent)

    def interrupt(self) -> None:
        """See ``Endpoint.interrupt``."""
        self.endpoint.interrupt()


@contextlib.contextmanager
def endpoint_teacher(templates: Templates, options: TeacherOptions) -> Iterator[EndpointTeacher]:
    """The teacher ``openai``."""
    with Endpoint(options) as endpoint:
        yield EndpointTeacher("openai", endpoint.ask, templates, options.tries, endpoint=endpoint)
