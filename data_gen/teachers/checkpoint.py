"""The teacher ``checkpoint``: a model on this machine, through batched decode; a model may so build its own traces.

One that was trained on traces writes blocks: it is interrupted where it wants to see an execution, is given the real
one, and goes on. Another one is asked as a chat model is. ``rcjax.continuation`` runs either; it is imported late and
by name, so that ``data_gen`` depends on it only where a model is asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import random
from collections.abc import Callable, Iterator, Sequence

from data_gen.problems import Problem
from data_gen.reflection import SUCCESS
from data_gen.sandbox import Outcome
from data_gen.teachers import Attempt, TeacherError, TeacherStop
from data_gen.teachers.batching import Batcher
from data_gen.teachers.chat import ChatTeacher
from data_gen.teachers.choice import TeacherOptions
from data_gen.teachers.code_blocks import cut_out, fenced
from data_gen.templates import Templates
from rcjax.blocks import Block, BlockType, Message

Dialogue = tuple[tuple[Message, ...], tuple[Block, ...]]


@dataclasses.dataclass(frozen=True)
class BlockTeacher:
    """A model of the training format.

    ``write`` gives the next blocks of a dialogue. ``Attempt.memo`` is the finished turns and the blocks of the open one
    before the attempt's program.
    """

    write: Callable[[Dialogue], Sequence[Block] | None]
    templates: Templates
    name: str = "checkpoint"
    tries: int = 1
    needs_reference: bool = False

    def attempt(self, problem: Problem, rng: random.Random, rounds: int) -> Attempt | None:
        """The first blocks behind the reflection instruction."""
        asked = self.templates.fill("reflection", rng, problem=rng.choice(problem.prompts))
        return self._attempt(problem, ((Message("user", (Block(BlockType.TEXT, asked),)),), ()))

    def reflect_and_correct(self, problem: Problem, attempt: Attempt, outcome: Outcome, rng: random.Random) -> Attempt:
        """Goes on behind the execution."""
        turns, blocks = attempt.memo
        told = outcome.feedback.rstrip("\n") or SUCCESS
        return self._attempt(problem, (turns, (*blocks, *_executed(attempt, told))))

    def write_tests(self, problem: Problem, rng: random.Random) -> tuple[str, ...]:
        """None: the format has no such question."""
        return ()

    def re_answer(self, problem: Problem, attempt: Attempt, rng: random.Random) -> str:
        """The answer behind the re-answer instruction; where it holds no program, the attempt, which is right."""
        turns, blocks = attempt.memo
        trace = Message("assistant", (*blocks, *_executed(attempt, SUCCESS)))
        asked = self.templates.fill("problem", rng, problem=rng.choice(problem.prompts))
        written = self.write(((*turns, trace, Message("user", (Block(BlockType.TEXT, asked),))), ()))
        text = "\n".join(block.content for block in written or ())
        return text if cut_out(text, problem.language) else fenced(attempt.code, problem.language)

    def _attempt(self, problem: Problem, dialogue: Dialogue) -> Attempt:
        written = self.write(dialogue)
        if written is None:
            raise TeacherError("a dialogue longer than the model's context")
        codes = [place for place, block in enumerate(written) if block.type == BlockType.CODE and block.content.strip()]
        if not codes:
            raise TeacherError("a turn without a program")
        # What stands behind the program was written without having seen its execution.
        said, program = tuple(written[: codes[0]]), written[codes[0]].content.rstrip("\n") + "\n"
        if problem.all_tests:
            program = _without_asserts(program)
        turns, blocks = dialogue
        text = "\n".join(block.content for block in said).strip()
        return Attempt(text, program, memo=(turns, (*blocks, *said)))


def _executed(attempt: Attempt, told: str) -> tuple[Block, Block]:
    """The program as it was run, the shown tests behind it, and what that answered: as in the traces of training."""
    shown = (attempt.shown or attempt.code).rstrip("\n")
    return Block(BlockType.CODE, shown), Block(BlockType.EXECUTION, told)


def _without_asserts(program: str) -> str:
    """``program`` without the asserts at its end: in traces CODE blocks show tests, which the model can only guess."""
    lines = program.rstrip("\n").split("\n")
    while len(lines) > 1 and (lines[-1].startswith("assert ") or not lines[-1].strip()):
        lines.pop()
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def checkpoint_teacher(templates: Templates, options: TeacherOptions) -> Iterator[BlockTeacher | ChatTeacher]:
    """The teacher ``checkpoint``; greedy, so that it says the same again on one machine.

    Raises:
      TeacherStop: the model can not be read or is of no use.
    """
    continuation = importlib.import_module("rcjax.continuation")
    try:
        partner = continuation.open_partner(options.model, options.max_tokens, options.context_tokens)
    except (ValueError, OSError) as error:
        raise TeacherStop(f"--model={options.model}: {str(error).splitlines()[0]}") from error
    if partner.codec is not None:
        with Batcher(partner.blocks, options.concurrency) as batcher:
            yield BlockTeacher(batcher.ask, templates, tries=1)
        return
    with Batcher(partner.chat, options.concurrency) as batcher:

        def ask(messages: Sequence[dict[str, str]]) -> str:
            reply = batcher.ask(messages)
            if reply is None:
                raise TeacherError("a dialogue longer than the model's context")
            return reply

        yield ChatTeacher("checkpoint", ask, templates, tries=1)
