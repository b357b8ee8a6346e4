"""The table of runs: one line per recipe, mean and deviation over its seeds."""

import json
import statistics

import pytest
from helpers import run, tiny, train


@pytest.mark.slow
def test_seeds_of_one_recipe_share_a_line(cityscapes_root, tmp_path):
    options = {"steps": 2, "log_root": tmp_path}
    for seed in (0, 1):
        train(tiny(cityscapes_root, run_name=f"plain-{seed}", seed=seed, **options))
    train(tiny(cityscapes_root, run_name="average", ema=0.9, **options))
    results = [json.loads((tmp_path / f"plain-{n}" / "results.json").read_text()) for n in (0, 1)]
    assert results[0]["config"]["seed"] == 0 and results[0]["seconds"] > 0
    assert results[0]["environment"]["packages"]["torch"]
    without = {"config": {}}, {"config": []}, {"miou": None}, {"environment": {"gpus": []}}
    broken = ['{"miou": 0.5', "[]", *(json.dumps(results[0] | change) for change in without)]
    for number, text in enumerate(broken):
        (tmp_path / f"broken{number}").mkdir()
        (tmp_path / f"broken{number}" / "results.json").write_text(text)
    (tmp_path / "broken6" / "results.json").mkdir(parents=True)
    done = run("utils/results.py", "--log_root", tmp_path, "--dataset", "cityscapes", cwd="/")
    assert done.returncode == 0, done.stderr
    for number in range(7):
        assert f"broken{number}/results.json: not a run's results, skipped" in done.stderr
    titles, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in done.stdout.strip().splitlines()
    ]
    found = {line[titles.index("runs")]: line for line in lines}
    assert found.keys() == {"plain-0, plain-1", "average"}
    scores = [100 * result["miou"] for result in results]
    expected = f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}"
    assert found["plain-0, plain-1"][titles.index("mIoU")] == expected
    summaries = {
        tuple(one["runs"]): one for one in json.loads((tmp_path / "results.json").read_text())
    }
    both = summaries["plain-0", "plain-1"]
    assert both["seeds"] == [0, 1] and both["recipe"]["steps"] == 2 and both["step"] == 2
    assert both["miou"]["values"] == [result["miou"] for result in results]
    assert both["miou"]["deviation"] == statistics.stdev(both["miou"]["values"])
    assert summaries["average",]["miou"]["deviation"] is None
    assert "±" not in found["average"][titles.index("mIoU")]
    assert {name: row[titles.index("options")] for name, row in found.items()} == {
        "plain-0, plain-1": "", "average": "ema 0.9",
    }  # fmt: skip

    # Other images, or more of them in a step, are another recipe; a resumed run has no hours.
    for name, changes in {
        "half": {"images": "1 other"},
        "wide": {"images_per_step": 8, "miou": 0.5},
        "on": {"images_per_step": 8, "start": 1, "miou": 0.055},
    }.items():
        (tmp_path / name).mkdir()
        one = {**results[0], **changes, "config": results[0]["config"] | {"run_name": name}}
        one["config"]["ema"] = 0.5 if name == "on" else None
        (tmp_path / name / "results.json").write_text(json.dumps(one))
    done = run("utils/results.py", "--log_root", tmp_path, "--dataset", "cityscapes")
    rows = [[x.strip() for x in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]
    found = {row[4]: row for row in rows}
    assert {"plain-0, plain-1", "half", "wide", "on"} <= found.keys()
    assert found["wide"][3].startswith("8 x ") and found["wide"][7] and not found["on"][7]
    assert [row[4] for row in rows if row[4] in ("on", "wide")] == ["on", "wide"]

    # A seed that another machine trained: no mean of hours.
    there = results[1] | {"environment": results[1]["environment"] | {"gpus": ["NVIDIA H200"]}}
    (tmp_path / "plain-1" / "results.json").write_text(json.dumps(there))
    done = run("utils/results.py", "--log_root", tmp_path, "--dataset", "cityscapes")
    (row,) = (x for x in done.stdout.splitlines() if "plain-0, plain-1" in x)
    assert "|  | CPU, " in row and "; 1 x NVIDIA H200 |" in row

    # Data of one's own: seeds of one recipe only if they lie in one folder.
    for seed, root in enumerate(("/cells", "/cells", "/potatoes")):
        changes = {"dataset": "custom", "data_root": root, "seed": seed, "run_name": f"own-{seed}"}
        (tmp_path / f"own-{seed}").mkdir()
        one = {**results[0], "config": results[0]["config"] | changes}
        (tmp_path / f"own-{seed}" / "results.json").write_text(json.dumps(one))
    done = run("utils/results.py", "--log_root", tmp_path, "--dataset", "custom")
    lines = [line.split(" | ") for line in done.stdout.strip().splitlines()[2:]]
    assert [(line[0], line[4]) for line in lines] == [
        ("| /cells", "own-0, own-1"), ("| /potatoes", "own-2"),
    ]  # fmt: skip


def test_no_run_is_one_line(tmp_path):
    done = run("utils/results.py", "--log_root", tmp_path)
    assert done.returncode == 2 and "no results of a training" in done.stderr
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
