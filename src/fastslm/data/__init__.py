"""Speech with what is known of it: manifests, made, checked, composed, mixed, batched. Knows nothing of the model."""
