"""Text encoders of transformers for tests: tiny random ones with tokenisers, written as save_pretrained writes them."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "the man in the red shirt on the left, near a zebra",
    "big small red orange yellow green blue purple white circle square triangle star",
    "second object from the right, closest to the corner; left of the smaller one!",
]
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
OTHER_NAMES = {  # of the same sizes
    "DistilBertModel": {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2},
    "T5EncoderModel": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
}


def tokenizer_of(kind: str) -> Tokenizer:
    """BERT's word pieces, CLIP's pairs of bytes, or SigLIP's pieces of sentences, trained on TEXTS."""
    if kind == "CLIPTextModel":
        tokenizer, special = (
            Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>")),
            ["<|startoftext|>", "<|endoftext|>"],
        )
        tokenizer.pre_tokenizer, tokenizer.decoder = (
            pre_tokenizers.Sequence(
                [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
            decoders.ByteLevel(),
        )
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            end_of_word_suffix="</w>",
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        form = "<|startoftext|> $A <|endoftext|>"
    elif kind.startswith("Siglip"):
        special = ["<pad>", "</s>", "<unk>"]
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer, form = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>"), "$A </s>"
    else:
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer, form = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special), "[CLS] $A [SEP]"
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.train_from_iterator(TEXTS, trainer)
    pairs = [(token, tokenizer.token_to_id(token)) for token in special]
    tokenizer.post_processor = processors.TemplateProcessing(single=form, special_tokens=pairs)
    return tokenizer


def write_text_encoder(folder: Path, kind: str = "BertModel") -> Path:
    """A tiny random encoder of the class `kind` with its tokeniser, in a new folder."""
    torch.manual_seed(5)
    tokenizer, known = tokenizer_of(kind), getattr(transformers, kind)
    sizes = OTHER_NAMES.get(kind, SIZES) | {"vocab_size": tokenizer.get_vocab_size() + 3}
    own = known.config_class.__dataclass_fields__
    marks = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "cls_token_id": 2, "sep_token_id": 3}
    more = {name: value for name, value in ({"max_position_embeddings": 30} | marks).items() if name in own}
    model = known(known.config_class(**sizes, **more))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)  # small random weights would hide differences
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
