"""What one value of the configuration may be."""
