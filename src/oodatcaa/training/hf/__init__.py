"""The Hugging Face backend: transformers and PEFT on PyTorch. Runs in child processes only."""
