"""How phones take part in rounds: the messages of phones.proto and what both sides share."""
