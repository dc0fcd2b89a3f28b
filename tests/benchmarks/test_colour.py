# SPDX-License-Identifier: Apache-2.0
"""Tokens of a completion that are shown as accepted drafts."""

from collections.abc import Sequence

from benchmarks.demo.colour import ACCEPTED, accepted_flags, coloured, pieces


def test_all_but_the_last_token_of_a_step_were_drafts() -> None:
    assert accepted_flags([1, 3, 1, 2]) == [False, True, True, False, False, True, False]


def decode(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode("utf-8", errors="replace")


def test_a_character_of_several_tokens_is_shown_with_the_last_one() -> None:
    tokens = list("aé€b".encode())
    assert list(pieces(tokens, decode)) == ["a", "", "é", "", "", "€", "b"]


def test_an_unfinished_character_at_the_end_is_shown() -> None:
    assert list(pieces(list("aé".encode())[:-1], decode)) == ["a", "�"]


def test_prompt_and_completion() -> None:
    text = coloured("one\ntwo\nthree\nfour\nfive\n", list(b"ABCD"), [1, 3], decode)
    assert text.plain == "two\nthree\nfour\nfive\nABCD"
    start = len("two\nthree\nfour\nfive\n")
    assert [(span.start - start, span.end - start) for span in text.spans if span.style == ACCEPTED] == [(1, 2), (2, 3)]


def test_without_colours_accepted_drafts_are_in_brackets() -> None:
    text = coloured("p", list(b"ABCD"), [1, 3], decode, brackets=True)
    assert text.plain == "pA«B»«C»D"
