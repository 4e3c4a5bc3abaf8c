"""What server and client share. Imports neither of them."""
