"""Packed runs: the bits of the run at home, from one folder that lies anywhere, and only while it is whole."""

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock
from safetensors.torch import load_file

from fastslm import weights
from fastslm.errors import CheckpointError, ManifestError, RecipeError, TrainingError
from fastslm.training import pack as pack_module
from fastslm.training.pack import pack_run
from fastslm.training.packed import PIECE, PIECES, READ_WHOLE, fingerprint, load_packed
from fastslm.training.recipe import check_recipe
from fastslm.training.trainer import Trainer

# What a step or a validation says of time, which differs from run to run.
TIMES = {"seconds", "step_seconds", "wait_seconds", "seconds_to_first_step"}


@pytest.fixture
def home(recipe_content: dict[str, Any], tiny_bases: tuple[Path, Path], tmp_path: Path) -> dict[str, Any]:
    """The recipe of two phases with all that it names in one folder, which a test can remove."""
    root = tmp_path / "home"
    root.mkdir()
    for base in tiny_bases:
        shutil.copytree(base, root / base.name)
    shutil.copytree(Path(recipe_content["data"]["validation"]).parent, root / "corpus")
    for name in ("cache", "run"):
        shutil.rmtree(root / "corpus" / name, ignore_errors=True)
    text = json.dumps(recipe_content)
    text = text.replace(str(Path(recipe_content["data"]["validation"]).parent), str(root / "corpus"))
    for base in tiny_bases:
        text = text.replace(str(base), str(root / base.name))
    content = json.loads(text)
    return {**content, "out": str(root / "run")}


