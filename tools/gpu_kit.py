#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""vLLM, its light requirements and this project, packed into a few files for a GPU host without a network.

`build` runs where a package index is reachable and needs no GPU; `unpack` runs on the host, which must have x86-64,
Python 3.12, torch 2.11 or newer for CUDA 13, Triton and transformers. vLLM is packed without its requirements on these
and without parts that a dense model does not use; GPU code for other architectures is removed from its libraries.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import io
import lzma
import re
import shlex
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20
CHECKSUMS = "kit.sha256"
PART = "kit.part.{:02}"

PYTHON_VERSION = "3.12"
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 27, 24, 17)] + ["manylinux2014_x86_64"]
# Imported by `LLM` or `vllm serve`; packed with their requirements, which do not include torch.
RESOLVED = (
    *("aiohttp", "cloudpickle", "einops", "pillow", "psutil", "py-cpuinfo", "requests", "uvloop"),
    *("cachetools", "cbor2", "fastapi", "llguidance", "loguru", "model-hosting-container-standards", "msgspec"),
    *("openai", "oss-harmony", "partial-json-parser", "prometheus-fastapi-instrumentator", "pybase64", "pydantic"),
    *("pyzmq", "setproctitle", "uvicorn", "watchfiles"),
)
# Imported too, but packed without their requirements: torch and transformers are on the host.
ALONE = ("apache-tvm-ffi", "compressed-tensors", "xgrammar")
# For this project's checks.
CHECKS = ("pytest", "pytest-asyncio", "pytest-timeout", "rich")
HOST = ("setuptools",)  # required by some of these, and must not replace the host's
# Files of vLLM's wheel that a dense model does not need, or that torch 2.11 cannot load.
UNUSED = (
    "vllm/vllm-rs",
    "vllm/_qutlass_C.*",
    "vllm/_flashkda_C.*",
    "vllm/_flashmla_*",
    "vllm/_deepselect_C.*",
    "vllm/third_party/deep_gemm/*",
    "vllm/third_party/fmha_sm100/*",
    "vllm/third_party/tml_fa4/*",
    "vllm/vllm_flash_attn/cute/*",
    "*.dist-info/RECORD",
    "*.dist-info/licenses/*",
)
FLASH_ATTENTION = {2: "vllm/vllm_flash_attn/_vllm_fa2_C.*", 3: "vllm/vllm_flash_attn/_vllm_fa3_C.*"}
# FlashInfer is not in the kit, and vLLM imports it for sampling unless this is set.
ENVIRONMENT = "VLLM_USE_FLASHINFER_SAMPLER=0 HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1"

Run = Callable[[Sequence[str]], None]


class KitError(Exception):
    """Why a kit cannot be built or unpacked, in a sentence."""


@dataclass(frozen=True)
class Options:
    """Options of `build`. Raises KitError."""

    out: Path
    wheels: Path
    vllm: str
    arch: int | None  # ten times the compute capability; None keeps all
    part_mib: int
    host_has: tuple[str, ...] = ()  # packages that are not packed

    def __post_init__(self) -> None:
        if self.arch is not None and self.arch < 70:
            raise KitError(f"--arch is ten times the compute capability, such as 90 for 9.0, not {self.arch}")
        if not 1 <= self.part_mib <= 64:
            raise KitError(f"--part-mib must be 1 to 64, not {self.part_mib}")

    @property
    def unused(self) -> tuple[str, ...]:
        """Patterns of files that are left out; of FlashAttention's versions the one for `arch` is kept."""
        if self.arch is None:
            return UNUSED
        return (*UNUSED, FLASH_ATTENTION[2 if self.arch == 90 else 3])


def download(options: Options, run: Run) -> None:
    """Fill the folder of wheels: vLLM, what it imports, and this project. An old wheel of vLLM is used again."""
    pip = [sys.executable, "-m", "pip"]
    target = ["--only-binary=:all:", f"--python-version={PYTHON_VERSION}", "--implementation=cp"]
    target += [f"--abi={abi}" for abi in ("cp312", "abi3", "none")]
    target += [f"--platform={name}" for name in PLATFORMS]
    load = [*pip, "download", "--quiet", "--dest", str(options.wheels), *target]
    run([*load, "--no-deps", f"vllm=={options.vllm}"])
    wanted = requirements(next(options.wheels.glob(f"vllm-{options.vllm}-*.whl"), None))
    run([*load, "--no-deps", *(wanted.get(name, name) for name in ALONE)])
    run([*load, *(wanted.get(name, name) for name in RESOLVED), *CHECKS])
    for project in (ROOT, ROOT / "training"):
        run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(options.wheels), str(project)])


