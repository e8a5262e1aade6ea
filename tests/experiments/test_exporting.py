"""Export, import, export: the same bytes, and the same ticket to the digest."""

import jax
import ml_dtypes
import numpy as np
import pytest
from etils import epath
from fakes import CLASSES, SMALL, make_model, random_variables, scattered

import giung2_ext
from giung2_ext.core import masks as masking
from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import exporting, importing
from giung2_ext.experiments.importing import Wishes
from giung2_ext.storage import tickets, torch_files

IMAGES = {"lenet": (8, 8, 3), "conv": (32, 32, 3), "resnet": (64, 64, 3)}
MODELS = {
    "resnet": SMALL["resnet"] | dict(padding="torch", head="biased"),
    "resnet_cifar": SMALL["resnet_cifar"] | dict(shortcut="projection"),
    "vgg": SMALL["vgg"],
    "conv": {},
    "lenet": SMALL["lenet"],
    "vit": SMALL["vit"],
    "wide_resnet": SMALL["wide_resnet"],
}


def make_ticket(name, density=0.3):
    options, image = MODELS[name], IMAGES.get(name, (32, 32, 3))
    found = jax.device_get(random_variables(make_model(name, **options), image))
    params = found.pop("params")
    masks = scattered(params, density)
    params = jax.device_get(masking.apply(masks, params))
    found["image_stats"] = {"m": np.float32([0.1, 0.2, 0.3]), "s": np.float32([0.4, 0.5, 0.6])}
    lineage = {
        "seed": 3,
        "step": 5,
        "parents": {"matching": "abc"},
        "prunable_rule": "kernels",
        "model": {"name": name, **{k: list(v) if type(v) is tuple else v for k, v in options.items()}},
        "data": {"name": "arrays"},
        "num_classes": CLASSES,
        "image_shape": list(image),
    }
    return tickets.make_ticket(params, masks, found, lineage)


@pytest.fixture(scope="module", params=MODELS)
def ticket(request):
    return make_ticket(request.param)


def exported(ticket, path, masks=False):
    exporting.export(ticket, epath.Path(path), masks)
    return path


def imported(path):
    return importing.open_any(epath.Path(path), Wishes())[0]


@pytest.mark.parametrize("masks", [False, True], ids=["zeros", "masks"])
@pytest.mark.parametrize("ending", [".pt", ".safetensors", ".npz"])
def test_what_was_exported_is_imported_as_the_same_ticket(ending, masks, ticket, tmp_path):
    first = exported(ticket, tmp_path / f"a{ending}", masks)
    again = imported(first)
    assert again.digest == ticket.digest
    for group in ("params", "masks", "statistics"):
        jax.tree.map(np.testing.assert_array_equal, getattr(again, group), getattr(ticket, group))
    second = exported(again, tmp_path / f"b{ending}", masks)
    assert second.read_bytes() == first.read_bytes()


@pytest.mark.parametrize("ending", [".pt", ".safetensors", ".npz"])
def test_kept_values_that_are_no_numbers_stay_what_they_are(ending, tmp_path):
    """NaN, infinities and -0.0 of a run that diverged, bit for bit."""
    whole = make_ticket("lenet")
    kernel = whole.params["cls"]["kernel"].copy()
    places = tuple(np.argwhere(whole.masks["cls"]["kernel"])[:4].T)
    kernel[places] = np.float32([np.nan, np.inf, -np.inf, -0.0])
    params = whole.params | {"cls": whole.params["cls"] | {"kernel": kernel}}
    one = tickets.make_ticket(params, whole.masks, whole.statistics, whole.meta)
    again = imported(exported(one, tmp_path / f"a{ending}", masks=ending != ".npz"))
    assert again.digest == one.digest
    assert again.params["cls"]["kernel"].tobytes() == kernel.tobytes()


def test_only_what_had_a_mask_has_one_again(tmp_path):
    """A rule of prunable leaves that is narrower than what is 0 somewhere."""
    whole = make_ticket("conv")
    masks = {name: dict(leaves) for name, leaves in whole.masks.items()}
    for name in masks:
        if not name.startswith("Conv_"):
            masks[name]["kernel"] = None
    one = tickets.make_ticket(whole.params, masks, whole.statistics, whole.meta | {"prunable_rule": "conv"})
    again = imported(exported(one, tmp_path / "a.pt"))
    assert again.digest == one.digest
    assert again.masks["cls"]["kernel"] is None


