import pathlib
import re

import pytest
from fakes import REPOSITORY, shapes_of

import giung2_ext.models
from giung2_ext.core import discovery, trees
from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import arguments, flags
from giung2_ext.experiments.config import options_of

FILE = str(REPOSITORY / "configs/multiprize/cycles.py")
PUBLISHED = dict(
    lr=1.2e-3, epochs=50, test_freq=50, batch_size=60, dataset="mnist", arch_type="fc1", prune_percent=5.0,
    mini_batch=False, score=False, binarize=False,
)  # fmt: skip


def parse(*words):
    return flags.parse([f"--config={FILE}", *words], {"save": None}, "")[0]


def test_the_published_flags_have_their_defaults():
    assert arguments.open_file(FILE).defaults == PUBLISHED | {"smoke": False}


def test_without_flags_it_is_the_published_experiment():
    c = parse()
    assert (c.model.name, c.data.name, c.masks.prunable) == ("lenet", "mnist", "kernels")
    assert (c.feed.batch_size, c.optim.ni, c.evaluation.every) == (60, 50 * 916, 50)
    assert (c.optim.name, c.optim.lr, c.optim.weight_decay, c.optim.constant_lr) == (
        "adam",
        1.2e-3,
        1e-4,
        True,
    )
    expected = dict(every=916, percent=5.0, by="weights", binarise=False, rewind=True, score_rate=1.2e-3)
    assert options_of(c, "method") == expected


def test_every_published_flag_reaches_its_field():
    words = "--lr=0.01 --epochs=4 --test_freq=9 --batch_size=100 --dataset=cifar10 --prune_percent=10"
    c = parse(*words.split(), "--score", "--binarize", "--arch_type=conv6")
    assert (c.optim.lr, c.optim.ni, c.evaluation.every, c.feed.batch_size) == (0.01, 4 * 450, 9, 100)
    assert (c.data.name, c.model.name, c.model.depth) == ("cifar10", "conv", 6)
    expected = dict(every=450, percent=10.0, by="scores", binarise=True, rewind=True, score_rate=0.01)
    assert options_of(c, "method") == expected


def test_mini_batch_prunes_after_every_batch_of_one_epoch():
    c = parse("--mini_batch", "--dataset=cifar10")
    assert (c.optim.ni, c.method.every, c.method.rewind) == (750, 1, False)


# Parameters of the published networks, the classifier's of 10 classes.
SIZES = {
    ("fc1", "mnist"): 266_610,
    ("fc1", "cifar10"): 953_010,
    ("lenet5", "cifar10"): 62_006,
    ("AlexNet", "mnist"): 57_022_154,
    ("alexnet", "cifar10"): 57_023_306,
    ("resnet18", "cifar10"): 11_173_962,
    ("vgg16", "cifar10"): 134_301_514,
}


@pytest.mark.parametrize(("arch", "dataset"), SIZES)
def test_an_arch_type_is_the_published_network(arch, dataset):
    c = parse(f"--arch_type={arch}", f"--dataset={dataset}")
    model = discovery.build(
        giung2_ext.models, "model", c.model.name, num_classes=10, **options_of(c, "model")
    )
    image = (28, 28, 1) if dataset == "mnist" else (32, 32, 3)
    params, _ = shapes_of(model, image)
    assert sum(leaf.size for leaf in trees.present(params)) == SIZES[arch, dataset]


REFUSED = {
    "--arch_type=fc2": "unknown arch_type 'fc2'; known: alexnet, conv2, conv4, conv6, conv8, fc1, lenet5, "
    "resnet18, vgg16; did you mean 'fc1'?",
    "--dataset=digits": "unknown dataset 'digits'; known: cifar10, mnist",
    "--prune_ite=10": "unknown flag --prune_ite",
    "--epochs=2.5": "--epochs takes a whole number, got '2.5'",
    "--prune_rate=0.5": "density is the fraction kept",
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_the_experiment_does_not_know_is_refused(word):
    with pytest.raises(Refusal, match=re.escape(REFUSED[word])):
        parse(word)


def test_its_first_lines_tell_of_every_flag():
    first = pathlib.Path(FILE).read_text().split('"""')[1]
    assert [name for name in PUBLISHED if f"--{name}" not in first] == []
