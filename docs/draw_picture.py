"""Draw docs/fastslm.png, the picture of the README.

python docs/draw_picture.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

FROZEN, OURS, TOKENS, TEXT = "#dfe6ee", "#fde6c8", "#f7b267", "#d8efd9"


def main() -> None:
    """One window of 30 s on its way from sound to text."""
    figure, axes = pyplot.subplots(figsize=(11, 4.3), layout="constrained")
    axes.set(xlim=(0, 115), ylim=(0, 43))
    axes.axis("off")

    def box(x: float, y: float, width: float, height: float, words: str, colour: str, size: float = 9) -> None:
        axes.add_patch(
            FancyBboxPatch(
                (x, y), width, height, boxstyle="round,pad=0.2,rounding_size=0.8", facecolor=colour, edgecolor="#555555"
            )
        )
        axes.text(x + width / 2, y + height / 2, words, ha="center", va="center", fontsize=size)

    def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
        axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, color="#555555"))

    box(1, 30, 12, 8, "30 s of sound\n480,000 samples", "white")
    box(18, 30, 13, 8, "Whisper encoder\n(frozen)", FROZEN)
    arrow((13.5, 34), (17.5, 34))
    for index, (frames, y) in enumerate(((1500, 30), (750, 18), (375, 6)), start=1):
        box(36, y, 12, 8, f"X{index}\n{frames} frames", OURS)
        box(54, y, 13, 8, f"compressor {index}\n80 queries", OURS)
        arrow((48.5, y + 4), (53.5, y + 4))
        arrow((67.5, y + 4), (72.5, 22 + (y - 18) / 6))
    arrow((31.5, 34), (35.5, 34))
    for y in (30, 18):
        arrow((42, y - 0.5), (42, y - 3.6))
        axes.text(43, y - 2, "halved", va="center", fontsize=8, color="#555555")
    box(73, 18, 11, 8, "distillation\n50 queries", OURS)
    box(73, 32, 14, 7, "detail recovery\nreads X1, X2, X3", OURS)
    arrow((79, 26.5), (79, 31.5))
    box(91, 32, 9, 7, "50\ntokens", TOKENS, 11)
    arrow((87.5, 35.5), (90.5, 35.5))
    box(90, 20.5, 20, 7, "unfolder → 600 frames", OURS)
    arrow((96, 31.5), (96, 28))
    box(90, 11.5, 9.5, 6.5, "Whisper's\ndecoder (frozen)", FROZEN, 7.5)
    box(101.5, 11.5, 8.5, 6.5, "CTC head:\ntimes", TEXT, 7.5)
    arrow((94.5, 20), (94.5, 18.5))
    arrow((105.5, 20), (105.5, 18.5))
    box(90, 2, 20, 6.5, "language model + LoRA:\nanswers", TEXT)
    arrow((94.5, 11), (94.5, 9))
    axes.text(95.3, 9.6, "words, in 50 places", fontsize=7.5, color="#555555", va="center")
    axes.text(
        1,
        3,
        "50 tokens for 30 s are 1.67 a second:\nan hour is 6,000 tokens, where 25 a second need 90,000.",
        fontsize=10,
    )
    figure.savefig(Path(__file__).with_name("fastslm.png"), dpi=110)


if __name__ == "__main__":
    main()