def test_a_kept_zero_needs_the_masks(tmp_path):
    whole = make_ticket("lenet")
    kernel, mask = whole.params["cls"]["kernel"].copy(), whole.masks["cls"]["kernel"]
    kernel[tuple(np.argwhere(mask)[0])] = 0
    params = whole.params | {"cls": whole.params["cls"] | {"kernel": kernel}}
    one = tickets.make_ticket(params, whole.masks, whole.statistics, whole.meta)
    with pytest.raises(Refusal, match=r"kept weights are exactly 0 .then export it with --masks=true"):
        imported(exported(one, tmp_path / "a.pt"))
    assert imported(exported(one, tmp_path / "b.pt", masks=True)).digest == one.digest


def test_what_was_trained_on_in_pytorch_comes_back_as_a_child_of_its_ticket(tmp_path):
    """An export with masks, loaded, changed and saved anew, without the entry that tells what it is."""
    whole = make_ticket("lenet")
    state, _ = torch_files.read(exported(whole, tmp_path / "a.pt", True).read_bytes(), "a")
    state["linear.0.weight_orig"] = state["linear.0.weight_orig"] + np.float32(0.01)
    (tmp_path / "b.pt").write_bytes(torch_files.write(state, {}))
    with pytest.raises(Refusal, match="--like=TICKET, one of the same network"):
        imported(tmp_path / "b.pt")
    base, _ = tickets.write_ticket(epath.Path(tmp_path), *whole)
    again, _ = importing.open_any(epath.Path(tmp_path / "b.pt"), Wishes(like=str(base)))
    assert again.meta["parents"] == {"like": whole.digest}
    assert again.meta["mask_digest"] == whole.meta["mask_digest"]
    assert again.meta["prunable_rule"] == whole.meta["prunable_rule"]
    mask, kernel = whole.masks["Dense_0"]["kernel"], whole.params["Dense_0"]["kernel"]
    np.testing.assert_array_equal(
        again.params["Dense_0"]["kernel"], np.where(mask, kernel + np.float32(0.01), 0)
    )
    pixels = again.statistics["image_stats"], whole.statistics["image_stats"]
    jax.tree.map(np.testing.assert_array_equal, *pixels)
    loaded = giung2_ext.load_ticket(tmp_path / "b.pt", like=base)
    assert loaded.digest == again.digest


def test_a_file_that_was_changed_is_refused(tmp_path):
    whole = make_ticket("lenet")
    state, extra = torch_files.read(exported(whole, tmp_path / "a.pt").read_bytes(), "a")
    state["linear.0.weight"] = state["linear.0.weight"] + 1
    (tmp_path / "b.pt").write_bytes(torch_files.write(state, extra))
    with pytest.raises(Refusal, match=r"is not the ticket .* that it was exported from"):
        imported(tmp_path / "b.pt")


def test_an_ending_that_is_no_format_is_refused(tmp_path):
    with pytest.raises(Refusal, match=r"ending of --to '.onnx'; known: .npz, .pt, .pth, .safetensors"):
        exporting.export(make_ticket("lenet"), epath.Path(tmp_path / "x.onnx"))


def test_names_and_layouts_are_pytorchs(tmp_path):
    state, _ = torch_files.read(exported(make_ticket("resnet"), tmp_path / "a.pt").read_bytes(), "a")
    assert list(state)[:4] == ["conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean"]
    assert state["conv1.weight"].shape == (16, 3, 7, 7)
    assert state["layer2.0.downsample.0.weight"].shape == (32, 16, 1, 1)
    assert state["fc.weight"].shape == (CLASSES, 128)
    masked, _ = torch_files.read(exported(make_ticket("conv"), tmp_path / "b.pt", True).read_bytes(), "b")
    assert {"convs.2.weight_orig", "convs.2.weight_mask", "convs.2.bias"} <= set(masked)
    own, _ = torch_files.read(exported(make_ticket("wide_resnet"), tmp_path / "c.pt").read_bytes(), "c")
    assert own["Conv_0.kernel"].shape == (3, 3, 3, 4)


