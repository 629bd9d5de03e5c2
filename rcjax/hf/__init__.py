"""In from and out to the Hugging Face world: tokenizers, weights, whole model directories."""
