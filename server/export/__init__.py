"""Exports a trained head as files for phones and other machines, each checked and with a card."""
