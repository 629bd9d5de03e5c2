"""Records as a TensorFlow Datasets dataset, written and readable without TensorFlow.

``download_and_prepare`` does everything but write record files, for which it wants TensorFlow; our file adapter takes
that one place. Metadata, features, shards and splits are ordinary TFDS.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import file_adapters
from tensorflow_datasets.proto import tf_example_pb2

from data_gen import VERSION
from data_gen.statistics import KINDS
from rcjax.data.tfrecord import RecordFile, write_records

NAME = "traces"
TEXT_FEATURES = {
    "id": "Unique name of the example.",
    "task": "What is asked, phrasing excluded: the unit that splits are made by.",
    "family": "Group of tasks that results are reported by.",
    "type": "generation or reflection.",
    "source": "Teacher that wrote the attempts.",
    "messages": "JSON list of turns {role, content: [{type: text|code|execution, content}]}.",
    "prompt": "The problem statement.",
    "solution": "Reference code.",
    "tests": "JSON list of lines to run behind the code.",
    "entry_point": "Function that the tests call.",
}
OPTIONAL_FEATURES = {  # feature: (what it says, its value where a record has none); there if any record has it
    "language": ("Programming language of the code.", "python"),
    "verdicts": ("JSON object: what each verifier said of the last program.", "{}"),
}
DESCRIPTION = "Attempt, feedback, reflection and correction traces of programming problems."


class _Adapter(file_adapters.TfRecordFileAdapter):
    """TFRecord framing of our own where TFDS would call TensorFlow."""

    @classmethod
    def write_examples(cls, path: os.PathLike[str], iterator: Iterable[tuple[Any, bytes]]) -> None:
        # Maps have no order in protobuf; a fixed one makes equal records equal bytes.
        examples = (tf_example_pb2.Example.FromString(data) for _, data in iterator)
        write_records(path, (example.SerializeToString(deterministic=True) for example in examples))

    @classmethod
    def num_examples(cls, filename: os.PathLike[str]) -> int:
        return len(RecordFile(filename))


@contextlib.contextmanager
def _adapter() -> Iterator[None]:
    adapters = file_adapters.ADAPTER_FOR_FORMAT
    before = adapters[file_adapters.FileFormat.TFRECORD]
    adapters[file_adapters.FileFormat.TFRECORD] = _Adapter
    try:
        yield
    finally:
        adapters[file_adapters.FileFormat.TFRECORD] = before


class Traces(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Splits ``instruction``, ``reflection`` and ``heldout`` of records that are already made."""

    name = NAME
    VERSION = tfds.core.Version(VERSION)
    url_infos: ClassVar[dict[str, Any]] = {}  # nothing is downloaded, so no checksum file is looked for
    pkg_dir_path = None

    def __init__(self, *, splits: Mapping[str, Sequence[Mapping[str, Any]]], **kwargs: Any):
        self._records = splits
        there = {name for records in splits.values() for record in records for name in record}
        self._optional = [name for name in OPTIONAL_FEATURES if name in there]
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {name: tfds.features.Text(doc=doc) for name, doc in TEXT_FEATURES.items()}
        features |= {name: tfds.features.Text(doc=OPTIONAL_FEATURES[name][0]) for name in self._optional}
        features["rounds"] = tfds.features.Scalar(np.int32, doc="Failed attempts before the one that passed.")
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), description=DESCRIPTION, disable_shuffling=True
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {name: self._generate_examples(records) for name, records in self._records.items() if len(records)}

    def _generate_examples(self, records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
        absent = {name: OPTIONAL_FEATURES[name][1] for name in self._optional}
        yield from ((number, {**absent, **record}) for number, record in enumerate(records))


def write_dataset(splits: Mapping[str, Sequence[Mapping[str, Any]]], directory: Path) -> Path:
    """Writes the dataset below ``directory``; returns where its ``dataset_info.json`` lies."""
    tfds.disable_progress_bar()
    builder = Traces(splits=splits, data_dir=str(directory), file_format="tfrecord")
    config = tfds.download.DownloadConfig(try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP)
    with _adapter(), contextlib.redirect_stdout(io.StringIO()):  # it prints about downloads; there are none
        builder.download_and_prepare(download_config=config, file_format="tfrecord")
    return Path(builder.data_path)


def write_lengths(path: Path, lengths: Mapping[str, list[list[int]]]) -> None:
    """The index of lengths: by split, characters of each record, int32 [records, len(KINDS)], and ``kinds``."""
    arrays = {split: np.asarray(rows, np.int32) for split, rows in lengths.items()}
    np.savez_compressed(path, kinds=np.asarray(KINDS), **arrays)
