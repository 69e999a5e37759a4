"""The log: the catalogue of events, how a line is made, kept and counted."""
