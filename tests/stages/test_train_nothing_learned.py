"""Training stops where nothing can be learned or the start gives no numbers, and says why."""

from __future__ import annotations

from pathlib import Path

import pytest
import worlds
from train_runs import config, run, steps_of

from teachonce.core.progress import Silent
from teachonce.errors import DataError, UsageError
from teachonce.labels.selection import Rule, choose, save_selection
from teachonce.labels.store import LabelStore
from teachonce.stages.train import TrainRequest, train


@pytest.mark.parametrize("supervision", ["soft", "hard+soft"])
def test_one_renormalised_class_teaches_nothing(supervision: str, finished: Path, student: str, tmp_path: Path) -> None:
    """Refused before a folder is made, where a selection keeps one class of each soft label."""
    one = tmp_path / "one.json"
    store = LabelStore.open(finished)
    rule = Rule(top_k=1)
    save_selection(one, store, rule, choose(store, rule, Silent()))
    chosen = config(f"supervision={supervision}", "tail=renormalise")
    request = TrainRequest(
        labels=finished, student=student, out=tmp_path / "run", config=chosen, threads=1, selection=one
    )
    with pytest.raises(UsageError, match="nothing would be learned"):
        train(request, Silent())
    assert not (tmp_path / "run").exists()


def test_a_run_in_which_nothing_can_be_learned_stops_before_an_update(
    finished: Path, student: str, tmp_path: Path
) -> None:
    """A vocabulary of one class: its softmax is 1 whatever the prompts."""
    one, store = tmp_path / "one.json", LabelStore.open(finished)
    rule = Rule(classes=(worlds.IDS[0],))
    save_selection(one, store, rule, choose(store, rule, Silent()))
    request = TrainRequest(
        labels=finished,
        student=student,
        out=tmp_path / "run",
        config=config("supervision=hard"),
        threads=1,
        selection=one,
    )
    with pytest.raises(UsageError, match="step 0: .*there is nothing to learn with supervision = 'hard'.* 1 classes"):
        train(request, Silent())
    assert not steps_of(tmp_path / "run")


def test_a_soft_weight_that_rises_from_zero_is_no_reason_to_stop(finished: Path, student: str, tmp_path: Path) -> None:
    """The first gradient of a purely soft run is zero by its own schedule."""
    run(finished, student, tmp_path / "run", "supervision=soft", "soft_schedule=rise", "steps=3")
    assert [step["gradient_norm"] > 0 for step in steps_of(tmp_path / "run")] == [False, True, True]


def test_a_first_loss_that_is_no_number_does_not_blame_the_learning_rate(
    finished: Path, student: str, tmp_path: Path
) -> None:
    """Nothing was updated yet: the temperature is named instead."""
    with pytest.raises(UsageError, match="step 0: the loss became") as caught:
        run(finished, student, tmp_path / "run", "temperature=1e30", "tail=renormalise")
    assert "temperature" in caught.value.hint and "smaller learning_rate" not in caught.value.hint


def test_a_start_that_gives_no_numbers_makes_no_folder(finished: Path, student: str, tmp_path: Path) -> None:
    """The student is named."""
    from teachonce.training.student import PromptedStudent

    with pytest.MonkeyPatch.context() as patch, pytest.raises(DataError, match="the start gives no numbers") as caught:
        patch.setattr(PromptedStudent, "is_sound", lambda self: False)
        run(finished, student, tmp_path / "run")
    assert student in caught.value.message and not (tmp_path / "run").exists()
