"""Fine-tunes a backbone on public images, before it is frozen."""
