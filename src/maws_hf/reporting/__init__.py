"""Pages that show what runs have done, to be opened from disk."""
