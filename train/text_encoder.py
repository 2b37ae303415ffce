"""Text encoders of Hugging Face transformers to start from: configuration, tokeniser and weights.

No code that comes with a model is run, and weights are read from safetensors files alone.
"""

import json
from functools import cache
from pathlib import Path

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, snapshot_download, try_to_load_from_cache

from models.config import LANGUAGE_BACKBONES, TextEncoderConfig
from models.language import TEXT_ENCODERS, TextEncoder, own_fields, without_pooling
from models.pretrained import HUB_SECONDS
from utils.errors import InputError, did_you_mean, one_line
from utils.files.reading import read_bytes, refusing
from utils.subwords import MAX_TOKENIZER_BYTES, Subwords, import_transformers

FILES = ("config.json", "tokenizer.json", "model*.safetensors", "model.safetensors.index.json")  # of the hub
WHAT, REMEDY = "text encoder of transformers", "give a folder of its save_pretrained, or a name on the hub"


def read_text_encoder(name: str, text_length: int) -> TextEncoderConfig:
    """The configuration of an encoder: `name` is a folder of transformers' save_pretrained, or one on the hub.

    Of a model of images and text it is the text's encoder. Raises InputError.
    """
    transformers, folder = import_transformers(), _folder(name)
    with refusing(name, WHAT, REMEDY):
        full = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        full = getattr(full, "text_config", full)
        kinds = {kind: getattr(transformers, kind) for kind in TEXT_ENCODERS}
        kind = next((kind for kind, known in kinds.items() if known.config_class is type(full)), full.model_type)
        settings = {key: getattr(full, key) for key in own_fields(kinds[kind])} if kind in kinds else {}
        name = folder.absolute().name if Path(name).is_dir() else name
        text = json.dumps(settings, sort_keys=True)
        return TextEncoderConfig(name, kind, text, full.vocab_size + 1, text_length)


def read_tokeniser(name: str, config: TextEncoderConfig) -> Subwords:
    """The tokeniser of an encoder, with which `config` reads. Raises InputError."""
    file = _folder(name) / "tokenizer.json"
    remedy = f"make one with transformers: AutoTokenizer.from_pretrained(...).save_pretrained({str(file.parent)!r})"
    text = read_bytes(file, MAX_TOKENIZER_BYTES, "tokeniser", remedy).decode(errors="replace")
    return Subwords(text, config.text_length, config.vocabulary_size, file)


def load_text_encoder(language: TextEncoder, name: str) -> None:
    """Fill the encoder of `language` with the weights of `name`. Raises InputError if it lacks some."""
    how = {"dtype": torch.float32, "use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    with refusing(name, WHAT, REMEDY):
        encoder = language.encoder
        loaded, report = type(encoder).from_pretrained(_folder(name), config=encoder.config, **how)
        own = encoder.state_dict()
        missing = sorted(own.keys() & report["missing_keys"])
        if missing:
            raise ValueError(f"{len(missing)} tensors are not in its files, e.g. {missing[0]}")
        encoder.load_state_dict(without_pooling(loaded).state_dict())


@cache
def _folder(name: str) -> Path:
    """The folder of an encoder, downloaded if it is a name on the hub and not yet here. Raises InputError."""
    if Path(name).is_dir():
        return Path(name)
    try:
        if not isinstance(try_to_load_from_cache(name, FILES[0]), str):
            # Fails within seconds where there is no network: a download would be tried again for half a minute.
            get_hf_file_metadata(hf_hub_url(name, FILES[0]), timeout=HUB_SECONDS)
        return Path(snapshot_download(name, allow_patterns=FILES, etag_timeout=HUB_SECONDS))
    except Exception as error:  # the hub's client raises many kinds
        meant = did_you_mean(name, LANGUAGE_BACKBONES)
        reason = one_line(" ".join(str(error).split()), 120)
        raise InputError(f"--l_backbone {name}: no folder, and not available on the hub ({reason}){meant}") from None
