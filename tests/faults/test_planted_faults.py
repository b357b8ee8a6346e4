"""Tests that cannot fail prove nothing: ten faults are planted in copies of the project, one each,
and a test must notice every one. `make test-slow`; five minutes."""

import shutil
import subprocess
import sys

import pytest
from helpers import REPOSITORY

# file, text there, what takes its place, the test that must fail
FAULTS = {
    "a save over the newest checkpoint": (
        "utils/training/checkpoint.py",
        'temporary = folder / f".tmp-{os.getpid()}"',
        'temporary = (step_files(folder) or [folder / ".tmp"])[-1]',
        "faults/test_kill.py::test_killed_at_random_moments_it_ends_with_the_same_bits[30]",
    ),
    "no fsync": (
        "utils/training/checkpoint.py",
        "            os.fsync(file.fileno())\n",
        "",
        "faults/test_kill.py::test_bytes_reach_the_disk_before_their_name_and_the_name_at_last",
    ),
    "no lock": (
        "utils/base/lock.py",
        "            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "            pass\n",
        "faults/test_faults.py::test_one_of_many_processes_gets_the_lock",
    ),
    "a padded sampler": (
        "evaluation/evaluate.py",
        "indices = range(world.rank, len(dataset), world.size)",
        "padded = -(-len(dataset) // world.size) * world.size\n"
        "    indices = [i % len(dataset) for i in range(world.rank, padded, world.size)]",
        "training/test_distributed.py::test_processes_equal_one",
    ),
    "global random numbers": (
        "utils/data/augment.py",
        "rng = np.random.default_rng((Stream.AUGMENTATION, seed, epoch, index, *again))",
        "rng = np.random.default_rng(np.random.randint(2**31))",
        "data/test_augment.py::test_parameters_are_a_pure_function_that_differs_between_samples",
    ),
    "dropout from the global generator": (
        "train.py",
        "torch.manual_seed(dropout_seed(config.seed, step, job.world.rank))",
        "pass",
        "training/test_resume.py::test_resuming_gives_the_same_losses_and_weights",
    ),
    "an average that is never updated": (
        "train.py",
        "run.ema.update(step)",
        "pass",
        "training/test_train.py::test_the_average_follows_the_weights_once_a_step",
    ),
    "pickles that may run code": (
        "utils/training/checkpoint.py",
        "weights_only=True",
        "weights_only=" + "False",
        "training/test_checkpoint.py::test_a_pickle_that_runs_code_is_refused",
    ),
    "an image that is not looked at": (
        "utils/data/image_files.py",
        "    if pixels is None:\n        raise UserError("
        'f"{path}: not a whole {what} image. {advice}")\n',
        "",
        "data/test_datasets.py::test_a_damaged_file_is_named",
    ),
    "a schedule that starts again": (
        "train.py",
        "run.optimizer,\n        start=run.step,",
        "run.optimizer,\n        start=0,",
        "training/test_resume.py::test_resuming_gives_the_same_losses_and_weights",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_place_of_a_fault_and_its_test_are_there(fault):
    path, text, instead, test = FAULTS[fault]
    assert (REPOSITORY / path).read_text().count(text) == 1 and text != instead
    file, name = test.split("::")
    content = (REPOSITORY / "tests" / file).read_text()
    assert f"def {name.partition('[')[0]}(" in content


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(fault, tmp_path):
    path, text, instead, test = FAULTS[fault]
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    for name in filter(lambda name: (REPOSITORY / name).is_file(), listed.stdout.splitlines()):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, target)
    content = (tmp_path / path).read_text()

    def passes() -> bool:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider",
             "-m", "not gpu", f"tests/{test}"],
            cwd=tmp_path, capture_output=True,
        )  # fmt: skip
        assert done.returncode in (0, 1), done.stdout
        return done.returncode == 0

    (tmp_path / path).write_text(content.replace(text, instead))
    assert not passes()
