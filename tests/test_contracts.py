"""What every architecture of MODELS and every data set must fulfil, the same checks for all."""

import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import preprocess, randomize, tiny, write_cityscapes, write_coco_panoptic
from PIL import Image
from torch import nn

from datasets import build_dataset, data_set_names, find_data_set
from evaluation.task import TASKS
from model import MODELS, build_model, describe, model_class
from model.encoders import ENCODERS, build_encoder
from model.layers import fold
from utils.base.errors import UserError
from utils.data.check import check_data
from utils.data.coco import CATEGORIES
from utils.data.described import SHIPPED, read_description
from utils.data.label_table import IGNORE
from utils.data.packed import packed_path
from utils.data.prepare import pack_split, weigh
from utils.training.network import network_options

K, SIZE = 5, (64, 96)
THINGS = (3, 4)
CHANNELS = {"semantic": {"out": K}, "panoptic": {"out": K, "center": 1, "offset": 2}}
CHANNELS["panoptic_boxes"] = {"out": K}  # and other outputs than maps
HEAVY = ("fcn32s", "fcn16s", "fcn8s", "deconvnet")  # 134 and 252 million parameters
ALL = [pytest.param(x, marks=pytest.mark.slow if x in HEAVY else ()) for x in MODELS]
NAMES = [name for name in data_set_names() if name != "custom"]


def size_of(name: str) -> tuple[int, int]:
    """Height and width of an image for this architecture."""
    return max(SIZE, (getattr(MODELS[name], "smallest_image", 1),) * 2)


def network(name: str, **changes) -> dict:
    """build_model's options as a training stores them, for the smallest network."""
    changes |= {"model": name, "output_stride": 8, "batch_size": 2, "crop": size_of(name)}
    config = tiny(Path("data"), Path("logs"), **changes)
    return json.loads(json.dumps(network_options(config, K, THINGS)))


def run(model: nn.Module, images: torch.Tensor) -> dict:
    """The network's outputs, in training with the targets that it needs."""
    if not model.training or not TASKS[model.task].criterion.network_targets:
        return model(images)
    label = torch.zeros(len(images), *images.shape[2:], dtype=torch.uint8)
    thing = torch.zeros(label.shape, dtype=torch.int16)
    for number, (top, left) in enumerate(((4, 8), (20, 40)), 1):
        part = (slice(None), slice(top, top + 36), slice(left, left + 40))
        label[part], thing[part] = THINGS[number - 1], number
    return model(images, {"label": label, "thing": thing})


def maps(model: nn.Module, outputs: dict) -> dict[str, torch.Tensor]:
    """Those outputs that are maps of the image."""
    return {name: x for name, x in outputs.items() if name in (*CHANNELS[model.task], "aux")}


