"""The rounds: choosing clients, asking them, checking their replies, and the new head."""
