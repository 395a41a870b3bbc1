"""How a model file becomes tensors and a tokenizer, and tensors become logits."""
