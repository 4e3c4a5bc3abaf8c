"""One round after another: who is asked, what comes back, and the head that it gives."""
