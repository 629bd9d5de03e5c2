"""Which teachers there are, and what they need to be made."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager

from data_gen.teachers import Teacher
from data_gen.teachers.bugs import BugTeacher
from data_gen.templates import Templates


@dataclasses.dataclass(frozen=True)
class TeacherOptions:
    """Settings of the teachers that are models.

    Attributes:
      model: the name that the endpoint knows, or the directory or hub id of a checkpoint.
      base_url: of an OpenAI-compatible endpoint; "" is the client's own default.
      key_variable: environment variable that holds the key.
      temperature: of sampling; 0 takes the most likely words.
      max_tokens: most tokens of one reply.
      tries: first attempts that may pass at once before a problem is given up.
      concurrency: problems worked on at the same time.
      timeout: seconds without a byte from the endpoint.
      retries: further tries of one request.
      backoff: seconds before the first of them; doubles each time, up to 60.
      stream: ask for the reply piece by piece, so that ``timeout`` is between pieces.
      price_in, price_out: dollars a million tokens.
      spend_limit: dollars, spent by this build in all its runs; None: no limit.
      context_tokens: longest prompt and reply of a checkpoint together.
    """

    model: str = ""
    base_url: str = ""
    key_variable: str = "OPENAI_API_KEY"
    temperature: float = 0.7
    max_tokens: int = 2048
    tries: int = 2
    concurrency: int = 32
    timeout: float = 120.0
    retries: int = 8
    backoff: float = 1.0
    stream: bool = False
    price_in: float = 0.0
    price_out: float = 0.0
    spend_limit: float | None = None
    context_tokens: int = 4096

    def decisive(self) -> dict[str, object]:
        """Those that the records follow from."""
        names = ("model", "base_url", "temperature", "max_tokens", "tries")
        return {name: getattr(self, name) for name in names}


def _endpoint(templates: Templates, options: TeacherOptions) -> AbstractContextManager[Teacher]:
    from data_gen.teachers.endpoint import endpoint_teacher  # late: needs the optional client

    return endpoint_teacher(templates, options)


def _checkpoint(templates: Templates, options: TeacherOptions) -> AbstractContextManager[Teacher]:
    from data_gen.teachers.checkpoint import checkpoint_teacher  # late: imports jax

    return checkpoint_teacher(templates, options)


def _bugs(name: str, omissions: bool | None) -> Callable[[Templates, TeacherOptions], AbstractContextManager[Teacher]]:
    return lambda templates, _: contextlib.nullcontext(BugTeacher(templates, name=name, omissions=omissions))


TEACHERS: dict[str, Callable[[Templates, TeacherOptions], AbstractContextManager[Teacher]]] = {
    "bugs": _bugs("bugs", None),
    "omissions": _bugs("omissions", True),
    "slips": _bugs("slips", False),
    "openai": _endpoint,
    "checkpoint": _checkpoint,
}
OFFLINE = ("bugs", "omissions", "slips")  # cost CPU time alone, so they run in processes


def make_teacher(name: str, templates: Templates, options: TeacherOptions) -> AbstractContextManager[Teacher]:
    """The teacher ``name``, for the length of a ``with`` block."""
    return TEACHERS[name](templates, options)
