# SPDX-License-Identifier: Apache-2.0
"""`redrafter chat` with a server that streams given pieces: what is sent, shown, counted and refused."""

import json
import sys
from collections.abc import Generator, Iterator
from io import StringIO
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from redrafter_vllm.chat import own_server
from redrafter_vllm.chat.answers import ChatError, Figures, Piece, Server
from redrafter_vllm.cli import chat
from redrafter_vllm.utils.local_server import is_healthy
from redrafter_vllm.watch import pair
from tests.chat.fake_server import FakeServer, faking

ANSWERS = [[["The"], [" sky", " is", " blue"], ["."]], [["Yes"], [", really"]]]


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with faking(ANSWERS) as server:
        yield server


def talk(fake: FakeServer, *arguments: str, said: str) -> tuple[int, str]:
    """Exit code and screen of a conversation whose prompts come from standard input."""
    screen = StringIO()
    given = chat.build_parser().parse_args(["--url", fake.url, *arguments])
    return chat.converse(Server(fake.url), given, StringIO(said), screen), screen.getvalue()


def test_two_turns(fake: FakeServer) -> None:
    arguments = ("--temperature", "0.7", "--seed", "3", "--max-tokens", "9", "--system", "Be brief.")
    code, shown = talk(fake, *arguments, said="Why?\n\nSure?\n")
    assert code == 0
    first, second = shown.split("[5 tokens in 3 steps, 2.00 tokens per step, ")
    assert first == "The« sky is» blue.\n" and "Yes, really\n[2 tokens in 2 steps, 1.00 tokens per step" in second
    assert [asked["messages"] for asked in fake.asked] == [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "The sky is blue."},
            {"role": "user", "content": "Sure?"},
        ],
    ]
    asked = fake.asked[0]
    assert (asked["model"], asked["temperature"], asked["seed"], asked["max_tokens"]) == ("chat-model", 0.7, 3, 9)
    assert asked["stream"] and asked["logprobs"]


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_thoughts_are_shown_and_counted_but_not_sent_back(fake: FakeServer, field: str) -> None:
    fake.num_thoughts, fake.thoughts = 2, field
    code, shown = talk(fake, said="Why?\nSure?\n")
    assert code == 0
    assert shown.startswith("The« sky is» blue\n\n.\n[5 tokens in 3 steps, 2.00 tokens per step, ")
    assert fake.asked[1]["messages"][1] == {"role": "assistant", "content": "."}


def test_a_new_conversation_and_the_end(fake: FakeServer) -> None:
    assert talk(fake, said="Why?\n/new\nSure?\n/quit\nnever asked\n")[0] == 0
    assert [len(asked["messages"]) for asked in fake.asked] == [1, 1]


def test_refusals_are_sentences(fake: FakeServer) -> None:
    with pytest.raises(ChatError, match="status 400: the context holds 10 tokens"):
        talk(fake, said="too long\n")
    fake.calls.clear()
    with pytest.raises(ChatError, match="the engine died"):
        talk(fake, said="fail\n")
    with pytest.raises(ChatError, match="is vllm serve running there"):
        Server("http://127.0.0.1:1")


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def typing(monkeypatch: pytest.MonkeyPatch, *lines: str | KeyboardInterrupt) -> None:
    """What a user does at the prompt, then Ctrl-D."""
    waiting = iter(lines)

    def typed(prompt: str) -> str:
        line = next(waiting, None)
        if line is None:
            raise EOFError
        if isinstance(line, KeyboardInterrupt):
            raise line
        return line

    monkeypatch.setattr("builtins.input", typed)


