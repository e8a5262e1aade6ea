"""Programs compiled for TPUs that are not there, and for this machine; commands that do nothing yet."""

import json
import math
import re
import sys

import jax
import numpy as np
import pytest
from conftest import parse
from etils import epath
from fakes import REPOSITORY
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import PartitionSpec as P

from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import forecast, places, preflight, single
from giung2_ext.experiments.settling import decide, decided
from giung2_ext.storage import events
from giung2_ext.training import chips

DIGITS = f"--config={REPOSITORY / 'configs/imp/digits.py'}:smoke"
KEYS = {"fits", "peak_bytes", "bytes_per_step", "flops_per_step", "estimated_seconds", "collectives"}


@pytest.fixture
def slice_of(monkeypatch):
    """A place by its name, with the environment as it was afterwards."""
    pytest.importorskip("libtpu", reason="the [tpu] extra is absent here (2026-11-27)")
    for name in places.QUIET:
        monkeypatch.setenv(name, places.QUIET[name])
    jax.config.update("jax_enable_compilation_cache", False)  # it cannot read what is for other machines
    compilation_cache.reset_cache()  # whether there is one is asked once
    yield places.open_place
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


def config_of(*words):
    config = parse(*words)
    return decided(config, *decide(config, None, 0))


def test_a_slice_that_is_not_there_is_compiled_for(slice_of):
    config = config_of(DIGITS, "--batch_size=64")
    found = forecast.examine(config, slice_of("v3:2x2"), forecast.announced_source(config))
    told = preflight.to_json(found, "low")
    assert KEYS | {"mask_overhead"} <= told.keys()
    assert (told["fits"], told["devices"], told["hosts"], told["device_kind"]) == (True, 8, 1, "TPU v3")
    assert told["collectives"].keys() == {"all-reduce"}
    assert 0 < told["peak_bytes"] < 2**24
    weights = 64 * 300 + 300 * 100 + 100 * 10
    assert told["flops_per_step"] > 2 * 2 * weights * 64 / 8  # forward, and the gradient of the weights
    assert -0.05 < told["mask_overhead"] < 0.2
    assert told["evaluation"]["bytes_per_step"] < told["bytes_per_step"]
    lines = preflight.describe(found, "low")
    assert lines[1].startswith("v3:2x2: 8 of 8 TPU v3 on 1 host, 16.00 GiB each; compiled at low effort")
    assert "imp.py has a device for each" in lines[2]
    assert re.fullmatch(r"fits: \d MiB, of 15,073 MiB that it may take \(92% of the memory\)", lines[-1])
    assert "0.00 " not in "".join(lines)  # what is small has digits
    assert (told["effort"], told["precision"], told["devices_there"]) == ("low", "float32", 8)
    assert told["compiler"].startswith("libtpu ")


def test_every_part_of_a_batch_is_counted():
    """XLA counts a loop's body once, however often it runs; an update of `group` has a loop of its own."""
    dynamic = f"--config={REPOSITORY / 'configs/dynamic/digits.py'}:method=rigl"
    place, looks = places.open_place(None), {}
    for words in ("--grad_accum=1", "--grad_accum=2", "--grad_accum=3", "--config.method.group=24"):
        config = config_of(dynamic, "--batch_size=192", words)
        looks[words] = forecast.examine(config, place, forecast.announced_source(config))
    whole = looks["--grad_accum=1"]
    for found in looks.values():
        assert found.train.flops == pytest.approx(whole.train.flops, rel=0.05)
        assert found.update.flops == pytest.approx(whole.update.flops, rel=0.12)
        assert found.train.bytes >= whole.train.bytes  # weights are read again
        assert -0.05 < found.overhead < 0.2
    unknown = forecast.Look(1.0, None, None, None, {})
    assert whole.train.all_turns(unknown, 2)[1:4] == (None, None, None)


