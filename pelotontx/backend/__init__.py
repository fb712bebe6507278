"""What answers: callees and the processes that run them."""
