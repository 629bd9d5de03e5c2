"""Dataset directories read back: the records of a split, all or a sample."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_gen.statistics import BuildError
from rcjax.data.tfrecord import RecordFile


def sample(directory: str | Path, split: str, count: int | None = None, seed: int = 0) -> Iterator[dict[str, Any]]:
    """``count`` random records of a split, the same for the same ``seed``, or all of them in their order.

    Raises:
      BuildError: the metadata can not be read, or there is no such split.
      RecordError: a damaged record file.
    """
    import tensorflow_datasets as tfds  # late: takes a second

    try:
        info = tfds.builder_from_directory(str(directory)).info
    except (ValueError, KeyError, OSError) as error:
        raise BuildError(f"metadata in {directory} can not be read ({error}); build the dataset again") from error
    if split not in info.splits:
        raise BuildError(f"--split={split} is not in {directory}; there is {', '.join(info.splits)}")
    files = [RecordFile(path) for path in info.splits[split].filepaths]
    places = [(file, index) for file in files for index in range(len(file))]
    if count is not None and count < len(places):
        places = random.Random(seed).sample(places, count)
    try:
        for file, index in places:
            record = info.features.deserialize_example_np(file[index])
            yield {name: value.decode() if isinstance(value, bytes) else value for name, value in record.items()}
    finally:
        for file in files:
            file.close()
