"""Benchmark tables from the Hugging Face Hub: parquet files, fetched into its cache and read."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rcjax.evaluation.tasks import BenchmarkError, Records


def fetch_records(repository: str, pattern: str, otherwise: str) -> Records:
    """The rows of all files of a data set that match ``pattern``, in the order of their names.

    Raises:
      BenchmarkError: no network and not in the cache, or no such files; says to give the file ``otherwise`` names.
    """
    from huggingface_hub import snapshot_download

    try:
        directory = Path(snapshot_download(repository, repo_type="dataset", allow_patterns=[pattern]))
        files = sorted(directory.glob(pattern))
    except Exception as error:  # its own errors and those of the HTTP library: none of them is the user's to tell apart
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise BenchmarkError(
            f"{repository} can not be fetched from the Hugging Face Hub ({said}); check the network, or give the file "
            f"with --data, e.g. {otherwise}"
        ) from None
    if not files:
        raise BenchmarkError(f"{repository} holds no {pattern} any more; give the file with --data, e.g. {otherwise}")
    import pyarrow.parquet

    digest = hashlib.sha256()
    rows = []
    for file in files:
        digest.update(file.read_bytes())
        for row in pyarrow.parquet.read_table(file).to_pylist():
            rows.append((f"{repository}, {file.name}, row {len(rows)}", row))
    return Records(directory, tuple(rows), digest.hexdigest())
