"""build_batches.py on bad input: one line that names the file and the remedy, exit code 2, nothing half-written."""

import fcntl
import json
import resource
import shutil

import pytest
from PIL import Image

from models.config import LARGEST
from tests.support.builder import batches, refusal, start, tree, wait_for_group_to_end
from tests.support.forked import without_log
from tests.support.tiny_set import edit_instances, edit_refs
from utils.options import MAX_CANVAS_SIDE
from utils.prepared import PreparedSplit, read_meta

IMAGE = "data/coco/images/train2014/COCO_train2014_000000000003.jpg"
REFCOCOG = "external/refer/data/refcocog"


def truncate_jpeg(root):
    (root / IMAGE).write_bytes((root / IMAGE).read_bytes()[:-300])


def blank_expression(root):
    edit_refs(root, lambda refs: refs[2]["sentences"][1].update(sent=" \n"))


def other_outline(root):
    edit_instances(root, lambda value: value["annotations"][3].update(segmentation=[[1, 1, 9, 1, 9, 9]]))


def other_image(root):
    Image.new("RGB", (48, 48)).save(root / IMAGE.replace("3.jpg", "2.jpg"))


def build_anew(build, root) -> None:
    for kind in ("batch", "image", "label"):  # as messages ask
        shutil.rmtree(batches(root) / f"train_{kind}")
    assert build(root)[0] == 0


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate_jpeg, [IMAGE, "truncated", "download"]),
        (lambda root: (root / IMAGE).write_text("<html>404</html>"), [IMAGE, "download"]),
        (lambda root: (root / IMAGE).unlink(), [IMAGE, "no such file"]),
        (lambda root: (root / REFCOCOG / "instances.json").unlink(), ["instances.json", "no such file"]),
        (lambda root: (root / REFCOCOG / "refs(google).p").unlink(), ["refs(google).p", "no such file"]),
        (lambda root: (root / "data/vocabulary_Gref.txt").unlink(), ["vocabulary_Gref.txt", "build_vocab.py"]),
        (
            lambda root: edit_instances(root, lambda value: value["annotations"].pop(4)),
            ["instances.json", "ref 4", "annotation 4"],
        ),
        (blank_expression, ["refs(google).p", "ref 2", "--skip_empty"]),
        (
            lambda root: edit_instances(root, lambda value: value["images"][2].update(height=64)),
            ["COCO_train2014_000000000002.jpg: is 48 x 48", "instances.json", "64 x 48"],
        ),
        (lambda root: (batches(root) / "train_batch").mkdir(parents=True), ["Gref_48_batch", "another program"]),
    ],
)
def test_bad_input_is_one_line(tiny, build, damage, words):
    damage(tiny)
    error = refusal(build, tiny)
    assert all(word in error for word in words), error
    assert not list(tiny.rglob(".writing-*"))


def test_bad_image_in_a_worker_is_one_line(tiny):
    truncate_jpeg(tiny)
    process = start(tiny, "--workers", "2")
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2 and without_log(error).count("\n") == 1, error
    assert "COCO_train2014_000000000003.jpg" in error
    wait_for_group_to_end(process.pid)


@pytest.mark.parametrize(
    ("dataset", "split", "flags", "words"),
    [
        ("coco", "train", [], ["-d coco", "known are unc, unc+,", "refcocog_umd", "--refs FILE"]),
        ("Gref", "testA", [], ["testA", "train, val"]),
        ("Gref", "../x", [], ["-t '../x'", "letters"]),
        ("Gref", "train", ["--shard", "3/2"], ["3/2"]),
        ("Gref", "train", ["--shard", "x"], ["--shard"]),
        ("Gref", "train", ["--img-size", "0"], ["--img-size"]),
        ("Gref", "train", ["--img-size", "1,2,3"], ["--img-size"]),
        ("Gref", "train", ["--img-size", "8193"], ["8193", "1 to 8192 pixels"]),
        ("Gref", "train", ["--workers", "0"], ["--workers"]),
        ("Gref", "train", ["--vocabulary", "nowhere.txt"], ["nowhere.txt"]),
    ],
)
def test_bad_flags_are_one_line(tiny, build, dataset, split, flags, words):
    error = refusal(build, tiny, dataset, split, *flags)
    assert all(word in error for word in words), error


def test_other_parameters_for_a_folder(tiny, build, tmp_path):
    assert build(tiny)[0] == 0
    before = tree(batches(tiny))
    words = tmp_path / "words.txt"
    words.write_text((tiny / "data/vocabulary_Gref.txt").read_text() + "more\n")
    for flags, word in ((["--vocabulary", str(words)], "vocabulary"), (["--self_contained"], "--self_contained")):
        error = refusal(build, tiny, "Gref", "train", *flags)
        assert word in error and "Gref_48_batch" in error
    meta = batches(tiny) / "meta.json"
    kept = meta.read_bytes()
    meta.write_text(json.dumps(json.loads(kept) | {"image_size": [64, 64]}))
    assert "image size 64, now 48" in refusal(build, tiny)
    meta.write_bytes(kept)
    edit_refs(tiny, lambda refs: refs[0]["sentences"][0].update(sent="another"))
    error = refusal(build, tiny)
    assert "other expressions" in error and "train_batch" in error
    assert tree(batches(tiny)) == before
    build_anew(build, tiny)
    assert PreparedSplit(batches(tiny), "train").text(0)[1] == "another"


