# SPDX-License-Identifier: Apache-2.0
"""The kit for a GPU host without a network: what is packed, GPU code that is removed, parts and their checks."""

from __future__ import annotations

import importlib.util
import struct
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from tests.paths import ROOT


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_kit", ROOT / "tools" / "gpu_kit.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_kit"] = module
    spec.loader.exec_module(module)
    return module


gpu_kit = _load()
PTX, ELF = 1, 2


def image(kind: int, arch: int, code: bytes) -> bytes:
    """A header of 64 bytes, in which the architecture is at byte 28, and the code."""
    header = struct.pack("<HHIQ", kind, 257, 64, len(code)) + bytes(12) + struct.pack("<I", arch)
    return header.ljust(64, b"\0") + code


def container(*images: bytes) -> bytes:
    body = b"".join(images)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def library(*containers: bytes, padding: int = 8) -> bytearray:
    """A 64-bit ELF file with a `.nv_fatbin` section of these containers, and code in front of it."""
    fatbin = bytes(padding).join(containers)
    names = b"\0.text\0.nv_fatbin\0.shstrtab\0"
    code = b"host code".ljust(64, b".")
    offsets = [64, 64 + len(code), 64 + len(code) + len(fatbin)]
    table = offsets[2] + len(names)
    header = bytearray(64)
    header[:4] = b"\x7fELF"
    struct.pack_into("<Q", header, 40, table)
    struct.pack_into("<HHH", header, 58, 64, 4, 3)
    sections = bytes(64)
    for name, offset, size in zip((1, 7, 18), offsets, map(len, (code, fatbin, names)), strict=True):
        sections += struct.pack("<IIQQQQ", name, 1, 0, 0, offset, size).ljust(64, b"\0")
    return header + code + fatbin + names + sections


def codes(data: bytearray) -> list[list[tuple[int, int, bytes]]]:
    return [[(each.kind, each.arch, each.data[64:]) for each in images] for _, _, images in gpu_kit.containers(data)]


def test_only_code_for_the_architecture_is_kept_and_nothing_moves() -> None:
    first = container(image(ELF, 80, b"a" * 40), image(ELF, 90, b"b" * 32), image(PTX, 90, b"c" * 16))
    second = container(image(ELF, 100, b"d" * 24), image(PTX, 80, b"e" * 8), image(PTX, 120, b"f" * 8))
    original = library(first, second)
    changed = bytearray(original)
    gpu_kit.keep_architecture(changed, 90)
    assert len(changed) == len(original)
    assert codes(changed) == [[(ELF, 90, b"b" * 32)], [(PTX, 80, b"e" * 8)]]
    starts = [[position for position, _, _ in gpu_kit.containers(data)] for data in (original, changed)]
    assert starts[0] == starts[1]
    assert changed[:128] == original[:128] and b"aaaa" in original and b"aaaa" not in changed


@pytest.mark.parametrize(
    ("images", "kept"),
    [
        ([(ELF, 80), (ELF, 86)], (ELF, 80)),  # native code of the same generation, not newer than 8.4
        ([(ELF, 90), (PTX, 70), (PTX, 80)], (PTX, 80)),
        ([(ELF, 90), (ELF, 100), (PTX, 90)], None),  # nothing runs: the smallest remains
        ([(ELF, 80), (PTX, 80)], (ELF, 80)),
    ],
)
def test_native_code_comes_before_ptx(images: list[tuple[int, int]], kept: tuple[int, int] | None) -> None:
    given = [gpu_kit.Image(kind, arch, bytes(100 - 10 * number)) for number, (kind, arch) in enumerate(images)]
    assert [(each.kind, each.arch) for each in gpu_kit.usable(given, 84)] == [kept or images[-1]]


def test_libraries_without_gpu_code_do_not_change() -> None:
    plain = library()
    changed = bytearray(plain)
    gpu_kit.keep_architecture(changed, 90)
    assert changed == plain


def test_an_unknown_layout_is_an_error() -> None:
    broken = library(container(image(ELF, 90, b"x" * 16))[:-8] + bytes(8))
    struct.pack_into("<Q", broken, 64 + 64 + 16 + 8, 12)
    with pytest.raises(gpu_kit.KitError, match="unknown layout"):
        gpu_kit.keep_architecture(broken, 90)


