# SPDX-License-Identifier: Apache-2.0
"""The workflow that looks at vLLM's newest release every day: its steps are run, and its report is made once."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from redrafter_vllm.integration.vllm_interface.source import Source, open_tree
from tests.integration.test_vllm_interface import SOURCES, changed
from tests.paths import ROOT


# The report of a release with changes; of one that is only new; and none, for lack of a network.
@pytest.mark.process
@pytest.mark.parametrize("place", ["changed", "new", "nowhere"])
def test_the_workflow_reports_a_release_once(tmp_path: Path, place: str) -> None:
    """Its steps, run as written with another place for `newest`, a recorder for `gh` and no package but its own."""
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "vllm.yml").read_text())["jobs"]["interfaces"]["steps"]
    install, doctor, report = (step["run"] for step in steps if "run" in step)
    allowed = {name.replace("griffelib", "griffe") for name in install.removeprefix("pip install ").split()}
    changed(tmp_path, SOURCES)
    if place == "new":
        shutil.rmtree(tmp_path / "vllm")
        (tmp_path / "vllm").symlink_to(open_tree("installed").root / "vllm")
    folder = tmp_path / "bin"
    folder.mkdir()
    script(
        folder / "python",
        f"""import runpy, sys
from importlib.abc import MetaPathFinder
class Bare(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in {sorted(allowed | {"redrafter_vllm"})} and top not in sys.stdlib_module_names:
            raise ImportError(name + " is not installed by the workflow")
sys.meta_path.insert(0, Bare())
sys.path.insert(0, {str(ROOT)!r})
import redrafter_vllm.integration.versions as versions
versions.BEYOND = versions.LOWEST = "0.1"
assert sys.argv[1] == "-m", sys.argv
sys.argv = [sys.argv[2], *({str(tmp_path / ("vllm" if place != "nowhere" else "none"))!r} if word == "newest" else word
                          for word in sys.argv[3:])]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
""",
    )
    script(
        folder / "gh",
        """import json, pathlib, sys
made = pathlib.Path("issues.json")
issues = json.loads(made.read_text()) if made.exists() else []
if sys.argv[1:3] == ["issue", "list"]:
    print("\\n".join(title for title, body in issues))
else:
    assert sys.argv[1:3] + sys.argv[3:6:2] == ["issue", "create", "--title", "--body"], sys.argv
    made.write_text(json.dumps([*issues, [sys.argv[4], sys.argv[6]]]))
""",
    )
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}

    def run(step: str) -> subprocess.CompletedProcess[str]:
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step]
        return subprocess.run(shell, cwd=tmp_path, env=environment, capture_output=True, text=True)

    for _ in range(2):
        assert (result := run(doctor)).returncode == 1, result.stderr
        assert (result := run(report)).returncode == 0, result.stderr
    if place == "nowhere":
        assert not (tmp_path / "issues.json").exists()
        return
    ((title, body),) = json.loads((tmp_path / "issues.json").read_text())
    version = Source(open_tree(str(tmp_path))).version()
    assert title == f"vLLM {version}: what the plugin uses of it"
    assert "    UNTESTED: ReDrafter serves with vLLM" in body
    assert ("    GONE    rebound    vllm.engine.arg_utils:EngineArgs.add_cli_args" in body) == (place == "changed")
    assert "holds " not in body


def script(path: Path, text: str) -> None:
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
