"""Files that claim or unpack to far more than they have: refused in one line, in a process that may take a GiB."""

import io
import pickle
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from models import pretrained
from models.checkpoint import read_checkpoint
from models.tensor_file import load_tensors
from prepare.glove import read_glove
from prepare.masks import read_mat_mask
from tests.models import test_pretrained
from tests.support.forked import errors, start
from tests.support.hostile import Call, laughs, refused, write
from utils.files.arrays import read_npz
from utils.files.images import read_image

GIBIBYTE = 2**30


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def members_of(value) -> dict[str, bytes]:
    stream = io.BytesIO()
    torch.save(value, stream)
    with zipfile.ZipFile(stream) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed_checkpoint() -> bytes:
    """torch.load, unless it maps the file, unpacks what torch.save never packs: here to 64 MB, from 64 kB."""
    return zipped(members_of({"x": torch.zeros(2**24)}))


def overlong_tensor() -> bytes:
    """A storage of 3 numbers said to have 2**20: torch.load, unless it maps the file, reads beyond its memory."""
    members = members_of({"x": torch.ones(2**20)})
    name = next(name for name in members if name.endswith("data/0"))
    return zipped({**members, name: members[name][:12]}, zipfile.ZIP_STORED)


def greedy_call() -> bytes:
    """weights_only=True admits bytearray, which takes what it is asked for."""
    members = members_of({"x": 1})
    name = next(name for name in members if name.endswith("data.pkl"))
    return zipped({**members, name: pickle.dumps({"x": Call(bytearray, 2**40)}, 2)}, zipfile.ZIP_STORED)


@pytest.mark.parametrize("make", [packed_checkpoint, overlong_tensor, greedy_call])
def test_checkpoints_that_ask_for_more_than_they_have(tmp_path, make):
    path = write(tmp_path / "last.pth", make())
    assert str(path) in refused(read_checkpoint, path)
    assert str(path) in refused(load_tensors, path)
    assert str(path) in refused(test_pretrained.loaded, path)


def test_a_checkpoint_is_walked_through_once(tmp_path):
    torch.save({"x": laughs()}, tmp_path / "last.pth")  # 2**60 lists to whoever has no memory of what was seen
    assert "neither a checkpoint" in refused(read_checkpoint, tmp_path / "last.pth")


def test_weights_in_an_npz_that_unpack_to_far_more(tmp_path):
    stream = io.BytesIO()
    np.savez_compressed(stream, **{"cls": np.zeros(2**22, np.float32)})
    path = write(tmp_path / "vit.npz", stream.getvalue())
    assert "unpacks to" in refused(pretrained._arrays, path)


def read_bombs(folder: Path) -> None:
    """For a process of its own."""
    resource.setrlimit(resource.RLIMIT_DATA, (3 * GIBIBYTE, 3 * GIBIBYTE))
    readers = {"a.npz": lambda path: read_npz(path, ("a",)), "g.txt": lambda path: read_glove(path, ["a"])}
    readers |= {"1_1.mat": read_mat_mask, "x.png": read_image}
    for path in sorted(folder.iterdir()):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        message = refused(readers[path.name], path)
        assert "MemoryError" not in message and path.name in message
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


def test_files_of_ten_gigabytes(tmp_path):
    (tmp_path / "files").mkdir()
    for name in ("a.npz", "g.txt", "x.png", "1_1.mat"):
        with (tmp_path / "files" / name).open("wb") as file:
            file.truncate(10 * GIBIBYTE)  # zeros without an end, which take no room on the disk
    process = start(read_bombs, tmp_path / "files", output=tmp_path / "bombs")
    process.join(60)
    process.kill()
    assert (process.exitcode, errors(tmp_path / "bombs")) == (0, "")
