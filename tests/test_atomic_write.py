"""A file is whole or not there."""

import os
import stat

import pytest

from stylemamba.pipeline.atomic_write import atomic_write


def test_the_file_appears_whole_when_the_block_ends_well(tmp_path):
    path = tmp_path / "new folder" / "style.safetensors"
    with atomic_write(path) as part:
        part.write_bytes(b"half")
        assert not path.exists()
        assert part.parent == path.parent and part.suffix == path.suffix
        part.write_bytes(b"whole")
    assert path.read_bytes() == b"whole"
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [None, b"old"])
def test_an_interrupted_write_leaves_everything_as_it_was(tmp_path, error, before):
    path = tmp_path / "style.safetensors"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(error), atomic_write(path) as part:
        part.write_bytes(b"half")
        raise error
    assert os.listdir(tmp_path) == ([] if before is None else [path.name])
    assert before is None or path.read_bytes() == before


def test_an_older_file_is_replaced(tmp_path):
    path = tmp_path / "style.safetensors"
    path.write_bytes(b"a much longer old file")
    with atomic_write(path) as part:
        part.write_bytes(b"new")
    assert path.read_bytes() == b"new"


def test_a_folder_of_that_name_is_left_alone(tmp_path):
    (tmp_path / "style.safetensors" / "inside").mkdir(parents=True)
    with pytest.raises(OSError), atomic_write(tmp_path / "style.safetensors") as part:
        part.write_bytes(b"new")
    assert os.listdir(tmp_path) == ["style.safetensors"]
    assert (tmp_path / "style.safetensors" / "inside").is_dir()


@pytest.mark.skipif(os.name != "posix", reason="umask is a matter of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_are_those_of_any_other_new_file(tmp_path, umask):
    path = tmp_path / "style.safetensors"
    before = os.umask(umask)
    try:
        with atomic_write(path) as part:
            part.write_bytes(b"new")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_name_of_the_longest_length_can_be_written(tmp_path):
    path = tmp_path / ("ä" * 121 + ".safetensors")  # 254 bytes
    with atomic_write(path) as part:
        part.write_bytes(b"new")
    assert path.read_bytes() == b"new"