@pytest.mark.parametrize("change", [other_outline, other_image])
@pytest.mark.parametrize(("first", "then"), [("1/1", "1/1"), ("1/1", "1/2"), ("1/2", "2/2")])
def test_other_annotations_do_not_go_into_a_folder_that_was_begun(tiny, build, change, first, then):
    assert build(tiny, "Gref", "train", "--shard", first)[0] == 0
    before = tree(batches(tiny))
    change(tiny)
    assert "other expressions, masks or images" in refusal(build, tiny, "Gref", "train", "--shard", then)
    assert tree(batches(tiny)) == before
    build_anew(build, tiny)


def test_a_build_goes_on_when_the_broken_image_is_mended(tiny, build):
    image = tiny / IMAGE
    whole = image.read_bytes()
    truncate_jpeg(tiny)
    assert build(tiny)[0] == 2
    assert not read_meta(batches(tiny))["splits"]["train"]["complete"]
    image.write_bytes(whole)
    instances = tiny / REFCOCOG / "instances.json"
    annotations = instances.read_bytes()
    other_outline(tiny)
    error = refusal(build, tiny, "Gref", "train", "--shard", "1/2")
    assert "other expressions, masks or images" in error  # annotations are compared all the same
    instances.write_bytes(annotations)
    code, output, _ = build(tiny)
    assert code == 0 and "built anew" not in output
    fixed = tree(batches(tiny))
    shutil.rmtree(batches(tiny))
    assert build(tiny)[0] == 0 and tree(batches(tiny)) == fixed


@pytest.mark.parametrize("fix", [other_outline, blank_expression])
def test_the_same_command_goes_on_when_an_annotation_is_fixed(tiny, build, fix):
    """What the first build left is removed; not while another build is at it."""
    truncate_jpeg(tiny)
    assert build(tiny)[0] == 2 and any((batches(tiny) / "train_batch").iterdir())
    Image.new("RGB", (48, 80)).save(tiny / IMAGE)
    edit_instances(tiny, lambda value: value["images"][3].update(height=80, width=48))
    fix(tiny)
    with (batches(tiny) / ".train.lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert "another build is at its split train" in refusal(build, tiny, "Gref", "train", "--skip_empty")
    code, output, _ = build(tiny, "Gref", "train", "--skip_empty")
    assert code == 0 and output.count("built anew") == 1
    fixed = tree(batches(tiny))
    shutil.rmtree(batches(tiny))
    assert build(tiny, "Gref", "train", "--skip_empty")[0] == 0 and tree(batches(tiny)) == fixed


def test_empty_masks_refs_without_expressions_and_polygons_without_area_are_counted(tiny, build):
    def change(value):
        value["annotations"][2].update(segmentation={"size": [48, 48], "counts": [48 * 48]})
        value["annotations"][3].update(segmentation=[[91, 1, 95, 1, 95, 9]])
        value["annotations"][4]["segmentation"].extend([[1, 1, 9, 9], []])

    edit_instances(tiny, change)
    edit_refs(tiny, lambda refs: [refs[i].update(sentences=[]) for i in (1, 6)])
    code, output, error = build(tiny, "refcocog")  # another name of Gref
    assert (code, error) == (0, "")
    assert "warning: 2 refs have a mask without any pixel, such as Gref_train_2\n" in output
    assert "warning: 2 refs have no expression and are left out, such as ref 1\n" in output
    assert "warning: 2 polygons of fewer than three points are not drawn, such as of ref 4\n" in output
    data = PreparedSplit(batches(tiny), "train")
    assert [i for i in range(16) if not data.mask(i).any()] == [2, 3, 4, 5] and len(data) == 16


def test_the_message_about_unknown_words_is_of_the_data_set(tiny, build):
    for dataset, split, names in (("Gref", "train", "unc Gref"), ("referit", "test", "referit")):
        (tiny / f"data/vocabulary_{dataset}.txt").write_text("<pad>\n<go>\n<eos>\n<unk>\n")
        _, output, _ = build(tiny, dataset, split)
        assert f"(python build_vocab.py -d {names} --root {tiny})" in output


def test_the_largest_canvas_is_the_largest_that_a_model_takes():
    assert LARGEST["image_size"] == MAX_CANVAS_SIDE


def test_skip_empty_and_words_without_words(tiny, build):
    blank_expression(tiny)
    edit_refs(tiny, lambda refs: refs[3]["sentences"][0].update(sent="."))
    code, output, error = build(tiny, "Gref", "train", "--skip_empty")
    assert (code, error) == (0, "") and "warning: 1 expressions have no words, such as Gref_train_5" in output
    data = PreparedSplit(batches(tiny), "train")
    assert len(data) == 19 and not data.text(5)[0].any() and data.text(5)[1] == "."


def test_full_disk_is_one_line_and_the_next_run_goes_on(tiny, build):
    """A limit on the size of files stands for a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        code, _, error = build(tiny)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2 and error.count("\n") == 1 and "train_image" in error and "File too large" in error
    assert not list(tiny.rglob(".writing-*"))
    assert build(tiny)[0] == 0
    assert len(PreparedSplit(batches(tiny), "train")) == 20
