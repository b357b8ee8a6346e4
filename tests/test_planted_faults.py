"""Tests that cannot fail prove nothing: ten faults are planted in copies of the project, one each,
and a test must notice every one. `make test-slow`; five minutes."""

import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY

# file, text there, what takes its place, the test that must fail
FAULTS = {
    "a save over the newest checkpoint": (
        "utils/checkpoint.py",
        'temporary = folder / f".tmp-{os.getpid()}"',
        'temporary = (step_files(folder) or [folder / ".tmp"])[-1]',
        "test_kill.py::test_killed_at_random_moments_it_ends_with_the_same_bits[100]",
    ),
    "no fsync": (
        "utils/checkpoint.py",
        "            os.fsync(file.fileno())\n",
        "",
        "test_kill.py::test_bytes_reach_the_disk_before_their_name_and_the_name_at_last",
    ),
    "no lock": (
        "utils/lock.py",
        "            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "            pass\n",
        "test_faults.py::test_one_of_many_processes_gets_the_lock",
    ),
    "a padded sampler": (
        "evaluation/evaluate.py",
        "indices, ahead = range(world.rank, len(dataset), world.size), workers + 2",
        "padded = -(-len(dataset) // world.size) * world.size\n"
        "    indices = [i % len(dataset) for i in range(world.rank, padded, world.size)]\n"
        "    ahead = workers + 2",
        "test_distributed.py::test_processes_equal_one",
    ),
    "global random numbers": (
        "utils/transforms.py",
        "rng = np.random.default_rng((AUGMENTATION, seed, epoch, index, *again))",
        "rng = np.random.default_rng(np.random.randint(2**31))",
        "test_transforms.py::test_parameters_are_a_pure_function_that_differs_between_samples",
    ),
    "dropout from the global generator": (
        "train.py",
        "torch.manual_seed(dropout_seed(config.seed, step, world.rank))",
        "pass",
        "test_resume.py::test_resuming_gives_the_same_losses_and_weights",
    ),
    "an average that is never updated": (
        "train.py",
        "run.ema.update(run.model, step)",
        "pass",
        "test_train.py::test_the_average_follows_the_weights_once_a_step",
    ),
    "pickles that may run code": (
        "utils/checkpoint.py",
        "weights_only=True",
        "weights_only=" + "False",
        "test_checkpoint.py::test_a_pickle_that_runs_code_is_refused",
    ),
    "an image that is not looked at": (
        "utils/images.py",
        "    if image is None:\n        raise UserError("
        'f"{path}: not a whole PNG or JPEG image. {CHECK}")\n',
        "",
        "test_datasets.py::test_a_damaged_file_is_named",
    ),
    "a schedule that starts again": (
        "train.py",
        "run.optimizer, start=start,",
        "run.optimizer, start=0,",
        "test_resume.py::test_resuming_gives_the_same_losses_and_weights",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(fault, tmp_path):
    path, text, instead, test = FAULTS[fault]
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, target)
    content = (tmp_path / path).read_text()
    assert content.count(text) == 1, "the place to plant it is gone"

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
