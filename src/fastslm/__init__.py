"""FastSLM: a speech language model that hears hours of speech at 1.67 tokens a second (arXiv 2601.06199)."""
