"""Questions, each with the command that answers it and what it found."""
