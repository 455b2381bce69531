"""Masks over time: when they settle, and what is done to the gradients until then."""
