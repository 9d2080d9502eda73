"""What an authenticated client is granted."""
