"""Every config file builds what it names, and the rows of published tables have their densities."""

import functools

import jax
import pytest
from fakes import REPOSITORY, shapes_of

import giung2_ext.models
from giung2_ext.core import discovery
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.experiments.bounds import check_config
from giung2_ext.experiments.building import build_method, check_groups, rate_of
from giung2_ext.experiments.config import complete, load_config, options_of
from giung2_ext.experiments.start import check_start

CONFIGS = REPOSITORY / "configs"
FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.py"))
IMAGES = {
    "digits": (10, (8, 8, 1)),
    "mnist": (10, (28, 28, 1)),
    "cifar10": (10, (32, 32, 3)),
    "cifar100": (100, (32, 32, 3)),
    "imagenet2012": (1000, (224, 224, 3)),
}


def load(text):
    config = complete(load_config(f"{CONFIGS}/{text}"))
    check_config(config)
    check_start(config)
    return config


@functools.cache
def shapes(name, options, classes, image):
    model = discovery.build(giung2_ext.models, "model", name, num_classes=classes, **dict(options))
    return shapes_of(model, image)[0]


def params_of(config):
    """The parameters' shapes of the network that such a config trains."""
    classes, image = IMAGES[config.data.name]
    size = config.data.get("image_size", image[0])
    options = tuple(sorted(options_of(config, "model").items()))
    return shapes(config.model.name, options, classes, (size, size, image[2]))


def prunable(config):
    return masking.size(masking.dense(params_of(config), config.masks.prunable))


