"""What strategies of reasoning give a small model, beside votes of as many tokens."""
