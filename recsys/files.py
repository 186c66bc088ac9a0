"""Files and stages: nothing is left half-written, nothing that is done is done again."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from recsys.config import to_json

SCHEMA_VERSION = 1
STAGE_FILE = "stage.json"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)
MARKER = "inputs.json"  # of an unfinished stage: what it is made from
URI = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # a Path holds one slash only


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON so that a reader sees the old file or the whole new one."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("w") as file:
        json.dump(value, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def read_json(path: Path) -> Any:
    """Returns the JSON value in `path`.

    Raises:
        ValueError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; run the command that writes it first") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); make its stage anew") from None


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(value: Any) -> str:
    """Returns a hash of a JSON value that does not depend on the order of keys.

    Raises:
        ValueError: a number in it is infinite or none.
    """
    try:
        text = json.dumps(value, sort_keys=True, allow_nan=False)
    except ValueError:
        raise ValueError("a setting is infinite or no number: give a large one") from None
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(directory: Path) -> str:
    """Returns the fingerprint that the stage which wrote `directory` left there.

    Raises:
        ValueError: no finished stage wrote this directory.
    """
    if not (directory / STAGE_FILE).exists():
        raise ValueError(
            f"there is no finished {directory.name} in {directory.parent}: run the command that "
            "writes it first, or say where it is"
        )
    record = read_json(directory / STAGE_FILE)
    if not (isinstance(record, dict) and isinstance(record.get("fingerprint"), str)):
        raise ValueError(f"{directory / STAGE_FILE} is not of a stage of recsys: make it anew")
    return record["fingerprint"]


def run_stage(
    output: Path,
    *,
    name: str,
    config: Any,
    inputs: Mapping[str, Path | str],
    build: Callable[[Path], None],
    scratch: Sequence[str] = (),
) -> bool:
    """Builds `output` unless it is there already, made from the same config and inputs.

    `build` fills `<output>.partial`; after an interruption of the same work it finds there what it
    had left, and may go on from it. `output` appears, whole, by a rename.

    Args:
        inputs: directories of earlier stages (their fingerprints count), or strings as they are.
        scratch: patterns of what only an unfinished stage needs, such as checkpoints; deleted once
            the output is there, so that a kill at any time loses nothing.

    Returns:
        Whether the stage ran.

    Raises:
        ValueError: `output` is a URI; stages rename directories, which object stores cannot. Or it
            is a file, one of the inputs, or it or `<output>.partial` holds what no stage has
            written. Or another process is writing it. Or an input was replaced meanwhile.
    """
    _refuse_uri(output)
    if output.is_symlink():  # the directory that it names is replaced, not the link
        output = output.resolve()
    _refuse_foreign(output)
    if output.resolve() in [path.resolve() for path in inputs.values() if isinstance(path, Path)]:
        raise ValueError(f"{output} is what is read, and would be replaced: name another output")
    prints = _prints(inputs)
    record = {
        "schema_version": SCHEMA_VERSION,
        "stage": name,
        "config": to_json(config),
        "inputs": prints,
    }
    record["fingerprint"] = hash_of(record)
    if _is_complete(output, record["fingerprint"]):
        _tidy(output, scratch)
        print(f"{name}: up to date ({output})", flush=True)
        return False
    with _only_writer(output):
        if _is_complete(output, record["fingerprint"]):  # by another process, meanwhile
            print(f"{name}: up to date ({output})", flush=True)
            return False
        partial = _open_partial(output, record["fingerprint"])
        if not (partial / STAGE_FILE).exists():  # else it was killed just before the rename
            started = time.perf_counter()
            build(partial)
            if _prints(inputs) != prints:
                raise ValueError(f"what {name} reads was replaced meanwhile: run it again")
            record["seconds"] = round(time.perf_counter() - started, 3)
            write_json(partial / STAGE_FILE, record)
        _replace(partial, output)
        _tidy(output, scratch)
    print(f"{name}: {output} ({read_json(output / STAGE_FILE)['seconds']:.0f} s)", flush=True)
    return True


def _prints(inputs: Mapping[str, Path | str]) -> dict[str, str]:
    return {key: fingerprint(v) if isinstance(v, Path) else v for key, v in inputs.items()}


@contextlib.contextmanager
def alone(path: Path, *, busy: str | None = None) -> Iterator[None]:
    """Holds the lock of `path`, where the file system knows locks; a process that dies lets go.

    It is a hidden file beside it, which stays: on NFS a waiter cannot tell whether one was taken
    away.

    Args:
        busy: what to say where another process holds it; none to wait.

    Raises:
        ValueError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:  # NFS locks what is writable only
        _lock(file, busy)
        yield


def _lock(file: TextIO, busy: str | None) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX if busy is None else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(busy) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def _only_writer(output: Path) -> contextlib.AbstractContextManager[None]:
    busy = f"another process is writing {output}.partial: wait until it is done, or stop it"
    return alone(output, busy=busy)


def _tidy(output: Path, scratch: Sequence[str]) -> None:
    """Deletes what a finished stage no longer needs; another process may be about the same."""
    shutil.rmtree(_aside(output), ignore_errors=True)
    for path in [path for pattern in (MARKER, *scratch) for path in output.glob(pattern)]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _refuse_uri(output: Path) -> None:
    if URI.match(str(output)):
        raise ValueError(
            f"{output} is a URI, and stages write to directories: give one, on a cluster one that "
            "all nodes reach (a mounted share or bucket)"
        )


def _refuse_foreign(output: Path) -> None:
    if not output.name:
        raise ValueError(f"{output} cannot be replaced by a stage: name a directory below it")
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file, and a stage writes a directory: name another")
    if output.exists() and not (output / STAGE_FILE).exists() and any(output.iterdir()):
        raise ValueError(
            f"{output} holds what is not of one stage, and would be replaced: name a directory of "
            "its own (that of a whole run is given by --run)"
        )


def _is_complete(output: Path, expected: str) -> bool:
    return (output / STAGE_FILE).exists() and fingerprint(output) == expected


def _open_partial(output: Path, expected: str) -> Path:
    partial = output.with_name(output.name + ".partial")
    marker = partial / MARKER
    if partial.exists() and not (marker.exists() and read_json(marker) == expected):
        if not marker.exists() and any(path.name != f"{MARKER}.tmp" for path in partial.iterdir()):
            raise ValueError(f"{partial} is in the way, and no stage has begun it: move it away")
        _set_aside(partial, output)
        shutil.rmtree(_aside(output), ignore_errors=True)
    partial.mkdir(exist_ok=True)
    write_json(marker, expected)
    return partial


def _replace(partial: Path, output: Path) -> None:
    if output.exists():
        _set_aside(output, output)
    partial.rename(output)


def _set_aside(directory: Path, output: Path) -> None:
    """Renames what is no longer wanted, so that a kill leaves no half of it."""
    shutil.rmtree(_aside(output), ignore_errors=True)
    directory.rename(_aside(output))


def _aside(output: Path) -> Path:
    """Returns where it goes: hidden, where nobody else has put anything."""
    return output.with_name(f".{output.name}.replaced")
