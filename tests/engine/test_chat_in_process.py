# SPDX-License-Identifier: Apache-2.0
"""`redrafter chat --in-process`: the answers of plain vLLM, piece by piece, from an engine of this process."""

import json
from io import StringIO
from pathlib import Path

import pytest

from redrafter_vllm.chat import own_engine
from redrafter_vllm.chat.answers import ChatError
from redrafter_vllm.chat.own_engine import Engine
from redrafter_vllm.cli import chat
from tests.engine.chat import TEMPLATE, Messages, chat_prompts, texts
from tests.engine.conftest import MakeEngine
from tests.paths import ASSET

OPTIONS = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--kv-cache-memory-bytes", str(1 << 25)]
FIRST: Messages = [{"role": "user", "content": "sort a list"}]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small pair's target with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "target"
    folder.mkdir()
    for file in ASSET.iterdir():
        (folder / file.name).symlink_to(file)
    described = folder / "tokenizer_config.json"
    content = json.loads(described.read_text())
    described.unlink()
    described.write_text(json.dumps(content | {"chat_template": TEMPLATE}))
    return folder


@pytest.fixture(scope="module")
def engine(target: Path) -> Engine:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_engine, "ENVIRONMENT", {})  # the tests' process has its own
        return Engine(
            str(target), {"method": "redrafter", "model": str(ASSET / "redrafter"), "adaptive": False}, OPTIONS
        )


def test_two_turns_are_those_of_plain_vllm(engine: Engine, make_engine: MakeEngine) -> None:
    from vllm import SamplingParams

    screen = StringIO()
    given = chat.build_parser().parse_args(["MODEL", "--in-process", "--max-tokens", "24"])
    assert chat.converse(engine, given, StringIO("sort a list\nagain\n"), screen) == 0
    plain = make_engine(ASSET, skip_tokenizer_init=False)
    greedy = SamplingParams(temperature=0.0, max_tokens=24)
    (first,) = texts(plain, chat_prompts(plain, [FIRST]), greedy)
    whole: Messages = [*FIRST, {"role": "assistant", "content": first}, {"role": "user", "content": "again"}]
    (second,) = texts(plain, chat_prompts(plain, [whole]), greedy)
    shown = screen.getvalue()
    unmarked = shown.replace("«", "").replace("»", "")
    assert unmarked.startswith(first) and second in unmarked
    assert "«" in shown and shown.count("[24 tokens in ") == 2


def test_a_closed_answer_is_aborted(engine: Engine) -> None:
    pieces = engine.answer(FIRST, max_tokens=24, temperature=0.0)
    next(pieces)
    assert engine._llm.llm_engine.has_unfinished_requests()
    pieces.close()
    assert not engine._llm.llm_engine.has_unfinished_requests()


def test_a_conversation_without_room(engine: Engine) -> None:
    long: Messages = [{"role": "user", "content": "word " * 500}]
    with pytest.raises(ChatError, match=r"the engine refuses the conversation: .*256"):
        next(engine.answer(long, max_tokens=4))


def test_an_engine_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_engine, "ENVIRONMENT", {})
    with pytest.raises(ChatError, match=r"the engine does not start: .*none"):
        Engine(str(tmp_path / "none"), {"method": "redrafter"}, OPTIONS)
