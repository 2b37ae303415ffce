"""Disks that lie: files that a power cut left empty or cut off, damage that --verify finds, no locks."""

import errno
import fcntl
import os
import random
from pathlib import Path

import pytest

from prepare import folder as batch_folder
from prepare import writer as build_module
from tests.support.builder import batches, tree
from train.run import locked
from utils.files import writing as file_system
from utils.files.writing import atomic_write, lock_file


@pytest.mark.parametrize("form", [[], ["--self_contained"]])
@pytest.mark.parametrize("left", [0, 30])
def test_a_build_writes_what_a_power_cut_left_empty_or_cut_off(tiny, build, form, left):
    assert build(tiny, "Gref", "train", *form)[0] == 0
    before = tree(batches(tiny))
    files = sorted(batches(tiny).glob("train_*/*"))
    for path in random.Random(3).sample(files, len(files) - 2):
        os.truncate(path, left)
    os.truncate(batches(tiny) / "vocabulary.txt", left)
    assert build(tiny, "Gref", "train", *form)[0] == 0
    assert tree(batches(tiny)) == before
    inodes = [path.stat().st_ino for path in files]
    assert build(tiny, "Gref", "train", *form)[0] == 0 and inodes == [path.stat().st_ino for path in files]


def test_a_split_is_on_the_disk_before_it_is_said_to_be_complete(tiny, build, monkeypatch):
    events = []
    monkeypatch.setattr(build_module, "sync_file_system", lambda folder: events.append("sync"))
    monkeypatch.setattr(batch_folder, "write_json", lambda _, meta: events.append(meta["splits"]))
    monkeypatch.setattr(batch_folder, "_there", lambda files: {"splits": {}})
    assert build(tiny)[0] == 0
    assert [event if event == "sync" else event["train"]["complete"] for event in events[1:]] == [False, "sync", True]


def test_verify_names_every_damaged_file_and_its_remedy_works(tiny, build):
    assert build(tiny)[0] == 0 and build(tiny, "Gref", "val")[0] == 0
    folder, before = batches(tiny), tree(batches(tiny))
    for split in ("train", "val"):
        code, output, error = build(tiny, "Gref", split, "--verify")
        assert (code, error) == (0, "") and f"all files of {split} are as they were written" in output
    damaged = [folder / name for name in ("train_label/3.png", "train_batch/Gref_train_4.npz", "train_images.npz")]
    damaged += [path for path in (folder / "train_image").iterdir() if path.name.endswith("4.png")]
    for path in damaged:
        content = bytearray(path.read_bytes())
        content[content.index(b"NUMPY") + 200 if path.suffix == ".npz" else -9] ^= 4
        path.write_bytes(content)
    code, output, error = build(tiny, "Gref", "train", "--verify", "--workers", "2")
    assert code == 2 and error.count("\n") == 1 and "4 faults in train" in error and "without --verify" in error
    assert [line.partition(": ")[0] for line in output.splitlines()] == sorted(map(str, damaged))
    for path in damaged:  # as the lines say
        path.unlink()
    assert build(tiny)[0] == 0 and build(tiny, "Gref", "train", "--verify")[0] == 0
    assert tree(folder) == before
    assert build(tiny, "unc", "train", "--verify")[0] == 2  # not built


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tiny, build, monkeypatch, capsys, number):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    file_system._warn_of_no_locks.cache_clear()
    code, _, error = build(tiny)
    assert code == 0 and error.count("\n") == 1 and "has no locks" in error
    file_system._warn_of_no_locks.cache_clear()
    with locked(tiny / "weights/a"), locked(tiny / "weights/b"):
        pass
    assert capsys.readouterr().err.count("has no locks") == 1
    with (tiny / "x").open("w") as file:
        number = errno.EIO
        with pytest.raises(OSError):
            lock_file(file, fcntl.LOCK_EX)


def test_content_is_on_the_disk_before_the_name_appears_and_every_folder_after(tmp_path, monkeypatch):
    events, path = [], tmp_path / "new" / "folders" / "metrics.json"
    path.parent.mkdir(parents=True)
    real = os.fsync

    def fsync(handle):
        events.append((str(Path(f"/proc/self/fd/{handle}").readlink()), path.exists()))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_write(path) as file:
        file.write(b"{}")
    (content, named), *folders = events
    assert content.startswith(str(path.parent / ".writing-")) and not named
    assert folders[:3] == [(str(folder), True) for folder in (path.parent, tmp_path / "new", tmp_path)]
