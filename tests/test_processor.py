# SPDX-License-Identifier: Apache-2.0
"""The head of a test run names the processor and what kernels are chosen by."""

import pytest

from tests import processor

XEON = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16 amx_tile amx_int8 avx512_vnni
bugs\t\t: none

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd i8mm bf16\nCPU part\t: 0xd40\n"


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (
            XEON,
            "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz "
            "(avx2 avx512f avx512_vnni avx512_bf16 amx_tile amx_bf16 amx_int8)",
        ),
        (GRAVITON, "model not named (asimd bf16 i8mm)"),
        ("", "model not named (no known features)"),
    ],
)
def test_model_and_features(cpuinfo: str, expected: str) -> None:
    assert processor.describe(cpuinfo).endswith(expected)


def test_every_run_begins_with_it(pytestconfig: pytest.Config) -> None:
    lines = pytestconfig.hook.pytest_report_header(config=pytestconfig, start_path=pytestconfig.rootpath)
    assert processor.header() in lines
