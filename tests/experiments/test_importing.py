"""Other suites' files give the logits that they give there, and every name is accounted for."""

import io
import pickle

import jax
import numpy as np
import pytest
from etils import epath

import giung2_ext
from giung2_ext.core import masks as masking
from giung2_ext.core import trees
from giung2_ext.core.errors import Refusal
from giung2_ext.data.sources import imagenet2012
from giung2_ext.experiments import converting, importing
from giung2_ext.experiments.importing import Wishes
from giung2_ext.storage import tickets

torch = pytest.importorskip("torch", reason="PyTorch is an extra, absent here (2026-11-27)")
prune = pytest.importorskip("torch.nn.utils.prune", reason="PyTorch is an extra (2026-11-27)")
import torch_networks as networks  # noqa: E402

STAGES = (64, 128, 256, 512)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
JACKPOTS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
BIPROP = ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262))


def resnet(blocks=(3, 4, 6, 3), planes=STAGES, bottleneck=True, classes=1000, **options):
    options = dict(shortcut="downsample", large=True) | options
    return networks.drawn(networks.ResNet(blocks, planes, bottleneck, classes=classes, **options))


def resnet32(**options):
    return resnet(
        (5, 5, 5), (32, 64, 128), False, 10, large=False, **(dict(shortcut="pad", head="conv") | options)
    )


def saved(content, older=False):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not older)
    return buffer.getvalue()


