"""The reader of pickles: data of any Python, and nothing that runs."""

import codecs
import collections
import json
import os
import pickle

import numpy as np
import pytest

from prepare.refs_pickle import read_pickle
from tests.support.hostile import attacks, refused, write
from utils.files import reading

PLAIN = [{"ref_id": 3, "sent_ids": [1, 2**40, -7], "sentences": [{"sent": "lé ft", "x": None, "y": [True, 0.5]}] * 2}]


COLUMNS = np.asfortranarray(np.arange(6.0).reshape(2, 3))
VALUES = [
    (np.int64(-5), -5), (np.uint8(200), 200), (np.float32(0.5), 0.5), (np.bool_(True), True), (np.str_("lé"), "lé"),
    (np.str_(""), ""), (np.arange(6).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]), (COLUMNS, [[0, 1, 2], [3, 4, 5]]),
    (np.array(["ab", "中"], ">U2"), ["ab", "中"]), (np.array([b"ab", b"c"]), ["ab", "c"]), (np.zeros((0, 3)), []),
    (np.array([[1, "x"], [None, [2]]], object), [[1, "x"], [None, [2]]]), (np.array(7), 7),
    (np.arange(3, dtype=">i4"), [0, 1, 2]), (np.arange(9)[::4], [0, 4, 8]), ((1, (2, 3), ()), [1, [2, 3], []]),
    ({7}, [7]), (frozenset(["a"]), ["a"]), (collections.OrderedDict(b=1, a=[2]), {"b": 1, "a": [2]}),
    (collections.defaultdict(list, {"a": [1]}), {"a": [1]}), (b"caf\xe9", b"caf\xe9"), (b"", b""), (PLAIN, PLAIN),
]  # fmt: skip


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("module", [b"numpy._core", b"numpy.core"])
@pytest.mark.parametrize(("value", "plain"), VALUES)
def test_data_without_behaviour_comes_as_plain_python(tmp_path, value, plain, protocol, module):
    """Twice: the second is a reference to the first. Older NumPy names its modules numpy.core."""
    data = pickle.dumps([value, value], protocol)
    if protocol < 4:  # a name without its length
        data = data.replace(b"numpy._core", module)
    read = read_pickle(write(tmp_path / "a.p", data))
    assert read == [plain, plain] and [type(item) for item in read] == [type(plain)] * 2


