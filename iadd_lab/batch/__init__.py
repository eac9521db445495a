"""Executing notebooks in one batch: what to execute, with which parameters, and what came of it."""
