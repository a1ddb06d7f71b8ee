"""A spoken conversation through a real microphone and speaker, for the terminal and for the desktop."""
