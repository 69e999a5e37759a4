"""The demo and the rehearsal: the daemon against the stand-in plant."""
