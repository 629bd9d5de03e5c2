"""A teacher that is a chat model: what it is told (``data_gen/prompts/chat_*.txt``) and what is read from its replies.

Where the model runs is nothing to this module: ``ask`` takes a list of messages and gives the reply.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence

from data_gen.formats import title
from data_gen.problems import Problem
from data_gen.reflection import SUCCESS, own_tests
from data_gen.sandbox import Outcome
from data_gen.teachers import Attempt, TeacherError
from data_gen.teachers.code_blocks import Said, cut_out, fenced
from data_gen.templates import Templates

Message = dict[str, str]
Ask = Callable[[Sequence[Message]], str]


@dataclasses.dataclass(frozen=True)
class ChatTeacher:
    """See the module's text.

    ``Attempt.memo`` is the dialogue so far, the reply that holds the attempt included.
    """

    name: str
    ask: Ask
    templates: Templates
    tries: int = 1
    needs_reference: bool = False

    def attempt(self, problem: Problem, rng: random.Random, rounds: int) -> Attempt | None:
        """A first program: with the problem's tests in view, or, where it has none, with assertions of its own."""
        values = {"problem": rng.choice(problem.prompts), "tests": "\n".join(problem.tests)}
        name = "chat_attempt" if problem.all_tests else "chat_attempt_untested"
        dialogue = (
            {"role": "system", "content": self._fill("chat_system", problem, rng)},
            {"role": "user", "content": self._fill(name, problem, rng, **values)},
        )
        return self._attempt(dialogue, problem, rng)

    def reflect_and_correct(self, problem: Problem, attempt: Attempt, outcome: Outcome, rng: random.Random) -> Attempt:
        """Shows the feedback and reads the reflection and the corrected program."""
        asked = self._fill("chat_correction", problem, rng, feedback=outcome.feedback.rstrip("\n"))
        return self._attempt((*attempt.memo, {"role": "user", "content": asked}), problem, rng)

    def write_tests(self, problem: Problem, rng: random.Random) -> tuple[str, ...]:
        """Asserts for a problem, asked for in a dialogue of their own (Python)."""
        values = {"problem": problem.prompts[0], "entry_point": problem.entry_point}
        dialogue = (
            {"role": "system", "content": self._fill("chat_system", problem, rng)},
            {"role": "user", "content": self._fill("chat_tests", problem, rng, **values)},
        )
        said = cut_out(self.ask(dialogue), problem.language)
        return own_tests(said.code, problem.language) if said else ()

    def re_answer(self, problem: Problem, attempt: Attempt, rng: random.Random) -> str:
        """The final answer, asked for behind the whole dialogue; its program in one fence."""
        asked = self._fill("chat_answer", problem, rng, problem=problem.prompts[0])
        dialogue = (*attempt.memo, {"role": "user", "content": f"{SUCCESS}\n\n{asked}"})
        said, _ = self._program(dialogue, problem, rng)
        parts = (said.before, fenced(said.code, problem.language), said.after)
        return "\n\n".join(part for part in parts if part)

    def _attempt(self, dialogue: tuple[Message, ...], problem: Problem, rng: random.Random) -> Attempt:
        said, reply = self._program(dialogue, problem, rng)
        return Attempt(said.before or said.after, said.code, memo=(*dialogue, {"role": "assistant", "content": reply}))

    def _program(self, dialogue: tuple[Message, ...], problem: Problem, rng: random.Random) -> tuple[Said, str]:
        """The program in a reply. One without is asked for once more; the first, useless reply is then forgotten."""
        reply = self.ask(dialogue)
        said = cut_out(reply, problem.language)
        if said is None:
            wish = {"role": "user", "content": self._fill("chat_repair", problem, rng)}
            reply = self.ask((*dialogue, {"role": "assistant", "content": reply}, wish))
            said = cut_out(reply, problem.language)
            if said is None:
                raise TeacherError("twice a reply without a program")
        return said, reply

    def _fill(self, name: str, asked: Problem, rng: random.Random, /, **values: str) -> str:
        language = asked.language if name != "chat_system" else title(asked.language)
        return self.templates.fill(name, rng, language=language, **values)
