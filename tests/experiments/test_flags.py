import re

import pytest
from fakes import REPOSITORY

import giung2_ext.data.sources
import giung2_ext.methods
import giung2_ext.models
from giung2_ext.core import discovery
from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import flags
from giung2_ext.experiments.config import default_config, load_config

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
    assert config.method.to_dict() == dict(name="rigl", every=7, stop=25000, drop=0.3)
    assert config.model.hidden == (20, 10)
    changed = (
        parse("--config.model.name=lenet", config=IMAGENET) if False else parse("--config.chain.arms=")
    )
    assert changed.chain.arms == ()


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
