"""Training: recipes, cached encoder features, the phases of a stage, checkpoints."""
