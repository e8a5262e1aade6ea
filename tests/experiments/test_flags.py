import re

import jax.numpy as jnp
import numpy as np
import pytest
from fakes import REPOSITORY

import giung2_ext.data.sources
import giung2_ext.methods
import giung2_ext.models
from giung2_ext.core import discovery
from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import flags
from giung2_ext.experiments.bounds import check_config
from giung2_ext.experiments.building import rate_of
from giung2_ext.experiments.config import default_config, load_config, recipe, with_defaults

DIGITS = str(REPOSITORY / "configs/imp/digits.py")
IMAGENET = str(REPOSITORY / "configs/imagenet2012.py")


def parse(*arguments, config=f"{DIGITS}:smoke"):
    return flags.parse([f"--config={config}", *arguments], {"save": None}, IMAGENET)[0]


ORIGINAL_DEFAULTS = dict(
    data_name="imagenet2012", resnet_depth=50, resnet_width=1, batch_size=2048, num_workers=32,
    prefetch_factor=2, optim_ni=64000, optim_lr=0.8, optim_momentum=0.9, optim_weight_decay=1e-4,
    optim_label_smoothing=0.0, optim_global_clipping=None, seed=None, matching_ckpt=None,
    previous_ckpt=None, pruning_ratio=1.0, constant_lr=False, periodic_ckpt=False, mixed_precision=False,
)  # fmt: skip


def test_every_flag_of_the_original_suite_has_its_default():
    found = flags.fields(default_config())
    for flag, value in ORIGINAL_DEFAULTS.items():
        assert found[flags.ORIGINAL_FLAGS[flag]] == value, flag
    assert set(flags.ORIGINAL_FLAGS) == set(ORIGINAL_DEFAULTS) | {"data_root"}


@pytest.mark.parametrize("text", ["true", "True", "t", "yes", "y", "1"])
def test_booleans_are_read_as_the_original_did(text):
    assert parse(f"--periodic_ckpt={text}").tickets.periodic is True
    assert parse("--periodic_ckpt").tickets.periodic is True
    assert parse("--periodic_ckpt=No").tickets.periodic is False


def test_a_flag_and_its_field_set_the_same_thing_and_only_if_present():
    assert parse("--optim_lr=0.25").optim.lr == parse("--config.optim.lr=0.25").optim.lr == 0.25
    assert parse().optim.lr == 1.2e-3
    assert parse("--optim_ni", "7").optim.ni == 7


def test_none_is_accepted_where_the_default_is_none():
    assert parse("--optim_global_clipping=None", "--seed=None").optim.global_clipping is None
    assert parse("--optim_global_clipping=1").optim.global_clipping == 1.0
    with pytest.raises(Refusal, match="takes a number, got 'None'"):
        parse("--optim_lr=None")


def test_a_new_choice_starts_from_its_own_defaults():
    config = parse("--config.method.name=rigl", "--config.method.every=7", "--config.model.hidden=20,10")
    assert config.method.to_dict() == dict(
        name="rigl", every=7, begin=0, stop=25000, drop=0.3, decay="cosine", group=0
    )
    assert config.model.hidden == (20, 10)
    assert parse("--config.chain.arms=").chain.arms == ()


def test_model_and_data_of_the_default_config_can_be_replaced():
    config = parse("--config.model.name=lenet", "--data_name=digits", config=IMAGENET)
    assert config.model.to_dict() == dict(name="lenet", hidden=(300, 100))


def unknown(kind, name, package):
    return f"unknown {kind} {name!r}; known: {', '.join(discovery.names(package))}"


REFUSED = {
    "--optim_nii=3": "unknown flag --optim_nii; did you mean optim_ni?",
    "--config.optim.lrr=3": "no field config.optim.lrr; did you mean optim.lr?",
    "--config.optimm.lr=3": "no field config.optimm.lr; did you mean optim.lr?",
    "--optim_ni=3.5": "--optim_ni takes a whole number, got '3.5'",
    "--optim_lr=fast": "--optim_lr takes a number, got 'fast'",
    "--constant_lr=maybe": "--constant_lr takes true or false, got 'maybe'",
    "--config.model.name=lenett": unknown("model", "lenett", giung2_ext.models) + "; did you mean 'lenet'?",
    "--config.method.name=magnitud": unknown("method", "magnitud", giung2_ext.methods),
    "--data_name=digit": unknown("data source", "digit", giung2_ext.data.sources)
    + "; did you mean 'digits'?",
    "--optim_ni": "--optim_ni needs a value",
    "--resnet_depth=50": "no field config.model.depth",
    "--config.model.hidden=abc": "--config.model.hidden takes values like 300,100, got 'abc'",
    "--config.optim=3": "no field config.optim",
}


@pytest.mark.parametrize("argument", REFUSED)
def test_bad_input_is_refused_with_what_was_meant(argument):
    with pytest.raises(Refusal, match=re.escape(REFUSED[argument])):
        parse(argument)


