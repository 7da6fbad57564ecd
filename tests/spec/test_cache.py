"""A file of the cache is whole or not there."""

from pathlib import Path

import pytest

from fedge.spec.cache import store


def test_a_file_is_stored_whole_in_a_folder_that_is_made(tmp_path):
    store(tmp_path / "costs" / "a.json", "{}")
    assert (tmp_path / "costs" / "a.json").read_text() == "{}"
    assert len(list((tmp_path / "costs").iterdir())) == 1


@pytest.mark.parametrize("before", [None, "old"])
def test_a_full_disk_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch, before):
    place = tmp_path / "a.json"
    if before is not None:
        place.write_text(before)

    def full(path, text, encoding):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    store(place, "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ([] if before is None else [before])


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path):
    (tmp_path / "file").touch()
    store(tmp_path / "file" / "a.json", "{}")
