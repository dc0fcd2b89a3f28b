# SPDX-License-Identifier: Apache-2.0
"""A target's hidden states and top-1 tokens on disk, in shards that are written atomically.

<folder>/cache.json                  what the states were computed from
<folder>/head.safetensors            the target's LM head and embedding
<folder>/hidden-00000.safetensors    `hidden` [tokens, H] bfloat16 and `top1_ids` [tokens] int32, text after text

The top-1 tokens are stored because a drafter with a draft vocabulary then needs the head's rows of that alone.
"""

import json
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from redrafter_training.config.recipe import DistillConfig
from redrafter_training.target.lm_head import LogitRule, TargetHead
from redrafter_training.utils.differences import differences
from redrafter_vllm.utils import strict_json
from redrafter_vllm.utils.atomic import atomic_file

MANIFEST = "cache.json"
HEAD = "head.safetensors"
SHARD_BYTES = 256 << 20
OPEN_SHARDS = 256
DTYPE = torch.bfloat16
ID_TYPE = torch.int32


class HiddenCacheError(ValueError):
    """A cache of hidden states that cannot be used or filled."""


@dataclass(frozen=True)
class StoredStates:
    """What is stored of one text of n tokens, or of all texts of a shard."""

    hidden: Tensor  # [n, H]
    top1_ids: Tensor  # [n]