@pytest.mark.parametrize("smoke", ["", "smoke"])
@pytest.mark.parametrize("file", FILES)
def test_a_config_builds_its_network_and_its_method(file, smoke):
    config = load(f"{file}:{smoke}")
    assert prunable(config) > 0
    assert build_method(config).init
    assert float(rate_of(config)(jax.numpy.int32(config.optim.ni // 2))) > 0


@pytest.mark.parametrize("file", [file for file in FILES if "/" in file])
def test_smoke_takes_few_steps_on_the_images_that_ship_with_the_package(file):
    config = load(f"{file}:smoke")
    assert config.optim.ni <= 200
    assert config.evaluation.every <= max(config.optim.ni, 100)
    assert (
        config.data.name == "digits" or file == "imp/resnet20_cifar10.py" or file.startswith("lottery/len")
    )


# File and arguments, density, epochs and steps of each, and the weights that may be pruned.
SEARCHES = [
    ("jackpots/lenet_mnist.py:density=0.02", 0.02, 10, 214, 265_200),
    ("jackpots/resnet32_cifar10.py", 0.1, 30, 175, 1_844_064),
    ("jackpots/resnet32_cifar10.py:density=0.05,epochs=160", 0.05, 160, 175, 1_844_064),
    ("jackpots/resnet32_cifar100.py:density=0.05,epochs=160", 0.05, 160, 175, 1_844_064),
    ("jackpots/vgg19_cifar10.py:epochs=160", 0.1, 160, 175, 20_018_880),
    ("jackpots/vgg19_cifar100.py:density=0.05", 0.05, 30, 175, 20_018_880),
    ("jackpots/resnet50_imagenet.py:epochs=60", 0.2, 60, 4965, 23_454_912),
    ("multiprize/lenet_mnist.py:density=0.1", 0.1, 10, 214, 266_200),
    ("multiprize/conv_cifar10.py:depth=2", 0.5, 100, 351, 4_300_992),
    ("multiprize/conv_cifar10.py:depth=8,density=0.1,binary", 0.1, 100, 351, 5_275_840),
    ("multiprize/vgg_small_cifar10.py", 0.05, 100, 351, 4_656_512),
    ("multiprize/vgg_small_cifar10.py:density=0.25,binary,wide", 0.25, 100, 351, 7_249_120),
    ("multiprize/resnet18_cifar10.py:epochs=50", 0.2, 50, 175, 11_164_352),
    ("multiprize/wrn50_imagenet.py", 0.2, 100, 4965, 68_814_016),
    ("multiprize/wrn34_imagenet.py", 0.4, 120, 4965, 48_270_528),
]


@pytest.mark.parametrize(("text", "density", "epochs", "steps", "size"), SEARCHES)
def test_a_row_of_a_table_has_its_density_and_its_length(text, density, epochs, steps, size):
    config = load(text)
    assert config.masks.density == density
    assert config.optim.ni == epochs * steps
    assert config.evaluation.every == steps
    assert prunable(config) == size


# File and arguments, and what trains the scores: optimizer, rate, momentum, decay, smoothing, warm-up; the
# weights, how they are scaled, whether normalisation learns.
NORMAL, SIGNS = ("kaiming_normal", "kept"), ("signed_constant", "none")
RECIPES = [
    ("jackpots/lenet_mnist.py", ("sgd", 0.1, 0.9, 5e-4, 0.0, 0.0), ("model", "none"), None),
    ("jackpots/resnet32_cifar100.py", ("sgd", 0.1, 0.9, 5e-4, 0.0, 0.0), ("model", "none"), None),
    ("jackpots/vgg19_cifar10.py", ("sgd", 0.1, 0.9, 5e-4, 0.0, 0.0), ("model", "none"), None),
    ("jackpots/resnet50_imagenet.py", ("sgd", 0.1, 0.9, 1e-4, 0.0, 0.0), ("model", "none"), None),
    ("multiprize/lenet_mnist.py", ("sgd", 0.1, 0.9, 1e-4, 0.0, 0.0), NORMAL, False),
    ("multiprize/conv_cifar10.py", ("sgd", 0.1, 0.9, 1e-4, 0.0, 0.0), NORMAL, False),
    ("multiprize/conv_cifar10.py:binary", ("adam", 0.1, 0.9, 0.0, 0.0, 0.0), NORMAL, False),
    ("multiprize/vgg_small_cifar10.py", ("adam", 0.1, 0.9, 0.0, 0.0, 0.0), NORMAL, False),
    ("multiprize/vgg_small_cifar10.py:binary,wide", ("adam", 0.1, 0.9, 0.0, 0.0, 0.0), NORMAL, False),
    ("multiprize/vgg_small_cifar10.py:binary,wide,norms", ("adam", 2e-4, 0.9, 0.0, 0.0, 0.0), NORMAL, True),
    ("multiprize/resnet18_cifar10.py:norms", ("sgd", 0.1, 0.9, 5e-4, 0.0, 0.0), NORMAL, True),
    ("multiprize/wrn50_imagenet.py:norms", ("sgd", 0.256, 0.875, 2.0**-15, 0.1, 0.05), SIGNS, True),
    ("multiprize/wrn34_imagenet.py:norms", ("adam", 2e-4, 0.9, 0.0, 0.1, None), NORMAL, True),
]


@pytest.mark.parametrize(("text", "optimizer", "weights", "norms"), RECIPES)
def test_a_row_of_a_table_is_searched_as_published(text, optimizer, weights, norms):
    config = load(text)
    optim = config.optim
    warmup = None if optim.constant_lr else optim.warmup
    found = (optim.name, optim.lr, optim.momentum, optim.weight_decay, optim.label_smoothing, warmup)
    assert found == optimizer
    assert (config.start.weights, config.start.scale_fan) == weights
    assert config.method.get("others") == norms
    binary = "binary" in text or "wrn34" in text
    assert config.model.get("activation", "relu") == ("binary" if binary else "relu")
    assert config.feed.batch_size == (128 if "conv" in text or "small" in text else 256)
    assert config.model.get("group_size", 0) in (0, config.feed.batch_size)


KEPT = [
    ("multiprize/vgg_small_cifar10.py", 0.23),
    ("multiprize/wrn50_imagenet.py", 13.7),
    ("multiprize/wrn34_imagenet.py", 19.3),
]


@pytest.mark.parametrize(("text", "millions"), KEPT)
def test_a_ticket_keeps_as_many_weights_as_published(text, millions):
    config = load(text)
    assert config.masks.density * prunable(config) / 1e6 == pytest.approx(millions, rel=0.015)


def test_jackpots_search_the_weights_that_their_pretraining_trains():
    for file in (file for file in FILES if file.startswith("pretrain/")):
        for smoke in ("", ":smoke"):
            trained, found = load(file + smoke), load(file.replace("pretrain", "jackpots") + smoke)
            for section in ("model", "data"):
                assert found[section].to_dict() == trained[section].to_dict(), file
            assert found.masks.prunable == trained.masks.prunable == "body"


def test_the_arguments_of_jackpots_choose_the_rule_or_the_control():
    file = "jackpots/lenet_mnist.py"
    for other, usual in ((file, "constant"), ("jackpots/vgg19_cifar10.py", "quartic")):
        methods = [load(other + more).method for more in ("", ":rule=threshold", ":restriction=cosine")]
        assert [m.restriction for m in methods] == [usual, "constant", "cosine"]
        assert [m.rule for m in methods] == ["swap", "threshold", "swap"]
    with pytest.raises(Refusal, match="makes none"):
        build_method(load("jackpots/vgg19_cifar10.py:rule=threshold,restriction=quartic"))
    for control in ("magnitude", "random"):
        config = load(f"{file}:mask={control},density=0.02")
        assert (config.method.name, config.optim.ni) == ("jackpots", 0)
        assert (config.masks.criterion, config.masks.density) == (control, 0.02)
    tuned = load("jackpots/resnet50_imagenet.py:tune=10")
    assert (tuned.method.name, tuned.masks.density, tuned.optim.ni) == ("ticket", 1.0, 10 * 4965)
    assert (tuned.optim.lr, tuned.optim.weight_decay) == (0.01, 0.0)


@pytest.mark.parametrize(
    "file", [file for file in FILES if file.startswith("multiprize/") and "cycl" not in file]
)
def test_every_layer_of_a_multiprize_ticket_is_random_and_binary_unless_told_otherwise(file):
    config = load(file)
    assert config.method.binarise
    assert not config.method.others
    assert config.start.weights in ("kaiming_normal", "signed_constant")
    assert config.masks.prunable == "kernels"  # a head of zeros is drawn too
    assert not config.model.get("zero_init", False)  # such scales would stay 0
    other = load(f"{file}:weights=signed_constant,scale_fan=none")
    assert (other.start.weights, other.start.scale_fan) == ("signed_constant", "none")


def test_binary_activations_norms_and_edge_popup_are_the_published_variants():
    for name in ("conv_cifar10", "vgg_small_cifar10", "resnet18_cifar10", "wrn50_imagenet"):
        config = load(f"multiprize/{name}.py:binary,norms,edge_popup")
        assert config.model.activation == "binary"
        assert config.model.get("norm", True)
        assert (config.method.others, config.method.binarise) == (True, False)
        assert (config.optim.name, config.optim.weight_decay) == ("adam", 0.0)


# --- weights and masks together

DYNAMIC = (
    "rigl",
    "set",
    "snfs",
    "gradual",
    "ste",
    "rpg",
    "static",
    "magnitude",
    "snip",
    "grasp",
    "synflow",
)


@pytest.mark.parametrize("smoke", ["", ",smoke"])
@pytest.mark.parametrize(
    "name", ["digits", "lenet_mnist", "resnet32_cifar10", "vgg19_cifar10", "wrn22_cifar10"]
)
def test_every_method_of_a_dynamic_config_comes_to_its_density(name, smoke):
    for kind in DYNAMIC:
        config = load(f"dynamic/{name}.py:method={kind},density=0.05{smoke}")
        method = build_method(config)
        if kind in ("gradual", "ste", "rpg"):
            assert config.method.density == 0.05
            assert config.masks.criterion == "none"
            assert method.settled(config.optim.ni)
            assert not method.settled(config.optim.ni // 2)
        else:
            assert config.masks.density == 0.05
            assert config.masks.criterion == (kind if kind in DYNAMIC[-4:] else "random")
            assert config.masks.allocation == ("global" if kind in DYNAMIC[-4:] else "erk")
            assert (method.due is not None) == (kind in ("rigl", "set", "snfs"))
            assert method.due is None or not any(
                map(method.due, range(int(0.81 * config.optim.ni), config.optim.ni))
            )


@pytest.mark.parametrize(
    ("density", "weight", "tolerance"), [(0.2, 0.5, 0.2), (0.1, 0.5, 0.1), (0.05, 3, 0.2), (0.02, 4, 0.2)]
)
def test_rpgs_rows_are_the_published_ones(density, weight, tolerance):
    config = load(f"rpg/resnet50_imagenet.py:density={density}")
    assert (config.method.density, config.method.rank_weight, config.method.tolerance) == (
        density,
        weight,
        tolerance,
    )
    assert (config.method.rank_in, config.method.group, config.model.group_size) == ("grow", 128, 128)
    assert (config.optim.ni, config.feed.batch_size, config.optim.lr) == (125_100, 1024, 0.4)
    assert (config.optim.label_smoothing, config.optim.weight_decay, config.optim.warmup) == (
        0.1,
        1e-4,
        0.05,
    )
    assert prunable(config) == 25_502_912
    method = build_method(config)
    assert [step + 1 for step in range(112_400, 125_100) if method.due(step)] == [112_500, 112_600, 112_700]
    assert [n for n in (112_599, 112_600) if method.settled(n)] == [112_600]
    with pytest.raises(Refusal, match="is no published row"):
        load("rpg/resnet50_imagenet.py:density=0.3")


def test_rigls_rows_are_the_published_ones():
    config = load("dynamic/resnet50_imagenet.py:density=0.1,times=5")
    assert (config.optim.ni, config.method.stop, config.method.every) == (160_000, 125_000, 100)
    assert config.optim.milestones == (46_800, 109_200, 140_400)
    assert (config.optim.lr, config.optim.nesterov, config.optim.decay_on) == (1.6, True, "kernels")
    assert (config.masks.allocation, config.masks.density, prunable(config)) == ("erk", 0.1, 25_502_912)
    uniform = load("dynamic/resnet50_imagenet.py:allocation=uniform")
    assert prunable(uniform) == 25_502_912 - 7 * 7 * 3 * 64
    wide = load("dynamic/wrn22_cifar10.py:density=0.05")
    assert (prunable(wide), wide.optim.milestones) == (1_076_912, (30_000, 60_000))
    gradual = load("dynamic/resnet50_gradual.py:criterion=saliency")
    method = build_method(gradual)
    assert [s for s in range(0, 31_200) if method.due(s)] == list(range(11_000, 25_001, 1_000))
    assert (gradual.optim.ni, gradual.method.criterion, gradual.method.allocation) == (
        31_200,
        "saliency",
        "uniform",
    )
    structured = load("dynamic/resnet50_gradual.py:structure=2:4,density=0.5")
    assert build_method(structured).due is not None
    assert load("dynamic/resnet50_gradual.py:method=ste").method.name == "ste"


def test_arguments_that_would_do_nothing_are_refused():
    for text in ("digits.py:method=rpg,allocation=erk", "digits.py:method=snip,drop=0.1"):
        with pytest.raises(Refusal, match=r"--allocation|--drop"):
            load(f"dynamic/{text}")
    with pytest.raises(Refusal, match="--rank_weight is rpg's"):
        load("dynamic/lenet_mnist.py:method=set,rank_weight=0.0")


def test_groups_of_gradients_are_whole_and_made_of_whole_groups_of_batchnorm():
    config = load("rpg/resnet50_imagenet.py")
    check_groups(config, build_method(config))
    for group in (-128, 100, 64):
        config.method.group = group
        with pytest.raises(Refusal, match=f"group={group} does not divide a batch of 1024, in whole Batch"):
            check_groups(config, build_method(config))


def test_deit_s_prunes_the_matrices_of_its_blocks():
    for method in ("rpg", "rigl"):
        config = load(f"rpg/deit_s_imagenet.py:method={method}")
        assert (config.optim.name, config.optim.decay_on, prunable(config)) == (
            "adamw",
            "kernels",
            21_233_664,
        )
