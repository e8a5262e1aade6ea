"""Whether a folder can hold a run, and the processes of a job were given the same command for it."""

import json
import secrets

from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.experiments.config import Config
from giung2_ext.storage import events, paths, tickets
from giung2_ext.training import processes


def check_place(folder: epath.Path, config: Config) -> None:
    """Refuses a folder that cannot hold what is asked for."""
    where = config.placement
    processes.agree(lambda: paths.check_folder(folder))
    for name in ("profile", *events.PACKAGES):
        if where[name] and not paths.is_local(folder):
            raise Refusal(
                f"config.placement.{name} writes files that grow, which an object store has not: leave it "
                f"out, or choose a --save on a disk (it is {folder})"
            )
    processes.agree(lambda: events.check([name for name in events.PACKAGES if where[name]]))
    processes.agree(lambda: tickets.refuse_inside(folder))


def check_job(folder: epath.Path, config: Config) -> None:
    """Refuses a job whose processes were not given the same command, or do not see the same folder."""
    processes.check_same(
        json.loads(config.to_json_best_effort()), "their command: give all of them the same"
    )
    if not processes.joined():
        return
    mark = folder / f".seen_{processes.agree(lambda: secrets.token_hex(4))}.tmp"
    if processes.first():
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text("does every process see this?")
    processes.together("mark")
    try:
        processes.require(
            mark.exists(),
            f"the processes of this job do not all see {folder}: name a --save on a shared file system "
            "or in an object store (gs://bucket/...)",
        )
    finally:
        if processes.first():
            mark.unlink(missing_ok=True)
