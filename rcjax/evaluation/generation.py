"""Programs for the tasks of a benchmark: prompts in, journalled samples out."""

from __future__ import annotations

import dataclasses
import hashlib
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rcjax.evaluation.benchmarks import Benchmark
from rcjax.evaluation.journal import Journal
from rcjax.evaluation.model import EvaluatedModel
from rcjax.evaluation.prompting import Attempt, Prompt, Prompter
from rcjax.progress import progress


class SettingsError(ValueError):
    """Settings that do not go together; the message names the flags."""


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """How samples are drawn.

    Attributes:
      max_new_tokens: longest answer; the reference's 1,024.
      num_samples: of each task.
      temperature: 0 is greedy.
      top_p: smallest set of tokens with this probability; 1 is off.
      top_k: so many most likely tokens; 0 is off.
      seed: of the draws; each sample has a key of its own, so no other sample matters to it.
      rounds: attempts at each task in all; from the second on with the feedback of the one before.
      prompt_format: see ``rcjax.evaluation.prompting``; None chooses by the tokenizer.
      dtype: of the computation.
      batch_size: rows generated together; does not change what comes out.
    """

    max_new_tokens: int = 1024
    num_samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    rounds: int = 1
    prompt_format: str | None = None
    dtype: str = "float32"
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.num_samples > 1 and self.temperature == 0:
            raise SettingsError(
                f"--num_samples={self.num_samples} at --temperature=0 would give the same program every time; "
                "give a temperature, e.g. 0.8, or one sample"
            )
        if self.num_samples > 1 and self.rounds > 1:
            raise SettingsError("--rounds and --num_samples do not go together: refinement follows one sample a task")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise SettingsError(
                f"--temperature={self.temperature} --top_p={self.top_p} --top_k={self.top_k}: need a temperature of 0 "
                "or more, a top_p in (0, 1] and a top_k of 0 or more"
            )

    def identity(self) -> dict[str, Any]:
        """What each sample depends on; more samples and rounds may be added to a directory later."""
        fields = dataclasses.asdict(self)
        return {
            name: fields[name]
            for name in ("max_new_tokens", "temperature", "top_p", "top_k", "seed", "prompt_format", "dtype")
        }


@dataclasses.dataclass(frozen=True)
class Generated:
    """One sample.

    Attributes:
      task_id: its task.
      number: 0 for the first sample of the task, 1 for the second, ...
      round: 1 for the one-off answer, 2 for the first that saw feedback, ...
      prompt: what the model was given, in words.
      answer: what it wrote.
      code: what of it belongs to the program.
      solution: the whole program.
      tokens: generated ones.
      finished: False if ``max_new_tokens`` ended it.
      seconds: share of the wall time that generating took.
    """

    task_id: str
    number: int
    round: int
    prompt: str
    answer: str
    code: str
    solution: str
    tokens: int
    finished: bool
    seconds: float


def journal_identity(benchmark: Benchmark, prompter: Prompter) -> dict[str, Any]:
    """What the samples of a benchmark depend on: its version, and every first prompt."""
    digest = hashlib.sha256()
    for task in benchmark.tasks.values():
        digest.update(repr((task.id, prompter.prompt(task).ids, task.stop)).encode())
    return {"benchmark": benchmark.name, "data_version": benchmark.version, "prompts": digest.hexdigest()}


def generate_round(
    model: EvaluatedModel,
    prompter: Prompter,
    benchmark: Benchmark,
    settings: GenerationSettings,
    journal: Journal,
    *,
    round: int = 1,
    attempts: Mapping[str, Sequence[Attempt]] | None = None,
    on_sample: Callable[[], None] | None = None,
) -> list[Generated]:
    """The samples of one round; those that the journal holds are not generated again.

    Args:
      attempts: of a round behind the first: task id -> what was tried. The other tasks get no sample.
      on_sample: called when a sample has reached the journal.

    Returns:
      Samples in the order of the tasks, those of one task together.

    Raises:
      ValueError: a prompt that the model has no room for.
    """
    attempts = attempts or {}
    tasks = [task for task in benchmark.tasks.values() if round == 1 or task.id in attempts]
    prompts: dict[tuple[str, int, int], Prompt] = {}
    for task in tasks:
        tried = attempts.get(task.id, ())
        prompt = prompter.prompt(task, tried)
        while len(tried) > 1 and len(prompt.ids) + settings.max_new_tokens > model.config.max_position_embeddings:
            tried = tried[1:]  # the oldest is worth least
            prompt = prompter.prompt(task, tried)
        prompts |= {(task.id, number, round): prompt for number in range(settings.num_samples)}
    missing = [key for key in prompts if key not in journal.entries]
    title = f"{benchmark.name}: writing programs" + (f", round {round}" if round > 1 else "")
    with progress(title, total=len(prompts), unit="programs", done=len(prompts) - len(missing)) as bar:
        clock = time.monotonic()

        def keep(index: int, tokens: list[int]) -> None:
            nonlocal clock
            now = time.monotonic()
            task_id, number, _ = missing[index]
            journal.add(
                {
                    "task_id": task_id,
                    "number": number,
                    "round": round,
                    "answer": prompter.decode(tokens),
                    "tokens": len(tokens),
                    "finished": len(tokens) < settings.max_new_tokens,
                    "seconds": round_seconds(now - clock),
                }
            )
            clock = now
            bar.advance(1)
            if on_sample is not None:
                on_sample()

        if missing:
            _generate(model, prompter, settings, [(key, prompts[key]) for key in missing], keep)
    samples = []
    for key, prompt in prompts.items():
        entry = journal.entries[key]
        answer = entry["answer"]
        samples.append(
            Generated(
                *key,
                prompt=prompt.text,
                answer=answer,
                code=prompt.code(answer),
                solution=prompt.program(answer),
                tokens=entry["tokens"],
                finished=entry["finished"],
                seconds=entry["seconds"],
            )
        )
    return samples


def _generate(
    model: EvaluatedModel,
    prompter: Prompter,
    settings: GenerationSettings,
    wanted: Sequence[tuple[tuple[str, int, int], Prompt]],
    keep: Callable[[int, list[int]], None],
) -> None:
    """Calls ``keep`` with the index and tokens of each wanted sample as soon as it is finished."""
    import jax.numpy as jnp

    from rcjax.decode import generate

    dtype = jnp.dtype(settings.dtype)
    generate(
        model.config,
        model.params,
        [prompt.ids for _, prompt in wanted],
        max_new_tokens=settings.max_new_tokens,
        stop_ids=sorted({*prompter.stop_ids_of(wanted[0][0][2]), *model.eos_ids}),
        batch_size=settings.batch_size,
        dtype=dtype,
        cache_dtype=dtype,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        seed=settings.seed,
        sample_ids=[zlib.crc32(repr(key).encode()) >> 1 for key, _ in wanted],
        stop_fn=lambda index, tokens: wanted[index][1].complete(prompter.decode(tokens)),
        on_result=keep,
    )


def round_seconds(seconds: float) -> float:
    """Seconds as they are stored."""
    return round(seconds, 4)
