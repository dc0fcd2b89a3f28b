# SPDX-License-Identifier: Apache-2.0
"""`redrafter watch` with both of its own servers, one after the other, on the small pair."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from redrafter_vllm.chat import own_server
from redrafter_vllm.cli import watch
from redrafter_vllm.watch import engine_trees


@pytest.mark.server
def test_both_sides_on_servers_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)  # tests of engines set it
    starts: list[tuple[Any, list[str], list[str]]] = []
    command = own_server.command

    def noted(target: str, speculative: Any, port: int, options: Sequence[str]) -> list[str]:
        starts.append((speculative, list(options), servers()))
        return command(target, speculative, port, options)

    monkeypatch.setattr(own_server, "command", noted)
    page = tmp_path / "watch.html"
    options = ["--dtype", "float32", "--enforce-eager"]
    assert watch.main(["--small", "--max-tokens", "24", "--export", str(page), "--", *options]) == 0
    shown, said = capsys.readouterr()
    assert "stdlib-llama/redrafter" in said
    assert "The same 24 tokens." in shown and " times plain decoding." in shown
    # Trees of the engine itself, with an accepted node.
    assert "─ " in shown and "✓" in shown and engine_trees.NOT_REPORTED not in shown
    assert "vLLM with ReDrafter" in page.read_text(encoding="utf-8")

    (plain, plain_options, before), (drafted, drafted_options, between) = starts
    assert plain is None and drafted["num_speculative_tokens"] == 6
    assert drafted_options == [*plain_options, *engine_trees.OPTIONS] and plain_options[-3:] == options
    # They take no cores from each other, and none is left.
    assert before == between == servers() == []


def servers() -> list[str]:
    """Command lines of the servers that this process has started."""
    children = (child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE)
    return [line for line in (" ".join(child.cmdline()) for child in children) if " serve " in line]
