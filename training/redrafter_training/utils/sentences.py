# SPDX-License-Identifier: Apache-2.0
"""Exceptions of libraries, told in one line."""


def sentence(problem: BaseException) -> str:
    """The first line that says something, or the exception's name where none does."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    if isinstance(problem, OSError) and problem.strerror and problem.filename:
        return f"{problem.strerror}: {problem.filename}"
    return lines[0] if lines else type(problem).__name__
