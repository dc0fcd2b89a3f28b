# SPDX-License-Identifier: Apache-2.0
"""Files that a command is to write: new ones, those that exist, and what cannot be one."""

from pathlib import Path

import pytest

from redrafter_vllm.utils.paths import PlaceError, check_file


def test_a_file_is_replaced_only_where_that_is_wanted(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    for overwrite in (None, False, True):
        check_file(file, overwrite=overwrite)
    assert list(tmp_path.iterdir()) == []
    file.write_text("x")
    check_file(file, overwrite=True)
    with pytest.raises(PlaceError, match=r"page.html exists already, and is not overwritten: choose another name$"):
        check_file(file)
    with pytest.raises(PlaceError, match=r"choose another name, or add --overwrite$"):
        check_file(file, overwrite=False)
    assert file.read_text() == "x"


def test_what_cannot_be_a_file(tmp_path: Path) -> None:
    with pytest.raises(PlaceError, match="is a folder: give the name of a file"):
        check_file(tmp_path, overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(PlaceError, match="file is a file"):
        check_file(tmp_path / "file" / "page.html")
