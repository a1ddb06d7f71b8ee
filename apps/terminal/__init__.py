"""A spoken conversation as a terminal shows it."""