def requirements(wheel: Path | None) -> dict[str, str]:
    """A wheel's requirements by name, without extras and markers. None, as in a dry run, has none."""
    if wheel is None:
        return {}
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if fnmatch.fnmatch(name, "*.dist-info/METADATA"))
        text = archive.read(metadata).decode()
    found: dict[str, str] = {}
    for name, versions in re.findall(r"^Requires-Dist: ([\w.-]+)(?:\[[^\]]*\])? *([^;\n]*)", text, re.MULTILINE):
        found.setdefault(name.lower().replace("_", "-"), f"{name}{versions.strip()}")
    return found


@dataclass(frozen=True)
class Image:
    """One entry of a fat binary: code for an architecture, with its header."""

    kind: int
    arch: int
    data: bytes


class FatBinary:
    """The layout of `.nv_fatbin`: containers, each a header and a sequence of images."""

    HEADER = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes of the images
    IMAGE = struct.Struct("<HHIQ")  # kind, version, bytes of this header, bytes of the code
    ARCH = 28  # offset of the architecture in an image
    MAGIC, PTX, ELF = 0xBA55ED50, 1, 2


def gpu_section(library: bytes | bytearray) -> tuple[int, int]:
    """Start and end of `.nv_fatbin` in a 64-bit ELF file; the same number twice if there is none."""
    (table,) = struct.unpack_from("<Q", library, 40)
    size, count, names = struct.unpack_from("<HHH", library, 58)
    # Of each section: its name, as an offset in the table of names, its offset in the file, and its size.
    sections = [struct.unpack_from("<I20xQQ", library, table + size * number) for number in range(count)]
    text = sections[names][1] if count else 0
    for name, offset, length in sections:
        if library[text + name : text + name + 11] == b".nv_fatbin\0":
            return offset, offset + length
    return 0, 0


def containers(library: bytes | bytearray) -> Iterator[tuple[int, int, list[Image]]]:
    """Each container's offset, its capacity for images in bytes, and its images. Raises KitError."""
    position, end = gpu_section(library)
    while position + FatBinary.HEADER.size <= end:
        magic, _, header, capacity = FatBinary.HEADER.unpack_from(library, position)
        if magic != FatBinary.MAGIC:
            position += 8  # padding between containers
            continue
        place, stop, images = position + header, position + header + capacity, list[Image]()
        while place < stop:
            kind, _, head, body = FatBinary.IMAGE.unpack_from(library, place)
            (arch,) = struct.unpack_from("<I", library, place + FatBinary.ARCH)
            images.append(Image(kind, arch, bytes(library[place : place + head + body])))
            place += head + body
        if place != stop:
            raise KitError("a library of vLLM has GPU code in an unknown layout: build with --arch all")
        yield position, capacity, images
        position = stop


