"""What each way of distillation is worth to a student of half the layers, at equal tokens."""
