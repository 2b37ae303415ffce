"""Make data/vocabulary_{Gref,referit}.txt from training expressions, and data/{Gref,referit}_emb.npy from GloVe.

    python build_vocab.py -d unc unc+ Gref --glove glove.6B.300d.txt
    python build_vocab.py -d referit --glove glove.6B.300d.txt

unc, unc+, Gref and Gref_umd share the vocabulary "Gref", made from the training expressions of all that are named.
A vocabulary file that exists is used as it is, so that published ones keep their ids.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from utils.errors import ArgumentParser, InputError, run_main
from utils.glove import embedding_table, read_glove
from utils.refer import DATASETS, Dataset, read_expressions
from utils.safe_io import atomic_write
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


def make_vocabulary(root: Path, datasets: list[Dataset], min_count: int) -> Vocabulary:
    """The vocabulary of `datasets`, which share one file: that file if it exists, else made and written."""
    path = datasets[0].vocabulary_path(root)
    if path.exists():
        vocabulary = Vocabulary.load(path)
        print(f"{path}: exists and is used as it is, {len(vocabulary):,} words (remove it to have it made)")
        return vocabulary
    expressions = [text for chosen in datasets for text in read_expressions(root, chosen.name, chosen.train_split)]
    vocabulary = Vocabulary(vocabulary_words(expressions, min_count), path)
    if len(vocabulary) == len(SPECIAL_WORDS):
        raise InputError(
            f"{path}: no word of {len(expressions):,} expressions occurs {min_count} times; lower --min_count"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write("".join(f"{word}\n" for word in vocabulary.words).encode())
    print(f"{path}: {len(vocabulary):,} words of {len(expressions):,} training expressions")
    return vocabulary


def make_embeddings(path: Path, vocabulary: Vocabulary, glove_file: Path, seed: int) -> None:
    """Write the embedding table of `vocabulary` to `path`, in place of one that is there."""
    glove = read_glove(glove_file, vocabulary.words)
    table = embedding_table(vocabulary.words, glove, seed)
    with atomic_write(path) as file:
        np.save(file, table)
    words = len(vocabulary) - len(SPECIAL_WORDS)
    found = len(glove.vectors.keys() - set(SPECIAL_WORDS))
    rows, width = table.shape
    print(f"{path}: {rows:,} x {width}; {found:,} of {words:,} words are in {glove_file}, the others random")


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "-d", "--dataset", nargs="+", required=True, choices=DATASETS, help="data sets to take words from"
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="folder that holds data/ and external/")
    parser.add_argument("--glove", type=Path, help="GloVe text file, such as glove.6B.300d.txt")
    parser.add_argument("--min_count", type=int, default=1, help="leave out words that occur less often")
    parser.add_argument("--seed", type=int, default=1, help="for the vectors of words that GloVe lacks")
    arguments = parser.parse_args()
    if arguments.min_count < 1 or arguments.seed < 0:
        parser.error("--min_count is 1 or more, --seed 0 or more")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    chosen = [DATASETS[name] for name in dict.fromkeys(arguments.dataset)]
    for shared in dict.fromkeys(dataset.vocabulary for dataset in chosen):
        datasets = [dataset for dataset in chosen if dataset.vocabulary == shared]
        vocabulary = make_vocabulary(arguments.root, datasets, arguments.min_count)
        embeddings = datasets[0].embeddings_path(arguments.root)
        if arguments.glove:
            make_embeddings(embeddings, vocabulary, arguments.glove, arguments.seed)
        elif embeddings.exists():
            print(f"{embeddings}: exists and is used as it is")
        else:
            print(
                f"{embeddings}: not made, for no --glove file was given: word embeddings start random, "
                "and train_restr.py has to be told so with --random_embeddings or --no_pretrained"
            )


if __name__ == "__main__":
    run_main(main)
