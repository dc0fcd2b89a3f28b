# SPDX-License-Identifier: Apache-2.0
"""Both sides of the comparison, and what they amount to."""

from dataclasses import dataclass

from redrafter_vllm.watch.recording import Recording, shared_tokens

SEQUENTIAL = "measured one after the other, shown on one clock that starts at the first token"
FACTORS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
SHOWN_SECONDS = 8.0  # a replay takes at least about this long


@dataclass
class Race:
    """The same prompt, decoded plainly and with ReDrafter."""

    prompt: str
    plain: Recording
    drafted: Recording

    @property
    def duration(self) -> float:
        """Seconds until both have ended."""
        return max(self.plain.duration, self.drafted.duration)

    @property
    def first_end(self) -> float:
        """Seconds until the faster side has ended."""
        return min(self.plain.duration, self.drafted.duration)

    @property
    def slow_motion(self) -> int:
        """How many times slower than measured a replay can be followed."""
        return next((factor for factor in FACTORS if factor * self.duration >= SHOWN_SECONDS), FACTORS[-1])

    def result(self) -> list[str]:
        """The comparison in sentences."""
        plain, drafted = self.plain.figures(), self.drafted.figures()
        said: list[str] = []
        if plain.tokens_per_second and drafted.tokens_per_second:
            said.append(f"ReDrafter: {drafted.tokens_per_second / plain.tokens_per_second:.2f} times plain decoding.")
        shared = shared_tokens(self.plain, self.drafted)
        if shared == min(plain.tokens, drafted.tokens):
            said.append(f"The same {shared} tokens.")
        else:
            said.append(f"The same {shared} tokens, then others (two tokens nearly tied, or sampling without a seed).")
        if drafted.tokens == drafted.steps:
            said.append("No draft was accepted: does this server draft with ReDrafter?")
        return said
