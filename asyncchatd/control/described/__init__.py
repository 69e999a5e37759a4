"""The control API as it is described to programs, and what each call of it needs."""
