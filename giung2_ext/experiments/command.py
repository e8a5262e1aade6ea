"""What every script does around its one call: flags, and errors as one line with a status."""

import errno
import inspect
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Callable

import jax

from giung2_ext.core.errors import Failure, Refusal, Stopped
from giung2_ext.experiments import flags
from giung2_ext.experiments.bounds import check_config
from giung2_ext.experiments.config import Config
from giung2_ext.storage.checkpoints import CANNOT_WRITE
from giung2_ext.training import compiling, processes, signals

LOST = (
    "if it speaks of a closed connection or of a barrier, another process of the job has ended: see what "
    "that one says. Start the same command in all of them to go on from the newest saved state"
)
NOT_A_PLACE = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
NOT_THERE = (errno.ENOENT, errno.EPERM)  # the second: a file system of the kernel's own


def guarded(work: Callable[[], None]) -> None:
    """Runs `work`; what a user can mend is one line on stderr and an exit status, no traceback."""
    try:
        work()
        sys.stdout.flush()
    except Refusal as error:
        _leave(
            str(error), error.status, at_once=processes.joined() and not error.agreed, agreed=error.agreed
        )
    except Stopped as error:
        _leave(str(error), error.status, at_once=not error.agreed, agreed=error.agreed)
    except KeyboardInterrupt:
        _leave("interrupted", 130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            sys.exit(128 + signal.SIGPIPE)
        if isinstance(error, OSError) and error.errno in NOT_A_PLACE + NOT_THERE + CANNOT_WRITE:
            mended = error.errno in CANNOT_WRITE
            _leave(_describe(error), Failure.status if mended else Refusal.status)
        if said := _of_a_store(error):
            _leave(said, Failure.status)
        if not processes.joined():
            raise
        traceback.print_exc()
        _leave(f"{type(error).__name__}; {LOST}", Failure.status)


def _nobody_reads() -> bool:
    """Whether stdout is a pipe that was closed, as by `| head`; then nothing is written to it any more."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return True
    return False


def _describe(error: OSError) -> str:
    place = f": {error.filename}" if error.filename else ""
    reason = error.strerror or os.strerror(error.errno or 0)
    if error.errno in NOT_A_PLACE:
        return f"not a folder to write to ({reason}){place}"
    if error.errno in NOT_THERE:
        return f"cannot read or write ({reason}){place}: is it there, and may it be made there?"
    hint = "what was saved before is whole; mend that and run the same command again"
    return f"cannot read or write ({reason}){place}; {hint}"


def _of_a_store(error: Exception) -> str:
    """What gcsfs, which reads gs:// for epath, says in its own way; nothing of other errors."""
    said = (str(error).splitlines() or [""])[0]
    if isinstance(error, ImportError) and "gcsfs" in said:
        return "gs:// needs gcsfs: pip install -e '.[gcs]'"
    if isinstance(error, ImportError) and said.startswith("Install "):  # by fsspec
        return f"expected a directory or gs://BUCKET/FOLDER, not another store ({said})"
    if type(error).__module__.startswith("aiohttp."):
        return f"the object store does not answer ({said[:300]}); once it does, the same command goes on"
    if type(error).__module__.startswith(("gcsfs.", "google.")) or said.startswith("Forbidden: "):
        return f"the object store refused ({said[:300]}); is it there, and may this account use it?"
    return ""


def _leave(message: str, status: int, at_once: bool = True, agreed: bool = False) -> None:
    """Says what is wrong and ends; `at_once` without waiting for threads or for a job's other processes."""
    if processes.first():
        print(f"error: {message}", file=sys.stderr, flush=True)
    elif not agreed:
        print(f"error in process {jax.process_index()}: {message}", file=sys.stderr, flush=True)
    if at_once:
        sys.stdout.flush()
        os._exit(status)
    raise SystemExit(status)


def default_of(main: Callable[..., None]) -> str:
    """The config of a script that is given none."""
    return str(pathlib.Path(inspect.getfile(main)).resolve().parents[1] / "configs/imagenet2012.py")


def train_command(
    main: Callable[[Config, str], None],
    doc: str | None,
    table: dict[str, str] = flags.FLAGS,
    chained: bool = False,
) -> None:
    """A script that trains: takes the config's flags and --save=DIR, which it needs."""
    own: dict[str, str | None] = {"save": None, "dry_run": "false"}

    def work() -> None:
        arguments = sys.argv[1:]
        if "--help" in arguments:
            print(flags.usage(doc or "", own, default_of(main), arguments, table))
            return
        if not any(word.partition("=")[0] == "--save" for word in arguments):
            raise Refusal(f"--save=DIR is required ({flags.CONTINUATION})")
        config, given = flags.parse(arguments, own, default_of(main), table)
        if not given["save"]:
            raise Refusal("--save=DIR is required")
        where = config.placement
        check_config(config)
        compiling.check(where.compilation_cache)
        if flags.convert(given["dry_run"] or "", bool, False, "dry_run"):
            from giung2_ext.experiments import dry_run

            dry_run.print_all(config, given["save"], chained)
            return
        processes.connect(where.distributed, where.joined_within, where.lost_after)
        signals.listen()
        compiling.keep(where.compilation_cache)
        main(config, given["save"])
        if processes.first() and compiling.describe():
            print(compiling.describe())

    guarded(work)
