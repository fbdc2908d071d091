"""Speech with transcripts: manifests, and how clips are packed into windows. Knows nothing of the model."""
