"""What a trained model does with recordings."""
