"""What customers say, do, send and fetch, on its way to GMS."""
