# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a drafter checkpoint, each a kind of its own."""

from redrafter_vllm.utils.messages import one_line


class CheckpointError(ValueError):
    """A drafter checkpoint that cannot be used.

    What stands in a checkpoint comes from outside, and so do names and values in the message: it is one line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class CheckpointNotFoundError(CheckpointError):
    """No directory, no config, or no weights where a checkpoint was expected."""


class OutsideCheckpointError(CheckpointError):
    """An index or a link leads out of the checkpoint's directory."""


class PickleCheckpointError(CheckpointError):
    """The weights are a pickle, which may run code when it is read."""


class CheckpointConfigError(CheckpointError):
    """`config.json` is unreadable, lacks a key, or holds an impossible value."""


class UnreadableWeightsError(CheckpointError):
    """A weights file or an index is damaged or holds something other than floating-point tensors."""


class MissingTensorsError(CheckpointError):
    """The config asks for tensors that the files do not hold."""


class SurplusTensorsError(CheckpointError):
    """The files hold tensors that the config has no place for, or one of them twice."""


class TensorShapeError(CheckpointError):
    """A tensor's shape differs from what the config implies."""


class NonFiniteTensorError(CheckpointError):
    """A tensor holds NaN or infinity."""


class DraftVocabularyError(CheckpointError):
    """The map from draft to target ids is missing, uncalled for, or no map into the vocabulary."""


class TargetMismatchError(CheckpointError):
    """The drafter was trained for a target of another hidden size or vocabulary."""
