"""The model: what everything else thinks in. It knows nobody."""
