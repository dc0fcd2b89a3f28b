# SPDX-License-Identifier: Apache-2.0
"""Whether vLLM's Python and its compiled parts fit: the operators that are called against those that are registered.

`python -m tools.compiled_operators OTHER`, in the environment to judge; OTHER is the directory `vllm` of the build that
the compiled parts come from. What that build's own Python lacks, too, is no problem of the combination: operators for
GPUs, and names that are registered without a schema. Nothing is called; an operator of the same name and arguments may
still compute something else.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Namespaces of compiled operators: `_C`, `_moe_C`, `_C_cache_ops`; not those of torch or of Python (`vllm`).
_COMPILED = re.compile(r"_(\w+_)?C(_\w+)?")

Schemas = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Call:
    """A call of `torch.ops.NAMESPACE.NAME(…)`."""

    operator: str  # NAMESPACE::NAME
    file: str  # below the directory `vllm`
    line: int
    positional: int
    keywords: tuple[str, ...]
    open_ended: bool  # with starred arguments, whose number is not known


@dataclass(frozen=True)
class Verdict:
    """What a version's Python calls of the registered operators."""

    fitting: int  # operators that are registered and take the arguments
    absent: int  # operators that are not registered, here and in the build's own Python
    unfit: list[str]  # sentences, one for each operator that the build's own Python does not have this problem with


def calls(root: Path) -> Iterator[Call]:
    """All calls of compiled operators in a directory `vllm`."""
    for file in sorted(root.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if "torch.ops._" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and (operator := _operator(node.func)) is not None:
                starred = any(isinstance(argument, ast.Starred) for argument in node.args)
                names = tuple(keyword.arg for keyword in node.keywords if keyword.arg is not None)
                yield Call(
                    operator,
                    file.relative_to(root).as_posix(),
                    node.lineno,
                    len(node.args),
                    names,
                    starred or len(names) < len(node.keywords),
                )


def _operator(function: ast.expr) -> str | None:
    """`_C::name` for `torch.ops._C.name` and `torch.ops._C.name.overload`."""
    parts: list[str] = []
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    match [*reversed(parts)]:
        case ["ops", namespace, name, *_] if isinstance(function, ast.Name) and function.id == "torch":
            return f"{namespace}::{name}" if _COMPILED.fullmatch(namespace) else None
    return None


def misfit(call: Call, schemas: Sequence[Any]) -> str | None:
    """What no overload of the operator accepts about a call; None where one takes it."""
    problems = [_misfit(call, schema) for schema in schemas]
    return None if None in problems else problems[0]


def _misfit(call: Call, schema: Any) -> str | None:
    if call.open_ended:
        return None
    by_position = [argument.name for argument in schema.arguments if not argument.kwarg_only]
    if call.positional > len(by_position):
        return f"takes {len(by_position)} arguments, and is called with {call.positional}"
    given = {*by_position[: call.positional], *call.keywords}
    if unknown := [name for name in call.keywords if name not in {argument.name for argument in schema.arguments}]:
        return f"has no argument {', '.join(unknown)}"
    missing = [a.name for a in schema.arguments if a.name not in given and not a.has_default_value()]
    return f"also needs {', '.join(missing)}" if missing else None


def problems(found: Sequence[Call], schemas: Schemas) -> dict[str, str]:
    """By operator, what is wrong and where it is called; one that is not registered matters in code for CPUs only."""
    result: dict[str, str] = {}
    for call in found:
        if call.operator not in schemas:
            problem = "is not there" if _for_cpus(call) else None
        else:
            problem = misfit(call, schemas[call.operator])
        if problem is not None:
            result.setdefault(call.operator, f"{call.operator} {problem} (vllm/{call.file}:{call.line})")
    return result


def _for_cpus(call: Call) -> bool:
    return "cpu" in call.operator.lower() or "cpu" in call.file.lower()


def judge(own: Sequence[Call], other: Sequence[Call], schemas: Schemas) -> Verdict:
    """`own` are the calls of the Python to judge, `other` those of the Python that belongs to the compiled parts."""
    ours, theirs = problems(own, schemas), problems(other, schemas)
    names = {call.operator for call in own}
    registered = {name for name in names if name in schemas}
    return Verdict(
        fitting=len(registered - set(ours)),
        absent=len(names - registered - set(ours)),
        unfit=[sentence for operator, sentence in ours.items() if operator not in theirs],
    )


def registered() -> dict[str, list[Any]]:
    """The schemas of all operators once the platform's compiled parts are loaded."""
    import torch
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    schemas: dict[str, list[Any]] = {}
    for schema in torch._C._jit_get_all_schemas():
        schemas.setdefault(schema.name, []).append(schema)
    return schemas


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.compiled_operators", description=__doc__)
    parser.add_argument("other", type=Path, help="the directory vllm of the build that the compiled parts come from")
    options = parser.parse_args()
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        parser.error("no vllm is installed in this environment")
    schemas = registered()
    if not any(_COMPILED.fullmatch(name.partition("::")[0]) for name in schemas):
        parser.error("its compiled parts register no operator: they cannot be loaded")
    verdict = judge(list(calls(Path(spec.origin).parent)), list(calls(options.other)), schemas)
    print(json.dumps(asdict(verdict)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
