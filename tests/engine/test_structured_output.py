# SPDX-License-Identifier: Apache-2.0
"""Structured output of every kind, beside free requests: the answers of plain vLLM, which match their grammars."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from vllm.sampling_params import StructuredOutputsParams

from tests.engine.conftest import MakeEngine
from tests.engine.scripted import run_both
from tests.engine.test_sampling_text import answers, both
from tests.engine.test_text import assert_same_answers, text_params
from tests.engine.watch import watched

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "size": {"enum": [1, 2, 30]}},
    "required": ["name", "size"],
    "additionalProperties": False,
}
CHOICES = ["return self.value\n", "return None\n", "raise ValueError(name)\n"]
PATTERN = r"[a-z]{4}(_[a-z]{3}){3} = [0-9]{3,5}\n"
ASSIGNMENTS = 'root ::= line line line\nline ::= name " = " name ("(" name ")")? "\\n"\nname ::= [a-z] [a-z_]* [a-z]'

PROMPT = "def read(self, size=-1):\n    "


def satisfies(kind: str, text: str) -> bool:
    if kind == "json":
        found = json.loads(text)
        return found.keys() == {"name", "size"} and found["size"] in (1, 2, 30) and len(found["name"]) <= 12
    if kind == "json_object":
        return isinstance(json.loads(text), dict)
    if kind == "choice":
        return text in CHOICES
    if kind == "regex":
        return re.fullmatch(PATTERN, text) is not None
    if kind == "grammar":
        return re.fullmatch(r"([a-z][a-z_]*[a-z] = [a-z][a-z_]*[a-z](\([a-z][a-z_]*[a-z]\))?\n){3}", text) is not None
    return text.startswith("<call>") and json.loads(text.removeprefix("<call>").split("</call>")[0]).keys() == {
        "name",
        "size",
    }


STRUCTURED: dict[str, dict[str, Any]] = {
    "json": {"json": SCHEMA},
    "json_object": {"json_object": True},
    "choice": {"choice": CHOICES},
    "regex": {"regex": PATTERN},
    "grammar": {"grammar": ASSIGNMENTS},
    "structural_tag": {
        "structural_tag": json.dumps(
            {
                "type": "structural_tag",
                "format": {
                    "type": "tag",
                    "begin": "<call>",
                    "content": {"type": "json_schema", "json_schema": SCHEMA},
                    "end": "</call>",
                },
            }
        )
    },
}


def constrained(kind: str | None, index: int, **options: Any) -> Any:
    if kind is not None:
        spec = {**STRUCTURED[kind], "disable_any_whitespace": kind.startswith("json")}
        options["structured_outputs"] = StructuredOutputsParams(**spec)
    return text_params(seed=index, **{"max_tokens": 60, **options})


@pytest.mark.parametrize(("temperature", "seed"), [(0.0, 0), (0.8, 1)])
def test_every_kind_in_one_batch(make_engine: MakeEngine, asset: Path, temperature: float, seed: int) -> None:
    """Chains that contain a part of the truth and then break the grammar, beside a free request with trees."""
    plain, tree = both(make_engine, asset)
    kinds: list[str | None] = [*STRUCTURED, None]
    tokenizer = plain.get_tokenizer()
    prompts = [tokenizer.encode(f"def read_{kind}(self, size=-1):\n    ") for kind in kinds]
    sampling = [constrained(kind, index, temperature=temperature) for index, kind in enumerate(kinds)]
    with watched() as watch:
        expected, outputs = run_both(plain, tree, prompts, sampling, seed)
    assert_same_answers(expected, outputs)
    for kind, output, drafting in zip(kinds, outputs, watch.in_order(outputs), strict=True):
        answer = output.outputs[0]
        if kind is not None and answer.finish_reason == "stop":
            assert satisfies(kind, answer.text), (kind, answer.text)
        assert drafting.accepted > 0, kind
        assert (drafting.branching > 0) == (kind is None), kind
    assert sum(output.outputs[0].finish_reason == "stop" for output in outputs) > 1


def test_trained_chains(make_engine: MakeEngine, asset: Path) -> None:
    """The drafter ignores grammars: draft tokens that break one are dropped before verification."""
    kinds: list[str | None] = [*STRUCTURED, None]
    sampling = [constrained(kind, index) for index, kind in enumerate(kinds)]
    _, draftings = answers(both(make_engine, asset), [PROMPT] * len(kinds), sampling)
    assert sum(drafting.accepted for drafting in draftings[:-1]) > 0
    assert [drafting.branching > 0 for drafting in draftings] == [False] * len(STRUCTURED) + [True]


@pytest.mark.parametrize("backend", ["guidance", "outlines"])
def test_other_backends(make_engine: MakeEngine, asset: Path, backend: str) -> None:
    """Each has its own way to roll back after refused drafts."""
    engines = both(make_engine, asset, structured_outputs_config={"backend": backend})
    sampling = [
        constrained(kind, index, temperature=0.8 * index) for index, kind in enumerate(["regex", "regex", None])
    ]
    outputs, draftings = answers(engines, [PROMPT] * 3, sampling)
    assert all(satisfies("regex", output.outputs[0].text) for output in outputs[:2])
    assert sum(drafting.accepted for drafting in draftings[:2]) > 0
    assert [drafting.branching > 0 for drafting in draftings] == [False, False, True]


def test_lm_format_enforcer_fails_in_plain_vllm(make_engine: MakeEngine, asset: Path) -> None:
    """The package that vLLM 0.32 pins looks for a module that vLLM no longer has."""
    plain = make_engine(asset, skip_tokenizer_init=False, structured_outputs_config={"backend": "lm-format-enforcer"})
    with pytest.raises(ImportError, match="vllm"):
        plain.generate([PROMPT], [constrained("regex", 0)], use_tqdm=False)


def test_response_formats_of_chat_completions(make_engine: MakeEngine, asset: Path) -> None:
    """`response_format` and `structured_outputs` of the chat endpoint, with penalties and bad words."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    plain, tree = both(make_engine, asset)
    messages = [{"role": "user", "content": "def read(self, size=-1):"}]
    schema = {"type": "json_schema", "json_schema": {"name": "entry", "schema": SCHEMA}}
    bodies: list[dict[str, Any]] = [
        {"response_format": schema},
        {"response_format": {"type": "json_object"}, "temperature": 0.8, "seed": 3},
        {"structured_outputs": {"choice": CHOICES}},
        {"presence_penalty": 0.6, "bad_words": ["self"]},
    ]
    sampling = [
        ChatCompletionRequest(messages=messages, **{"temperature": 0.0, **body}).to_sampling_params(60, {})
        for body in bodies
    ]
    for own in sampling:
        own.skip_clone = False  # the endpoint makes its parameters for one engine; here they serve two
    template = "{% for message in messages %}{{ message.content }}\n    {% endfor %}"
    options = {"chat_template": template, "use_tqdm": False}
    expected = plain.chat([messages] * len(bodies), sampling, **options)
    with watched() as watch:
        outputs = tree.chat([messages] * len(bodies), sampling, **options)
    assert_same_answers(expected, outputs)
    assert outputs[2].outputs[0].text in CHOICES and "self" not in outputs[3].outputs[0].text
    draftings = watch.in_order(outputs)
    assert draftings[3].accepted > 0 and draftings[3].branching > 0
