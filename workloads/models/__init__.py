"""Host models: what differs between one video transformer and the next."""
