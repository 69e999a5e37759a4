"""How the daemon is: the picture of it, once a second for everybody who looks, on a page."""
