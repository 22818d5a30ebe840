"""Full fine-tuning beside LoRA on a model of 1B parameters, by the plan alone."""