def test_what_does_not_fit_is_made_to_fit_by_trying(slice_of):
    config = config_of(DIGITS, "--batch_size=64", "--config.model.hidden=512,512", "--grad_accum=8")
    place, source = slice_of("v3:2x2"), forecast.announced_source(config)
    whole = forecast.examine(config, place, source, remedy=True)
    small = place._replace(memory=int(0.7 * whole.peak / preflight.FITS))
    assert not forecast.examine(config, small, source, remedy=True).fits
    tried = []
    words, found = preflight.find_remedy(source, whole._replace(place=small), tried.append)
    assert words in tried[-1]
    assert "--mesh=fsdp:8" in words
    assert found.fits
    tiny = place._replace(memory=1000)
    assert preflight.find_remedy(source, whole._replace(place=tiny), tried.append) is None


def test_where_evaluation_alone_does_not_fit_its_batch_is_named_and_nothing_tried(monkeypatch, capsys):
    config = config_of(DIGITS, "--config.evaluation.batch_size=20000")
    place = places.open_place(None)
    found = forecast.examine(config, place, forecast.announced_source(config), remedy=True)
    limit = math.sqrt(found.train.peak * found.evaluation.peak)
    assert found.train.peak < 0.5 * limit
    small = place._replace(memory=int(limit / preflight.FITS))
    monkeypatch.setattr(preflight, "open_place", lambda topology: small)
    assert not preflight.run(config, None, "low", as_json=False)
    told = capsys.readouterr()
    assert told.out.endswith(
        "evaluation alone does not fit: take a smaller --config.evaluation.batch_size\n"
    )
    assert "help?" not in told.err


def test_where_training_does_not_fit_either_it_is_mended_first(monkeypatch, capsys):
    config = config_of(DIGITS, "--batch_size=64", "--grad_accum=1")
    place = places.open_place(None)
    tiny = place._replace(memory=1000)
    monkeypatch.setattr(preflight, "open_place", lambda topology: tiny)
    monkeypatch.setattr(preflight, "find_remedy", lambda *_: None)
    assert not preflight.run(config, None, "low", as_json=False)
    assert capsys.readouterr().out.endswith(
        "take more devices, or a smaller batch, and of --config.evaluation.batch_size\n"
    )


def test_remedies_need_less_than_what_was_found_and_suit_the_devices_that_are_used(slice_of):
    """A batch of 36 uses not all of 8 devices; a cut and --remat are given already."""
    config = config_of(DIGITS, "--batch_size=36", "--grad_accum=3", "--remat=true")
    place = slice_of("v3:2x2")
    found = forecast.examine(config, place, forecast.announced_source(config), remedy=True)
    offered = list(preflight.remedies(found, 4))
    assert offered
    assert all(int(fields.get("grad_accum", 6)) >= 6 for fields in offered)
    assert not any("remat" in fields for fields in offered)
    assert {fields["mesh"] for fields in offered if "mesh" in fields} == {"fsdp:4"}
    assert len({json.dumps(fields, sort_keys=True) for fields in offered}) == len(offered)


def test_weights_are_spread_over_the_devices_that_divide_them(slice_of):
    """A batch of 60 uses 6 devices, which do not divide 1,024; an fsdp axis of 4 leaves less on each."""
    wide = ["--config.model.hidden=1024,1024"]
    config = config_of(DIGITS, *wide)
    place, source = slice_of("v3:2x2"), forecast.announced_source(config)
    assert preflight.widest(config, place, source) == 4
    assert preflight.widest(config_of(DIGITS, "--batch_size=64", *wide), place, source) == 8
    found = forecast.examine(config, place, source, remedy=True)
    assert found.used == 6
    assert "2 of the 8 devices would do nothing: 60 images" in "".join(preflight.describe(found, "low"))


def test_micro_batches_that_are_counted_and_do_not_fit_are_told_and_not_refused(slice_of):
    config = config_of(DIGITS, "--batch_size=64", "--grad_accum=auto")
    place = slice_of("v3:2x2")._replace(memory=1000)
    found = forecast.examine(config, place, forecast.announced_source(config), remedy=True)
    assert (found.fits, found.micro_batches) == (False, 8)


