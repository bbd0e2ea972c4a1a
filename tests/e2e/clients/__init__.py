"""Real clients, and the apps that they are tried on, with us and without us."""
