"""Published examples into the form that ``build`` writes: ReflectionSeq-GPT and -DS, code-instruction sets.

Every field is checked; a record with a wrong one ends the import with its file and line, or is left out and listed.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_gen import VERSION
from data_gen.build import files_digest, present, write
from data_gen.contamination import Benchmarks
from data_gen.duplicates import near_duplicates as find_near_duplicates
from data_gen.formats import instruction_pair, language_name, spoken
from data_gen.job import INSTRUCTION, REFLECTION
from data_gen.problems import ProblemError
from data_gen.readers import read_records
from data_gen.reflection import own_tests
from data_gen.scrub import scrub
from data_gen.statistics import BuildError, Statistics, describe_records
from data_gen.teachers.code_blocks import cut_out
from rcjax.blocks import GENERATION, Block, BlockType, Conversation, ConversationError, Message
from rcjax.progress import progress

FORMS = ("auto", "reflection", "instructions")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def import_records(
    inputs: Sequence[str],
    output: str | os.PathLike[str],
    *,
    form: str = "auto",
    skip_invalid: bool = False,
    near_duplicates: float = 0.0,
    decontaminate: Sequence[str | os.PathLike[str]] = (),
) -> Statistics:
    """Writes a dataset directory of published examples, whole or not at all.

    Args:
      inputs: JSON-lines files (gzipped or not), or ids of data sets on the hub.
      form: one of ``FORMS``.
      skip_invalid: leave out records with a wrong field; they are listed in ``removed.jsonl``.
      near_duplicates, decontaminate: as of ``build``.

    Raises:
      ProblemError: a file that can not be read, a record with a wrong field.
      BuildError: an output directory of another build, nothing left.
    """
    if form not in FORMS:
        raise BuildError(f"--format={form} is unknown; there is {', '.join(FORMS)}")
    output = Path(output)
    files = [path for name in inputs for path in find_files(name)]
    settings = {
        "version": VERSION,
        "imported": [path.name for path in files],
        "problems": files_digest(files, "--input"),
        "format": form,
        "skip_invalid": skip_invalid,
        "near_duplicates": near_duplicates,
        "decontaminate": [str(path) for path in decontaminate],
    }
    if output.exists():
        return present(output, settings)
    records: list[dict[str, Any]] = []
    removed: list[tuple[str, str, dict[str, object]]] = []
    scrubbed = read = 0
    with progress("reading examples", unit="examples") as bar:
        for path in files:
            for number, (where, raw) in enumerate(read_records(path, "--input"), 1):
                bar.advance(1)
                read += 1
                name = f"{path.name.partition('.')[0]}/{raw.get('id', number)}"
                try:
                    example = to_conversation(raw, where, name, form)
                except ProblemError as error:
                    if not skip_invalid:
                        raise ProblemError(f"{error}; mend it or give --skip-invalid") from error
                    removed.append((name, "invalid", {"error": str(error)}))
                    continue
                clean = _scrubbed(example)
                scrubbed += clean != example
                records.append(_record(clean, raw, path))
    records, more = _without(records, near_duplicates, decontaminate)
    removed += more
    repeated = [name for name, count in Counter(record["id"] for record in records).items() if count > 1]
    if repeated:
        raise ProblemError(f"id {repeated[0]!r} occurs more than once; ids must be unique")
    if not records:
        raise BuildError(f"no examples are left of {read}; see the reasons with --skip-invalid off")
    splits = {
        INSTRUCTION: [record for record in records if record["type"] == GENERATION],
        REFLECTION: [record for record in records if record["type"] != GENERATION],
    }
    statistics = Statistics(settings=settings)
    statistics.problems = {"read": read, "scrubbed": scrubbed} | dict(
        Counter(f"removed: {why}" for _, why, _ in removed)
    )
    statistics.examples = {name: len(found) for name, found in splits.items()}
    failed = Counter(record["rounds"] for record in splits[REFLECTION])
    statistics.traces = {f"{n} failed": failed[n] for n in sorted(failed)}
    lengths = {name: describe_records(statistics, name, found) for name, found in splits.items() if found}
    write(splits, statistics, output, lengths=lengths, removed=removed)
    return statistics


def find_files(name: str) -> list[Path]:
    """A file, the JSON files of a directory, or those of a data set on the hub.

    Raises:
      ProblemError: there is no such thing, or the hub can not be reached.
    """
    path = Path(name)
    if path.is_file():
        return [path]
    patterns = ("*.jsonl", "*.json", "*.jsonl.gz", "*.json.gz")
    if not path.is_dir():
        if not _HUB_ID.fullmatch(name):
            raise ProblemError(f"--input: {name} is neither a file nor the id of a data set on the hub")
        import huggingface_hub  # late: takes a moment, needed for hub ids alone

        try:
            nested = [f"**/{pattern}" for pattern in patterns]
            path = Path(
                huggingface_hub.snapshot_download(name, repo_type="dataset", allow_patterns=[*patterns, *nested])
            )
        except Exception as error:  # the hub's client raises many kinds, of other libraries too
            said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ProblemError(f"--input: data set {name} can not be had from the hub ({said})") from error
    found = sorted(file for pattern in patterns for file in path.rglob(pattern))
    if not found:
        raise ProblemError(f"--input: {name} holds no .jsonl or .json file")
    return found


def to_conversation(raw: Mapping[str, Any], where: str, name: str, form: str = "auto") -> Conversation:
    """One published record as a conversation, every field checked.

    A record of ``messages`` with typed blocks may lack ``type``: four turns are a reflection, two an instruction.

    Raises:
      ProblemError: names file, line and field.
    """
    typed = isinstance(raw.get("messages"), list) and any(
        isinstance(message, dict) and isinstance(message.get("content"), list) for message in raw["messages"]
    )
    if form == "reflection" or (form == "auto" and typed):
        messages = raw.get("messages")
        kind = raw.get("type")
        if kind is None and isinstance(messages, list):
            kind = "generation" if len(messages) <= 2 else "reflection"
        try:
            example = Conversation.from_json({"id": name, "type": kind, "messages": messages}, where)
        except ConversationError as error:
            raise ProblemError(str(error)) from error
        _check_turns(example, where)
        return example
    asked, told = instruction_pair(raw, where)
    turns = (Message("user", (Block(BlockType.TEXT, asked),)), Message("assistant", (Block(BlockType.TEXT, told),)))
    return Conversation(name, GENERATION, turns)


def _check_turns(example: Conversation, where: str) -> None:
    roles = [message.role for message in example.messages]
    wanted = ["user", "assistant"] * (1 if example.type == GENERATION else 2)
    if roles != wanted:
        raise ProblemError(f"{where}: field 'messages' has the roles {', '.join(roles)}; expected {', '.join(wanted)}")
    if example.type != GENERATION:
        kinds = {block.type for block in example.messages[1].blocks}
        for kind in (BlockType.CODE, BlockType.EXECUTION):
            if kind not in kinds:
                raise ProblemError(f"{where}: field 'messages[1].content' has no block of type {kind.name.lower()!r}")


def _scrubbed(example: Conversation) -> Conversation:
    messages = tuple(
        Message(
            message.role,
            tuple(
                Block(block.type, scrub(block.content) if block.type == BlockType.EXECUTION else block.content)
                for block in message.blocks
            ),
        )
        for message in example.messages
    )
    return Conversation(example.id, example.type, messages)


def failed_attempts(example: Conversation) -> int:
    """EXECUTION blocks of the reflection sequence that show an error, the last one excepted."""
    shown = [block.content for block in example.messages[1].blocks if block.type == BlockType.EXECUTION]
    return sum(bool(re.search(r"Error|Exception|Traceback|error:|Crashed", text)) for text in shown[:-1])


def _record(example: Conversation, raw: Mapping[str, Any], path: Path) -> dict[str, Any]:
    question = "\n".join(block.content for block in example.messages[-2].blocks)
    answer = "\n".join(block.content for block in example.messages[-1].blocks)
    declared = raw.get("lang", raw.get("language"))
    language = language_name(declared) if isinstance(declared, str) and declared.strip() else spoken(question, answer)
    said = cut_out(answer, language)
    tests: tuple[str, ...] = ()
    if example.type != GENERATION:
        codes = [block.content for block in example.messages[1].blocks if block.type == BlockType.CODE]
        tests = own_tests(codes[-1], language)
    record = {
        "id": example.id,
        "task": example.id,
        "family": "imported",
        "type": example.type,
        "source": path.name.partition(".")[0],
        "messages": json.dumps(example.to_json()["messages"], ensure_ascii=False),
        "prompt": question,
        "solution": said.code if said else "",
        "tests": json.dumps(list(tests), ensure_ascii=False),
        "entry_point": "",
        "rounds": failed_attempts(example) if example.type != GENERATION else 0,
    }
    return record | ({"language": language} if language != "python" else {})


def _without(
    records: Sequence[dict[str, Any]], threshold: float, benchmarks: Sequence[str | os.PathLike[str]]
) -> tuple[list[dict[str, Any]], list[tuple[str, str, dict[str, object]]]]:
    """The records less those that overlap with a benchmark or are like an earlier one of their type."""
    removed: list[tuple[str, str, dict[str, object]]] = []
    kept = list(records)
    if benchmarks:
        known = Benchmarks(benchmarks)
        overlaps = [known.overlap((record["prompt"], record["solution"])) for record in kept]
        for record, found in zip(kept, overlaps, strict=True):
            if found:
                details = {"file": found.file, "task": found.task, "ngram": found.ngram}
                removed.append((record["id"], f"overlaps with {found.file}", details))
        kept = [record for record, found in zip(kept, overlaps, strict=True) if not found]
    if threshold:
        for kind in sorted({record["type"] for record in kept}):
            mine = [record for record in kept if record["type"] == kind]
            twins = find_near_duplicates([f"{record['prompt']}\n{record['solution']}" for record in mine], threshold)
            for place, (other, likeness) in twins.items():
                removed.append((mine[place]["id"], "near duplicate", {"of": mine[other]["id"], "jaccard": likeness}))
            gone = {mine[place]["id"] for place in twins}
            kept = [record for record in kept if record["id"] not in gone or record["type"] != kind]
    return kept, removed