def write_wheel(folder: Path, name: str, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as archive:
        for file, data in files.items():
            archive.writestr(file, data)


VLLM = {
    "vllm/__init__.py": b"version = 1\n",
    "vllm/vllm-rs": b"server",
    "vllm/_qutlass_C.abi3.so": b"",
    "vllm/_C_stable_libtorch.abi3.so": bytes(library(container(image(ELF, 80, b"old"), image(ELF, 90, b"new")))),
    "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so": bytes(library()),
    "vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so": bytes(library()),
    "vllm-0.32.0.dist-info/METADATA": b"Name: vllm\nRequires-Dist: fastapi[standard]<1,>=0.5\n"
    b'Requires-Dist: xgrammar==0.2.8; platform_machine == "x86_64"\nRequires-Dist: torch==2.13.0\n',
    "vllm-0.32.0.dist-info/RECORD": b"",
}


class Index:
    """Writes wheels in place of pip, and keeps the commands."""

    def __init__(self, wheels: Path) -> None:
        self.wheels = wheels
        self.commands: list[list[str]] = []

    def __call__(self, command: Sequence[str]) -> None:
        self.commands.append(list(command))
        if command[-1].startswith("vllm=="):
            write_wheel(self.wheels, "vllm-0.32.0", VLLM)
        elif "pytest" in command:
            write_wheel(self.wheels, "setuptools-84", {"setuptools/__init__.py": b""})
            write_wheel(self.wheels, "rich-15", {"rich/__init__.py": b"x" * 5000})


def options(folder: Path, arch: int | None = 90) -> object:
    return gpu_kit.Options(folder / "kit", folder / "wheels", "0.32.0", arch, 1)


def test_a_kit_is_built_and_unpacked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = Index(tmp_path / "wheels")
    (tmp_path / "wheels").mkdir()
    write_wheel(tmp_path / "wheels", "rich-14", {"rich/old.py": b""})  # of an earlier kit
    gpu_kit.build(options(tmp_path), index, dry_run=False)
    alone, resolved = index.commands[1], index.commands[2]
    assert "--no-deps" in alone and "xgrammar==0.2.8" in alone
    assert "--no-deps" not in resolved and "fastapi<1,>=0.5" in resolved and "uvicorn" in resolved
    assert not any("torch" in word.split("=")[0] for command in index.commands for word in command[4:])
    assert "kit.part.00" in capsys.readouterr().out
    assert gpu_kit.main(["unpack", str(tmp_path / "kit"), str(tmp_path / "site")]) == 0
    assert f"{tmp_path / 'site'} VLLM_USE_FLASHINFER_SAMPLER=0" in capsys.readouterr().out
    site = tmp_path / "site"
    names = {file.relative_to(site).as_posix() for file in site.rglob("*") if file.is_file()}
    assert names == {
        "rich/__init__.py",
        "vllm/__init__.py",
        "vllm/_C_stable_libtorch.abi3.so",
        "vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so",
        "vllm-0.32.0.dist-info/METADATA",
    }
    kept = bytearray((tmp_path / "site" / "vllm" / "_C_stable_libtorch.abi3.so").read_bytes())
    assert codes(kept) == [[(ELF, 90, b"new")]]


@pytest.mark.parametrize(("arch", "versions"), [(90, {3}), (86, {2}), (None, {2, 3})])
def test_flash_attention_for_the_architecture(tmp_path: Path, arch: int | None, versions: set[int]) -> None:
    (tmp_path / "wheels").mkdir()
    write_wheel(tmp_path / "wheels", "vllm-0.32.0", VLLM)
    names = [name for name, _ in gpu_kit.packed_files(options(tmp_path, arch))]
    assert {int(name.split("_fa")[1][0]) for name in names if "_vllm_fa" in name} == versions


def test_parts_are_no_larger_than_the_limit(tmp_path: Path) -> None:
    with gpu_kit.Parts(tmp_path, 10) as parts:
        parts.write(b"abcdefgh")
        parts.write(b"ijklmnopqrstuvwxyz")
    assert [file.read_bytes() for file in parts.files] == [b"abcdefghij", b"klmnopqrst", b"uvwxyz"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda kit, site: (kit / "kit.part.00").unlink(), "kit.part.00 is missing"),
        (lambda kit, site: (kit / "kit.part.00").write_bytes(b"x"), "kit.part.00 is damaged"),
        (lambda kit, site: (kit / "kit.sha256").unlink(), "holds no kit"),
        (lambda kit, site: site.mkdir(), "exists: give a new folder"),
    ],
)
def test_a_damaged_kit_is_not_unpacked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: object, message: str
) -> None:
    (tmp_path / "wheels").mkdir()
    write_wheel(tmp_path / "wheels", "vllm-0.32.0", VLLM)
    gpu_kit.write_kit(options(tmp_path))
    kit, site = tmp_path / "kit", tmp_path / "site"
    assert callable(change)
    change(kit, site)
    assert gpu_kit.main(["unpack", str(kit), str(site)]) == 1
    assert message in capsys.readouterr().err
    assert not site.exists() or not list(site.iterdir())


def test_a_dry_run_prints_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--out", str(tmp_path / "kit"), "--wheels", str(tmp_path / "wheels")]
    assert gpu_kit.main(["build", "--dry-run", "--arch", "all", *folders]) == 0
    printed = capsys.readouterr().out
    assert "vllm==0.32.0" in printed and "--python-version=3.12" in printed and "kit.part.00" in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--arch", "9.0"], "number or all"), (["--arch", "9"], "such as 90"), (["--part-mib", "65"], "1 to 64")],
)
def test_impossible_options_are_a_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_kit.main(["build", "--dry-run", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_packages_of_the_host_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    for name in ("setuptools", "py_cpuinfo", "einops"):
        write_wheel(tmp_path / "wheels", f"{name}-1", {f"{name}/__init__.py": b""})
    given = gpu_kit.Options(tmp_path, tmp_path / "wheels", "0.32.0", None, 1, host_has=("py-cpuinfo",))
    assert [name for name, _ in gpu_kit.packed_files(given)] == ["einops/__init__.py"]
