"""Text for training at scale: OpenWebText from the hub, or folders of one's own."""

import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.cache import cached
from jtok import train

__all__ = ["documents", "hub_lines", "token_file"]

_OPEN_WEB_TEXT = "Skylion007/openwebtext"
_SUBSETS = 21
_AT_A_TIME = 1000


def documents(name: str) -> Iterator[str]:
    """Yields the documents of a corpus, one after another.

    Args:
      name: "openwebtext", which is downloaded subset by subset, or a file or folder of
        `.txt` or `.jsonl` files, plain or gzipped.

    Yields:
      Texts.
    """
    if name == "openwebtext":
        yield from _open_web_text()
        return
    path = Path(name).expanduser()
    lines = path.is_file() and ".jsonl" in path.suffixes
    if lines or (path.is_dir() and any(path.rglob("*.jsonl*"))):
        yield from train.jsonl_documents(path)
    else:
        yield from train.text_documents(path)


def _open_web_text() -> Iterator[str]:
    """Each subset is an archive of archives, of one text file a page."""
    from huggingface_hub import hf_hub_download

    for index in range(_SUBSETS):
        name = f"subsets/urlsf_subset{index:02d}.tar"
        path = hf_hub_download(_OPEN_WEB_TEXT, name, repo_type="dataset")
        with tarfile.open(path) as subset:
            for member in subset:
                packed: Any = subset.extractfile(member) if member.isfile() else None
                if packed is None:
                    continue
                with tarfile.open(fileobj=packed, mode="r|xz") as pages:
                    for page in pages:
                        file = pages.extractfile(page) if page.isfile() else None
                        if file is not None:
                            yield file.read().decode("utf-8", errors="replace")


def token_file(
    texts: Callable[[], Iterable[str]],
    vocabulary: Any,
    *,
    eos_id: int,
    max_tokens: int,
    key: dict[str, Any],
) -> np.ndarray:
    """Ids of a corpus as a memory map, made once and found again in the cache.

    Args:
      texts: gives the documents.
      vocabulary: what encodes them.
      eos_id: put after every document.
      max_tokens: no more documents are read once there are so many.
      key: what the ids depend on, for the cache.

    Returns:
      `[tokens]` uint32, mapped from the file.
    """

    def build(folder: Path) -> None:
        count, some = 0, []
        with (folder / "ids.bin").open("wb") as file:
            for text in texts():
                some.append(text)
                if len(some) == _AT_A_TIME:
                    count += _append(file, some, vocabulary, eos_id)
                    some = []
                if count >= max_tokens:
                    return
            if some:
                _append(file, some, vocabulary, eos_id)

    whole = {**key, "eos": eos_id, "max_tokens": max_tokens}
    return np.memmap(cached("web_tokens", whole, build) / "ids.bin", np.uint32, "r")


def _append(file: Any, some: list[str], vocabulary: Any, eos_id: int) -> int:
    ids = train.tokenize_documents(some, vocabulary, eos_id=eos_id)
    file.write(ids.astype(np.uint32).tobytes())
    return len(ids)


def hub_lines(name: str, file: str) -> Iterator[dict[str, Any]]:
    """Yields the records of a JSONL file of a dataset on the hub.

    Args:
      name: of the dataset.
      file: its path there.

    Yields:
      Mappings.
    """
    import json

    from huggingface_hub import hf_hub_download

    path = hf_hub_download(name, file, repo_type="dataset")
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
