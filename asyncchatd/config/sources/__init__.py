"""Where the configuration comes from: the file, what it names, and what is wrong there."""
