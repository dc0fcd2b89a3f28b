# SPDX-License-Identifier: Apache-2.0
"""The configurations that `redrafter bench` compares: plain vLLM, ReDrafter, and others given as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redrafter_vllm.bench.kinds import as_users_run_it
from redrafter_vllm.checkpoint.locate import resolve_drafter
from redrafter_vllm.config import parse_drafting_options
from redrafter_vllm.utils.messages import shown

PLAIN = "plain vLLM"
METHOD = "redrafter"
# ReDrafter's own configurations by name.
OURS: dict[str, dict[str, Any]] = {
    "ReDrafter fixed": {"adaptive": False},
    "ReDrafter adaptive": {"adaptive": True},
}
# Keys of vLLM's speculative config that ReDrafter's may have beside its own options.
_SCHEDULE = "num_speculative_tokens_per_batch_size"
_VLLMS_KEYS = ("method", "model", _SCHEDULE)


class ConfigurationError(ValueError):
    """A configuration that cannot be run; the message is one sentence."""


@dataclass(frozen=True)
class Configuration:
    """A name, vLLM's speculative config (None for plain vLLM), and the environment of its engine."""

    name: str
    speculative: Mapping[str, Any] | None
    env: Mapping[str, str]

    @property
    def is_redrafter(self) -> bool:
        return self.speculative is not None and self.speculative.get("method") == METHOD

    @property
    def adapts(self) -> bool:
        """Whether its trees adapt to load and confidence, where they can: see `DraftingConfig.adaptive`."""
        if not self.is_redrafter or self.speculative is None:
            return False
        adaptive = _drafting(self.speculative).adaptive
        return not self.speculative.get(_SCHEDULE) if adaptive is None else bool(adaptive)

    @property
    def slots(self) -> int:
        """Draft tokens of a request in a step, at most, as far as it is known here."""
        if self.speculative is None:
            return 0
        if self.is_redrafter:
            return _drafting(self.speculative).num_speculative_tokens
        given = self.speculative.get("num_speculative_tokens")
        return given if isinstance(given, int) else 32


def compared(
    target: str, drafter: str | None, given: Sequence[str], *, has_gpu: bool, redrafter: bool = True
) -> tuple[Configuration, ...]:
    """Plain vLLM, ReDrafter with fixed and with adaptive trees and the `given` ones, NAME=JSON.

    Raises:
        ConfigurationError: Another form, a name twice, or options that ReDrafter does not have.
        DrafterNotFoundError: No drafter for the target.
    """
    plain = as_users_run_it(has_gpu)
    found = [Configuration(PLAIN, None, plain.env)]
    named = [_read(text) for text in given]
    needs_drafter = redrafter or any(spec.get("method") == METHOD and "model" not in spec for _, spec in named)
    model = str(resolve_drafter(drafter, target)) if needs_drafter else None
    if redrafter:
        for name, options in OURS.items():
            found.append(Configuration(name, {"method": METHOD, "model": model, **options}, {}))
    for name, spec in named:
        if spec.get("method") == METHOD:
            found.append(Configuration(name, {"model": model, **spec}, {}))
        else:
            found.append(Configuration(name, spec, plain.env))
    names = [configuration.name for configuration in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"two configurations have the name {shown(name)}: give another one")
    for configuration in found:
        if configuration.is_redrafter and configuration.speculative is not None:
            _drafting(configuration.speculative)
    return tuple(found)


def _read(text: str) -> tuple[str, dict[str, Any]]:
    name, equals, value = text.partition("=")
    example = """ngram='{"method": "ngram", "num_speculative_tokens": 4}'"""
    if not (equals and name.strip()) or name.lstrip().startswith("{"):
        raise ConfigurationError(f"--config {shown(text)} has no name: give NAME=JSON, for instance {example}")
    try:
        spec = json.loads(value)
    except ValueError as error:
        raise ConfigurationError(
            f"--config {name}: {shown(value)} is not JSON ({error}); an example: {example}"
        ) from None
    if not isinstance(spec, dict) or not ({"method", "model"} & spec.keys()):
        raise ConfigurationError(
            f"--config {name}: {shown(value)} is no speculative config of vLLM: it must be an object with a method or "
            f"a model; an example: {example}"
        )
    return name.strip(), spec


def _drafting(speculative: Mapping[str, Any]) -> Any:
    """Raises OptionError, which is a ValueError, for options that ReDrafter does not have."""
    return parse_drafting_options(speculative, _VLLMS_KEYS)
