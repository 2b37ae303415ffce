"""The reader of pickles: data of any Python, and nothing that runs."""

import json
import os
import pickle

import pytest

from utils import safe_pickle
from utils.safe_pickle import read_pickle

from .hostile import attacks, refused, write

PLAIN = [{"ref_id": 3, "sent_ids": [1, 2**40, -7], "sentences": [{"sent": "lé ft", "x": None, "y": [True, 0.5]}] * 2}]


@pytest.mark.parametrize("protocol", range(6))
def test_pickled_data_of_every_protocol(tmp_path, protocol):
    assert read_pickle(write(tmp_path / "a.p", pickle.dumps(PLAIN, protocol))) == PLAIN


@pytest.mark.parametrize(
    "python2",
    [
        # cPickle.dumps([{'sent': 'caf\xe9', u'raw': u'\u4e2d', 'n': 5L, 'b': True}], 0) and the same with protocol 2
        b"(lp1\n(dp2\nS'sent'\np3\nS'caf\\xe9'\np4\nsVraw\np5\nV\\u4e2d\np6\nsS'n'\nL5L\nsS'b'\nI01\nsa.",
        b"\x80\x02]q\x01}q\x02(U\x04sentq\x03U\x04caf\xe9q\x04X\x03\x00\x00\x00rawq\x05X\x03\x00\x00\x00\xe4\xb8\xad"
        b"U\x01nq\x06\x8a\x01\x05U\x01bq\x07\x88ua.",
    ],
)
def test_pickled_data_of_python_2(tmp_path, python2):
    assert read_pickle(write(tmp_path / "a.p", python2)) == [{"sent": "café", "raw": "中", "n": 5, "b": True}]


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
        b"ios\nsystem\n(S'true'\no.",  # INST
        b"(cos\nsystem\nS'true'\no.",  # OBJ
        b"Pname\n.",  # persistent id
        b"\x82\x01.",  # extension registry
        b"\x80\x04}\x85.",  # a tuple, which as a key can take for ever to hash
        b"}K\x01K\x02s.",  # a key that is a number
        b"}(K\x01K\x02u.",
        b"(K\x01K\x02d.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",  # LONG4 of 2 GiB
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",  # BINUNICODE8 of 8 EiB
        b"\x80\x05\x96\xff\xff\xff\xff\x00\x00\x00\x00.",  # a bytearray of 4 GiB
        b"I" + b"9" * 5000 + b"\n.",
        b"",
        b".",
        b"\x00" * 100,
        b"\xff" * 100,
        json.dumps(PLAIN).encode(),
    ],
)
def test_other_pickles_are_refused(tmp_path, data):
    assert "a.p: " in refused(read_pickle, write(tmp_path / "a.p", data))


@pytest.mark.parametrize("prefix", [b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f]", b"]r\xff\xff\xff\xff"])
def test_a_huge_frame_or_memo_index_costs_nothing(tmp_path, prefix):
    assert read_pickle(write(tmp_path / "a.p", prefix + b".")) == []


def test_the_number_of_objects_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(safe_pickle, "MAX_OBJECTS", 1_000)
    assert len(read_pickle(write(tmp_path / "a.p", b"](" + b"]" * 400 + b"e."))) == 400
    assert "more than 1,000 objects" in refused(read_pickle, write(tmp_path / "a.p", b"](" + b"]" * 1_000 + b"e."))
