"""How rank, alpha and targets of LoRA matter together."""
