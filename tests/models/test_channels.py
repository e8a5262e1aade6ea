"""`channels` and `hidden`: as planned where they are not given, and what is given otherwise."""

import jax
import jax.numpy as jnp
import pytest
from fakes import make_model, shapes_of

import giung2_ext.models
from giung2_ext.core import discovery
from giung2_ext.core.errors import Refusal
from giung2_ext.models import alexnet, conv, lenet5, vgg

IMAGE = (8, 8, 1)
NAMES = {
    "resnet": dict(planes=(4, 5, 6, 7)),
    "resnet, of planes that do not change": dict(planes=(4, 4, 4, 4), stem="small"),
    "resnet_cifar": {},
    "resnet_cifar, pad": dict(shortcut="pad"),
    "wide_resnet": {},
    "vgg": {},
    "vgg, dense": dict(head="dense", norm=False),
    "conv": dict(depth=4),
    "alexnet": {},
    "lenet5": {},
}


def widths(params, kind):
    layers = sorted((n for n in params if n.startswith(kind)), key=lambda n: int(n.rpartition("_")[2]))
    return tuple(params[name]["kernel"].shape[-1] for name in layers)


def programs(model):
    """What initialisation and a forward pass compute, as text."""
    init = jax.make_jaxpr(model.init)(jax.random.key(0), jnp.zeros((1, *IMAGE)))
    params, rest = shapes_of(model, IMAGE)
    return str(init), str(jax.make_jaxpr(model.apply)({"params": params, **rest}, jnp.zeros((2, *IMAGE))))


@pytest.mark.parametrize("case", NAMES)
def test_channels_as_planned_are_the_same_network_to_the_last_operation(case):
    name, options = case.partition(",")[0], NAMES[case]
    plain = make_model(name, **options)
    params, _ = shapes_of(plain, IMAGE)
    given = {"channels": widths(params, "Conv")}
    if "hidden" in discovery.options(giung2_ext.models, "model", name):
        given["hidden"] = widths(params, "Dense")
    assert programs(make_model(name, **options, **given)) == programs(plain)


@pytest.mark.parametrize("case", NAMES)
def test_another_number_of_widths_than_there_are_layers_is_refused(case):
    name, options = case.partition(",")[0], NAMES[case]
    params, _ = shapes_of(make_model(name, **options), IMAGE)
    kinds = {"channels": ("Conv", "convolutions"), "hidden": ("Dense", "hidden layers")}
    for option in set(kinds) & set(discovery.options(giung2_ext.models, "model", name)):
        kind, layers = kinds[option]
        planned = widths(params, kind)
        for wrong in (planned[:-1], (*planned, 4)):
            if wrong:
                with pytest.raises(Refusal, match=rf"has {len(planned)} {layers}, and {option}"):
                    shapes_of(make_model(name, **options, **{option: wrong}), IMAGE)
        with pytest.raises(Refusal, match=rf"{option} .* at least 1 each"):
            shapes_of(make_model(name, **options, **{option: (0, *planned[1:])}), IMAGE)


def test_a_plan_whose_channels_do_not_change_has_shortcuts_where_the_image_shrinks():
    options = NAMES["resnet, of planes that do not change"]
    params, _ = shapes_of(make_model("resnet", **options), IMAGE)
    assert len(widths(params, "Conv")) == 1 + 16 + 3
    params, _ = shapes_of(make_model("resnet", **options), (1, 1, 1))
    assert len(widths(params, "Conv")) == 1 + 16


@pytest.mark.parametrize(
    ("name", "different"),
    [("resnet_cifar", (3, 4, 3, 5, 6, 6, 7, 8, 8)), ("wide_resnet", (3, 4, 5, 5, 6, 7, 7, 8, 9, 9))],
)
def test_a_plan_decides_about_projections_whether_channels_are_equal_or_not(name, different):
    for channels in (different, (3,) * len(different)):
        params, _ = shapes_of(make_model(name, channels=channels), IMAGE)
        assert widths(params, "Conv") == channels


@pytest.mark.parametrize(
    ("shortcut", "channels"),
    [("projection", (4, 4, 1, 8, 8, 8, 16, 16, 16)), ("projection", (4, 4, 4, 8, 1, 8, 16, 16, 16)),
     ("pad", (1, 4, 4, 8, 8, 16, 16)), ("pad", (4, 4, 4, 8, 3, 16, 16))],
)  # fmt: skip
def test_a_sum_of_unequal_channels_is_refused_and_not_repeated(shortcut, channels):
    with pytest.raises(Refusal, match=r"a block and its shortcut are added and need equal channels"):
        shapes_of(make_model("resnet_cifar", shortcut=shortcut, channels=channels), IMAGE)


def test_layers_are_as_wide_as_is_said():
    params, _ = shapes_of(conv.build(5, channels=(3, 4), hidden=(6, 7)), IMAGE)
    assert (widths(params, "Conv"), widths(params, "Dense")) == ((3, 4), (6, 7))
    small = dict(plan="small", width=1 / 32)
    params, _ = shapes_of(vgg.build(5, head="dense", hidden=(6, 7), **small), IMAGE)
    assert widths(params, "Dense") == (6, 7)
    params, _ = shapes_of(alexnet.build(5, channels=(3, 4, 5, 6, 7), hidden=(8, 9)), IMAGE)
    assert (widths(params, "Conv"), widths(params, "Dense")) == ((3, 4, 5, 6, 7), (8, 9))
    params, _ = shapes_of(lenet5.build(5, channels=(3, 4), hidden=(6, 7)), IMAGE)
    assert (widths(params, "Conv"), widths(params, "Dense")) == ((3, 4), (6, 7))
