# SPDX-License-Identifier: Apache-2.0
"""One completion, its accepted drafts coloured."""

from collections.abc import Callable, Iterator, Sequence

from rich.text import Text

ACCEPTED = "black on green"
PROMPT = "dim"


def accepted_flags(steps: Sequence[int]) -> list[bool]:
    """Whether each token was an accepted draft, given how many tokens each step emitted.

    A step ends with a token that the target emitted itself; those before it were drafts. If `max_tokens` cut the last
    step, its last token may also have been a draft; it is shown as the target's.
    """
    return [index < count - 1 for count in steps for index in range(count)]


def pieces(tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> Iterator[str]:
    """The text that each token adds; a character of several tokens comes with the last of them."""
    shown = ""
    for end in range(1, len(tokens) + 1):
        text = decode(tokens[:end])
        if text.endswith("�") and end < len(tokens):
            yield ""
            continue
        yield text[len(shown) :]
        shown = text


def coloured(
    prompt: str,
    tokens: Sequence[int],
    steps: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    *,
    brackets: bool = False,
) -> Text:
    """The end of the prompt, then the completion; `brackets` also marks accepted drafts where colours do not show."""
    text = Text("".join(prompt.splitlines(keepends=True)[-4:]), style=PROMPT)
    for piece, accepted in zip(pieces(tokens, decode), accepted_flags(steps), strict=True):
        marked = f"«{piece}»" if accepted and brackets else piece
        text.append(marked, style=ACCEPTED if accepted else "default")
    return text
