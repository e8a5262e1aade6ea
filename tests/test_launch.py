"""The recipes of scripts/launch: short, and right as far as that can be told without a cluster."""

import os
import subprocess
import sys
import time

import pytest
from fakes import REPOSITORY

from giung2_ext.training import processes

RECIPES = sorted((REPOSITORY / "scripts/launch").iterdir())
SHELL = [path for path in RECIPES if path.suffix == ".sh"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_is_short_and_names_scripts_that_exist(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 40
    assert sum(line.startswith("#") for line in lines) >= 5
    names = {word.strip("\",'") for line in lines for word in line.split() if word.startswith("scripts/")}
    for name in names:
        assert "$" in name or (REPOSITORY / name.rstrip(";")).exists(), name


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_a_shell_recipe_is_a_program_without_syntax_errors(path):
    assert os.access(path, os.X_OK)
    assert subprocess.run(["bash", "-n", path]).returncode == 0


def test_the_pods_of_a_jobset_are_processes_of_one_job():
    yaml = pytest.importorskip("yaml")
    [document] = yaml.safe_load_all((REPOSITORY / "scripts/launch/jobset.yaml").read_text())
    [group] = document["spec"]["replicatedJobs"]
    job = group["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    given = {entry["name"]: entry.get("value", "0") for entry in container["env"]}
    assert processes.launched(given) == ("JAX_NUM_PROCESSES", job["parallelism"], 0)
    first = f"{document['metadata']['name']}-{group['name']}-0-0.{document['metadata']['name']}"
    assert given["JAX_COORDINATOR_ADDRESS"].startswith(f"{first}:")  # the host name of the first pod
    assert job["completions"] == job["parallelism"]


def test_the_recipe_for_one_host_starts_a_run_that_outlives_it(tmp_path):
    environment = os.environ | {"PYTHON": sys.executable, "LOG": str(tmp_path / "log")}
    command = ["scripts/launch/gpus.sh", "status.py", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("process ")
    until = time.monotonic() + 60
    while "no run and no chain" not in (tmp_path / "log").read_text():
        assert time.monotonic() < until
        time.sleep(0.1)