def test_at_a_terminal_a_refused_turn_is_forgotten(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typing(monkeypatch, "too long", "Why?")
    fake.calls.clear()
    given = chat.build_parser().parse_args(["--url", fake.url])
    screen = Terminal()
    # The refused turn was asked first, so the fake's second answer comes.
    assert chat.converse(Server(fake.url), given, Terminal(), screen) == 0
    assert "the context holds 10 tokens" in capsys.readouterr().err
    assert fake.asked[-1]["messages"] == [{"role": "user", "content": "Why?"}]
    assert "Yes, really" in screen.getvalue() and "\033[2m[2 tokens" in screen.getvalue()


def test_an_interrupted_line_does_not_end_the_conversation(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    typing(monkeypatch, "Why?", KeyboardInterrupt(), "Sure?")
    screen = Terminal()
    assert chat.converse(Server(fake.url), chat.build_parser().parse_args(["--url", fake.url]), Terminal(), screen) == 0
    assert [len(asked["messages"]) for asked in fake.asked] == [1, 3]
    assert screen.getvalue().count("(/quit or Ctrl-D ends)") == 1


def test_an_interrupted_answer_stays_as_far_as_it_came() -> None:
    """And the next prompt is answered in the same conversation."""
    asked: list[list[dict[str, str]]] = []

    class Interrupted:
        def answer(self, messages: Any, **sampling: Any) -> Generator[Piece, None, None]:
            asked.append(list(messages))
            yield Piece(("The",))
            if len(asked) == 1:
                raise KeyboardInterrupt
            yield Piece((" end",))

    screen = StringIO()
    given = chat.build_parser().parse_args(["--url", "none"])
    assert chat.converse(Interrupted(), given, StringIO("Why?\nSure?\n"), screen) == 0
    assert screen.getvalue().startswith("The (stopped)\n[1 tokens in 1 steps]\n")
    assert [message["content"] for message in asked[1]] == ["Why?", "The", "Sure?"]


def test_colours(fake: FakeServer) -> None:
    screen = Terminal()
    given = chat.build_parser().parse_args(["--url", fake.url])
    chat.converse(Server(fake.url), given, StringIO("Why?\n"), screen)
    assert screen.getvalue().startswith("The\033[30;42m sky is\033[0m blue.")


def test_figures_by_hand() -> None:
    figures = Figures()
    for seconds, piece in enumerate((Piece(("a",)), Piece(("b", "b", "c")), Piece(("d",)))):
        figures.add(piece, seconds)
    assert (figures.tokens, figures.steps, figures.tokens_per_step, figures.tokens_per_second) == (5, 3, 2.0, 2.0)
    assert figures.text == "abbcd"
    assert Figures().tokens_per_step is None and Figures().tokens_per_second is None


@pytest.mark.parametrize(
    "arguments", [["m", "--url", "u"], ["--drafter", "d"], ["--url", "u", "--", "--max-model-len", "5"]], ids=str
)
def test_arguments_that_do_not_go_together(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        chat.main(arguments)


@pytest.fixture
def chat_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the chat model is downloaded to, empty."""
    monkeypatch.setenv("REDRAFTER_HOME", str(tmp_path))
    return tmp_path / "targets" / pair.SMOLLM2


def test_the_chat_model_answers_where_none_is_named(
    chat_target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[str] = []

    def run(command: list[str], **_: object) -> CompletedProcess[str]:
        commands.append(command[-1])
        return CompletedProcess(command, 0)

    monkeypatch.setattr(pair.subprocess, "run", run)
    given = chat.build_parser().parse_args(["--speculative", '{"beam_width": 2}'])
    target, speculative, options = chat._what_to_serve(given, ["--max-model-len", "512"])
    assert target == str(chat_target) and commands == ["fetch-smollm2"]
    assert speculative["model"].endswith("smollm2-135m-instruct/redrafter") and speculative["beam_width"] == 2
    assert options[-2:] == ["--max-model-len", "512"] and "--max-num-seqs" in options
    assert "downloading SmolLM2-135M-Instruct" in capsys.readouterr().err


def test_where_there_is_no_chat_model(
    chat_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The small pair is no chat model, so that it cannot take its place."""
    monkeypatch.setattr(pair.subprocess, "run", lambda command, **_: CompletedProcess(command, 1))
    assert chat.main([]) == 1
    assert "name a MODEL to serve, or the --url of a running server" in capsys.readouterr().err
    monkeypatch.setattr(pair, "__file__", str(tmp_path / "site-packages" / "redrafter_vllm" / "watch" / "pair.py"))
    monkeypatch.chdir(tmp_path)
    assert chat.main(["--in-process"]) == 1
    assert "in a clone of the repository" in capsys.readouterr().err


SCRIPT = """
import http.server, sys
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy).serve_forever()
"""


@pytest.mark.process
def test_a_server_of_ones_own_ends_with_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_server, "command", lambda _, __, port, ___: [sys.executable, "-c", SCRIPT, str(port)])
    waited: list[float] = []
    with own_server.serving("target", {}, [], waited.append) as url:
        assert is_healthy(url)
    assert not is_healthy(url) and waited


@pytest.mark.process
def test_a_server_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "print('line'); import sys; sys.exit('Error: there is no such target')"
    monkeypatch.setattr(own_server, "command", lambda *args: [sys.executable, "-c", script])
    with (
        pytest.raises(ChatError, match="status 1: Error: there is no such target"),
        own_server.serving("t", {}, [], print),
    ):
        pass


def test_the_command_line(tmp_path: Path) -> None:
    line = own_server.command("target", {"method": "redrafter"}, 99, ["--max-model-len", "5"])
    assert line[0].endswith("vllm") and line[1:4] == ["serve", "target", "--speculative-config"]
    assert json.loads(line[4]) == {"method": "redrafter"}
    assert line[5:] == ["--host", "127.0.0.1", "--port", "99", "--max-model-len", "5"]