OPTIM = {
    "--config.optim.milestones=9 --constant_lr=true": "--constant_lr and config.optim.milestones both say",
    "--config.optim.milestones=0,3": "config.optim.milestones are steps, from 1; got (0, 3)",
    "--config.optim.milestones=ten": "config.optim.milestones are steps, from 1; got ('ten',)",
    "--config.optim.decay_factor=1.5": "config.optim.decay_factor must be in (0, 1], got 1.5",
    "--config.optim.decay_on=kernel": "decay_on 'kernel'; known: all, kernels; did you mean 'kernels'?",
    "--config.optim.name=lars": "optimizer 'lars' is not for sparse training: it scales by the norm",
    "--config.optim.name=sdg": "did you mean 'sgd'?",
    "--config.optim.nesterov=true --config.optim.name=adam": "config.optim.nesterov is for sgd, got adam",
    "--config.optim.nesterov=true --optim_momentum=0": "config.optim.nesterov needs a momentum",
}


@pytest.mark.parametrize("words", OPTIM)
def test_what_no_optimizer_or_rate_can_do_is_refused(words):
    with pytest.raises(Refusal, match=re.escape(OPTIM[words])):
        check_config(parse(*words.split(), config=IMAGENET))


RATES = {  # at steps 0, 1, 2, 10, 11, 15
    "--constant_lr=true": [0.5] * 6,
    "": [0, 0.25, 0.5, (1 + np.cos(np.pi * 8 / 18)) / 4, 0.25, (1 + np.cos(np.pi * 13 / 18)) / 4],
    "--config.optim.milestones=10,15": [0, 0.25, 0.5, 0.05, 0.05, 0.005],
    "--config.optim.milestones=15 --config.optim.decay_factor=0.5": [0, 0.25, 0.5, 0.5, 0.5, 0.25],
    "--config.optim.milestones=10 --config.optim.warmup=0": [0.5, 0.5, 0.5, 0.05, 0.05, 0.05],
}


@pytest.mark.parametrize("words", RATES)
def test_the_rate_is_a_cosine_or_falls_at_milestones_or_is_constant(words):
    config = parse("--optim_ni=20", "--optim_lr=0.5", *words.split(), config=IMAGENET)
    check_config(config)
    found = [float(rate_of(config)(jnp.int32(step))) for step in (0, 1, 2, 10, 11, 15)]
    assert np.allclose(found, RATES[words], rtol=1e-6)


def test_a_recipe_recorded_before_these_fields_were_there_is_the_same():
    config = parse("--seed=1", "--config.precision=float32")
    recorded = recipe(config)
    for field in ("nesterov", "decay_on", "milestones", "decay_factor"):
        del recorded["optim"][field]
    assert with_defaults(recorded) == recipe(config)


@pytest.mark.parametrize("words", [("--constant_lr", "true"), ("--optim_ni", "3", "4"), ("--seed=1", "x")])
def test_leftover_words_are_refused(words):
    with pytest.raises(Refusal, match=f"unexpected argument '{words[-1]}'"):
        parse(*words)


def test_a_field_under_two_names_or_a_flag_twice_is_refused():
    with pytest.raises(Refusal, match=r"--optim_lr and --config.optim.lr both set config.optim.lr"):
        parse("--optim_lr=1", "--config.optim.lr=1")
    with pytest.raises(Refusal, match="--seed is given twice"):
        parse("--seed=1", "--seed=1")


def test_a_config_file_refuses_arguments_it_does_not_take():
    with pytest.raises(Refusal, match=r"takes no argument 'smokee'; it takes: smoke; did you mean 'smoke'"):
        parse(config=f"{DIGITS}:smokee")
    with pytest.raises(Refusal, match=r"no config file nowhere\.py"):
        parse(config="nowhere.py")


ARGUMENTS = """
from giung2_ext.experiments.config import default_config

def get_config(
    density: float = 0.1, epochs: int = 30, batch_size: int = 60, data: str = "mnist", smoke: bool = False
):
    c = default_config()
    c.masks.density, c.optim.ni, c.feed.batch_size = density, 10 * epochs, 2 * batch_size
    c.model = dict(name="lenet")
    c.data = dict(name="digits" if smoke else data)
    return c
"""


@pytest.fixture
def takes_arguments(tmp_path):
    file = tmp_path / "takes.py"
    file.write_text(ARGUMENTS)
    return str(file)


def test_arguments_of_a_config_file_have_the_types_of_their_defaults(takes_arguments):
    for text, density, steps, data in (
        ("", 0.1, 300, "mnist"),
        (":density=1e-2,epochs=16", 0.01, 160, "mnist"),
        (":smoke,density=1", 1.0, 300, "digits"),
        (":smoke=false,data=cifar10", 0.1, 300, "cifar10"),
    ):
        config = load_config(takes_arguments + text)
        assert (config.masks.density, config.optim.ni, config.data.name) == (density, steps, data)
        assert type(config.masks.density) is float


