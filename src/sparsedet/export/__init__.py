"""Files for other programs, and the proof of what is in them."""
