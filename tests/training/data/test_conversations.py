# SPDX-License-Identifier: Apache-2.0
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from redrafter_training.data.conversations import Conversation, Turn, iter_conversations, load_conversations
from redrafter_training.data.report import DataError, DataReport, Reason, UnusableRecord
from tests.paths import SHARED

TURNS = (Turn("system", "Be kind."), Turn("user", "Hi"), Turn("assistant", "Hello"))
SHAREGPT = {
    "conversations": [
        {"from": "system", "value": "Be kind."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello"},
    ]
}
MESSAGES = {
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ]
}


def store(folder: Path, records: list[Any], kind: str) -> str:
    path = folder / f"data.{kind}"
    if kind == "json":
        path.write_text(json.dumps(records))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return str(path)


def said(*turns: str) -> dict[str, Any]:
    """A ShareGPT record from strings such as `human: Hi`."""
    pairs = [turn.split(": ", 1) for turn in turns]
    return {"conversations": [{"from": role, "value": value} for role, value in pairs]}


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("record", "turns"),
    [
        (SHAREGPT, TURNS),
        (MESSAGES, TURNS),
        ({"conversations": MESSAGES["messages"]}, TURNS),
        ({"messages": SHAREGPT["conversations"]}, TURNS),
        ({"conversation": MESSAGES["messages"], "model": "vicuna-13b", "redacted": False}, TURNS),
        ({"instruction": "Hi", "input": "", "output": "Hello"}, TURNS[1:]),
        ({"instruction": "Hi", "output": "Hello"}, TURNS[1:]),
        (
            {"instruction": "Add.", "input": "1 and 2", "output": "3"},
            (Turn("user", "Add.\n\n1 and 2"), Turn("assistant", "3")),
        ),
    ],
)
def test_every_form_in_every_kind_of_file(
    tmp_path: Path, kind: str, record: dict[str, Any], turns: tuple[Turn, ...]
) -> None:
    conversations, report = load_conversations([store(tmp_path, [record, record], kind)])
    assert [c.turns for c in conversations] == [turns, turns]
    assert (report.used, report.skipped) == (2, 0)
    assert conversations[1].where == ("data.jsonl:2" if kind == "jsonl" else f"data.{kind}[1]")


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet"])
def test_plain_text(tmp_path: Path, kind: str) -> None:
    conversations, _ = load_conversations([store(tmp_path, [{"text": "One.\n"}, {"text": "Two."}], kind)])
    assert [c.text for c in conversations] == ["One.\n", "Two."]


