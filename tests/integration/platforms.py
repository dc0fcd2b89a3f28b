# SPDX-License-Identifier: Apache-2.0
"""Devices that this machine may not have, as far as the checks of drafters look at them."""


class Platform:
    """The part of vLLM's platform that the checks use."""

    def __init__(self, kind: str, capability: int = 0) -> None:
        self.device_name, self.capability = kind, capability

    def is_cpu(self) -> bool:
        return self.device_name == "cpu"

    def is_cuda(self) -> bool:
        return self.device_name == "cuda"

    def has_device_capability(self, minimum: int) -> bool:
        return self.capability >= minimum


CPU, TURING, PASCAL, ROCM = Platform("cpu"), Platform("cuda", 75), Platform("cuda", 61), Platform("rocm")