@pytest.mark.parametrize("name", ALL)
class TestModels:
    def test_its_options_are_keywords_with_defaults(self, name):
        parameters = inspect.signature(MODELS[name].__init__).parameters
        options = [p for p in parameters.values() if p.name != "self"]
        assert all(p.kind is p.KEYWORD_ONLY for p in options)
        assert [p.name for p in options if p.default is p.empty] == ["num_classes"]

    def test_it_says_what_it_is(self, name):
        assert MODELS[name].__doc__ and model_class(name).task in TASKS
        assert describe(network(name))[0] == name

    def test_logits_at_its_own_stride_in_training_and_evaluation(self, name):
        torch.manual_seed(0)
        model = build_model(**network(name))
        for images in (
            torch.rand(2, 3, *size_of(name)),
            torch.rand(2, 3, *(side + 1 for side in size_of(name))),
        ):
            for mode in (True, False):
                outputs, channels = run(model.train(mode), images), CHANNELS[model.task]
                if not getattr(model, "dynamic", False):
                    assert set(outputs) <= ({*channels, "aux"} if mode else {*channels})
                outputs = maps(model, outputs)
                for output, logits in outputs.items():
                    strides = [
                        full / small
                        for full, small in zip(images.shape[2:], logits.shape[2:], strict=True)
                    ]
                    assert logits.shape[:2] == (2, channels.get(output, K))
                    assert logits.isfinite().all()
                    assert max(strides) < 2 * min(strides) and 0.9 <= min(strides) < 33

    @pytest.mark.parametrize("norm", ["bn", "gn_ws"])
    def test_every_convolution_gets_channels_last(self, name, norm):
        """In training and evaluation; NCHW in between costs a GPU two copies a layer."""
        model = build_model(**network(name, norm=norm)).to(memory_format=torch.channels_last)
        wrong, inputs = [], torch.rand(2, 3, *size_of(name)).to(memory_format=torch.channels_last)
        for where, module in model.named_modules():
            heads = where.startswith(tuple(getattr(model, "full_precision", ())))  # boxes' features
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and not heads:

                def look(_module, args, _output, where=where):
                    if not args[0].is_contiguous(memory_format=torch.channels_last):
                        wrong.append(where)

                module.register_forward_hook(look)
        run(model.train(), inputs)
        run(model.eval(), inputs)
        assert not wrong

    def test_every_parameter_learns_also_after_an_evaluation(self, name):
        torch.manual_seed(0)
        model = build_model(**network(name)).eval()
        with torch.inference_mode():
            model(torch.rand(2, 3, *size_of(name)))
        model.train()
        outputs = run(model, torch.rand(2, 3, *size_of(name)))
        sum(logits.square().mean() for logits in outputs.values()).backward()
        idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert not idle

    def test_the_stored_options_rebuild_it(self, name):
        model = build_model(**network(name))
        again = build_model(**network(name))
        randomize(model)
        again.load_state_dict(model.state_dict())
        images = torch.rand(1, 3, *size_of(name))
        assert torch.equal(model.eval()(images)["out"], again.eval()(images)["out"])

    def test_folding_changes_nothing_but_rounding(self, name):
        # SegNet unpools to places of maxima, which rounding in float32 can move.
        dtype = torch.float64 if name == "segnet" else torch.float32
        model = build_model(**network(name)).eval()
        randomize(model)
        model, images = model.to(dtype), torch.rand(1, 3, *size_of(name), dtype=dtype)
        with torch.no_grad():
            before = model(images)["out"]
            fold(model)
            after = model(images)["out"]
        assert (after - before).abs().max() <= 1e-5 * before.std()

    @pytest.mark.slow
    def test_it_compiles_as_one_graph(self, name):
        """train.py compiles on a GPU; a graph that breaks there is slower."""
        if getattr(MODELS[name], "dynamic", False):
            pytest.skip("not compiled")
        torch._dynamo.reset()
        model = build_model(**network(name)).train()
        for module in model.modules():
            if isinstance(module, (nn.Dropout, nn.Dropout2d)):
                module.p = 0.0
        images = torch.rand(2, 3, *size_of(name))
        expected = model(images)["out"].detach()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
        logits = compiled(images)["out"]
        logits.square().mean().backward()
        assert (logits - expected).abs().max() <= 1e-4 * expected.std()

    def test_the_backbone_is_what_has_pretrained_weights(self, name):
        options = network(name)
        names = [n for n, _ in build_model(**options).named_parameters()]
        assert any(n.startswith("backbone.") for n in names) == ("backbone" in options)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_knows_its_features_and_its_weights(name):
    encoder = build_encoder(name).eval()
    with torch.no_grad():
        features = encoder(torch.rand(1, 3, 64, 64))
    assert [x.shape[1] for x in features] == list(encoder.channels)
    file = ENCODERS[name].weight_file(name, "bn")
    assert file.url.endswith(file.name) and re.search(r"-[0-9a-f]{8}\.pth$", file.name)


def write_voc(root: Path, rng: np.random.Generator) -> None:
    for split in ("train", "val"):
        names = [f"{split}_{number}" for number in range(2)]
        files = {"images": "JPEGImages/{}.jpg", "labels": "SegmentationClass/{}.png"}
        write_files(root / "VOCdevkit/VOC2012", files, names, [*range(21), IGNORE], rng)
        listing = root / "VOCdevkit/VOC2012/ImageSets/Segmentation" / f"{split}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("\n".join(names))