def test_a_slice_that_no_tpu_has_is_refused(slice_of):
    with pytest.raises(Refusal, match="--topology=v3: write NAME:SHAPE in chips, such as v3:2x2"):
        slice_of("v3")
    named = {"v5litepod-8": "v5e:2x4", "v4-32": "v4:2x2x4", "v5p-16": "v5p:2x2x2", "v6e-256": "v6e:16x16"}
    for name, shape in named.items():  # as Google names slices
        with pytest.raises(Refusal, match=rf"{name}: that is \d+ chips: {shape}, if they lie so"):
            slice_of(name)
        assert slice_of(shape).devices
    for name, count in {"v5p-384": 192, "v4-1536": 768, "v5litepod-1": 1, "v5p-24": 12}.items():
        with pytest.raises(
            Refusal, match=rf"{name}: that is {count} chips?: write v\w+:SHAPE, as they lie"
        ):
            slice_of(name)
    with pytest.raises(Refusal, match="v3:9x9: a host of it has 2x2x1 chips, which do not fill that shape"):
        slice_of("v3:9x9")
    with pytest.raises(Refusal, match="v7:2x2: there is no such TPU; write NAME:SHAPE"):
        slice_of("v7:2x2")


def test_streamed_images_need_not_be_there(slice_of):
    source = forecast.announced_source(config_of("--optim_ni=1"))
    assert (source.num_classes, source.image_shape) == (1000, (224, 224, 3))


def test_this_machine_is_looked_at_without_a_topology(script):
    done = script("preflight", DIGITS, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["fits"]
    assert told["estimated_seconds"] is None  # XLA has none for a CPU
    assert told["topology"] == "this machine"


def test_a_look_that_cannot_be_compiled_does_not_fit(slice_of):
    """A product of 27 GiB on a core of 16."""
    place = slice_of("v3:2x2")
    whole = jax.sharding.NamedSharding(jax.sharding.Mesh(np.array(place.devices[:1]), "d"), P())
    matrix = jax.ShapeDtypeStruct((60_000, 60_000), np.float32, sharding=whole)
    look = forecast.look_at(jax.jit(lambda x: x @ x + x).lower(matrix))
    found = forecast.Found(config_of(DIGITS), place, 1, 1, look, None, look, None)
    assert not found.fits
    assert math.isinf(found.peak)
    last = preflight.describe(found, "low")[-1]
    asked = re.fullmatch(r"does not fit: XLA asks for ([\d,]+) MiB at once, of 15,073 MiB that it .*", last)
    assert int(asked[1].replace(",", "")) > 60_000**2 * 4 / 2**20
    assert preflight.to_json(found, "low")["peak_bytes"] is None


def test_chips_are_known_by_the_longest_name():
    assert chips.of("TPU v5 lite").flops == 197e12
    assert chips.of("TPU v5").flops == chips.of("TPU v5p").flops == 459e12
    assert chips.of("NVIDIA H100 80GB HBM3").flops == 989.5e12
    assert chips.of("NVIDIA H100 PCIe").flops == 756.5e12
    assert chips.of("cpu") is None


@pytest.mark.parametrize("name", ["train", "imp"])
def test_a_dry_run_tells_and_does_nothing(name, script, tmp_path):
    done = script(name, DIGITS, f"--save={tmp_path / 'd'}", "--dry_run", "--config.chain.arms=reinit")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "d").exists()
    told = done.stdout
    assert "optim.ni = " in told
    assert "Dense_0/kernel  (64, 300)                   19,200  mask" in told
    assert "cls/bias        (10,)                           10\n" in told
    assert ("cycles keep 50,200 (100.00%), 40,160 (80.00%)" in told) == (name == "imp")
    assert "storage: at most" in told
    assert "FLOPs of training" in told


REFUSED = {
    ("train", "--matching_ckpt=nowhere"): "no checkpoint at nowhere",
    ("train", "--profile=-1"): "must not be negative",
    ("train", "--grad_accum=7"): "can be cut into",
    ("train", "--mixed_precision", "--config.precision=float16"): "leave one of them out",
    ("train", "--profile=3", "--save=gs://bucket/run"): "writes files that grow",
    ("train", "--save=s3://bucket/run"): "expected a directory or gs://BUCKET/FOLDER",
    ("train", "--save=/etc/passwd/run"): "/etc/passwd is a file",
    ("train", "--compilation_cache=s3://bucket"): "name a folder, auto or off",
    ("imp", "--mesh=data:2"): "have a device each",
    ("imp", "--config.chain.cycles=400"): "pruning_ratio",
}


