"""Models on the Hugging Face hub: hf://owner/name as a local file, and the files that a model is there."""

import re
import sys
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfUriError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import disable_progress_bars, logging, parse_hf_uri
from safetensors.torch import load_file, save

from utils.errors import InputError, one_line
from utils.files.reading import MEBIBYTE, read_bytes, read_json, refusing
from utils.files.writing import atomic_write, write_json
from utils.subwords import MAX_TOKENIZER_BYTES
from utils.text import Vocabulary

WEIGHTS, CONFIG, VOCABULARY = "model.safetensors", "config.json", "vocabulary.txt"
TOKENISER = "tokenizer.json"  # in the place of the vocabulary, of a model with a text encoder of transformers
FORMS = "hf://owner/name, hf://owner/name@revision or hf://owner/name/file"
MAX_CONFIG_BYTES = 16 * MEBIBYTE
_REMEDY = "download the model again"


def is_address(path: Path | str) -> bool:
    """Whether `path` is hf://..., or the Path of it, which has one slash less."""
    return str(path).startswith("hf:/")


def fetch(address: Path | str) -> Path:
    """The local file of hf://owner/name[@revision][/file], by default model.safetensors, beside the files it needs.

    What was fetched before is taken from the hub client's cache, without a network too. Raises InputError.
    """
    address = one_line(re.sub("^hf:/+", "hf://", str(address)))
    logging.set_verbosity_error()  # what is missing is said below
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        at = parse_hf_uri(address)
        name = at.path_in_repo or WEIGHTS
        beside = (CONFIG, VOCABULARY, TOKENISER) if name.endswith(".safetensors") else ()
        files = [name, *(Path(name).with_name(other).as_posix() for other in beside)]
        folder = snapshot_download(at.id, repo_type=at.type, revision=at.revision, allow_patterns=files)
    except (HfUriError, HFValidationError):
        raise InputError(f"{address}: is no name of a model on the hub; write {FORMS}") from None
    except RevisionNotFoundError:
        raise InputError(f"{address}: the model has no revision {at.revision}; check the name after @") from None
    except RepositoryNotFoundError:
        advice = "check the name; a private one needs `hf auth login`"
        raise InputError(f"{address}: the hub has no such model, or does not show it; {advice}") from None
    except Exception as error:  # the client and what it is built on raise many kinds
        reason = one_line(str(error).partition("\n")[0], 160)
        raise InputError(f"{address}: could not be fetched ({reason}); is there a network?") from None
    if not Path(folder, name).is_file():
        raise InputError(f"{address}: the model has no file {name}; name the one that you want: hf://{at.id}/FILE")
    return Path(folder, name)


def write_files(folder: Path, values: dict) -> None:
    """Write the `values` of a checkpoint: "model" (tensors), "vocabulary", all others to config.json.

    The vocabulary is a list of words, the text of a tokeniser, or None. model.safetensors comes last.
    Raises OSError; InputError for values that JSON or a vocabulary file cannot hold.
    """
    values = dict(values)
    for name in (VOCABULARY, TOKENISER):  # the model that was there before may have had the other one
        (folder / name).unlink(missing_ok=True)
    tensors = {name: tensor.contiguous().clone() for name, tensor in values.pop("model").items()}  # none shared
    if isinstance(values["vocabulary"], str):
        with atomic_write(folder / TOKENISER) as file:
            file.write(values["vocabulary"].encode())
        values["vocabulary"] = TOKENISER
    elif values["vocabulary"] is not None:
        words = Vocabulary(values["vocabulary"], folder / VOCABULARY)
        words.save(folder / VOCABULARY)
        if Vocabulary.load(folder / VOCABULARY).words != words.words:
            raise InputError(f"{folder / VOCABULARY}: a word of the checkpoint has blanks or line breaks around it")
        values["vocabulary"] = VOCABULARY
    try:
        write_json(folder / CONFIG, values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{folder / CONFIG}: cannot hold a value of the checkpoint ({one_line(error, 80)})") from None
    with atomic_write(folder / WEIGHTS) as file:
        file.write(save(tensors, {"format": "pt"}))


def read_files(path: Path) -> dict:
    """The values that `write_files` wrote, of a .safetensors file and the two files beside it. Raises InputError."""
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    values = read_json(path.with_name(CONFIG), "configuration", _REMEDY, MAX_CONFIG_BYTES)
    if not isinstance(values, dict):
        raise InputError(f"{path.with_name(CONFIG)}: is not the configuration of a model; {_REMEDY}")
    if values.get("vocabulary") == TOKENISER:
        text = read_bytes(path.with_name(TOKENISER), MAX_TOKENIZER_BYTES, "tokeniser", _REMEDY)
        values["vocabulary"] = text.decode(errors="replace")
    elif values.get("vocabulary") is not None:
        values["vocabulary"] = Vocabulary.load(path.with_name(VOCABULARY)).words
    with refusing(path, "safetensors file", _REMEDY):
        return {**values, "model": load_file(path)}
