"""Small runs on text for tests: an encoder with a vocabulary of its own, and reviews that say good or bad."""

import csv
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from earlyworm.experiments.config import RunConfig

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["good", "bad", "film", "the", "a", "very", "was", "it", "and", "plot", "actor", "scene", "music", "end"]
VOCABULARY = SPECIAL + WORDS

# Five checks, the mean distance is chi from the third on, WORM triggers at the fourth, the ticket emerges at the fifth,
# two epochs remain, the last of which is not whole.
SMALL_TEXT = {
    "method": "worm", "max_length": 12, "batch_size": 8, "lr": 0.01, "warmup": 0.05, "epochs": 4, "search_epochs": 3,
    "ratio": 0.25, "score": "magnitude", "trigger": 0.2, "check_every": 0.5, "device": "cpu",
}  # fmt: skip


def encoder_directory(path, *, classes=2, tokenizer=True, words=VOCABULARY, **changes):
    """The directory of a tiny BERT with its tokenizer."""
    torch.manual_seed(3)
    config = BertConfig(**{
        "vocab_size": len(VOCABULARY), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 24, "max_position_embeddings": 32, "initializer_range": 0.2, "num_labels": classes,
        **changes,
    })  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(path)
    if tokenizer:
        (Path(path) / "vocab.txt").write_text("\n".join(words) + "\n")
        BertTokenizer(str(Path(path) / "vocab.txt"), model_max_length=32).save_pretrained(path)
    return str(path)


def reviews(count, seed=0):
    """`count` texts and their labels: 1 says good, 0 says bad; lengths differ."""
    generator = np.random.default_rng(seed)
    texts, labels = [], generator.integers(0, 2, count).tolist()
    for label in labels:
        words = generator.choice(WORDS[2:], generator.integers(1, 9)).tolist()
        words.insert(int(generator.integers(0, len(words) + 1)), WORDS[1 - label])
        texts.append(" ".join(words))
    return texts, labels


def write_csv(path, texts, labels, names=("text", "label")):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *zip(texts, labels, strict=True)])
    return path


def small_text(folder, output, **changes):
    """The settings of a small run on text; model and data lie in `folder`."""
    return RunConfig.for_text(**{
        **SMALL_TEXT, "model": f"{folder}/encoder", "data": f"csv:{folder}/reviews.csv", "output": str(output),
        **changes,
    })  # fmt: skip


def write_all(folder):
    """The encoder and the reviews of `small_text`."""
    encoder_directory(Path(folder) / "encoder")
    write_csv(Path(folder) / "reviews.csv", *reviews(150))
    return folder
