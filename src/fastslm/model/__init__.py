"""The model: configuration, the HFQ-Former, and the Hugging Face classes around them."""
