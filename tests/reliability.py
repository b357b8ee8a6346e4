"""docs/reliability.md from a test run: what breaks a training system, what happens here, which test.

python tests/reliability.py          runs the tests below, fast and slow: about half an hour on two cores
"""

import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.measure import CPU, machine

PAGE = REPOSITORY / "docs" / "reliability.md"
HEAD = """# Reliability

What breaks such systems, what happens here, and the test that shows it; written by
`python tests/reliability.py` from a run of these tests on {machine}, {date}. "One line" is
`error: <file>: <what was found>. <what to do>` with exit code 2, and nothing lost or overwritten.

"""
# group -> (what goes wrong, what happens, file::test)
ROWS: dict[str, list[tuple[str, str, str]]] = {
    "Checkpoints and resuming": [
        ("kill -9 at 100 random moments of a training", "the same losses, weights, average and buffers, to the bit", "test_kill.py::test_killed_at_random_moments_it_ends_with_the_same_bits"),
        ("kill at each system call of a save", "a whole checkpoint is left, every time", "test_kill.py::test_a_save_killed_at_any_system_call_leaves_a_whole_checkpoint"),
        ("power lost after a save", "bytes reach the disk before their name does", "test_kill.py::test_bytes_reach_the_disk_before_their_name_and_the_name_at_last"),
        ("disk full while saving", "one line, earlier checkpoints whole", "test_faults.py::test_a_disk_that_takes_no_more_is_one_line_and_costs_no_checkpoint"),
        ("disk fails to keep the bytes", "one line, earlier checkpoints whole", "test_kill.py::test_a_disk_that_fails_to_keep_the_bytes_is_told_and_costs_no_checkpoint"),
        ("disk too small for the run", "one line before the first step", "test_faults.py::test_a_disk_too_small_for_the_run_is_told_before_the_first_step"),
        ("newest checkpoint damaged", "named once, the one before it taken", "test_faults.py::test_the_newest_whole_checkpoint_takes_a_damaged_ones_place"),
        ("all checkpoints damaged", "one line; never a silent start from nothing", "test_faults.py::test_with_no_whole_checkpoint_nothing_starts_and_nothing_changes"),
        ("a checkpoint cut, empty, a web page", "one line that names it", "test_checkpoint.py::test_a_damaged_checkpoint_is_named"),
        ("mutated checkpoints", "all refused, no crash", "test_fuzz.py::test_a_damaged_checkpoint_is_never_loaded"),
        ("a file that would run code", "refused, nothing run", "test_checkpoint.py::test_a_pickle_that_runs_code_is_refused"),
        ("a checkpoint of a newer version, or incomplete", "one line", "test_faults.py::test_checkpoints_of_newer_versions_and_incomplete_ones_are_told"),
        ("a part of the training's state missing", "refused", "test_faults.py::test_a_run_goes_on_with_everything_or_not_at_all"),
        ("a pipe, folder or dangling link as checkpoint", "one line, no waiting", "test_faults.py::test_a_checkpoint_that_is_no_file_is_refused"),
        ("resume with other options", "refused by their names", "test_resume.py::test_other_options_are_refused_by_name"),
        ("resume with another number of reader threads", "the same bits", "test_resume.py::test_resuming_gives_the_same_losses_and_weights"),
        ("links and leftovers lost or left by a kill", "goes on, leftovers removed", "test_faults.py::test_a_run_goes_on_without_its_links_and_loses_what_kills_left"),
        ("weights that are not finite", "not saved", "test_faults.py::test_weights_that_are_not_finite_are_not_saved"),
        ("twenty processes in one run", "one works, nineteen get one line", "test_faults.py::test_one_of_many_processes_gets_the_lock"),
        ("a name that is taken", "one line, nothing touched", "test_train.py::test_an_existing_run_is_refused_and_untouched"),
    ],
    "Data": [
        ("no data, an empty folder", "one line with what to do", "test_datasets.py::test_a_missing_data_set_says_what_to_do"),
        ("labels missing", "counted, the first named", "test_datasets.py::test_missing_labels_are_counted_and_named"),
        ("mutated PNG files", "never read with wrong pixels", "test_fuzz.py::test_a_damaged_png_is_never_read_with_wrong_pixels"),
        ("a file cut, empty, a web page, a bit flipped", "one line that names it", "test_datasets.py::test_a_damaged_file_is_named"),
        ("a small file that claims billions of pixels", "refused at once", "test_datasets.py::test_a_small_file_that_claims_many_pixels_is_refused_at_once"),
        ("palette labels", "read as indices", "test_datasets.py::test_palette_labels_give_their_indices"),
        ("a file that vanishes, a loop of links, a folder in its place", "one line that names it", "test_datasets.py::test_a_file_that_vanishes_is_named"),
        ("labels in colours or of another size", "one line", "test_datasets.py::test_labels_of_another_size_or_kind_are_refused"),
        ("grey, palette, transparent images", "read as RGB", "test_datasets.py::test_other_8_bit_images_are_read_as_rgb"),
        ("16-bit and CMYK images", "one line", "test_datasets.py::test_images_of_16_bits_or_four_inks_are_refused"),
        ("a camera's rotation tag", "ignored: labels have none", "test_datasets.py::test_a_camera_s_rotation_is_ignored"),
        ("ids that the data set does not define", "named", "test_datasets.py::test_undefined_ids_are_named"),
        ("a crop or image without a labelled pixel", "loss 0, a valid step", "test_upsample_cross_entropy.py::test_a_batch_without_labels_costs_nothing_and_has_a_finite_gradient"),
        ("a class that never occurs", "a finite weight and a warning", "test_preprocess_data.py::test_an_absent_class_gets_the_largest_weight_and_a_warning"),
        ("images smaller than the crop, of any size", "padded, ignored there", "test_transforms.py::test_any_size_gives_a_full_crop"),
        ("spaces, umlauts, newlines in names", "work", "test_datasets.py::test_any_name_of_a_folder_will_do"),
        ("a read that hangs", "named, the process ends", "test_faults.py::test_a_read_that_hangs_is_named_and_does_not_keep_the_process"),
        ("preprocessing interrupted", "completed to the same bytes", "test_preprocess_data.py::test_an_interrupted_run_is_completed_to_the_same_bytes"),
        ("packing killed at any byte", "the same file after the next run", "test_packing.py::test_killed_at_any_byte_and_run_again_gives_the_same_file"),
        ("two preprocessings at once", "one line", "test_faults.py::test_two_preprocessings_at_once_are_refused"),
        ("faulty archives", "one line, nothing unpacked", "test_packing.py::test_a_faulty_archive_is_one_line"),
        ("mutated configs", "one line or a config", "test_fuzz.py::test_a_damaged_config_is_refused_or_a_config"),
        ("a config that unfolds without end", "refused at once", "test_fuzz.py::test_a_config_that_unfolds_without_end_is_refused"),
        ("options out of range", "one line", "test_config.py::test_a_mistake_is_one_user_error"),
    ],
    "Process and memory": [
        ("SIGTERM between steps", "saved, the printed command goes on exactly", "test_resume.py::test_sigterm_saves_and_the_printed_command_goes_on_exactly"),
        ("SIGUSR1 during an evaluation", "saved; the resumed run evaluates first", "test_signals.py::test_a_stop_in_evaluation_leaves_it_and_resume_makes_up_for_it"),
        ("SIGTERM while waiting for data", "saved at once", "test_signals.py::test_a_stop_while_waiting_for_data_saves_at_once"),
        ("Ctrl-C twice", "leaves at once", "test_signals.py::test_a_second_ctrl_c_leaves_at_once"),
        ("too little memory", "one line that says what to lower", "test_faults.py::test_too_little_memory_is_one_line_that_says_what_to_lower"),
        ("1,000 more steps", "no more memory", "test_faults.py::test_memory_does_not_grow_with_the_steps"),
        ("a loss that is not finite", "step, learning rate and images named", "test_train.py::test_a_loss_that_is_not_finite_stops_with_one_line"),
        ("64 open files, no language set, data on a read-only disk", "works", "test_faults.py::test_few_open_files_no_language_and_data_that_may_only_be_read_are_enough"),
        ("an image larger than the memory", "predicted in windows, with a warning", "test_evaluate.py::test_an_image_larger_than_the_memory_is_predicted_in_windows"),
        ("fp16 that overflows in every step", "one line", "test_faults.py::test_fp16_that_overflows_in_every_step_is_one_line"),
        ("bad files, a cut video among those to predict", "named and left out, code 2 at the end", "test_predict.py::test_a_folder_with_faults_is_predicted_but_for_them"),
        ("an exported file that predicts something else", "refused, an earlier one stays", "test_export.py::test_a_file_that_predicts_something_else_is_refused"),
        ("a zip file for the test server with a fault", "refused", "test_predict.py::test_the_test_split_becomes_a_checked_archive"),
        ("output into `| head`", "no traceback", "test_commands.py::test_a_reader_that_leaves_early_gets_no_traceback"),
    ],
    "Several processes and hosts": [
        ("images that do not divide by the processes", "the same integers for 1, 2, 3 processes", "test_distributed.py::test_processes_equal_one"),
        ("any data size, batch and number of processes", "each image once per epoch", "test_loader.py::test_each_index_comes_once_per_epoch_whatever_the_world"),
        ("another number of processes, another batch size on resume", "the same images per step and order", "test_resume.py::test_a_run_keeps_its_images_per_step_whatever_the_batch"),
        ("hosts with other files, options or checkpoints", "one line", "test_distributed.py::test_processes_equal_one"),
        ("a bad file that one process meets", "one line in all, all end", "test_distributed.py::test_a_bad_file_of_one_process_is_one_line_and_ends_all"),
        ("kill -9 of one process", "all go on from the last checkpoint", "test_distributed.py::test_a_killed_process_a_stop_and_going_on_alone"),
        ("SIGTERM to torchrun", "all save at one step and leave", "test_distributed.py::test_a_killed_process_a_stop_and_going_on_alone"),
        ("one of two hosts lost, lost and back, cut off for 5 or 60 s", "the training goes on with those that are there and finishes, every step once", "test_distributed.py::test_of_two_hosts_one_fails_and_every_step_is_done_once"),
        ("a port in use, a host that does not exist", "one line", "test_distributed.py::test_a_meeting_that_fails_is_one_line"),
    ],
    "Scoring": [
        ("faulty predictions: missing, twice, size, colours, cut, train ids", "one line before anything is counted", "test_score.py::test_a_faulty_prediction_is_named"),
        ("train ids for label ids", "recognised", "test_score.py::test_train_ids_without_ignored_pixels_are_recognised"),
        ("absent classes, groups, ignored regions", "all 157 official numbers within 1e-12", "test_metrics.py::test_every_number_equals_the_official_one_on_random_sets"),
    ],
    "The tests themselves": [
        ("ten faults planted, one at a time", "each noticed", "test_planted_faults.py::test_a_planted_fault_is_noticed"),
    ],
}  # fmt: skip