@pytest.mark.parametrize("words", REFUSED, ids=lambda words: words[1])
def test_a_dry_run_refuses_what_the_command_would(words, script, tmp_path):
    name, *flags = words
    for more in ([], ["--dry_run"]):
        save = [] if any("--save" in flag for flag in flags) else [f"--save={tmp_path / 'd'}"]
        done = script(name, DIGITS, *save, *flags, *more)
        assert (done.returncode, REFUSED[words] in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(("field", "package"), events.PACKAGES.items())
def test_what_needs_an_absent_package_is_refused_before_a_folder_is_made(
    field, package, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, package, None)
    value = {"tensorboard": "true", "wandb": "project"}[field]
    config = parse(DIGITS, f"--config.placement.{field}={value}")
    for start in (True, False):  # False: --dry_run
        with pytest.raises(Refusal, match=rf"placement\.{field} needs {package}: pip install"):
            single.prepare(config, epath.Path(tmp_path) / "run", start)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_work_that_is_there_tells_its_seed_and_refuses_another_recipe(script, train, tmp_path):
    words = (DIGITS, f"--save={tmp_path / 'r'}", "--optim_ni=3")
    assert 'seed = "drawn at the start"' in script("train", *words, "--dry_run").stdout
    train(tmp_path / "r", DIGITS, "--optim_ni=3", "--seed=11")
    told = script("train", *words, "--dry_run").stdout
    assert "seed = 11" in told
    assert "1 of them finished" in told
    assert "another recipe" in script("train", *words, "--optim_lr=0.7", "--dry_run").stderr


def test_a_dry_run_counts_what_a_chain_stores(script, tmp_path):
    """Tickets of best and last of every run; no ticket is larger than it says."""
    words = (DIGITS, "--config.chain.trials=1", "--config.chain.arms=", "--config.chain.cycles=1")
    told = script("imp", *words, f"--save={tmp_path / 'd'}", "--dry_run").stdout
    assert (
        "at most 7 tickets (best, last and periodic ones) of 0.2 MiB" in told
    )  # the starting point's, the dense cycle's and 001's
    assert script("imp", *words, f"--save={tmp_path / 'd'}").returncode == 0
    sizes = [
        sum(f.stat().st_size for f in ticket.iterdir()) for ticket in (tmp_path / "d").rglob("tickets/*")
    ]
    assert len(sizes) <= 7
    assert np.max(sizes) < 0.25 * 2**20


def test_the_next_process_compiles_nothing_anew(script, tmp_path, monkeypatch):
    # all programs are kept: near a threshold a busy machine would decide
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    words = (DIGITS, "--config.chain.trials=1", "--config.chain.arms=", "--seed=0", "--compilation_cache=c")
    first, second = (script("imp", *words, f"--save={tmp_path / name}").stdout for name in "ab")
    counts = [text.splitlines()[-1].split() for text in (first, second)]
    assert counts[0][:3] == ["programs:", counts[0][1], "compiled,"]
    assert int(counts[0][1]) > 0
    assert counts[1][1] == "0"
    assert int(counts[1][3]) >= int(counts[0][1])
    off = script("train", DIGITS, f"--save={tmp_path / 'off'}", "--compilation_cache=off")
    assert off.returncode == 0
    assert "programs:" not in off.stdout


@pytest.mark.parametrize("steps", [30, 4])
def test_some_steps_are_traced_of_a_short_run_too(steps, script, tmp_path):
    words = (DIGITS, f"--optim_ni={steps}", "--config.placement.log_every=5", "--profile=3")
    done = script("train", *words, f"--save={tmp_path / 'p'}")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "p/profile").rglob("*.xplane.pb"))
