"""Which words the class seed looks at."""

import numpy as np
import pytest
import torch

from benchmarks.plain_restr import PlainReSTR
from models.inference import seed_attention, segment, to_canvas
from tests.models.test_reference import random_case, reference_names
from tests.support.small_model import SIZE, VOCABULARY, WORDS, tiny_model


class WatchedPlain(PlainReSTR):
    """The plain form, which notes the attention of the last token in each block."""

    def attention(self, x, name, heads):
        batch, length, width = x.shape
        qkv = self.linear(x, f"{name}.qkv").reshape(batch, length, 3, heads, width // heads)
        total = torch.zeros(batch, length, dtype=x.dtype)
        for head in range(heads):
            scores = torch.einsum("bd,btd->bt", qkv[:, -1, 0, head], qkv[:, :, 1, head]) / (width // heads) ** 0.5
            total += torch.exp(scores) / torch.exp(scores).sum(-1, keepdim=True)
        self.seen = getattr(self, "seen", {}) | {name: total / heads}
        return super().attention(x, name, heads)


@pytest.mark.parametrize(
    ("case", "block"),
    [
        ({}, "blocks_ls.1"),
        ({"is_shared": True}, "blocks_ls.0"),
        ({"variant": "independent"}, "blocks_ls.1"),
        ({"variant": "vanilla"}, "blocks_vl.1"),
    ],
    ids=str,
)
def test_attention_to_the_words_equals_the_plain_form(case, block):
    model, config, image, ids = random_case(**case)
    plain = WatchedPlain(reference_names(model), config, case.get("variant", "indirect"))
    plain(image, ids)
    with seed_attention(model) as found:
        model(image, ids)
    assert len(found) == 1 and found[0].shape == (len(ids), 20)
    expected = plain.seen[f"fusion_module.{block}.attn"][:, -21:-1]
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-5, atol=1e-7)
    model(image, ids)
    assert len(found) == 1  # nothing stays behind


def test_attention_belongs_to_the_words_as_they_stand():
    model = tiny_model()
    model.vocabulary = WORDS
    image = np.random.default_rng(5).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    result = segment(model, image, "w4 w5, zebra")
    assert [word for word, _ in result.words] == ["w4", "w5", ", ", "zebra"]
    ids = torch.from_numpy(VOCABULARY.ids("w4 w5, zebra"))[None]
    with torch.inference_mode(), seed_attention(model) as found:
        model(to_canvas(model, torch.from_numpy(image)), ids)
    assert [paid for _, paid in result.words] == pytest.approx(found[0][0, -4:].tolist(), rel=1e-4)
    assert 0 < sum(paid for _, paid in result.words) < 1
