"""What a search finds: the ticket, the network that is left of it, and tickets that no search has found."""
