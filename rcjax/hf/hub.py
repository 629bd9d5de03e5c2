"""Where a model's files lie: in a local directory, or on the Hugging Face Hub and then in its cache."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from pathlib import Path

from rcjax.hf.safetensors_reader import INDEX, WEIGHTS, read_json

# What is fetched beside the weights. Repositories hold much else: other forms of the weights first of all.
FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)

_HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


class HubError(ValueError):
    """A model that can not be had; the message names it and says what to do."""


def model_directory(source: str | Path, *, weights: bool = True) -> Path:
    """The directory of a model.

    Args:
      source: a local directory, which is returned as it is, and for which the network is never asked; or a Hub id
        ``organisation/name``, ``organisation/name@revision``, whose files are fetched into the cache of
        ``huggingface_hub`` (HF_HOME) unless they lie there. With HF_HUB_OFFLINE=1, or without a network, the cache
        must hold them.
      weights: False fetches config and tokenizer alone.

    Raises:
      HubError: neither a directory nor a repository, no access, no network, or no safetensors in it.
      ModelLoadError: the index of its weights can not be read.
    """
    path = Path(source).expanduser()
    if str(source) and path.is_dir():
        return path
    if str(source) and path.exists():
        raise HubError(f"{source} is a file; give the directory that it lies in")
    name = str(source).partition("@")[0]
    if name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1:
        raise HubError(f"{source} does not exist; give the directory of a Hugging Face model")
    match = _HUB_ID.fullmatch(str(source))
    if match is None:
        raise HubError(f"{source!r} is neither a directory nor a Hub id; give a directory or organisation/name")
    name, revision = match["name"], match["revision"]
    directory = _fetch(str(source), name, revision, (*FILES, INDEX))
    if not (directory / "config.json").exists() and weights:
        raise HubError(f"{source} has no config.json; give a repository in the form that transformers loads")
    if weights:
        placed = read_json(directory / INDEX).get("weight_map") if (directory / INDEX).exists() else None
        files = sorted(set(placed.values())) if isinstance(placed, dict) else [WEIGHTS]
        missing = _missing(directory, files)
        if missing:
            _fetch(str(source), name, directory.name, files)  # a snapshot is named for its commit, and does not change
            missing = _missing(directory, files)
        if missing and placed is None:
            raise HubError(
                f"{source} has no {WEIGHTS}, and other forms of weights are not read; "
                "convert it at https://huggingface.co/spaces/safetensors/convert"
            )
        if missing:
            raise HubError(f"{source} lacks {missing[0]}, which its {INDEX} names; try again with a network")
    return directory


def _missing(directory: Path, files: Sequence[str]) -> list[str]:
    return [file for file in files if not (directory / file).exists()]


def _fetch(source: str, name: str, revision: str | None, files: Sequence[str]) -> Path:
    """The snapshot of a repository in the cache, with those of ``files`` that the repository has."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        # Said explicitly: some versions ask the network for a list of files first and fail where there is none.
        offline = constants.is_offline_mode()
        patterns = list(files)
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=offline))
    except HFValidationError:
        raise HubError(f"{source} is neither a directory nor a Hub id; check its spelling") from None
    except GatedRepoError:
        raise HubError(
            f"{source} is open only to those who accepted its terms; do so at {constants.ENDPOINT}/{name} and log in "
            "with `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise HubError(
            f"{source} is neither a directory nor a repository at {constants.ENDPOINT}; check its spelling, or log in "
            "with `hf auth login` where it is private"
        ) from None
    except RevisionNotFoundError:
        raise HubError(f"{source}: the repository has no revision {revision!r}; check its spelling") from None
    except LocalEntryNotFoundError as error:
        where = f"the cache {constants.HF_HUB_CACHE} does not hold all of it"
        if constants.is_offline_mode():
            raise HubError(
                f"{source} is not at hand: HF_HUB_OFFLINE is set and {where}; unset it to download"
            ) from None
        raise HubError(
            f"{source} is not at hand: {constants.ENDPOINT} can not be reached ({_reason(error)}) and {where}; "
            "check the network, or give a local directory"
        ) from None
    except HfHubHTTPError as error:
        raise HubError(f"{source} can not be fetched ({_reason(error)}); try again later") from None
    except OSError as error:
        mend = "free space there or set HF_HOME" if error.errno == errno.ENOSPC else "try again or set HF_HOME"
        raise HubError(f"{source} can not be stored in {constants.HF_HUB_CACHE} ({_reason(error)}); {mend}") from None
    except Exception as error:  # the HTTP library's own errors, which huggingface_hub lets through in mid-download
        raise HubError(f"{source} can not be fetched ({_reason(error)}); check the network and try again") from None


def _reason(error: BaseException) -> str:
    """One line on what lies at the bottom of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = getattr(error, "strerror", None) or str(error)
    return text.splitlines()[0] if text else type(error).__name__
