"""What is wrong, and what to do: with the environment."""
