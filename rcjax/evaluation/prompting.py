"""How a model is asked for a program, and how its answer becomes one.

Three ways, by what the model's tokenizer knows (``--prompt_format`` overrides):

  blocks      our block tokens: a user turn, and the assistant's turn opened with ```` ```python ````, as the reference.
  chat        a chat template of its own, such as ChatML: the same words through the template, the fence opened too.
  completion  neither: a base model goes on with the function head or the docstring itself.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rcjax.blocks import ASSISTANT, BLOCK_MARKERS, END_OF_BLOCK, END_OF_MESSAGE, ROLE_MARKERS, SPECIAL_TOKENS, BlockType
from rcjax.evaluation import sanitize

if TYPE_CHECKING:
    from rcjax.evaluation.benchmarks import Task

FORMATS = ("blocks", "chat", "completion")

# Name in prose, and tag of a fence.
_NAMES = {
    "python": ("Python", "python"),
    "cpp": ("C++", "cpp"),
    "java": ("Java", "java"),
    "js": ("Javascript", "js"),
    "ts": ("Typescript", "ts"),
    "php": ("PHP", "php"),
    "sh": ("Bash", "sh"),
    "rs": ("Rust", "rs"),
    "rust": ("Rust", "rust"),
    "go": ("Go", "go"),
    "pl": ("Perl", "perl"),
    "rb": ("Ruby", "ruby"),
    "lua": ("Lua", "lua"),
    "r": ("R", "r"),
}
# Where a translated task's function ends with the brace in the first column, the tests do not close it.
_CLOSED_BY_BRACE = ("js", "ts", "php")
_COMPLETION_STOPS = ("\nif __name__", "\ndef main(", "\nprint(", "\n```")
_TEXT, _CODE, _EXECUTION = (BLOCK_MARKERS[kind] for kind in (BlockType.TEXT, BlockType.CODE, BlockType.EXECUTION))


class PromptError(ValueError):
    """A model that can not be asked in the way that was named; the message says why."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What a model is given for one sample, and how its answer is read.

    Attributes:
      ids: token ids.
      text: the same in words, markers spelled out.
      head: what the program begins with, before the code of the answer.
      tail: what it ends with.
      stops: strings that end the code.
      opened: whether the answer begins inside of a fence.
      continues: whether the code goes on with the last line of ``head``, and is not an answer with a fence.
      whole: whether the answer is read to its end, since what counts may stand anywhere in it.
    """

    ids: tuple[int, ...]
    text: str
    head: str = ""
    tail: str = ""
    stops: tuple[str, ...] = ()
    opened: bool = False
    continues: bool = False
    whole: bool = False

    def code(self, answer: str) -> str:
        """What the model itself wrote of the program."""
        if self.continues:
            return sanitize.continuation(answer, opened=self.opened, stops=self.stops)
        return sanitize.fenced_code(_code_block(answer), opened=self.opened, stops=self.stops) + "\n"

    def program(self, answer: str) -> str:
        """The whole program, as it is scored."""
        return self.head + self.code(answer) + self.tail

    def complete(self, answer: str) -> bool:
        """Whether an answer, as far as it is written, may end here: nothing behind it changes the program."""
        if self.whole:
            return False
        if self.continues and not self.opened:
            return sanitize.has_stopped(answer, self.stops)
        return sanitize.is_complete(answer, opened=self.opened, stops=self.stops)


@dataclasses.dataclass(frozen=True)
class Attempt:
    """Code that failed, and what running it gave: what a next round starts from."""

    code: str
    feedback: str


class Prompter:
    """Prompts in the form that a tokenizer calls for.

    Args:
      tokenizer: a fast tokenizer.
      format: one of ``FORMATS``; None chooses.
      eos_ids: further tokens that end an answer (of ``generation_config.json``).

    Raises:
      PromptError: ``format`` needs what the tokenizer lacks.
    """

    def __init__(self, tokenizer: Any, format: str | None = None, eos_ids: Sequence[int] = ()):
        known = tokenizer.get_vocab()
        has_blocks = all(token in known for token in SPECIAL_TOKENS)
        possible = {"blocks": has_blocks, "chat": bool(tokenizer.chat_template), "completion": True}
        self.format = format or next(name for name, fits in possible.items() if fits)
        if self.format not in possible:
            raise PromptError(f"--prompt_format={self.format} is unknown; use one of {', '.join(FORMATS)}")
        if not possible[self.format]:
            lacks = "block tokens" if self.format == "blocks" else "chat template"
            fits = " or ".join(name for name, fits in possible.items() if fits)
            raise PromptError(f"--prompt_format={self.format}: the model's tokenizer has no {lacks}; use {fits}")
        self._tokenizer = tokenizer
        self._codec = None
        stops = {*eos_ids} | ({tokenizer.eos_token_id} - {None})
        if self.format == "blocks":
            from rcjax.hf.tokenizer import codec

            self._codec = codec(tokenizer)
            stops |= {self._codec.special_ids[END_OF_MESSAGE], self._codec.special_ids[_EXECUTION]}
        self.stop_ids = tuple(sorted(stops))
        self._end_of_block = (self._codec.special_ids[END_OF_BLOCK],) if self._codec else ()

    def stop_ids_of(self, round: int) -> tuple[int, ...]:
        """Tokens that end an answer of a round, from 1: a first one is one block, a mended one may be several."""
        return self.stop_ids + (self._end_of_block if round == 1 else ())

    def decode(self, ids: Sequence[int]) -> str:
        """An answer as text; markers that close it are left out, those between its blocks are spelled."""
        if self._codec is None:
            return self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        names = {number: token for token, number in self._codec.special_ids.items()}
        names |= {self._codec.bos_id: "", self._codec.eos_id: "", self._codec.pad_id: ""}
        # Block by block: a tokenizer may treat what follows a marker otherwise than what follows a word.
        text, run = [], []
        for token in (*ids, None):
            if token is not None and token not in names:
                run.append(token)
                continue
            text += [self._codec.decode(run) if run else "", names.get(token, "")]
            run = []
        return "".join(text)

    def prompt(self, task: Task, attempts: Sequence[Attempt] = ()) -> Prompt:
        """The prompt of a task, behind earlier attempts where there are any."""
        if self.format == "completion":
            return self._completion(task, attempts)
        _, tag = _NAMES.get(task.language, (task.language, task.language))
        ask = statement(task)
        # Another language's answer goes on with the function head: the tests are made for what begins like it.
        continues = task.language != "python" and bool(task.stop)
        opening = f"```{tag}\n{task.prompt if continues else ''}"
        if self.format == "blocks":
            parts = [(ROLE_MARKERS["user"], _TEXT), ask, (END_OF_BLOCK, END_OF_MESSAGE, ASSISTANT)]
            for attempt in attempts:
                parts += [(_CODE,), attempt.code.strip("\n"), (END_OF_BLOCK, _EXECUTION), attempt.feedback.strip()]
                parts += [(END_OF_BLOCK,)]
            # A trace goes on in blocks of its own; a first answer is opened as the reference opens it.
            opened = continues or not attempts
            parts += [(_TEXT,), opening] if opened else []
            ids = self._encode_blocks(parts)
            text = "".join(part if isinstance(part, str) else "".join(part) for part in parts)
        else:
            turns = [{"role": "user", "content": ask}]
            for attempt in attempts:
                fenced = f"```{tag}\n{attempt.code.strip()}\n```"
                turns += [{"role": "assistant", "content": fenced}, {"role": "user", "content": complaint(attempt)}]
            opened = True
            text = self._render(turns) + opening
            ids = tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        if continues:
            braced = task.language in _CLOSED_BY_BRACE
            stops, tail = (("\n}",), "\n}\n") if braced else (task.stop, "")
            return Prompt(ids, text, task.prompt, tail, stops, opened=True, continues=True)
        function = is_code(task)
        return Prompt(
            ids,
            text,
            head=f"{task.prompt.rstrip()}\n" if function else "",
            stops=sanitize.STOPS if function else (),
            opened=opened,
            whole=not opened,
        )

    def _completion(self, task: Task, attempts: Sequence[Attempt]) -> Prompt:
        # Like evalplus: behind a line break, words begin as they did in training.
        python = task.language == "python"
        if python and not is_code(task):
            text = f"{task.prompt.strip()}\n\n```python\n"
            return Prompt(tuple(self._tokenizer(text)["input_ids"]), text, opened=True)
        head = f"{task.prompt.strip()}\n" if python else task.prompt
        text, mark = head, "#" if task.language in ("python", "sh") else "//"
        for attempt in attempts:
            said = "".join(f"{mark} {line}\n" for line in attempt.feedback.strip().splitlines())
            text += f"{attempt.code.rstrip()}\n\n{mark} This fails:\n{said}\n{mark} Corrected:\n{head}"
        stops = (*task.stop, *_COMPLETION_STOPS) if python else task.stop
        return Prompt(tuple(self._tokenizer(text)["input_ids"]), text, head, stops=tuple(stops), continues=True)

    def _encode_blocks(self, parts: Sequence[str | tuple[str, ...]]) -> tuple[int, ...]:
        """Markers (tuples) and contents (strings) as ids, BOS in front."""
        contents = iter(self._codec.encode_batch([part for part in parts if isinstance(part, str)]))
        ids = [self._codec.bos_id]
        for part in parts:
            ids += next(contents) if isinstance(part, str) else [self._codec.special_ids[marker] for marker in part]
        return tuple(ids)

    def _render(self, turns: Sequence[dict[str, str]]) -> str:
        try:
            return self._tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)
        except Exception as error:  # Jinja's own errors, and whatever a template raises
            raise PromptError(
                f"the model's chat template can not render a user turn ({str(error).splitlines()[0]}); "
                "use --prompt_format=completion"
            ) from error


def is_code(task: Task) -> bool:
    """Whether a task's prompt is Python that a program begins with: a function head, or words in a docstring."""
    if task.language != "python":
        return False
    try:
        ast.parse(task.prompt)
    except (SyntaxError, ValueError):
        return False
    return True


