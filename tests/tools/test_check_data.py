"""tools/check_data.py: everything that is wrong is named at once, and nothing that is right."""

import json
import re
import shutil
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.prepare.test_grefcoco import REFS, ref, save
from tests.support.tiny_set import VOCABULARY, edit_instances, edit_refs, make_tiny_set
from tools import check_data
from tools.check_data import DATASETS, WORDS, Counts
from tools.data_sources import ANNOTATIONS, needs_of
from utils.cli import run_main

IMAGES = "data/coco/images/train2014"
TINY = {
    "unc": {"train": Counts(10, 20, 5), "testA": Counts(10, 20, 5, counted=True)},
    "Gref": {"train": Counts(10, 20, 5), "val": Counts(10, 20)},
    "referit": {"trainval": Counts(10, 20, 5, counted=True), "test": Counts(10, 20, 5, counted=True)},
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A tiny set that is right in all that is looked at, if these were the published numbers."""
    for name, splits in TINY.items():
        monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], splits=splits))
    for name in WORDS:
        monkeypatch.setitem(WORDS, name, len(VOCABULARY))
        (tmp_path / "data").mkdir(exist_ok=True)
        np.save(tmp_path / f"data/{name}_emb.npy", np.ones((len(VOCABULARY), 300), np.float32))
    return make_tiny_set(tmp_path)


@pytest.fixture
def check(root, monkeypatch, capsys):
    """Run the script; returns its exit code and what it printed."""

    def run(*flags, root=root):
        monkeypatch.setattr(sys, "argv", ["check_data.py", "--root", str(root), *flags])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            run_main(check_data.main)
        printed = capsys.readouterr()
        return left.value.code, printed.out + printed.err

    return run


def linked(output: str) -> list[str]:
    """What the links are for."""
    return re.findall(r"^  (\S.*), to .*\n    http", output, re.MULTILINE)


def faults(output: str) -> list[str]:
    return [line.strip() for line in output.splitlines() if line.startswith("  FAULT")]


def test_all_is_right(check):
    for flags in ([], ["--deep"]):
        code, output = check("-d", "unc", "Gref", "referit", *flags)
        assert code == 0 and faults(output) == [], output
        assert "ok     train: 10 refs, 20 expressions, 5 images" in output and "5 masks" not in output
        assert "ok     10 masks are there" in output
        assert ("ok     5 images opened" in output) == bool(flags)
        assert "http" not in output and "all is right" in output


def test_everything_that_is_wrong_is_named_at_once(check, root):
    edit_refs(root, lambda refs: refs.append({**refs[0], "ref_id": refs[1]["ref_id"]}))
    edit_refs(root, lambda refs: (refs[2].update(ann_id="x"), refs[3]["sentences"][0].update(sent=" ")))
    edit_instances(root, lambda value: value["annotations"][4].update(segmentation=[[1, 2]]))
    (root / IMAGES / "COCO_train2014_000000000003.jpg").unlink()
    (root / IMAGES / "COCO_train2014_000000000001.jpg").write_bytes(b"")
    (root / "data/referit/mask/2_0.mat").unlink()
    (root / "data/referit/referit_query_test.json").write_text("{")
    np.save(root / "data/Gref_emb.npy", np.ones((3, 300), np.float32))
    (root / "data/vocabulary_referit.txt").unlink()
    code, output = check("-d", "Gref", "referit")
    assert code == 1
    expected = [
        "3 refs cannot be used:",
        "train: 8 refs, 16 expressions, 5 images; in the literature: 10 refs, 20 expressions",
        "train: 1 refs have an empty expression",
        "1 images are missing; get the images as data/README.md says:",
        "1 images are empty files",
        "referit_query_test.json: is not a readable query file",
        "1 masks are missing",
    ]
    assert len(faults(output)) == len(expected), output
    for fault in expected:
        assert any(fault in line for line in faults(output)), (fault, output)
    for example in ("ref number 2: has no whole number as ann_id", "ref 4 of refs(google).p: a polygon has 2 numbers"):
        assert example in output
    assert "ref 1 is there twice" in output and "mask/2_0.mat" in output and "ref 3" in output
    assert "7 kinds of faults" in output
    assert re.search("note .*Gref_emb.npy: 3 x 300, but vocabulary and --l_backbone need 11 x 300", output)
    assert re.search("note .*vocabulary_referit.txt: no such file yet; make it: python build_vocab.py -d ref", output)
    assert linked(output) == ["images (13 GB)", "images and masks", "vocabulary"]


def test_deep_opens_every_image_and_mask(check, root):
    picture = root / IMAGES / "COCO_train2014_000000000003.jpg"
    picture.write_bytes(picture.read_bytes()[:-300])
    edit_instances(root, lambda value: value["images"][2].update(height=64))
    mask = root / "data/referit/mask/4_1.mat"
    mask.write_bytes(mask.read_bytes()[:150])
    code, output = check("-d", "Gref", "referit")
    assert code == 0 and "images were not opened: --deep does" in output
    code, output = check("-d", "Gref", "referit", "--deep")
    assert code == 1
    assert "5 images or masks cannot be used" in output and "1 images or masks cannot be used" in output
    assert "COCO_train2014_000000000003.jpg: is truncated" in output and "4_1.mat" in output
    assert len(re.findall(r"is annotated at 64 x 48, the image 48 x 48", output)) == 4
    (root / IMAGES / "COCO_train2014_000000000000.jpg").unlink()  # missing, and so not looked at
    _, output = check("-d", "Gref", "--deep")
    assert "1 images are missing" in output and "5 images or masks cannot be used" in output


def test_duplicates_and_annotations_of_other_images_are_found(check, root):
    def change(value):
        value["annotations"].append({**value["annotations"][0], "segmentation": [[0, 0, 9, 0, 9, 9]]})
        value["annotations"][1].update(image_id=4)
        value["images"].append({**value["images"][3], "height": 1})

    edit_instances(root, change)
    query = root / "data/referit/referit_query_test.json"
    query.write_text(query.read_text().replace('"0_1"', '"0_0"'))
    code, output = check("-d", "refcocog", "referit")
    assert code == 1 and "6 refs cannot be used:" in output
    for example in (
        "annotation 0 is there twice",
        "annotation 1 is of image 4, the ref of 1",
        "image 3 is there twice",
    ):
        assert example in output
    assert 'the key "0_0" is there twice' in output


def test_refs_without_expressions_polygons_without_area_and_shares_are_shown(check, root):
    edit_refs(root, lambda refs: refs[1].update(sentences=[]))

    def change(value):
        value["annotations"][2]["segmentation"].append([1, 1, 9, 9])
        value["annotations"][3].update(segmentation={"size": [33, 90], "counts": [33 * 90]})
        value["annotations"][4].update(segmentation={"size": [100, 30], "counts": [0, 3000]})

    edit_instances(root, change)
    _, output = check("-d", "Gref")
    assert re.search(r"note   train: 1 refs have no expression, and are left out:\n +ref 1\n", output)
    assert re.search(r"note   train: 1 polygons have fewer than three points, and are not drawn:\n +ref 2\n", output)
    assert re.search(r"ok     20 of 20 masks cover of their image: least 0.00%, median 1\d.\d\d%, most 100.00%", output)
    assert re.search(r"note   1 of these masks cover nothing:\n +ref 3 ", output)
    assert re.search(r"note   1 of these masks cover the whole image:\n +ref 4 ", output)


def test_expressions_without_an_object_are_no_fault_and_other_empty_masks_are(check, tmp_path):
    """gRefCOCO, of which no published numbers are known."""
    folder = tmp_path / "data/coco/images/train2014"
    folder.mkdir(parents=True, exist_ok=True)
    for number in (1, 2):
        Image.new("RGB", (12, 10)).save(folder / f"COCO_train2014_{number:012d}.jpg")
    save(tmp_path)
    code, output = check("-d", "grefcoco", "--deep")
    assert code == 1 and re.findall(r"FAULT  (\w+): 0 refs", output) == ["testA", "testB"], output
    everywhere = [ref(10 + i, [-1], split=split) for i, split in enumerate(("testA", "testB"))]
    save(tmp_path, [*REFS, *everywhere])
    code, output = check("-d", "grefcoco", "--deep")
    assert code == 0 and "all is right" in output
    assert "ok     train: 8 refs, 8 expressions, 1 images; no published numbers are known" in output
    assert "ok     train: 4 refs are declared to have no object" in output
    assert "ok     5 of 5 masks cover of their image: least 10.00%" in output
    save(tmp_path, [*REFS, *everywhere, ref(20, [80], image=2)])
    code, output = check("-d", "grefcoco", "--deep")
    assert code == 1 and "the mask of ref 20 is empty" in output


def test_own_data_shows_all_faults_of_all_splits(check, tmp_path):
    Image.new("RGB", (12, 10)).save(tmp_path / "1.png")
    square = {"image": "1.png", "polygon": [[0, 0, 6, 0, 6, 10, 0, 10]], "text": "left", "split": "train"}
    refs = tmp_path / "own.jsonl"
    refs.write_text("\n".join(json.dumps(line) for line in (square, {**square, "split": "val"})))
    code, output = check("-d", "own", "--refs", str(refs))
    assert code == 0 and "ok     val: 1 refs, 1 expressions, 1 images" in output
    assert "2 of 2 masks cover of their image: least 50.00%, median 50.00%, most 50.00%" in output
    assert f"build_vocab.py -d own --refs {refs}" in output and "http" not in output
    refs.write_text("\n".join(["{", json.dumps({**square, "split": "val", "image": "2.png"}), json.dumps(square)]))
    code, output = check("-d", "own", "--refs", str(refs))
    assert code == 1 and "2 faults in" in output and "line 1: is not JSON" in output and "line 2: " in output


def test_of_many_faults_ten_are_shown(check, root):
    edit_refs(root, lambda refs: [ref.update(image_id=99) for ref in refs[:12]])
    code, output = check("-d", "Gref")
    assert code == 1 and "12 refs cannot be used:" in output and "           and 2 more" in output
    assert len(re.findall(r"image 99 is not there", output)) == 10


def test_nothing_is_there(check, tmp_path):
    code, output = check(root=tmp_path / "none")
    assert code == 2 and "no such folder" in output
    (tmp_path / "none").mkdir()
    code, output = check(root=tmp_path / "none")
    assert code == 0 and not faults(output) and "right" not in output
    assert re.findall(r"^(\S+) .* -$", output, re.MULTILINE) == list(DATASETS)
    assert all(place in output for dataset in DATASETS.values() for need in needs_of(dataset) for place in need.places)
    code, output = check("-d", *DATASETS, root=tmp_path / "none")  # asked for by name
    assert code == 1 and "Traceback" not in output
    for folder in ("coco/images/train2014", "referit/images", "referit/mask"):
        assert f"FAULT  {tmp_path / 'none/data' / folder}: no such folder" in output
    assert all(re.search(rf"^{re.escape(name)} .* below ", output, re.MULTILINE) for name in DATASETS)


@pytest.mark.parametrize(
    ("removed", "absent", "lacking"),
    [
        ([], ["unc+", "Gref_umd", "grefcoco"], []),
        (["external/refer/data/refcoco"], ["unc", "unc+", "Gref_umd", "grefcoco"], []),  # Gref has its images
        (["external/refer/data/refcoco/refs(unc).p"], ["unc+", "Gref_umd", "grefcoco"], ["annotations"]),
        (["external/refer/data/refcoco/instances.json"], ["unc+", "Gref_umd", "grefcoco"], ["annotations"]),
        (["data/referit"], ["unc+", "Gref_umd", "grefcoco", "referit"], []),
        (["data/referit/images", "data/referit/mask"], ["unc+", "Gref_umd", "grefcoco"], ["images and masks"]),
        (["data/referit/mask/2_0.mat"], ["unc+", "Gref_umd", "grefcoco"], ["images and masks"]),
        ([IMAGES], ["unc+", "Gref_umd", "grefcoco"], ["images (13 GB)"]),
        (["external", "data/referit"], list(DATASETS), ["annotations", "annotations", "annotations"]),
    ],
)
def test_a_data_set_of_which_nothing_is_there_is_no_fault(check, root, removed, absent, lacking):
    """Half of one is, and the links are those of what it lacks; where there is none at all, of all that is missing."""
    for path in removed:
        (shutil.rmtree if (root / path).is_dir() else Path.unlink)(root / path)
    prepared = root / "data/referit/referit_480_batch"
    prepared.mkdir(parents=True)
    code, output = check()
    assert re.findall(r"^(\S+) .* -$", output, re.MULTILINE) == absent
    assert code == bool(faults(output)) == (lacking != [] and absent != list(DATASETS))
    assert linked(output)[: len(lacking)] == lacking and bool(linked(output)) == bool(lacking)
    assert ("-d unc+ says" in output or "-d unc says" in output) == (absent != list(DATASETS))


def test_literature_s_numbers_may_be_slightly_off(capsys):
    report = check_data.Report()
    for number, source, count in ((995, "literature", 0), (980, "literature", 1), (999, "counted", 2)):
        published = Counts(1000, 2000, counted=source == "counted")
        check_data.check_counts("val", Counts(number, 2000, 7), published, report)
        assert report.faults == count
        assert source in capsys.readouterr().out


def test_numbers_and_links_are_those_of_the_pages():
    """The words of the vocabularies, and each link, name and size, are in the two READMEs; no other link is."""
    pages = "".join((ROOT / folder / "README.md").read_text() for folder in ("data", "external"))
    assert all(f"{words:,} words" in pages for words in WORDS.values()) and pages.count("was verified") == 2
    needs = [need for dataset in DATASETS.values() for need in needs_of(dataset)]
    places = "\n".join(place for need in needs for place in (*need.places, *chain(*ANNOTATIONS.values())))
    facts = re.findall(r"https?://[^\s,;]+|[\w-]+/[\w.*-]+|\d[\d,]* (?:MB|bytes)|[0-9a-f]{64}|\b20\d\d", places)
    assert len(set(facts)) > 25 and [fact for fact in facts if fact.rstrip(":") not in pages] == []
    links = re.findall(r"https?://[^\s<>`),]+", pages.partition("## Other sets")[0])
    assert len(links) > 8 and [link for link in links if link not in places] == []


def test_the_build_s_estimate_is_of_the_right_size(capsys, tmp_path):
    unc = DATASETS["unc"]
    check_data.estimate(unc, {}, tmp_path)
    gigabytes = float(re.search(r"about ([\d.]+) GB", capsys.readouterr().out)[1])
    per_expression = gigabytes * 1e6 / sum(counts.expressions for counts in unc.splits.values())
    assert 30 < per_expression < 70  # kB; the authors' code takes 920