class HiddenCache:
    """Hidden states of texts of known lengths.

    Args:
        lengths: tokens of each text.
        shard_bytes: maximum size of a shard, unless a single text is larger.
    """

    def __init__(
        self, folder: Path, lengths: Sequence[int], hidden_size: int, *, shard_bytes: int = SHARD_BYTES
    ) -> None:
        self.folder = folder
        self.hidden_size = hidden_size
        self._starts = [0, *accumulate(lengths)]  # of the texts, in tokens
        self._firsts = _cut(lengths, max(1, shard_bytes // token_bytes(hidden_size)))  # text of each shard
        self._open = lru_cache(OPEN_SHARDS)(self._open_shard)

    @property
    def num_shards(self) -> int:
        return len(self._firsts) - 1

    def texts(self, shard: int) -> range:
        """The texts of a shard."""
        return range(self._firsts[shard], self._firsts[shard + 1])

    def length(self, text: int) -> int:
        return self._starts[text + 1] - self._starts[text]

    def size(self, shards: Sequence[int]) -> int:
        """Bytes of these shards."""
        return sum(self._tokens(shard) for shard in shards) * token_bytes(self.hidden_size)

    def missing(self) -> list[int]:
        """The shards that do not exist or cannot be read."""
        return [shard for shard in range(self.num_shards) if not self._is_complete(shard)]

    def write(self, shard: int, states: StoredStates) -> None:
        """Stores the states of a shard's texts, of any dtype, atomically.

        Raises:
            HiddenCacheError: they could not be written, because the disk is full for instance.
        """
        expected = [self._tokens(shard), self.hidden_size]
        assert list(states.hidden.shape) == expected, (states.hidden.shape, expected)
        stored = {
            "hidden": states.hidden.to("cpu", DTYPE).contiguous(),
            "top1_ids": states.top1_ids.to("cpu", ID_TYPE).contiguous(),
        }
        self._write_atomically(self._path(shard), lambda path: save_file(stored, path))

    def read(self, text: int) -> StoredStates:
        """The states of one text."""
        shard = bisect_right(self._firsts, text) - 1
        base = self._starts[self._firsts[shard]]
        rows = slice(self._starts[text] - base, self._starts[text + 1] - base)
        hidden, top1_ids = self._open(shard)
        return StoredStates(hidden[rows], top1_ids[rows])

    def check_identity(self, identity: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
        """Whether the folder contains a cache of the same identity.

        Args:
            identity: what determines the states.
            settings: how the texts were chosen; named in the message if the identity differs.

        Raises:
            HiddenCacheError: it contains a cache of another identity; the message names the differences.
        """
        path = self.folder / MANIFEST
        if not path.is_file():
            return False
        try:
            found = strict_json.loads(path.read_text())
            before, chosen = dict(found["identity"]), found["settings"]
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise HiddenCacheError(f"{path} cannot be read ({problem}): remove the folder") from problem
        if changed := differences(before, _plain(identity)):
            if named := differences(chosen, _plain(settings)):
                changed = [change for change in changed if not change.startswith("texts.")] + named
            raise HiddenCacheError(
                f"the hidden states in {self.folder} were computed from other inputs ({', '.join(changed)}): choose "
                "another --hidden-cache, or remove the folder"
            )
        return True

    def begin(self, identity: Mapping[str, Any], settings: Mapping[str, Any], head: TargetHead) -> None:
        """Makes the folder and writes everything except the shards; deletes shards of unknown origin.

        Raises:
            HiddenCacheError: as `write`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob("hidden-*.safetensors"):
            path.unlink()
        text = strict_json.dumps({"identity": _plain(identity), "settings": _plain(settings)}, indent=2) + "\n"
        self._write_atomically(self.folder / MANIFEST, lambda path: path.write_text(text))
        tensors = {"weight": head.weight}
        if head.bias is not None:
            tensors["bias"] = head.bias
        if head.embedding is not head.weight:
            tensors["embedding"] = head.embedding
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        rule = {"rule": json.dumps(asdict(head.rule))}
        self._write_atomically(self.folder / HEAD, lambda path: save_file(stored, path, metadata=rule))

    def has_head(self) -> bool:
        return (self.folder / HEAD).is_file()

    def head(self) -> TargetHead:
        """The target's head, as stored by `begin`."""
        path = self.folder / HEAD
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            rule = json.loads(file.metadata()["rule"])
        weight = tensors["weight"]
        return TargetHead(weight, tensors.get("bias"), tensors.get("embedding", weight), LogitRule(**rule))

    def _tokens(self, shard: int) -> int:
        texts = self.texts(shard)
        return self._starts[texts.stop] - self._starts[texts.start]

    def _path(self, shard: int) -> Path:
        return self.folder / f"hidden-{shard:05d}.safetensors"

    def _open_shard(self, shard: int) -> tuple[Any, Any]:
        """Views of `hidden` and `top1_ids` that read from disk on access."""
        file = safe_open(self._path(shard), "pt")
        return file.get_slice("hidden"), file.get_slice("top1_ids")

    def _is_complete(self, shard: int) -> bool:
        try:
            hidden, top1_ids = self._open_shard(shard)  # not kept open, as an incomplete shard will be replaced
        except (OSError, SafetensorError):
            return False
        tokens = self._tokens(shard)
        return hidden.get_shape() == [tokens, self.hidden_size] and top1_ids.get_shape() == [tokens]

    def _write_atomically(self, path: Path, write: Callable[[Path], object]) -> None:
        try:
            with atomic_file(path) as temporary:
                write(temporary)
        except (OSError, SafetensorError) as problem:
            raise HiddenCacheError(
                f"{path} could not be written ({problem}); earlier shards are complete: make room there and give the "
                "same command again"
            ) from problem


def max_bytes(config: DistillConfig, hidden_size: int, held_out_windows: int) -> int:
    """An upper bound of the cache's size: assumes that no window of the data is repeated, unlike those of responses."""
    response_rows = round(config.batch_size * config.response_fraction)
    steps = config.budget.steps
    responses = steps * response_rows
    if not config.responses.folders:  # a response has at most a window's tokens, and every window may begin with BOS
        responses = min(responses, config.responses.count * config.window // (config.window - 1))
    rows = steps * (config.batch_size - response_rows) + responses + held_out_windows
    return rows * config.window * token_bytes(hidden_size)


def token_bytes(hidden_size: int) -> int:
    """Bytes that a token takes."""
    return hidden_size * DTYPE.itemsize + ID_TYPE.itemsize


def _cut(lengths: Sequence[int], max_tokens: int) -> list[int]:
    """The first text of each shard of at most `max_tokens` tokens, then the number of texts."""
    firsts, used = [0], 0
    for text, length in enumerate(lengths):
        if used and used + length > max_tokens:
            firsts.append(text)
            used = 0
        used += length
    return [*firsts, len(lengths)] if lengths else [0]


def _plain(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return strict_json.loads(strict_json.dumps(mapping, default=str))
