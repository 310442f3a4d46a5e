"""Files that `torch.save` wrote: read without executing anything in them, and what they hold checked."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from .errors import is_out_of_memory
from .reading import require_regular_file

__all__ = ["check_weights", "is_plain", "read_tensors"]


def read_tensors(path: str | Path, refusal: str) -> Any:
    """The content of a file, on the CPU; it takes about as much memory as the file is long.

    Args:
        path: the file.
        refusal: what the error says where it is damaged, or holds more than tensors and plain values.

    Raises:
        FileNotFoundError: if there is no such file.
        MemoryError: if memory runs out; torch raises a RuntimeError for it.
        OSError: if it cannot be read.
        ValueError: if it is damaged, holds objects of other classes, or is no regular file.
    """
    require_regular_file(path)
    try:
        # Opened once: a training may put another in its place at any time.
        with Path(path).open("rb") as file:
            if zipfile.is_zipfile(file):  # all but files from before torch 1.6
                _check_archive(file)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # where bytes are wrong, zipfile, torch and pickle stumble over them in any way
        named = isinstance(error, OSError) and error.filename is not None  # torch seeks before the start of a cut file
        if named or is_out_of_memory(error):
            raise
        raise ValueError(f"{path} {refusal}") from error


def _check_archive(file: IO[bytes]) -> None:
    """Raises an error where a part is not what was written, of which torch looks at no checksum, or is compressed.

    `torch.save` compresses nothing; a part that is would unfold to any size. For 300 MB in the page cache it takes
    0.09 s, where `torch.load` takes 0.05 s.
    """
    with zipfile.ZipFile(file) as archive:
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
            raise zipfile.BadZipFile("a part is compressed")
        if (part := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"the checksum of {part} is wrong")


def check_weights(weights: Mapping[Any, Any], path: str | Path, cure: str) -> None:
    """Checks that weights are tensors in memory under their names, of finite numbers in float32.

    Args:
        weights: a state dict.
        path: where it comes from.
        cure: what to do otherwise.

    Raises:
        ValueError: if they are not.
    """
    for name, weight in weights.items():
        if not isinstance(name, str):
            raise ValueError(f"{path} names a weight by {type(name).__name__}, not by text; {cure}")
        if not isinstance(weight, Tensor) or not is_plain(weight):
            raise ValueError(f"{path} holds something else than a plain tensor as the weight {name}; {cure}")
        if weight.is_floating_point() and not bool(weight.float().isfinite().all()):
            raise ValueError(f"{path} holds NaN or infinity in the weight {name}; {cure}")


def is_plain(weight: Tensor) -> bool:
    """Whether every element lies in memory: a tensor that repeats few of them may claim any size."""
    if weight.layout != torch.strided or weight.device.type != "cpu" or weight.is_quantized or weight.is_complex():
        return False
    return weight.numel() * weight.element_size() <= weight.untyped_storage().nbytes()
