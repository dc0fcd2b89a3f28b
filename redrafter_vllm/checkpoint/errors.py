# SPDX-License-Identifier: Apache-2.0
"""The errors of a drafter checkpoint, one class per kind."""

from redrafter_vllm.utils.messages import one_line


class CheckpointError(ValueError):
    """A drafter checkpoint that cannot be used.

    Names and values in the message may come from the checkpoint, that is from outside: the message is made one line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class CheckpointNotFoundError(CheckpointError):
    """There is no directory, no config, or no weights where a checkpoint was expected."""


class OutsideCheckpointError(CheckpointError):
    """An index or a link points outside the checkpoint's directory."""


class PickleCheckpointError(CheckpointError):
    """The weights are a pickle, which may run code when it is read."""


class CheckpointConfigError(CheckpointError):
    """`config.json` is unreadable, lacks a key, or holds an impossible value."""


class UnreadableWeightsError(CheckpointError):
    """A weights file or an index is damaged or holds something other than floating-point tensors."""


class MissingTensorsError(CheckpointError):
    """The config implies tensors that the files do not hold."""


class SurplusTensorsError(CheckpointError):
    """The files hold tensors that the config does not imply, or the same tensor twice."""


class TensorShapeError(CheckpointError):
    """A tensor's shape differs from what the config implies."""


class NonFiniteTensorError(CheckpointError):
    """A tensor holds NaN or infinity."""


class DraftVocabularyError(CheckpointError):
    """The map from draft to target ids is missing, unexpected, or does not map into the vocabulary."""


class TargetMismatchError(CheckpointError):
    """The drafter was trained for a target of another hidden size or vocabulary."""
