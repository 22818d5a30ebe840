"""A LoRA run on a base whose products are of integers, beside the same in bfloat16."""
