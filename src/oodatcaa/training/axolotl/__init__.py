"""The axolotl backend: CUDA only. Writes axolotl's configuration and runs its command line."""