def write_coco(root: Path, year: int, rng: np.random.Generator) -> None:
    """Two images a split; every class fills a rectangle."""
    for split in ("train", "val"):
        images, annotations = [], []
        for number in range(2):
            name = f"{split}_{number}.jpg"
            path = root / f"{split}{year}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (50, 80, 3), np.uint8)).save(path)
            images.append({"id": number, "file_name": name, "height": 50, "width": 80})
            for place, category in enumerate(CATEGORIES):
                x, y = 10 * (place % 8), 10 * (place // 8)
                polygon = [x, y, x + 10, y, x + 10, y + 10, x, y + 10]
                annotations.append({
                    "image_id": number, "category_id": category, "segmentation": [polygon],
                    "area": 100, "iscrowd": 0,
                })  # fmt: skip
        (root / "annotations").mkdir(exist_ok=True)
        path = root / "annotations" / f"instances_{split}{year}.json"
        path.write_text(json.dumps({"images": images, "annotations": annotations}))


def write_files(root: Path, files: dict, names: list[str], ids: list[int], rng) -> None:
    """An image and a label of these ids for each name."""
    for number, name in enumerate(names):
        label = rng.choice(ids, (8, 10)).repeat(6 + number, 0).repeat(8, 1).astype(np.uint8)
        image = rng.integers(0, 256, (*label.shape, 3), dtype=np.uint8)
        for kind, pixels in (("images", image), ("labels", label)):
            path = root / files[kind].format(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def write_described(name: str, root: Path, rng: np.random.Generator) -> None:
    """Two images a split of a shipped description, in just the files that it describes."""
    description = read_description(SHIPPED / f"{name}.yaml")
    ids = [number for numbers in description.ids().values() for number in numbers]
    for split in ("train", "val"):
        spelling = description.splits.get(split, split)
        patterns = {"images": description.images, "labels": description.labels}
        files = {
            kind: re.sub(r"\.\*$", ".png", pattern).replace("{split}", spelling)
            .replace("*", "x").replace("{name}", "{}").replace("{group}", "fog")
            for kind, pattern in patterns.items()
        }  # fmt: skip
        names = [f"{split}_{number}" for number in range(2)]
        if description.lists is not None:
            names = (SHIPPED / description.lists.replace("{split}", split)).read_text().split()
        write_files(root, files, names, [*ids, *description.ignore], rng)


@pytest.fixture(scope="module", params=NAMES)
def tree(request, tmp_path_factory) -> tuple[str, Path]:
    """A tiny tree of each data set, prepared and packed."""
    name, rng = request.param, np.random.default_rng(0)
    root = tmp_path_factory.mktemp(name)
    if name in ("cityscapes", "synthetic"):
        preprocess(write_cityscapes(root))
    elif name == "voc":
        write_voc(root, rng)
    elif name == "coco_panoptic":
        write_coco_panoptic(root, rng)
        find_data_set(name, root).prepare(root, workers=1, overwrite=False)
    elif name in ("coco", "coco_2014"):
        write_coco(root, 2014 if name == "coco_2014" else 2017, rng)
        find_data_set(name, root).prepare(root, workers=1, overwrite=False)
    else:
        write_described(name, root, rng)
    weigh(build_dataset(name, root, "train"), root, workers=1)
    return name, root


class TestDataSets:
    def test_its_label_table_is_consistent(self, tree):
        classes = find_data_set(*tree).classes
        number = classes.num_classes
        assert len(set(classes.names)) == number and classes.colors.shape == (number, 3)
        assert classes.id_to_train[classes.ids].tolist() == [*range(number)]
        everything = np.arange(number, dtype=np.uint8)[None]
        assert np.array_equal(classes.id_to_train[classes.to_ids(everything)], everything)
        other = classes.to_ids(np.full((1, 1), IGNORE, np.uint8))
        assert other < classes.num_ids and classes.id_to_train[other] >= number
        assert classes.ids.max() < classes.num_ids

    def test_its_samples_keep_the_contract(self, tree):
        name, root = tree
        for split in ("train", "val", "trainval"):
            dataset = build_dataset(name, root, split)
            assert dataset.has_labels and len(dataset) == len(dataset.names) > 0
            for index in range(2):
                sample = dataset[index]
                image, train_ids = sample["image"], sample["label"]
                assert image.dtype == np.uint8 and image.shape == (*train_ids.shape, 3)
                assert train_ids.dtype == np.uint8 and sample["name"] == dataset.names[index]
                known = {*range(dataset.classes.num_classes), IGNORE}
                assert set(np.unique(train_ids).tolist()) <= known
                assert np.array_equal(dataset.train_ids(index), train_ids)
                assert np.array_equal(dataset.image(index), image)
                assert dataset.size(index) == train_ids.shape

    def test_a_perfect_prediction_has_perfect_scores(self, tree):
        name, root = tree
        dataset, task = build_dataset(name, root, "val"), TASKS["semantic"]
        for sample in (dataset[0], dataset[1]):
            counts = task.count(sample, sample["label"], dataset.classes)
            scores = task.scores(counts, dataset.classes)
            assert scores.miou == 1 and scores.pixel_accuracy == 1

    def test_an_unknown_split_is_one_line_that_lists_the_splits(self, tree):
        with pytest.raises(UserError, match="--split third: not in .*. Give one of train, val"):
            build_dataset(*tree, "third")

    def test_packed_it_is_the_same_and_has_no_fault(self, tree, capsys):
        name, root = tree
        data_set = find_data_set(name, root)
        if not data_set.images:  # no known number of images, which a tiny tree cannot have
            check_data(data_set, root, workers=1)
            assert "no fault" in capsys.readouterr().out
        plain = build_dataset(name, root, "val", packed=False)
        pack_split(plain, root, "val", workers=1, overwrite=False)
        packed = build_dataset(name, root, "val")
        assert str(packed_path(root, "val")) in packed.source
        for one, other in zip(plain, packed, strict=True):
            assert one.keys() == other.keys()
            assert all(np.array_equal(one[key], other[key]) for key in one)

    def test_its_server_takes_one_file_an_image(self, tree):
        server = find_data_set(*tree).server
        if server is not None:
            assert server.file.count("{}") == 1 and server.ending in (".zip", ".tgz")
