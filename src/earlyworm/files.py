"""Files that are whole or absent, and nested state as one safetensors file."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from earlyworm.errors import RunError

TEMPORARY = ".*.tmp"  # pattern of the files that a process leaves behind if it is killed within `write_atomically`


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at any moment it is either the old one or the new one, whole.

    Raises:
        OSError: If it cannot be written; what was there before stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def pack(state: Any) -> bytes:
    """Nested dictionaries, lists, tuples, numbers, strings, None and tensors as one safetensors file.

    Raises:
        TypeError: If there is anything else in it.
    """
    tensors: dict[str, Tensor] = {}

    def encode(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors[f"{len(tensors):06d}"] = value.detach().cpu().contiguous().clone()
            # How tensors are laid out decides how fast, and in which order, numbers are taken from them.
            return {"tensor": f"{len(tensors) - 1:06d}", "stride": torch.empty_like(value, device="meta").stride()}
        if isinstance(value, dict):
            return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
        if isinstance(value, tuple):
            return {"tuple": [encode(item) for item in value]}
        if isinstance(value, list):
            return [encode(item) for item in value]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(f"a saved state cannot hold a {type(value).__name__}")

    encoded, tensors = json.dumps(encode(state)), tensors or {"empty": torch.zeros(0)}
    return save(tensors, {"state": json.dumps({"sha256": checksum(encoded, tensors), "state": encoded})})


def unpack(content: bytes) -> Any:
    """Inverse of `pack`.

    Raises:
        RunError: If the content is damaged.
    """
    try:
        tensors = load(content)
        size = int.from_bytes(content[:8], "little")
        envelope = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["state"])
        if envelope["sha256"] != checksum(envelope["state"], tensors):
            raise ValueError("the checksum is wrong")
        encoded = json.loads(envelope["state"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"the saved state is damaged ({error}): go on from an older one, or start afresh") from error

    def decode(value: Any) -> Any:
        if isinstance(value, list):
            return [decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "tensor" in value:
            tensor = tensors[value["tensor"]]
            return torch.empty_strided(tensor.shape, value["stride"], dtype=tensor.dtype).copy_(tensor)
        if "tuple" in value:
            return tuple(decode(item) for item in value["tuple"])
        return {decode(key): decode(item) for key, item in value["dict"]}

    return decode(encoded)


def checksum(text: str, tensors: dict[str, Tensor]) -> str:
    """A digest of a text and of tensors on the CPU, with their names, types and shapes: a flipped bit changes it."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
