"""A run folder: what may begin or go on in it, what is refused and left alone, and one process at a time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w

from teachonce.errors import FingerprintError, IncompleteError, IntegrityError, TeachOnceError, UsageError
from teachonce.recipe.config import TrainConfig, config_digest, later_defaults
from teachonce.runs import folder as run_folder

WANTED = TrainConfig().to_dict()


def a_folder(out: Path, step: int | None = None, config: str | None = None, *others: str) -> Path:
    """A folder with a checkpoint, a config.toml and other files."""
    (out / "checkpoints").mkdir(parents=True)
    if step is not None:
        (out / "checkpoints" / f"step-{step:08d}.safetensors").write_bytes(b"")
    if config is not None:
        (out / "config.toml").write_text(config)
    for name in others:
        (out / name).write_text("{}")
    return out


def files_of(out: Path) -> dict[str, bytes]:
    """Every file below the folder."""
    return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}


def refusals(out: Path) -> tuple[TeachOnceError, TeachOnceError]:
    """Of a new run and of one that goes on; neither changes anything."""
    before = files_of(out)
    with pytest.raises(TeachOnceError) as new:
        run_folder.require_new(out)
    with pytest.raises(TeachOnceError) as same:
        run_folder.require_same(out, WANTED)
    assert files_of(out) == before
    return new.value, same.value


def test_a_run_whose_config_is_lost_is_refused_both_ways(tmp_path: Path) -> None:
    """Its checkpoints would be wiped by a new start; neither hint leads there."""
    for problem in refusals(a_folder(tmp_path / "run", step=7)):
        assert isinstance(problem, IntegrityError) and "run at step 7 whose config.toml is lost" in problem.message
        assert "restore" in problem.hint and "without" not in problem.hint


@pytest.mark.parametrize("others", [(), ("cell.json",), ("failure.json",), (".config.toml.12.partial",)])
def test_what_died_before_its_first_step_may_begin_anew(others: tuple[str, ...], tmp_path: Path) -> None:
    """Step 0 holds nothing; drafts of config.toml go, what `ablate` lays beside stays."""
    out = a_folder(tmp_path / "run", 0, None, *others)
    run_folder.require_new(out)
    run_folder.clear(out)
    assert {item.name for item in out.iterdir()} == {name for name in others if name.endswith(".json")}
    run_folder.require_new(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["prompts.safetensors", "prompts.json", "results.json", "thesis.txt"])
def test_results_without_a_config_and_foreign_files_are_refused(name: str, tmp_path: Path) -> None:
    """Also beside a checkpoint of step 0."""
    new, same = refusals(a_folder(tmp_path / "run", 0, None, name))
    assert isinstance(new, UsageError) and "not empty and holds no run" in new.message
    assert isinstance(same, UsageError) and "nothing to resume" in same.message


def test_a_config_of_something_else_is_not_called_a_run(tmp_path: Path) -> None:
    """A user's own config.toml: told once, with no word of --resume."""
    for problem in refusals(a_folder(tmp_path / "mine", None, 'title = "mine"\n[server]\nport = 1\n')):
        assert "is not the config of a run: unknown keys title, server" in problem.message
        assert "`resume`" not in problem.hint


@pytest.mark.parametrize("kept", [0, 3])
def test_a_config_that_is_not_whole_is_told_in_one_line(kept: int, tmp_path: Path) -> None:
    """Five missing keys are named, however many there are."""
    part = dict(list(WANTED.items())[:kept])
    for problem in refusals(a_folder(tmp_path / "run", 4, tomli_w.dumps(part))):
        assert isinstance(problem, IntegrityError) and "is not the whole config of a run: it lacks" in problem.message
        assert (
            f"and {len(WANTED) - len(later_defaults()) - kept - 5} more" in problem.message
            and "\n" not in problem.message
        )


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    """Neither a new run nor the old one goes over it."""
    for problem in refusals(a_folder(tmp_path / "run", 4, "steps = ")):
        assert isinstance(problem, IntegrityError) and "config.toml is damaged" in problem.message


def test_a_run_goes_on_with_its_own_config_only(tmp_path: Path) -> None:
    """Every difference is named; the same config passes."""
    out = a_folder(tmp_path / "run", 4, tomli_w.dumps(WANTED))
    run_folder.require_same(out, WANTED)
    with pytest.raises(FingerprintError, match="seed: there 0, here 9"):
        run_folder.require_same(out, WANTED | {"seed": 9})
    with pytest.raises(UsageError, match="holds a run"):
        run_folder.require_new(out)


def test_a_config_from_before_a_key_came_goes_on_with_that_keys_default(tmp_path: Path) -> None:
    """It is the same run as with the key written at its default, and another with another value."""
    later = later_defaults()
    assert later
    before = {key: value for key, value in WANTED.items() if key not in later}
    assert config_digest(before) == config_digest(WANTED) == TrainConfig().digest()
    out = a_folder(tmp_path / "run", 4, tomli_w.dumps(before))
    run_folder.require_same(out, WANTED)
    with pytest.raises(FingerprintError, match="anchor_form: there 'squared', here 'l1'"):
        run_folder.require_same(out, WANTED | {"anchor_form": "l1"})


def test_the_lock_names_its_owner_and_leaves_nothing(tmp_path: Path) -> None:
    """Exit 5 with pid and host while it is held; afterwards the folder is as before."""
    with run_folder.only_writer(tmp_path / "run"):
        run_folder.require_new(tmp_path / "run")  # the lock's file is ours
        with pytest.raises(IncompleteError) as caught, run_folder.only_writer(tmp_path / "run"):
            pass
        assert f"process {os.getpid()} on {socket.gethostname()}" in caught.value.message and caught.value.hint
    assert list((tmp_path / "run").iterdir()) == []


HOLDS = """
import sys, time
from pathlib import Path
from teachonce.runs.folder import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


def test_a_killed_owner_stops_nobody(tmp_path: Path) -> None:
    """kill -9 leaves the file, which neither locks nor makes the folder somebody else's."""
    out = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(out)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with pytest.raises(IncompleteError, match=f"process {process.pid} on"), run_folder.only_writer(out):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert (out / run_folder.LOCK).is_file()
    run_folder.require_new(out)
    with run_folder.only_writer(out):
        pass
    assert not (out / run_folder.LOCK).exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"steps": 1}', '{"schema": 1, "final_loss": NaN}'])
def test_results_that_a_run_does_not_write_are_none(text: str, tmp_path: Path) -> None:
    """So that they are written again."""
    (tmp_path / "results.json").write_text(text)
    assert run_folder.RunFolder(tmp_path).read_results() is None
