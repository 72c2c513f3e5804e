"""A run folder behind HTTP: recommendations, a catalogue that changes while it is served, and a page to look at it."""
