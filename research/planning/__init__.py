"""What a run would need and take, told before it begins: memory, time, cost."""
