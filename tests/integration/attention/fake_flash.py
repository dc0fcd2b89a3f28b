# SPDX-License-Identifier: Apache-2.0
"""Replacements for the CUDA extensions of vLLM's FlashAttention only.

vLLM's Python code around them is used: the choice of a version, the metadata builders, the argument checks. The
replacements compute attention by its definition in fp64 and check the extensions' conditions on their arguments.
"""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.devices import HAS_GPU

_INTERFACE = "vllm.vllm_flash_attn.flash_attn_interface"


def flash_attention(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> "FakeFlash | None":
    """FlashAttention of this GPU (None), or without a GPU its replacement for such a device."""
    return None if HAS_GPU else FakeFlash(monkeypatch, capability)


class FakeFlash:
    """Counts calls: one tuple (version, causal, requests, is scheduled) for each."""

    dtypes: tuple[torch.dtype, ...] = (torch.float16, torch.bfloat16)

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
        self.calls: list[tuple[int, bool, int, bool]] = []
        self._pretend(monkeypatch, capability)

        from vllm.v1.attention.backends import flash_attn

        self._load(monkeypatch, capability)
        from vllm.vllm_flash_attn import flash_attn_interface as interface

        for name in ("flash_attn_varlen_func", "get_scheduler_metadata"):
            monkeypatch.setattr(flash_attn, name, getattr(interface, name), raising=False)
        monkeypatch.setattr(flash_attn, "is_flash_attn_varlen_func_available", lambda: True)
        monkeypatch.setattr(flash_attn, "reshape_and_cache_flash", _store, raising=False)

    def _pretend(self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
        from vllm.platforms import current_platform
        from vllm.platforms.interface import DeviceCapability

        answer = classmethod(lambda cls, device_id=0: DeviceCapability(*capability))
        monkeypatch.setattr(type(current_platform), "get_device_capability", answer)

    def _load(self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
        for name in ("vllm.vllm_flash_attn", _INTERFACE):
            monkeypatch.delitem(sys.modules, name, raising=False)
        versions = {2: SimpleNamespace(varlen_fwd=self._fa2)}
        if capability[0] == 9:
            versions[3] = SimpleNamespace(fwd=self._fa3, get_scheduler_metadata=_schedule)
        for version, operators in versions.items():
            name = f"_vllm_fa{version}_C"
            monkeypatch.setitem(sys.modules, f"vllm.vllm_flash_attn.{name}", ModuleType(name))
            monkeypatch.setattr(torch.ops, name, operators, raising=False)

    def _fa2(
        self, q: Tensor, k: Tensor, v: Tensor, out: Tensor | None, cu_q: Tensor, cu_k: Tensor, used_k: Tensor,
        left_pad: None, table: Tensor, alibi: None, max_q: int, max_k: int, dropout: float, scale: float,
        zero: bool, causal: bool, left: int, right: int, softcap: float, with_probabilities: bool, num_splits: int,
        generator: None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        assert q.dtype == k.dtype == v.dtype and q.dtype in self.dtypes
        assert k.shape[1] % 16 == 0 and num_splits in (0, 1)
        assert (left, right, softcap) == (-1, -1, 0.0) and alibi is None
        self.calls.append((2, causal, len(used_k), False))
        return _attend(q, k, v, out, cu_q, used_k, table, max_q, max_k, scale, causal, torch.inf)

    def _fa3(
        self, q: Tensor, k: Tensor, v: Tensor, k_new: None, v_new: None, q_v: None, out: Tensor | None, cu_q: Tensor,
        cu_k: None, cu_k_new: None, used_q: None, used_k: Tensor, max_q: int, max_k: int, table: Tensor,
        batch_index: None, left_pad: None, cos: None, sin: None, lengths: None, q_descale: Tensor | None,
        k_descale: Tensor | None, v_descale: Tensor | None, scale: float, causal: bool, left: int, right: int,
        softcap: float, interleaved: bool, schedule: Tensor | None, *rest: Any,
    ) -> tuple[Tensor, Tensor, None, None]:  # fmt: skip
        assert q.dtype == k.dtype == v.dtype
        assert (left, right, softcap) == (-1, -1, 0.0)
        if schedule is not None:
            assert torch.equal(schedule, _fingerprint(used_k, causal, max_q)), (
                "the schedule is that of another attention"
            )
        if q.dtype == torch.float8_e4m3fn:
            assert q_descale is not None and k_descale is not None and v_descale is not None
            assert q_descale.shape == k_descale.shape == v_descale.shape == (len(used_k), k.shape[2])
            q, k, v = (x.float() * s.flatten()[0] for x, s in ((q, q_descale), (k, k_descale), (v, v_descale)))
            out = torch.empty(q.shape, dtype=torch.bfloat16) if out is None else out
        self.calls.append((3, causal, len(used_k), schedule is not None))
        result = _attend(q, k, v, out, cu_q, used_k, table, max_q, max_k, scale, causal, -torch.inf)
        return *result, None, None


def _attend(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor | None, cu_q: Tensor, used_k: Tensor, table: Tensor, max_q: int,
    max_k: int, scale: float, causal: bool, empty: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """[tokens, heads, size] and [heads, tokens]; `empty` is the log-sum of a row that sees no key."""
    assert cu_q.dtype == used_k.dtype == table.dtype == torch.int32
    assert len(cu_q) == len(used_k) + 1 == len(table) + 1 and table.stride(1) == 1
    assert int(cu_q.diff().min()) >= 0 and int(cu_q.diff().max()) <= max_q and int(cu_q[-1]) <= len(q)
    assert int(used_k.min()) >= 0 and int(used_k.max()) <= max_k
    out = torch.full_like(q, torch.nan) if out is None else out
    assert out.shape == q.shape
    log_sum = torch.full((q.shape[1], q.shape[0]), torch.nan)
    page = k.shape[1]
    for request, num_keys in enumerate(used_k.tolist()):
        rows = range(int(cu_q[request]), int(cu_q[request + 1]))
        slot = torch.arange(num_keys)
        block = table[request, slot // page].long()
        keys, values = k[block, slot % page].double(), v[block, slot % page].double()
        for place, row in enumerate(rows):
            seen = num_keys - len(rows) + place + 1 if causal else num_keys
            for head in range(q.shape[1]):
                kv_head = head // (q.shape[1] // k.shape[2])
                if seen == 0:
                    out[row, head], log_sum[head, row] = 0, empty
                    continue
                scores = keys[:seen, kv_head] @ q[row, head].double() * scale
                out[row, head] = (scores.softmax(0) @ values[:seen, kv_head]).to(out.dtype)
                log_sum[head, row] = scores.logsumexp(0)
    return out, log_sum


def _schedule(
    batch_size: int, max_q: int, max_k: int, heads: int, kv_heads: int, size: int, size_v: int, dtype: torch.dtype,
    used_k: Tensor, cu_q: Tensor, cu_k: None, cu_k_new: None, used_q: None, left_pad: None, page: int, k_new: int,
    causal: bool, *rest: Any,
) -> Tensor:  # fmt: skip
    assert batch_size == len(used_k) == len(cu_q) - 1
    return _fingerprint(used_k, causal, max_q)


def _fingerprint(used_k: Tensor, causal: bool, max_q: int) -> Tensor:
    """The arguments on which a schedule depends."""
    return torch.cat((used_k, torch.tensor([int(causal), max_q], dtype=torch.int32)))


def _store(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor, dtype: str, *scales: Tensor
) -> None:
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            block, offset = divmod(slot, key_cache.shape[1])
            key_cache[block, offset], value_cache[block, offset] = key[token], value[token]
