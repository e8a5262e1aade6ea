"""Scripts run as a person runs them, in a process of their own or, for speed, in this one."""

import os
import subprocess
import sys

import pytest
from fakes import REPOSITORY

from giung2_ext.experiments import flags, imp, single

IMAGENET = str(REPOSITORY / "configs/imagenet2012.py")


@pytest.fixture
def script(tmp_path):
    """Runs scripts/NAME.py in a folder of the test; the result has returncode, stdout, stderr."""

    def run(name, *arguments, under=()):
        path = str(REPOSITORY / "scripts" / f"{name}.py")
        command = [*under, sys.executable, path, *map(str, arguments)]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)

    return run


def parse(*arguments, table=flags.FLAGS):
    """The config of a command line; here, unlike there, a later flag replaces an earlier one."""
    arguments = {str(a).partition("=")[0]: a for a in arguments}.values()
    config, _ = flags.parse([str(a) for a in arguments], {"save": None}, IMAGENET, table)
    return config


@pytest.fixture(scope="session")
def train():
    """What scripts/train.py does, in this process and on one device: train(save, *flags) -> result."""
    return lambda save, *arguments: single.train_one(parse("--mesh=data:1", *arguments), str(save))


@pytest.fixture(scope="session")
def config_of():
    """The config of a command line of scripts/imp.py."""
    return lambda *arguments: parse(*arguments, table=flags.IMP_FLAGS)


@pytest.fixture(scope="session")
def chain(config_of):
    """What scripts/imp.py does, in this process, without the report."""
    return lambda save, *arguments: imp.run_chain(config_of(*arguments), str(save))
