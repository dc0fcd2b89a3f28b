# SPDX-License-Identifier: Apache-2.0
"""The Triton backend named `cpu`: it compiles nothing; its presence makes vLLM use Triton, interpreted.

Triton imports its backends before any kernel is decorated, so setting `TRITON_INTERPRET` here is early enough, and
`vllm serve` needs no environment variable. Where the backend must not be active (see `redrafter_cpu.detect`) nothing
is set and it is removed from Triton's table; a real CPU backend takes its place.
"""

from __future__ import annotations

import os

from redrafter_cpu.detect import Decision, decide
from redrafter_cpu.triton_backend.hide import hide
from redrafter_cpu.vllm_metadata import alias_vllm

DECISION: Decision = decide()

alias_vllm()  # whatever is decided: with Triton switched off the command `vllm` must start, too
if DECISION.active:
    os.environ["TRITON_INTERPRET"] = "1"
else:
    hide()