def main() -> None:
    tests = [f"tests/{test}" for rows in ROWS.values() for *_, test in rows]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-n2",
            "--dist",
            "loadfile",
            "-m",
            "slow or not slow",
        ]
        subprocess.run([*command, f"--junitxml={report}", *tests], cwd=REPOSITORY, check=False)
        results = read(report)
    PAGE.write_text(page(results), encoding="utf-8")
    print(f"-> {PAGE}")


def read(report: Path) -> dict[str, list[ElementTree.Element]]:
    """file::test -> its cases in a JUnit report."""
    found: dict[str, list[ElementTree.Element]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname').split('.')[-1]}.py::{case.get('name').split('[')[0]}"
        found.setdefault(name, []).append(case)
    return found


def page(results: dict[str, list[ElementTree.Element]]) -> str:
    parts = [HEAD.format(machine=machine(CPU), date=time.strftime("%Y-%m-%d"))]
    for group, rows in ROWS.items():
        parts.append(f"## {group}\n\n| what goes wrong | what happens | test | result |\n")
        parts.append("| --- | --- | --- | --- |\n")
        for fault, answer, test in rows:
            parts.append(f"| {fault} | {answer} | `{test}` | {verdict(results[test])} |\n")
        parts.append("\n")
    return "".join(parts)


def verdict(cases: list[ElementTree.Element]) -> str:
    """How often it passed, in how long, and the figures that it noted."""
    bad = [
        case for case in cases if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = [case for case in cases if case.find("skipped") is not None]
    seconds = sum(float(case.get("time")) for case in cases)
    words = [f"{len(cases) - len(bad) - len(skipped)} passed, {seconds:.0f} s"]
    words += [f"{len(bad)} FAILED"] if bad else []
    words += [f"{len(skipped)} skipped"] if skipped else []
    notes = (case.iter("property") for case in cases)
    words += [f"{note.get('name')} {note.get('value')}" for each in notes for note in each]
    return "; ".join(words)


if __name__ == "__main__":
    main()
