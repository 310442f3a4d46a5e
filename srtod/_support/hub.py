"""Files on Hugging Face's hub, by their address: fetched once, and then read from the local cache."""

from __future__ import annotations

import os
from pathlib import Path

from .extras import MissingExtraError

__all__ = ["on_disk"]

SCHEME = "hf://"
FORM = f"write {SCHEME}OWNER/NAME, {SCHEME}OWNER/NAME/FILE or {SCHEME}OWNER/NAME@REVISION/FILE"


def on_disk(path: str | os.PathLike[str], default: str | None = None) -> Path:
    """The file of an address on the hub, which is fetched where the cache lacks it; any other path as it is.

    Args:
        path: `hf://OWNER/NAME[@REVISION][/FILE]`, the address of a file in a repository of models, or a path.
        default: the file of an address that names none; None: it must name one.

    Raises:
        FileNotFoundError: if the repository, the revision or the file is not there for this user.
        ImportError: if huggingface_hub is not installed.
        OSError: if it cannot be fetched.
        ValueError: if the address is malformed.
    """
    address = os.fspath(path)
    if not address.startswith(SCHEME):
        return Path(path)
    try:
        from huggingface_hub import errors, hf_hub_download, parse_hf_uri
    except ImportError as error:
        raise MissingExtraError(f"{address} needs huggingface_hub; pip install 'srtod[hub]', or pass a file") from error
    try:
        place = parse_hf_uri(address)
    except ValueError as error:
        raise ValueError(f"{address} is no address on the hub; {FORM}") from error
    file = place.path_in_repo or default
    if place.type != "model" or file is None:
        raise ValueError(f"{address} names no file in a repository of models; {FORM}")
    try:
        return Path(hf_hub_download(place.id, file, revision=place.revision))
    # The library's own sentences are of several lines, and name the addresses that it asked.
    except errors.LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{address}: {file} is not in the local cache, and the hub cannot be reached; fetch it once with a network "
            f"and without HF_HUB_OFFLINE, or pass a file"
        ) from error
    except errors.EntryNotFoundError as error:
        raise FileNotFoundError(f"{address}: {place.id} has no file {file}; {FORM}") from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{address}: {place.id} has no revision {place.revision}; correct it") from error
    except errors.GatedRepoError as error:
        raise FileNotFoundError(f"{address}: {place.id} asks for consent; give it on the hub, and log in") from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{address}: the hub has no repository {place.id}, or shows it to others alone; correct the name, or log in"
        ) from error
    except Exception as error:  # of several libraries that fetch
        if isinstance(error, OSError) and error.strerror:  # such as a full disk
            raise
        answer = getattr(error, "response", None)
        reason = type(error).__name__ if answer is None else f"the hub answers with status {answer.status_code}"
        raise OSError(f"{address} cannot be fetched ({reason}); try again later, or pass a file") from error
