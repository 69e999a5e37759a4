"""Public chat clients, unchanged, chat through the gateway: see README.md beside this."""
