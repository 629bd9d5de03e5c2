"""Dataset directories: TensorFlow Datasets metadata around TFRecord shards, read without TensorFlow."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rcjax.blocks import Conversation, Example, TextCodec, encode, shorten
from rcjax.data.tfrecord import read_records

INSTRUCTION, REFLECTION, HELDOUT = "instruction", "reflection", "heldout"  # splits
OVERLONG = ("drop", "shorten")


class DatasetError(ValueError):
    """A dataset directory that is missing, damaged or of another form; one sentence with the mend."""


def dataset_directory(path: str | Path) -> Path:
    """The directory with ``dataset_info.json``: ``path`` itself or the one below it (``<name>/<version>``).

    Raises:
      DatasetError: none, or more than one.
    """
    path = Path(path)
    if not path.is_dir():
        raise DatasetError(f"dataset directory {path} does not exist; build it with `python -m data_gen build`")
    found = [path] if (path / "dataset_info.json").exists() else []
    found = found or sorted(info.parent for info in path.glob("*/*/dataset_info.json"))
    if not found:
        raise DatasetError(f"{path} holds no dataset_info.json; give a directory that `python -m data_gen build` wrote")
    if len(found) > 1:
        raise DatasetError(f"{path} holds several datasets ({', '.join(map(str, found))}); name one of them")
    return found[0]


def read_split(path: str | Path, split: str) -> list[dict[str, Any]]:
    """All records of a split as dicts of str and int; an absent split is empty.

    Raises:
      DatasetError: unreadable metadata, or fewer records than the metadata promises.
      rcjax.data.tfrecord.RecordError: a truncated or damaged record file (named, with the offset).
    """
    directory = dataset_directory(path)
    builder = _builder(directory)
    if split not in builder.info.splits:
        return []
    info = builder.info.splits[split]
    records = []
    for shard in info.filepaths:
        if not Path(shard).exists():
            raise DatasetError(f"record file {shard} is missing; build the dataset again")
        records.extend(_plain(builder.info.features.deserialize_example_np(data)) for data in read_records(shard))
    if len(records) != info.num_examples:
        raise DatasetError(
            f"split {split!r} of {directory} holds {len(records)} records but its metadata says {info.num_examples}; "
            "build the dataset again"
        )
    return records


def count_examples(path: str | Path) -> dict[str, int]:
    """Records of each split, as the metadata say; nothing else is read.

    Raises:
      DatasetError: unreadable metadata.
    """
    return {name: split.num_examples for name, split in _builder(dataset_directory(path)).info.splits.items()}


def _builder(directory: Path) -> Any:
    import tensorflow_datasets as tfds  # late: 0.8 s

    try:
        return tfds.builder_from_directory(str(directory))
    except (ValueError, KeyError, OSError) as error:
        raise DatasetError(f"metadata in {directory} can not be read ({error}); build the dataset again") from error


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.decode() if isinstance(value, bytes) else int(value) for name, value in record.items()}


def conversation(record: Mapping[str, Any], where: str = "") -> Conversation:
    """The conversation inside a record."""
    fields = {"id": record["id"], "type": record["type"], "messages": json.loads(record["messages"])}
    return Conversation.from_json(fields, where)


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """Tokenised sources in the order of ``repeats``, and what was left out of them."""

    sources: list[list[Example]]
    repeats: list[int]
    left_out: Counter

    def describe(self) -> str:
        """One line for the log."""
        kept = " + ".join(f"{len(s):,} x{r}" for s, r in zip(self.sources, self.repeats, strict=True))
        left_out = "".join(f", {count:,} {reason}" for reason, count in self.left_out.items())
        return f"{kept} examples{left_out}"


def training_conversations(
    path: str | Path, repeats: Mapping[str, int], sources: Sequence[str] = ()
) -> dict[str, list[Conversation]]:
    """Conversations of every split that ``repeats`` takes at least once.

    Args:
      sources: of the reflection split only records of these; empty takes all.

    Raises:
      DatasetError: no record of one of ``sources``, with those that there are.
    """
    splits = {split: read_split(path, split) for split, count in repeats.items() if count}
    if sources and REFLECTION in splits:
        there = Counter(record["source"] for record in splits[REFLECTION])
        for source in sources:
            if not there[source]:
                told = ", ".join(f"{name} ({count})" for name, count in there.items()) or "no traces at all"
                raise DatasetError(f"config.data.sources names {source!r}, but {path} holds {told}")
        splits[REFLECTION] = [record for record in splits[REFLECTION] if record["source"] in sources]
    return {split: [conversation(record, str(path)) for record in found] for split, found in splits.items()}


def tokenise(
    conversations: Mapping[str, Sequence[Conversation]],
    repeats: Mapping[str, int],
    codec: TextCodec,
    max_length: int,
    overlong: str = "drop",
) -> TrainingData:
    """Tokenised examples of at most ``max_length`` tokens.

    Args:
      overlong: what becomes of longer ones: ``drop`` leaves them out, ``shorten`` leaves out the first blocks of their
        reflection (``blocks.shorten``) and drops what is too long even so.

    Raises:
      DatasetError: unknown ``overlong``, or nothing is left, with how many were dropped and why.
    """
    if overlong not in OVERLONG:
        raise DatasetError(f"config.data.overlong is {overlong!r}; expected one of {', '.join(OVERLONG)}")
    sources, used, left_out = [], [], Counter()
    for split, items in conversations.items():
        examples = encode(items, codec)
        shortened = [shorten(example, max_length) for example in examples] if overlong == "shorten" else examples
        kept = [example for example in shortened if example is not None and len(example) <= max_length]
        changed = sum(len(new) < len(old) for old, new in zip(examples, shortened, strict=True) if new is not None)
        if changed:
            left_out[f"{split} shortened to {max_length} tokens"] = changed
        if len(kept) < len(examples):
            left_out[f"{split} dropped, longer than {max_length} tokens"] = len(examples) - len(kept)
        if kept:
            sources.append(kept)
            used.append(repeats[split])
    if not sources:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "the splits are empty"
        raise DatasetError(
            f"config.data.train: no example is left to train on ({reasons}); raise data.max_length "
            "or take another dataset"
        )
    return TrainingData(sources, used, left_out)


def checksum(examples: Sequence[Example]) -> int:
    """A number that differs where the examples do, in whatever part or in order."""
    value = 0
    for example in examples:
        value = zlib.crc32(f"{example.id} {example.kind}".encode(), value)
        value = zlib.crc32(np.asarray(example.tokens, np.int32).tobytes(), value)
    return value


def texts(conversations: Mapping[str, Sequence[Conversation]]) -> Iterator[str]:
    """Every block's content, for training a tokenizer."""
    return (text for items in conversations.values() for item in items for text in item.texts())
