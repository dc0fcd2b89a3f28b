# SPDX-License-Identifier: Apache-2.0
"""Which versions of vLLM this plugin supports."""

from functools import cache

from packaging.version import InvalidVersion, Version

LOWEST, BEYOND = "0.32", "0.34"
RANGE = f"vLLM >={LOWEST},<{BEYOND}"


class UnsupportedVllmError(RuntimeError):
    """The installed vLLM is outside the range that this package was written for."""


def is_supported(version: str) -> bool:
    """Whether `version` is within the supported range."""
    try:
        return Version(LOWEST) <= Version(version.split("+")[0]) < Version(BEYOND)
    except InvalidVersion:
        return False


def check_vllm_version(version: str) -> None:
    """Raise `UnsupportedVllmError` unless `version` is within the supported range."""
    if not is_supported(version):
        raise UnsupportedVllmError(
            f"redrafter-vllm knows {RANGE}, but {version!r} is installed; install a vLLM in that "
            "range or a redrafter-vllm that knows this one."
        )


@cache
def installed_before(release: str) -> bool:
    """Whether the installed vLLM is older than `release`."""
    import vllm

    return Version(vllm.__version__.split("+")[0]) < Version(release)
