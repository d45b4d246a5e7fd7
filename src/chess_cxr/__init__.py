"""Chest X-ray encoders: pre-trained without labels, published, measured."""
