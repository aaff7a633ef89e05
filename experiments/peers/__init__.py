"""Foreign implementations, run by their own Python as processes beside ours."""
