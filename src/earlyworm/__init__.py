"""Cheaper training through early tickets."""
