"""Whether a schedule of three phases lets LoRA train at higher rates."""
