"""`fastslm import-authors` and `fastslm verify-parity`: what is printed where, and the exit status."""

import json
import re
import resource
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastslm.cli import run
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.parity import Comparison


@pytest.fixture
def verdicts(monkeypatch):
    """`verdicts(*comparisons)` stands in for the computation, which tests/model has."""

    def stand_in(*comparisons: Comparison):
        monkeypatch.setattr("fastslm.model.parity.verify_case", lambda case, checkpoint: iter(comparisons))

    return stand_in


def test_a_case_that_agrees_prints_every_tensor_and_ends_with_zero(parity, capsys):
    status = run(["verify-parity", str(parity / "small")])
    printed = capsys.readouterr()
    assert status == 0
    names = set(load_file(parity / "small" / "vectors.safetensors"))
    assert names <= {line.split()[2] for line in printed.out.splitlines()}
    assert "DIFF" not in printed.out
    assert "agree, the largest difference is" in printed.err


def test_a_case_that_differs_ends_with_one_and_names_the_worst(verdicts, capsys):
    verdicts(Comparison("a.mel.full", 1e-7, True), Comparison("a.compressed", 0.5, False), Comparison("b", 0.1, False))
    assert run(["verify-parity", "case"]) == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "ok     1.00e-07  a.mel.full",
        "DIFF   5.00e-01  a.compressed",
        "DIFF   1.00e-01  b",
    ]
    assert printed.err.strip() == "2 of 3 differ, a.compressed the most: this is not parity."


def test_json_holds_every_comparison(verdicts, capsys):
    verdicts(Comparison("a", 1e-7, True), Comparison("b", float("inf"), False, "nothing of this name is known"))
    assert run(["verify-parity", "case", "--json"]) == 1
    made = json.loads(capsys.readouterr().out)
    assert made["agrees"] is False
    assert [row["difference"] for row in made["comparisons"]] == [1e-7, None]
    assert made["comparisons"][1]["note"] == "nothing of this name is known"


def test_a_case_that_records_nothing_is_no_parity(verdicts):
    verdicts()
    assert run(["verify-parity", "case"]) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify-parity", "no-such-folder"],
        ["import-authors", "no-such-file.pt", "out"],
        ["verify-parity"],
    ],
)
def test_bad_input_ends_with_two_and_one_sentence(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_case_with_only_a_recipe_asks_for_its_checkpoint(parity, capsys):
    assert run(["verify-parity", str(parity / "wide")]) == 2
    assert "--checkpoint" in capsys.readouterr().err


def test_an_imported_checkpoint_is_a_folder_that_loads(parity, capsys, tmp_path):
    case = parity / "small"
    arguments = ["--llm", str(case / "llm"), "--lora-alpha", "8"]
    assert run(["import-authors", str(case / "checkpoint.pt"), str(tmp_path / "out"), *arguments]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(tmp_path / "out")
    model = FastSLMForConditionalGeneration.from_pretrained(tmp_path / "out")
    state = torch.load(case / "checkpoint.pt", weights_only=True)
    assert torch.equal(model.projector.weight, state["encoder.llm_proj.weight"])
    assert (model.config.lora_alpha, model.config.prompt_layout) == (8, "task_first")


def test_a_place_that_cannot_hold_it_is_a_sentence_and_leaves_nothing(parity, capsys, tmp_path):
    case, taken = parity / "small", tmp_path / "taken"
    taken.touch()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for out, most in ((taken, before[0]), (tmp_path / "out", 1_000_000)):
        # A real limit: the kernel refuses to write beyond it, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
        try:
            status = run(["import-authors", str(case / "checkpoint.pt"), str(out), "--llm", str(case / "llm")])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert status == 2
        assert re.fullmatch(rf"fastslm: {out} cannot be written .*\n", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == [taken]


def test_a_checkpoint_that_was_changed_differs(parity, capsys, tmp_path):
    shutil.copytree(parity / "small", tmp_path / "small")
    shutil.copy(parity / "waveforms.safetensors", tmp_path)
    file = tmp_path / "small" / "vectors.safetensors"
    file.chmod(0o600)
    keep = {name: value for name, value in load_file(file).items() if name.startswith("tiny.mel")}
    keep["tiny.mel.full"] = keep["tiny.mel.full"] + 1e-4
    file.unlink()
    save_file(keep, file)
    assert run(["verify-parity", str(tmp_path / "small")]) == 1
    printed = capsys.readouterr()
    assert re.search(r"DIFF   1\.\d\de-04  tiny\.mel\.full\n", printed.out)
    assert re.fullmatch(r"1 of \d+ differ, tiny.mel.full the most: this is not parity.\n", printed.err)