def test_zeros_are_where_the_mask_prunes():
    whole = make_ticket("lenet")
    arrays, _ = exporting.named_for_torch(whole, masks=False)
    assert np.count_nonzero(arrays["linear.0.weight"]) == whole.meta["layers"]["Dense_0/kernel"][0]
    named, _ = exporting.named_for_torch(whole, masks=True)
    np.testing.assert_array_equal(named["linear.0.weight_mask"] != 0, arrays["linear.0.weight"] != 0)


# --- plain PyTorch gives the same logits


def test_plain_pytorch_loads_it_strictly_and_gives_the_same_logits(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is an extra, absent here (2026-11-27)")
    prune = pytest.importorskip("torch.nn.utils.prune", reason="PyTorch is an extra (2026-11-27)")
    import torch_networks as networks
    from test_importing import images_of, logits_there

    whole = make_ticket("resnet")
    there = networks.ResNet((2, 2, 2, 2), (16, 32, 64, 128), False, "downsample", True, CLASSES).eval()
    there.load_state_dict(torch.load(exported(whole, tmp_path / "a.pt"), weights_only=True))
    pixels = whole.statistics["image_stats"]["m"].tolist(), whole.statistics["image_stats"]["s"].tolist()
    images = images_of(75)
    here = giung2_ext.Ticket(*whole).apply(images)
    np.testing.assert_allclose(here, logits_there(there, images, pixels), atol=1e-4 * np.abs(here).max())

    for module in there.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            prune.identity(module, "weight")
    exported(whole, tmp_path / "b.pt", masks=True)
    there.load_state_dict(torch.load(tmp_path / "b.pt", weights_only=True))
    np.testing.assert_allclose(here, logits_there(there, images, pixels), atol=1e-4 * np.abs(here).max())
    masks = {name: buffer for name, buffer in there.named_buffers() if name.endswith("weight_mask")}
    assert sum(int(mask.sum()) for mask in masks.values()) == whole.meta["kept"]


def test_safetensors_of_plain_pytorch_are_imported(tmp_path):
    from safetensors.numpy import save

    whole = make_ticket("resnet")
    arrays, _ = exporting.named_for_torch(whole, masks=True)
    (tmp_path / "a.safetensors").write_bytes(save(arrays))
    found, _ = importing.open_any(epath.Path(tmp_path / "a.safetensors"), Wishes(data_name="imagenet2012"))
    assert found.meta["kept"] == whole.meta["kept"]
    assert found.meta["mask_digest"] == whole.meta["mask_digest"]
    content = save({name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()})
    (tmp_path / "half.safetensors").write_bytes(content)
    half, _ = importing.open_any(
        epath.Path(tmp_path / "half.safetensors"), Wishes(data_name="imagenet2012")
    )
    assert half.meta["mask_digest"] == whole.meta["mask_digest"]
    wanted = np.float32(ml_dtypes.bfloat16(whole.params["cls"]["kernel"]))
    np.testing.assert_array_equal(half.params["cls"]["kernel"], wanted)
    content = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "b.safetensors").write_bytes(content[: len(content) - 8])
    with pytest.raises(Refusal, match="cannot be read as safetensors"):
        imported(tmp_path / "b.safetensors")


def test_flattened_maps_are_reordered_exactly():
    """A dense layer after a map of 4 channels: rows are (H, W, C) here and (C, H, W) there."""
    from giung2_ext.models import _torch_names

    entry = _torch_names.Entry("Dense_0/kernel", "linear.0.weight", "dense", 4)
    kernel = np.arange(36 * 2).reshape(3, 3, 4, 2)
    there = _torch_names.to_torch(entry, kernel.reshape(36, 2))
    np.testing.assert_array_equal(there, kernel.transpose(3, 2, 0, 1).reshape(2, 36))
    np.testing.assert_array_equal(_torch_names.from_torch(entry, there), kernel.reshape(36, 2))
