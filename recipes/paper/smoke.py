"""What smoke.sh runs: rows of three stages from real recordings, the recipes with toy sizes, checks of the outcome.

recipes/paper/smoke.sh ../shared/data
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAPER = Path(__file__).parent
ENCODER = (
    "{config: {d_model: 32, encoder_layers: 1, encoder_attention_heads: 2, encoder_ffn_dim: 64, num_mel_bins: 128, "
    "init_std: 0.2}}"
)
TEXT_MODEL = (
    "{config: {model_type: qwen3, vocab_size: 268, hidden_size: 48, intermediate_size: 96, num_hidden_layers: 2, "
    "num_attention_heads: 2, num_key_value_heads: 2, head_dim: 24, max_position_embeddings: 8192, "
    "initializer_range: 0.2}}"
)
SHORT_CLIPS, LONG_ROWS, CLIPS_OF_A_LONG_ROW = 12, 4, 8
KOREAN = "오늘은 날씨가 좋아요."


def make_rows(data: Path, folder: Path) -> None:
    """short.jsonl, long.jsonl (1 to 3 minutes) and tasks.jsonl (four tasks), by reference to recordings of `data`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.loads(line) for line in (data / "librispeech" / "validation.jsonl").open())
    clips = sorted((line for line in lines if 8 <= line["duration"] <= 29), key=lambda line: line["id"])
    root = os.path.relpath(data, folder)
    for clip in clips:
        clip["audio"]["path"] = f"{root}/{clip['audio']['path']}"
    short = clips[:SHORT_CLIPS]
    long = []
    for number in range(LONG_ROWS):
        own = clips[number * CLIPS_OF_A_LONG_ROW : (number + 1) * CLIPS_OF_A_LONG_ROW]
        start, pieces = 0.0, []
        for clip in own:
            end = round(start + clip["duration"], 3)
            pieces.append({"audio": clip["audio"], "start": round(start, 3), "end": end, "text": clip["text"]})
            start += clip["duration"]
        long.append(
            {"id": f"long-{number}", "audio": None, "duration": round(start, 3), "language": "en"}
            | {"text": " ".join(clip["text"] for clip in own), "segments": pieces}
        )
    tasks: list[dict[str, Any]] = [
        {**short[0], "task": "transcribe", "instruction": "Write down what is said.", "answer": short[0]["text"]},
        {**short[1], "task": "translate", "instruction": "Translate into Korean.", "answer": KOREAN}
        | {"target_language": "ko"},
        {**long[0], "task": "summarize", "instruction": "Summarize the audio clip.", "answer": "A story is read."},
        {**short[2], "task": "ask", "instruction": "Who is speaking?", "answer": "A reader of a book."},
    ]
    for index, row in enumerate(tasks):
        row["id"] = f"task-{index}"
    for name, rows in (("short", short), ("long", long), ("tasks", tasks)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def command(stage: int, rows: str, folder: Path, out: str, steps: int, **changes: Any) -> list[str]:
    """`fastslm train` of a stage of the paper with toy sizes."""
    settings: dict[str, Any] = {
        "out": folder / out,
        "model.encoder": ENCODER,
        "model.text_model": TEXT_MODEL,
        "model.hfq": "{head_size: 16, stage_tokens: [10, 10, 10], final_tokens: 50, detail_blocks: 2}",
        "data.train": f"[{{path: {folder}/{rows}.jsonl}}]",
        "data.validation": "null",
        "data.workers": 0,
        "data.cache_features": "true",
        "data.cache": folder / "frames",
        "optimizer.rates": "{hfq: 0.003, projector: 0.003, lora: 0.01}",
        "optimizer.schedule": "constant",
        "accumulate": 1,
        "epochs": "null",
        "steps": steps,
        "threads": 1,
        **changes,
    }
    found = [sys.executable, "-m", "fastslm", "train", str(PAPER / f"stage{stage}.yaml")]
    return [*found, *(part for key, value in settings.items() for part in ("--set", f"{key}={value}"))]


def losses(out: Path) -> list[float]:
    """The loss of every step of a run."""
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [row["speech_lm"] for row in rows if row["kind"] == "step"]


def must_have_fallen(out: Path) -> None:
    found = losses(out)
    third = max(1, len(found) // 3)
    first, last = sum(found[:third]) / third, sum(found[-third:]) / third
    print(f"{out.name}: {len(found)} steps, loss {first:.3f} → {last:.3f}", flush=True)
    if not last < first:
        raise SystemExit(f"{out}: the loss did not fall.")


def killed_in_the_middle(arguments: Sequence[str], out: Path, after: int) -> None:
    """Start a run and kill it, without warning, once it has a checkpoint of step `after` or later."""
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if any(int(own.stem.split("-")[1]) >= after for own in (out / "checkpoints").glob("step-*.pt")):
            process.send_signal(signal.SIGKILL)
            process.wait()
            print(f"{out.name}: killed after step {len(losses(out))}", flush=True)
            return
        time.sleep(0.02)
    raise SystemExit(f"{out}: the run ended before it could be killed.")


def same_weights(one: Path, other: Path) -> bool:
    """Whether the weights of two models are the same to the last bit."""
    names = sorted(own.name for own in one.glob("*.safetensors"))
    return bool(names) and all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def main(data: Path, folder: Path) -> None:
    began = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    make_rows(data, folder)
    run = subprocess.check_call
    run(command(1, "short", folder, "stage1", 30, **{"data.batch_rows": 4}))
    must_have_fallen(folder / "stage1")
    long = {"start_from": folder / "stage1/model", "data.batch_seconds": 360, "checkpoint_minutes": 0.0001}
    run(command(2, "long", folder, "stage2", 12, **long))
    must_have_fallen(folder / "stage2")
    again = command(2, "long", folder, "stage2-killed", 12, **long)
    killed_in_the_middle(again, folder / "stage2-killed", after=3)
    run(again)
    if losses(folder / "stage2") != losses(folder / "stage2-killed"):
        raise SystemExit("The resumed run has other losses than the one that was not killed.")
    if not same_weights(folder / "stage2/model", folder / "stage2-killed/model"):
        raise SystemExit("The resumed run has other weights than the one that was not killed.")
    print("stage2-killed: resumed to the same bits", flush=True)
    tasks = {"start_from": folder / "stage2-killed/model", "data.batch_seconds": 360}
    run(command(3, "tasks", folder, "stage3", 24, **tasks))
    must_have_fallen(folder / "stage3")
    if losses(folder / "stage2")[0] > losses(folder / "stage1")[0]:
        raise SystemExit("Stage 2 does not begin where stage 1 ended.")
    print(f"all three stages in {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
