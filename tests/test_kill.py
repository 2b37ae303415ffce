"""kill -9 at random moments of a training: the run that goes on ends with the same bits as an undisturbed one."""

import random
import shutil
import time

from tests.train_runs import batches_fixture, equal, outcome, start, train

__all__ = ["batches_fixture"]

KILLS = 20
LONG = ("--num_steps", "20", "--save_every", "4")


def test_twenty_kills_of_a_training(batches, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert train(batches, tmp_path / "first")[0] == 0  # starts the server
    started = time.monotonic()
    assert train(batches, whole, *LONG)[0] == 0
    seconds = time.monotonic() - started
    expected, moment = outcome(whole), random.Random(7)
    kills = finished = 0
    while kills < KILLS or not finished:
        process = start(batches, folder, *LONG, "--resume")
        process.join(moment.uniform(0.1, 0.6) * seconds if kills < KILLS else 120)
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
            continue
        assert process.exitcode == 0
        assert equal(outcome(folder), expected)
        finished += 1
        shutil.rmtree(folder)
    assert kills == KILLS
