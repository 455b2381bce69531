"""Texts from files to batches: columns, held-out splits, tokens, padding, order."""

import os
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from earlyworm.errors import ConfigError, DataError, RunError
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.data import load_data, task_of
from earlyworm.experiments.networks import build_network
from earlyworm.experiments.text_data import Tokens, bucketed_order
from pictures import table, write
from runs import classifier_directory
from texts import VOCABULARY, encoder_directory, reviews, small_text, write_all, write_csv

REAL = Path(os.environ.get("EARLYWORM_DATA", Path(__file__).parents[3] / "shared" / "data"))
IDS = {word: number for number, word in enumerate(VOCABULARY)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The encoder and the reviews of small runs."""
    return write_all(tmp_path_factory.mktemp("texts"))


@pytest.fixture
def load(folder, tmp_path):
    """Loads data with the tiny tokenizer."""
    return lambda data, **changes: load_data(small_text(folder, tmp_path, **{"data": data, **changes}))


@pytest.fixture
def refused(load):
    """The text of the one-line error that loading raises."""

    def text(data, *parts, kind=DataError, **changes):
        with pytest.raises(kind) as caught:
            load(data, **changes)
        assert "\n" not in str(caught.value)
        assert all(part in str(caught.value) for part in parts), str(caught.value)

    return text


def parquet(path, columns, **kinds):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns, **kinds), path)


def words(tokens, index):
    """One sequence as words."""
    start, length = int(tokens.starts[index]), int(tokens.lengths[index])
    return " ".join(VOCABULARY[token] for token in tokens.columns["input_ids"][start : start + length].tolist())


# Padding and order.


def test_padding_is_as_long_as_the_longest_of_the_batch():
    tokens = Tokens(
        columns={"input_ids": torch.tensor([5, 6, 7, 8, 9, 10], dtype=torch.int32), "kinds": torch.arange(6).int()},
        padding={"input_ids": 3, "kinds": 0},
        starts=torch.tensor([0, 3, 4]),
        lengths=torch.tensor([3, 1, 2]),
    )
    some, all_of_them = tokens.padded(torch.tensor([2, 1])), tokens.padded(torch.tensor([1, 0, 2]))
    assert {name: tensor.tolist() for name, tensor in some.items()} == {
        "input_ids": [[9, 10], [8, 3]],
        "kinds": [[4, 5], [3, 0]],
        "attention_mask": [[1, 1], [1, 0]],
    }
    assert all_of_them["input_ids"].tolist() == [[8, 3, 3], [5, 6, 7], [9, 10, 3]]
    assert {tensor.dtype for tensor in some.values()} == {torch.int64}


@pytest.mark.parametrize(
    ("lengths", "batch", "sets"),
    [
        # Up to sixteen batches are sorted together: each batch holds neighbours in length.
        ([9, 1, 5, 1, 9, 5], 2, [{1}, {5}, {9}]),
        ([4, 3, 2, 1], 4, [{1, 2, 3, 4}]),
        ([2, 2, 7, 7, 2, 7], 3, [{2}, {7}]),
    ],
)
def test_batches_are_of_similar_length(lengths, batch, sets):
    lengths = torch.tensor(lengths)
    for seed in range(5):
        order = bucketed_order(lengths, seed, 0, batch)
        assert sorted(order.tolist()) == list(range(len(lengths)))
        found = [set(part.tolist()) for part in lengths[order].split(batch)]
        assert sorted(found, key=min) == sets


def test_the_order_is_decided_by_seed_and_epoch():
    lengths = torch.randint(1, 50, (203,), generator=torch.Generator().manual_seed(0))
    orders = {(seed, epoch): bucketed_order(lengths, seed, epoch, 4).tolist() for seed in (1, 2) for epoch in (0, 1)}
    assert len({tuple(order) for order in orders.values()}) == 4
    assert all(bucketed_order(lengths, *key, 4).tolist() == order for key, order in orders.items())
    assert all(sorted(order) == list(range(203)) for order in orders.values())
    # What is left over waits for another epoch, and is another in each.
    assert len({tuple(order[200:]) for order in orders.values()}) == 4


def test_batches_come_in_random_order_and_with_chance_mates():
    lengths = torch.arange(400) % 20
    order = bucketed_order(lengths, 0, 0, 4)
    means = lengths[order].view(-1, 4).double().mean(1)
    assert not torch.equal(means, means.sort().values)
    mates = [{frozenset(part.tolist()) for part in bucketed_order(lengths, 0, e, 4).split(4)} for e in (0, 1)]
    assert not mates[0] & mates[1]


def test_little_padding(load, folder):
    data = load(f"csv:{folder}/reviews.csv")
    order = data.epoch_order(0, 0, 8)
    whole = order[: len(order) // 8 * 8]
    padded = sum(int(data.train.lengths[part].max()) * 8 for part in whole.split(8))
    assert padded < 1.15 * int(data.train.lengths[whole].sum())
    unsorted = sum(int(data.train.lengths[part].max()) * 8 for part in whole.sort().values.split(8))
    assert unsorted > 1.3 * int(data.train.lengths[whole].sum())


# Tokens.


def test_texts_become_tokens_once(load, tmp_path):
    texts = ["good film", "the plot was bad and the end was bad", "a very very very long good film it was and the end"]
    write_csv(tmp_path / "train.csv", texts, [1, 0, 1])
    write_csv(tmp_path / "test.csv", ["bad music", "good"], [0, 1])
    data = load(f"csv:{tmp_path}", max_length=8)
    assert [words(data.train, index) for index in range(3)] == [
        "[CLS] good film [SEP]",
        "[CLS] the plot was bad and the [SEP]",
        "[CLS] a very very very long good [SEP]".replace("long", "[UNK]"),
    ]
    assert data.train_labels.tolist() == [1, 0, 1]
    # Held-out texts are sorted by length, with their labels.
    assert [words(data.test, index) for index in range(2)] == ["[CLS] good [SEP]", "[CLS] bad music [SEP]"]
    assert data.test_labels.tolist() == [1, 0]
    assert data.test_batch(torch.tensor([1, 0]), None)[1].tolist() == [0, 1]
    assert (data.classes, data.shape) == (2, (8,))
    assert data.split == f"held out is the test split of csv:{tmp_path}"
    inputs, labels = data.train_batch(torch.tensor([2, 0]), None, None)
    assert set(inputs) == {"input_ids", "attention_mask"}  # of texts that are no pairs, no more is needed
    assert inputs["attention_mask"].sum(1).tolist() == [8, 4]
    assert labels.tolist() == [1, 1]


PAIRS = [("sentence1", "sentence2"), ("question", "sentence"), ("question1", "question2"), ("premise", "hypothesis")]


@pytest.mark.parametrize("names", PAIRS)
def test_pairs(names, load, tmp_path):
    first, second = ["good film", "bad"], ["it was good", "the plot"]
    parquet(tmp_path / "train.parquet", {names[1]: second, "idx": [0, 1], names[0]: first, "label": [1, 0]})
    parquet(tmp_path / "test.parquet", {names[1]: second, "idx": [0, 1], names[0]: first, "label": [1, 0]})
    data = load(f"parquet:{tmp_path}")
    assert words(data.train, 0) == "[CLS] good film [SEP] it was good [SEP]"
    inputs, _ = data.train_batch(torch.tensor([1, 0]), None, None)
    assert inputs["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1]]
    assert inputs["input_ids"][0, -2:].tolist() == [IDS["[PAD]"]] * 2


def test_the_typical_text_is_the_example(load, tmp_path):
    write_csv(tmp_path / "train.csv", ["good " * n for n in (1, 9, 3, 5)], [0, 1, 0, 1])
    write_csv(tmp_path / "test.csv", ["good"], [0])
    data = load(f"csv:{tmp_path}", max_length=20)
    assert data.shape == (7,)  # the mean is 6.5, with the two marks
    assert data.example_inputs(1, None)["input_ids"].shape == (1, 7)
    assert data.example_inputs(3, None)["attention_mask"].sum(1).tolist() == [7, 5, 3]


def test_the_digest_depends_on_texts_and_labels(load, tmp_path):
    def digest(*rows):
        write_csv(tmp_path / "train.csv", *zip(*rows, strict=True))
        write_csv(tmp_path / "test.csv", ["good"], [0])
        return load(f"csv:{tmp_path}").digest

    first = digest(("good film", 1), ("bad", 0))
    assert digest(("good film", 1), ("bad", 0)) == first
    others = ([("good film", 0), ("bad", 1)], [("good plot", 1), ("bad", 0)], [("good", 1), ("film bad", 0)])
    assert len({first, *(digest(*rows) for rows in others)}) == 4


def test_to_moves_every_tensor_but_lengths(load, folder):
    data = load(f"csv:{folder}/reviews.csv").to("meta")
    tensors = [data.train_labels, data.test_labels, *data.train.columns.values(), data.test.starts]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert data.train.lengths.device.type == "cpu"


# Columns.


@pytest.mark.parametrize(
    ("columns", "options", "expected"),
    [
        ({"text": "good", "label": 1}, {}, "good"),
        ({"title": "bad", "sentence": "good", "label": 1}, {}, "good"),
        ({"review": "good", "labels": 1}, {}, "good"),  # the only column of text
        ({"text": "bad", "review": "good", "label": 1}, {"text_columns": ("review",)}, "good"),
        ({"a": "bad", "b": "good", "label": 1}, {"text_columns": ("b", "a")}, "good [SEP] bad"),
        ({"text": "good", "stars": 1, "label": 0}, {"label_column": "stars"}, "good"),
        ({"text": "good", "label": "yes"}, {}, "good"),
    ],
)
def test_columns(columns, options, expected, load, tmp_path):
    for split in ("train", "test"):
        other = {"yes": "no", 1: 0}
        rows = {name: [value, other.get(value, value)] for name, value in columns.items()}
        parquet(tmp_path / f"{split}.parquet", rows)
    data = load(f"parquet:{tmp_path}", **options)
    assert words(data.train, 0) == f"[CLS] {expected} [SEP]"
    assert data.train_labels.tolist() == [1, 0]


def test_labels_that_are_words(load, tmp_path):
    write_csv(tmp_path / "train.csv", ["good", "bad", "a"], ["pos", "neg", "none"])
    write_csv(tmp_path / "test.csv", ["the"], ["none"])
    data = load(f"csv:{tmp_path}")
    assert (data.train_labels.tolist(), data.test_labels.tolist(), data.classes) == ([2, 0, 1], [1], 3)


@pytest.mark.parametrize("other", ["test", "train"])
def test_labels_that_are_words_in_one_split_are_words_in_all(other, load, refused, tmp_path):
    rows = {"train": ["2", "x", "1"], "test": ["1", "x", "2"]} | {other: ["2", "1", "2"]}
    for split, labels in rows.items():
        write_csv(tmp_path / f"{split}.csv", ["good", "good bad", "good bad the"], labels)
    if other == "test":
        data = load(f"csv:{tmp_path}")
        assert (data.train_labels.tolist(), data.test_labels.tolist(), data.classes) == ([1, 2, 0], [1, 0, 1], 3)
    else:
        refused(f"csv:{tmp_path}", "the test split", "has label 'x', but no training text has")


def test_names_of_classes_are_words_where_other_labels_are(load, tmp_path):
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["b", "a"])})
    Dataset.from_dict({"sentence": ["good"] * 2, "label": [0, 1]}, features=features).to_parquet(
        tmp_path / "train.parquet"
    )
    parquet(tmp_path / "test.parquet", {"sentence": ["good"] * 2, "label": ["a", "a"]})
    data = load(f"parquet:{tmp_path}")
    assert (data.train_labels.tolist(), data.test_labels.tolist()) == ([1, 0], [0, 0])


def test_texts_with_commas_quotes_and_line_breaks(load, tmp_path):
    write_csv(tmp_path / "train.csv", ['good, "very"\ngood', "bad"], [1, 0])
    write_csv(tmp_path / "test.csv", ["bad"], [0])
    data = load(f"csv:{tmp_path}")
    assert words(data.train, 0).split() == ["[CLS]", "good", *["[UNK]"] * 2, "very", "[UNK]", "good", "[SEP]"]


# What is held out.


def test_one_file_is_cut(load, folder):
    data, again = load(f"csv:{folder}/reviews.csv"), load(f"csv:{folder}/reviews.csv", seed=3)
    assert "has no test split: held out is a fifth of every class" in data.split
    counts = data.train_labels.bincount(), data.test_labels.bincount()
    assert torch.equal(counts[1], torch.round((counts[0] + counts[1]) / 5).long())
    assert torch.equal(data.test.columns["input_ids"], again.test.columns["input_ids"])
    texts, _ = reviews(150)
    lower = sorted(f"[CLS] {text} [SEP]" for text in texts)
    assert sorted([words(data.train, i) for i in range(120)] + [words(data.test, i) for i in range(30)]) == lower


def splits(path, test_labels, validation=True):
    rows = {"train": [0, 1, 0, 1], "test": test_labels, **({"validation": [1, 0]} if validation else {})}
    for split, labels in rows.items():
        parquet(path / f"{split}.parquet", {"sentence": ["good"] * len(labels), "label": labels})


@pytest.mark.parametrize("missing", [-1, None])
def test_validation_is_held_out_where_test_has_no_labels(missing, load, tmp_path):
    splits(tmp_path, pyarrow.array([missing] * 3, pyarrow.int64()))
    data = load(f"parquet:{tmp_path}")
    assert data.split == f"held out is the validation split of parquet:{tmp_path}"
    assert data.test_labels.tolist() == [1, 0]


@pytest.mark.parametrize("options", [{}, {"label_column": "label"}])
def test_validation_is_held_out_where_test_has_no_column_of_labels(options, load, tmp_path):
    splits(tmp_path, [0])
    parquet(tmp_path / "test.parquet", {"sentence": ["good"] * 3})
    data = load(f"parquet:{tmp_path}", **options)
    assert data.split == f"held out is the validation split of parquet:{tmp_path}"
    assert data.test_labels.tolist() == [1, 0]


def test_test_is_held_out_where_it_has_labels(load, tmp_path):
    splits(tmp_path, [1, 1, 0])
    assert load(f"parquet:{tmp_path}").test_labels.tolist() == [1, 1, 0]


def test_limit_takes_the_same_texts_whatever_the_seed(load, folder):
    data = [load(f"csv:{folder}/reviews.csv", limit=20, seed=seed) for seed in (0, 1)]
    assert len(data[0].train_labels) == 20
    assert torch.equal(data[0].train.columns["input_ids"], data[1].train.columns["input_ids"])
    assert len(data[0].test_labels) == 30


# What the data are.


def test_the_columns_tell_what_the_data_are(folder, tmp_path):
    write(tmp_path / "images" / "train.parquet", table())
    splits(tmp_path / "texts", [0])
    assert task_of(None, f"parquet:{tmp_path}/images") == "images"
    assert task_of("owner/network", f"parquet:{tmp_path}/texts") == "text"
    assert task_of(None, f"csv:{tmp_path}/nowhere") == "text"
    with pytest.raises(DataError, match="no directory 'nowhere'"):
        task_of(None, "parquet:nowhere")


# Bad input.


def test_paths_that_are_missing(refused, tmp_path):
    refused("csv:/no/such", "no file or directory '/no/such'", "check the path")
    refused("parquet:/no/such", "no directory '/no/such'", "check the path")
    refused(f"csv:{tmp_path}", "no train*.csv in")


@pytest.mark.parametrize(
    ("labels", "parts"),
    [
        ([0, -1, 1, 0], ["text 1 of the train split", "has label -1"]),
        ([0, None, 1, 0], ["text 1 of the train split", "has label None"]),
        ([0.5, 1.5, 0.0, 1.0], ["the labels of the train split", "not classes: make them whole numbers"]),
        ([-1] * 4, ["text 0 of the train split", "has label -1"]),
    ],
)
def test_labels_that_are_missing(labels, parts, refused, tmp_path):
    splits(tmp_path, [0, 1])
    parquet(tmp_path / "train.parquet", {"sentence": ["good"] * 4, "label": labels})
    refused(f"parquet:{tmp_path}", *parts)


def test_labels_that_pandas_has_written_as_whole_floats(load, tmp_path):
    (tmp_path / "f.csv").write_text("text,label\n" + "good,1.0\nbad,0.0\n" * 10)
    assert sorted(load(f"csv:{tmp_path}/f.csv").train_labels.tolist()) == [0] * 8 + [1] * 8


def test_labels_of_one_class(refused, tmp_path):
    (tmp_path / "f.csv").write_text("text,label\n" + "good,1\n" * 10)
    refused(f"csv:{tmp_path}/f.csv", "every text of the train split of", "has label 1: add texts of another class")


def test_labels_out_of_range(refused, tmp_path):
    for split, labels in (("train", [0, 1]), ("test", [0, 2])):
        parquet(tmp_path / f"{split}.parquet", {"sentence": ["good"] * 2, "label": labels})
    refused(f"parquet:{tmp_path}", "the test split", "has label 2, but no training text has")
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["a", "b"])})
    Dataset.from_dict({"sentence": ["good"] * 2, "label": [0, 1]}, features=features).to_parquet(
        tmp_path / "train.parquet"
    )
    stored = pyarrow.parquet.read_table(tmp_path / "train.parquet")
    wrong = stored.set_column(1, "label", pyarrow.array([0, 2])).replace_schema_metadata(stored.schema.metadata)
    pyarrow.parquet.write_table(wrong, tmp_path / "train.parquet")
    refused(f"parquet:{tmp_path}", "text 1 of the train split", "has label 2")


def test_held_out_words_that_are_no_label(refused, tmp_path):
    write_csv(tmp_path / "train.csv", ["good", "bad"], ["pos", "neg"])
    write_csv(tmp_path / "test.csv", ["good"], ["posi"])
    refused(f"csv:{tmp_path}", "the test split", "has label 'posi', but no training text has")


@pytest.mark.parametrize("empty", ["", "  ", None])
@pytest.mark.parametrize("split", ["train", "test"])
def test_empty_texts(empty, split, refused, tmp_path):
    for name in ("train", "test"):
        texts = ["good", empty if name == split else "bad"]
        parquet(tmp_path / f"{name}.parquet", {"text": texts, "label": [0, 1]})
    refused(f"parquet:{tmp_path}", f"text 1 of the {split} split", "is empty in column 'text'", "leave it out")


@pytest.mark.parametrize(
    ("columns", "options", "parts"),
    [
        ({"a": ["x"], "b": ["y"], "label": [0]}, {}, ["no column of text", "(it has a, b, label)", "--text-columns"]),
        ({"n": [1], "label": [0]}, {}, ["no column of text", "(it has n, label)"]),
        ({"text": ["x"], "kind": [0]}, {}, ["no column of labels", "(it has text, kind)", "--label-column"]),
        ({"text": ["x"], "label": [0]}, {"text_columns": ("body",)}, ["no column of text 'body'", "choose from text"]),
        ({"text": ["x"], "label": [0]}, {"label_column": "kind"}, ["no column 'kind'", "choose from text, label"]),
        ({"text": ["x"], "stars": [1.5]}, {"label_column": "stars"}, ["the labels of", "not classes"]),
        ({"text": pyarrow.array([], pyarrow.string()), "label": pyarrow.array([], pyarrow.int64())}, {}, ["is empty"]),
    ],
)
def test_columns_that_are_missing(columns, options, parts, refused, tmp_path):
    parquet(tmp_path / "train.parquet", columns)
    refused(f"parquet:{tmp_path}", *parts, **options)


def test_images_are_no_text(refused, tmp_path):
    write(tmp_path / "train.parquet", table())
    refused(f"parquet:{tmp_path}", "no column of text", "(it has image, label)")


def test_damaged_csv(refused, tmp_path):
    (tmp_path / "f.csv").write_text("text,label\ngood,1,2\n")
    refused(f"csv:{tmp_path}/f.csv", f"{tmp_path}/f.csv cannot be read", "get the file again")


def test_columns_of_one_name(load, refused, tmp_path):
    lines = ["good,1,,", "bad,0,,", "a,1,,"]
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,label,,", *lines]))
    assert load(f"csv:{tmp_path}").train_labels.tolist() == [1, 0, 1]
    (tmp_path / "test.csv").write_text("\n".join(["text,label,stars,stars", *lines]))
    refused(f"csv:{tmp_path}", f"{tmp_path}/test.csv has 2 columns 'stars'", "rename all but one")


def test_csv_without_rows_or_in_another_encoding(refused, tmp_path):
    (tmp_path / "f.csv").write_text("text,label\n")
    refused(f"csv:{tmp_path}/f.csv", f"{tmp_path}/f.csv has no rows", "add some")
    (tmp_path / "f.csv").write_bytes("text,label\ndéjà vu,1\nbad,0\n".encode("latin-1"))
    refused(f"csv:{tmp_path}/f.csv", f"{tmp_path}/f.csv is not UTF-8 in column 'text'", "save it in that encoding")


def test_numbers_that_are_no_classes(refused, load, tmp_path):
    path = write_csv(tmp_path / "f.csv", ["good"] * 20, [20230101 + day for day in range(20)], ("text", "label"))
    cure = "number the classes from 0, or name another --label-column"
    refused(f"csv:{path}", "column 'label' of the train split", "has label 20230120", "20230121 classes of 20", cure)
    write_csv(path, ["good"] * 20, [1, 19] * 10)
    assert load(f"csv:{path}").test_labels.tolist() == [1, 1, 19, 19]


def test_a_tokenizer_that_is_missing(refused, folder, tmp_path):
    model = encoder_directory(tmp_path / "bare", tokenizer=False)
    refused(f"csv:{folder}/reviews.csv", "the tokenizer of", "no vocabulary", "beside it", kind=RunError, model=model)


def test_a_tokenizer_of_another_model(folder, tmp_path):
    model = encoder_directory(tmp_path / "other", vocab_size=10)
    config = small_text(folder, tmp_path, model=model)
    data = load_data(config)
    with pytest.raises(DataError, match="has 19 words, but its network knows 10: give a model") as caught:
        data.check_model(build_network(config, classes=2, shape=data.shape)[0], config)
    assert "\n" not in str(caught.value)


def test_texts_that_may_be_too_long(folder, tmp_path, refused):
    refused(f"csv:{folder}/reviews.csv", "max_length is 33", "at most 32", kind=ConfigError, max_length=33)
    model = encoder_directory(tmp_path / "short", max_position_embeddings=11)
    config = small_text(folder, tmp_path, model=model)
    data = load_data(config)
    with pytest.raises(ConfigError, match="max_length is 12, but must be at most 11, the positions of"):
        data.check_model(build_network(config, classes=2, shape=data.shape)[0], config)


def test_a_model_that_is_no_text_model(folder, tmp_path):
    model = classifier_directory(tmp_path / "pictures", pretrained=True)
    config = small_text(folder, tmp_path, model=model)
    with pytest.raises(RunError, match="give a text model of transformers") as caught:
        build_network(config, classes=2, shape=(8,))
    assert "\n" not in str(caught.value)


# The Hub.


@pytest.fixture
def hub(monkeypatch, tmp_path_factory):
    """A Hub that has `splits`; remembers what it is asked for."""
    asked = []

    def install(splits):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda api, name, timeout: asked.append(name))
        monkeypatch.setattr(datasets, "load_dataset", lambda *names: asked.append(names) or DatasetDict(splits))
        return asked

    return install


@pytest.mark.parametrize(("subset", "columns"), [("sst2", ("sentence",)), ("qnli", ("question", "sentence"))])
def test_glue(subset, columns, hub, load):
    kinds = Features({**{c: Value("string") for c in columns}, "label": ClassLabel(names=["a", "b"])})

    def some(labels):
        return Dataset.from_dict({**{c: ["good"] * len(labels) for c in columns}, "label": labels}, features=kinds)

    asked = hub({"train": some([0, 1]), "validation": some([1]), "test": some([-1, -1, -1])})
    data = load(f"glue/{subset}")
    assert asked == ["nyu-mll/glue", ("nyu-mll/glue", subset)]
    assert data.split == f"held out is the validation split of glue/{subset}"
    assert data.test_labels.tolist() == [1]
    assert words(data.train, 0).count("good") == len(columns)


def test_hub_out_of_reach(monkeypatch, refused, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    refused("glue/sst2", "'glue/sst2'", "check name and network")


@pytest.mark.skipif(not (REAL / "sst2").is_dir(), reason="no local copy of the data: set EARLYWORM_DATA")
def test_real_sst2(folder, tmp_path):
    config = small_text(folder, tmp_path, data=f"parquet:{REAL}/sst2", limit=100)
    data = load_data(config)
    assert len(data.train_labels) == 100
    assert len(data.test_labels) == 1821
    assert data.split.startswith("held out is the test split of")
    assert task_of(None, config.data) == "text"


def test_defaults_are_those_of_a_fine_tuning():
    config, weights = RunConfig.for_text(), RunConfig.for_text(units=("weights",))
    assert (config.optimizer, config.lr, config.batch_size, config.epochs) == ("adamw", 5e-5, 32, 4)
    assert (config.units, config.score, config.max_grad_norm) == (("heads", "neurons"), "taylor", 1.0)
    assert (config.window, config.epsilon, config.effective_trigger, config.effective_chi) == (3, 0.1, 0.3, 0.0)
    assert (weights.window, weights.epsilon, weights.effective_trigger, weights.effective_chi) == (3, 0.01, 0.015, 0.01)
    assert (weights.score, weights.greedy_first, config.greedy_first) == ("auto", True, True)
    assert RunConfig.for_text(units=("weights",), epsilon=0.1).epsilon == 0.1
