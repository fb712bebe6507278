"""What a user's HTTP code sees."""
