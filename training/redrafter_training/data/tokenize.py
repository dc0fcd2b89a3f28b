# SPDX-License-Identifier: Apache-2.0
"""Conversations and texts as tokens, with a mask of those that carry loss."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from redrafter_training.data.chat_templates import resolve_chat_template
from redrafter_training.data.conversations import Conversation
from redrafter_training.data.rendering import PROBES, ChatTemplate, Rendered
from redrafter_training.data.report import DataError, DataReport, Reason, UnusableRecord
from redrafter_training.data.splits import Content, pairs
from redrafter_training.data.text_keys import text_key
from redrafter_training.target.properties import beyond_embedding


@dataclass(frozen=True)
class Example:
    """One document, or a piece of one: its tokens, and which of them carry loss.

    The first token carries no loss: nothing predicts it. `cut` tokens were left out at the end. `ends` are the numbers
    of tokens up to the end of each exchange of `content`. The first `asked` tokens are the prompt of the first answer;
    0 for plain text.
    """

    where: str
    tokens: Tensor  # [n] int32
    loss_mask: Tensor  # [n] bool: the tokens that carry loss
    cut: int = 0
    content: Content | None = None  # for `redrafter_training.data.splits`; None if it is never divided
    ends: tuple[int, ...] = ()
    asked: int = 0

    def __post_init__(self) -> None:
        if self.tokens.shape != self.loss_mask.shape or self.tokens.dim() != 1:
            shapes = f"{tuple(self.tokens.shape)} and {tuple(self.loss_mask.shape)}"
            raise ValueError(f"{self.where}: need tokens and loss_mask [n], got {shapes}")
        if not self.loss_mask.any() or self.loss_mask[0]:
            raise ValueError(f"{self.where}: at least one token must carry loss, but not the first")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_text(self) -> bool:
        """Whether it is a piece of plain text."""
        return self.content is not None and len(self.content.exchanges[0]) == 1

    def up_to(self, exchanges: int) -> "Example | None":
        """Its first `exchanges` exchanges, at least one; None if none of their tokens carries loss."""
        if self.content is None or exchanges == len(self.ends):
            return self
        end = self.ends[exchanges - 1]
        if not self.loss_mask[:end].any():
            return None
        content = Content(self.content.group, self.content.exchanges[:exchanges])
        ends = self.ends[:exchanges]
        return Example(self.where, self.tokens[:end], self.loss_mask[:end], 0, content, ends, self.asked)


@dataclass(frozen=True)
class ExampleEncoder:
    """Turns conversations into examples of at most `max_length` tokens.

    The chat template is resolved for the first conversation with turns: plain text needs none. `chat_template` and
    `options` are those of `resolve_chat_template`. `vocab_size` is the number of rows of the target's embedding, which
    tokens must not exceed; None if that is not known.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    chat_template: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise ValueError(f"max_length must be at least 2, got {self.max_length}")

    @cached_property
    def template(self) -> ChatTemplate:
        if not self.tokenizer.is_fast:
            label = self.tokenizer.name_or_path or type(self.tokenizer).__name__
            raise DataError(f"the tokenizer of {label} does not give the offsets of its tokens; a fast one is needed")
        template = resolve_chat_template(self.tokenizer, self.chat_template, self.options)
        probe = self.tokenizer(template.prompt(PROBES[0].turns[:1]) + (self.tokenizer.eos_token or ""))["input_ids"]
        if beyond := beyond_embedding(probe, self.vocab_size, self.tokenizer):
            raise DataError(
                f"{template.name} cannot be trained with: {beyond}. Resize and train the target, or give another "
                "--chat-template"
            )
        return template

    @cached_property
    def bos(self) -> int | None:
        """BOS, if the tokenizer adds it at the start of a text."""
        ids = self.tokenizer("a")["input_ids"]
        return ids[0] if ids and ids[0] == self.tokenizer.bos_token_id else None

    def encode(self, conversation: Conversation) -> list[Example]:
        """The conversation's example, or several if its template renders earlier answers differently (see
        `ChatTemplate.render`); the pieces of a raw text.

        A conversation ends with its last token that carries loss, or at `max_length`. A raw text ends with EOS and is
        cut into pieces of `max_length` tokens, each with BOS if the tokenizer uses it; all of it carries loss.

        Raises:
            DataError: there is no chat template for a conversation with turns.
            UnusableRecord: the chat template cannot render the conversation, or no token carries loss.
        """
        if conversation.text is not None:
            return self._encode_text(conversation.where, conversation.text)
        return self._encode_turns(conversation)

    def _encode_turns(self, conversation: Conversation) -> list[Example]:
        encoded = [self._encode_rendered(conversation, rendered) for rendered in self.template.render(conversation)]
        made = [example for example, _ in encoded if example is not None]
        if not made:
            raise UnusableRecord(Reason.NOTHING_TO_LEARN, f"{encoded[0][1]} tokens, maximum {self.max_length}")
        if lost := sum(length for example, length in encoded if example is None):
            made[-1] = replace(made[-1], cut=made[-1].cut + lost)
        return made

    def _encode_rendered(self, conversation: Conversation, rendered: Rendered) -> tuple[Example | None, int]:
        """The example, or None if no loss token is within the maximum length; and the end of the last loss token."""
        encoded = self.tokenizer(
            rendered.text,
            add_special_tokens=self.template.adds_special_tokens,
            return_offsets_mapping=True,
            verbose=False,
        )
        loss = torch.tensor(tokens_inside(rendered.text, encoded["offset_mapping"], rendered.spans))
        loss[0] = False
        length = int(loss.nonzero().max()) + 1 if loss.any() else 0
        kept = min(length, self.max_length)
        if not loss[:kept].any():
            return None, length
        tokens = torch.tensor(encoded["input_ids"][:kept], dtype=torch.int32)
        self._check_tokens(encoded["input_ids"][:kept])
        content, ends = _exchanges(conversation, rendered, encoded["offset_mapping"][:kept])
        asked = sum(end <= rendered.asked for _, end in encoded["offset_mapping"])
        return Example(conversation.where, tokens, loss[:kept].clone(), length - kept, content, ends, asked), length

    def _encode_text(self, where: str, text: str) -> list[Example]:
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if self.tokenizer.eos_token_id is not None:
            ids = [*ids, self.tokenizer.eos_token_id]
        self._check_tokens(ids)
        front = [] if self.bos is None else [self.bos]
        body = self.max_length - len(front)
        pieces = [[*front, *ids[first : first + body]] for first in range(0, len(ids), body)]
        # In a last piece of one token without BOS, nothing comes before the token to predict it.
        document = text_key(text)
        examples = [self._piece(where, piece, document) for piece in pieces if len(piece) > 1]
        if not examples:
            raise UnusableRecord(Reason.NOTHING_TO_LEARN, f"{len(ids)} tokens")
        return examples

    def _check_tokens(self, ids: Sequence[int]) -> None:
        if beyond := beyond_embedding(ids, self.vocab_size, self.tokenizer):
            raise UnusableRecord(Reason.BEYOND_EMBEDDING, beyond)

    def _piece(self, where: str, ids: Sequence[int], document: int) -> Example:
        loss = torch.ones(len(ids), dtype=torch.bool)
        loss[0] = False
        key = text_key(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        content = Content(document, ((key,),))
        return Example(where, torch.tensor(ids, dtype=torch.int32), loss, content=content, ends=(len(ids),))


def _exchanges(
    conversation: Conversation, rendered: Rendered, offsets: Sequence[tuple[int, int]]
) -> tuple[Content, tuple[int, ...]]:
    """The content of the tokens at `offsets` of a conversation, and the number of tokens up to the end of each answer.

    Of an answer that is cut, the rest counts. Nothing carries loss before the first answer with a span; exchanges with
    earlier answers end at 0 tokens.
    """
    token_ends = [end for _, end in offsets]
    earlier = pairs(conversation)[: rendered.earlier]
    exchanges = [(text_key(prompt.content), text_key(answer.content)) for prompt, answer in earlier]
    ends = [0] * len(exchanges)
    for (prompt, answer), (start, end) in zip(pairs(conversation)[rendered.earlier :], rendered.spans, strict=False):
        if start >= token_ends[-1]:
            break
        kept = answer.content if end <= token_ends[-1] else rendered.text[start : token_ends[-1]]
        exchanges.append((text_key(prompt.content), text_key(kept)))
        ends.append(bisect_right(token_ends, end))
    return Content(exchanges[0][0], tuple(exchanges)), tuple(ends)


def tokens_inside(text: str, offsets: Iterable[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """For each token, whether it lies completely in one of the ascending spans [start, end) of the text.

    A token across a span's start is outside: after the prompt alone, the target could not have emitted it.
    """
    inside, span, before = [], 0, 0
    for start, end in offsets:
        # Some byte-level tokenizers do not include a token's leading spaces in its offsets.
        if before < start and text[before:start].isspace():
            start = before
        before = max(before, end)
        while span < len(spans) and spans[span][1] < end:
            span += 1
        inside.append(span < len(spans) and spans[span][0] <= start < end <= spans[span][1])
    return inside


def encode_all(
    conversations: Sequence[Conversation], encoder: ExampleEncoder, report: DataReport, *, quiet: bool = False
) -> list[Example]:
    """All examples of the conversations, in order; the report counts unusable conversations as skipped.

    Raises:
        DataError: a needed chat template is missing, or no conversation gives an example.
    """
    examples = []
    for conversation in tqdm(conversations, desc="tokenise", unit="record", disable=quiet):
        try:
            made = encoder.encode(conversation)
        except UnusableRecord as problem:
            report.reject(conversation.where, problem)
            continue
        cut = sum(example.cut for example in made)
        report.truncated += cut > 0
        report.cut_tokens += cut
        examples.extend(made)
    report.require_used("the data")
    return examples
