# SPDX-License-Identifier: Apache-2.0
"""What a request says about its own drafting: settings within what the engine drafts, or `OptionError`."""

import json
from dataclasses import fields
from typing import Any

from hypothesis import assume, example, given

from redrafter_vllm.config import DraftingConfig, OptionError
from redrafter_vllm.request_settings import KEY, RequestSettings, parse_request_settings
from tests.fuzz.inputs import damaged, damaged_json, only, to_json

ENGINE = DraftingConfig(beam_width=4, beam_length=3, num_speculative_tokens=8)
OFF = {KEY: {"enabled": False}}
LOWER = {KEY: {"enabled": True, "beam_width": 2, "num_speculative_tokens": 5}}
OTHERS = {"kv_transfer_params": {"do_remote_decode": True}} | LOWER
KEYS = (KEY, *(field.name for field in fields(RequestSettings)))


def parse(extra_args: Any) -> None:
    with only(OptionError):
        settings = parse_request_settings(extra_args, ENGINE)
        assert 1 <= settings.beam_limit(ENGINE) <= ENGINE.beam_width
        assert 0 <= settings.node_limit(ENGINE) <= ENGINE.num_speculative_tokens
        assert isinstance(settings.enabled, bool)


@given(damaged([OFF, LOWER, OTHERS, {}], KEYS))
@example({KEY: {"beam_width": 10**5000}})
@example({KEY: "x\n" * 100_000})
@example({KEY: {"x\n" * 10_000: 1}})
@example([KEY])
def test_extra_args(extra_args: Any) -> None:
    parse(extra_args)


@given(damaged_json([OFF[KEY], LOWER[KEY]], KEYS))
@example(b'{"enabled": false}')
@example(b"[" * 100_000)
def test_json_strings(text: bytes) -> None:
    parse({KEY: text.decode(errors="replace")})


@given(damaged_json([OFF, LOWER], KEYS))
@example(to_json({KEY: [[[[{}]]]]}))
def test_json_bodies(body: bytes) -> None:
    """As a server's own reading leaves them; what is no JSON never comes to the settings."""
    try:
        extra_args = json.loads(body)
    except (ValueError, RecursionError):
        assume(False)
    parse(extra_args)
