"""Runs on named data and models, from settings to results."""
