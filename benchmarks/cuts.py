"""Words wrong with windows cut every 30 s and with windows cut in pauses, on the same recordings.

python benchmarks/cuts.py ../shared/data
"""

import sys
from pathlib import Path

import fastslm
from fastslm.data.manifest import read_manifest
from fastslm.evaluation.metrics import error_rates
from fastslm.longform.cuts import CUTS


def main() -> None:
    """Print one row for each kind of cuts."""
    model = fastslm.load()
    clips = read_manifest(Path(sys.argv[1]) / "longform/validation.jsonl")
    print("| cuts | words wrong, `longform/validation` |\n|---|---|")
    for cuts in CUTS:
        texts = [model.transcribe(clip.read(), cuts=cuts).text for clip in clips]
        print(f"| {cuts} | {error_rates([clip.text or '' for clip in clips], texts).wer.value:.1%} |")


if __name__ == "__main__":
    main()