def usable(images: Sequence[Image], arch: int) -> list[Image]:
    """Images that a GPU of this architecture loads: native code, or else the newest PTX.

    If there is none the smallest image remains, as the CUDA runtime expects one; it then reports "no kernel image".
    """
    native = [each for each in images if each.kind == FatBinary.ELF and each.arch // 10 == arch // 10]
    for kind in (native, [each for each in images if each.kind == FatBinary.PTX]):
        if fitting := [each.arch for each in kind if each.arch <= arch]:
            return [each for each in kind if each.arch == max(fitting)]
    return [min(images, key=lambda each: len(each.data))] if images else []


def keep_architecture(library: bytearray, arch: int) -> None:
    """Replace GPU code for other architectures by zeros, which compress to nothing. No container moves."""
    for position, capacity, images in list(containers(library)):
        header = FatBinary.HEADER.unpack_from(library, position)
        kept = b"".join(image.data for image in usable(images, arch))
        start = position + header[2]
        library[start : start + capacity] = kept.ljust(capacity, b"\0")
        FatBinary.HEADER.pack_into(library, position, *header[:3], len(kept))


def packed_files(options: Options) -> Iterator[tuple[str, bytes]]:
    """Names and contents of all files of the kit."""
    for wheel in sorted(options.wheels.glob("*.whl")):
        if wheel.name.split("-")[0].lower().replace("_", "-") in (*HOST, *options.host_has):
            continue
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith("/") or any(fnmatch.fnmatch(name, pattern) for pattern in options.unused):
                    continue
                data = archive.read(name)
                if options.arch is not None and wheel.name.startswith("vllm-") and name.endswith(".so"):
                    library = bytearray(data)
                    keep_architecture(library, options.arch)
                    data = bytes(library)
                yield name, data


class Parts(io.RawIOBase):
    """A stream that is divided into files of at most `limit` bytes."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.files: list[Path] = []
        self._file: BinaryIO | None = None
        self._free = 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | bytearray | memoryview) -> int:  # type: ignore[override]
        rest = memoryview(data)
        while rest:
            if not self._free:
                self._next()
            assert self._file is not None
            taken = rest[: self._free]
            self._file.write(taken)
            self._free -= len(taken)
            rest = rest[len(taken) :]
        return len(data)

    def _next(self) -> None:
        if self._file is not None:
            self._file.close()
        self.files.append(self.folder / PART.format(len(self.files)))
        self._file, self._free = self.files[-1].open("wb"), self.limit

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


def write_kit(options: Options) -> list[Path]:
    """Pack the downloaded wheels into parts and their checksums; an old kit in the folder is removed first."""
    options.out.mkdir(parents=True, exist_ok=True)
    for old in options.out.glob("kit.*"):
        old.unlink()
    with (
        Parts(options.out, options.part_mib * MIB) as parts,
        lzma.LZMAFile(cast(BinaryIO, parts), "wb", preset=6) as compressed,
        tarfile.open(fileobj=compressed, mode="w|") as archive,
    ):
        for name, data in packed_files(options):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    lines = [f"{digest(part)}  {part.name}\n" for part in parts.files]
    (options.out / CHECKSUMS).write_text("".join(lines))
    return parts.files


def digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def build(options: Options, run: Run, *, dry_run: bool) -> None:
    """Download and pack; a dry run prints the commands and what is left out."""
    if dry_run:
        download(options, lambda command: print(shlex.join(command)))
        print(f"leaves out: {' '.join(options.unused)}")
        print(f"writes: {options.out / PART.format(0)} and so on, of at most {options.part_mib} MiB")
        return
    options.wheels.mkdir(parents=True, exist_ok=True)
    for old in options.wheels.glob("*.whl"):
        if not old.name.startswith(f"vllm-{options.vllm}-"):
            old.unlink()  # perhaps another version than the one downloaded now
    download(options, run)
    for part in write_kit(options):
        print(f"{part}: {part.stat().st_size / MIB:.1f} MiB")


def unpack(kit: Path, site: Path) -> None:
    """Unpack a kit to a new folder. Raises KitError if a part is missing or damaged."""
    if site.exists():
        raise KitError(f"{site} exists: give a new folder")
    try:
        lines = (kit / CHECKSUMS).read_text().splitlines()
    except OSError:
        raise KitError(f"{kit} holds no kit: {CHECKSUMS} is missing") from None
    expected = [line.split("  ", 1) for line in lines]
    for checksum, name in expected:
        if not (kit / name).is_file():
            raise KitError(f"{kit / name} is missing")
        if digest(kit / name) != checksum:
            raise KitError(f"{kit / name} is damaged: its checksum differs")
    site.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=site.parent, prefix=f".{site.name}-") as scratch:
        with tempfile.TemporaryFile() as joined:
            for _, name in expected:
                joined.write((kit / name).read_bytes())
            joined.seek(0)
            with tarfile.open(fileobj=joined, mode="r:xz") as archive:
                archive.extractall(Path(scratch, "site"), filter="data")
        Path(scratch, "site").rename(site)


def run_command(command: Sequence[str]) -> None:
    """Run a command with its output shown. Raises KitError."""
    if subprocess.run(list(command), check=False).returncode:
        raise KitError(f"this command failed: {shlex.join(command)}")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="action", required=True)
    shows_defaults = argparse.ArgumentDefaultsHelpFormatter
    builder = commands.add_parser("build", help="download and pack", formatter_class=shows_defaults)
    builder.add_argument("--out", type=Path, default=ROOT / ".gpukit", help="folder for the kit")
    builder.add_argument("--wheels", type=Path, default=ROOT / "build" / "gpu-kit", help="folder for downloaded wheels")
    builder.add_argument("--vllm", default="0.32.0", help="version of vLLM")
    builder.add_argument("--arch", default="90", help="ten times the GPU's compute capability, or all")
    builder.add_argument(
        "--host-has",
        nargs="+",
        metavar="PACKAGE",
        default=[],
        help="packages that the host has, besides torch and transformers, and the kit leaves out",
    )
    builder.add_argument("--part-mib", type=int, default=64, help="largest file of the kit")
    builder.add_argument("--dry-run", action="store_true", help="print what would be done")
    unpacker = commands.add_parser("unpack", help="unpack on the host, and print the environment to export")
    unpacker.add_argument("kit", type=Path, help="folder with the kit")
    unpacker.add_argument("site", type=Path, help="new folder for the packages")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        if args.action == "unpack":
            unpack(args.kit, args.site)
            path = ":".join(map(str, (ROOT, ROOT / "training", args.site.resolve())))
            print(f"export PYTHONPATH={shlex.quote(path)} {ENVIRONMENT}")
            return 0
        if args.arch != "all" and not args.arch.isdigit():
            raise KitError(f"--arch must be a number or all, not {args.arch}")
        arch = None if args.arch == "all" else int(args.arch)
        options = Options(args.out, args.wheels, args.vllm, arch, args.part_mib, tuple(args.host_has))
        build(options, run_command, dry_run=args.dry_run)
    except KitError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
