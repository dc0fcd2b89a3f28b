# SPDX-License-Identifier: Apache-2.0
"""How a command ends: with a sentence for what went wrong, and a line for what was interrupted."""

import sys
from collections.abc import Callable

from redrafter_training.distributed.context import TrainingStoppedError, WorkersFailedError
from redrafter_training.utils.interruption import EXIT_CODE, Interruption
from redrafter_vllm.utils.messages import sentence


def run_command(body: Callable[[Interruption], int], interrupted: Callable[[], str]) -> int:
    """The exit code of `body`, whose documented errors are told on stderr.

    Args:
        interrupted: what to tell after SIGINT or SIGTERM: what is kept, and how to go on.
    """
    with Interruption() as interruption:
        try:
            return body(interruption)
        except (KeyboardInterrupt, TrainingStoppedError):
            print(interrupted(), file=sys.stderr)
            return EXIT_CODE
        except OSError as problem:
            print(sentence(problem), file=sys.stderr)
        except (FloatingPointError, ValueError, WorkersFailedError) as problem:
            print(problem, file=sys.stderr)
        return 1
