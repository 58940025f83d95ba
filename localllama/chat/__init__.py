"""Conversations: what was said, and what of it still goes to the model."""