def test_an_argument_of_the_file_is_a_flag_before_the_suites_of_that_name(takes_arguments):
    config = parse("--epochs=3", "--smoke", "--batch_size", "7", config=takes_arguments)
    assert (config.optim.ni, config.data.name, config.feed.batch_size) == (30, "digits", 14)
    config = parse("--smoke=no", "--optim_ni=5", config=f"{takes_arguments}:epochs=3")
    assert (config.optim.ni, config.data.name) == (5, "mnist")
    assert parse("--batch_size=7").feed.batch_size == 7  # of a file without such an argument


REFUSED_ARGUMENTS = {
    (":epochs=x", ()): "takes.py: epochs takes a whole number, got 'x'",
    (":density=x", ()): "takes.py: density takes a number, got 'x'",
    (":smoke=x", ()): "takes.py: smoke takes true or false, got 'x'",
    (":epochs", ()): "takes.py: epochs needs a value: epochs=VALUE",
    (":epochs=1,epochs=2", ()): "takes.py: epochs is given twice",
    (":epoch=1", ()): "takes no argument 'epoch'; it takes: density=0.1, epochs=30, batch_size=60, "
    "data=mnist, smoke; did you mean 'epochs'?",
    ("", ("--epochs=x",)): "--epochs takes a whole number, got 'x'",
    ("", ("--epochs",)): "--epochs needs a value",
    (":epochs=1", ("--epochs=1",)): "takes.py:epochs=1 both set epochs",
}


@pytest.mark.parametrize(("text", "words"), REFUSED_ARGUMENTS)
def test_a_wrong_argument_of_a_config_file_is_refused(text, words, takes_arguments):
    with pytest.raises(Refusal, match=re.escape(REFUSED_ARGUMENTS[text, words])):
        parse(*words, config=takes_arguments + text)


@pytest.mark.parametrize("name", ["prune_rate", "prune-rate", "sparsity", "prune_percent"])
def test_a_fraction_that_papers_define_differently_is_refused_with_what_density_is(name):
    for words, config in (
        ((f"--{name}=0.5",), DIGITS),
        ((f"--config.method.{name}=0.5",), DIGITS),
        ((), f"{DIGITS}:{name}=0.5"),
    ):
        with pytest.raises(Refusal, match="density is the fraction kept") as refusal:
            parse(*words, config=config)
        assert "did you mean" not in str(refusal.value)


def test_a_config_files_own_refusal_is_told_as_it_is(tmp_path):
    file = tmp_path / "refuses.py"
    file.write_text(
        "from giung2_ext.core.errors import Refusal\ndef get_config():\n    raise Refusal('no such arch')\n"
    )
    with pytest.raises(Refusal, match=r"^no such arch$"):
        parse(config=str(file))


BROKEN = {
    "def get_config(:\n": "line 1: SyntaxError",
    "import nonsense_module\n": "line 1: ModuleNotFoundError: No module named 'nonsense_module'",
    "def get_config():\n    return None\n": "get_config() must return a config, got NoneType",
    "from giung2_ext.experiments.config import default_config\ndef get_config():\n"
    "    c = default_config()\n    c.optim.nii = 3\n    return c\n": "line 4: AttributeError",
    "from giung2_ext.experiments.config import default_config\ndef get_config():\n"
    "    c = default_config()\n    c.optim.ni = 'abc'\n    return c\n": "line 4: TypeError",
}


@pytest.mark.parametrize("text", BROKEN, ids=BROKEN.values())
def test_a_broken_config_file_is_one_line_that_says_where(text, tmp_path):
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(Refusal, match=re.escape(BROKEN[text])) as refusal:
        parse(config=str(file))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("words", [[":method=rpg"], ["", "--method=rpg"]])
def test_help_lists_the_fields_of_the_method_that_the_words_name(words):
    config = f"--config={REPOSITORY / 'configs/dynamic/digits.py'}{words[0]}"
    text = flags.usage("", {"save": None}, IMAGENET, ["--help", config, *words[1:]], flags.FLAGS)
    assert "--config.method.rank_in=grow" in text
    assert "--config.method.decay" not in text


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").rglob("*.py")), ids=lambda p: p.stem)
def test_every_config_says_its_command_and_has_a_smoke_argument(path):
    text = path.read_text()
    assert "python scripts/" in text
    assert "def get_config(" in text
    assert "smoke: bool = False" in text


@pytest.mark.parametrize("argument", ["", ":smoke"])
@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").rglob("*.py")), ids=lambda p: p.stem)
def test_every_config_can_be_read(path, argument):
    assert load_config(f"{path}{argument}").is_locked
