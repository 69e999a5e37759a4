"""The sections of the configuration file that are more than a few keys."""
