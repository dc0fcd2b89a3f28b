# SPDX-License-Identifier: Apache-2.0
"""An engine in this process, for a conversation without a server."""

import json
import os
import re
import signal
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from redrafter_vllm.chat.answers import ChatError, Message, Piece, divided
from redrafter_vllm.utils.messages import one_line

# Set before vLLM is imported: one process, and nothing on the screen during a conversation but the conversation.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
_PYDANTIC = re.compile(r"Value error, (.*?)(?: \[type=|$)", re.MULTILINE)


class Engine:
    """vLLM's engine for `target`, which answers as `Server` does.

    Args:
        speculative: vLLM's speculative config.
        options: Further ones of vLLM, as on the command line of `vllm serve`.

    Raises ChatError where it does not start.
    """

    def __init__(self, target: str, speculative: dict[str, Any], options: Sequence[str]) -> None:
        os.environ.update(ENVIRONMENT)
        try:
            from vllm import LLM
            from vllm.engine.arg_utils import EngineArgs
            from vllm.utils.argparse_utils import FlexibleArgumentParser
        except ImportError as error:
            raise ChatError(f"vllm cannot be imported ({error}): is it installed here?") from None
        given = ["--model", target, "--speculative-config", json.dumps(speculative), *options]
        parser = EngineArgs.add_cli_args(FlexibleArgumentParser(prog="redrafter chat --in-process"))
        arguments = parser.parse_args(given)
        arguments.use_tqdm_on_load = False
        try:
            self._llm = LLM.from_engine_args(EngineArgs.from_cli_args(arguments))
        except Exception as error:
            raise ChatError(f"the engine does not start: {start_failure(error)}") from None
        self._asked = 0

    def answer(self, messages: Sequence[Message], **sampling: Any) -> Generator[Piece, None, None]:
        """The pieces of the answer to a conversation. Closing the iterator aborts the request.

        Raises ChatError where the target has no chat template, or no room for the conversation.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine, name = self._llm.llm_engine, str(self._asked)
        self._asked += 1
        try:
            tokens = self._llm.get_tokenizer().apply_chat_template(
                list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
            )
            wanted = SamplingParams(**sampling, logprobs=0, output_kind=RequestOutputKind.DELTA)
            engine.add_request(name, {"prompt_token_ids": list(tokens)}, wanted)
        except Exception as error:  # jinja's, of a template; vLLM's, of a prompt that is too long
            raise ChatError(f"the engine refuses the conversation: {start_failure(error)}") from None
        try:
            while engine.has_unfinished_requests():
                for output in _step(engine):
                    if piece := _piece(output.outputs[0]):
                        yield piece
        finally:
            engine.abort_request([name])


def _step(engine: Any) -> list[Any]:
    """A step's outputs. Ctrl-C counts behind it, as half a step would leave the engine undefined."""
    with _held_interrupts() as held:
        outputs: list[Any] = engine.step()
    if held:
        raise KeyboardInterrupt
    return outputs


@contextmanager
def _held_interrupts() -> Iterator[list[int]]:
    """Interrupts that come meanwhile, in the list."""
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        yield held
    finally:
        signal.signal(signal.SIGINT, before)


def _piece(output: Any) -> Piece | None:
    """What a step has emitted; None for a step of the prompt."""
    if not output.token_ids:
        return None
    tokens = [
        at_token[token].decoded_token or "" for token, at_token in zip(output.token_ids, output.logprobs, strict=True)
    ]
    return Piece(divided(output.text, tokens))


def start_failure(error: Exception) -> str:
    """The sentence of vLLM's error: pydantic's have it between other lines."""
    text = str(error).strip()
    if found := _PYDANTIC.search(text):
        return one_line(found.group(1))
    return one_line(text.splitlines()[0]) if text else type(error).__name__