class Evil:
    """Reduces to what only looks like NumPy's."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [
        np.array([1 + 2j]), np.array(["2020"], "M8[s]"), np.zeros(2, [("a", "i4")]), np.longdouble(1), np.ma.ones(2),
        Evil(np.dtype, ("O",)), Evil(np.dtype, ("i8,O",)), Evil(np.ndarray, ((10**12,),)), Evil(set, (7,)),
        Evil(codecs.encode, ("x", "rot13")), Evil(bytes, (10**12,)), Evil(bytearray, (10**12,)), Evil(range, (10**12,)),
        np.array([os.system], object), Evil(collections.OrderedDict, ([[("a",), 1]],)), np.recarray((1,), int),
    ],
)  # fmt: skip
def test_other_values_of_numpy_and_python_are_refused(tmp_path, value, protocol):
    assert "a.p: " in refused(read_pickle, write(tmp_path / "a.p", pickle.dumps([value], protocol)))


def test_arrays_take_no_more_than_the_file_has(tmp_path):
    """A shape without room, rows without values, and a hundred arrays that share their bytes."""
    whole = pickle.dumps(np.zeros(5, np.uint8), 2)
    for shape in (b"K\x06", b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff"):
        refused(read_pickle, write(tmp_path / "a.p", whole.replace(b"K\x05", shape)))
    empty = pickle.dumps(np.zeros((0, 9), np.uint8), 2).replace(b"K\tK\x00", b"J\xff\xff\xff\x7fK\x00")
    assert read_pickle(write(tmp_path / "a.p", empty)) == []
    array = np.zeros(100_000, np.uint8)
    parts = [Evil(np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b")) for _ in range(100)]
    shared = array.tobytes()
    for part in parts:
        part.reduced = (*part.reduced[:2], (1, (100_000,), array.dtype, False, shared))
    data = pickle.dumps(parts, 4)
    assert len(data) < 2 * array.size
    assert "more than the file has" in refused(read_pickle, write(tmp_path / "a.p", data))


def test_pickled_data_of_python_2(tmp_path):
    """cPickle.dumps of [{'sent': 'caf\xe9', u'raw': u'\u4e2d', 'n': 5L, 'b': True}] and of numpy.int64(258)."""
    plain = b"(lp1\n(dp2\nS'sent'\np3\nS'caf\\xe9'\np4\nsVraw\np5\nV\\u4e2d\np6\nsS'n'\nL5L\nsS'b'\nI01\nsa."
    plain_2 = b"\x80\x02]q\x01}q\x02(U\x04sentq\x03U\x04caf\xe9q\x04X\x03\x00\x00\x00rawq\x05X\x03\x00\x00\x00"
    plain_2 += b"\xe4\xb8\xadU\x01nq\x06\x8a\x01\x05U\x01bq\x07\x88ua."
    scalar = b"\x80\x02cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(U\x02i8K\x00K\x01tR(K\x03U\x01<NNN"
    scalar += b"J\xff\xff\xff\xff" * 2 + b"K\x00tbU\x08\x02\x01\x00\x00\x00\x00\x00\x00tR."
    expected = [{"sent": "café", "raw": "中", "n": 5, "b": True}]
    for data, value in ((plain, expected), (plain_2, expected), (scalar, 258)):
        assert read_pickle(write(tmp_path / "a.p", data)) == value


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("attack", range(5))
def test_code_in_a_pickle_is_named_and_never_run(tmp_path, protocol, attack):
    target = tmp_path / "owned"
    data = pickle.dumps(attacks(target)[attack], protocol)
    message = refused(read_pickle, write(tmp_path / "a.p", data))
    assert "contains code (" in message and not target.exists()
    if attack == 0:
        assert f"contains code ({os.system.__module__}.system)" in message
        pickle.loads(data)
        assert target.exists()  # the attack is a real one


@pytest.mark.parametrize(
    "data",
    [
        b"ios\nsystem\n(S'true'\no.", b"(cos\nsystem\nS'true'\no.", b"Pname\n.", b"\x82\x01.",
        b"}K\x01\x85K\x02s.",  # a key that is a tuple, which can take for ever to hash
        b"}K\x01K\x02s.",  # a key that is a number
        b"}(K\x01K\x02u.", b"(K\x01K\x02d.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",  # LONG4 of 2 GiB
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",  # BINUNICODE8 of 8 EiB
        b"\x80\x05\x96\xff\xff\xff\xff\x00\x00\x00\x00.",  # a bytearray of 4 GiB
        b"I" + b"9" * 5000 + b"\n.", b"", b".", b"\x00" * 100, b"\xff" * 100, json.dumps(PLAIN).encode(),
    ],
)  # fmt: skip
def test_other_pickles_are_refused(tmp_path, data):
    assert "a.p: " in refused(read_pickle, write(tmp_path / "a.p", data))


def test_a_huge_frame_or_memo_index_costs_nothing(tmp_path):
    path = write(tmp_path / "a.p", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f].")
    assert read_pickle(path) == []
    for put in (b"r\xff\xff\xff\xff", b"p99999999999\n", b"p-1\n"):
        assert "its memo" in refused(read_pickle, write(path, b"]" + put + b"."))


def test_the_number_of_objects_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_OBJECTS", 1_000)
    assert len(read_pickle(write(tmp_path / "a.p", b"](" + b"]" * 400 + b"e."))) == 400
    assert "more than 1,000 objects" in refused(read_pickle, write(tmp_path / "a.p", b"](" + b"]" * 1_000 + b"e."))
