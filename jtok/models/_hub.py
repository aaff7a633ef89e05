"""Snapshots of hub repositories; every way in which one cannot be had is named."""

import pathlib
from collections.abc import Sequence

from jtok import files
from jtok.errors import MissingFileError, WriteError


def download(
    name: str,
    revision: str | None,
    token: str | bool | None,
    local_files_only: bool,
    patterns: Sequence[str],
) -> pathlib.Path:
    """The folder of a snapshot, with the files that match the patterns."""
    # Imported late, as it reads the environment.
    import huggingface_hub
    from huggingface_hub import errors

    try:
        folder = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            token=token,
            local_files_only=local_files_only,
            allow_patterns=list(patterns),
        )
    except errors.RevisionNotFoundError as error:
        raise MissingFileError(
            f"revision: the hub's {name!r} has no {revision!r}."
        ) from error
    except errors.GatedRepoError as error:
        raise MissingFileError(
            f"name_or_path: {name!r} is gated on the hub; accept its terms there and "
            "give token=."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise MissingFileError(
            f"name_or_path: {name!r} is no folder here and not on the hub, or it is "
            "private and token= is missing."
        ) from error
    # Every way of being offline, and a cache that holds nothing of it; the classes are
    # those of whichever HTTP client the hub's library uses.
    except Exception as error:
        if isinstance(error, OSError) and error.errno in files.DISK_ERRORS:
            raise WriteError(
                f"name_or_path: {name!r} cannot be stored in the hub's cache "
                f"({error.strerror})."
            ) from error
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0][:300]}"
        why = "local_files_only=True" if local_files_only else "the hub did not answer"
        raise MissingFileError(
            f"name_or_path: {name!r} is no folder here and not among the downloaded "
            f"ones, and {why} ({reason}). Give a folder, or connect."
        ) from error
    return pathlib.Path(str(folder))
