"""The child process that holds a loaded MLX model."""
