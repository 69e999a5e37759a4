"""Copying one store into another."""
