"""From a trained head to files that phones and others run, each checked and with a card."""
