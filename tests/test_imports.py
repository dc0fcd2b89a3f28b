# SPDX-License-Identifier: Apache-2.0
"""Imports go in one direction: no circles, layers that import only lower ones, and libraries in their place."""

import importlib.util
from graphlib import CycleError, TopologicalSorter
from types import ModuleType

import pytest

import redrafter_training
from tests.paths import ROOT

# What lies directly in a package, lowest layer first.
LAYERS = {
    "redrafter_vllm": (
        "utils prompt_sets config request_settings checkpoint ops model drafting adaptive inspection chat watch "
        "integration plugin bench predict cli __main__"
    ),
    "redrafter_vllm.integration": (
        "versions method metrics start_errors target_support speculative_config vllm_interface "
        "attention scheduler frontend worker patches"
    ),
    "redrafter_training": (
        "utils config distributed target data hidden_states trainer responses tiny_target run "
        "cli smollm2 invent respond evaluate trim pipeline __main__"
    ),
    "benchmarks": ("assets record cli engines models serving training demo gpu_check"),
}
DISTRIBUTIONS = ("redrafter_vllm", "redrafter_training", "benchmarks")


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_imports", ROOT / "tools" / "draw_imports.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


draw_imports = _load()
FILES = draw_imports.module_files()
MODULES = draw_imports.module_graph()
PACKAGES = sorted(name for name, file in FILES.items() if file.name == "__init__.py")


def importers(library: str) -> set[str]:
    """Modules that import `library`."""
    return {
        module
        for module, file in FILES.items()
        if any(name.partition(".")[0] == library for name in draw_imports.imported_names(file))
    }


def test_no_circle_between_modules() -> None:
    assert len(MODULES) > 200
    TopologicalSorter(MODULES).prepare()  # raises CycleError


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circle_inside_a_package(package: str) -> None:
    TopologicalSorter(draw_imports.contents_graph(package, MODULES)).prepare()


@pytest.mark.parametrize("package", LAYERS)
def test_layers_import_lower_ones(package: str) -> None:
    layers = LAYERS[package].split()
    graph = draw_imports.contents_graph(package, MODULES)
    assert set(layers) == set(graph), "LAYERS must name everything in the package"
    upward = [
        (name, imported)
        for name, names in graph.items()
        for imported in names
        if layers.index(imported) >= layers.index(name)
    ]
    assert not upward


def test_distributions_import_lower_ones() -> None:
    root = {module: module.partition(".")[0] for module in MODULES}
    upward = [
        (module, imported)
        for module, names in MODULES.items()
        for imported in names
        if DISTRIBUTIONS.index(root[imported]) > DISTRIBUTIONS.index(root[module])
    ]
    assert not upward


def test_vllm_is_imported_where_it_is_adapted() -> None:
    product = {name for name in importers("vllm") if not name.startswith("benchmarks.")}
    elsewhere = {name for name in product if not name.startswith("redrafter_vllm.integration.")}
    # Those outside of `integration` use vLLM's public interface.
    assert elsewhere == {
        "redrafter_vllm.plugin",
        "redrafter_vllm.chat.own_engine",
        "redrafter_vllm.cli.engine_choices",
        "redrafter_vllm.bench.closed_loop",
        "redrafter_vllm.bench.engine",
        "redrafter_training.responses.vllm_engine",
    }


def test_ray_is_imported_where_workers_are_started() -> None:
    product = {name for name in importers("ray") if not name.startswith("benchmarks.")}
    names = {"data.ray_ingest", "distributed.ray_train", "responses.ray_workers"}
    assert product == {f"redrafter_training.{name}" for name in names}


def test_kernels_are_in_ops() -> None:
    product = {name for name in importers("triton") if not name.startswith("benchmarks.")}
    assert product and all(name.startswith("redrafter_vllm.ops.") for name in product)


def test_a_circle_is_found_and_only_between_those_inside() -> None:
    modules = {"p.a.x": {"p.b.y", "q"}, "p.b": set(), "p.b.y": {"p.b.z"}, "p.b.z": {"p.a.w"}, "p.a.w": {"p.a.x"}}
    assert draw_imports.contents_graph("p", modules) == {"a": {"b"}, "b": {"a"}}
    assert draw_imports.contents_graph("p.a", modules) == {"x": set(), "w": {"x"}}
    with pytest.raises(CycleError):
        TopologicalSorter(draw_imports.contents_graph("p", modules)).prepare()


def test_the_order_is_documented() -> None:
    folders = [name for name in LAYERS["redrafter_training"].split() if f"redrafter_training.{name}" in PACKAGES]
    folders.remove("tiny_target")  # a command beside the others, which nothing imports
    assert ", ".join(folders) in (redrafter_training.__doc__ or "")


def test_the_drawing_is_current() -> None:
    drawn = draw_imports.DOCUMENT.read_text(encoding="utf-8")
    assert drawn == draw_imports.document(), "run python tools/draw_imports.py"
