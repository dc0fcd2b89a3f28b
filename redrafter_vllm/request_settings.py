# SPDX-License-Identifier: Apache-2.0
"""Drafting options of a single request: `{"redrafter": {...}}` among its extra arguments.

Also as a JSON string, which is what vLLM's own field for them, `vllm_xargs`, has a place for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from redrafter_vllm.config import DraftingConfig, OptionError
from redrafter_vllm.utils import strict_json
from redrafter_vllm.utils.messages import shown

KEY = "redrafter"


@dataclass(frozen=True)
class RequestSettings:
    """Drafting options of one request, within those of the engine.

    Attributes:
        enabled: False decodes the request as vLLM does without drafts.
        beam_width: Use only the best beams of the last step, this many, and their prefixes; 1 to W, None uses all.
        num_speculative_tokens: Use only the most probable nodes, this many, 1 to N; None uses all of them.
    """

    enabled: bool = True
    beam_width: int | None = None
    num_speculative_tokens: int | None = None

    def beam_limit(self, drafting: DraftingConfig) -> int:
        """Beams that the request's tree may be made of."""
        return drafting.beam_width if self.beam_width is None else self.beam_width

    def node_limit(self, drafting: DraftingConfig) -> int:
        """Nodes that the request's tree may have; 0 disables drafting."""
        if not self.enabled:
            return 0
        own = self.num_speculative_tokens
        limit = drafting.num_speculative_tokens if own is None else own
        return min(limit, self.beam_limit(drafting) * drafting.beam_length)


def parse_request_settings(extra_args: Mapping[str, Any] | None, drafting: DraftingConfig) -> RequestSettings:
    """Settings of a request with these extra arguments, on an engine with these drafting options.

    Raises:
        OptionError: An unknown name, a value of another type, or one beyond the engine's options.
    """
    if extra_args is not None and not isinstance(extra_args, Mapping):
        raise OptionError(f"A request's extra arguments must be a mapping, not {shown(extra_args)}.")
    given = (extra_args or {}).get(KEY)
    if given is None:
        return RequestSettings()
    settings = _from_json(given) if isinstance(given, str) else given
    if not isinstance(settings, Mapping):
        raise OptionError(
            f"{KEY!r} must be an object such as {{'enabled': false}}, or one as a JSON string, not {shown(given)}."
        )
    known = [field.name for field in fields(RequestSettings)]
    if unknown := [name for name in settings if name not in known]:
        raise OptionError(
            f"Unknown setting {shown(unknown[0])} in {KEY!r} of the request; known are {', '.join(known)}."
        )
    enabled = settings.get("enabled", True)
    if not isinstance(enabled, bool):
        raise OptionError(f"'enabled' in {KEY!r} of the request must be true or false, not {shown(enabled)}.")
    return RequestSettings(
        enabled,
        _within(settings, "beam_width", drafting.beam_width),
        _within(settings, "num_speculative_tokens", drafting.num_speculative_tokens),
    )


def _from_json(text: str) -> Any:
    try:
        return strict_json.loads(text)
    except ValueError:
        return None


def _within(given: Mapping[str, Any], name: str, maximum: int) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionError(f"{name!r} in {KEY!r} of the request must be an integer, not {shown(value)}.")
    if not 1 <= value <= maximum:
        raise OptionError(
            f"{name}={shown(value)} in {KEY!r} of the request is out of range; this engine takes 1 to {maximum}, and "
            "'enabled': false for no drafts."
        )
    return value
