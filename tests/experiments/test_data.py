import dataclasses
import json
import os
import shutil
import time
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pyarrow.parquet
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Value
from PIL import Image

from earlyworm.errors import ConfigError, DataError
from earlyworm.experiments.image_data import augment, epoch_order, load_images, normalise
from earlyworm.experiments.names import DATA_NAMES
from earlyworm.experiments.sources import HUB_NAMES
from earlyworm.experiments.splits import FIXED_SEED
from pictures import pictures, table, write

REAL = Path(os.environ.get("EARLYWORM_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory):
    """No network, and an empty cache."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    return cache


def pixels(images):
    """Images to uint8 [N, C, H, W]."""
    return torch.stack([torch.from_numpy(np.atleast_3d(np.array(image))).permute(2, 0, 1) for image in images])


def refused(name, message, limit=None):
    """The text of the one-line error that loading `name` raises."""
    with pytest.raises(DataError, match=message) as caught:
        load_images(name, limit=limit)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_options_name_the_data():
    assert set(DATA_NAMES) == {"digits", *HUB_NAMES}


def test_digits():
    data = load_images("digits", limit=None)
    assert data.train_images.shape[1:] == data.test_images.shape[1:] == (1, 8, 8)
    assert data.train_images.dtype == torch.uint8
    assert data.train_labels.dtype == torch.int64
    assert (data.train_images.min(), data.train_images.max()) == (0, 255)
    assert data.classes == 10
    assert "digits has no test split: held out is a fifth of every class" in data.split
    assert f"seed {FIXED_SEED}" in data.split
    counts = data.train_labels.bincount(), data.test_labels.bincount()
    assert torch.equal(counts[1], torch.round((counts[0] + counts[1]) / 5).long())


def test_digits_are_never_both_trained_on_and_held_out():
    data = load_images("digits", limit=None)
    train, test = ({image.numpy().tobytes() for image in images} for images in (data.train_images, data.test_images))
    assert len(train) + len(test) == 1797
    assert not train & test


def test_limit_takes_the_same_subset_of_the_training_images_alone():
    whole, some, again, fewer = (load_images("digits", limit=limit) for limit in (None, 100, 100, 40))
    assert torch.equal(some.train_images, again.train_images)
    assert len(some.train_images) == len(some.train_labels) == 100
    assert torch.equal(some.test_images, whole.test_images)
    all_images = {
        image.numpy().tobytes(): label for image, label in zip(whole.train_images, whole.train_labels, strict=True)
    }
    assert all(
        all_images[image.numpy().tobytes()] == label
        for image, label in zip(some.train_images, some.train_labels, strict=True)
    )
    assert {i.numpy().tobytes() for i in fewer.train_images} < {i.numpy().tobytes() for i in some.train_images}
    assert torch.equal(load_images("digits", limit=10_000).train_images, whole.train_images)


def test_validation_images_are_training_images_that_nothing_is_trained_on():
    whole, limited = load_images("digits", limit=None), load_images("digits", limit=500)
    some, all_others = (load_images("digits", limit=limit, validation=200) for limit in (500, None))
    assert torch.equal(some.train_images, limited.train_images)  # the same as when it counts
    assert len(some.test_labels) == 200
    assert len(all_others.train_labels) == len(whole.train_labels) - 200
    assert torch.equal(some.test_images, all_others.test_images)
    held, trained, before = (
        {image.numpy().tobytes() for image in images}
        for images in (some.test_images, all_others.train_images, whole.train_images)
    )
    assert not held & trained
    assert held | trained == before
    assert some.split == "held out are 200 images of digits for validation"


@pytest.mark.parametrize(("limit", "validation", "most"), [(500, 938, None), (500, 939, 938), (None, 1438, 1437)])
def test_validation_leaves_images_to_train_on(limit, validation, most):
    if most is None:
        assert len(load_images("digits", limit=limit, validation=validation).train_labels) == limit
        return
    with pytest.raises(ConfigError, match=f"validation is {validation}, but must be at most {most}: 1438 images"):
        load_images("digits", limit=limit, validation=validation)


def test_some_classes_alone_are_numbered_anew():
    whole, some = load_images("digits", limit=None), load_images("digits", limit=None, classes=(7, 2))
    assert some.classes == 2
    for labels, images, all_labels, all_images in (
        (some.train_labels, some.train_images, whole.train_labels, whole.train_images),
        (some.test_labels, some.test_images, whole.test_labels, whole.test_images),
    ):
        for number, before in enumerate((7, 2)):
            chosen = {image.numpy().tobytes() for image in images[labels == number]}
            assert chosen <= {image.numpy().tobytes() for image in load_digits_of(before)}
            assert len(chosen) > 0
        assert len(labels) == pytest.approx(len(all_labels) / 5, rel=0.1)
        assert len(all_images) == len(all_labels)


def load_digits_of(label):
    """All images of one digit."""
    whole = load_images("digits", limit=None)
    return torch.cat([whole.train_images[whole.train_labels == label], whole.test_images[whole.test_labels == label]])


def test_the_limit_counts_the_examples_of_the_classes():
    assert len(load_images("digits", limit=30, classes=(0, 1, 2)).train_labels) == 30


def test_classes_that_there_are_not():
    with pytest.raises(ConfigError, match="classes has 10, but digits has the classes 0 to 9"):
        load_images("digits", limit=None, classes=(3, 10))


def test_mean_and_std_are_those_of_the_images_in_use(tmp_path):
    images = pictures(20, size=(6, 4))
    write(tmp_path / "train.parquet", table(20, images=images))
    data = load_images(f"parquet:{tmp_path}", limit=7)
    values = data.train_images.double() / 255
    torch.testing.assert_close(data.mean, values.mean((0, 2, 3)).float())
    torch.testing.assert_close(data.std, values.std((0, 2, 3), correction=0).float())
    assert data.mean.dtype == torch.float32


def test_std_of_one_colour_can_be_divided_by(tmp_path):
    write(tmp_path / "train.parquet", table(images=[Image.new("L", (8, 8), 7)] * 10))
    data = load_images(f"parquet:{tmp_path}", limit=None)
    torch.testing.assert_close(data.std, torch.tensor([1 / 255]))


@pytest.mark.parametrize("metadata", [True, False])
@pytest.mark.parametrize(("image", "label"), [("img", "label"), ("image", "labels"), ("img", "fine_label")])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_parquet(metadata, image, label, mode, tmp_path):
    train, test = pictures(12, (6, 4), mode, seed=1), pictures(4, (6, 4), mode, seed=2)
    write(tmp_path / "train.parquet", table(12, images=train, image=image, label=label), metadata=metadata)
    write(tmp_path / "test.parquet", table(4, images=test, image=image, label=label), metadata=metadata)
    data = load_images(f"parquet:{tmp_path}", limit=None)
    assert torch.equal(data.train_images, pixels(train))
    assert torch.equal(data.test_images, pixels(test))
    assert data.train_labels.tolist() == [0, 1] * 6
    assert data.test_labels.tolist() == [0, 1] * 2
    assert data.classes == 2
    assert data.split == f"held out is the test split of parquet:{tmp_path}"


def test_parquet_of_plain_bytes(tmp_path):
    write(tmp_path / "train.parquet", table(10))
    encoded = pyarrow.parquet.read_table(tmp_path / "train.parquet")
    plain = pyarrow.table({"image": encoded["image"].combine_chunks().field("bytes"), "label": encoded["label"]})
    pyarrow.parquet.write_table(plain, tmp_path / "train.parquet")
    data = load_images(f"parquet:{tmp_path}", limit=None)
    assert len(data.train_images) + len(data.test_images) == 10


def test_parquet_in_several_files_of_a_data_folder(tmp_path):
    train = pictures(12)
    write(tmp_path / "data" / "train-00000-of-00002.parquet", table(8, images=train[:8]))
    write(tmp_path / "data" / "train-00001-of-00002.parquet", table(4, images=train[8:]))
    write(tmp_path / "data" / "validation-00000-of-00001.parquet", table(4))
    data = load_images(f"parquet:{tmp_path}", limit=None)
    assert torch.equal(data.train_images, pixels(train))
    assert data.split == f"held out is the validation split of parquet:{tmp_path}"


def test_test_is_preferred_to_validation(tmp_path):
    for split, count in (("train", 8), ("test", 4), ("validation", 2)):
        write(tmp_path / f"{split}.parquet", table(count))
    assert len(load_images(f"parquet:{tmp_path}", limit=None).test_images) == 4


def test_parquet_without_a_held_out_file_is_cut(tmp_path):
    images = pictures(20)
    write(tmp_path / "train.parquet", table(20, images=images))
    data = load_images(f"parquet:{tmp_path}", limit=None)
    assert data.train_labels.bincount().tolist() == [8, 8]
    assert data.test_labels.bincount().tolist() == [2, 2]
    assert "has no test split: held out is a fifth of every class" in data.split
    both = {image.numpy().tobytes() for image in torch.cat([data.train_images, data.test_images])}
    assert both == {image.numpy().tobytes() for image in pixels(images)}


def test_fine_labels_are_preferred_to_coarse_ones(tmp_path):
    coarse = table(8, label="coarse_label", labels=[0] * 8)
    both = coarse.add_column("fine_label", [0, 1] * 4).cast_column("fine_label", ClassLabel(names=["a", "b"]))
    write(tmp_path / "train.parquet", both)
    write(tmp_path / "test.parquet", both)
    assert load_images(f"parquet:{tmp_path}", limit=None).test_labels.tolist() == [0, 1] * 4


def test_the_digest_depends_on_every_image_and_label():
    data, again = (load_images("digits", limit=50) for _ in range(2))
    assert data.digest == again.digest
    assert len(data.digest) == 16
    changed = [
        dataclasses.replace(data, **{name: torch.cat([tensor[:-1], tensor[-1:] + 1])})
        for name, tensor in vars(data).items()
        if name.startswith(("train", "test"))
    ]
    assert len({data.digest, *(other.digest for other in changed), load_images("digits", limit=49).digest}) == 6


def test_to_moves_every_tensor():
    data = load_images("digits", limit=10).to("meta")
    tensors = [value for value in vars(data).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 6
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert data.classes == 10


def test_missing_directory():
    for scheme in ("parquet", "imagefolder"):
        assert "check the path" in refused(f"{scheme}:/no/such/place", "no directory '/no/such/place'")


def test_directory_without_training_files(tmp_path):
    write(tmp_path / "test.parquet", table())
    refused(f"parquet:{tmp_path}", r"no train\*.parquet in")


@pytest.mark.parametrize("spoil", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:100] + bytes(300) + b[400:]])
def test_damaged_parquet(spoil, tmp_path):
    path = tmp_path / "train.parquet"
    write(path, table(50))
    path.write_bytes(spoil(path.read_bytes()))
    assert str(path) in refused(f"parquet:{tmp_path}", "cannot be read")


def test_parquet_files_with_different_columns(tmp_path):
    write(tmp_path / "train-0.parquet", table())
    write(tmp_path / "train-1.parquet", table(image="img"))
    assert "train-1.parquet" in refused(f"parquet:{tmp_path}", "cannot be read")


def test_images_of_mixed_sizes(tmp_path):
    mixed = [*pictures(5, (8, 8)), *pictures(5, (6, 8))]
    write(tmp_path / "train.parquet", table(images=mixed))
    write(tmp_path / "test.parquet", table())
    refused(f"parquet:{tmp_path}", "are mixed, 8x8 RGB and 8x6 RGB: bring all to one size")


def test_images_of_mixed_modes(tmp_path):
    write(tmp_path / "train.parquet", table(images=[*pictures(5), *pictures(5, mode="L")]))
    write(tmp_path / "test.parquet", table())
    refused(f"parquet:{tmp_path}", "are mixed, 8x8 RGB and 8x8 L")


def test_held_out_images_of_another_size(tmp_path):
    write(tmp_path / "train.parquet", table())
    write(tmp_path / "test.parquet", table(images=pictures(10, (6, 6))))
    refused(f"parquet:{tmp_path}", r"\[3, 8, 8\] to train on and \[3, 6, 6\] held out")


def test_images_that_are_neither_greyscale_nor_rgb(tmp_path):
    write(tmp_path / "train.parquet", table(images=pictures(10, mode="RGBA")))
    refused(f"parquet:{tmp_path}", "is 8x8 RGBA: convert all images to RGB")


@pytest.mark.parametrize("empty", ["train", "test"])
def test_empty_split(empty, tmp_path):
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", table(0 if split == empty else 4))
    refused(f"parquet:{tmp_path}", f"the {empty} split of .* is empty")


@pytest.mark.parametrize(("label", "shown"), [(-1, "-1"), (None, "None")])
@pytest.mark.parametrize("metadata", [True, False])
def test_missing_labels(label, shown, metadata, tmp_path):
    write(tmp_path / "train.parquet", table(4), metadata=metadata)
    write(tmp_path / "test.parquet", table(4, labels=[0, 1, label, 0]), metadata=metadata)
    refused(f"parquet:{tmp_path}", f"image 2 of the test split of .* has label {shown}")


def test_labels_out_of_range(tmp_path):
    write(tmp_path / "train.parquet", table(4))
    stored = pyarrow.parquet.read_table(tmp_path / "train.parquet")
    wrong = stored.set_column(1, "label", pyarrow.array([0, 1, 2, 1]))
    pyarrow.parquet.write_table(wrong.replace_schema_metadata(stored.schema.metadata), tmp_path / "train.parquet")
    refused(f"parquet:{tmp_path}", "image 2 of the train split of .* has label 2")


def test_held_out_classes_that_are_never_trained_on(tmp_path):
    write(tmp_path / "train.parquet", table(8, labels=[0, 1] * 4), metadata=False)
    write(tmp_path / "test.parquet", table(4, classes=3, labels=[0, 1, 2, 0]), metadata=False)
    refused(f"parquet:{tmp_path}", "has label 2, but no training image has")


def test_missing_columns(tmp_path):
    write(tmp_path / "train.parquet", table(image="img", label="kind").cast_column("kind", Value("int64")))
    refused(f"parquet:{tmp_path}", r"no column of labels in .* \(it has img, kind\)")
    write(tmp_path / "train.parquet", Dataset.from_dict({"text": ["a"], "label": [0]}))
    refused(f"parquet:{tmp_path}", r"no column of images in .* \(it has text, label\)")


def test_missing_image(tmp_path):
    write(tmp_path / "train.parquet", table(images=[*pictures(9), None]))
    write(tmp_path / "test.parquet", table())
    refused(f"parquet:{tmp_path}", "image 9 of the train split of .* is empty")


def test_too_few_images_to_hold_some_out(tmp_path):
    write(tmp_path / "train.parquet", table(4))
    refused(f"parquet:{tmp_path}", "4 images in .* are too few to hold out a fifth")


def save_folder(folder, count, seed=0):
    folder.mkdir(parents=True)
    for i, image in enumerate(pictures(count, seed=seed)):
        image.save(folder / f"{i}.png")


def test_imagefolder(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        save_folder(tmp_path / split / "cat", count, seed=1)
        save_folder(tmp_path / split / "dog", count, seed=2)
    data = load_images(f"imagefolder:{tmp_path}", limit=None)
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test_labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(data.train_images, pixels([*pictures(3, seed=1), *pictures(3, seed=2)]))
    assert data.split == f"held out is the test split of imagefolder:{tmp_path}"


def test_imagefolder_without_splits_is_cut(tmp_path):
    save_folder(tmp_path / "cat", 5, seed=1)
    save_folder(tmp_path / "dog", 5, seed=2)
    data = load_images(f"imagefolder:{tmp_path}", limit=None)
    assert data.train_labels.tolist() == [0] * 4 + [1] * 4
    assert data.test_labels.tolist() == [0, 1]


def test_imagefolder_with_a_damaged_image(tmp_path):
    save_folder(tmp_path / "cat", 5)
    save_folder(tmp_path / "dog", 5)
    for file in tmp_path.glob("cat/*.png"):
        file.write_bytes(file.read_bytes()[:60])
    refused(f"imagefolder:{tmp_path}", "image . of the train split of .* cannot be decoded")


def test_imagefolder_without_images(tmp_path):
    refused(f"imagefolder:{tmp_path}", "put every class into a folder of its own")


def test_imagefolder_without_classes(tmp_path):
    save_folder(tmp_path / "all", 3)
    refused(f"imagefolder:{tmp_path}", r"no column of labels in .* \(it has image\)")


@pytest.mark.parametrize("name", ["cifar10", "nobody/nothing", "a/b/c"])
def test_hub_out_of_reach(name):
    start = time.monotonic()
    assert repr(name) in refused(name, "check name and network")
    assert time.monotonic() - start < 10


def hub(monkeypatch, splits):
    """A Hub that has `splits`; returns the names it is asked for."""
    asked = []
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda api, name, timeout: asked.append(name))
    monkeypatch.setattr(datasets, "load_dataset", lambda name: asked.append(name) or DatasetDict(splits))
    return asked


def test_hub_names(monkeypatch):
    asked = hub(monkeypatch, {"train": table(8, image="img"), "test": table(4, image="img")})
    assert load_images("cifar10", limit=None).split == "held out is the test split of cifar10"
    assert load_images("owner/name", limit=3).train_images.shape == (3, 3, 8, 8)
    assert asked == ["uoft-cs/cifar10"] * 2 + ["owner/name"] * 2


def test_hub_without_a_training_split(monkeypatch):
    hub(monkeypatch, {"all": table(8)})
    refused("owner/name", "owner/name has no split 'train', only all")


def test_hub_data_from_the_cache(offline, tmp_path):
    write(tmp_path / "train.parquet", table(10))
    datasets.load_dataset("parquet", data_files={"train": str(tmp_path / "train.parquet")}, cache_dir=str(offline))
    (prepared,) = offline.glob("parquet/*/*/*/")
    target = offline / "owner___name" / "default" / "0.0.0" / "abc"
    shutil.copytree(prepared, target)
    (target / "parquet-train.arrow").rename(target / "name-train.arrow")
    info = json.loads((target / "dataset_info.json").read_text())
    (target / "dataset_info.json").write_text(json.dumps({**info, "config_name": "default", "dataset_name": "name"}))
    assert load_images("owner/name", limit=None).train_images.shape == (8, 3, 8, 8)


def test_normalise():
    images = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.5])
    result = normalise(images, mean, std, torch.float32)
    for channel in range(3):
        torch.testing.assert_close(result[:, channel], (images[:, channel] / 255 - mean[channel]) / std[channel])
    assert normalise(images, mean, std, torch.bfloat16).dtype == torch.bfloat16


def one_by_one(images, how, generator):
    """What `augment` does, image by image, with a real border."""
    borders = [max(1, size // 8) for size in images.shape[2:]]
    count = len(images)
    shifts = [torch.randint(-b, b + 1, (count, 1), generator=generator) if "crop" in how else None for b in borders]
    mirrored = torch.randint(2, (count, 1), generator=generator) if "flip" in how else torch.zeros(count, 1)
    results = []
    for i, image in enumerate(images.numpy()):
        if "crop" in how:
            (top, left), (height, width) = borders, image.shape[1:]
            y, x = top + shifts[0][i].item(), left + shifts[1][i].item()
            padded = np.pad(image, ((0, 0), (top, top), (left, left)), mode="reflect")
            results.append(padded[:, y : y + height, x : x + width])
        else:
            results.append(image)
        results[i] = np.flip(results[i], 2) if mirrored[i] else results[i]
    return torch.from_numpy(np.stack(results))


@pytest.mark.parametrize("how", ["none", "flip", "crop", "crop-flip"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 10, 17)])
def test_augment(how, shape):
    images = torch.randint(0, 256, (40, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    before = images.clone()
    first, second = (augment(images, how, torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, one_by_one(images, how, torch.Generator().manual_seed(2)))
    assert torch.equal(images, before)
    assert first.dtype == torch.uint8
    changed = int((first != images).flatten(1).any(1).sum())
    assert (changed > 0) == (how != "none")
    assert how != "flip" or 10 < changed < 30


def test_augment_goes_on_with_the_generator():
    images, generator = torch.rand(40, 1, 8, 8), torch.Generator().manual_seed(0)
    first, second = (augment(images, "crop-flip", generator) for _ in range(2))
    assert not torch.equal(first, second)


def test_epoch_order():
    order = epoch_order(100, 3, 5)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(100))
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(order, epoch_order(100, 3, 5))
    others = [epoch_order(100, seed, epoch) for seed, epoch in ((3, 4), (3, 6), (4, 5), (5, 3), (0, 0))]
    assert not any(torch.equal(order, other) for other in others)
    assert epoch_order(100, 3, 5, device="meta").device.type == "meta"


@pytest.mark.parametrize(
    ("name", "shape", "counts"),
    [("cifar10", (3, 32, 32), (300, 10_000)), ("fashion_mnist", (1, 28, 28), (300, 10_000))],
)
def test_real_data(name, shape, counts):
    if not (REAL / name / "train.parquet").exists():
        pytest.skip("no local copy of the data: set EARLYWORM_DATA")
    data = load_images(f"parquet:{REAL / name}", limit=300)
    assert (len(data.train_images), len(data.test_images)) == counts
    assert data.train_images.shape[1:] == shape
    assert data.classes == 10
    assert data.test_labels.bincount().tolist() == [1000] * 10
    stored = Dataset(pyarrow.parquet.read_table(REAL / name / "test.parquet"))[17]
    assert torch.equal(data.test_images[17], pixels([next(iter(stored.values()))])[0])