def test_a_text_file_is_one_text(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("One.\n\nTwo.\n")
    conversations, _ = load_conversations([str(tmp_path / "book.txt")])
    assert conversations == [Conversation("book.txt", text="One.\n\nTwo.\n")]


def test_data_sets_are_loaded_by_the_datasets_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "chats"
    folder.mkdir()
    store(folder, [SHAREGPT, said("human: Only a question")], "parquet")
    conversations, report = load_conversations([str(folder)])
    assert [c.turns for c in conversations] == [TURNS]
    assert [s.where for s in report.examples[Reason.NO_ASSISTANT]] == [f"{folder}[1]"]
    with pytest.raises(DataError, match="split 'nowhere'"):
        load_conversations([str(folder)], split="nowhere")


@pytest.fixture
def carded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a data set's card: two configurations, the second of which has one split."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "carded"
    folder.mkdir()
    for name in ("train_sft", "test_sft", "only"):
        messages = [{"role": "user", "content": name}, {"role": "assistant", "content": "Hello"}]
        (folder / f"{name}.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    splits = {"default": ("train_sft", "test_sft"), "small": ("only",)}
    card = "".join(
        f"- config_name: {config}\n  data_files:\n" + "".join(f"  - split: {n}\n    path: {n}.jsonl\n" for n in names)
        for config, names in splits.items()
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{card}---\n")
    return folder


def test_configuration_and_split_of_a_data_set(carded: Path) -> None:
    def first(**choice: str) -> str:
        return load_conversations([str(carded)], **choice)[0][0].turns[0].content

    assert first(config="default", split="test_sft") == "test_sft"
    assert first(config="default", split="train_sft[:1]") == "train_sft"
    assert first(config="small") == "only"  # the only split there is
    with pytest.raises(DataError, match=r"no split named train; --data-split chooses one of train_sft, test_sft"):
        first(config="default")
    with pytest.raises(DataError, match=r"configuration 'huge'"):
        first(config="huge")


def test_a_file_has_no_splits(tmp_path: Path) -> None:
    source = store(tmp_path, [SHAREGPT], "jsonl")
    for choice in ({"split": "train"}, {"config": "default"}):
        with pytest.raises(DataError, match=r"is a file and has neither configurations nor splits"):
            load_conversations([source], **choice)


def test_an_object_of_lists_is_a_list_of_turns(tmp_path: Path) -> None:
    record = {"conversations": {"from": ["human", "gpt"], "value": ["Hi", "Hello"]}}
    conversations, _ = load_conversations([store(tmp_path, [record], "json")])
    assert conversations[0].turns == TURNS[1:]


BAD_RECORDS: list[tuple[Any, Reason, str]] = [
    ([1, 2], Reason.NOT_AN_OBJECT, "list"),
    ({"id": 3}, Reason.MISSING_COLUMN, "conversations"),
    ({"conversations": "Hi"}, Reason.NOT_A_LIST, "str"),
    ({"conversations": [{"from": "human"}]}, Reason.BAD_TURN, "turn 0"),
    ({"conversations": ["Hi"]}, Reason.BAD_TURN, "turn 0"),
    ({"conversations": []}, Reason.EMPTY, ""),
    (said("human: Hi", "gpt:  "), Reason.EMPTY, "the assistant's turn 1"),
    (said("human: Hi", "narrator: 4"), Reason.UNKNOWN_ROLE, "'narrator' in turn 1"),
    ({"conversations": [{"from": None, "value": "Hi"}]}, Reason.UNKNOWN_ROLE, "None in turn 0"),
    ({"conversations": [{"from": "human", "value": 5}]}, Reason.NOT_A_STRING, "int"),
    ({"conversations": [{"from": "human", "value": None}]}, Reason.NOT_A_STRING, "NoneType"),
    (said("human: half \ud83d"), Reason.BROKEN_TEXT, "turn 0"),
    (said("human: Hi"), Reason.NO_ASSISTANT, ""),
    (said("system: Be kind."), Reason.NO_ASSISTANT, "system turn only"),
    (said("gpt: Hello"), Reason.ROLE_ORDER, "assistant"),
    (said("human: Hi", "human: You?", "gpt: Hello"), Reason.ROLE_ORDER, "user, user, assistant"),
    (said("human: Hi", "system: Be kind.", "gpt: Hello"), Reason.ROLE_ORDER, "user, system, assistant"),
]


@pytest.mark.parametrize(("bad", "reason", "detail"), BAD_RECORDS)
def test_unusable_records_are_reported_with_reason(tmp_path: Path, bad: Any, reason: Reason, detail: str) -> None:
    conversations, report = load_conversations([store(tmp_path, [bad, SHAREGPT, bad], "jsonl")])
    assert [c.where for c in conversations] == ["data.jsonl:2"]
    assert report.counts == {reason: 2}
    assert [s.where for s in report.examples[reason]] == ["data.jsonl:1", "data.jsonl:3"]
    assert detail in report.examples[reason][0].detail
    assert str(reason) in str(report) and "data.jsonl:3" in str(report)


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b'{"conversations": [', Reason.BROKEN_JSON, "column 20"),
        (b'{"conversations": "\xff"}', Reason.BROKEN_TEXT, "0xff"),
        (b"[" * 100_000, Reason.BROKEN_JSON, "recursion"),
        (b"1" * 5000, Reason.BROKEN_JSON, "digits"),
    ],
)
def test_a_broken_line_does_not_affect_others(tmp_path: Path, line: bytes, reason: Reason, detail: str) -> None:
    good = json.dumps(SHAREGPT).encode()
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\n\n" + line + b"\n" + good)
    conversations, report = load_conversations([str(path)])
    assert [c.where for c in conversations] == ["data.jsonl:1", "data.jsonl:4"]
    assert report.counts == {reason: 1}
    assert report.examples[reason][0].where == "data.jsonl:3"
    assert detail in report.examples[reason][0].detail


def test_line_separators_inside_strings_do_not_split_records(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"text": "one\u2028two\x85three"}, ensure_ascii=False), encoding="utf-8")
    assert load_conversations([str(path)])[0][0].text == "one\u2028two\x85three"


