"""The tiny model, for every test in this folder."""

from tiny_fastslm import make_checkpoint, tiny, tiny_checkpoint

__all__ = ["make_checkpoint", "tiny", "tiny_checkpoint"]
