"""Make data/vocabulary_{Gref,referit}.txt from training expressions, and data/{Gref,referit}_emb.npy from GloVe.

    python build_vocab.py -d unc unc+ Gref --glove glove.6B.300d.txt
    python build_vocab.py -d referit --glove glove.6B.300d.txt

unc, unc+, Gref and Gref_umd share the vocabulary "Gref", made from the training expressions of all that are named.
`-d NAME --refs FILE` makes that of your own data (docs/CUSTOM_DATA.md), from the splits with "train" in their name.
A vocabulary file that exists is used as it is, so that published ones keep their ids.
"""

from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from prepare.glove import embedding_table, read_glove
from prepare.own_data import OwnData, own_data
from prepare.public import read_expressions
from utils.cli import ArgumentParser, run_main
from utils.datasets import DATASETS, NAMES, Dataset, short_name
from utils.errors import InputError
from utils.files.arrays import read_npy
from utils.files.writing import atomic_write
from utils.text import MAX_WORD, SPECIAL_WORDS, Vocabulary, tokenize

ROOT = Path(__file__).resolve().parent


def vocabulary_words(expressions: Iterable[str], min_count: int) -> list[str]:
    """The special words, then the pieces that occur `min_count` times or more, the most frequent first, ties by name.

    Left out are pieces that no line of the file could stand for: the lines are stripped, the pieces looked up are not.
    """
    counts = Counter(piece for expression in expressions for piece in tokenize(expression))
    kept = [
        piece
        for piece, count in counts.items()
        if count >= min_count and piece.isprintable() and piece == piece.strip() and len(piece) <= MAX_WORD
    ]
    return [*SPECIAL_WORDS, *sorted(kept, key=lambda piece: (-counts[piece], piece))]


def make_vocabulary(path: Path, read: Callable[[], list[str]], min_count: int) -> Vocabulary:
    """The vocabulary in the file `path`, if it exists; else made of the expressions that `read` gives, and written."""
    if path.exists():
        vocabulary = Vocabulary.load(path)
        print(f"{path}: exists and is used as it is, {len(vocabulary):,} words (remove it to have it made)")
        return vocabulary
    expressions = read()
    vocabulary = Vocabulary(vocabulary_words(expressions, min_count), path)
    if len(vocabulary) == len(SPECIAL_WORDS):
        fault = f"no word of {len(expressions):,} expressions occurs {min_count} times; lower --min_count"
        raise InputError(f"{path}: {fault}")
    path.parent.mkdir(parents=True, exist_ok=True)
    vocabulary.save(path)
    print(f"{path}: {len(vocabulary):,} words of {len(expressions):,} training expressions")
    return vocabulary


def make_embeddings(path: Path, vocabulary: Vocabulary, glove_file: Path, seed: int) -> None:
    """Write the embedding table of `vocabulary` to `path`, in place of one of the same width that is there.

    Raises InputError where the GloVe file does not go with the vocabulary or with that table.
    """
    glove = read_glove(glove_file, vocabulary.words)
    words = len(vocabulary) - len(SPECIAL_WORDS)
    found = len(glove.vectors.keys() - set(SPECIAL_WORDS))
    if not found:
        raise InputError(f"{glove_file}: has none of the {words:,} words; give GloVe's file for the same language")
    table = embedding_table(vocabulary.words, glove, seed)
    rows, width = table.shape
    if path.exists() and read_npy(path, "move it away").shape[1:] != (width,):
        fault = f"exists with vectors of another length than the {width} of {glove_file}; move it away"
        raise InputError(f"{path}: {fault}")
    with atomic_write(path) as file:
        np.save(file, table)
    print(f"{path}: {rows:,} x {width}; {found:,} of {words:,} words are in {glove_file}, the others random")


def parse_arguments():
    parser = ArgumentParser(description=__doc__)
    data = parser.add_argument_group("data")
    names = f"data sets to take words from: {NAMES}, or a name for your own data"
    data.add_argument("-d", "--dataset", nargs="+", required=True, metavar="NAME", help=names)
    own = "of your own data: a JSON Lines file, or refs in RefCOCO's layout (a pickle or .json)"
    data.add_argument("--refs", type=Path, metavar="FILE", help=own)
    where = "folder that holds data/ and external/ (default: the repository)"
    data.add_argument("--root", type=Path, metavar="DIR", default=ROOT, help=where)
    words = parser.add_argument_group("words and their embeddings")
    words.add_argument("--min_count", type=int, default=1, help="leave out words that occur less often")
    glove = "GloVe text file, such as glove.6B.300d.txt (default: no embeddings are made)"
    words.add_argument("--glove", type=Path, metavar="FILE", help=glove)
    words.add_argument("--seed", type=int, default=1, help="for the vectors of words that GloVe lacks, 0 or more")
    arguments = parser.parse_args()
    if arguments.min_count < 1 or arguments.seed < 0:
        parser.error("--min_count is 1 or more, --seed 0 or more")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    names = list(dict.fromkeys(arguments.dataset))
    if arguments.refs and len(names) > 1:
        raise InputError("--refs goes with one name after -d")
    if own := [own_data(name, arguments.refs) for name in names][0]:
        make_files(own, own.read_training_expressions, arguments)
        return
    datasets = [DATASETS[name] for name in dict.fromkeys(map(short_name, names))]
    for shared in dict.fromkeys(dataset.vocabulary for dataset in datasets):
        group = [dataset for dataset in datasets if dataset.vocabulary == shared]
        make_files(group[0], partial(public_expressions, arguments.root, group), arguments)


def public_expressions(root: Path, datasets: list[Dataset]) -> list[str]:
    """The training expressions of all of them."""
    return [text for dataset in datasets for text in read_expressions(root, dataset.name, dataset.train_split)]


def make_files(dataset: Dataset | OwnData, read: Callable[[], list[str]], arguments: Namespace) -> None:
    """Vocabulary and embeddings of one data set, or of all that share its vocabulary."""
    vocabulary = make_vocabulary(dataset.vocabulary_path(arguments.root), read, arguments.min_count)
    embeddings = dataset.embeddings_path(arguments.root)
    if arguments.glove:
        make_embeddings(embeddings, vocabulary, arguments.glove, arguments.seed)
        return
    untrained = (
        "not made, for no --glove file was given: word embeddings start random, "
        "and train_restr.py has to be told so with --random_embeddings or --no_pretrained"
    )
    print(f"{embeddings}: {'exists and is used as it is' if embeddings.exists() else untrained}")


if __name__ == "__main__":
    run_main(main)