def logits_there(network, images, pixels):
    mean, std = (torch.tensor(values)[:, None, None] for values in pixels)
    x = torch.tensor(images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        return network((x - mean) / std).numpy()


def images_of(side, channels=3):
    return np.random.default_rng(0).integers(0, 256, (2, side, side, channels), dtype=np.uint8)


def imported(tmp_path, content, **wishes):
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    ticket, _ = importing.open_any(epath.Path(path), Wishes(**wishes))
    return giung2_ext.Ticket(*ticket)


def check(ticket, network, images, pixels):
    here, there = ticket.apply(images), logits_there(network, images, pixels)
    assert there.std() > 1e-3
    np.testing.assert_allclose(here, there, atol=1e-4 * np.abs(there).max())


PLAIN = {
    "resnet50": (resnet, 97),
    "resnet18": (lambda: resnet((2, 2, 2, 2), bottleneck=False, classes=7), 75),
    "wide_resnet50_2": (lambda: resnet(wide=2), 65),
    "vgg16": (lambda: networks.drawn(networks.VGG(networks.VGG.PLAN_16, False, 1000)), 64),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_state_dict_of_torchvision_gives_the_same_logits(name, tmp_path):
    """Images of odd sides: strides and poolings pad unlike `same` there."""
    make, side = PLAIN[name]
    network = make()
    ticket = imported(
        tmp_path,
        saved(network.state_dict(), older=True),
        data_name="imagenet2012" * (side > 40) or "cifar10",
    )
    check(ticket, network, images_of(side), IMAGENET)
    assert ticket.density() == pytest.approx(1, abs=1e-6)  # of 68 million draws one is 0
    assert ticket.lineage["parameters"] == sum(p.numel() for p in network.parameters())


def pruned(network, kept=0.3, seed=1):
    """{module: bool mask} of all convolutions and dense layers, put on the weights."""
    generator, masks = torch.Generator().manual_seed(seed), {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            masks[name] = torch.rand(module.weight.shape, generator=generator) < kept
            module.weight.data *= masks[name]
    return masks


def test_rpgs_checkpoint_gives_its_logits_and_its_masks(tmp_path):
    network = resnet(classes=12)
    masks = pruned(network)
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    pruner = {"backward_masks": list(masks.values()), "S": [0.7] * 54, "step": 112600}
    content = saved(
        {"epoch": 90, "arch": ("resnet50", "classic", 12), "state_dict": state, "pruner": pruner}
    )
    ticket = imported(tmp_path, content, data_name="imagenet2012")
    check(ticket, network, images_of(97), IMAGENET)
    assert ticket.lineage["kept"] == sum(int(m.sum()) for m in masks.values())
    assert ticket.lineage["prunable_rule"] == "kernels"
    assert ticket.lineage["step"] == 112600
    first = np.asarray(masks["conv1"].permute(2, 3, 1, 0))
    np.testing.assert_array_equal(ticket.masks["Conv_0"]["kernel"], first)
    np.testing.assert_array_equal(ticket.masks["cls"]["kernel"], np.asarray(masks["fc"].T))
    pruner["backward_masks"][0] = None  # a layer that it left dense
    dense = imported(tmp_path, saved({"state_dict": state, "pruner": pruner}), data_name="imagenet2012")
    assert "Conv_0/kernel" not in dense.layers()
    assert dense.lineage["prunable_rule"] == "inner"
    pruner["backward_masks"].pop()
    with pytest.raises(Refusal, match="53 masks of weights, the network 54"):
        imported(tmp_path, saved({"state_dict": state, "pruner": pruner}), data_name="imagenet2012")


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize("name", ["resnet32", "vgg19"])
def test_a_jackpot_of_either_generation_gives_its_logits(name, generation, tmp_path):
    network = (
        resnet32() if name == "resnet32" else networks.drawn(networks.VGG(networks.VGG.PLAN, True, 100))
    )
    state, rates, weights = dict(network.state_dict()), [], {}
    generator = torch.Generator().manual_seed(3)
    for place, module in network.named_modules():
        if not isinstance(module, torch.nn.Conv2d) or place in ("fc", "classifier"):
            continue
        scores = torch.randn(module.weight.shape, generator=generator)
        rates.append(0.5 + 0.4 * (len(rates) % 2))  # of another layer it would be another mask
        mask = torch.ones(scores.numel(), dtype=torch.bool)
        mask[scores.abs().flatten().argsort(stable=True)[: int(rates[-1] * len(mask))]] = False
        mask = mask.reshape(scores.shape)
        weights[place] = int(mask.sum())
        state |= {f"{place}.mask": scores} | ({f"{place}.b_mask": mask.float()} if generation == 2 else {})
        module.weight.data = module.weight.data * mask
    ticket = imported(tmp_path, saved({"state_dict": state, "best_acc": torch.tensor(93.7), "cfg": rates}))
    check(ticket, network, images_of(32), JACKPOTS)
    assert ticket.lineage["kept"] == sum(weights.values())
    assert ticket.lineage["prunable_rule"] == "conv"
    assert ticket.lineage["data"]["name"] == {"resnet32": "cifar10", "vgg19": "cifar100"}[name]


@pytest.mark.parametrize("together", [False, True], ids=["layer", "global"])
@pytest.mark.parametrize("name", ["conv4", "resnet18"])
def test_a_multi_prize_ticket_gives_its_logits(name, together, tmp_path):
    """Random weights: what the network sees is +-alpha where the largest scores are."""
    network = networks.drawn(networks.ConvN(4, 10))
    if name == "resnet18":
        network = resnet(
            (2, 2, 2, 2), (16, 32, 64, 128), False, 10, large=False, shortcut="shortcut", head="bare"
        )
    generator, state = torch.Generator().manual_seed(3), {}
    modules = {n: m for n, m in network.named_modules() if isinstance(m, torch.nn.Conv2d)}
    scores = {n: torch.randn(m.weight.shape, generator=generator) for n, m in modules.items()}
    state = network.state_dict() | {f"{n}.scores": s for n, s in scores.items()}
    content = {f"module.{key}": value.clone() for key, value in state.items()}
    everything = torch.cat([s.abs().flatten() for s in scores.values()]).sort().values
    for n, module in modules.items():
        size = scores[n].abs()
        cut = everything if together else size.flatten().sort().values
        mask = size > cut[int((1 - 0.3) * cut.numel()) - 1]
        count = mask.sum() if together else int(0.3 * size.numel())
        alpha = (module.weight.data.abs() * mask).sum() / count
        module.weight.data = alpha * module.weight.data.sign() * mask
    kind = "GlobalSubnetConv" if together else "SubnetConv"
    ticket = imported(
        tmp_path, saved({"state_dict": content, "conv_type": kind, "prune_rate": 0.3}), data_name="cifar10"
    )
    check(ticket, network, images_of(32), BIPROP)
    assert ticket.density() == pytest.approx(0.3, abs=1e-3)
    kernels = [
        np.unique(np.abs(k)) for n, k in trees.named_leaves(ticket.params).items() if n.endswith("kernel")
    ]
    assert all(len(values) == 2 for values in kernels)


def test_masks_of_torch_prune_are_the_masks(tmp_path):
    network = resnet((2, 2, 2, 2), bottleneck=False, classes=5)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            prune.random_unstructured(module, "weight", 0.6)
    ticket = imported(tmp_path, saved(network.state_dict()), data_name="imagenet2012")
    check(ticket, network, images_of(75), IMAGENET)
    assert ticket.density() == pytest.approx(0.4, abs=1e-3)


# --- what does not fit


@pytest.fixture(scope="module")
def small():
    return resnet((1, 1, 1), (4, 8, 16), False, 10, large=False, shortcut="shortcut").state_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer2.0.bn1.running_var"), "it lacks layer2.0.bn1.running_var"),
        (lambda s: s.update({"layer1.0.se.weight": torch.ones(3)}), "it has layer1.0.se.weight, which"),
        (
            lambda s: s.update({"fc.weight": torch.ones(10, 15)}),
            r"fc.weight has shape \(10, 15\), the network's has \(10, 16\)",
        ),
        (
            lambda s: s.update({"conv9.weight_mask": torch.ones(3)}),
            "it has conv9.weight_mask, which the network",
        ),
        (lambda s: s.pop("conv1.weight"), "no network of this suite has layers called"),
        (lambda s: s.pop("fc.weight"), "no classifier; looked for fc.weight"),
    ],
)
def test_what_is_missing_left_over_or_of_another_shape_is_named(change, message, small, tmp_path):
    state = dict(small)
    change(state)
    with pytest.raises(Refusal, match=message):
        imported(tmp_path, saved(state))


def test_what_a_file_does_not_tell_must_be_said(small, tmp_path):
    state = small | {"fc.weight": torch.ones(43, 16), "fc.bias": torch.ones(43)}
    with pytest.raises(Refusal, match="43 classes: say which set it is of, --data_name"):
        imported(tmp_path, saved(state))
    with pytest.raises(Refusal, match="no importer knows what this is"):
        imported(tmp_path, saved({"a": 3}))


@pytest.mark.parametrize(
    "content",
    [
        dict(pruner={"backward_masks": 7}),
        dict(pruner={"backward_masks": [["a"]]}),
        dict(cfg=3.5),
    ],
    ids=str,
)
def test_what_is_not_made_like_its_format_is_said_to_be_so(content, small, tmp_path):
    state = dict(small)
    if "cfg" in content:
        state |= {"conv1.mask": state["conv1.weight"]}
    with pytest.raises(Refusal, match=r"file.pt"):
        imported(tmp_path, saved({"state_dict": state} | content))


def test_a_resnet_with_another_name_of_its_classifier_gives_its_logits(tmp_path):
    network = resnet((2, 2, 2), (8, 16, 32), False, 10, large=False, shortcut="shortcut")
    state = {k.replace("fc.", "linear."): v for k, v in network.state_dict().items()}
    check(
        imported(tmp_path, saved(state)),
        network,
        images_of(32),
        ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    )


def test_what_a_network_was_taken_for_is_said_where_it_does_not_fit(small, tmp_path):
    with pytest.raises(Refusal, match=r"channels, those of digits have 1: --data_name=NAME"):
        imported(tmp_path, saved(small), data_name="digits")
    for std in ((0.0, 1.0, 1.0), (float("nan"),) * 3, (-1.0,) * 3):
        with pytest.raises(Refusal, match="--std must be above 0"):
            imported(tmp_path, saved(small), std=std)
    lenet = {"linear.0.weight": torch.ones(30, 64), "linear.0.bias": torch.ones(30)}
    lenet |= {"linear.2.weight": torch.ones(10, 30), "linear.2.bias": torch.ones(10)}
    with pytest.raises(Refusal, match=r"taken for lenet on images of cifar10; --data_name=NAME or --like="):
        imported(tmp_path, saved(lenet))
    ticket = imported(tmp_path, saved(lenet), data_name="digits")
    assert float(ticket.statistics["image_stats"]["s"][0]) == pytest.approx(16 / 255)
    large = imported(tmp_path, saved(small), data_name="imagenet2012")
    np.testing.assert_allclose(large.statistics["image_stats"]["m"], imagenet2012.MEAN)


def test_a_wish_about_another_kind_of_file_is_refused(small, tmp_path):
    for wish in ("onto", "cycle"):
        with pytest.raises(Refusal, match=f"--{wish} says nothing about .*a state_dict"):
            imported(tmp_path, saved(small), **{wish: 1})


def test_what_is_odd_about_a_file_is_said(small, tmp_path, capsys):
    state = small | {"layer1.0.conv1.weight": small["layer1.0.conv1.weight"] * float("nan")}
    path = str(write(tmp_path / "nan.pt", saved(state)))
    wishes = Wishes(data_name="cifar100", mean=(0.5, 0.25, 0.125), std=(0.5, 0.5, 0.5))
    converting.convert(path, str(tmp_path / "nan"), wishes)
    told = capsys.readouterr().out
    assert "mean 0.5, 0.25, 0.125, std 0.5, 0.5, 0.5" in told
    assert "warning: cifar100 has 100 classes and this network 10" in told
    assert "warning: 144 numbers are NaN or infinite, in params/Conv_1/kernel" in told
    with pytest.raises(Refusal, match="one number for each of 3 channels"):
        imported(tmp_path, saved(small), mean=(0.5,))


def test_a_mask_of_anything_but_0_and_1_is_refused(small, tmp_path):
    state = dict(small)
    state["conv1.weight_orig"] = state.pop("conv1.weight")
    state["conv1.weight_mask"] = torch.full_like(state["conv1.weight_orig"], 0.5)
    with pytest.raises(Refusal, match=r"mask conv1.weight_mask of .*file.pt is not 0 or 1 everywhere"):
        imported(tmp_path, saved(state))
    lacking = small | {f"{n}.mask": small[f"{n}.weight"] for n in ("conv1", "layer1.0.conv1")}
    with pytest.raises(Refusal, match="not every layer with scores has a b_mask"):
        imported(tmp_path, saved({"state_dict": lacking | {"conv1.b_mask": torch.ones(4, 3, 3, 3)}}))


def test_zeros_of_a_state_dict_without_masks_are_pruned(small, tmp_path):
    state = small | {"conv1.weight": small["conv1.weight"] * (torch.arange(4) > 0)[:, None, None, None]}
    ticket = imported(tmp_path, saved(state))
    assert not ticket.masks["Conv_0"]["kernel"][..., 0].any()
    assert ticket.masks["Conv_0"]["kernel"][..., 1:].all()
    assert ticket.lineage["prunable"] - ticket.lineage["kept"] == 27


def test_pixels_are_the_sets_own_where_a_file_does_not_tell(small, tmp_path):
    ticket = imported(tmp_path, saved(small))
    np.testing.assert_allclose(ticket.statistics["image_stats"]["m"], JACKPOTS[0], atol=1e-6)
    state = {"linear.0.weight": torch.ones(16, 784), "linear.2.weight": torch.ones(10, 16)}
    one = imported(tmp_path, saved(state), data_name="mnist")
    assert one.apply(images_of(28, 1)).shape == (2, 10)


@pytest.mark.parametrize(
    ("arch", "found"), [("cResNet18_BinAct", "binary"), ("cResNet18_v2", None), ("cResNet20", None)]
)
def test_the_architecture_of_a_multi_prize_ticket_is_looked_at(arch, found, small, tmp_path):
    state = small | {f"{k.removesuffix('weight')}scores": v for k, v in small.items() if v.ndim == 4}
    content = saved({"state_dict": state, "prune_rate": 0.5, "conv_type": "SubnetConv", "arch": arch})
    if found is None:
        with pytest.raises(Refusal, match=f"is a {arch}, a network that this suite has not"):
            imported(tmp_path, content)
    else:
        assert imported(tmp_path, content).lineage["model"]["activation"] == found


# --- masks alone


def test_a_list_of_masks_is_put_onto_the_weights_of_a_ticket(small, tmp_path):
    dense = converting.convert(
        str(write(tmp_path / "dense.pt", saved(small))), str(tmp_path / "dense"), Wishes()
    )
    base, draw = tickets.read_ticket(dense), np.random.default_rng(0)
    masks = [
        np.ones(v.shape) if v.ndim == 1 else (draw.random(v.shape) < 0.5).astype(np.float64)
        for key, v in small.items()
        if key.endswith("weight")
    ]
    content = pickle.dumps(masks)
    with pytest.raises(Refusal, match="masks and no weights: name a ticket that has them, --onto=TICKET"):
        imported(tmp_path, content)
    ticket = imported(tmp_path, content, onto=str(dense))
    np.testing.assert_array_equal(
        ticket.masks["Conv_0"]["kernel"], masks[0].transpose(2, 3, 1, 0).astype(bool)
    )
    assert ticket.lineage["parents"] == {"weights": base.digest}
    kept = masking.apply(ticket.masks, base.params)
    assert jax.tree.all(jax.tree.map(np.array_equal, ticket.params, jax.device_get(kept)))
    half = converting.convert(
        str(write(tmp_path / "m.pkl", content)), str(tmp_path / "half"), Wishes(onto=str(dense))
    )
    narrow = importing.put_masks(
        {"Conv_0/kernel": tickets.read_ticket(half).masks["Conv_0"]["kernel"]}, str(half), {}, "narrow"
    )
    assert narrow.meta["kept"] == tickets.read_meta(half)["kept"]  # other leaves keep their masks
    whole = pickle.dumps([np.ones_like(mask) for mask in masks])
    with pytest.raises(Refusal, match=r"weights that .* has pruned"):
        imported(tmp_path, whole, onto=str(half))
    with pytest.raises(Refusal, match="is another ticket: choose another folder"):
        converting.convert(str(tmp_path / "dense.pt"), str(tmp_path / "half"), Wishes())
    masks[1][0] = 0
    with pytest.raises(Refusal, match="prunes scales of normalisation"):
        imported(tmp_path, pickle.dumps(masks), onto=str(dense))


def write(path, content):
    path.write_bytes(content)
    return path
