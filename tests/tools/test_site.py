# SPDX-License-Identifier: Apache-2.0
"""The documents as a site: links between repository and site, the check of built links, the strict build."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.paths import ROOT
from tools.site import __main__ as site
from tools.site.links import broken_links

needs_mkdocs = pytest.mark.skipif(
    any(find_spec(name) is None for name in site.NEEDED), reason="mkdocs, mkdocs-material or mkdocstrings is missing"
)


@needs_mkdocs
def test_links_out_of_the_documents() -> None:
    from tools.site.hooks import page_of, relinked

    text = "[a](../README.md#why) [b](../redrafter_vllm/config.py) [c](serving.md#load) [d](https://x.org/) [e](#own)\n"
    fenced = "```\n[f](../README.md)\n```\n"
    assert relinked(text + fenced, "docs/choosing.md", "choosing.md") == (
        "[a](source/README.md#why) [b](source/redrafter_vllm/config.py.md) [c](serving.md#load) [d](https://x.org/) "
        f"[e](#own)\n{fenced}"
    )
    assert relinked("[a](../../README.md)", "docs/dev/log.md", "dev/log.md") == "[a](../source/README.md)"
    # A document that is named by its file has its title in the site.
    named = relinked("[serving.md](serving.md#load)", "docs/choosing.md", "choosing.md")
    assert named == "[Serving](serving.md#load)"
    # A document outside docs/, shown below source/.
    text = "[a](docs/serving.md#load) ![b](docs/assets/x.svg) [c](training/redrafter_training)"
    assert relinked(text, "README.md", "source/README.md") == (
        "[a](../serving.md#load) ![b](../assets/x.svg) [c](training/redrafter_training/index.md)"
    )
    assert page_of("tests/assets/README.md") == "source/tests/assets/README.md"


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "picture.png").write_bytes(b"")
    (tmp_path / "index.html").write_text(
        '<h1 id="top">x</h1><a href="#top"></a><a href="sub/page.html#here"></a><img src="picture.png">'
        '<a href="https://example.org/none"></a><a href="mailto:x@example.org"></a><a href="sub/"></a>'
    )
    (tmp_path / "sub" / "index.html").write_text('<a href="/index.html"></a><a href="../a%20b.html"></a>')
    (tmp_path / "sub" / "page.html").write_text(
        '<p id="here"></p><a href="../index.html#below"></a><img src="gone.png"><a href="#nowhere"></a>'
    )
    (tmp_path / "a b.html").write_text("")
    assert list(broken_links(tmp_path)) == [
        "sub/page.html: ../index.html#below: no such anchor",
        "sub/page.html: gone.png leads nowhere",
        "sub/page.html: #nowhere: no such anchor",
    ]


@needs_mkdocs
@pytest.mark.process
def test_the_site_builds_without_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert site.main(["--out", str(tmp_path / "site")]) == 0, capsys.readouterr().err
    pages = {str(page.relative_to(tmp_path / "site")) for page in (tmp_path / "site").rglob("*.html")}
    documents = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert {str(path).replace("README", "index") for path in documents} <= pages
    assert "source/redrafter_vllm/drafting/verify.py.html" in pages
    built = (tmp_path / "site" / "reference" / "docstrings.html").read_text(encoding="utf-8")
    assert "node slots of the prefix tree" in built and 'id="redrafter_vllm.drafting.tree.DraftTree"' in built


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(site, "NEEDED", ("a_package_that_nobody_has",))
    assert site.main([]) == 1
    assert capsys.readouterr().err == (
        "The site needs a_package_that_nobody_has: pip install -e '.[docs]' (make setup does).\n"
    )