def statement(task: Task) -> str:
    """What a user would ask, in the reference's words."""
    if task.language != "python":
        name, _ = _NAMES.get(task.language, (task.language, ""))
        return f"Write a complete {name} function for the problem.\n\n{task.prompt.strip()}"
    if not is_code(task):
        return f"Write a complete Python program for the problem.\n\n{task.prompt.strip()}"
    if re.search(r"^(def|class) ", task.prompt, re.MULTILINE):
        return f"Write a complete Python function for the problem.\n\n{task.prompt.strip()}"
    # A docstring that holds the words and an assertion.
    words, _, tests = task.prompt.replace('"""', "").strip().partition("\n")
    if not tests:
        return words
    return f"{words}\nYour code should satisfy the following assertion:\n```python\n{tests.strip()}\n```"


def complaint(attempt: Attempt) -> str:
    """The user's turn behind a program that failed."""
    return (
        f"The code above fails:\n```\n{attempt.feedback.strip()}\n```\n"
        "Find the fault and write the complete corrected function."
    )


def _code_block(answer: str) -> str:
    """The last CODE block of an answer made of blocks; an answer without one as it is."""
    _, marker, code = answer.rpartition(_CODE)
    if not marker:
        return answer.replace(_TEXT, "").replace(END_OF_BLOCK, "")
    return f"```python\n{code.partition(END_OF_BLOCK)[0]}\n```"