def test_json_lines_in_a_json_file(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text('{"text": "one"}\n{"text": "two"\n{"text": "three"}\n')
    conversations, report = load_conversations([str(path)])
    assert [c.text for c in conversations] == ["one", "three"]
    assert report.examples[Reason.BROKEN_JSON][0].where == "data.json:2"


def test_the_assistants_turn_before_any_prompt_is_dropped(tmp_path: Path) -> None:
    records = [
        said("gpt: Welcome!", "human: Hi", "gpt: Hello"),
        said("system: Be kind.", "gpt: Welcome!", "gpt: Well?", "human: Hi", "gpt: Hello"),
        said("human: Hi", "gpt: Hello"),
        said("gpt: Welcome!", "human: Only a question"),
    ]
    conversations, report = load_conversations([store(tmp_path, records, "json")])
    assert [c.turns for c in conversations] == [TURNS[1:], TURNS, TURNS[1:]]
    assert [c.opening for c in conversations] == [1, 2, 0]
    assert (report.used, report.opening, report.counts) == (3, 2, {Reason.NO_ASSISTANT: 1})
    assert "        2    of these without the assistant's turn at the beginning" in str(report)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_thoughts_in_a_separate_field(tmp_path: Path, key: str) -> None:
    answer = {"role": "assistant", "content": "Hello", key: "A greeting.\n"}
    records = [{"messages": [{"role": "user", "content": "Hi", key: None}, answer]}]
    ((_, turn),) = [c.turns for c in load_conversations([store(tmp_path, records, "json")])[0]]
    assert turn.content == "<think>\nA greeting.\n</think>\n\nHello"


def test_an_empty_system_turn_is_dropped(tmp_path: Path) -> None:
    record = said("system: ", "human: Hi", "gpt: Hello")
    assert load_conversations([store(tmp_path, [record], "json")])[0][0].turns == TURNS[1:]


def test_prompts_without_answers_if_no_answers_are_needed(tmp_path: Path) -> None:
    source = store(tmp_path, [said("human: Hi"), said("human: Hi", "gpt: Hello", "human: Bye")], "json")
    assert [len(c.turns) for c in load_conversations([source], need_answers=False)[0]] == [1, 3]
    assert [len(c.turns) for c in load_conversations([source])[0]] == [3]


def test_prompts_turn_by_turn(tmp_path: Path) -> None:
    """The form of MT-Bench and Spec-Bench: prompts for the target to answer, nothing to train on."""
    source = store(tmp_path, [{"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]}], "jsonl")
    loaded, report = load_conversations([source], need_answers=False)
    assert loaded[0].turns == (Turn("user", "Write."), Turn("user", "Again.")) and report.used == 1
    with pytest.raises(DataError, match="cannot tell the form of the data; found columns category, question_id, turns"):
        load_conversations([source])
    for turns, reason in (([], Reason.EMPTY), (["Hi", " "], Reason.EMPTY), (["Hi", 3], Reason.NOT_A_STRING)):
        report = DataReport()
        records = [{"turns": ["Hi"]}, {"turns": turns}]
        assert len(list(iter_conversations(store(tmp_path, records, "json"), report, need_answers=False))) == 1
        assert report.counts == {reason: 1}


@pytest.mark.parametrize(
    ("record", "turns"),
    [
        ({"prompt": "Hi", "completion": "Hello"}, TURNS[1:]),
        ({"prompt": MESSAGES["messages"][:2], "completion": MESSAGES["messages"][2:]}, TURNS),
        ({"prompt": MESSAGES["messages"][:2]}, TURNS[:2]),
        ({"prompt": "Hi"}, TURNS[1:2]),
    ],
)
def test_prompt_and_completion(tmp_path: Path, record: dict[str, Any], turns: tuple[Turn, ...]) -> None:
    source = store(tmp_path, [record], "jsonl")
    assert load_conversations([source], need_answers=False)[0][0].turns == turns


def test_content_in_parts(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    picture = [{"type": "image_url", "image_url": {"url": "data:"}}]
    records = [
        {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "Hello"}]}
        for content in (parts, picture, [*parts, {"type": "text"}])
    ]
    loaded, report = load_conversations([store(tmp_path, records, "jsonl")])
    assert [conversation.turns for conversation in loaded] == [TURNS[1:]]
    assert report.counts == {Reason.NO_TEXT: 2}


def test_conversations_end_before_the_first_call_of_a_tool(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]}
    result = {"role": "tool", "content": "3"}
    ask, answer = {"role": "user", "content": "Add."}, {"role": "assistant", "content": "3"}
    records = [
        {"messages": [*MESSAGES["messages"], ask, call, result, answer]},
        {"messages": [ask, call, result, answer]},
        {"messages": [MESSAGES["messages"][0], call]},
    ]
    loaded, report = load_conversations([store(tmp_path, records, "jsonl")], need_answers=False)
    assert loaded[0].turns == (*TURNS, Turn("user", "Add.")) and loaded[1].turns == (Turn("user", "Add."),)
    assert report.counts == {Reason.TOOLS: 1}


def test_sources_of_different_forms(tmp_path: Path) -> None:
    sources = [store(tmp_path, [SHAREGPT, 1], "json"), store(tmp_path, [{"text": "One."}], "jsonl")]
    conversations, report = load_conversations(sources)
    assert [c.where for c in conversations] == ["data.json[0]", "data.jsonl:1"]
    assert (report.used, report.skipped, report.records) == (2, 1, 3)


@pytest.mark.parametrize("content", [b"", b"[]", b"\n\n"])
@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_empty_data(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / f"data.{kind}"
    path.write_bytes(content)
    with pytest.raises(DataError, match="no records" if (kind, content) != ("jsonl", b"[]") else "no object"):
        load_conversations([str(path)])


def test_nothing_usable(tmp_path: Path) -> None:
    source = store(tmp_path, [said("gpt: Hello")] * 5, "json")
    with pytest.raises(DataError, match="none of the 5 records") as caught:
        load_conversations([source])
    assert "roles out of order" in str(caught.value) and "data.json[2]" in str(caught.value)
    assert "data.json[3]" not in str(caught.value)


def test_an_unknown_form_names_columns_and_known_forms(tmp_path: Path) -> None:
    source = store(tmp_path, [{"prompt": "Hi", "answer": "Hello"}, {"prompt": "You?"}], "jsonl")
    with pytest.raises(DataError, match="columns answer, prompt") as caught:
        load_conversations([source])
    assert all(form in str(caught.value) for form in ("ShareGPT", "OpenAI", "Alpaca", "plain text", "data.jsonl"))


def test_sources_that_cannot_be_read(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('[\n  {"text": "one"},\n  {"text": }\n]')
    other = tmp_path / "data.csv"
    other.write_text("a,b\n")
    fake = tmp_path / "fake.parquet"
    fake.write_text("no")
    for source, message in [
        (broken, "line 3, column 12"),
        (other, "unknown kind of file"),
        (fake, "not a Parquet file"),
        (tmp_path / "absent.jsonl", "no such file"),
    ]:
        with pytest.raises(DataError, match=message):
            load_conversations([str(source)])
    with pytest.raises(DataError, match="no data set given"):
        load_conversations([])


def test_report_table() -> None:
    report = DataReport(used=1200, truncated=7, cut_tokens=999)
    for number in range(12):
        report.skip(f"a.jsonl:{number}", UnusableRecord(Reason.NO_ASSISTANT))
    report.reject("a.jsonl:50", UnusableRecord(Reason.UNKNOWN_ROLE, "'tool' in turn 1"))
    assert str(report).splitlines() == [
        "  records  outcome",
        "     1199  used",
        "        7    of these truncated (999 tokens cut)",
        "       12  skipped: no assistant turn",
        "             a.jsonl:0",
        "             a.jsonl:1",
        "             a.jsonl:2",
        "        1  skipped: unknown role",
        "             a.jsonl:50: 'tool' in turn 1",
    ]


def test_reports_merge() -> None:
    parts = [DataReport(used=2), DataReport(used=3, truncated=1, cut_tokens=4)]
    for number in range(4):
        parts[number % 2].skip(f"{number}", UnusableRecord(Reason.EMPTY))
    total = DataReport()
    for part in parts:
        total.merge(part)
    assert (total.used, total.skipped, total.truncated, total.cut_tokens) == (5, 4, 1, 4)
    assert [s.where for s in total.examples[Reason.EMPTY]] == ["0", "2", "1"]
    assert len(parts[0].examples[Reason.EMPTY]) == 2


def test_counts_reach_the_report_when_the_reader_stops_early(tmp_path: Path) -> None:
    report = DataReport()
    reader = iter_conversations(store(tmp_path, [1, SHAREGPT, SHAREGPT], "jsonl"), report)
    next(reader)
    reader.close()
    assert (report.used, report.skipped) == (1, 1)


def test_problems_survive_pickling() -> None:
    problem = pickle.loads(pickle.dumps(UnusableRecord(Reason.EMPTY, "turn 1")))
    assert (problem.reason, problem.detail) == (Reason.EMPTY, "turn 1")


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
def test_sharegpt_sample_loads() -> None:
    conversations, report = load_conversations([str(SHARED / "data" / "sharegpt_sample.json")])
    # Counted from the file: 167 conversations of two turns, 166 of four, 167 of six.
    lengths = [len(c.turns) for c in conversations]
    assert [lengths.count(n) for n in (2, 4, 6)] == [167, 166, 167]
    assert (report.used, report.skipped) == (500, 0)
    assert conversations[0].turns[3] == Turn("assistant", "You too!")
