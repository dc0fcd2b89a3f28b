# SPDX-License-Identifier: Apache-2.0
"""When two texts count as equal: case, spaces and compatibility forms of characters make no difference."""

import hashlib
import unicodedata


def normalised(text: str) -> str:
    """The text in NFKC form, case-folded, with single spaces: texts with the same result count as equal."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_key(text: str) -> int:
    """A hash of the normalised text, uniform in 0..2^63-1."""
    return int.from_bytes(hashlib.blake2b(normalised(text).encode(), digest_size=8).digest(), "big") >> 1
