"""The chaos soak: a stand-in plant, a real daemon, and one round of random faults after another.

`plan` draws a round's faults from a seed, `host` does them to the daemon, `life` keeps chats busy
meanwhile, `rounds` carries a round out and waits until all is calm, `judge` says which promise was broken.
"""
