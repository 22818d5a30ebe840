"""Speed and memory of this project against its peers, from one invocation."""