@pytest.fixture
def tasks(home: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A recipe of instructions alone, which starts from a trained model."""
    rows = [
        {"id": f"row-{i}", "audio": "gone.wav", "duration": 4.0, "text": "the house is red", "task": "ask"}
        | {"instruction": f"What colour is house {i}?", "answer": "Red." if i % 2 else "not mentioned"}
        for i in range(10)
    ]
    manifest = tmp_path / "home" / "tasks.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    home["model"] |= {
        "reader": {"base": home["model"]["encoder"], "layers": 1},
        "ctc": {"hidden_size": 16, "layers": 1, "reads": "frames"},
        "heard_words": True,
    }
    rates = {"hfq_other": 0.001, "reader_other": 0.001}
    read = {"name": "frames", "objective": "frames", "steps": 1, "batch_windows": 2, "rates": rates}
    start = run({**home, "phases": [read], "out": str(tmp_path / "home" / "before")})
    home["data"] |= {
        "instructions": [{"path": str(manifest)}, {"path": str(manifest), "share": 0.5}],
        "instructions_validation": str(manifest),
    }
    told = {"name": "tasks", "objective": "instructions", "steps": 3, "batch_windows": 3, "rates": {"lora": 0.01}}
    return {**home, "phases": [told], "start_from": str(start)}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept") / "pack"


@pytest.fixture
def whole(home: dict[str, Any], tmp_path: Path, kept: Path) -> Path:
    """A pack of the recipe of two phases, which was made once, for a test to damage."""
    if not kept.exists():
        packed(home, kept)
    return Path(shutil.copytree(kept, tmp_path / "pack"))


def run(content: dict[str, Any]) -> Path:
    return Trainer(check_recipe(content, "recipe"), quiet=True).run()


def packed(content: dict[str, Any], folder: Path) -> Path:
    return pack_run(check_recipe(content, "recipe"), folder, quiet=True)


def run_packed(folder: Path, *overrides: str) -> Path:
    return Trainer(load_packed(folder, overrides), quiet=True).run()


def logged(model: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (model.parent / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def assert_same(one: Path, other: Path) -> None:
    """The same losses at every step and validation, the same weights, and the same names of what they belong to."""
    assert logged(one) == logged(other)
    a, b = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert json.loads((one / "config.json").read_text()) == json.loads((other / "config.json").read_text())
    recipes = [json.loads((model / "training.json").read_text())["recipe"] for model in (one, other)]
    assert recipes[0] | {"out": 0} == recipes[1] | {"out": 0}


def carried_away(content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pack of a recipe in another place, with everything else of it gone and no cache."""
    packed(content, tmp_path / "pack")
    shutil.rmtree(tmp_path / "home")
    there = tmp_path / "there"
    there.mkdir()
    shutil.move(tmp_path / "pack", there / "pack")
    monkeypatch.setenv("FASTSLM_CACHE", str(tmp_path / "empty"))
    monkeypatch.chdir(there)
    return Path("pack")


def test_a_packed_run_gives_the_bits_of_the_run_at_home_wherever_it_lies(
    home: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run({**home, "out": str(tmp_path / "unpacked")})
    folder = carried_away(home, tmp_path, monkeypatch)
    model = run_packed(folder)
    assert model == folder / "run" / "model"
    assert_same(model, expected)


def test_a_packed_run_of_instructions_has_no_windows_of_training_and_gives_the_same_bits(
    tasks: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run({**tasks, "out": str(tmp_path / "unpacked")})
    folder = carried_away(tasks, tmp_path, monkeypatch)
    assert len(list((folder / "features").iterdir())) == 1
    assert_same(run_packed(folder), expected)
    frames = {"name": "frames", "objective": "frames", "steps": 1, "rates": {"hfq_other": 1.0}}
    phases = f"phases={json.dumps([*tasks['phases'], frames])}"
    with pytest.raises(RecipeError, match=r"the run now hears training windows, which were not packed; give the same"):
        load_packed(folder, [phases])
    # Without training windows nothing that was packed depends on it.
    assert load_packed(folder, ["seed=5"]).recipe.seed == 5


def test_the_windows_that_a_least_squares_start_sees_are_packed(
    tasks: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {**tasks, "start_from": None}
    content["model"]["reader"]["start_windows"] = 5
    expected = run({**content, "out": str(tmp_path / "unpacked")})
    folder = carried_away(content, tmp_path, monkeypatch)
    assert len(load_packed(folder).training) == 1
    assert_same(run_packed(folder), expected)


def test_base_weights_are_found_by_name_in_the_pack_alone(
    home: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"some/whisper": Path(home["model"]["encoder"]), "some/llama": Path(home["model"]["text_model"])}
    home["model"] |= {"encoder": "some/whisper", "text_model": "some/llama"}
    home["phases"] = [phase | {"steps": 1} for phase in home["phases"][:1]]
    with weights.found_in(names):
        expected = run({**home, "out": str(tmp_path / "unpacked")})
        packed(home, tmp_path / "pack")
    shutil.rmtree(tmp_path / "home")
    model = run_packed(tmp_path / "pack")
    assert_same(model, expected)
    assert json.loads((model / "config.json").read_text())["base_encoder"] == "some/whisper"
    with weights.found_in(load_packed(tmp_path / "pack").weights):
        assert weights.resolve("some/llama") == tmp_path / "pack" / "weights" / "some--llama"


def test_a_packed_run_that_was_stopped_goes_on_after_it_was_moved(
    tasks: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run({**tasks, "out": str(tmp_path / "unpacked")})
    folder = carried_away(tasks, tmp_path, monkeypatch)
    trainer = Trainer(load_packed(folder), quiet=True)
    one_step = trainer._one_step

    def interrupted(*arguments: Any) -> Any:
        if trainer.global_step + 1 == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return one_step(*arguments)

    trainer._one_step = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    moved = shutil.move(folder, tmp_path / "moved")
    assert_same(run_packed(Path(moved)), expected)


def test_what_was_not_packed_may_be_set(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere"
    model = run_packed(whole, f"out={out}", "phases.0.steps=1", "phases.1.steps=1", "threads=1", "device=cpu")
    assert model == out / "model"
    assert len([row for row in logged(model) if row["kind"] == "step"]) == 2
    assert not (whole / "run").exists()


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=4", "seed"),
        ("data.variants=1", r"data\.variants"),
        ("data.validation_clips=2", r"data\.validation_clips"),
        ("model.text_model=other", r"model\.text_model"),
        ("start_from=other", "start_from"),
    ],
)
def test_what_decides_what_is_packed_stays(whole: Path, override: str, key: str) -> None:
    with pytest.raises(RecipeError, match=rf"--set: {key} decides what is packed, so a packed run keeps it; give the"):
        load_packed(whole, [override])


def test_a_pack_holds_what_the_run_opens_and_says_so(
    home: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(home["model"]["encoder"]) / "pytorch_model.bin").write_bytes(b"the same in another format")
    folder = pack_run(check_recipe(home, "recipe"), tmp_path / "deep" / "pack")
    description = json.loads((folder / "pack.json").read_text())
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert there == {*description["files"], "pack.json"}
    kinds = {name.split("/")[0] for name in there}
    assert kinds == {"features", "weights", "recipe.yaml", "pack.json"}
    assert "weights/whisper/model.safetensors" in there
    assert not any(name.endswith((".bin", ".lock", ".wav")) for name in there)
    assert len(description["features"]["training"]) == 2
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["name"] == "tones"
    said = re.search(r"pack will take ([\d.]+) MB", capsys.readouterr().err)
    assert said is not None
    assert float(said[1]) * 1e6 == pytest.approx(sum((folder / name).stat().st_size for name in there), rel=0.05)
    assert not list(tmp_path.glob("deep/.*"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "weights/llama/config.json").unlink(), "the packed run lost weights/llama/config"),
        (lambda folder: (folder / "weights/llama/config.json").write_text("{}"), r"config\.json has 2 bytes, but was"),
        (lambda folder: swap(folder / "weights/llama/model.safetensors"), r"model\.safetensors was changed since"),
        (lambda folder: swap(folder / "recipe.yaml"), r"recipe\.yaml was changed since it was packed; set values with"),
        (lambda folder: (folder / "pack.json").write_text("{"), r"pack\.json is damaged"),
        (lambda folder: (folder / "pack.json").write_text("{}"), r"pack\.json is damaged"),
        (lambda folder: (folder / "pack.json").unlink(), r"holds no packed run \(it has no pack\.json\); give a rec"),
        (
            lambda folder: (folder / "pack.json").write_text('{"layout": 7, "files": {}}'),
            r"another version of fastslm \(layout 7, and this one reads 1\); pack the run again",
        ),
    ],
)
def test_a_pack_that_is_not_whole_is_one_sentence(whole: Path, damage: Any, said: str) -> None:
    damage(whole)
    with pytest.raises(RecipeError, match=said) as caught:
        load_packed(whole)
    assert str(caught.value).count("\n") == 0


def swap(path: Path) -> None:
    """Change the last byte."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("at", [0, READ_WHOLE, -1])
def test_the_fingerprint_of_a_large_file_meets_pieces_from_end_to_end(tmp_path: Path, at: int) -> None:
    path = tmp_path / "large"
    size = READ_WHOLE + PIECES * PIECE
    path.write_bytes(bytes(size))
    before = fingerprint(path)
    with path.open("r+b") as file:
        # The piece that lies around that place begins at a multiple of the distance between pieces.
        step = (size - PIECE) / (PIECES - 1)
        place = round(at / step) * step if at >= 0 else size - 1
        file.seek(int(place))
        file.write(b"x")
    assert path.stat().st_size == size
    assert fingerprint(path) != before


def test_a_folder_that_holds_something_is_left_as_it_is(home: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    folder.mkdir()
    (folder / "mine").write_text("")
    recipe = check_recipe(home, "recipe")
    with pytest.raises(RecipeError, match="is not empty; name a new folder"):
        pack_run(recipe, folder, quiet=True)
    with pytest.raises(RecipeError, match="is a file; name a new folder"):
        pack_run(recipe, folder / "mine", quiet=True)
    assert [path.name for path in folder.iterdir()] == ["mine"]
    (folder / "mine").unlink()
    assert load_packed(pack_run(recipe, folder, quiet=True)).folder == folder


def test_a_pack_that_is_interrupted_is_not_there_and_the_next_one_is_whole(
    home: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".pack.partial").mkdir()
    (tmp_path / ".pack.partial" / "left").write_text("by a process that was killed")
    copied: list[Any] = []
    copy = shutil.copyfile

    def interrupted(source: Path, target: Path) -> None:
        copy(source, target)
        copied.append(target)
        if len(copied) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pack_module.shutil, "copyfile", interrupted)
        with pytest.raises(KeyboardInterrupt):
            packed(home, tmp_path / "pack")
    assert not (tmp_path / "pack").exists()
    assert not (tmp_path / ".pack.partial").exists()
    (tmp_path / ".pack.partial").mkdir()
    (tmp_path / ".pack.partial" / "left").write_text("by a process that was killed")
    assert not (packed(home, tmp_path / "pack") / "left").exists()
    load_packed(tmp_path / "pack")


def test_a_kill_while_packing_leaves_nothing_under_the_name(home: dict[str, Any], tmp_path: Path) -> None:
    recipe = check_recipe(home, "recipe")
    packed(home, tmp_path / "first")
    # A child of this process, which has imported everything: it dies in the middle of a copy.
    child = os.fork()
    if not child:
        pack_module.fingerprint = lambda path: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        try:
            pack_run(recipe, tmp_path / "pack", quiet=True)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "pack").exists()
    assert list((tmp_path / ".pack.partial").iterdir())
    load_packed(packed(home, tmp_path / "pack"))
    assert not (tmp_path / ".pack.partial").exists()


def test_two_processes_do_not_pack_into_one_folder(home: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / ".pack.partial").mkdir()
    with (
        FileLock(tmp_path / ".pack.partial" / ".lock"),
        pytest.raises(TrainingError, match="another process packs there"),
    ):
        packed(home, tmp_path / "pack")
    assert (tmp_path / ".pack.partial").is_dir()


def test_too_little_room_is_said_before_anything_is_encoded(
    home: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = check_recipe(home, "recipe")
    sizes: list[int] = []
    usage = shutil.disk_usage
    monkeypatch.setattr(pack_module.shutil, "disk_usage", lambda path: usage(path)._replace(free=10**6))
    with pytest.raises(TrainingError, match=r"Packing needs [\d.]+ MB on the disk of .*, which has 1\.0 MB free"):
        pack_run(recipe, tmp_path / "pack", quiet=True)
    assert not Path(home["data"]["cache"]).exists()
    assert not (tmp_path / "pack").exists()
    # What is not encoded yet is needed twice: in the cache and in the pack.
    packing = pack_module._Packing(recipe)
    sizes += packing.sizes()
    assert sizes[0] == sizes[1] > 0
    packing.encode(pack_module.StepLine(quiet=True), torch.device("cpu"))
    assert packing.sizes() == (sizes[0], 0)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"start_from": "{home}/corpus"}, CheckpointError, "corpus holds no model.safetensors"),
        ({"device": "gpu"}, RecipeError, "device is 'gpu'"),
    ],
)
def test_a_run_that_cannot_be_trained_is_not_packed(
    home: dict[str, Any], tmp_path: Path, change: dict[str, str], error: type[Exception], said: str
) -> None:
    change = {key: value.format(home=tmp_path / "home") for key, value in change.items()}
    with pytest.raises(error, match=said):
        packed({**home, **change}, tmp_path / "pack")
    assert not Path(home["data"]["cache"]).exists()


def test_a_recording_that_is_missing_is_said_before_anything_is_encoded(home: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "home" / "corpus" / "train-7.wav").unlink()
    with pytest.raises(ManifestError, match="train-7"):
        packed(home, tmp_path / "pack")
    assert not Path(home["data"]["cache"]).exists()


def test_a_run_for_a_gpu_is_packed_where_there_is_none(home: dict[str, Any], tmp_path: Path) -> None:
    folder = packed({**home, "device": "cuda:99"}, tmp_path / "pack")
    assert load_packed(folder).recipe.device == "cuda:99"


def test_one_process_packs(home: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="One process packs a run"):
        packed(home, tmp_path / "pack")


def test_weights_as_published_are_packed_for_alignment(
    home: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "whisper-tiny.en"
    member = Path(weights.KNOWN[name].member)
    original = tmp_path / "original"
    (original / member / "deep").mkdir(parents=True)
    (original / member / "model.bin").write_bytes(b"weights")
    (original / member / "deep" / "more").write_bytes(b"more")
    placed = {name: Path(home["model"]["encoder"]), weights.original_name(name): original}
    home["model"]["encoder"] = name
    phase = {"name": "a", "objective": "alignment", "steps": 1, "batch_windows": 2, "rates": {"head_other": 0.1}}
    with weights.found_in(placed):
        folder = packed({**home, "phases": [phase]}, tmp_path / "pack")
        other = packed(home, tmp_path / "other")
    with weights.found_in(load_packed(folder).weights):
        found = weights.original(name)
    assert found == folder / "weights" / f"{name}-original" / member
    assert (found / "model.bin").read_bytes() == b"weights"
    assert (found / "deep" / "more").read_bytes() == b"more"
    with pytest.raises(RecipeError, match="the run now aligns characters, with weights that were not packed"):
        load_packed(other, ["phases=[" + json.dumps(phase) + "]"])


def test_two_folders_of_one_name_stay_apart(home: dict[str, Any], tmp_path: Path) -> None:
    moved = tmp_path / "home" / "other" / "whisper"
    shutil.copytree(home["model"]["text_model"], moved)
    home["model"]["text_model"] = str(moved)
    found = load_packed(packed(home, tmp_path / "pack")).weights
    assert found[str(moved)].name == "whisper-2"
    assert json.loads((found[str(moved)] / "config.json").read_text())["model_type"] == "llama"
