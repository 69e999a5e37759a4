"""How a chat comes to be looked after: it is opened here, or taken over."""
